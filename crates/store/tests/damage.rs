//! Files that are not what was written: never wrong bytes, always a named reason.
#![allow(missing_docs)]

mod common;

use std::fs;
use std::path::Path;

use common::*;
use fathom_store::{Error, Id, Key, Miss, NewSnapshot, Options, Store};

/// A store with three snapshots that share pages, and their tokens.
fn small(path: &Path, options: Options) -> Vec<(Id, Vec<u32>)> {
    let ns = open(path, options).namespace("a").unwrap();
    let all = tokens(1, 2 * PAGE + 1);
    let mut fork = all[..PAGE + 2].to_vec();
    fork[PAGE] += 1;
    let mut ids = Vec::new();
    for tokens in [&all[..PAGE], &all, &fork] {
        let new = NewSnapshot { tokens, name: Some("s"), ..NewSnapshot::default() };
        ids.push((save_as(&ns, &subject(), &new).unwrap().0.id, tokens.to_vec()));
    }
    ns.pin(&ids[1].0, true).unwrap();
    ns.rename(&ids[2].0, Some("t")).unwrap();
    ids
}

fn no_cache(options: Options) -> Options {
    // A place where no file can be made.
    Options { cache: Some("/nonexistent/cache".into()), ..options }
}

/// Whatever is wrong: what loads is right, what does not says why, find never fails, and all can be saved again.
fn survives(path: &Path, options: Options, ids: &[(Id, Vec<u32>)], what: &str) {
    let store = match Store::open(path.to_str().unwrap(), no_cache(options)) {
        Ok(store) => store,
        Err(error) => return assert!(matches!(error, Error::Location { .. } | Error::Newer { .. }), "{what}: {error}"),
    };
    let ns = match store.namespace("a") {
        Ok(ns) => ns,
        Err(error) => {
            assert!(matches!(error, Error::Location { .. } | Error::Key { .. }), "{what}: {error}");
            return assert!(error.to_string().contains("secret"), "{what}: {error}");
        }
    };
    for (id, tokens) in ids {
        match check(&ns, id) {
            Ok(loaded) => assert_eq!(loaded, *tokens, "{what}"),
            Err(error) => assert!(error.is_lost(), "{what}: {error}"),
        }
    }
    for (_, tokens) in ids {
        let found = ns.find(&subject(), tokens).unwrap();
        if let Some(best) = found.best {
            assert_eq!(check(&ns, &best.id).unwrap(), tokens[..best.position], "{what}");
        }
    }
    for (_, tokens) in ids {
        // Each try finds one damaged object, and the next makes it again.
        let again = (0..4).find_map(|_| check(&ns, &save(&ns, tokens).id).ok());
        assert_eq!(again.as_ref(), Some(tokens), "{what}");
    }
}

#[test]
fn every_byte_flipped() {
    let key = Some(Key::new([1; 32]));
    for (options, step) in [(options(), 1), (Options { key, compress: Some(1), ..options() }, 7)] {
        let folder = new_folder();
        let ids = small(&folder.path().join("s"), options.clone());
        let whole: Vec<_> = files(folder.path()).into_iter().map(|path| (fs::read(&path).unwrap(), path)).collect();
        assert!(whole.len() > 10);
        let mut flips = 0;
        for (bytes, path) in &whole {
            for at in (flips % step..bytes.len()).step_by(step) {
                let mut wrong = bytes.clone();
                wrong[at] ^= 1 << (at % 8);
                fs::write(path, &wrong).unwrap();
                flips += 1;
                let store = Store::open(folder.path().join("s").to_str().unwrap(), no_cache(options.clone()));
                if let Ok(ns) = store.and_then(|store| store.namespace("a")) {
                    for (id, tokens) in &ids {
                        match check(&ns, id) {
                            Ok(loaded) => assert_eq!(loaded, *tokens),
                            Err(error) => assert!(error.is_lost(), "{}: byte {at}: {error}", path.display()),
                        }
                        ns.find(&subject(), tokens).unwrap();
                    }
                }
                // A damaged object was moved away: all is put back as it was.
                let _ = fs::remove_dir_all(folder.path().join("s/namespaces/a/damaged"));
                fs::write(path, bytes).unwrap();
            }
        }
        assert!(flips > 300, "{flips}");
        for (id, tokens) in &ids {
            assert_eq!(
                check(&open(&folder.path().join("s"), options.clone()).namespace("a").unwrap(), id).unwrap(),
                *tokens
            );
        }
    }
}

