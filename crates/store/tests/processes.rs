//! Several threads, stores and processes on one folder, and processes that are killed.
#![allow(missing_docs)]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::*;
use fathom_store::{Namespace, NewSnapshot, Options};

/// One step of a busy user, chosen by a number: saving sessions that grow and fork, loading, removing, collecting.
fn step(ns: &Namespace, random: u32) {
    let all = tokens(random % 3, 24);
    let mut some = all[..3 + (random / 3 % 22) as usize].to_vec();
    if random / 71 % 2 == 1 {
        let last = some.len() - 1;
        some[last] += 1;
    }
    match random / 142 % 8 {
        0..4 => {
            let new = NewSnapshot { tokens: &some, pinned: random.is_multiple_of(17), ..NewSnapshot::default() };
            save_as(ns, &subject(), &new).unwrap();
        }
        4 => {
            let list = ns.list().unwrap();
            if let Some(one) = list.get(random as usize % list.len().max(1)) {
                // Others may be faster.
                let _ = ns.remove(&one.id);
            }
        }
        5 => drop(ns.store().collect().unwrap()),
        _ => {
            if let Some(best) = ns.find(&subject(), &some).unwrap().best {
                match check(ns, &best.id) {
                    Ok(tokens) => assert_eq!(tokens, some[..best.position]),
                    Err(error) => assert!(error.is_lost(), "{error}"),
                }
            }
        }
    }
}

/// Everything that is listed loads, and what nobody names goes.
fn whole(path: &Path) -> usize {
    let store = open(path, options());
    let ns = store.namespace("a").unwrap();
    let listed = ns.list().unwrap();
    for snapshot in &listed {
        check(&ns, &snapshot.id).unwrap();
    }
    assert_eq!(store.verify().unwrap(), []);
    drop((store, ns));
    let store = open(path, old());
    store.collect().unwrap();
    let ns = store.namespace("a").unwrap();
    assert_eq!(ns.list().unwrap().len(), listed.len());
    let mut named = std::collections::HashSet::new();
    for snapshot in &listed {
        let all = check(&ns, &snapshot.id).unwrap();
        named.insert(blake3::hash(&tail(&subject(), &all)));
        named.extend((0..all.len() / PAGE).map(|i| blake3::hash(&page(&subject(), &all, i))));
    }
    assert_eq!(of_kind(path, "objects").len(), named.len());
    for kind in ["pending", "condemned", "damaged"] {
        assert_eq!(of_kind(path, kind), [] as [PathBuf; 0]);
    }
    assert!(files(path).iter().all(|file| !file.to_string_lossy().contains('#')));
    listed.len()
}

#[test]
fn eight_threads_and_two_stores() {
    let folder = new_folder();
    // No object is ever young; writers that are at work are not given up.
    let busy = || Options { grace: Duration::ZERO, ..options() };
    let stores = [open(folder.path(), busy()), open(folder.path(), busy())];
    std::thread::scope(|scope| {
        for thread in 0..8u32 {
            let ns = stores[thread as usize % 2].namespace("a").unwrap();
            scope.spawn(move || {
                for i in 0..60 {
                    step(&ns, (thread * 60 + i).wrapping_mul(2_654_435_761) >> 7);
                }
            });
        }
    });
    drop(stores);
    whole(folder.path());
}

#[test]
fn readers_beside_writers_beside_a_collector() {
    let folder = new_folder();
    let store = open(folder.path(), Options { grace: Duration::ZERO, ..options() });
    let kept = save(&store.namespace("a").unwrap(), &tokens(1, 20));
    store.namespace("a").unwrap().pin(&kept.id, true).unwrap();
    let (done, loads) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let ns = open(folder.path(), options()).namespace("a").unwrap();
                while !done.load(Ordering::Relaxed) {
                    // Its pages are named by others that come and go; it is never disturbed.
                    assert_eq!(check(&ns, &kept.id).unwrap(), tokens(1, 20));
                    loads.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                store.collect().unwrap();
            }
        });
        let ns = open(folder.path(), options()).namespace("a").unwrap();
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(700) {
            for n in [18, 22, 24] {
                let id = save(&ns, &tokens(1, n)).id;
                assert_eq!(check(&ns, &id).unwrap(), tokens(1, n));
                ns.remove(&id).unwrap();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(loads.into_inner() > 10);
    assert_eq!(whole(folder.path()), 1);
}

/// The child half of the test below; alone it does nothing.
#[test]
fn busy_child() {
    let Ok(path) = std::env::var("FATHOM_TEST_STORE") else { return };
    let seed: u32 = std::env::var("FATHOM_TEST_SEED").unwrap().parse().unwrap();
    let store = open(Path::new(&path), Options { grace: Duration::ZERO, ..options() });
    let ns = store.namespace("a").unwrap();
    for i in 0.. {
        step(&ns, (seed.wrapping_mul(104_729) + i).wrapping_mul(2_654_435_761) >> 7);
    }
}

#[test]
fn killed_at_any_moment() {
    let folder = new_folder();
    let rounds: u32 = std::env::var("FATHOM_TEST_KILLS").map_or(20, |n| n.parse().unwrap());
    let mut most = 0;
    for round in 0..rounds {
        let children: Vec<_> = (0..2)
            .map(|i| {
                Command::new(std::env::current_exe().unwrap())
                    .args(["--exact", "busy_child", "--nocapture"])
                    .env("FATHOM_TEST_STORE", folder.path())
                    .env("FATHOM_TEST_SEED", (2 * round + i).to_string())
                    .stdout(Stdio::null())
                    .stderr(Stdio::piped())
                    .spawn()
                    .unwrap()
            })
            .collect();
        std::thread::sleep(Duration::from_millis(60 + u64::from(round * 37 % 101)));
        for mut child in children {
            assert!(child.try_wait().unwrap().is_none(), "the child failed by itself: {:?}", {
                let output = child.wait_with_output().unwrap();
                String::from_utf8_lossy(&output.stderr).into_owned()
            });
            child.kill().unwrap();
            child.wait().unwrap();
        }
        most = most.max(whole(folder.path()));
    }
    assert!(most > 0);
}
