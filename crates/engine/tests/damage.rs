//! A store whose files are not what was written: never a wrong logit, always a reason, and the request goes on.
//!
//! CI flips some of the bytes. Every byte, in a quarter of an hour:
//! `FATHOM_TEST_TIMES=1000 cargo test --release -p fathom-engine --test damage`.
#![allow(missing_docs)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::*;
use fathom_kernels::Cpu;
use fathom_model::State;
use fathom_store::{Error, Key, Namespace, Options, Store};

const LENGTH: usize = 1100;
/// Where the session was saved: two snapshots share a full page, one is shorter.
const SAVED: [usize; 3] = [1000, 1030, 1040];
/// Some tokens that follow it.
const MORE: usize = 3;

/// A model, a session, and what follows its last tokens if nothing is ever interrupted.
struct Known {
    loaded: Loaded,
    tokens: Vec<u32>,
    rows: Vec<Vec<f32>>,
    /// The session where it was saved last.
    state: State<Cpu>,
}

impl Known {
    fn new() -> Known {
        let loaded = Loaded::small();
        let tokens = loaded.tokens(1, LENGTH);
        let mut state = loaded.model.new_state().unwrap();
        loaded.read(&mut state, &tokens[..SAVED[2]]);
        Known { rows: loaded.straight(&tokens), loaded, tokens, state }
    }

    fn fill(&self, path: &Path, options: Options) {
        let ns = open(path, options);
        let mut state = self.loaded.model.new_state().unwrap();
        for p in SAVED {
            let from = state.position();
            let logits = self.loaded.read(&mut state, &self.tokens[from..p]);
            self.loaded.save(&state, &self.tokens[..p], &logits, &ns).unwrap();
        }
    }

    /// Asks a store that is damaged. Says what became of the request: how much was reused, or why nothing was opened.
    fn ask(&self, path: &Path, options: &Options, what: &str) -> String {
        // No cache: the files are to be read.
        let options = Options { cache: Some("/nonexistent/cache".into()), ..options.clone() };
        let ns = match Store::open(path.to_str().unwrap(), options).and_then(|store| store.namespace("a")) {
            Ok(ns) => ns,
            // Said when the program starts, before any request; it names the file and the way out.
            Err(error) => {
                let named = matches!(error, Error::Location { .. } | Error::Key { .. } | Error::Newer { .. });
                assert!(named && error.to_string().contains(path.to_str().unwrap()), "{what}: {error}");
                return "not opened".into();
            }
        };
        let p = SAVED[2];
        let (rows, reused, why) = self.loaded.answer(&ns, &self.tokens[..p], &self.tokens[p..p + MORE]);
        assert!(same(&rows, &self.rows[p - 1..p + MORE]), "{what}: wrong logits, {reused} reused");
        assert!(reused == p || why.as_ref().is_some_and(|why| !why.is_empty()), "{what}: {reused} reused");
        format!("{reused} reused")
    }

    fn save(&self, ns: &Namespace) {
        let p = SAVED[2];
        self.loaded.save(&self.state, &self.tokens[..p], &self.rows[p - 1], ns).unwrap();
    }

    /// Saves the session again, and finds all of it.
    fn mend(&self, path: &Path, options: &Options, what: &str) {
        let Ok(ns) = Store::open(path.to_str().unwrap(), options.clone()).and_then(|store| store.namespace("a")) else {
            return;
        };
        let p = SAVED[2];
        // Each try finds one damaged object, and the next save makes it again.
        let whole = (0..4).any(|_| {
            self.save(&ns);
            self.loaded.answer(&ns, &self.tokens[..p], &[]).1 == p
        });
        assert!(whole, "{what}: saved again, and not found");
    }
}

/// Ways to keep a store.
fn kinds() -> [Options; 2] {
    [options(), Options { compress: Some(3), key: Some(Key::new([7; 32])), ..options() }]
}

fn whole(path: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    files(path).into_iter().map(|file| (file.clone(), fs::read(file).unwrap())).collect()
}

fn put_back(path: &Path, files: &[(PathBuf, Vec<u8>)]) {
    let _ = fs::remove_dir_all(path);
    for (file, bytes) in files {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, bytes).unwrap();
    }
}

