//! Saving, finding, loading, removing.
#![allow(missing_docs)]

mod common;

use std::path::PathBuf;

use common::*;
use fathom_store::{Error, Found, Match, Miss, NewSnapshot, Options, Subject};
use proptest::prelude::*;

fn best(id: fathom_store::Id, position: usize) -> Option<Match> {
    Some(Match { id, position })
}

#[test]
fn every_position_comes_back() {
    for options in variants() {
        let folder = new_folder();
        let store = open(folder.path(), options.clone());
        let ns = store.namespace("a").unwrap();
        let all = tokens(1, 3 * PAGE + 2);
        let mut ids = Vec::new();
        for p in 1..=all.len() {
            let saved = save(&ns, &all[..p]);
            assert_eq!((saved.position, saved.new_pages), (p, usize::from(p % PAGE == 0)));
            ids.push(saved.id);
        }
        // Another process.
        drop((store, ns));
        let ns = open(folder.path(), options).namespace("a").unwrap();
        for (p, id) in (1..).zip(&ids) {
            assert_eq!(check(&ns, id).unwrap(), all[..p]);
            assert_eq!(ns.tokens(id).unwrap(), all[..p]);
            assert_eq!(ns.find(&subject(), &all[..p]).unwrap(), Found { best: best(*id, p), miss: None });
        }
        assert_eq!(ns.list().unwrap().len(), ids.len());
        assert!(ns.store().verify().unwrap().is_empty());
    }
}

#[test]
fn growth_writes_what_is_new() {
    let folder = new_folder();
    let ns = open(folder.path(), options()).namespace("a").unwrap();
    // Long enough for several blocks of tokens.
    let subject = Subject { page: 1000, ..subject() };
    let all = tokens(1, 50_500);
    // One may just get its name: the empty file that tells of a use.
    let size = |file: &PathBuf| file.metadata().map_or(0, |data| data.len());
    let save = |n: usize| {
        let new = NewSnapshot { tokens: &all[..n], ..NewSnapshot::default() };
        let before: u64 = files(folder.path()).iter().map(size).sum();
        let (saved, asked) = save_as(&ns, &subject, &new).unwrap();
        let after: u64 = files(folder.path()).iter().map(size).sum();
        // The count of the day's bytes is 96 bytes long and written over.
        let grown = after - before;
        assert!(saved.bytes_written == grown || saved.bytes_written + 96 == grown, "{saved:?} {grown}");
        (saved, asked)
    };
    let (first, asked) = save(48_200);
    assert_eq!(asked, (0..48).collect::<Vec<_>>());
    assert!(first.bytes_written > 48 * 170 + 48_200);
    let (second, asked) = save(50_100);
    assert_eq!(asked, [48, 49]);
    // Two pages, a tail, two names and keys more, and the tokens of a block at most.
    assert!(second.bytes_written < 2 * 400 + 300 + 51 * 72 + 16_384 * 3, "{second:?}");
    let (third, asked) = save(50_100);
    assert_eq!((third.id, third.new_pages, third.bytes_written, asked), (second.id, 0, 0, vec![]));
    let (fourth, asked) = save(50_200);
    assert_eq!(asked, []);
    assert!(fourth.bytes_written < second.bytes_written);
    for id in [first.id, second.id, fourth.id] {
        check(&ns, &id).unwrap();
    }
    // Where tokens differ in a block that is not in the manifest.
    let mut other = all.clone();
    other[20_123] += 1;
    let found = ns.find(&subject, &other).unwrap();
    assert_eq!(found.best, None);
    assert!(matches!(found.miss, Some(Miss::Differs { position: 20_123, .. })), "{found:?}");
}

#[test]
fn removing_erases_what_nothing_else_uses() {
    let folder = new_folder();
    let ns = open(folder.path(), options()).namespace("a").unwrap();
    let all = tokens(1, 3 * PAGE);
    let mut fork = all.clone();
    fork[2 * PAGE] += 1;
    let (one, two) = (save(&ns, &all).id, save(&ns, &fork).id);
    // Two shared pages, one of each, two tails.
    assert_eq!(of_kind(folder.path(), "objects").len(), 6);
    ns.pin(&two, true).unwrap();
    ns.remove(&two).unwrap();
    assert_eq!(of_kind(folder.path(), "objects").len(), 4);
    assert_eq!(of_kind(folder.path(), "marks").len(), 0);
    check(&ns, &one).unwrap();
    assert!(matches!(ns.load(&two), Err(Error::NoSnapshot { .. })));
    assert!(matches!(ns.remove(&two), Err(Error::NoSnapshot { .. })));
    let loaded = ns.load(&one).unwrap();
    assert!(ns.remove(&one).unwrap_err().to_string().contains("being read"));
    drop(loaded);
    ns.remove(&one).unwrap();
    for kind in ["objects", "manifests", "pending", "condemned"] {
        assert_eq!(of_kind(folder.path(), kind).len(), 0, "{kind}");
    }
    assert_eq!(ns.find(&subject(), &all).unwrap().miss, Some(Miss::Evicted { position: all.len() }));
}

