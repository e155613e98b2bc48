//! `fathom synth` and `fathom doctor` as a stranger runs them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn demo_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo-model")
}

fn fathom(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fathom")).args(args).output().unwrap()
}

fn json(args: &[&str]) -> Value {
    let out = fathom(args);
    serde_json::from_slice(&out.stdout)
        .unwrap_or_else(|e| panic!("{args:?}: {e}: {}", String::from_utf8_lossy(&out.stderr)))
}

/// Runs something that must be refused; returns the message.
fn refused(args: &[&str]) -> String {
    let out = fathom(args);
    let message = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(2), "{args:?}: {message}");
    assert!(!message.contains("panicked") && message.trim_end().lines().count() == 1, "{message}");
    message
}

#[test]
fn synth_writes_what_runs() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (first, second) = (at("first"), at("second"));
    let plan = json(&["synth", "tiny", &first, "--dry-run", "--json"]);
    assert!(plan["written"] == false && !Path::new(&first).exists());
    let report = json(&["synth", "tiny", &first, "--seed", "5", "--json", "--shard-size", "1MB"]);
    assert_eq!((&report["bytes"].is_u64(), &report["written"]), (&true, &true.into()), "{report}");
    assert!(report["shards"].as_u64() > Some(3), "{report}");
    let bench = fathom(&["bench", &first, "--prefill", "8", "--decode", "2", "--runs", "1", "--json"]);
    assert!(bench.status.success(), "{}", String::from_utf8_lossy(&bench.stderr));

    // The same again, with other threads and shards.
    json(&["synth", "tiny", &second, "--seed", "5", "--json", "--threads", "3"]);
    assert_eq!(fs::read_dir(&second).unwrap().count(), 3);
    let fields = ["num_hidden_layers=2", "expert_dtype=fp8", "vocab_size=2240", "sliding_window=16"];
    let sets: Vec<&str> = fields.iter().flat_map(|field| ["--set", field]).collect();
    let (third, tokenizer) = (at("third"), demo_model().display().to_string());
    let base = ["synth", "tiny", &third, "--tokenizer", &tokenizer];
    assert!(fathom(&[&base[..], &sets].concat()).status.success());
    let run = fathom(&["run", &third, "Hello", "--max-tokens", "3"]);
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    // From a file.
    let config = Path::new(&third).join("config.json").display().to_string();
    let again = json(&["synth", &config, &at("fourth"), "--json", "--set", "num_hidden_layers=3"]);
    assert!(again["parameters"].as_u64() > Some(1000), "{again}");

    assert!(refused(&["synth", "tiny", &first]).contains("not empty"));
    assert!(refused(&["synth", "v5", &at("x")]).contains("v4-pro"));
    assert!(refused(&["synth", "tiny", &at("x"), "--set", "hiden_size=5"]).contains("no such field"));
    assert!(refused(&["synth", "tiny", &at("x"), "--set", "hidden_size"]).contains("KEY=VALUE"));
    assert!(refused(&["synth", "tiny", &at("x"), "--set", "hidden_size=-1"]).contains("hidden_size is -1"));
    assert!(refused(&["synth", "tiny", &at("x"), "--set", "num_hidden_layers=4097"]).contains("num_hidden_layers"));
    assert!(refused(&["synth", "tiny", &at("x"), "--tokenizer", &first]).contains("tokenizer.json"));
    let wide = ["num_hidden_layers=4096", "n_routed_experts=64", "hidden_size=65536", "moe_intermediate_size=65536"];
    let many = ["synth", "tiny", &at("x"), "--set", "num_hidden_layers=4096", "--set", "n_routed_experts=256"];
    assert!(refused(&many).contains("6,291,456 tensors of experts are more than"));
    assert!(refused(&["synth", "tiny", &at("x"), "--shard-size", "0"]).contains("--shard-size is 0"));
    let wide: Vec<&str> = wide.iter().flat_map(|field| ["--set", field]).collect();
    assert!(refused(&[&["synth", "tiny", &at("x")][..], &wide].concat()).contains("are free"));
    assert!(refused(&["synth", "tiny", "/proc/x"]).contains("/proc"));
    fs::write(folder.path().join("list"), "[1]").unwrap();
    assert!(refused(&["synth", &at("list"), &at("x")]).contains("no JSON object"));
    assert!(!Path::new(&at("x")).exists());
}

