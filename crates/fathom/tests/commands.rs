//! The program as a stranger runs it: what works, and what bad input gets, one message and exit code 2.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use fathom_weights::synth::Synth;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

fn fathom(args: &[&str]) -> Output {
    fathom_with(args, b"")
}

fn fathom_with(args: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_fathom"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The program may end without reading its input.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

/// Runs something that must be refused; returns the message.
fn refused(args: &[&str]) -> String {
    let out = fathom(args);
    let message = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(2), "{args:?}: {message}");
    assert!(!message.contains("panicked"), "{message}");
    message
}

fn tokens_file(folder: &Path, prompt: &[i32], tokens: &[i32]) -> String {
    let bytes = |ids: &[i32]| ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>();
    let (p, t) = (bytes(prompt), bytes(tokens));
    let file = serialize(
        [
            ("prompt", TensorView::new(Dtype::I32, vec![prompt.len()], &p).unwrap()),
            ("tokens", TensorView::new(Dtype::I32, vec![tokens.len()], &t).unwrap()),
        ],
        None,
    )
    .unwrap();
    let path = folder.join("tokens.safetensors");
    fs::write(&path, file).unwrap();
    path.display().to_string()
}

#[test]
fn score_writes_the_same_file_whatever_is_changed() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = fixtures().join("tiny").display().to_string();
    let ids: Vec<i32> = (0..150).map(|i| i * 37 % 512).collect();
    let input = tokens_file(folder.path(), &ids[..140], &ids[140..]);
    let score = |name: &str, more: &[&str]| {
        let path = folder.path().join(name).display().to_string();
        let out = fathom(&[&["score", &tiny, "--tokens", &input, "--output", &path], more].concat());
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        fs::read(path).unwrap()
    };
    let whole = score("whole", &[]);
    let file = SafeTensors::deserialize(&whole).unwrap();
    assert_eq!(file.tensor("logits").unwrap().shape(), [11, 512]);
    for (name, more) in [
        ("chunk", &["--prefill-chunk", "7"][..]),
        ("threads", &["--threads", "3"]),
        ("plain", &["--isa", "plain", "--threads", "1"]),
        ("batch", &["--batch", "--prefill-chunk", "64"]),
    ] {
        assert!(score(name, more) == whole, "{name}");
    }
    assert!(score("exact", &["--profile", "exact"]) != whole);
}

/// With experts in files, whatever there is room for, packed or not, the file is the same; what cannot fit is refused.
#[test]
fn score_writes_the_same_file_with_less_memory() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    fs::create_dir(path("model")).unwrap();
    Synth::tiny(5).set("n_routed_experts", 800).set("num_hidden_layers", 4).write(Path::new(&path("model"))).unwrap();
    let ids: Vec<i32> = (0..150).map(|i| i * 37 % 512).collect();
    let input = tokens_file(folder.path(), &ids[..140], &ids[140..]);
    let score = |model: &str, name: &str, more: &[&str]| {
        let (model, output) = (path(model), path(name));
        let fixed = ["score", &model, "--tokens", &input, "--output", &output, "--json", "--no-counts"];
        let out = fathom(&[&fixed, more].concat());
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        (fs::read(output).unwrap(), json)
    };
    let (whole, json) = score("model", "whole", &[]);
    assert!(json["experts"].is_null());
    let too_little =
        refused(&["score", &path("model"), "--tokens", &input, "--output", &path("none"), "--memory", "1MiB"]);
    assert!(too_little.contains("1.00 MiB of memory were given, too little"), "{too_little}");
    let least = too_little.split("give it --memory ").nth(1).unwrap().split("MiB").next().unwrap();
    let least: u64 = least.parse().unwrap();
    let packed = fathom(&["pack", &path("model"), &path("packed")]);
    assert!(packed.status.success(), "{}", String::from_utf8_lossy(&packed.stderr));
    let trace = path("trace");
    for (model, more) in [("model", 0), ("model", 10), ("packed", 0), ("packed", 20)] {
        let budget = format!("{}MiB", least + more);
        let (bytes, json) = score(model, "less", &["--memory", &budget, "--trace", &trace]);
        assert!(bytes == whole, "{model} {more}");
        let experts = &json["experts"];
        assert!(experts["read_bytes"].as_u64().unwrap() > 0 && experts["decode"]["tokens"] == 10, "{experts}");
    }
    let replay = fathom(&["simulate", "--trace", &trace, "--token-ms", "1", "--json"]);
    let replayed: serde_json::Value = serde_json::from_slice(&replay.stdout).unwrap();
    assert_eq!(replayed["tokens"], 10);
    let shard = path("model/model.safetensors");
    let before = fs::read(&shard).unwrap();
    let budget = format!("{least}MiB");
    let (output, model) = (path("none"), path("model"));
    let message =
        refused(&["score", &model, "--tokens", &input, "--output", &output, "--memory", &budget, "--trace", &shard]);
    assert!(message.contains("is no trace; name another file"), "{message}");
    assert!(fs::read(&shard).unwrap() == before);
    // The copy is whole already; another model's folder is not written to.
    assert!(fathom(&["pack", &model, &path("packed")]).status.success());
    let tiny = fixtures().join("tiny").display().to_string();
    let message = refused(&["pack", &tiny, &path("packed")]);
    assert!(message.contains("has a copy of another model"), "{message}");
}

