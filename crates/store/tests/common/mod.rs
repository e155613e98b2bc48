//! State that can be told from its tokens, so that any snapshot can be checked without knowing how it came about.
#![allow(dead_code, missing_docs)]

use std::path::Path;
use std::time::Duration;

use fathom_store::{Error, Id, Key, Namespace, NewSnapshot, Options, Saved, Store, Subject};

pub const PAGE: usize = 4;

pub fn subject() -> Subject {
    Subject { model: [7; 32], profile: "native-2".into(), page: PAGE }
}

/// Options for tests: what others do is seen at once.
pub fn options() -> Options {
    Options { refresh: Duration::ZERO, quota: u64::MAX, ..Options::default() }
}

/// Options under which nothing is young.
pub fn old() -> Options {
    Options { grace: Duration::ZERO, abandoned: Duration::ZERO, ..options() }
}

pub fn open(path: &Path, options: Options) -> Store {
    Store::open(path.to_str().unwrap(), options).unwrap()
}

/// In memory where that can be had: these tests wait for a disk's syncs otherwise.
pub fn new_folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// All ways to write.
pub fn variants() -> Vec<Options> {
    let key = || Some(Key::new([3; 32]));
    vec![
        options(),
        Options { compress: Some(1), ..options() },
        Options { key: key(), ..options() },
        Options { compress: Some(3), key: key(), ..options() },
    ]
}

pub fn tokens(seed: u32, length: usize) -> Vec<u32> {
    let seed = seed.wrapping_mul(2_246_822_519);
    (0..length as u32).map(|i| (seed ^ (i + 1).wrapping_mul(2_654_435_761)) >> 15).collect()
}

fn bytes(what: &str, subject: &Subject, tokens: &[u32], length: usize) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(what.as_bytes()).update(&subject.model).update(subject.profile.as_bytes());
    for token in tokens {
        hasher.update(&token.to_le_bytes());
    }
    let mut all = vec![0; length];
    // The second half compresses.
    hasher.finalize_xof().fill(&mut all[..length / 2]);
    all
}

pub fn page(subject: &Subject, tokens: &[u32], page: usize) -> Vec<u8> {
    bytes("page", subject, &tokens[..(page + 1) * subject.page], 90 + page % 7)
}

pub fn tail(subject: &Subject, tokens: &[u32]) -> Vec<u8> {
    bytes("tail", subject, tokens, 70 + tokens.len() % 5)
}

/// Saves, and says which pages were asked for.
pub fn save_as(ns: &Namespace, subject: &Subject, new: &NewSnapshot<'_>) -> Result<(Saved, Vec<usize>), Error> {
    let mut asked = Vec::new();
    let mut source = |i: usize| {
        asked.push(i);
        Ok(page(subject, new.tokens, i))
    };
    let saved = ns.save(subject, new, &mut source, &tail(subject, new.tokens))?;
    Ok((saved, asked))
}

pub fn save(ns: &Namespace, tokens: &[u32]) -> Saved {
    save_as(ns, &subject(), &NewSnapshot { tokens, ..NewSnapshot::default() }).unwrap().0
}

/// Loads, and checks every byte. An error is passed on; wrong bytes panic.
pub fn check(ns: &Namespace, id: &Id) -> Result<Vec<u32>, Error> {
    let loaded = ns.load(id)?;
    let subject = loaded.snapshot.subject.clone();
    let all = loaded.tokens;
    assert_eq!(loaded.snapshot.position, all.len());
    assert_eq!(loaded.tail, tail(&subject, &all), "tail of {id}");
    let mut count = 0;
    for (i, bytes) in loaded.pages.enumerate() {
        assert_eq!(bytes?, page(&subject, &all, i), "page {i} of {id}");
        count += 1;
    }
    assert_eq!(count, all.len() / subject.page);
    Ok(all)
}

/// All files below a folder, but the cache, which is not part of the truth.
pub fn files(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut all = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_none_or(|e| e != "redb") {
                all.push(path);
            }
        }
    }
    all.sort();
    all
}

/// Files of one kind: `objects`, `manifests` and so on.
pub fn of_kind(folder: &Path, kind: &str) -> Vec<std::path::PathBuf> {
    let mut all = files(folder);
    all.retain(|path| path.components().any(|part| part.as_os_str() == kind));
    all
}
