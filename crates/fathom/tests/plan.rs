//! `fathom plan` as a stranger runs it, and what it says of memory and snapshots against what they are.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use fathom_weights::synth::Synth;
use serde_json::Value;

const MACHINE: &str = "epyc-9654-1152g";

fn fathom(args: &[&str], home: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fathom")).args(args).env("XDG_CACHE_HOME", home).output().unwrap()
}

fn plan(args: &[&str]) -> Value {
    let home = tempfile::tempdir().unwrap();
    let out = fathom(&[&["plan"], args, &["--json"]].concat(), home.path());
    serde_json::from_slice(&out.stdout)
        .unwrap_or_else(|e| panic!("{args:?}: {e}: {}", String::from_utf8_lossy(&out.stderr)))
}

/// Runs something that must be refused; returns the message.
fn refused(args: &[&str]) -> String {
    let home = tempfile::tempdir().unwrap();
    let out = fathom(args, home.path());
    let message = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(2), "{args:?}: {message}");
    assert!(!message.contains("panicked") && message.trim_end().lines().count() == 1, "{args:?}: {message}");
    message
}

fn number(value: &Value, at: &str) -> f64 {
    value.pointer(at).and_then(Value::as_f64).unwrap_or_else(|| panic!("{at}: {value}"))
}

/// V4.md's table: what the cache costs at 1,048,576 positions. Pages are whole, so window and frontier are what is over.
#[test]
fn released_models_are_the_tables() {
    const GIB: f64 = (1u64 << 30) as f64;
    for (model, rows, index, fixed) in [("v4-flash", 3.08, 0.35, 15e6), ("v4-pro", 4.41, 0.50, 24e6)] {
        let report = plan(&[model, "--machine", MACHINE, "--context", "1048576"]);
        let point = &report["points"][0];
        // One session, and the states of a page that others go on from.
        let state = number(point, "/memory/state") / GIB;
        let spare = 13.0 * (fixed + (rows + index) * GIB / 1024.0) / GIB;
        assert!(state > rows + index && state < rows + index + 1.2 * spare, "{model}: {state}");
        let tail = fixed + 4.0 * 129_280.0;
        let snapshot = number(point, "/snapshot/bytes");
        let want = (rows + index) * GIB + tail + 3.0 * 1_048_576.0;
        // The table has two digits of the index.
        assert!((snapshot / want - 1.0).abs() < 0.01, "{model}: {snapshot} and {want}");
        // Frontiers are kept folded, in less than the table has for them.
        let own = number(point, "/snapshot/own_bytes");
        assert!((0.2..1.0).contains(&(own / tail)), "{model}: {own} and {tail}");
    }
    // V4.md: 284 and 1,600 billion parameters, routed experts of 137 GiB and about 0.8 TB.
    for (model, least, most) in [("v4-flash", 155e9, 175e9), ("v4-pro", 0.84e12, 0.95e12)] {
        let bytes = number(&plan(&[model, "--machine", MACHINE, "--context", "4096"]), "/weight_bytes");
        assert!((least..most).contains(&bytes), "{model}: {bytes}");
    }
}

#[test]
fn speed_is_what_the_machine_allows() {
    let at = |model: &str, more: &[&str]| {
        plan(&[&[model, "--machine", MACHINE, "--context", "4096,1048576"], more].concat())
    };
    for model in ["v4-flash", "v4-pro", "demo"] {
        let report = at(model, &[]);
        let points = report["points"].as_array().unwrap();
        for point in points {
            for what in ["decode", "prefill"] {
                let (speed, roof) = (
                    number(point, &format!("/{what}/tokens_per_second")),
                    number(point, &format!("/{what}/roofline_tokens_per_second")),
                );
                assert!(speed > 0.0 && speed < roof, "{model} {what}: {speed} of {roof}");
                let shares: f64 = point[what]["shares"].as_object().unwrap().values().filter_map(Value::as_f64).sum();
                assert!((shares - 1.0).abs() < 1e-9, "{shares}");
            }
        }
        // Depth costs.
        let speed = |i: usize| number(&points[i], "/decode/tokens_per_second");
        assert!(speed(1) < speed(0), "{report}");
        assert!(number(&points[1], "/first_token_seconds") > 256.0 * number(&points[0], "/first_token_seconds"));
    }
    // Less memory: experts come from the drive, and some are there.
    let (whole, less) = (at("v4-flash", &[]), at("v4-flash", &["--memory", "64GiB"]));
    let hits = number(&less, "/points/0/hit_rate");
    assert!((0.3..0.95).contains(&hits) && number(&less, "/points/0/read_bytes_per_token") > 1e8, "{less}");
    assert_eq!(less["points"][0]["decode"]["bottleneck"], "drive");
    assert!(whole["points"][0]["hit_rate"].is_null());
    let speed = |report: &Value| number(report, "/points/0/decode/tokens_per_second");
    assert!(speed(&less) < speed(&whole));
    let first = less["faster"][0]["what"].as_str().unwrap();
    assert!(first.contains("drive") || first.contains("memory"), "{first}");
    // Ten times the sessions, ten times the wear.
    let wear = |sessions: &str, tokens: &str| {
        number(&at("v4-flash", &["--sessions", sessions, "--tokens", tokens]), "/wear/bytes_per_month")
    };
    assert!((wear("100", "1000000") / wear("10", "100000") - 10.0).abs() < 1e-9);
}

