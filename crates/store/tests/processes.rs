//! Several threads, stores and processes on one folder, and processes that are killed.
#![allow(missing_docs)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::*;
use fathom_store::{Namespace, NewSnapshot, Options};

/// One step of a busy user, chosen by a number: saving sessions that grow and fork, loading, removing, collecting, and
/// evicting with the quota of `tight`, which is the same namespace. Says which before it begins.
fn step(ns: &Namespace, tight: &Namespace, random: u32, doing: &mut dyn FnMut(&'static str)) {
    let all = tokens(random % 3, 24);
    let mut some = all[..3 + (random / 3 % 22) as usize].to_vec();
    if random / 71 % 2 == 1 {
        let last = some.len() - 1;
        some[last] += 1;
    }
    match random / 142 % 16 {
        0..11 => {
            doing("save");
            let new = NewSnapshot { tokens: &some, pinned: random.is_multiple_of(17), ..NewSnapshot::default() };
            save_as(ns, &subject(), &new).unwrap();
        }
        11 => {
            doing("remove");
            let list = ns.list().unwrap();
            if let Some(one) = list.get(random as usize % list.len().max(1)) {
                // Others may be faster.
                let _ = ns.remove(&one.id);
            }
        }
        12 => {
            doing("collect");
            ns.store().collect().unwrap();
        }
        13 => {
            doing("evict");
            tight.store().collect().unwrap();
        }
        _ => {
            doing("load");
            if let Some(best) = ns.find(&subject(), &some).unwrap().best {
                match check(ns, &best.id) {
                    Ok(tokens) => assert_eq!(tokens, some[..best.position]),
                    Err(error) => assert!(error.is_lost(), "{error}"),
                }
            }
        }
    }
}

#[test]
fn many_make_one_store_at_once() {
    for round in 0..60 {
        let folder = new_folder();
        // Nobody has made it yet, or somebody its folder only.
        let path = if round % 2 == 0 { folder.path().join("store") } else { folder.path().to_owned() };
        let start = std::sync::Barrier::new(16);
        std::thread::scope(|scope| {
            for seed in 0..16 {
                let (path, start) = (&path, &start);
                scope.spawn(move || {
                    start.wait();
                    save(&open(path, options()).namespace("a").unwrap(), &tokens(seed, 3));
                });
            }
        });
        assert_eq!(open(&path, options()).namespace("a").unwrap().list().unwrap().len(), 16);
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
    // Until then it may be writing down what was just used.
    drop((store, ns));
    assert_eq!(of_kind(path, "objects").len(), named.len());
    for kind in ["pending", "condemned", "damaged"] {
        assert_eq!(of_kind(path, kind), [] as [PathBuf; 0]);
    }
    assert!(files(path).iter().all(|file| !file.to_string_lossy().contains('#')));
    listed.len()
}

/// No object is ever young; writers that are at work are not given up.
fn busy() -> Options {
    Options { grace: Duration::ZERO, ..options() }
}

/// Room for a few snapshots of [`step`]'s.
fn tight() -> Options {
    Options { quota: 12_000, ..busy() }
}

#[test]
fn eight_threads_and_two_stores() {
    let folder = new_folder();
    let stores = [open(folder.path(), busy()), open(folder.path(), busy())];
    let tight = open(folder.path(), tight());
    std::thread::scope(|scope| {
        for thread in 0..8u32 {
            let ns = stores[thread as usize % 2].namespace("a").unwrap();
            let tight = tight.namespace("a").unwrap();
            scope.spawn(move || {
                for i in 0..60 {
                    step(&ns, &tight, (thread * 60 + i).wrapping_mul(2_654_435_761) >> 7, &mut |_| {});
                }
            });
        }
    });
    drop((stores, tight));
    whole(folder.path());
}

#[test]
fn readers_beside_writers_beside_a_collector() {
    let folder = new_folder();
    let store = open(folder.path(), busy());
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
        let few = || loads.load(Ordering::Relaxed) <= 10 && start.elapsed() < Duration::from_secs(60);
        while start.elapsed() < Duration::from_millis(700) || few() {
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
    let mut note = fs::File::create(Path::new(&path).with_extension(seed.to_string())).unwrap();
    let mut doing = |what: &'static str| writeln!(note, "{what}").unwrap();
    doing("open");
    let [ns, tight] = [busy(), tight()].map(|options| open(Path::new(&path), options).namespace("a").unwrap());
    for i in 0.. {
        step(&ns, &tight, (seed.wrapping_mul(104_729) + i).wrapping_mul(2_654_435_761) >> 7, &mut doing);
    }
}

/// `FATHOM_TEST_KILLS=300` makes it so many rounds, on a disk, whose syncs leave time to be killed in. Each round kills two
/// processes. Prints what they were doing, and what they left.
#[test]
fn killed_at_any_moment() {
    let asked = std::env::var("FATHOM_TEST_KILLS").ok();
    let folder = if asked.is_some() { tempfile::tempdir().unwrap() } else { new_folder() };
    let path = folder.path().join("store");
    let rounds: u32 = asked.map_or(20, |n| n.parse().unwrap());
    let (mut most, mut counts) = (0, BTreeMap::<String, u32>::new());
    for round in 0..rounds {
        let children = [2 * round, 2 * round + 1].map(|seed| (seed, child(&path, seed)));
        std::thread::sleep(Duration::from_millis(60 + u64::from(round * 37 % 101)));
        for (seed, mut child) in children {
            if child.0.try_wait().unwrap().is_some() {
                let mut said = String::new();
                child.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
                panic!("the child failed by itself: {said}");
            }
            drop(child);
            let note = path.with_extension(seed.to_string());
            let did = fs::read_to_string(&note).unwrap_or_default();
            *counts.entry(format!("killed in {}", did.lines().last().unwrap_or("start"))).or_default() += 1;
            let _ = fs::remove_file(note);
        }
        // Neither may have come to make it.
        fs::create_dir_all(&path).unwrap();
        for kind in ["pending", "condemned"] {
            *counts.entry(format!("left {kind}")).or_default() += u32::from(!of_kind(&path, kind).is_empty());
        }
        let unfinished = files(&path).iter().any(|file| file.to_string_lossy().contains('#'));
        *counts.entry("left unfinished files".into()).or_default() += u32::from(unfinished);
        most = most.max(whole(&path));
    }
    println!("{rounds} rounds: {counts:?}");
    assert!(most > 0);
}

/// A process that is killed when this is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn child(path: &Path, seed: u32) -> Killed {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "busy_child", "--nocapture"])
        .env("FATHOM_TEST_STORE", path)
        .env("FATHOM_TEST_SEED", seed.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    Killed(child.unwrap())
}
