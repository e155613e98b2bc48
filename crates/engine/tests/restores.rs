//! A session saved at any position and taken up elsewhere has the bits of one that was never interrupted.
//!
//! CI looks at some of the positions 1 to 700, and at the borders of pages. All of them, in a few minutes:
//! `FATHOM_TEST_TIMES=100 cargo test --release -p fathom-engine --test restores`.
#![allow(missing_docs)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use common::*;
use fathom_engine::Resumed;
use fathom_store::{Options, Store};

/// Tokens that follow a restored session.
const MORE: usize = 40;
/// The longest session.
const LENGTH: usize = 2100;

/// Positions at which sessions are cut: windows' and blocks' borders, all residues if there is time, pages' borders.
fn positions() -> Vec<usize> {
    // 97 has no divisor in common with 128, so the residues differ.
    let step = 97usize.div_ceil(times());
    let mut all: BTreeSet<usize> = (1..=700).step_by(step).collect();
    all.extend([31, 32, 33, 127, 128, 129, 700, 1024, 1025, 2047]);
    all.into_iter().collect()
}

/// One session, saved at all positions on its way.
fn fill(loaded: &Loaded, tokens: &[u32], stores: &[&fathom_store::Namespace]) {
    let mut state = loaded.model.new_state().unwrap();
    for p in positions() {
        let from = state.position();
        let logits = loaded.read(&mut state, &tokens[from..p]);
        for ns in stores {
            loaded.save(&state, &tokens[..p], &logits, ns).unwrap();
        }
    }
}

fn key(variant: usize) -> Options {
    if variant == 2 { secret() } else { options() }
}

/// In the folder: stores `0` plain, `1` zstd, `2` encrypted, `3` imported from files, and the logits of a straight run.
/// Checks every position in all of them. The child half of the test below; alone it does nothing.
#[test]
fn other_process() {
    let Ok(folder) = std::env::var("FATHOM_TEST_RESTORE") else { return };
    let (loaded, folder) = (Loaded::tiny(), Path::new(&folder));
    let tokens = loaded.tokens(1, LENGTH);
    let bytes = fs::read(folder.join("logits")).unwrap();
    let rows: Vec<Vec<f32>> = bytes
        .chunks(4 * loaded.model.config().vocab_size)
        .map(|row| row.chunks(4).map(|v| f32::from_le_bytes(v.try_into().unwrap())).collect())
        .collect();
    for variant in 0..4 {
        let ns = open(&folder.join(variant.to_string()), key(variant));
        for p in positions() {
            let (got, reused, why) = loaded.answer(&ns, &tokens[..p], &tokens[p..p + MORE]);
            assert_eq!((reused, why), (p, None), "store {variant}");
            assert!(same(&got, &rows[p - 1..p + MORE]), "store {variant}, position {p}");
        }
    }
}

#[test]
fn in_another_process() {
    let (loaded, folder) = (Loaded::tiny(), new_folder());
    let tokens = loaded.tokens(1, LENGTH);
    let logits = loaded.straight(&tokens).into_iter().flatten().flat_map(f32::to_le_bytes).collect::<Vec<u8>>();
    fs::write(folder.path().join("logits"), logits).unwrap();
    let at = |variant: usize| folder.path().join(variant.to_string());
    let stores = [open(&at(0), options()), open(&at(1), packed()), open(&at(2), secret()), open(&at(3), options())];
    fill(&loaded, &tokens, &[&stores[0], &stores[1], &stores[2]]);
    // From the encrypted store by way of a file.
    for snapshot in stores[2].list().unwrap() {
        let mut file = Vec::new();
        stores[2].export(&snapshot.id, &mut file).unwrap();
        stores[3].import(&mut &file[..]).unwrap();
    }
    drop(stores);
    let output = child("other_process").env("FATHOM_TEST_RESTORE", folder.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// The restored session and its fork go different ways, a token each in turn.
#[test]
fn forked_after_a_restore() {
    let (loaded, folder) = (Loaded::tiny(), new_folder());
    let (tokens, others) = (loaded.tokens(1, LENGTH), loaded.tokens(2, MORE));
    let rows = loaded.straight(&tokens);
    fill(&loaded, &tokens, &[&open(folder.path(), options())]);
    let ns = open(folder.path(), options());
    for p in positions() {
        let Resumed { state: mut origin, .. } = loaded.resume(&ns, &tokens[..p]).unwrap().resumed.unwrap();
        let mut fork = loaded.model.fork(&origin).unwrap();
        let (mut one, mut two) = (Vec::new(), Vec::new());
        for i in 0..MORE {
            two.extend(loaded.append(&mut origin, &others[i..=i]));
            one.extend(loaded.append(&mut fork, &tokens[p + i..=p + i]));
        }
        assert!(same(&one, &rows[p..p + MORE]), "position {p}");
        // The other way is none that was read straight; what a session of its own makes of it.
        let (alone, ..) = loaded.answer(&ns, &tokens[..p], &others);
        assert!(same(&two, &alone[1..]), "position {p}");
    }
}

/// Back to a position where nothing was kept: the nearest before it, and the tokens between are read again.
#[test]
fn rewound() {
    let (loaded, folder) = (Loaded::tiny(), new_folder());
    let tokens = loaded.tokens(1, LENGTH);
    let rows = loaded.straight(&tokens);
    let kept = [50, 128, 333, 640, 1024, 1500, 2000];
    {
        let ns = open(folder.path(), packed());
        let mut state = loaded.model.new_state().unwrap();
        for p in kept {
            let from = state.position();
            let logits = loaded.read(&mut state, &tokens[from..p]);
            loaded.save(&state, &tokens[..p], &logits, &ns).unwrap();
        }
    }
    let ns = Store::open(folder.path().to_str().unwrap(), options()).unwrap().namespace("a").unwrap();
    for p in positions() {
        let (got, reused, why) = loaded.answer(&ns, &tokens[..p], &tokens[p..p + MORE]);
        let nearest = kept.into_iter().rev().find(|&at| at <= p).unwrap_or(0);
        assert_eq!(reused, nearest, "position {p}: {why:?}");
        assert!(why.is_some() || reused == p);
        assert!(same(&got, &rows[p - 1..p + MORE]), "position {p}");
    }
}
