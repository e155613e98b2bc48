//! The program killed while it reads a long prompt: started again, it has lost an interval at most.
//!
//! CI reads about 30,000 tokens. 100,000 of them:
//! `FATHOM_TEST_TIMES=4 cargo test --release -p fathom --test killed -- --nocapture`.
#![cfg(target_os = "linux")]

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

/// Tokens after which a prompt's state is saved.
const INTERVAL: usize = 8192;

fn times() -> usize {
    std::env::var("FATHOM_TEST_TIMES").map_or(1, |n| n.parse().expect("FATHOM_TEST_TIMES is a number"))
}

/// About so many tokens of text.
fn text(tokens: usize) -> String {
    let names = ["Maria", "Jonas", "Ada", "Piet"];
    let line =
        |i: usize| format!("The code of {} is {}. The old sailor slept. ", names[i % 4], i * 7919 % 90_000 + 10_000);
    // A line has about 17 tokens.
    (0..tokens / 17).map(line).collect()
}

fn command(text: &Path, store: Option<&Path>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fathom"));
    command.args(["run", "--raw", "--json", "--temperature", "0", "--max-tokens", "8", "--file"]).arg(text);
    if let Some(store) = store {
        command.arg("--store").arg(store);
    }
    command.stdin(Stdio::null());
    command
}

/// What a whole run says.
fn report(text: &Path, store: Option<&Path>) -> serde_json::Value {
    let output = command(text, store).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Starts reading, slowly, on a terminal of its own: there it shows how far it is.
fn start(text: &Path, store: &Path) -> (Child, File) {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap().into_string().unwrap();
    let stderr = File::options().read(true).write(true).open(name).unwrap();
    let child =
        command(text, Some(store)).args(["--threads", "1"]).stdout(Stdio::null()).stderr(stderr).spawn().unwrap();
    (child, File::from(terminal))
}

/// The last `done/total tokens` that was shown.
fn shown(screen: &str) -> Option<(usize, usize)> {
    let number = |text: &str| text.replace(',', "").parse().ok();
    screen.rmatch_indices(" tokens").find_map(|(at, _)| {
        let (done, total) = screen[..at].rsplit([' ', '\u{1b}']).next()?.split_once('/')?;
        Some((number(done)?, number(total)?))
    })
}

/// Kills the program when it has read more than 60 % of its prompt; says how much it had, of how much. Nothing if it was
/// through before it showed that much.
fn killed(text: &Path, store: &Path) -> Option<(usize, usize)> {
    let (mut child, mut terminal) = start(text, store);
    let (mut screen, mut bytes) = (String::new(), [0; 4096]);
    let reached = loop {
        match terminal.read(&mut bytes) {
            // The other side is closed.
            Ok(0) | Err(_) => break None,
            Ok(n) => screen += &String::from_utf8_lossy(&bytes[..n]),
        }
        if let Some((done, total)) = shown(&screen)
            && done * 10 >= total * 6
        {
            break Some((done, total));
        }
    };
    child.kill().unwrap();
    child.wait().unwrap();
    reached.filter(|(done, total)| done < total)
}

/// Whether a snapshot was being written: an object is there that is younger than all that is listed.
fn was_writing(store: &Path) -> bool {
    let youngest = |kind: &str| {
        let mut folders = vec![store.join("namespaces/default").join(kind)];
        let mut times = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten() {
                let entry = entry.unwrap();
                match entry.file_type().unwrap().is_dir() {
                    true => folders.push(entry.path()),
                    false => times.push(entry.metadata().unwrap().modified().unwrap()),
                }
            }
        }
        times.into_iter().max()
    };
    youngest("objects") > youngest("manifests")
}

#[test]
fn an_interval_is_lost_at_most() {
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let (prompt, store) = (folder.path().join("text"), folder.path().join("store"));
    let mut tokens = (30_000 * times()).min(100_000);
    let (done, total) = loop {
        fs::write(&prompt, text(tokens)).unwrap();
        let _ = fs::remove_dir_all(&store);
        match killed(&prompt, &store) {
            Some(reached) => break reached,
            // A fast machine: a longer text.
            None if tokens < 1_000_000 => tokens *= 2,
            None => panic!("it never showed how far it was"),
        }
    };
    let writing = was_writing(&store);
    let again = report(&prompt, Some(&store));
    let reused = again["reused_tokens"].as_u64().unwrap() as usize;
    assert_eq!(again["prompt_tokens"], total);
    let lost = done.saturating_sub(reused);
    println!("killed at {done} of {total}, {reused} reused, {lost} lost; a snapshot was being written: {writing}");
    assert!(lost <= INTERVAL + if writing { INTERVAL } else { 0 }, "{reused} reused of {done}");
    // And what comes of it is what comes without.
    assert_eq!(report(&prompt, None)["answer"], again["answer"]);
}