#[test]
fn a_plan_is_told_as_a_table_and_a_chart() {
    let home = tempfile::tempdir().unwrap();
    let svg = home.path().join("plan.svg");
    let svg_at = svg.to_str().unwrap();
    let out = fathom(&["plan", "v4-flash", "--machine", MACHINE, "--memory", "64GiB", "--svg", svg_at], home.path());
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    for words in ["1,048,576", "held up by", "snapshot", "wear", "change first", "drive"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let drawn = fs::read_to_string(&svg).unwrap();
    for words in ["<svg", "GiB", "tokens/s", "context, tokens", "experts", "1M"] {
        assert!(drawn.contains(words), "{words}");
    }
    let list = fathom(&["plan", "--machines"], home.path());
    assert!(String::from_utf8_lossy(&list.stdout).contains(MACHINE));
}

#[test]
fn this_machine_is_measured_and_can_be_described() {
    let home = tempfile::tempdir().unwrap();
    let drive = home.path().to_str().unwrap();
    let out = fathom(&["plan", "--describe", "--drive", drive], home.path());
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let file = home.path().join("this.toml");
    fs::write(&file, &text).unwrap();
    let report = plan(&["demo", "--machine", file.to_str().unwrap(), "--context", "2048"]);
    assert!(number(&report, "/points/0/decode/tokens_per_second") > 1.0);
    assert_eq!(report["machine"]["source"], "measured");
}

#[test]
fn bad_input_is_one_message() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let machine = |text: &str| refused(&["plan", "v4-flash", "--machine", &at("machine.toml", text)]);
    let fine =
        "name = \"m\"\nisa = \"avx2\"\nthreads = 8\nmemory-gib = 64\nread-gbps = 40\nf32-gflops = 900\nint8-tops = 2\n";
    assert!(machine("hello").contains("machine.toml"));
    assert!(machine(&fine.replace("read-gbps = 40\n", "")).contains("missing field `read-gbps`"));
    for (value, field) in [("-40", "read-gbps"), ("nan", "read-gbps"), ("0", "read-gbps"), ("1e99", "read-gbps")] {
        assert!(machine(&fine.replace("= 40", &format!("= {value}"))).contains(field), "{value}");
    }
    assert!(machine(&format!("{fine}[drive]\nread-gbps = inf\n")).contains("drive.read-gbps"));
    assert!(machine(&format!("{fine}speed = 3\n")).contains("speed"));
    assert!(refused(&["plan", "v4-flash", "--machine", &at("m.json", "{\"name\": 3}")]).contains("m.json"));
    assert!(refused(&["plan", "v4-flash", "--machine", "/none"]).contains("/none"));
    // Streamed experts from no drive: nothing is said of speed, and nothing goes wrong.
    let report = plan(&["v4-flash", "--machine", &at("machine.toml", fine), "--context", "4096"]);
    assert!(report["points"][0]["decode"].is_null() && report["points"][0]["memory"]["experts"].is_u64(), "{report}");

    let config = |text: &str| refused(&["plan", &at("config.json", text), "--machine", MACHINE]);
    assert!(config("{\"model_type\": \"llama\"}").contains("config.json: model_type is \"llama\""));
    assert!(config("[]").contains("no JSON object") && config("").contains("no JSON object"));
    let tiny =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/tiny/config.json")).unwrap();
    let mut fields: Value = serde_json::from_str(&tiny).unwrap();
    fields["hidden_size"] = 1_048_576.into();
    fields["num_hidden_layers"] = 4096.into();
    fields["compress_ratios"] = vec![128; 4097].into();
    config(&fields.to_string());
    for name in ["v5", "/none/model", ""] {
        assert!(refused(&["plan", name, "--machine", MACHINE]).contains("v4-pro"), "{name}");
    }
    assert!(refused(&["plan", folder.path().join("x").to_str().unwrap()]).contains("config.json"));
    let svg = refused(&["plan", "v4-flash", "--machine", MACHINE, "--svg", "/none/plan.svg"]);
    assert!(svg.contains("cannot write /none/plan.svg"), "{svg}");
    let small = refused(&["plan", "v4-pro", "--machine", MACHINE, "--memory", "1GiB", "--json"]);
    assert!(small.contains("--memory"), "{small}");
    assert!(refused(&["plan", "demo", "--machine", MACHINE, "--context", "2000000"]).contains("1048576"));
    for flag in ["--sessions", "--tokens", "--turns"] {
        let out = fathom(&["plan", "demo", "--machine", MACHINE, flag, "-1"], folder.path());
        assert_eq!(out.status.code(), Some(2));
        let out = fathom(&["plan", "demo", "--machine", MACHINE, flag, "nan"], folder.path());
        assert_eq!(out.status.code(), Some(2));
    }
}

