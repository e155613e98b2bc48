use std::sync::mpsc;

use fathom_kernels::{Cpu, CpuOptions, Device, Share};
use fathom_model::Model;
use fathom_store::Options;
use fathom_weights::synth::Synth;

use super::*;
use crate::{EngineOptions, Keep, Usage, subject};

fn sessions(folder: Option<&tempfile::TempDir>) -> Sessions {
    sessions_of(folder, 3000)
}

fn sessions_of(folder: Option<&tempfile::TempDir>, context: usize) -> Sessions {
    let checkpoint = Synth::tiny(5).set("num_hidden_layers", 3).set("compress_ratios", vec![4, 128, 0]).checkpoint();
    let cpu = Cpu::new(CpuOptions { threads: Some(1), ..CpuOptions::default() }).unwrap();
    let model = Arc::new(Model::load(cpu, &checkpoint.unwrap()).unwrap());
    let spare = Engine::spare_bytes(&model);
    model.device().ledger().limit(Share::State, model.state_bytes(context) + spare);
    let options = EngineOptions { prefill_chunk: 64, context, ..EngineOptions::default() };
    let keep = folder.map(|folder| {
        let store = Store::open(folder.path().to_str().unwrap(), Options::default()).unwrap();
        (store, subject(&model, [7; 32]))
    });
    let told = |store: &Store, subject: &Subject| Keep {
        store: store.clone(),
        subject: subject.clone(),
        lasts: None,
        told: Box::new(|saved| assert!(saved.is_ok())),
    };
    let engine = Engine::start(model, options, keep.as_ref().map(|(store, subject)| told(store, subject)));
    Sessions::new(engine, keep)
}

fn prompt(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| i * 7919 % 512).collect()
}

fn wait(
    submit: impl FnOnce(Box<dyn FnMut(Event) -> ControlFlow<()> + Send>) -> Result<(), Error>,
) -> (Vec<u32>, Usage) {
    let (send, events) = mpsc::channel();
    submit(Box::new(move |event| send.send(event).map_or(ControlFlow::Break(()), ControlFlow::Continue))).unwrap();
    let mut ids = Vec::new();
    for event in events {
        match event {
            Event::Token { id, .. } => ids.push(id),
            Event::Done { usage, .. } => return (ids, usage),
            Event::Failed(e) => panic!("{e}"),
            _ => {}
        }
    }
    panic!("the engine went away");
}

/// What a session says after `more`.
fn go_on(sessions: &Sessions, name: &str, more: &[u32], most: usize) -> (Vec<u32>, Usage) {
    let sampling = crate::Sampling { temperature: 0.0, ..Default::default() };
    let request = Request { max_tokens: Some(most), sampling, ..Request::default() };
    let more = more.to_vec();
    wait(|sink| sessions.go_on(&Owner::default(), name, |_| Ok((more, request)), sink))
}

fn back(sessions: &Sessions, name: &str, position: usize) -> Usage {
    let (send, told) = mpsc::channel();
    let tell = move |stored: Result<(), Error>| send.send(stored).unwrap();
    let usage = wait(|sink| sessions.rewind(&Owner::default(), name, position, sink, tell)).1;
    told.recv().unwrap().unwrap();
    usage
}

/// What a session of its own says after a prompt.
fn alone(text: &[u32], most: usize) -> Vec<u32> {
    let other = sessions(None);
    other.create(&Owner::default(), Some("alone")).unwrap();
    go_on(&other, "alone", text, most).0
}