#[test]
fn namespaces_do_not_see_each_other() {
    let folder = new_folder();
    let store = open(folder.path(), options());
    let (a, b) = (store.namespace("a").unwrap(), store.namespace("b").unwrap());
    let all = tokens(1, 9);
    let id = save(&a, &all).id;
    assert_eq!(b.find(&subject(), &all).unwrap(), Found { best: None, miss: Some(Miss::Nothing) });
    assert!(matches!(b.load(&id), Err(Error::NoSnapshot { .. })));
    assert!(b.list().unwrap().is_empty());
    assert_eq!(save(&b, &all).new_pages, 2);
    assert_eq!(store.namespaces().unwrap(), ["a", "b"]);
    for wrong in ["", "A", "a/b", "..", &"a".repeat(65)] {
        assert!(matches!(store.namespace(wrong), Err(Error::Request { .. })), "{wrong}");
    }
}

#[test]
fn why_not_more() {
    let folder = new_folder();
    let store = open(folder.path(), options());
    let ns = store.namespace("a").unwrap();
    let all = tokens(1, 5 * PAGE);
    let find = |tokens: &[u32]| ns.find(&subject(), tokens).unwrap();
    assert_eq!(find(&all), Found { best: None, miss: Some(Miss::Nothing) });
    let long = save(&ns, &all[..15]).id;
    assert_eq!(find(&all), Found { best: best(long, 15), miss: Some(Miss::End) });
    assert_eq!(find(&all[..14]), Found { best: None, miss: Some(Miss::NoTail { snapshot: long, position: 14 }) });
    assert_eq!(find(&all[..3]), Found { best: None, miss: Some(Miss::NoTail { snapshot: long, position: 3 }) });
    for position in [1, 3, 4, 7, 8, 13] {
        let mut other = all.clone();
        other[position] += 1;
        assert_eq!(find(&other), Found { best: None, miss: Some(Miss::Differs { snapshot: long, position }) });
    }
    let short = save(&ns, &all[..6]).id;
    assert_eq!(find(&all[..14]).best, best(short, 6));
    let mut other = all.clone();
    other[6] += 1;
    assert_eq!(find(&other), Found { best: best(short, 6), miss: Some(Miss::End) });
    other[6] -= 1;
    other[9] += 1;
    let differs = Some(Miss::Differs { snapshot: long, position: 9 });
    assert_eq!(find(&other), Found { best: best(short, 6), miss: differs });
    other[0] += 1;
    assert_eq!(find(&other), Found { best: None, miss: Some(Miss::Nothing) });

    let exact = Subject { profile: "exact-2".into(), ..subject() };
    let miss = ns.find(&exact, &all).unwrap().miss;
    assert_eq!(miss, Some(Miss::OtherProfile { position: 15, profile: "native-2".into() }));
    let model = Subject { model: [8; 32], ..subject() };
    assert_eq!(ns.find(&model, &all).unwrap().miss, Some(Miss::OtherModel { position: 15 }));

    ns.expire(&long, Some(1)).unwrap();
    assert_eq!(find(&all), Found { best: best(short, 6), miss: Some(Miss::Evicted { position: 15 }) });
    assert_eq!(ns.list().unwrap().len(), 1);
    ns.pin(&long, true).unwrap();
    assert_eq!(find(&all).best, best(long, 15));
    ns.pin(&long, false).unwrap();
    ns.expire(&long, None).unwrap();
    ns.remove(&long).unwrap();
    assert_eq!(find(&all), Found { best: best(short, 6), miss: Some(Miss::Evicted { position: 15 }) });
}

