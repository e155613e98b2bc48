//! `fathom pull` from a hub that is well, and from hubs that are not.

mod mirror;

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use mirror::{Content, Fault, File, Mirror, REPO};
use serde_json::Value;

const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

/// A repository: what a checkpoint has, and what it has not. `sizes` are those of the two shards.
fn files(sizes: [u64; 2]) -> Vec<File> {
    let text = |name: &str, content: &str| File { name: name.into(), content: Content::Text(content.into()) };
    let index = format!(r#"{{"weight_map": {{"a": "{}", "b": "{}"}}}}"#, SHARDS[0], SHARDS[1]);
    let noise = |name: &str, seed, size| File { name: name.into(), content: Content::Noise(seed, size) };
    vec![
        text("config.json", "{}"),
        text("tokenizer.json", r#"{"model": "any"}"#),
        text("model.safetensors.index.json", &index),
        text("LICENSE", ""),
        noise(SHARDS[0], 1, sizes[0]),
        noise(SHARDS[1], 2, sizes[1]),
    ]
}

/// Two segments and a bit, and less than one.
const SMALL: [u64; 2] = [(17 << 20) + 3, 1 << 20];

fn command(mirror: &Mirror, folder: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fathom"));
    command.args(["pull", REPO, &folder.display().to_string(), "--json"]).args(more);
    command
        .env("HF_ENDPOINT", &mirror.address)
        .env("HF_HOME", folder.with_file_name("hf"))
        .env("HF_TOKEN", "hf_secret");
    for name in ["HF_HUB_CACHE", "HF_TOKEN_PATH", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
        command.env_remove(name);
    }
    command
}

fn run(mirror: &Mirror, folder: &Path, more: &[&str]) -> Output {
    command(mirror, folder, more).output().unwrap()
}

fn pulled(mirror: &Mirror, folder: &Path, more: &[&str]) -> Value {
    let out = run(mirror, folder, more);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

/// Something that must be refused with one message.
fn refused(mirror: &Mirror, folder: &Path, more: &[&str]) -> String {
    let out = run(mirror, folder, more);
    let message = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(2), "{message}");
    assert!(!message.contains("panicked") && message.trim_end().lines().count() == 1, "{message}");
    message
}

/// The folder has what the mirror has, byte for byte, and nothing on its way.
fn check(mirror: &Mirror, folder: &Path) {
    for file in &mirror.shared.files {
        let mut found = fs::File::open(folder.join(&file.name)).unwrap();
        let (mut at, mut bytes) = (0, vec![0; 1 << 20]);
        while at < file.content.size() {
            let n = (file.content.size() - at).min(bytes.len() as u64);
            found.read_exact(&mut bytes[..n as usize]).unwrap();
            assert!(bytes[..n as usize] == file.content.bytes(at, at + n)[..], "{} at {at}", file.name);
            at += n;
        }
        assert_eq!(found.read(&mut bytes).unwrap(), 0, "{} is longer", file.name);
    }
    let state = fs::read_dir(folder.join(".fathom-pull")).unwrap().map(|e| e.unwrap().file_name());
    let mut state: Vec<_> = state.map(|name| name.into_string().unwrap()).collect();
    state.sort();
    assert_eq!(state, ["lock", "manifest.json"]);
}

#[test]
fn only_what_is_needed_and_only_once() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("model");
    let mut all = files(SMALL);
    let needed: u64 = all.iter().map(|file| file.content.size()).sum();
    let kept = all.len();
    for name in ["pytorch_model.bin", "figure.png", "extra.safetensors", ".gitattributes"] {
        all.push(File { name: name.into(), content: Content::Noise(3, 1000) });
    }
    let mirror = Mirror::start(all, Fault::None, 0);

    let out = run(&mirror, &folder, &["--dry-run"]);
    let plan: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(plan["files"].as_array().unwrap().len(), kept + 1, "{plan}");
    assert!(!folder.exists() && mirror.sent() == 0);
    assert_eq!((&plan["to_come"], &plan["missing"]), (&plan["bytes"], &0.into()), "{plan}");

    let report = pulled(&mirror, &folder, &[]);
    assert_eq!((&report["bytes"], &report["fetched"]), (&needed.into(), &needed.into()), "{report}");
    assert_eq!((mirror.sent(), report["files"].as_u64()), (needed, Some(kept as u64)));
    assert_eq!(report["unverified"], serde_json::json!(["config.json"]));
    // The shard that no index names is left out too.
    for name in ["pytorch_model.bin", "figure.png", "extra.safetensors", ".gitattributes"] {
        assert!(!folder.join(name).exists(), "{name}");
    }
    let dry: Value = serde_json::from_slice(&run(&mirror, &folder, &["--dry-run"]).stdout).unwrap();
    assert_eq!(dry["to_come"], 1000, "the shard that the index does not name: {dry}");
    let again = pulled(&mirror, &folder, &[]);
    assert_eq!((&again["fetched"], &again["kept"], mirror.sent()), (&0.into(), &needed.into(), needed));

    // Without the notes of what was pulled files are read to see whether they are right.
    fs::remove_dir_all(folder.join(".fathom-pull")).unwrap();
    assert_eq!(pulled(&mirror, &folder, &[])["fetched"], 0);
    // A file that is not the repository's is not written over.
    let shard = folder.join(SHARDS[1]);
    let mut bytes = fs::read(&shard).unwrap();
    bytes[5] ^= 1;
    fs::write(&shard, &bytes).unwrap();
    let message = refused(&mirror, &folder, &[]);
    assert!(message.contains(SHARDS[1]) && message.contains("move it away"), "{message}");
    assert!(fs::read(&shard).unwrap() == bytes);
    fs::remove_file(&shard).unwrap();
    assert_eq!(pulled(&mirror, &folder, &[])["fetched"], SMALL[1]);

    // Another program's cache has a file already.
    let blobs = home.path().join("hf/hub/models--maker--model/blobs");
    fs::create_dir_all(&blobs).unwrap();
    let content = &mirror.shared.files[4].content;
    fs::write(blobs.join(content.sha256()), content.bytes(0, SMALL[0])).unwrap();
    let other = home.path().join("other");
    let report = pulled(&mirror, &other, &[]);
    assert_eq!(report["kept"], SMALL[0], "{report}");
    // And one that is damaged.
    fs::write(blobs.join(content.sha256()), vec![0; SMALL[0] as usize]).unwrap();
    let third = home.path().join("third");
    let report = pulled(&mirror, &third, &[]);
    assert!(report["fetched"].as_u64() >= Some(needed), "{report}");
}

#[test]
fn what_passes_is_overcome() {
    for (fault, spoils, most) in [
        (Fault::NoRanges, 0, 4.0),
        (Fault::WrongBytes, 1, 2.1),
        (Fault::WrongRange, 3, 1.01),
        (Fault::Shorter, 3, 1.01),
        (Fault::Longer, 3, 1.5),
        (Fault::EndsEarly, 6, 1.05),
        (Fault::Unavailable, 5, 1.01),
        (Fault::Stall, 2, 1.05),
        (Fault::Elsewhere, 0, 1.01),
        (Fault::Private, 0, 1.01),
        (Fault::Terse, 0, 1.01),
        (Fault::Paths, 0, 1.01),
        (Fault::Circle, 2, 1.01),
    ] {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("model");
        let mirror = Mirror::start(files(SMALL), fault, spoils);
        let patience = if fault == Fault::Stall { "2" } else { "60" };
        let report = pulled(&mirror, &folder, &["--connections", "4", "--patience", patience]);
        check(&mirror, &folder);
        // An answer that is refused for its headers has sent some of its body by then.
        let share = report["fetched"].as_f64().unwrap() / mirror.total() as f64;
        assert!(share <= most, "{fault:?}: fetched {share:.3} of it; {report}");
        assert_eq!(mirror.shared.leaks.load(Ordering::SeqCst), 0, "the token is the hub's alone");
        assert!(!home.path().join("escaped.json").exists() && !Path::new("/tmp/escaped.json").exists());
        println!("{fault:?}: fetched {share:.3} of it in {} requests", mirror.shared.requests.load(Ordering::SeqCst));
    }
}

#[test]
fn what_does_not_pass_is_named() {
    let forever = 1_000_000;
    for (fault, expected) in [
        (Fault::WrongBytes, "not what the hub's hash says"),
        (Fault::WrongRange, "asked for bytes"),
        (Fault::Shorter, "were expected"),
        (Fault::Longer, "bytes where"),
        (Fault::Compressed, "gzip"),
        (Fault::Unavailable, "503"),
        (Fault::Stall, "run the command again"),
        (Fault::Circle, "sends us on"),
        (Fault::Scheme, "gopher"),
        (Fault::Silent, "does not say how long"),
        (Fault::NotAHub, "is the endpoint right?"),
        (Fault::Huge, "are free, but"),
    ] {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("model");
        let mirror = Mirror::start(files(SMALL), fault, forever);
        let message = refused(&mirror, &folder, &["--patience", "1"]);
        assert!(message.contains(expected), "{fault:?}: {message}");
        assert!(!message.contains("signature") && !message.contains("hf_secret"), "{message}");
        assert!(!folder.join("config.json").exists(), "{fault:?}: it looks whole");
    }
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("model");
    let huge = Mirror::start(files(SMALL), Fault::Huge, forever);
    let message = refused(&huge, &folder, &["--dry-run"]);
    assert!(message.contains("are free, but") && message.contains("are missing"), "{message}");
    let listed: Value = serde_json::from_slice(&run(&huge, &folder, &["--dry-run"]).stdout).unwrap();
    let number = |name: &str| listed[name].as_u64().unwrap();
    assert!(number("missing") > number("to_come") - number("free"), "{listed}");
    assert!(!folder.exists() && huge.sent() == 0);
    let mirror = Mirror::start(files(SMALL), Fault::None, 0);
    assert!(refused(&mirror, &folder, &["--revision", "nowhere"]).contains("404"));
    assert!(refused(&mirror, &folder, &["--endpoint", "huggingface.co"]).contains("huggingface.co"));
    assert!(
        refused(&mirror, &folder, &["--endpoint", "http://127.0.0.1:1", "--patience", "1"]).contains("127.0.0.1:1")
    );
    let private = Mirror::start(files(SMALL), Fault::Private, 0);
    let out = command(&private, &folder, &[]).env_remove("HF_TOKEN").output().unwrap();
    assert!(String::from_utf8_lossy(&out.stderr).contains("set HF_TOKEN"));
    let lacking =
        Mirror::start(files(SMALL).into_iter().filter(|file| file.name != SHARDS[1]).collect(), Fault::None, 0);
    assert!(refused(&lacking, &folder, &[]).contains("names the shard model-00002"));
    let no_model = Mirror::start(files(SMALL).into_iter().skip(1).collect(), Fault::None, 0);
    assert!(refused(&no_model, &home.path().join("none"), &[]).contains("no config.json"));
    // A place that cannot be written, a folder of another repository, a name that is none.
    let file = home.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(refused(&mirror, &file.join("model"), &[]).contains("file"));
    let other = home.path().join("other");
    fs::create_dir_all(other.join(".fathom-pull")).unwrap();
    let manifest = r#"{"repo": "some/thing", "commit": "x", "files": {}}"#;
    fs::write(other.join(".fathom-pull/manifest.json"), manifest).unwrap();
    assert!(refused(&mirror, &other, &[]).contains("holds files of some/thing"));
    for name in ["model", "a/b/c", "../x", "a/..", "a b/c", "/"] {
        let out = Command::new(env!("CARGO_BIN_EXE_fathom")).args(["pull", name]).output().unwrap();
        assert_eq!(out.status.code(), Some(2), "{name}");
        assert!(String::from_utf8_lossy(&out.stderr).contains("OWNER/NAME"), "{name}");
    }
}

/// Fifty broken connections and five kills cost next to nothing. `FATHOM_PULL_BYTES` is the repository's size.
#[test]
fn kills_and_broken_connections_cost_next_to_nothing() {
    let large = std::env::var("FATHOM_PULL_BYTES").ok().map(|n| n.parse::<u64>().unwrap());
    let size = large.unwrap_or(96 << 20);
    // A kill loses what is between the two: little against two gigabytes, but much against so few, unless the sender waits.
    let pace = Duration::from_millis(if large.is_none() { 5 } else { 0 });
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("model");
    let cuts = (0..50u64).map(|i| (i * 7919 + 13) % 997 * size / 997).collect();
    let sizes = [size / 3 * 2, size - size / 3 * 2];
    let mirror = Mirror::with_cuts(files(sizes), Fault::None, 0, cuts, pace);
    let mut kills = 0;
    while kills < 5 {
        let mut child: Child = command(&mirror, &folder, &["--connections", "4"])
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let until = (kills + 1) * mirror.total() / 6;
        while mirror.sent() < until {
            assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
            std::thread::sleep(Duration::from_millis(1));
        }
        // SIGKILL.
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!folder.join("config.json").exists(), "it looks whole");
        kills += 1;
    }
    let report = pulled(&mirror, &folder, &["--connections", "4"]);
    check(&mirror, &folder);
    assert_eq!(mirror.cuts(), 0, "every connection that was to break did");
    let (sent, total) = (mirror.sent(), mirror.total());
    println!("{sent} bytes sent for {total}, {:.4} of it; the last run: {report}", sent as f64 / total as f64);
    assert!(sent as f64 <= 1.05 * total as f64, "{sent} of {total}");
}

/// Two at once do not get into each other's way.
#[test]
fn one_pull_at_a_time() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("model");
    let stalled = Mirror::start(files(SMALL), Fault::Stall, 1_000_000);
    let mut first = command(&stalled, &folder, &[]).stderr(Stdio::null()).spawn().unwrap();
    while stalled.sent() < 1 << 20 {
        std::thread::sleep(Duration::from_millis(1));
    }
    let message = refused(&stalled, &folder, &[]);
    assert!(message.contains("another pull"), "{message}");
    first.kill().unwrap();
    first.wait().unwrap();
}
