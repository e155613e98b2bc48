//! The format that `docs/snapshot-format.md` describes, as a store of it lies in `fixtures`.
#![allow(missing_docs)]

mod common;

use std::path::{Path, PathBuf};

use common::*;
use fathom_store::{Key, NewSnapshot, Options, Subject};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn copy(from: &Path, to: &Path) {
    for file in files(from) {
        let target = to.join(file.strip_prefix(from).unwrap());
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        std::fs::copy(file, target).unwrap();
    }
}

/// The stores of version 1: as they are, and compressed and encrypted.
fn stores() -> [(&'static str, Options); 2] {
    let key = Some(Key::new(*b"a key that everybody may know..."));
    [("v1-plain", options()), ("v1-packed", Options { key, compress: Some(3), ..options() })]
}

/// Both have the same snapshots: of a page, of nearly three, and of another profile with blocks of tokens.
fn contents() -> Vec<(Subject, Vec<u32>, &'static str)> {
    let blocks = Subject { page: 8200, profile: "exact-2".into(), ..subject() };
    vec![
        (subject(), tokens(1, PAGE), "first"),
        (subject(), tokens(1, 3 * PAGE - 1), "second"),
        (blocks, vec![129_000; 8300], "blocks"),
    ]
}

/// `FATHOM_MAKE_FIXTURES=1 cargo test -p fathom-store --test format` writes those that are not there.
#[test]
fn make() {
    if std::env::var_os("FATHOM_MAKE_FIXTURES").is_none() {
        return;
    }
    for (name, options) in stores().into_iter().filter(|(name, _)| !fixture(name).exists()) {
        let folder = new_folder();
        let ns = open(&folder.path().join("s"), options).namespace("default").unwrap();
        for (subject, tokens, name) in contents() {
            let new = NewSnapshot { tokens: &tokens, name: Some("draft"), ..NewSnapshot::default() };
            let id = save_as(&ns, &subject, &new).unwrap().0.id;
            ns.rename(&id, Some(name)).unwrap();
            ns.pin(&id, true).unwrap();
            ns.expire(&id, Some(2_000_000_000)).unwrap();
            if name == "second" {
                std::fs::create_dir_all(fixture("")).unwrap();
                ns.export(&id, &mut std::fs::File::create(fixture("v1.export")).unwrap()).unwrap();
            }
        }
        copy(&folder.path().join("s"), &fixture(name));
    }
}

#[test]
fn version_one_is_still_read() {
    for (name, options) in stores() {
        let folder = new_folder();
        copy(&fixture(name), folder.path());
        let store = open(folder.path(), options);
        let ns = store.namespace("default").unwrap();
        assert_eq!(ns.list().unwrap().len(), 3);
        for (subject, tokens, name) in contents() {
            let found = ns.find(&subject, &tokens).unwrap();
            let id = found.best.unwrap().id;
            assert_eq!(found.miss, None);
            assert_eq!(check(&ns, &id).unwrap(), tokens);
            let snapshot = ns.show(&id).unwrap();
            assert_eq!((snapshot.name.as_deref(), snapshot.pinned), (Some(name), true));
            assert_eq!(snapshot.expires, Some(2_000_000_000));
        }
        assert_eq!(store.verify().unwrap(), []);
        // And gone on with: nothing is written again that is there.
        let (subject, mut tokens, _) = contents().swap_remove(1);
        tokens.extend([1, 2]);
        let (_, asked) = save_as(&ns, &subject, &NewSnapshot { tokens: &tokens, ..NewSnapshot::default() }).unwrap();
        assert_eq!(asked, [2]);
    }
    let folder = new_folder();
    let ns = open(folder.path(), options()).namespace("x").unwrap();
    let id = ns.import(&mut std::fs::File::open(fixture("v1.export")).unwrap()).unwrap().id;
    assert_eq!(check(&ns, &id).unwrap(), contents()[1].1);
    assert_eq!(ns.show(&id).unwrap().name.as_deref(), Some("second"));
}