#[test]
fn they_grow_fork_and_go_back() {
    let (all, me) = (sessions(None), Owner::default());
    all.create(&me, Some("a")).unwrap();
    let (said, _) = go_on(&all, "a", &prompt(1100), 20);
    assert_eq!(said, alone(&prompt(1100), 20));
    let forked = all.fork(&me, "a", Some(1100), Some("b")).unwrap();
    assert_eq!((forked.position, forked.parent), (1100, Some(("a".to_owned(), 1100))));
    let (b, usage) = go_on(&all, "b", &[3, 4], 20);
    assert_eq!((usage.reused_tokens, &b), (1100, &alone(&[&prompt(1100)[..], &[3, 4]].concat(), 20)));
    // The first is as it was.
    let whole = [prompt(1100), said.clone()].concat();
    assert_eq!(*all.tokens(&me, "a").unwrap(), whole);
    let (more, usage) = go_on(&all, "a", &[], 10);
    assert_eq!((usage.reused_tokens, more), (1120, alone(&prompt(1100), 30)[20..].to_vec()));
    // To a place where its state was kept, and to one where it was not.
    assert_eq!(back(&all, "a", 1120).reused_tokens, 1120);
    assert_eq!(back(&all, "a", 1110).reused_tokens, 1100);
    assert_eq!(all.get(&me, "a").unwrap().position, 1110);
    assert_eq!(go_on(&all, "a", &[], 10).0, said[10..]);
    assert!(matches!(
        all.rewind(&me, "a", 1121, |_| ControlFlow::Continue(()), |_| ()),
        Err(Error::Position { tokens: 1120, .. })
    ));
    assert_eq!(back(&all, "a", 0), Usage::default());
    assert_eq!(all.list(&me).unwrap().len(), 2);
    all.delete(&me, "a").unwrap();
    assert!(matches!(all.get(&me, "a"), Err(Error::NoSession { .. })));
    assert_eq!(go_on(&all, "b", &[], 1).1.reused_tokens, 1122, "what the other shared is there");
    // Others do not see it.
    assert_eq!(all.list(&Owner("other".into())).unwrap(), []);
}

#[test]
fn a_request_at_a_time() {
    let (all, me) = (sessions(None), Owner::default());
    all.create(&me, Some("a")).unwrap();
    let (send, events) = mpsc::channel();
    let request = Request { max_tokens: Some(5), ..Request::default() };
    let (go, gone) = mpsc::channel::<()>();
    let sink = move |event| {
        let _ = gone.recv();
        send.send(event).map_or(ControlFlow::Break(()), ControlFlow::Continue)
    };
    let ask = |tokens: Vec<u32>| {
        let request = request.clone();
        move |_: &[u32]| Ok::<_, Error>((tokens, request))
    };
    all.go_on(&me, "a", ask(prompt(100)), sink).unwrap();
    let again = all.go_on(&me, "a", ask(vec![1]), |_| ControlFlow::Continue(()));
    assert!(matches!(again, Err(Error::SessionBusy { .. })));
    // In this order: what it is woken to say is heard by nobody.
    drop((events, go));
    // Whoever asked has left before the prompt was read: nothing has happened.
    while all.get(&me, "a").unwrap().busy {
        std::thread::yield_now();
    }
    assert_eq!(all.get(&me, "a").unwrap().position, 0);
    // Nor if the request was refused.
    assert!(all.go_on(&me, "a", ask(vec![999]), |_| ControlFlow::Continue(())).is_err());
    assert!(!all.get(&me, "a").unwrap().busy);
    for name in ["", ".", "..", "a/b", "a b", "\u{e4}", &"a".repeat(65)] {
        assert!(matches!(all.create(&me, Some(name)), Err(Error::SessionName { .. })), "{name}");
    }
    assert!(matches!(all.create(&me, Some("a")), Err(Error::SessionExists { .. })));
    assert!(matches!(all.namespace(&me), Err(Error::NoStore)));
}