#[test]
fn simulate_refuses_what_cannot_be() {
    for (flags, says) in [
        (&["--skew", "nan"][..], "not less than 0"),
        (&["--skew=-1"], "not less than 0"),
        (&["--guess", "1.5"], "from 0 to 1"),
        (&["--locality", "inf"], "from 0 to 1"),
        (&["--experts-part", "2"], "from 0 to 1"),
        (&["--drives", "0"], "1.."),
        (&["--drive-gbps", "0"], "more than 0"),
        (&["--token-ms", "0"], "more than 0"),
        (&["--tokens", "0"], "from 1 to"),
        (&["--tokens", "4", "--skip", "4"], "--skip is 4, but the trace has 4 passes"),
        (&["--tokens", "4", "--skip", "9", "--experts", "64GiB"], "--skip is 9, but the trace has 4 passes"),
        (&["--trace", "/none/such"], "cannot read /none/such"),
        // The table has its own machines: what would be ignored is refused.
        (&["--drive-gbps", "3"], "--experts <SIZE>"),
        (&["--drives", "2"], "--experts <SIZE>"),
        (&["--memory-gbps", "60"], "--experts <SIZE>"),
        (&["--token-ms", "9"], "--experts <SIZE>"),
        (&["--json"], "--experts <SIZE>"),
        (&["--experts", "64GiB", "--experts-part", "0.5"], "--token-ms"),
        (&["--experts", "64GiB", "--token-ms", "9", "--memory-gbps", "60"], "--memory-gbps"),
        (&["--trace", "/none/such", "--skew", "1"], "--skew"),
    ] {
        let message = refused(&[&["simulate"], flags].concat());
        assert!(message.contains(says), "{flags:?}: {message}");
    }
    let out = fathom(&["simulate", "--tokens", "4", "--skip", "3", "--experts", "64GiB", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(json["tokens"], 1);
}

/// Saved by one process and taken up by another, a session's logits are those of one that was never interrupted.
#[test]
fn score_goes_on_from_what_was_saved() {
    let folder = tempfile::tempdir().unwrap();
    let (tiny, store) =
        (fixtures().join("tiny").display().to_string(), folder.path().join("store").display().to_string());
    let key = folder.path().join("key").display().to_string();
    fs::write(&key, [7; 32]).unwrap();
    let ids: Vec<i32> = (0..700).map(|i| i * 37 % 512).collect();
    let output = folder.path().join("logits").display().to_string();
    let score = |prompt: &[i32], tokens: &[i32], more: &[&str]| {
        let input = tokens_file(folder.path(), prompt, tokens);
        let out = fathom(&[&["score", &tiny, "--tokens", &input, "--output", &output], more].concat());
        let message = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.success(), "{message}");
        let bytes = fs::read(&output).unwrap();
        let logits = SafeTensors::deserialize(&bytes).unwrap().tensor("logits").unwrap().data().to_vec();
        (logits, message)
    };
    let row = 512 * 4;
    let (straight, _) = score(&ids[..1], &ids[1..], &[]);
    for (p, more) in [
        (1usize, &[][..]),
        (31, &[]),
        (32, &[]),
        (127, &["--store-zstd", "3"]),
        (128, &[]),
        (129, &[]),
        (402, &[]),
        (511, &[]),
        (640, &[]),
    ] {
        let more = [&["--store", &store], more].concat();
        // Saved at the prompt's end or on the way, one token at a time.
        let cut = if p % 2 == 0 { p } else { p.div_ceil(2) };
        let at = p.to_string();
        score(&ids[..cut], &ids[cut..p], &[&more[..], &["--save-at", &at]].concat());
        let (logits, message) = score(&ids[..p], &ids[p..p + 40], &[&more[..], &["--resume"]].concat());
        assert!(message.contains(&format!("{{\"reused_tokens\":{p}}}")), "{message}");
        assert!(logits == straight[(p - 1) * row..(p + 40) * row], "position {p}");
    }
    // A longer prompt, another text, another profile, another key.
    let resume = ["--store", &store, "--resume"];
    let (logits, message) = score(&ids[..690], &[], &resume);
    assert!(message.contains("\"reused_tokens\":640") && logits == straight[689 * row..690 * row], "{message}");
    let (_, message) = score(&ids[1..100], &[], &resume);
    assert!(message.contains("\"reused_tokens\":0") && message.contains("why_not_more"), "{message}");
    let (_, message) = score(&ids[..690], &[], &[&resume[..], &["--profile", "exact"]].concat());
    assert!(message.contains("\"reused_tokens\":0") && message.contains("native"), "{message}");
    let input = tokens_file(folder.path(), &ids[..9], &[]);
    let base = ["score", &tiny, "--tokens", &input, "--output", &output];
    assert!(refused(&[&base[..], &resume, &["--store-key", &key]].concat()).contains("key"));
    assert!(refused(&[&base[..], &["--store", &store, "--save-at", "10"]].concat()).contains("1 to 9"));

    let list = |store: &str| {
        let out = fathom(&["snapshot", "ls", "--json", "--store", store]);
        let text = String::from_utf8(out.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()).collect::<Vec<_>>()
    };
    let all = list(&store);
    assert_eq!(all.len(), 9);
    // To another store and on from there.
    let longest = all.iter().find(|s| s["tokens"] == 640).unwrap()["id"].as_str().unwrap().to_owned();
    let (file, other) =
        (folder.path().join("file").display().to_string(), folder.path().join("other").display().to_string());
    assert!(fathom(&["snapshot", "export", &longest, &file, "--store", &store]).status.success());
    assert!(refused(&["snapshot", "export", &longest, &file, "--store", &store]).contains("exists"));
    let encrypted = ["--store", &other, "--store-key", &key];
    assert!(fathom(&[&["snapshot", "import", &file], &encrypted[..]].concat()).status.success());
    let (logits, message) = score(&ids[..640], &ids[640..680], &[&encrypted[..], &["--resume"]].concat());
    assert!(message.contains("\"reused_tokens\":640"), "{message}");
    assert!(logits == straight[639 * row..680 * row]);
    assert!(fathom(&["snapshot", "rm", &longest, "--store", &store]).status.success());
    assert_eq!(list(&store).len(), 8);
    assert!(refused(&["snapshot", "rm", &longest, "--store", &store]).contains("no snapshot"));
}

#[test]
fn the_demo_finds_its_needle_and_the_control_does_not() {
    let out = fathom(&["demo", "--context", "2000", "--seed", "5", "--seeds", "3", "--json"]);
    let text = String::from_utf8(out.stdout).unwrap();
    assert_eq!(text.lines().count(), 3);
    for line in text.lines() {
        let report: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(report["found"], true, "{report}");
        assert!(report["state_bytes"].as_u64() <= report["planned_state_bytes"].as_u64());
        assert!(report["scratch_bytes"].as_u64() <= report["planned_scratch_bytes"].as_u64());
    }
    let out = fathom(&["demo", "--context", "1000", "--seed", "5", "--no-needle", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(report["found"], false);
}

#[test]
fn run_answers_from_arguments_files_and_standard_input() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("text.txt");
    fs::write(&file, "The old sailor slept. The code of Maria is 40917. The wind waited.").unwrap();
    let file = file.display().to_string();
    let run = |args: &[&str], input: &[u8]| {
        let out = fathom_with(&[&["run"], args].concat(), input);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    };
    let answer = |args: &[&str], input: &[u8]| run(&[&["--temperature", "0"], args].concat(), input);
    let question = "The code of Maria is 40917. What is the code of Maria?";
    assert_eq!(answer(&[question], b""), "The code of Maria is 40917.\n");
    assert_eq!(answer(&["demo", question], b""), "The code of Maria is 40917.\n");
    assert_eq!(answer(&[], question.as_bytes()), "The code of Maria is 40917.\n");
    assert!(!answer(&["--file", &file, "What is the code of Maria?", "--max-tokens", "20"], b"").is_empty());
    let json: serde_json::Value = serde_json::from_str(&answer(&["--json", question], b"")).unwrap();
    assert_eq!((&json["answer"], &json["finish_reason"]), (&"The code of Maria is 40917.".into(), &"stop".into()));
    assert_eq!(answer(&["--stop", "is", question], b""), "The code of Maria \n");
    let seeded = |seed: &str| run(&["--temperature", "2", "--seed", seed, "--max-tokens", "20", "Hello"], b"");
    assert_eq!(seeded("1"), seeded("1"));
    assert_ne!(seeded("1"), seeded("2"));
}

#[test]
fn bad_prompts_and_flags() {
    let folder = tempfile::tempdir().unwrap();
    let binary = folder.path().join("binary");
    fs::write(&binary, b"ab\xff").unwrap();
    let binary = binary.display().to_string();
    for (args, expected) in [
        (&["run", "--file", &binary, "x"][..], "binary: not UTF-8 from byte 2"),
        (&["run", "--file", "/nowhere", "x"], "/nowhere"),
        (&["run", "--temperature", "NaN", "x"], "temperature is NaN"),
        (&["run", "--temperature=-1", "x"], "temperature is -1"),
        (&["run", "--temperature", "2.5", "x"], "temperature is 2.5"),
        (&["chat", "--temperature", "3"], "temperature is 3"),
        (&["run", "--top-p", "1.5", "x"], "top_p is 1.5"),
        (&["run", "--top-p", "0", "x"], "top_p is 0"),
        (&["run", "--min-p", "inf", "x"], "min_p is inf"),
        (&["run", "--context", "4", "a long prompt of many words"], "tokens, but the context holds 4"),
        (&["run", "--context", "99999999", "x"], "--context is 99999999"),
        (&["run", "/no/such/model", "x"], "/no/such/model: no such folder"),
        (&["run", "/no/such/model"], "/no/such/model: no such folder"),
        (&["run", "DeepSeek-V4-Flash", "What is a fathom?"], "DeepSeek-V4-Flash: no such folder"),
        (&["run"], "there is no prompt"),
        (&["run", "--isa", "mmx", "x"], "instruction set 'mmx'"),
        (&["run", "--profile", "fast", "x"], "'fast' is no profile"),
        (&["demo", "--context", "5"], "5"),
        (&["serve", "--host", "nowhere"], "nowhere"),
        (&["serve", "--context", "0"], "--context"),
        (&["serve", "--served-model-name", ""], "--served-model-name"),
    ] {
        let message = refused(args);
        assert!(message.contains(expected), "{args:?}: {message}");
    }
    let out = fathom_with(&["run"], b"\xff\xfe");
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains("standard input: not UTF-8 from byte 0"));
}

/// Nobody hears what it says besides; the answer is what counts.
#[cfg(target_os = "linux")]
#[test]
fn standard_error_may_be_full() {
    let full = || fs::File::options().write(true).open("/dev/full").unwrap();
    let run = |args: &[&str]| Command::new(env!("CARGO_BIN_EXE_fathom")).args(args).stderr(full()).output().unwrap();
    let out = run(&["run", "hi", "--max-tokens", "2"]);
    assert!(out.status.success() && !out.stdout.is_empty());
    assert_eq!(run(&["run", "--context", "1", "hi"]).status.code(), Some(2));
}

#[test]
fn bad_tokens_to_score() {
    let folder = tempfile::tempdir().unwrap();
    let tiny = fixtures().join("tiny").display().to_string();
    let output = folder.path().join("out").display().to_string();
    let score = |input: &str| refused(&["score", &tiny, "--tokens", input, "--output", &output]);
    assert!(score("/nowhere.safetensors").contains("/nowhere.safetensors"));
    for (prompt, tokens, expected) in
        [(&[1, 2, 512][..], &[][..], "prompt[2] is 512"), (&[1], &[3, 700], "tokens[1] is 700")]
    {
        let message = score(&tokens_file(folder.path(), prompt, tokens));
        assert!(message.contains("tokens.safetensors: ") && message.contains(expected), "{message}");
    }
    assert!(score(&tokens_file(folder.path(), &[1, -2], &[])).contains("prompt[1] is -2"));
    assert!(score(&tokens_file(folder.path(), &[], &[1])).contains("prompt is empty"));
    let broken = folder.path().join("broken.safetensors").display().to_string();
    fs::write(&broken, b"\xff\xff\xff\xff\xff\xff\xff\xff").unwrap();
    assert!(score(&broken).contains("broken.safetensors"));
    fs::write(&broken, serialize::<String, TensorView<'_>, _>([], None).unwrap()).unwrap();
    assert!(score(&broken).contains("tensor prompt is missing"));
    assert!(!Path::new(&output).exists());
}

#[test]
fn bad_models() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().display().to_string();
    let run = || refused(&["run", &model, "x"]);
    assert!(run().contains("config.json"));
    Synth::tiny(1)
        .set("num_hash_layers", 1)
        .set("num_hidden_layers", 1)
        .set("compress_ratios", vec![0])
        .write(folder.path())
        .unwrap();
    assert!(run().contains("tokenizer.json: not found"), "{}", run());
    // The embedded model's tokenizer has another vocabulary.
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo-model");
    fs::copy(assets.join("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    assert!(run().contains("another vocabulary"), "{}", run());
    fs::write(folder.path().join("tokenizer.json"), "{}").unwrap();
    assert!(run().contains("tokenizer.json"), "{}", run());
    let config = folder.path().join("config.json");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("deepseek_v4", "llama")).unwrap();
    assert!(run().contains("model_type is \"llama\""), "{}", run());
    fs::write(&config, text.replace("\"hidden_size\":128", "\"hidden_size\":0")).unwrap();
    assert!(run().contains("hidden_size is 0"), "{}", run());
    fs::write(&config, &text).unwrap();
    let shard = folder.path().join("model.safetensors");
    let bytes = fs::read(&shard).unwrap();
    fs::write(&shard, &bytes[..bytes.len() / 2]).unwrap();
    assert!(run().contains("model.safetensors: is truncated"), "{}", run());
}

#[cfg(target_os = "linux")]
#[test]
fn output_that_cannot_be_written_is_an_error() {
    let bench = &["bench", "--prefill", "8", "--decode", "1", "--runs", "1"][..];
    let demo = &["demo", "--context", "300", "--seed", "5"][..];
    for args in [
        demo.to_vec(),
        [demo, &["--json"]].concat(),
        bench.to_vec(),
        [bench, &["--json"]].concat(),
        vec!["run", "--max-tokens", "1", "Hello"],
    ] {
        let run =
            |stdout: Stdio| Command::new(env!("CARGO_BIN_EXE_fathom")).args(&args).stdout(stdout).output().unwrap();
        let out = run(fs::OpenOptions::new().write(true).open("/dev/full").unwrap().into());
        let message = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{args:?}: {message}");
        assert!(message.contains("fathom: standard output: No space left"), "{args:?}: {message}");
        // A reader that has gone, as `head` does, is nothing wrong.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let out = run(writer.into());
        assert_eq!(out.status.code(), Some(0), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    }
}

/// A session by name goes on in another process, from the state it had, and goes away whole.
#[test]
fn a_named_session_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store").to_str().unwrap().to_owned();
    let ask = |question: &str, more: &[&str]| {
        let base = ["run", "demo", question, "--json", "--temperature", "0", "--max-tokens", "20", "--store", &store];
        let out = fathom(&[&base[..], more].concat());
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice::<serde_json::Value>(&out.stdout).unwrap()
    };
    let long = format!("{} The code of Anna is 4711. What is the code of Anna?", "Nothing happens here. ".repeat(80));
    let first = ask(&long, &["--session", "anna"]);
    assert_eq!(first["reused_tokens"], 0);
    let second = ask("And once more?", &["--session", "anna"]);
    let before = first["prompt_tokens"].as_u64().unwrap() + first["generated_tokens"].as_u64().unwrap();
    assert_eq!(second["reused_tokens"], before, "{second}");
    // Nothing of it is in another session's way, but its state is there.
    let other = ask(&long, &["--session", "other"]);
    assert_eq!((&other["answer"], &other["reused_tokens"]), (&first["answer"], &first["prompt_tokens"]));
    assert!(refused(&["run", "demo", "x", "--session", "a/b", "--store", &store]).contains("no name for a session"));
    let changed = ["run", "demo", "x", "--session", "anna", "--store", &store, "--system", "Be brief."];
    assert!(refused(&changed).contains("--system"));

    let list = || {
        let out = fathom(&["snapshot", "ls", "--json", "--store", &store]);
        let text = String::from_utf8(out.stdout).unwrap();
        let names = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["name"].clone());
        names.filter(|name| name == "anna").count()
    };
    assert!(list() >= 2);
    let usage = fathom(&["snapshot", "usage", "--json", "--store", &store]);
    let usage: serde_json::Value = serde_json::from_slice(&usage.stdout).unwrap();
    assert!(usage["snapshots"].as_u64() >= Some(3) && usage["written_today"].as_u64() > Some(0), "{usage}");
    assert!(fathom(&["snapshot", "verify", "--store", &store]).status.success());
    assert!(fathom(&["snapshot", "rm", "--session", "anna", "--store", &store]).status.success());
    assert_eq!(list(), 0);
    assert!(refused(&["snapshot", "rm", "--session", "anna", "--store", &store]).contains("no session"));
    let nowhere = folder.path().join("nowhere");
    assert!(
        refused(&["snapshot", "ls", "--store", nowhere.to_str().unwrap()]).contains("no store") && !nowhere.exists()
    );
    assert!(refused(&["snapshot", "ls", "--namespace", "typo", "--store", &store]).contains("no namespace"));
}

/// What a chat took back is not what a later one goes on from, however fast it was typed.
#[test]
fn what_a_chat_takes_back_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let store = folder.path().join("store");
    let chat = |lines: &str| {
        let mut chat = Command::new(env!("CARGO_BIN_EXE_fathom"));
        chat.args(["chat", "--session", "k", "--max-tokens", "3", "--temperature", "0", "--store"]).arg(&store);
        let mut chat =
            chat.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("the program");
        chat.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        let output = chat.wait_with_output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    chat("one\ntwo\nthree\nfour\nfive\n");
    assert!(chat("/rewind 3\n").contains("after 5 questions"));
    assert!(chat("six\n/rewind\n/rewind\n").contains("after 2 questions"));
    let said = chat("seven\n/clear\n");
    assert!(said.contains("after 1 question)"), "{said}");
    assert!(!chat("/exit\n").contains("after"));
}