#[test]
fn names_pins_and_limits() {
    let folder = new_folder();
    let ns = open(folder.path(), options()).namespace("a").unwrap();
    let all = tokens(1, 6);
    let new = NewSnapshot { tokens: &all, name: Some("one"), ..NewSnapshot::default() };
    let (one, _) = save_as(&ns, &subject(), &new).unwrap();
    let two = NewSnapshot { name: Some("two"), pinned: true, parent: Some(one.id), expires: Some(9), ..new };
    let (two, asked) = save_as(&ns, &subject(), &two).unwrap();
    assert_eq!((asked.len(), two.new_pages), (0, 0));
    assert_ne!(one.id, two.id);
    let (same, _) = save_as(&ns, &subject(), &NewSnapshot { pinned: true, ..new }).unwrap();
    assert_eq!(same.id, one.id);
    let other = open(folder.path(), options()).namespace("a").unwrap();
    for ns in [&ns, &other] {
        let (one, two) = (ns.show(&one.id).unwrap(), ns.show(&two.id).unwrap());
        assert_eq!((one.name.as_deref(), one.pinned, one.expires, one.parent), (Some("one"), true, None, None));
        assert_eq!((two.name.as_deref(), two.pinned, two.expires), (Some("two"), true, Some(9)));
        assert_eq!((two.parent, two.position, two.pages), (Some(one.id), 6, 1));
        assert!(one.created > 1_700_000_000 && one.used >= one.created && one.bytes > 150);
    }
    ns.rename(&two.id, None).unwrap();
    other.pin(&two.id, false).unwrap();
    other.refresh().unwrap();
    ns.refresh().unwrap();
    for ns in [&ns, &other] {
        let two = ns.show(&two.id).unwrap();
        assert_eq!((two.name, two.pinned), (None, false));
    }
    assert!(ns.rename(&two.id, Some(&"x".repeat(2000))).is_err());
    let empty = NewSnapshot::default();
    assert!(matches!(save_as(&ns, &subject(), &empty), Err(Error::Request { .. })));
    let wrong = Subject { page: 0, ..subject() };
    assert!(matches!(save_as(&ns, &wrong, &new), Err(Error::Request { .. })));
    assert!(matches!(ns.find(&wrong, &all), Err(Error::Request { .. })));
    let failing = ns.save(&subject(), &NewSnapshot { tokens: &tokens(2, 9), ..new }, &mut |_| Err("no".into()), b"");
    assert_eq!(failing.unwrap_err().to_string(), "page 0 could not be made: no");
    assert_eq!(ns.list().unwrap().len(), 1, "two has expired");
}

#[test]
fn what_was_used_is_written_down_by_the_end_and_goes_with_it() {
    let folder = new_folder();
    let ids = (0..100).map(|i| save(&open(folder.path(), options()).namespace("a").unwrap(), &tokens(i, 3)).id);
    for id in ids.collect::<Vec<_>>() {
        check(&open(folder.path(), options()).namespace("a").unwrap(), &id).unwrap();
        let used = folder.path().join(format!("namespaces/a/marks/{id}.used"));
        assert!(used.exists(), "the use of {id}");
        assert!(files(folder.path()).iter().all(|file| !file.to_string_lossy().contains('#')));
        open(folder.path(), options()).namespace("a").unwrap().remove(&id).unwrap();
        assert!(!used.exists(), "the use of {id}");
    }
    assert_eq!(of_kind(folder.path(), "marks"), [] as [PathBuf; 0]);
}

#[test]
fn keys_are_asked_for_and_compared() {
    let folder = new_folder();
    let with = |byte: u8| Options { key: Some(fathom_store::Key::new([byte; 32])), ..options() };
    let secret = tokens(5, 9);
    let store = open(folder.path(), with(1));
    let new = NewSnapshot { tokens: &secret, name: Some("my secret session"), ..NewSnapshot::default() };
    let (saved, _) = save_as(&store.namespace("a").unwrap(), &subject(), &new).unwrap();
    store.namespace("a").unwrap().rename(&saved.id, Some("another secret")).unwrap();
    drop(store);
    let plain: Vec<u8> = page(&subject(), &secret, 0);
    for file in files(folder.path()) {
        let bytes = std::fs::read(&file).unwrap();
        for needle in [&b"secret session"[..], b"another secret", &plain[..32], b"native-2"] {
            assert!(!bytes.windows(needle.len()).any(|some| some == needle), "{}", file.display());
        }
        // Nor does a name tell which bytes it has.
        assert!(!file.ends_with(blake3::hash(&plain).to_hex().as_str()));
    }
    for wrong in [with(2), options()] {
        let error = open(folder.path(), wrong).namespace("a").unwrap_err();
        assert!(matches!(error, Error::Key { .. }), "{error}");
        assert!(error.to_string().contains("key"), "{error}");
    }
    let other = new_folder();
    open(other.path(), options()).namespace("a").unwrap();
    assert!(matches!(open(other.path(), with(1)).namespace("a"), Err(Error::Key { .. })));
}

