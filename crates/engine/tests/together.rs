//! Eight writers and eight readers of sessions on one folder, each with a store of its own, beside a collector.
#![allow(missing_docs)]

mod common;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use common::*;
use fathom_engine::SnapshotError;
use fathom_store::{Error, Options, Store};

const LENGTH: usize = 1060;
/// Where sessions are saved; some share a full page.
const SAVED: [usize; 5] = [3, 90, 1000, 1030, 1055];

#[test]
fn eight_write_and_eight_read() {
    let (folder, loaded) = (new_folder(), Loaded::small());
    // Four sessions that share their first thousand tokens, and what follows each of their tokens.
    let sessions: Vec<_> = (0..4)
        .map(|seed| {
            let tokens = [loaded.tokens(0, 1000), loaded.tokens(seed, LENGTH - 1000)].concat();
            (loaded.straight(&tokens), tokens)
        })
        .collect();
    let place = folder.path().to_str().unwrap();
    // Nothing is ever young, and there is room for some of it only.
    let busy = || Options { grace: Duration::ZERO, quota: 300_000, ..options() };
    let open = || Store::open(place, busy()).unwrap().namespace("a").unwrap();
    let (done, reused) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for reader in 0..8 {
            let (loaded, sessions, done, reused) = (&loaded, &sessions, &done, &reused);
            scope.spawn(move || {
                let ns = open();
                for i in reader.. {
                    let (rows, tokens) = &sessions[i % 4];
                    let p = SAVED[i / 4 % 5] + i % 3;
                    let found = loaded.resume(&ns, &tokens[..p]).expect("others' writing fails no request");
                    if let Some(found) = found.resumed {
                        let at = found.state.position();
                        assert!(same(&[found.logits], &rows[at - 1..at]), "position {at} of session {}", i % 4);
                        // It goes on as it would have.
                        let mut state = found.state;
                        assert!(same(&loaded.append(&mut state, &tokens[at..=at]), &rows[at..=at]));
                        reused.fetch_add(1, Ordering::Relaxed);
                    }
                    if done.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
        }
        let collector = scope.spawn(|| {
            let ns = open();
            while !done.load(Ordering::Relaxed) {
                ns.store().collect().unwrap();
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let writers: Vec<_> = (0..8)
            .map(|writer| {
                let (loaded, sessions) = (&loaded, &sessions);
                scope.spawn(move || {
                    let ns = open();
                    for round in 0..2 * times() {
                        let (rows, tokens) = &sessions[(writer + round) % 4];
                        let mut state = loaded.model.new_state().unwrap();
                        for p in SAVED {
                            let from = state.position();
                            loaded.read(&mut state, &tokens[from..p]);
                            match loaded.save(&state, &tokens[..p], &rows[p - 1], &ns) {
                                // What seven others are writing may leave no room, and cannot be evicted.
                                Ok(_) | Err(SnapshotError::Store(Error::Quota { .. })) => {}
                                Err(other) => panic!("{other}"),
                            }
                        }
                    }
                })
            })
            .collect();
        let ended: Vec<_> = writers.into_iter().map(|writer| writer.join()).collect();
        done.store(true, Ordering::Relaxed);
        collector.join().unwrap();
        ended.into_iter().for_each(|end| end.unwrap());
    });
    println!("{} sessions resumed", reused.load(Ordering::Relaxed));
    assert!(reused.into_inner() > 0);
    let ns = open();
    assert_eq!(ns.store().verify().unwrap(), []);
    for (rows, tokens) in &sessions {
        let (got, ..) = loaded.answer(&ns, &tokens[..1055], &tokens[1055..1058]);
        assert!(same(&got, &rows[1054..1058]));
    }
}