#[test]
fn they_outlive_the_engine() {
    let (folder, me) = (tempfile::tempdir().unwrap(), Owner::default());
    let first = sessions(Some(&folder));
    first.create(&me, Some("a")).unwrap();
    let (said, _) = go_on(&first, "a", &prompt(1100), 40);
    first.fork(&me, "a", None, Some("b")).unwrap();
    go_on(&first, "b", &[3], 1);
    first.0.engine.drain();

    let second = sessions(Some(&folder));
    let names = |all: &Sessions| {
        let mut names: Vec<_> = all.list(&me).unwrap().into_iter().map(|s| (s.name, s.position)).collect();
        names.sort();
        names
    };
    assert_eq!(names(&second), [("a".to_owned(), 1140), ("b".to_owned(), 1142)]);
    let (more, usage) = go_on(&second, "a", &[], 10);
    assert_eq!((usage.reused_tokens, more), (1140, alone(&prompt(1100), 50)[40..].to_vec()));
    // Back to what was said first; what came after is gone for good.
    let usage = back(&second, "a", 1110);
    assert_eq!((usage.reused_tokens, usage.prompt_tokens), (1100, 1110));
    second.0.engine.drain();

    let third = sessions(Some(&folder));
    assert_eq!(names(&third), [("a".to_owned(), 1110), ("b".to_owned(), 1142)]);
    assert_eq!(go_on(&third, "a", &[], 30).0, said[10..]);
    third.pin(&me, "b", true).unwrap();
    assert!(third.get(&me, "b").unwrap().pinned);
    let (send, told) = mpsc::channel();
    third.snapshot(&me, "a", false, move |saved| send.send(saved.unwrap()).unwrap()).unwrap();
    let saved = told.recv().unwrap();
    assert_eq!(saved.position, 1140);
    let restored = third.restore(&me, &saved.id, None).unwrap();
    assert!(restored.name != "a" && restored.position == 1140, "a is there, so this is another");
    // From one store into another.
    let mut file = Vec::new();
    third.namespace(&me).unwrap().export(&saved.id, &mut file).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let fourth = sessions(Some(&elsewhere));
    assert_eq!(fourth.import(&me, Some("a"), &mut &file[..]).unwrap().position, 1140);
    assert_eq!(go_on(&fourth, "a", &[], 10).1.reused_tokens, 1140);

    go_on(&third, "a", &[4; 100], 40);
    for name in ["a", "b", &restored.name] {
        // Though its end is just being written.
        third.delete(&me, name).unwrap();
    }
    assert_eq!(third.namespace(&me).unwrap().list().unwrap().iter().filter(|s| s.name.is_some()).count(), 0);
    third.0.engine.drain();
    assert_eq!(third.namespace(&me).unwrap().list().unwrap().iter().filter(|s| s.name.is_some()).count(), 0);
    assert_eq!(names(&third), []);
}

