//! `fathom bench` and `fathom needle` as a stranger runs them, against servers that are good and servers that are not.

mod speaker;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use speaker::{Manner, Speaker};

fn fathom(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fathom")).args(args).stdin(Stdio::null()).output().unwrap()
}

/// Runs something that must work; returns the lines of JSON that it prints.
fn lines(args: &[&str]) -> Vec<Value> {
    let out = fathom(args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Runs something that must be refused; returns the message.
fn refused(args: &[&str]) -> String {
    let out = fathom(args);
    let message = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(2), "{args:?}: {message}");
    assert!(!message.contains("panicked"), "{message}");
    message
}

fn report(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("report.json")).unwrap()).unwrap()
}

fn path(folder: &tempfile::TempDir, name: &str) -> String {
    folder.path().join(name).display().to_string()
}

#[test]
fn servers_get_the_same_work_and_a_report_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b] = [Speaker::start(Manner::Good), Speaker::start(Manner::NoChat)];
    let (first, second) = (format!("one={}", a.address), b.address.clone() + "/v1/");
    let out = path(&folder, "report");
    let base = [
        "bench",
        "demo",
        "--workload",
        "agent",
        "--context",
        "600",
        "--scale",
        "0.4",
        "--runs",
        "2",
        "--max-tokens",
        "3",
    ];
    let run = || lines(&[&base[..], &["--url", &first, "--url", &second, "--report", &out, "--json"]].concat());
    let all = run();
    assert_eq!(all.len(), 3);
    let name = second.trim_start_matches("http://").trim_end_matches("/v1/");
    for (line, name, api) in [(&all[0], "fathom", "chat"), (&all[1], "one", "chat"), (&all[2], name, "completions")] {
        assert_eq!((&line["server"], &line["api"]), (&name.into(), &api.into()));
        let s = &line["summary"];
        assert_eq!((&s["requests"], &s["errors"]), (&10.into(), &0.into()), "{s}");
        assert!(s["first"]["p50"].as_f64() > Some(0.0) && s["first"]["p50"].as_f64() <= s["first"]["max"].as_f64());
        assert!(cfg!(not(target_os = "linux")) || s["peak_rss"].as_u64() > Some(1 << 20), "{s}");
    }
    assert_eq!(all[1]["software"], "speaker 7");
    let s = &all[1]["summary"];
    assert_eq!((&s["prompt_tokens"], &s["cached_tokens"]), (&1000.into(), &600.into()));
    // 10 answers of 3 tokens have 2 gaps each.
    assert_eq!(s["gap_ms"]["count"], 20);
    // fathom goes on from what it knows of the history.
    assert!(all[0]["summary"]["cached_tokens"].as_u64() > Some(500), "{}", all[0]);

    // The same to each and in every run, other texts in each round.
    let before = a.streamed();
    assert_eq!(before.len(), 10);
    assert_ne!(before[0]["messages"], before[5]["messages"]);
    run();
    assert_eq!(a.streamed()[10..], before[..]);
    let prompt = b.streamed()[0]["prompt"].as_str().unwrap().to_owned();
    assert!(prompt.contains(before[0]["messages"][0]["content"].as_str().unwrap()), "{prompt}");

    let report = report(Path::new(&out));
    assert_eq!((&report["partial"], &report["servers"]["workload"]), (&Value::Null, &"agent".into()));
    assert_eq!(report["servers"]["tested"].as_array().unwrap().len(), 3);
    let page = fs::read_to_string(format!("{out}/index.html")).unwrap();
    assert!(page.contains("<svg") && page.contains(name) && !page.contains("Not whole"));
    for outside in ["<script", "<link", "<img", "@import", "url("] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert_eq!(fs::read_to_string(format!("{out}/requests.csv")).unwrap().lines().count(), 31);
    assert!(fs::read_dir(&out).unwrap().flatten().all(|file| !file.file_name().to_string_lossy().contains("partial")));
}