#[test]
fn every_byte_flipped() {
    let known = Known::new();
    for (kind, options) in kinds().into_iter().enumerate() {
        let folder = new_folder();
        let path = folder.path().join("store");
        known.fill(&path, options.clone());
        let whole = whole(&path);
        let bytes: usize = whole.iter().map(|(_, bytes)| bytes.len()).sum();
        // A number of steps without divisors in common with the rows' sizes; headers and manifests are looked at more.
        let (wide, narrow) = (997usize.div_ceil(times()), 23usize.div_ceil(times()));
        let (mut flips, mut became) = (0, BTreeMap::<String, usize>::new());
        for (file, bytes) in &whole {
            let body = if file.components().any(|part| part.as_os_str() == "objects") { 88 } else { bytes.len() };
            let at = (flips % narrow..body).step_by(narrow).chain((body + flips % wide..bytes.len()).step_by(wide));
            for at in at {
                let mut wrong = bytes.clone();
                wrong[at] ^= 1 << (flips % 8);
                fs::write(file, &wrong).unwrap();
                let what = format!("{}: byte {at}, bit {}", file.display(), flips % 8);
                *became.entry(known.ask(&path, &options, &what)).or_default() += 1;
                if flips % 50 == 0 {
                    known.mend(&path, &options, &what);
                    put_back(&path, &whole);
                }
                let _ = fs::remove_dir_all(path.join("namespaces/a/damaged"));
                fs::write(file, bytes).unwrap();
                flips += 1;
            }
        }
        println!("store {kind}: {} files, {bytes} bytes, {flips} flips: {became:?}", whole.len());
        assert_eq!(known.ask(&path, &options, "whole again"), format!("{} reused", SAVED[2]));
        assert!(became.len() > 2, "{became:?}");
    }
}

#[test]
fn cut_deleted_and_swapped() {
    let known = Known::new();
    for options in kinds() {
        let folder = new_folder();
        let path = folder.path().join("store");
        known.fill(&path, options.clone());
        let whole = whole(&path);
        let mut became = BTreeMap::<String, usize>::new();
        let mut spoil = |what: String, change: &dyn Fn()| {
            put_back(&path, &whole);
            change();
            *became.entry(known.ask(&path, &options, &what)).or_default() += 1;
            known.mend(&path, &options, &what);
        };
        for (i, (file, bytes)) in whole.iter().enumerate() {
            let name = file.display();
            spoil(format!("{name} deleted"), &|| fs::remove_file(file).unwrap());
            for length in [0, 50, 88, bytes.len() / 2, bytes.len() - 1] {
                let cut = &bytes[..length.min(bytes.len())];
                spoil(format!("{name} cut to {length}"), &|| fs::write(file, cut).unwrap());
            }
            spoil(format!("{name} longer"), &|| fs::write(file, [&bytes[..], b"x"].concat()).unwrap());
            for other in [(i + 1) % whole.len(), (i + whole.len() / 2) % whole.len()] {
                let (there, theirs) = &whole[other];
                spoil(format!("{name} swapped with {}", there.display()), &|| {
                    fs::write(file, theirs).unwrap();
                    fs::write(there, bytes).unwrap();
                });
            }
        }
        spoil("no objects".into(), &|| fs::remove_dir_all(path.join("namespaces/a/objects")).unwrap());
        spoil("no manifests".into(), &|| fs::remove_dir_all(path.join("namespaces/a/manifests")).unwrap());
        println!("{became:?}");
    }
}

/// The store is damaged while a session is open in it.
#[test]
fn damaged_under_an_open_store() {
    let known = Known::new();
    let folder = new_folder();
    let path = folder.path().join("store");
    known.fill(&path, options());
    let ns = open(&path, options());
    let p = SAVED[2];
    for (file, bytes) in whole(&path) {
        let mut wrong = bytes.clone();
        wrong[bytes.len() / 2] ^= 4;
        fs::write(&file, wrong).unwrap();
        let what = file.display();
        for _ in 0..2 {
            let (rows, reused, why) = known.loaded.answer(&ns, &known.tokens[..p], &[]);
            assert!(same(&rows, &known.rows[p - 1..p]), "{what}");
            assert!(reused == p || why.is_some(), "{what}");
            // What was read again is saved again.
            known.save(&ns);
        }
        let (_, reused, _) = known.loaded.answer(&ns, &known.tokens[..p], &[]);
        assert_eq!(reused, p, "{what}");
        fs::write(&file, bytes).unwrap();
    }
}