/// A request that was cut off leaves the session as it was, after a restart too; what was taken back is not told of.
#[test]
fn what_is_past_is_past() {
    let (folder, me) = (tempfile::tempdir().unwrap(), Owner::default());
    let first = sessions(Some(&folder));
    first.create(&me, Some("a")).unwrap();
    go_on(&first, "a", &prompt(100), 0);
    let (send, events) = mpsc::channel();
    let more = |_: &[u32]| Ok::<_, Error>((prompt(2000), Request::default()));
    let sink = move |event| {
        let far = matches!(event, Event::Prefill { done: 1000.., .. });
        let _ = send.send(());
        if far { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    first.go_on(&me, "a", more, sink).unwrap();
    while events.recv().is_ok() {}
    assert_eq!(first.get(&me, "a").unwrap().position, 100);
    first.0.engine.drain();

    let second = sessions(Some(&folder));
    let session = second.get(&me, "a").unwrap();
    assert!(session.position == 100 && session.snapshots.len() == 2, "{session:?}");
    let usage = go_on(&second, "a", &prompt(2000), 0).1;
    assert!(usage.reused_tokens > 1000, "{}", usage.reused_tokens);
    back(&second, "a", 100);
    second.create(&me, Some("b")).unwrap();
    let ask = |_: &[u32]| {
        let request = Request { max_tokens: Some(0), explain: true, ..Request::default() };
        Ok((([&prompt(100)[..], &prompt(500), &[5; 100]].concat()), request))
    };
    let missed = wait(|sink| second.go_on(&me, "b", ask, sink)).1.missed;
    assert_eq!(missed.map(|missed| missed.theirs), None);
    second.delete(&me, "a").unwrap();
    second.delete(&me, "b").unwrap();
    second.0.engine.drain();
    assert_eq!(second.namespace(&me).unwrap().list().unwrap(), []);
}

#[test]
fn those_that_are_stored_make_way() {
    let (folder, me) = (tempfile::tempdir().unwrap(), Owner::default());
    let all = sessions(Some(&folder));
    for i in 0..12 {
        let name = i.to_string();
        all.create(&me, Some(&name)).unwrap();
        go_on(&all, &name, &[&[i], &prompt(1100)[..]].concat(), 3);
        save(&all, &name, false);
    }
    let held = all.table().len();
    assert!(held < 12, "{held}");
    assert_eq!(all.list(&me).unwrap().len(), 12);
    let (said, usage) = go_on(&all, "0", &[], 5);
    assert_eq!(usage.reused_tokens, 1104);
    assert_eq!(said, alone(&[&[0], &prompt(1100)[..]].concat(), 8)[3..]);

    // Nothing is stored of those: they stay, and there is an end of them.
    let all = sessions(None);
    let full = (0..).find_map(|_| all.create(&me, None).err()).unwrap();
    assert!(matches!(full, Error::TooManySessions), "{full}");
    assert_eq!(all.list(&me).unwrap().len(), 1 + HELD / SESSION);
}

#[test]
fn a_fork_is_stored_if_its_state_is() {
    let (folder, me) = (tempfile::tempdir().unwrap(), Owner::default());
    let all = sessions(Some(&folder));
    all.create(&me, Some("a")).unwrap();
    assert!(matches!(all.pin(&me, "a", true), Err(Error::NotStored { .. })));
    all.pin(&me, "a", false).unwrap();
    go_on(&all, "a", &prompt(1100), 20);
    all.0.engine.drain();
    let all = sessions(Some(&folder));
    all.fork(&me, "a", Some(1100), Some("here")).unwrap();
    all.fork(&me, "a", Some(1105), Some("not here")).unwrap_err();
    all.fork(&me, "a", Some(1105), Some("not-here")).unwrap();
    all.0.engine.drain();
    let all = sessions(Some(&folder));
    assert_eq!(all.get(&me, "here").unwrap().snapshots, [1100]);
    assert!(matches!(all.get(&me, "not-here"), Err(Error::NoSession { .. })));
    let (said, usage) = go_on(&all, "here", &[], 20);
    assert_eq!((usage.reused_tokens, said), (1100, alone(&prompt(1100), 20)));
}

fn save(sessions: &Sessions, name: &str, pinned: bool) -> Saved {
    let (tell, told) = mpsc::channel();
    sessions.snapshot(&Owner::default(), name, pinned, move |saved| tell.send(saved).unwrap()).unwrap();
    told.recv().unwrap().unwrap()
}

/// However fast requests come and however slowly they are written: where a session was when the program ended, it is afterwards.
#[test]
fn a_burst_is_stored_to_its_end() {
    let (folder, me) = (tempfile::tempdir().unwrap(), Owner::default());
    let all = sessions(Some(&folder));
    all.create(&me, Some("a")).unwrap();
    for i in 0..12 {
        go_on(&all, "a", &[i, i + 1, i + 2], 0);
    }
    let names: Vec<String> = (0..24).map(|i| format!("s{i}")).collect();
    for name in &names {
        all.create(&me, Some(name)).unwrap();
        go_on(&all, name, &[1, 2, name.len() as u32], 2);
    }
    all.0.engine.drain();
    let all = sessions(Some(&folder));
    assert_eq!(all.tokens(&me, "a").unwrap()[33..], [11, 12, 13]);
    assert!(names.iter().all(|name| all.tokens(&me, name).unwrap().len() == 5));
}

/// What is taken from a session is not taken from a fork of it, at once or later.
#[test]
fn forks_outlive_their_parents() {
    let (folder, me) = (tempfile::tempdir().unwrap(), Owner::default());
    let all = sessions(Some(&folder));
    for round in 0..10 {
        let name = |what: &str| format!("{what}{round}");
        all.create(&me, Some(&name("a"))).unwrap();
        go_on(&all, &name("a"), &[&[round], &prompt(60)[..]].concat(), 0);
        save(&all, &name("a"), false);
        all.fork(&me, &name("a"), None, Some(&name("f"))).unwrap();
        match round % 2 {
            0 => all.delete(&me, &name("a")).unwrap(),
            _ => drop(back(&all, &name("a"), 0)),
        }
    }
    all.0.engine.drain();
    let all = sessions(Some(&folder));
    for round in 0..10 {
        assert_eq!(all.tokens(&me, &format!("f{round}")).unwrap().len(), 61);
        assert!(matches!(all.get(&me, &format!("a{round}")), Err(Error::NoSession { .. })));
    }
}

#[test]
fn what_was_imported_goes_whole() {
    let (folder, me) = (tempfile::tempdir().unwrap(), Owner::default());
    let all = sessions(Some(&folder));
    all.create(&me, Some("a")).unwrap();
    go_on(&all, "a", &prompt(1100), 3);
    let mut file = Vec::new();
    all.namespace(&me).unwrap().export(&save(&all, "a", false).id, &mut file).unwrap();
    all.delete(&me, "a").unwrap();
    assert_eq!(all.import(&me, None, &mut &file[..]).unwrap().position, 1103);
    let error = all.import(&me, Some("no name"), &mut &file[..]).unwrap_err();
    assert!(matches!(error, Error::SessionName { .. }), "{error}");
    assert_eq!(all.import(&me, Some("b"), &mut &file[..]).unwrap().name, "b");
    assert!(matches!(all.import(&me, Some("b"), &mut &file[..]), Err(Error::SessionExists { .. })));
    for session in all.list(&me).unwrap() {
        all.delete(&me, &session.name).unwrap();
    }
    assert_eq!(all.namespace(&me).unwrap().list().unwrap(), []);
    assert_eq!(all.0.keep.as_ref().unwrap().0.usage().unwrap().objects, 0);

    // Half a file, one that claims much more than a session has, and one of another model.
    let huge = [&file[..16], &(1u64 << 40).to_le_bytes(), &[0; 64]].concat();
    let mut foreign = file.clone();
    foreign[24 + 5] ^= 1;
    for (bad, problem) in [(&file[..900], "ends too early"), (&huge, "claims"), (&foreign, "another model")] {
        let error = all.import(&me, Some("c"), &mut &*bad).unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
        assert!(matches!(all.get(&me, "c"), Err(Error::NoSession { .. })));
    }
}

/// A pin is where its session is.
#[test]
fn pins_move_on() {
    let (folder, me) = (tempfile::tempdir().unwrap(), Owner::default());
    let all = sessions(Some(&folder));
    all.create(&me, Some("a")).unwrap();
    go_on(&all, "a", &prompt(55), 0);
    save(&all, "a", true);
    go_on(&all, "a", &prompt(100), 0);
    all.settle(&me, "a");
    let pinned = |all: &Sessions| -> Vec<usize> {
        let listed = all.namespace(&me).unwrap().list().unwrap().into_iter();
        listed.filter(|snapshot| snapshot.pinned).map(|snapshot| snapshot.position).collect()
    };
    assert_eq!(pinned(&all), [155]);
    all.pin(&me, "a", false).unwrap();
    assert_eq!(pinned(&all), [0; 0]);
}

/// Where the tokens of its end are damaged a session is where it was before, and it can be deleted.
#[test]
fn a_damaged_end_gives_way() {
    let (folder, me) = (tempfile::tempdir().unwrap(), Owner::default());
    let all = sessions_of(Some(&folder), 20_000);
    all.create(&me, Some("a")).unwrap();
    go_on(&all, "a", &prompt(60), 0);
    // So many that some are stored apart from the manifest.
    go_on(&all, "a", &prompt(16_400), 0);
    all.0.engine.drain();
    for path in walk(folder.path()) {
        if path.components().any(|part| part.as_os_str() == "objects") {
            let mut bytes = std::fs::read(&path).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            std::fs::write(path, bytes).unwrap();
        }
    }
    let all = sessions_of(Some(&folder), 20_000);
    assert_eq!(all.list(&me).unwrap()[0].position, 16_460);
    assert_eq!(all.get(&me, "a").unwrap().position, 60);
    assert_eq!(go_on(&all, "a", &[], 5).0, alone(&prompt(60), 5));
    all.delete(&me, "a").unwrap();
    assert!(matches!(all.get(&me, "a"), Err(Error::NoSession { .. })));
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => all.extend(walk(&path)),
            false => all.push(path),
        }
    }
    all
}