/// What `snapshot ls` and the folder say, against the plan.
#[test]
fn snapshots_take_what_was_planned() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    Synth::tiny(3).set("vocab_size", 2240).write(&model).unwrap();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo-model/tokenizer.json");
    fs::copy(demo, model.join("tokenizer.json")).unwrap();
    let bytes = |folder: &Path| -> u64 { walk(folder).iter().map(|path| fs::metadata(path).unwrap().len()).sum() };
    for name in [None, Some(model.to_str().unwrap())] {
        for tokens in [700, 2500, 6000] {
            let ids: Vec<i32> = (0..tokens + 1).map(|i| i * 37 % 1500).collect();
            let input = tokens_file(folder.path(), &ids);
            let store = folder.path().join("store");
            let (store, output) = (store.display().to_string(), folder.path().join("out").display().to_string());
            let model = name.unwrap_or("demo");
            let n = tokens.to_string();
            let args = ["score", model, "--tokens", &input, "--output", &output, "--store", &store, "--save-at", &n];
            let out = fathom(&args, folder.path());
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
            let report = plan(&[model, "--machine", MACHINE, "--context", &n]);
            let (found, planned) = (bytes(Path::new(&store)) as f64, number(&report, "/points/0/snapshot/bytes"));
            assert!((planned / found - 1.0).abs() < 0.02, "{model} {tokens}: {planned} planned, {found} found");
            fs::remove_dir_all(&store).unwrap();
        }
    }
}

/// What runs hold at most against what was expected of them.
#[test]
fn memory_is_what_was_expected() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    let synth = Synth::tiny(3).set("n_routed_experts", 48).set("vocab_size", 2240);
    synth.set("hidden_size", 512).set("moe_intermediate_size", 512).write(&model).unwrap();
    let model = model.to_str().unwrap();
    let machine = folder.path().join("machine.toml");
    let two = "name = \"two\"\nisa = \"avx2\"\nthreads = 2\nmemory-gib = 64\nread-gbps = 40\nf32-gflops = 200\nint8-tops = 1\n";
    fs::write(&machine, two).unwrap();
    let expected = |model: &str, n: &str, budget: &str| {
        let report = plan(&[model, "--machine", machine.to_str().unwrap(), "--context", n, "--memory", budget]);
        let memory = &report["points"][0]["memory"];
        (number(memory, "/expected"), number(memory, "/total"), memory["experts"].is_u64())
    };
    let peak = |args: &[&str]| {
        let mut program = Command::new(env!("CARGO_BIN_EXE_fathom"));
        program.args(args).args(["--threads", "2", "--json"]).env("RAYON_NUM_THREADS", "2");
        let out = program.env("XDG_CACHE_HOME", folder.path()).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let report: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?}: {e}: {out:?}"));
        number(&report, "/peak_rss_bytes")
    };
    let mut all = Vec::new();
    for (budget, streams) in [("4GiB", false), ("200MiB", true)] {
        for tokens in [500, 2000, 6000] {
            let ids: Vec<i32> = (0..tokens).map(|i| i * 37 % 1500).collect();
            let input = tokens_file(folder.path(), &ids);
            let output = folder.path().join("out").display().to_string();
            let found = peak(&["score", model, "--tokens", &input, "--output", &output, "--memory", budget]);
            let (expected, most, streamed) = expected(model, &tokens.to_string(), budget);
            assert_eq!(streamed, streams, "{budget}");
            all.push((format!("{budget} {tokens}"), expected, most, found));
        }
    }
    for context in ["2048", "4096", "8192"] {
        let found = peak(&["demo", "--context", context, "--seed", "3"]);
        let (expected, most, _) = expected("demo", context, "4GiB");
        all.push((format!("demo {context}"), expected, most, found));
    }
    for (what, expected, most, found) in &all {
        println!("{what}: {:.1} MB expected, {:.1} at most, {:.1} found", expected / 1e6, most / 1e6, found / 1e6);
    }
    for (what, expected, most, found) in all {
        assert!((expected / found - 1.0).abs() < 0.05 && found <= most, "{what}: {expected} expected, {found} found");
    }
}

