//! A store beside a plain list that does the same.
#![allow(missing_docs)]

mod common;

use std::collections::HashSet;

use common::*;
use fathom_store::{Id, Key, Namespace, NewSnapshot, Options, Subject};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Save { subject: usize, tokens: Vec<u32>, pinned: bool },
    Find { subject: usize, tokens: Vec<u32> },
    Remove(prop::sample::Index),
    Pin(prop::sample::Index, bool),
    Export(prop::sample::Index),
    Collect,
    Reopen,
}

fn some_tokens() -> impl Strategy<Value = Vec<u32>> {
    // Few tokens, so that many begin alike.
    prop::collection::vec(prop_oneof![9 => Just(1u32), 1 => Just(2u32)], 1..14)
}

fn a_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0usize..2, some_tokens(), any::<bool>())
            .prop_map(|(subject, tokens, pinned)| Step::Save { subject, tokens, pinned }),
        4 => (0usize..2, some_tokens()).prop_map(|(subject, tokens)| Step::Find { subject, tokens }),
        1 => any::<prop::sample::Index>().prop_map(Step::Remove),
        1 => (any::<prop::sample::Index>(), any::<bool>()).prop_map(|(i, pinned)| Step::Pin(i, pinned)),
        1 => any::<prop::sample::Index>().prop_map(Step::Export),
        1 => Just(Step::Collect),
        1 => Just(Step::Reopen),
    ]
}

/// What a snapshot is, as the model has it.
#[derive(Debug, Clone)]
struct Kept {
    id: Id,
    subject: usize,
    tokens: Vec<u32>,
    pinned: bool,
}

fn subjects(which: usize) -> Subject {
    Subject { model: [which as u8; 32], page: 3 + which, ..subject() }
}

fn find(ns: &Namespace, kept: &[Kept], subject: usize, tokens: &[u32]) {
    let found = ns.find(&subjects(subject), tokens).unwrap();
    let fits = kept.iter().filter(|k| k.subject == subject && tokens.starts_with(&k.tokens));
    let expected = fits.map(|k| k.tokens.len()).max();
    assert_eq!(found.best.map(|best| best.position), expected);
    assert_eq!(found.miss.is_none(), expected == Some(tokens.len()));
    if let Some(best) = found.best {
        assert_eq!(check(ns, &best.id).unwrap(), tokens[..best.position]);
    }
}

fn run(options: Options, steps: Vec<Step>) {
    let folder = new_folder();
    let path = folder.path().join("s");
    let mut ns = open(&path, options.clone()).namespace("a").unwrap();
    let mut kept: Vec<Kept> = Vec::new();
    for step in steps {
        match step {
            Step::Save { subject, tokens, pinned } => {
                let new = NewSnapshot { tokens: &tokens, pinned, ..NewSnapshot::default() };
                let page = subjects(subject).page;
                let (saved, asked) = save_as(&ns, &subjects(subject), &new).unwrap();
                // Exactly the pages that nobody has.
                let has = |i: &usize| {
                    let start = &tokens[..(i + 1) * page];
                    kept.iter().any(|k| k.subject == subject && k.tokens.starts_with(start))
                };
                let missing: Vec<usize> = (0..tokens.len() / page).filter(|i| !has(i)).collect();
                assert_eq!(asked, missing);
                assert_eq!(saved.new_pages, missing.len());
                let same = kept.iter_mut().find(|k| k.subject == subject && k.tokens == tokens);
                assert_eq!(same.as_ref().map_or(saved.id, |k| k.id), saved.id);
                match same {
                    Some(same) => same.pinned |= pinned,
                    None => kept.push(Kept { id: saved.id, subject, tokens, pinned }),
                }
            }
            Step::Find { subject, tokens } => find(&ns, &kept, subject, &tokens),
            Step::Remove(at) if !kept.is_empty() => {
                let gone = kept.remove(at.index(kept.len()));
                ns.remove(&gone.id).unwrap();
            }
            Step::Pin(at, pinned) if !kept.is_empty() => {
                let at = at.index(kept.len());
                ns.pin(&kept[at].id, pinned).unwrap();
                kept[at].pinned = pinned;
            }
            Step::Export(at) if !kept.is_empty() => {
                let one = &kept[at.index(kept.len())];
                let mut file = Vec::new();
                ns.export(&one.id, &mut file).unwrap();
                assert_eq!(ns.import(&mut &file[..]).unwrap().id, one.id);
            }
            Step::Collect => drop(ns.store().collect().unwrap()),
            Step::Reopen => ns = open(&path, options.clone()).namespace("a").unwrap(),
            _ => {}
        }
    }
    let mut objects = HashSet::new();
    for one in &kept {
        let subject = subjects(one.subject);
        assert_eq!(check(&ns, &one.id).unwrap(), one.tokens);
        assert_eq!(ns.show(&one.id).unwrap().pinned, one.pinned);
        objects.extend((0..one.tokens.len() / subject.page).map(|i| page(&subject, &one.tokens, i)));
        objects.insert(tail(&subject, &one.tokens));
    }
    assert_eq!(ns.list().unwrap().len(), kept.len());
    assert_eq!(of_kind(&path, "objects").len(), objects.len());
    assert_eq!(ns.store().verify().unwrap(), []);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn does_what_a_list_does(steps in prop::collection::vec(a_step(), 1..25), compress: bool, encrypt: bool) {
        let key = encrypt.then(|| Key::new([1; 32]));
        run(Options { compress: compress.then_some(1), key, ..old() }, steps);
    }
}