fn finding<'a>(report: &'a Value, name: &str) -> &'a Value {
    let all = report["findings"].as_array().unwrap();
    all.iter().find(|finding| finding["name"] == name).unwrap_or_else(|| panic!("no {name}: {report}"))
}

#[test]
fn doctor_tells_a_sound_model_from_a_broken_one() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().display().to_string();
    let report = json(&["doctor", "demo", "--json", "--drive", &here]);
    for name in ["instructions", "cores", "memory", "GPU", "tensors", "tokenizer", "prompts", "text"] {
        assert_ne!(finding(&report, name)["verdict"], "wrong", "{report}");
    }
    assert_eq!((&finding(&report, "text")["verdict"], &report["wrong"]), (&"good".into(), &0.into()), "{report}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "what was measured on is gone");

    // A copy, and what its hashes should be.
    let model = folder.path().join("copy");
    fs::create_dir(&model).unwrap();
    for entry in fs::read_dir(demo_model()).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, model.join(path.file_name().unwrap())).unwrap();
    }
    let name = model.display().to_string();
    let doctor = || json(&["doctor", &name, "--json"]);
    let sound = doctor();
    assert_eq!((&sound["wrong"], &finding(&sound, "text")["verdict"]), (&0.into(), &"good".into()), "{sound}");
    let shard = model.join("model-00001.safetensors");
    let whole = fs::read(&shard).unwrap();
    let state = model.join(".fathom-pull");
    fs::create_dir(&state).unwrap();
    let sha256 = {
        use sha2::Digest;
        sha2::Sha256::digest(&whole).iter().map(|b| format!("{b:02x}")).collect::<String>()
    };
    let size = whole.len();
    let files =
        format!(r#"{{"model-00001.safetensors": {{"size": {size}, "hash": "sha256:{sha256}", "changed": 0}}}}"#);
    let manifest = format!(r#"{{"repo": "maker/model", "commit": "x", "files": {files}}}"#);
    fs::write(state.join("manifest.json"), manifest).unwrap();
    assert!(finding(&doctor(), "files")["found"].as_str().unwrap().contains("1 as their hashes say"));

    // One bit of a weight: the hash tells, the text hardly.
    let mut bytes = whole.clone();
    bytes[size - 1000] ^= 1;
    fs::write(&shard, &bytes).unwrap();
    let report = doctor();
    let files = finding(&report, "files");
    assert_eq!(files["verdict"], "wrong", "{report}");
    assert!(files["mend"].as_str().unwrap().contains("fathom pull maker/model"), "{files}");
    // Noise where weights should be: the text tells without any hash.
    fs::remove_dir_all(&state).unwrap();
    for (i, byte) in bytes[size / 2..].iter_mut().enumerate() {
        *byte ^= (i * 7919 % 251) as u8 & 0x83;
    }
    fs::write(&shard, &bytes).unwrap();
    let report = doctor();
    assert_eq!(finding(&report, "files")["verdict"], "good");
    let broken = report["findings"].as_array().unwrap().iter().filter(|f| f["verdict"] == "wrong").count();
    assert!(broken > 0, "{report}");
    // Half of it, and none.
    fs::write(&shard, &whole[..size / 2]).unwrap();
    let message = refused(&["doctor", &name, "--quick", "--json"]);
    assert!(message.contains("truncated"), "{message}");
    fs::remove_file(&shard).unwrap();
    assert!(refused(&["doctor", &name, "--json"]).contains("download it"));
    assert!(refused(&["doctor", "--drive", "/nowhere/at/all"]).contains("no such folder"));
    assert!(refused(&["doctor", "/nowhere/at/all", "--json"]).contains("no such folder"));
}

/// A random model of another geometry has no meaning, and is told so.
#[test]
fn doctor_knows_noise() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("noise").display().to_string();
    let tokenizer = demo_model().display().to_string();
    let args = ["synth", "tiny", &model, "--set", "vocab_size=2240", "--tokenizer", &tokenizer];
    assert!(fathom(&args).status.success());
    let report = json(&["doctor", &model, "--json"]);
    let text = finding(&report, "text");
    assert!(text["verdict"] == "wrong" && text["found"].as_str().unwrap().contains("perplexity"), "{text}");
}
