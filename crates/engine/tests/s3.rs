//! Sessions by way of a bucket, behind a proxy that spoils what it is told to.
//!
//! `moto_server -p 5000` (PyPI `moto[server]`), then
//! `FATHOM_TEST_S3=127.0.0.1:5000 cargo test --release -p fathom-engine --features s3 --test s3`. Without that variable the
//! test says that it was skipped. `FATHOM_TEST_TIMES=100` looks at all positions 1 to 700.
#![cfg(feature = "s3")]
#![allow(missing_docs)]

mod common;
#[path = "../../store/tests/common/proxy.rs"]
mod proxy;

use std::collections::BTreeSet;
use std::net::TcpListener;

use common::*;
use fathom_store::{Error, Store};
use proxy::{Mode, Proxy};

const MORE: usize = 40;
/// Where the proxy spoils what it can.
const POSITIONS: [usize; 10] = [1, 31, 32, 33, 127, 128, 129, 402, 700, 1030];

/// Those, and others where it passes everything on.
fn all() -> BTreeSet<usize> {
    (1..=700).step_by(97usize.div_ceil(times())).chain(POSITIONS).collect()
}

/// The child half of the test below, with the variables set; alone it does nothing.
#[test]
fn through_the_proxy() {
    let (Ok(server), Ok(port)) = (std::env::var("FATHOM_TEST_S3"), std::env::var("FATHOM_TEST_PROXY")) else { return };
    let proxy = Proxy::start(&server, &port);
    proxy.make_bucket();
    let loaded = Loaded::tiny();
    let tokens = loaded.tokens(1, 1100);
    let rows = loaded.straight(&tokens);
    for (i, options) in [options(), packed(), secret()].into_iter().enumerate() {
        let open = |what: &str| {
            let place = format!("s3://fathom/{what}-{}-{i}", std::process::id());
            Store::open(&place, options.clone()).unwrap().namespace("a").unwrap()
        };
        for (what, positions) in [("all", all()), ("some", POSITIONS.into())] {
            let ns = open(what);
            let mut state = loaded.model.new_state().unwrap();
            for p in positions {
                let from = state.position();
                let logits = loaded.read(&mut state, &tokens[from..p]);
                loaded.save(&state, &tokens[..p], &logits, &ns).unwrap();
            }
        }
        let ns = open("all");
        for p in all() {
            let (got, reused, why) = loaded.answer(&ns, &tokens[..p], &tokens[p..p + MORE]);
            assert_eq!((reused, why), (p, None));
            assert!(same(&got, &rows[p - 1..p + MORE]), "position {p}");
        }
        drop(ns);
        let modes = [Mode::Sometimes, Mode::Slow, Mode::Spoil];
        for (mode, p) in modes.into_iter().flat_map(|mode| POSITIONS.map(|p| (mode, p))) {
            // The slow ones take their time; one short and one with a page will do.
            if mode == Mode::Slow && p != 33 && p != 1030 {
                continue;
            }
            proxy.set(Mode::Honest);
            let ns = open("some");
            proxy.set(mode);
            let (got, reused, why) = loaded.answer(&ns, &tokens[..p], &tokens[p..p + MORE]);
            assert!(same(&got, &rows[p - 1..p + MORE]), "{mode:?}, position {p}");
            assert_eq!(why.is_some(), reused < p);
            if mode == Mode::Spoil {
                assert!(reused < p && why.as_ref().unwrap().contains("damaged"), "{why:?}");
                // What was taken for damaged is saved again.
                proxy.set(Mode::Honest);
                let mut state = loaded.model.new_state().unwrap();
                let logits = loaded.read(&mut state, &tokens[..p]);
                loaded.save(&state, &tokens[..p], &logits, &ns).unwrap();
                assert_eq!(loaded.answer(&ns, &tokens[..p], &[]).1, p);
            } else {
                assert_eq!((reused, &why), (p, &None), "{mode:?}");
            }
        }
        proxy.set(Mode::Honest);
    }
    // Nothing answers: that has a name, and who can compute goes on.
    let ns = Store::open("s3://fathom/down", options()).unwrap().namespace("a").unwrap();
    proxy.set(Mode::Refuse);
    let error = loaded.resume(&ns, &tokens[..40]).unwrap_err();
    assert!(matches!(&error, fathom_engine::SnapshotError::Store(Error::Access { .. })), "{error}");
    let mut state = loaded.model.new_state().unwrap();
    let logits = loaded.read(&mut state, &tokens[..40]);
    assert!(same(std::slice::from_ref(&logits), &rows[39..40]));
    let error = loaded.save(&state, &tokens[..40], &logits, &ns).unwrap_err();
    assert!(matches!(&error, fathom_engine::SnapshotError::Store(Error::Access { .. })), "{error}");
    println!("refused: {error}");
}

#[test]
fn by_way_of_a_bucket() {
    let Ok(server) = std::env::var("FATHOM_TEST_S3") else {
        return println!("skipped: FATHOM_TEST_S3 names no server");
    };
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let mut child = child("through_the_proxy");
    child.env("FATHOM_TEST_S3", server).env("FATHOM_TEST_PROXY", &port).envs(proxy::environment(&port));
    let output = child.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    print!("{said}");
}