#[test]
fn traces_are_written_and_replayed() {
    let folder = tempfile::tempdir().unwrap();
    let trace = path(&folder, "trace.jsonl");
    let out = fathom(&[
        "bench",
        "--workload",
        "mixed",
        "--context",
        "256",
        "--scale",
        "0.2",
        "--rate",
        "50",
        "--export",
        &trace,
    ]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = fs::read_to_string(&trace).unwrap();
    assert_eq!(text.lines().count(), 5);
    let speaker = Speaker::start(Manner::Good);
    let all = lines(&["bench", "--url", &speaker.address, "--trace", &trace, "--runs", "1", "--json"]);
    assert_eq!((&all[0]["workload"], &all[0]["summary"]["requests"]), (&"trace".into(), &5.into()));
    let asked = speaker.streamed();
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert!(
            asked.iter().any(|body| body["messages"] == line["messages"] && body["max_tokens"] == line["max_tokens"])
        );
    }
    fs::write(&trace, "{\"at_ms\": 5}\n").unwrap();
    let message = refused(&["bench", "--url", &speaker.address, "--trace", &trace]);
    assert!(message.contains("trace.jsonl: line 1: missing field"), "{message}");
    assert!(refused(&["bench", "--trace", "/none/such"]).contains("/none/such"));
    let much = path(&folder, "much");
    let message = refused(&["bench", "--workload", "repository", "--scale", "10000", "--export", &much]);
    assert!(message.contains("60,000 requests of up to 4,096 tokens") && message.lines().count() == 1, "{message}");
    assert!(!Path::new(&much).exists());
}

#[test]
fn what_is_no_server_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let closed = "http://127.0.0.1:1";
    let good = Speaker::start(Manner::Good);
    for command in ["bench", "needle"] {
        let refused = |args: &[&str]| refused(&[&[command, "--timeout", "1"], args].concat());
        assert!(refused(&["--url", "nonsense"]).contains("\"nonsense\" is no http or https address"));
        let message = refused(&["--url", closed]);
        assert!(message.contains(closed) && message.contains("refused"), "{message}");
        let message = refused(&["--url", &Speaker::start(Manner::Html).address]);
        assert!(message.contains("no OpenAI-compatible server") && message.contains("<html>"), "{message}");
        let started = Instant::now();
        let message = refused(&["--url", &good.address, "--url", &Speaker::start(Manner::Mute).address]);
        assert!(message.contains("says nothing"), "{message}");
        assert!(started.elapsed() < Duration::from_secs(20));
        assert!(refused(&["--url", &good.address, "--url", &good.address]).contains("another name"));
        let locked = Speaker::start(Manner::Locked);
        assert!(refused(&["--url", &locked.address]).contains("--key FILE"));
        let file = path(&folder, "file");
        fs::write(&file, "not a key\n").unwrap();
        assert!(refused(&["--url", &locked.address, "--key", &file]).contains("no key"));
        assert!(refused(&["--url", &good.address, "--report", &file]).contains("cannot write a report"));
        assert_eq!(fs::read_to_string(&file).unwrap(), "not a key\n");
    }
    let key = path(&folder, "key");
    fs::write(&key, "secret\n").unwrap();
    let locked = Speaker::start(Manner::Locked);
    let all = lines(&["bench", "--url", &locked.address, "--key", &key, "--runs", "1", "--scale", "0.1", "--json"]);
    assert_eq!(all[0]["summary"]["errors"], 0);
    assert!(good.streamed().is_empty(), "nothing is asked before all are there");
    assert!(refused(&["bench", "--context", "400"]).contains("no room for probes"));
}