#[test]
fn out_and_in_again() {
    let folder = new_folder();
    let ns = open(folder.path(), options()).namespace("a").unwrap();
    let all = tokens(3, 2 * PAGE + 3);
    let new = NewSnapshot { tokens: &all, name: Some("moved"), ..NewSnapshot::default() };
    let id = save_as(&ns, &subject(), &new).unwrap().0.id;
    let mut file = Vec::new();
    ns.export(&id, &mut file).unwrap();
    for options in variants() {
        let folder = new_folder();
        let other = open(folder.path(), options).namespace("b").unwrap();
        let saved = other.import(&mut &file[..]).unwrap();
        assert_eq!(saved.new_pages, 2);
        assert_eq!(check(&other, &saved.id).unwrap(), all);
        assert_eq!(other.show(&saved.id).unwrap().name.as_deref(), Some("moved"));
        assert_eq!(other.import(&mut &file[..]).unwrap().id, saved.id);
        assert_eq!(other.find(&subject(), &all).unwrap().best, best(saved.id, all.len()));
    }
    let folder = new_folder();
    let other = open(folder.path(), options()).namespace("b").unwrap();
    for at in 0..file.len() {
        let mut wrong = file.clone();
        wrong[at] ^= 1 << (at % 8);
        assert!(other.import(&mut &wrong[..]).is_err(), "byte {at}");
        if at % 7 == 0 {
            assert!(matches!(other.import(&mut &file[..at]), Err(Error::Import { .. })), "cut at {at}");
        }
    }
    assert!(other.import(&mut &[&file[..], b"x"].concat()[..]).is_err());
    assert!(other.list().unwrap().is_empty());
}

#[test]
fn what_is_not_a_store() {
    let folder = new_folder();
    std::fs::write(folder.path().join("thesis.txt"), b"").unwrap();
    let at = |location: &str| fathom_store::Store::open(location, options());
    let path = folder.path().to_str().unwrap();
    assert!(at(path).unwrap_err().to_string().contains("thesis.txt"));
    assert!(matches!(at("ftp://host/x"), Err(Error::Location { .. })));
    #[cfg(not(feature = "s3"))]
    assert!(at("s3://bucket/x").unwrap_err().to_string().contains("--features s3"));
    std::fs::remove_file(folder.path().join("thesis.txt")).unwrap();
    drop(at(path).unwrap());
    std::fs::write(folder.path().join("fathom-store"), b"fathom store 2\n").unwrap();
    assert!(matches!(at(path), Err(Error::Newer { version: 2, .. })));
    std::fs::write(folder.path().join("fathom-store"), b"something else").unwrap();
    assert!(matches!(at(path), Err(Error::Location { .. })));
    std::fs::write(folder.path().join("fathom-store"), b"fathom store 1\n").unwrap();
    assert!(at(&format!("file://{path}")).is_ok());
}

#[test]
fn only_the_owner_may_look() {
    use std::os::unix::fs::PermissionsExt;
    let folder = new_folder();
    let path = folder.path().join("store");
    let ns = open(&path, options()).namespace("a").unwrap();
    let id = save(&ns, &tokens(1, 9)).id;
    ns.pin(&id, true).unwrap();
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o700);
    for file in files(&path).into_iter().chain([path.join("cache.redb")]) {
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{}", file.display());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn any_bytes_to_import(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        random: bool,
    ) {
        let folder = new_folder();
        let options = Options { cache: Some("/nonexistent/x".into()), ..options() };
        let ns = open(folder.path(), options).namespace("a").unwrap();
        let mut file = [&b"fathomex\x01\0\0\0\0\0\0\0"[..], &bytes].concat();
        if !random {
            let all = tokens(3, 6);
            let mut head = vec![7; 32];
            head.extend(4u32.to_le_bytes());
            head.extend([1, 0, b'n', 0, 0, 0]);
            head.extend(6u64.to_le_bytes());
            head.extend(all.iter().map(|t| *t as u8 & 0x7f));
            file.truncate(16);
            file.extend((head.len() as u64).to_le_bytes());
            file.extend(head);
            file.extend(0u64.to_le_bytes());
            file.extend(bytes);
            for (at, byte) in changes {
                let at = at.index(file.len());
                file[at] = byte;
            }
        }
        prop_assert!(ns.import(&mut &file[..]).is_err());
        prop_assert!(ns.list().unwrap().is_empty());
    }
}