fn copy(from: &Path, to: &Path) {
    for file in files(from) {
        let target = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(file, target).unwrap();
    }
}

#[test]
fn cut_deleted_and_swapped() {
    let folder = new_folder();
    let (whole, now) = (folder.path().join("whole"), folder.path().join("now"));
    let ids = small(&whole, options());
    let paths = files(&whole);
    let mut stores: Vec<(String, Box<dyn Fn()>)> = Vec::new();
    for (i, file) in paths.iter().enumerate() {
        let rest = file.strip_prefix(&whole).unwrap().to_owned();
        let bytes = fs::read(file).unwrap();
        let at = now.join(&rest);
        let path = at.clone();
        stores.push((format!("{rest:?} deleted"), Box::new(move || fs::remove_file(&path).unwrap())));
        for length in [0, 1, 50, 88, bytes.len().saturating_sub(1)] {
            let (path, cut) = (at.clone(), bytes[..length.min(bytes.len())].to_vec());
            stores.push((format!("{rest:?} cut to {length}"), Box::new(move || fs::write(&path, &cut).unwrap())));
        }
        let longer = [&bytes[..], b"x"].concat();
        let path = at.clone();
        stores.push((format!("{rest:?} longer"), Box::new(move || fs::write(&path, &longer).unwrap())));
        // With the next one, and with one of another kind.
        for other in [(i + 1) % paths.len(), (i + paths.len() / 2) % paths.len()] {
            let (path, there) = (at.clone(), now.join(paths[other].strip_prefix(&whole).unwrap()));
            let swap = move || {
                let (one, two) = (fs::read(&path).unwrap(), fs::read(&there).unwrap());
                fs::write(&path, two).unwrap();
                fs::write(&there, one).unwrap();
            };
            stores.push((format!("{rest:?} swapped with {:?}", paths[other]), Box::new(swap)));
        }
    }
    for (what, spoil) in stores {
        copy(&whole, &now);
        spoil();
        survives(&now, options(), &ids, &what);
        // A read of pages that was given up may still end in it.
        for _ in 0..100 {
            if fs::remove_dir_all(&now).is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert!(!now.exists(), "{what}");
    }
}

#[test]
fn a_damaged_object_is_named_and_made_again() {
    let folder = new_folder();
    let store = open(folder.path(), options());
    let ns = store.namespace("a").unwrap();
    let all = tokens(1, 2 * PAGE + 1);
    let (short, long) = (save(&ns, &all[..PAGE]).id, save(&ns, &all).id);
    let name = blake3::hash(&page(&subject(), &all, 1)).to_hex().to_string();
    let path = of_kind(folder.path(), "objects").into_iter().find(|path| path.ends_with(&name)).unwrap();
    let whole = fs::read(&path).unwrap();
    for (i, wrong) in [Some(vec![7; whole.len()]), Some(Vec::new()), None].into_iter().enumerate() {
        match &wrong {
            Some(bytes) => fs::write(&path, bytes).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        if i == 0 {
            // Found by looking for it.
            let flaws = store.verify().unwrap();
            assert_eq!((flaws.len(), &flaws[0].snapshots[..], &flaws[0].namespace[..]), (1, &[long][..], "a"));
            assert!(flaws[0].problem.contains(&name), "{}", flaws[0].problem);
        } else {
            let error = check(&ns, &long).unwrap_err();
            assert!(error.is_lost() && error.to_string().contains(&name), "{error}");
        }
        assert!(!path.exists());
        let found = ns.find(&subject(), &all).unwrap();
        assert_eq!(found.best.unwrap().id, short);
        assert_eq!(found.miss, Some(Miss::Damaged { snapshot: long, position: all.len(), object: name.clone() }));
        // A snapshot of other tokens that has that page makes it again, and with it the old one is whole.
        let mut more = all.clone();
        more.extend([i as u32; 3]);
        let (_, asked) = save_as(&ns, &subject(), &NewSnapshot { tokens: &more, ..NewSnapshot::default() }).unwrap();
        assert_eq!(asked, [1, 2]);
        assert_eq!(check(&ns, &long).unwrap(), all);
        assert!(store.verify().unwrap().is_empty());
    }
}

#[test]
fn damaged_manifests_are_reported_and_collected() {
    let folder = new_folder();
    let store = open(folder.path(), old());
    let ns = store.namespace("a").unwrap();
    let (one, two) = (save(&ns, &tokens(1, 5)).id, save(&ns, &tokens(2, 5)).id);
    drop((store, ns));
    fs::remove_file(folder.path().join("cache.redb")).unwrap();
    let path = of_kind(folder.path(), "manifests").into_iter().find(|path| path.ends_with(one.to_string())).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[100] ^= 1;
    fs::write(&path, &bytes).unwrap();
    let store = open(folder.path(), old());
    let ns = store.namespace("a").unwrap();
    assert_eq!(ns.list().unwrap().len(), 1);
    assert!(matches!(ns.load(&one), Err(Error::NoSnapshot { .. })));
    assert!(store.verify().unwrap()[0].problem.contains(&one.to_string()));
    let collected = store.collect().unwrap();
    assert_eq!((collected.snapshots, collected.objects), (1, 3));
    assert!(store.verify().unwrap().is_empty());
    assert_eq!(of_kind(folder.path(), "objects").len(), 2);
    check(&ns, &two).unwrap();
}

#[test]
fn manifests_of_a_later_version_stop_the_collector() {
    let folder = new_folder();
    let store = open(folder.path(), old());
    let ns = store.namespace("a").unwrap();
    save(&ns, &tokens(1, 5));
    let file = of_kind(folder.path(), "manifests").pop().unwrap();
    let mut bytes = fs::read(&file).unwrap();
    bytes[8] = 2;
    let check = blake3::hash(&bytes[..80]);
    bytes[80..88].copy_from_slice(&check.as_bytes()[..8]);
    fs::write(file.with_file_name("0".repeat(32)), &bytes).unwrap();
    // An orphan, which the later version might name.
    fs::remove_file(&file).unwrap();
    let collected = store.collect().unwrap();
    assert_eq!(collected.objects, 0);
    assert!(collected.skipped[0].contains("version 2"), "{collected:?}");
    assert_eq!(of_kind(folder.path(), "objects").len(), 2);
}

#[test]
fn the_cache_is_only_a_cache() {
    let folder = new_folder();
    let ids = small(folder.path(), options());
    let cache = folder.path().join("cache.redb");
    let see = || {
        let ns = open(folder.path(), options()).namespace("a").unwrap();
        assert_eq!(ns.list().unwrap().len(), 3);
        for (id, tokens) in &ids {
            assert_eq!(check(&ns, id).unwrap(), *tokens);
        }
    };
    see();
    let whole = fs::read(&cache).unwrap();
    let manifests = of_kind(folder.path(), "manifests");
    let marked = fs::read(&manifests[0]).unwrap();
    // It has the manifests' files, and they are read from there.
    assert!(whole.windows(88).any(|some| some == &marked[..88]));
    fs::remove_file(&cache).unwrap();
    see();
    for seed in 0..40usize {
        let mut wrong = whole.clone();
        for at in (seed * 101..wrong.len()).step_by(40 * 101) {
            wrong[at] ^= 0x55;
        }
        fs::write(&cache, wrong).unwrap();
        see();
    }
    fs::write(&cache, b"not a database").unwrap();
    see();
    // Held by another process, as far as redb can tell.
    let first = open(folder.path(), options());
    see();
    drop(first);
    see();
}