#[test]
fn bad_answers_end_in_a_report_that_says_so() {
    for (manner, expected) in [
        (Manner::Hangs, "says nothing for 1 s"),
        (Manner::Dribbles, "says nothing for 1 s"),
        (Manner::Garbage, "no event: \"what is this?\""),
        (Manner::Empty, "without an answer"),
        (Manner::BreaksOff, "in the middle of an answer"),
        (Manner::Endless, "far more than was asked for"),
        (Manner::Fails, "answers 500 Internal Server Error"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let [good, bad] = [Speaker::start(Manner::Good), Speaker::start(manner)].map(|s| s.address);
        let (good, bad) = (format!("good={good}"), format!("bad={bad}"));
        let out = path(&folder, "report");
        let base = ["bench", "--url", &good, "--url", &bad, "--timeout", "1", "--runs", "2", "--scale", "0.5"];
        let message = refused(&[&base[..], &["--report", &out]].concat());
        assert!(message.contains("bad: was given up: ") && message.contains(expected), "{message}");
        assert!(message.contains("marked as not whole"), "{message}");
        let report = report(Path::new(&out));
        assert!(report["partial"].as_str().unwrap().contains("bad: was given up"), "{}", report["partial"]);
        let tested = &report["servers"]["tested"];
        assert_eq!((&tested[0]["summary"]["requests"], &tested[0]["summary"]["errors"]), (&12.into(), &0.into()));
        let errors = tested[1]["summary"]["errors"].as_u64().unwrap();
        assert_eq!(errors, if expected.contains("nothing") { 1 } else { 3 }, "{manner:?}");
        assert!(fs::read_to_string(format!("{out}/index.html")).unwrap().contains("Not whole"));
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_what_was_measured() {
    let folder = tempfile::tempdir().unwrap();
    let slow = Speaker::start(Manner::Slow);
    let out = path(&folder, "report");
    let child = Command::new(env!("CARGO_BIN_EXE_fathom"))
        .args(["bench", "--url", &slow.address, "--runs", "50", "--max-tokens", "8", "--report", &out])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let started = Instant::now();
    while slow.streamed().len() < 3 && started.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let ended = child.wait_with_output().unwrap();
    let message = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(2), "{message}");
    assert!(message.contains("interrupted; what was measured is in"), "{message}");
    let report = report(Path::new(&out));
    assert_eq!(report["partial"], "it was interrupted");
    let requests = report["servers"]["tested"][0]["summary"]["requests"].as_u64().unwrap();
    assert!((2..50).contains(&requests), "{requests}");
}

/// Two runs to the same length: the second takes every depth from the store, and says the same.
#[test]
fn frontiers_are_read_once_and_then_restored() {
    let folder = tempfile::tempdir().unwrap();
    let (store, out) = (path(&folder, "store"), path(&folder, "report"));
    let base = ["bench", "--context", "5000", "--prefill", "64", "--decode", "4", "--runs", "1", "--store", &store];
    let run = || lines(&[&base[..], &["--report", &out, "--json"]].concat());
    let (first, second) = (run(), run());
    for (run, restored) in [(&first, false), (&second, true)] {
        assert_eq!(run.len(), 5);
        for (line, tokens) in run.iter().zip([2048, 4096]) {
            assert_eq!((&line["test"], &line["tokens"]), (&"frontier".into(), &tokens.into()));
        }
        for line in &run[..3] {
            assert_eq!((&line["restored"], line["read_per_second"].is_null()), (&restored.into(), restored), "{line}");
            assert!(line["decode_per_second"]["median"].as_f64() > Some(0.0));
        }
        let (needle, memory) = (&run[3], &run[4]);
        assert_eq!((&needle["test"], &needle["right"]), (&"needle".into(), &true.into()), "{needle}");
        assert_eq!(memory["test"], "memory");
        let planned = memory["planned"]["total"].as_u64();
        assert!(memory["peak_rss_bytes"].as_u64() < planned, "{memory}");
        assert_eq!(memory["stored_bytes"].is_null(), restored);
    }
    assert!(first[..3].is_sorted_by_key(|line| (line["first"].as_f64().unwrap() * 1e9) as u64));
    let length = first[2]["tokens"].as_u64().unwrap();
    assert!((4500..=5000 - 64).contains(&length), "{length}");
    assert_eq!(first[3]["answer"], second[3]["answer"]);
    let report = report(Path::new(&out));
    let points = report["frontiers"]["memory"].as_array().unwrap();
    assert!(points.len() > 1 && points[0]["ledger"].is_array());
    assert_eq!(fs::read_to_string(format!("{out}/frontiers.csv")).unwrap().lines().count(), 4);
    assert!(fs::read_to_string(format!("{out}/index.html")).unwrap().contains("(right)"));
}

#[test]
fn needles_are_found_and_asked_once() {
    let folder = tempfile::tempdir().unwrap();
    let (answers, out) = (path(&folder, "answers.jsonl"), path(&folder, "report"));
    let grid = ["needle", "--lengths", "300,900", "--depths", "0,100", "--results", &answers];
    let all = lines(&[&grid[..], &["--report", &out, "--json"]].concat());
    assert_eq!(all.len(), 16);
    for cell in &all {
        let length = cell["length"].as_u64().unwrap();
        let counted = cell["prompt_tokens"].as_u64().unwrap();
        assert!(counted * 10 > length * 7 && counted <= length * 11 / 10, "{cell}");
        assert_eq!(cell["right"], cell["kind"] != "aggregate", "{cell}");
    }
    let page = fs::read_to_string(format!("{out}/index.html")).unwrap();
    assert!(page.contains("fathom: aggregate") && page.contains("was not taught sums"), "what it cannot know is said");
    assert_eq!(fs::read_to_string(&answers).unwrap().lines().count(), 16);

    // Another server gets its own questions, and those alone; a second run asks nothing but the first short text.
    let speaker = Speaker::start(Manner::Good);
    let there = [&grid[..], &["--url", &speaker.address, "--kinds", "single,multi", "--json"]].concat();
    let cells = lines(&there);
    assert!(cells.len() == 8 && cells.iter().all(|cell| cell["right"] == false));
    assert_eq!(speaker.streamed().len(), 9);
    assert_eq!(lines(&there), cells);
    assert_eq!(speaker.streamed().len(), 9);
    // It holds 4,000 tokens: which texts are left out is said, and that none is left is an error.
    let long = ["needle", "--url", &speaker.address, "--depths", "50", "--kinds", "single", "--json", "--lengths"];
    let some = fathom(&[&long[..], &["300,5000,9000"]].concat());
    assert_eq!(String::from_utf8(some.stdout).unwrap().lines().count(), 1);
    let message = String::from_utf8_lossy(&some.stderr).into_owned();
    assert!(some.status.success() && message.contains("texts of 5,000 and 9,000, with answers of 96"), "{message}");
    let asked = speaker.streamed().len();
    let message = refused(&[&long[..], &["5000,9000"]].concat());
    assert!(message.contains("holds 4,000 tokens, too few for a text of 5,000"), "{message}");
    assert_eq!(speaker.streamed().len(), asked);
    let message = refused(&["needle", "--lengths", "1048576", "--depths", "50"]);
    assert!(message.contains("holds 1,048,576 tokens, too few"), "{message}");

    // Answers are those of a model's weights, whatever its folder is called.
    let assets = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo-model");
    let (kept, mut lines_of) = (path(&folder, "kept.jsonl"), Vec::new());
    for (place, more) in [("a", ""), ("b", "\n"), ("a", "")] {
        let copy = folder.path().join(place).join("m");
        fs::create_dir_all(&copy).unwrap();
        for file in fs::read_dir(&assets).unwrap().flatten() {
            fs::copy(file.path(), copy.join(file.file_name())).unwrap();
        }
        fs::write(copy.join("config.json"), fs::read_to_string(assets.join("config.json")).unwrap() + more).unwrap();
        let copy = copy.to_str().unwrap();
        lines(&[
            "needle",
            copy,
            "--lengths",
            "300",
            "--depths",
            "0",
            "--kinds",
            "single",
            "--results",
            &kept,
            "--json",
        ]);
        lines_of.push(fs::read_to_string(&kept).unwrap().lines().count());
    }
    assert_eq!(lines_of, [1, 2, 2]);

    assert!(refused(&["needle", "--results", "/none/such"]).contains("cannot keep answers in /none/such"));
    fs::write(&answers, "my notes\n").unwrap();
    assert!(refused(&grid).contains("answers.jsonl: line 1: no answer of fathom needle"));
    let hangs = Speaker::start(Manner::Hangs);
    let message = refused(&["needle", "--url", &hangs.address, "--lengths", "300", "--timeout", "1"]);
    assert!(message.contains("says nothing for 1 s"), "{message}");
}
