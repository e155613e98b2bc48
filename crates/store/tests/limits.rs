//! Quotas, budgets, expiry and garbage.
#![allow(missing_docs)]

mod common;

use std::fs;
use std::time::Duration;

use common::*;
use fathom_store::{Collected, Error, Miss, NewSnapshot, Options};

#[test]
fn the_least_recently_used_go_first() {
    let folder = new_folder();
    let fill = open(folder.path(), options());
    let ns = fill.namespace("a").unwrap();
    let other = fill.namespace("b").unwrap();
    let all: Vec<_> = (0..6).map(|i| tokens(i, 9)).collect();
    let mut ids = Vec::new();
    for tokens in &all[..5] {
        ids.push(save(&ns, tokens).id);
        // The times of files are coarse.
        std::thread::sleep(Duration::from_millis(50));
    }
    ids.push(save(&other, &all[5]).id);
    ns.pin(&ids[0], true).unwrap();
    check(&ns, &ids[1]).unwrap();
    ns.expire(&ids[4], Some(1)).unwrap();
    let usage = fill.usage().unwrap();
    assert_eq!((usage.snapshots, usage.pinned, usage.objects), (6, 1, 18));
    assert!(usage.written_today >= 18 * 150 && usage.written_today <= usage.bytes + 500, "{usage:?}");
    // What was used is in the files now, which is all that the next one knows.
    drop((fill, ns, other));
    // Room for about four of six.
    let store = open(folder.path(), Options { quota: usage.bytes * 4 / 6 + 200, ..options() });
    let (ns, other) = (store.namespace("a").unwrap(), store.namespace("b").unwrap());
    let hold = ns.hold(&ids[2]).unwrap();
    let collected = store.collect().unwrap();
    // The expired one, and the oldest that is neither pinned, nor used since, nor held.
    assert_eq!((collected.snapshots, collected.objects), (2, 6));
    for (i, id) in ids[..5].iter().enumerate() {
        assert_eq!(check(&ns, id).is_ok(), i != 3 && i != 4, "{i}");
    }
    check(&other, &ids[5]).unwrap();
    assert!(matches!(ns.find(&subject(), &all[3]).unwrap().miss, Some(Miss::Evicted { position: 9 })));
    drop(hold);
    // Saving makes room by itself.
    for i in 10..30 {
        save(&ns, &tokens(i, 9));
        assert!(store.usage().unwrap().bytes <= store.usage().unwrap().quota);
    }
    check(&ns, &ids[0]).unwrap();
    assert!(check(&other, &ids[5]).is_err());
    let usage = store.usage().unwrap();
    assert!(usage.bytes > usage.quota / 2, "{usage:?}");
    // Too large for any quota, and what is left is pinned.
    for snapshot in ns.list().unwrap() {
        ns.pin(&snapshot.id, true).unwrap();
    }
    let long = tokens(50, 8 * PAGE);
    let error = save_as(&ns, &subject(), &NewSnapshot { tokens: &long, ..NewSnapshot::default() }).unwrap_err();
    assert!(matches!(error, Error::Quota { .. }), "{error}");
    let count = ns.list().unwrap().len();
    assert_eq!(count, store.usage().unwrap().pinned);
}

#[test]
fn a_budget_a_day() {
    let folder = new_folder();
    let with = |budget| open(folder.path(), Options { write_budget: Some(budget), ..options() });
    let store = with(5000);
    let ns = store.namespace("a").unwrap();
    let written = save(&ns, &tokens(1, 9)).bytes_written;
    assert_eq!(store.usage().unwrap().written_today, written);
    // Another process counts on.
    let other = with(written + 100);
    let error = save_as(
        &other.namespace("a").unwrap(),
        &subject(),
        &NewSnapshot { tokens: &tokens(2, 9), ..NewSnapshot::default() },
    )
    .unwrap_err();
    match error {
        Error::Budget { written: so_far, budget, needed } => {
            assert!(so_far == written && budget == written + 100 && needed > 100);
        }
        other => panic!("{other}"),
    }
    assert_eq!(ns.list().unwrap().len(), 1);
    let again = save(&ns, &tokens(2, 9)).bytes_written;
    assert_eq!(with(0).usage().unwrap().written_today, written + again);
    // What is there is not written again, so it costs nothing.
    assert_eq!(save(&with(0).namespace("a").unwrap(), &tokens(2, 9)).bytes_written, 0);
}

#[test]
fn garbage_goes_when_it_is_old() {
    let folder = new_folder();
    let store = open(folder.path(), options());
    let ns = store.namespace("a").unwrap();
    let id = save(&ns, &tokens(1, 9)).id;
    // What writers and collectors leave when they are killed.
    let root = folder.path().join("namespaces/a");
    let orphans = new_folder();
    let other = open(orphans.path(), options()).namespace("a").unwrap();
    save(&other, &tokens(2, 9));
    for file in of_kind(orphans.path(), "objects") {
        let to = root.join(file.strip_prefix(orphans.path().join("namespaces/a")).unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(file, to).unwrap();
    }
    let page = of_kind(folder.path(), "objects").pop().unwrap();
    fs::write(format!("{}#1", page.display()), b"half").unwrap();
    fs::create_dir_all(root.join("marks")).unwrap();
    fs::create_dir_all(root.join("pending")).unwrap();
    fs::write(root.join("marks").join(format!("{}.pinned", "0".repeat(32))), b"x").unwrap();
    fs::write(root.join("pending").join("0".repeat(32)), b"x").unwrap();
    fs::write(folder.path().join("written/12-0000000000000007"), b"x").unwrap();
    let before = files(folder.path()).len();
    // Young: it may still be somebody's, but for the mark and the count.
    let collected = store.collect().unwrap();
    assert_eq!(collected, Collected::default());
    assert_eq!(files(folder.path()).len(), before - 2);
    let store = open(folder.path(), old());
    let collected = store.collect().unwrap();
    assert_eq!((collected.snapshots, collected.objects), (0, 3));
    assert_eq!(files(folder.path()).len(), before - 2 - 3 - 2);
    check(&store.namespace("a").unwrap(), &id).unwrap();
    assert!(of_kind(folder.path(), "pending").is_empty());
}

#[test]
fn what_a_collector_left_aside_is_read_and_put_back() {
    let folder = new_folder();
    let ns = open(folder.path(), options()).namespace("a").unwrap();
    let id = save(&ns, &tokens(1, 9)).id;
    let aside = folder.path().join("namespaces/a/condemned/100-00");
    fs::create_dir_all(&aside).unwrap();
    for file in of_kind(folder.path(), "objects") {
        fs::rename(&file, aside.join(file.file_name().unwrap())).unwrap();
    }
    check(&ns, &id).unwrap();
    let store = open(folder.path(), options());
    assert_eq!(store.collect().unwrap(), Collected::default());
    assert_eq!((of_kind(folder.path(), "condemned").len(), of_kind(folder.path(), "objects").len()), (0, 3));
    check(&ns, &id).unwrap();
}
