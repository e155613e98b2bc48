//! A disk that is full and a folder that cannot be written: saving says so, nothing half-written is listed, and what was
//! saved before is still there.
//!
//! The limits are the system's own: a size that no file may pass, a file system of a megabyte, a mount without writing.
//! The last two need a user namespace of one's own; where there is none the test says that it was skipped.
#![allow(missing_docs)]
#![cfg(target_os = "linux")]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::*;
use fathom_engine::SnapshotError;
use fathom_store::Error;

/// A session of more than two pages of 35 KB, saved early on.
const LENGTH: usize = 2200;
const EARLY: usize = 500;

fn session(loaded: &Loaded) -> (Vec<u32>, Vec<Vec<f32>>) {
    let tokens = loaded.tokens(1, LENGTH);
    let rows = loaded.straight(&tokens);
    (tokens, rows)
}

/// Saves what fits before the limit holds.
fn early(loaded: &Loaded, path: &Path) {
    let (tokens, rows) = session(loaded);
    let mut state = loaded.model.new_state().unwrap();
    loaded.read(&mut state, &tokens[..EARLY]);
    loaded.save(&state, &tokens[..EARLY], &rows[EARLY - 1], &open(path, options())).unwrap();
}

/// Under the limit: the early state is found, the long one cannot be saved, and says why. The child half of the tests
/// below; alone it does nothing.
#[test]
fn limited() {
    let Ok(path) = std::env::var("FATHOM_TEST_LIMITED") else { return };
    let (loaded, path) = (Loaded::small(), Path::new(&path));
    let (tokens, rows) = session(&loaded);
    if std::env::var("FATHOM_TEST_FILL").is_ok() {
        // A file system that is new and all but full.
        early(&loaded, path);
        let _ = fs::write(path.join("namespaces/ballast"), vec![1; 1 << 20]);
    }
    let ns = open(path, options());
    let mut state = loaded.model.new_state().unwrap();
    loaded.read(&mut state, &tokens);
    for _ in 0..2 {
        let error = loaded.save(&state, &tokens, &rows[LENGTH - 1], &ns).unwrap_err();
        assert!(matches!(&error, SnapshotError::Store(Error::Access { .. })), "{error}");
        println!("refused: {error}");
        let (got, reused, why) = loaded.answer(&ns, &tokens, &[]);
        assert_eq!((reused, why.is_some()), (EARLY, true));
        assert!(same(&got, &rows[LENGTH - 1..]));
    }
    assert_eq!(ns.list().unwrap().len(), 1);
    assert!(files(path).iter().all(|file| !file.to_string_lossy().contains('#')), "no half of a file is left");
    // What there is of the long one's state can still be read by whoever opens the store now.
    let (_, reused, _) = loaded.answer(&open(path, options()), &tokens, &[]);
    assert_eq!(reused, EARLY);
    if std::env::var("FATHOM_TEST_FILL").is_ok() {
        // There is room again.
        fs::remove_file(path.join("namespaces/ballast")).unwrap();
        loaded.save(&state, &tokens, &rows[LENGTH - 1], &ns).unwrap();
        assert_eq!(loaded.answer(&ns, &tokens, &[]).1, LENGTH);
    }
}

/// Runs `limited` in a shell that sets the limit first; returns what it said.
fn under(limit: &str, path: &Path, fill: bool) -> String {
    let program = child("limited");
    let mut shell = Command::new("unshare");
    shell.args(["--user", "--map-root-user", "--mount", "sh", "-c", &format!("{limit} && exec \"$0\" \"$@\"")]);
    shell.arg(program.get_program()).args(program.get_args());
    shell.env("FATHOM_TEST_LIMITED", path).env("FOLDER", path);
    if fill {
        shell.env("FATHOM_TEST_FILL", "1");
    }
    let output = shell.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    print!("{said}");
    said
}

/// Whether this user may have mounts of his own.
fn mounts() -> bool {
    let tried = Command::new("unshare").args(["--user", "--map-root-user", "--mount", "true"]).output();
    let can = tried.is_ok_and(|output| output.status.success());
    if !can {
        println!("skipped: no user namespaces");
    }
    can
}

#[test]
fn no_file_may_grow() {
    let folder = new_folder();
    let loaded = Loaded::small();
    early(&loaded, folder.path());
    let program = child("limited");
    // 20 blocks of 512 bytes, or of 1,024: less than a page. The signal is not to be heard, so that writing fails.
    let script = "trap '' XFSZ && ulimit -f 20 && exec \"$0\" \"$@\"";
    let mut shell = Command::new("sh");
    shell.args(["-c", script]).arg(program.get_program()).args(program.get_args());
    let output = shell.env("FATHOM_TEST_LIMITED", folder.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("File too large"), "{said}");
    // Without the limit all is well.
    let (tokens, rows) = session(&loaded);
    let ns = open(folder.path(), options());
    let mut state = loaded.model.new_state().unwrap();
    loaded.read(&mut state, &tokens);
    loaded.save(&state, &tokens, &rows[LENGTH - 1], &ns).unwrap();
    assert_eq!(loaded.answer(&ns, &tokens, &[]).1, LENGTH);
}

#[test]
fn a_full_disk() {
    let folder = new_folder();
    if mounts() {
        let said = under("mount -t tmpfs -o size=1m tmpfs \"$FOLDER\"", folder.path(), true);
        assert!(said.contains("No space left on device"), "{said}");
    }
}

#[test]
fn a_folder_that_cannot_be_written() {
    let folder = new_folder();
    if mounts() {
        early(&Loaded::small(), folder.path());
        let before: Vec<_> = files(folder.path());
        let limit = "mount --bind \"$FOLDER\" \"$FOLDER\" && mount -o remount,ro,bind \"$FOLDER\" \"$FOLDER\"";
        let said = under(limit, folder.path(), false);
        assert!(said.contains("Read-only file system"), "{said}");
        assert_eq!(files(folder.path()), before);
    }
}