/// What a server says of memory when it ends is of what its sessions held, and not of all that they might have.
#[cfg(target_os = "linux")]
#[test]
fn a_server_tells_memory_of_what_it_held() {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::process::{Child, Stdio};

    /// A child that does not outlive its test.
    struct Ended(Child);

    impl Drop for Ended {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    let home = tempfile::tempdir().unwrap();
    let ended = |questions: usize| {
        let mut program = Command::new(env!("CARGO_BIN_EXE_fathom"));
        program.args(["serve", "--port", "0", "--threads", "2"]).env("XDG_CACHE_HOME", home.path());
        program.env("RAYON_NUM_THREADS", "2").stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = Ended(program.spawn().unwrap());
        let child = &mut child.0;
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        while !line.contains(" at http://") {
            line.clear();
            assert!(said.read_line(&mut line).unwrap() > 0, "it does not listen");
        }
        let address = line.split("http://").nth(1).unwrap().split('/').next().unwrap();
        for i in 0..questions {
            let text = format!("{i}. {}", "The old sailor slept near the mill. ".repeat(500));
            let body = serde_json::json!({"prompt": text, "max_tokens": 2, "model": "demo"}).to_string();
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            let head = "connection: close\r\ncontent-type: application/json";
            let head = format!("POST /v1/completions HTTP/1.1\r\nhost: {address}\r\n{head}");
            write!(stream, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            assert!(answer.contains("200 OK"), "{answer}");
        }
        rustix::process::kill_process(rustix::process::Pid::from_child(child), rustix::process::Signal::INT).unwrap();
        let mut rest = String::new();
        said.read_to_string(&mut rest).unwrap();
        assert!(child.wait().unwrap().success(), "{rest}");
        let memory = rest.split("memory ").nth(1).unwrap_or_else(|| panic!("{rest}"));
        let number = |text: &str| text.split(" MiB").next().unwrap().trim().parse::<f64>().unwrap();
        (number(memory), number(memory.split("predicted, ").nth(1).unwrap()))
    };
    for questions in [0, 3] {
        let (predicted, measured) = ended(questions);
        println!("{questions} questions: {predicted} MiB predicted, {measured} measured");
        assert!((predicted / measured - 1.0).abs() < 0.1, "{questions}: {predicted} predicted, {measured} measured");
    }
}

/// Objects and manifests; what else a store has is there once for all.
fn walk(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(walk(&path));
        } else if path.components().any(|part| ["objects", "manifests"].iter().any(|name| part.as_os_str() == *name)) {
            all.push(path);
        }
    }
    all
}

fn tokens_file(folder: &Path, ids: &[i32]) -> String {
    use safetensors::tensor::{Dtype, TensorView, serialize};
    let bytes = |ids: &[i32]| ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>();
    let (p, t) = (bytes(&ids[..ids.len() - 1]), bytes(&ids[ids.len() - 1..]));
    let view = |n: usize, bytes| TensorView::new(Dtype::I32, vec![n], bytes).unwrap();
    let file = serialize([("prompt", view(ids.len() - 1, &p)), ("tokens", view(1, &t))], None).unwrap();
    let path = folder.join("tokens.safetensors");
    fs::write(&path, file).unwrap();
    path.display().to_string()
}
