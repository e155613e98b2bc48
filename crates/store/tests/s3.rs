//! A store in a bucket, behind a proxy that spoils what it is told to.
//!
//! `moto_server -p 5000` (PyPI `moto[server]`), then
//! `FATHOM_TEST_S3=127.0.0.1:5000 cargo test -p fathom-store --features s3 --test s3`. Without that variable the test
//! says that it was skipped.
#![cfg(feature = "s3")]
#![allow(missing_docs)]

mod common;
#[path = "common/proxy.rs"]
mod proxy;

use std::net::TcpListener;
use std::process::Command;

use common::*;
use fathom_store::{Error, NewSnapshot, Options, Store};
use proxy::{Mode, Proxy};

/// The child half of the test below, with the variables set; alone it does nothing.
#[test]
fn child() {
    let (Ok(server), Ok(port)) = (std::env::var("FATHOM_TEST_S3"), std::env::var("FATHOM_TEST_PROXY")) else { return };
    let proxy = Proxy::start(&server, &port);
    proxy.make_bucket();
    for (i, options) in variants().into_iter().enumerate() {
        let open = |options| Store::open(&format!("s3://fathom/some/prefix-{i}"), options).unwrap();
        let store = open(Options { grace: std::time::Duration::ZERO, ..options.clone() });
        let ns = store.namespace("a").unwrap();
        let all = tokens(1, 3 * PAGE + 2);
        let (one, two) = (save(&ns, &all[..6]), save(&ns, &all));
        assert_eq!((one.new_pages, two.new_pages), (1, 2));
        ns.pin(&one.id, true).unwrap();
        let other = open(options.clone());
        let theirs = other.namespace("a").unwrap();
        assert_eq!(check(&theirs, &two.id).unwrap(), all);
        assert!(theirs.show(&one.id).unwrap().pinned);
        assert_eq!(other.usage().unwrap().objects, 5);
        // Two writers of one secret, and of one object.
        assert_eq!(save(&theirs, &all).bytes_written, 0);
        let mut file = Vec::new();
        ns.export(&two.id, &mut file).unwrap();
        assert_eq!(theirs.import(&mut &file[..]).unwrap().new_pages, 0);

        proxy.set(Mode::Sometimes);
        assert_eq!(check(&theirs, &two.id).unwrap(), all);
        let three = save(&theirs, &tokens(2, 6)).id;
        proxy.set(Mode::Honest);
        assert_eq!(check(&ns, &three).unwrap(), tokens(2, 6));
        ns.remove(&three).unwrap();

        proxy.set(Mode::Slow);
        assert_eq!(check(&theirs, &two.id).unwrap(), all);

        proxy.set(Mode::Spoil);
        let error = check(&theirs, &two.id).unwrap_err();
        assert!(matches!(error, Error::Damaged { .. }), "{error}");
        proxy.set(Mode::Honest);
        // What was taken for damaged is made again.
        let new = NewSnapshot { tokens: &all, name: Some("again"), ..NewSnapshot::default() };
        for _ in 0..8 {
            let (again, _) = save_as(&theirs, &subject(), &new).unwrap();
            if check(&theirs, &again.id).is_ok() {
                break;
            }
        }
        assert_eq!(check(&open(options.clone()).namespace("a").unwrap(), &two.id).unwrap(), all);

        for snapshot in ns.list().unwrap() {
            ns.remove(&snapshot.id).unwrap();
        }
        store.collect().unwrap();
        let usage = store.usage().unwrap();
        assert_eq!((usage.objects, usage.snapshots), (0, 0), "{usage:?}");
    }
    let ns = Store::open("s3://fathom/down", options()).unwrap().namespace("a").unwrap();
    proxy.set(Mode::Refuse);
    let error = ns.find(&subject(), &tokens(1, 9)).unwrap_err();
    assert!(matches!(error, Error::Access { .. }), "{error}");
}

#[test]
fn buckets() {
    let Ok(server) = std::env::var("FATHOM_TEST_S3") else {
        return println!("skipped: FATHOM_TEST_S3 names no server");
    };
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env("FATHOM_TEST_S3", server)
        .env("FATHOM_TEST_PROXY", &port)
        .envs(proxy::environment(&port))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
