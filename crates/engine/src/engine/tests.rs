use std::sync::mpsc;

use fathom_kernels::{Cpu, CpuOptions};
use fathom_weights::synth::Synth;

use super::*;
use crate::{Finish, Sampling, Seam, Why};

pub(super) fn model() -> Arc<Model<Cpu>> {
    let checkpoint = Synth::tiny(5).set("num_hidden_layers", 3).set("compress_ratios", vec![4, 128, 0]).checkpoint();
    let cpu = Cpu::new(CpuOptions { threads: Some(2), ..CpuOptions::default() }).unwrap();
    Arc::new(Model::load(cpu, &checkpoint.unwrap()).unwrap())
}

fn engine(chunk: usize, queue: usize, context: usize) -> Engine {
    Engine::start(model(), EngineOptions { prefill_chunk: chunk, queue, context, ..EngineOptions::default() }, None)
}

pub(super) fn prompt(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| i * 7919 % 512).collect()
}

fn request(prompt: Vec<u32>, max_tokens: usize) -> Request {
    let sampling = Sampling { seed: Some(3), ..Sampling::default() };
    Request { prompt, max_tokens: Some(max_tokens), sampling, ..Request::default() }
}

/// Everything that comes back.
fn run(engine: &Engine, request: Request) -> (Vec<u32>, Finish, Usage) {
    let (send, receive) = mpsc::channel();
    engine
        .submit(request, move |event| send.send(event).map_or(ControlFlow::Break(()), ControlFlow::Continue))
        .unwrap();
    let mut ids = Vec::new();
    for event in receive {
        match event {
            Event::Token { id, .. } => ids.push(id),
            Event::Done { reason, usage } => return (ids, reason, usage),
            Event::Failed(e) => panic!("{e}"),
            Event::Queued { .. } | Event::Follows { .. } | Event::Prefill { .. } | Event::Read { .. } => {}
        }
    }
    panic!("the engine went away");
}

#[test]
fn chunks_and_reuse_change_nothing() {
    let whole = run(&engine(512, 4, 1000), request(prompt(200), 20)).0;
    assert_eq!(run(&engine(7, 4, 1000), request(prompt(200), 20)).0, whole);
    // Part of the prompt, then all of it on the same session.
    let engine = engine(64, 4, 1000);
    let (_, reason, _) = run(&engine, request(prompt(120), 0));
    assert_eq!(reason, Finish::Length);
    let (ids, _, usage) = run(&engine, request(prompt(200), 20));
    assert_eq!((ids, usage.reused_tokens), (whole.clone(), 120));
    // The conversation goes on: everything but the last token is known.
    let longer = [prompt(200), whole.clone(), vec![9]].concat();
    let (again, _, usage) = run(&engine, request(longer.clone(), 5));
    assert_eq!(usage.reused_tokens, 220);
    let fresh = run(&self::engine(512, 4, 1000), request(longer, 5)).0;
    assert_eq!(again, fresh);
    // Another conversation reuses nothing.
    assert_eq!(run(&engine, request(prompt(50), 1)).2.reused_tokens, 0);
}

#[test]
fn ends_for_the_right_reason() {
    let engine = engine(64, 4, 60);
    let (ids, reason, usage) = run(&engine, request(prompt(50), 100));
    assert_eq!((ids.len(), reason, usage.generated_tokens), (10, Finish::ContextFull, 10));
    let stop = Request { stop_tokens: vec![ids[3]], ..request(prompt(50), 100) };
    let (first, reason, _) = run(&engine, stop);
    let at = ids.iter().position(|&id| id == ids[3]).unwrap();
    assert_eq!((first.as_slice(), reason), (&ids[..at], Finish::Stop));
}

#[test]
fn bad_requests_are_refused_at_once() {
    let engine = engine(64, 4, 60);
    let refuse = |r: Request| engine.submit(r, |_| ControlFlow::Continue(())).unwrap_err().to_string();
    assert!(refuse(request(vec![], 1)).contains("prompt is empty"));
    assert!(refuse(request(prompt(60), 1)).contains("60 tokens"));
    assert!(refuse(request(vec![1, 512], 1)).contains("token id 512 at position 1"));
    let bad = Request { sampling: Sampling { top_p: 2.0, ..Sampling::default() }, ..request(prompt(3), 1) };
    assert!(refuse(bad).contains("top_p is 2"));
}

#[test]
fn cancels_queues_and_drains() {
    let engine = engine(8, 1, 5000);
    let (send, receive) = mpsc::channel();
    let mut seen = 0;
    engine
        .submit(request(prompt(4000), 1), move |event| {
            seen += 1;
            let _ = send.send(event);
            if seen > 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    let (waits, waited) = mpsc::channel();
    let later = move |event: Event| {
        let _ = waits.send(event);
        ControlFlow::Continue(())
    };
    engine.submit(request(prompt(20), 3), later).unwrap();
    engine.drain();
    assert!(matches!(engine.submit(request(prompt(3), 1), |_| ControlFlow::Continue(())), Err(Error::ShuttingDown)));
    let last = |events: mpsc::Receiver<Event>| events.into_iter().last();
    assert!(matches!(last(receive), Some(Event::Done { reason: Finish::Cancelled, .. })));
    assert!(matches!(last(waited), Some(Event::Done { reason: Finish::Length, .. })));
}

/// All end once they are told to, and what they have read is there for the next engine.
#[test]
fn stops_in_time_and_keeps_what_was_read() {
    let (folder, told) = (tempfile::tempdir().unwrap(), Told::default());
    let engine = keeping(&folder, 5000, &told);
    let (send, receive) = mpsc::channel();
    let sink = move |event| send.send(event).map_or(ControlFlow::Break(()), ControlFlow::Continue);
    engine.submit(request(prompt(100), 4000), sink).unwrap();
    let (waits, waited) = mpsc::channel();
    let sink = move |event| waits.send(event).map_or(ControlFlow::Break(()), ControlFlow::Continue);
    engine.submit(request(prompt(20), 3), sink).unwrap();
    let said =
        receive.iter().find_map(|event| if let Event::Token { id, .. } = event { Some(id) } else { None }).unwrap();
    assert!(engine.is_open());
    engine.stop();
    assert!(!engine.is_open());
    for events in [receive, waited] {
        assert!(matches!(events.into_iter().last(), Some(Event::Failed(Error::ShuttingDown))));
    }
    assert!(matches!(engine.submit(request(prompt(3), 1), |_| ControlFlow::Continue(())), Err(Error::ShuttingDown)));
    engine.drain();
    let longer = [prompt(100), vec![said, 9]].concat();
    let (_, _, usage) = run(&keeping(&folder, 5000, &told), request(longer, 1));
    assert!(usage.reused_tokens >= 100, "{usage:?}");
}

/// Who leaves while waiting leaves the place to others; who stays hears how the queue moves.
#[test]
fn those_who_leave_lose_their_places() {
    let engine = engine(8, 2, 5000);
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let running = move |_| match stopped.load(std::sync::atomic::Ordering::SeqCst) {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    };
    engine.submit(request(prompt(4000), 100), running).unwrap();
    while engine.load() != (0, 1) {
        std::thread::yield_now();
    }
    let waiting = || {
        let (send, receive) = mpsc::channel();
        let sink = move |event| send.send(event).map_or(ControlFlow::Break(()), ControlFlow::Continue);
        engine.submit(request(prompt(10), 1), sink).map(|()| receive)
    };
    let (gone, stays) = (waiting().unwrap(), waiting().unwrap());
    assert!(matches!(waiting(), Err(Error::QueueFull { waiting: 2 })));
    drop(gone);
    let last = waiting().unwrap();
    stop.store(true, std::sync::atomic::Ordering::SeqCst);
    let ahead = |events: mpsc::Receiver<Event>| -> Vec<usize> {
        let queued = |event| if let Event::Queued { ahead } = event { Some(ahead) } else { None };
        events.into_iter().filter_map(queued).collect()
    };
    assert_eq!(ahead(stays), [2, 2, 1], "on coming, when one was turned away, and when one had gone");
    assert_eq!(ahead(last), [2, 1]);
}

/// A store in a folder.
fn store(folder: &tempfile::TempDir) -> fathom_store::Store {
    fathom_store::Store::open(folder.path().to_str().unwrap(), fathom_store::Options::default()).unwrap()
}

pub(super) type Told = Arc<Mutex<Vec<fathom_store::Saved>>>;

/// An engine that keeps its sessions, with memory for one of `context` tokens and what goes with it.
fn keeping(folder: &tempfile::TempDir, context: usize, told: &Told) -> Engine {
    keeping_with(folder, EngineOptions { prefill_chunk: 64, context, ..EngineOptions::default() }, told)
}

/// The same with options.
pub(super) fn keeping_with(folder: &tempfile::TempDir, options: EngineOptions, told: &Told) -> Engine {
    let (model, told) = (model(), Arc::clone(told));
    let ledger = model.device().ledger();
    let context = options.context;
    ledger.limit(fathom_kernels::Share::State, model.state_bytes(context) + Engine::spare_bytes(&model));
    let told =
        Box::new(move |saved: &Result<fathom_store::Saved, _>| told.lock().unwrap().push(*saved.as_ref().unwrap()));
    let keep = Keep { store: store(folder), subject: crate::subject(&model, [7; 32]), lasts: None, told };
    Engine::start(model, options, Some(keep))
}

/// What one engine saved, another goes on from, with the same answers; and it saves no more than it must.
#[test]
fn a_store_outlives_its_engine() {
    let folder = tempfile::tempdir().unwrap();
    let told = Told::default();
    let engine = |context| keeping(&folder, context, &told);
    let whole = run(&self::engine(512, 4, 1500), request(prompt(1200), 40)).0;

    let first = engine(1500);
    assert_eq!(run(&first, request(prompt(1200), 40)).0, whole);
    first.drain();
    let positions: Vec<usize> = told.lock().unwrap().iter().map(|s| s.position).collect();
    assert_eq!(positions, [1200, 1240]);
    assert_eq!(told.lock().unwrap()[1].new_pages, 0, "the first page is there already");

    let second = engine(1500);
    let (ids, _, usage) = run(&second, request(prompt(1200), 40));
    assert_eq!((ids, usage.reused_tokens), (whole.clone(), 1200), "the very prompt");
    let longer = [prompt(1200), whole.clone(), vec![9]].concat();
    let (ids, _, usage) = run(&second, request(longer.clone(), 5));
    assert_eq!(usage.reused_tokens, 1240, "the conversation goes on");
    assert_eq!(ids, run(&self::engine(512, 4, 1500), request(longer, 5)).0);
    // Other texts, more than there is memory for.
    for start in 0..4 {
        let other: Vec<u32> = (0..1400).map(|i| (i * 31 + start) % 512).collect();
        assert_eq!(run(&second, request(other, 40)).2.reused_tokens, 0);
    }
    // The first had to go, and comes back.
    let (ids, _, usage) = run(&second, request(prompt(1200), 40));
    assert_eq!((ids, usage.reused_tokens), (whole.clone(), 1200));
    second.drain();
    let (_, _, usage) = run(&engine(1500), request(prompt(1100), 1));
    let missed = usage.missed.unwrap();
    assert_eq!((usage.reused_tokens, missed.matched, missed.why), (0, 1100, Why::NotKept));
    // Another owner's is not found, and its being there not told.
    let other = Request { owner: Owner("other".into()), ..request(prompt(1200), 1) };
    let usage = run(&engine(1500), other).2;
    assert_eq!((usage.reused_tokens, usage.missed.unwrap().why), (0, Why::Nothing));
}

/// Several sessions live side by side and branch off one another, as long as there is memory, and nobody fails without.
#[test]
fn sessions_live_side_by_side() {
    let model = model();
    let tight = model.state_bytes(1500);
    for (room, all) in [(10 * model.state_bytes(1500), true), (tight, false)] {
        let model = self::model();
        model.device().ledger().limit(fathom_kernels::Share::State, room);
        let engine =
            Engine::start(model, EngineOptions { prefill_chunk: 64, context: 1500, ..EngineOptions::default() }, None);
        let fresh = || self::engine(64, 4, 1500);
        let texts: Vec<Vec<u32>> = (0..3).map(|start| (0..1400).map(|i| (i * 31 + start) % 512).collect()).collect();
        let answers: Vec<_> = texts.iter().map(|text| run(&engine, request(text.clone(), 40)).0).collect();
        for (text, answer) in texts.iter().zip(&answers) {
            assert_eq!(*answer, run(&fresh(), request(text.clone(), 40)).0);
            // Two that go on from the same place.
            for next in [7, 8] {
                let branch = [&text[..], &[next]].concat();
                let (ids, _, usage) = run(&engine, request(branch.clone(), 40));
                assert!(!all || usage.reused_tokens == 1400, "{}", usage.reused_tokens);
                assert_eq!(ids, run(&fresh(), request(branch, 40)).0);
            }
        }
    }
}

/// One text and many questions about it, with room for little more than one session: the second question finds where they part,
/// and the text is not read again.
#[test]
fn what_many_go_on_from_stays() {
    let model = model();
    let room = model.state_bytes(1500) + 2 * model.state_bytes(100);
    model.device().ledger().limit(fathom_kernels::Share::State, room);
    let engine =
        Engine::start(model, EngineOptions { prefill_chunk: 64, context: 1500, ..EngineOptions::default() }, None);
    for question in 0..40 {
        if question == 20 {
            // It takes all the room there is; what went is kept again when it is read again.
            run(&engine, request(vec![7; 1450], 1));
        }
        let usage = run(&engine, request([prompt(1300), vec![question; 20]].concat(), 30)).2;
        assert_eq!(usage.reused_tokens, if question < 2 || question == 20 { 0 } else { 1300 }, "question {question}");
    }
}

/// What does not fit is refused before it starts, with the numbers.
#[test]
fn what_cannot_fit_is_refused() {
    let model = model();
    model.device().ledger().limit(fathom_kernels::Share::State, model.state_bytes(1024));
    let engine =
        Engine::start(model, EngineOptions { prefill_chunk: 64, context: 3000, ..EngineOptions::default() }, None);
    let (send, receive) = mpsc::channel();
    engine
        .submit(request(prompt(900), 500), move |event| {
            send.send(event).map_or(ControlFlow::Break(()), ControlFlow::Continue)
        })
        .unwrap();
    let Some(Event::Failed(Error::Memory { tokens, .. })) = receive.into_iter().last() else { panic!("not refused") };
    assert_eq!(tokens, 1400);
    assert_eq!(run(&engine, request(prompt(900), 100)).0.len(), 100);
}

/// Where a prompt differs from what is known, and what that cost.
#[test]
fn says_why_it_read_again() {
    let engine = engine(64, 4, 3000);
    let explain = |prompt| Request { explain: true, ..request(prompt, 0) };
    let first = run(&engine, Request { session: Some("one".into()), ..explain(prompt(800)) }).2;
    assert_eq!((first.reused_tokens, first.missed.unwrap().why), (0, Why::Nothing));
    let mut other = prompt(900);
    other[700] += 1;
    let usage = run(&engine, explain(other.clone())).2;
    let missed = usage.missed.unwrap();
    assert_eq!((usage.reused_tokens, &missed.why, missed.matched, missed.of), (0, &Why::Differs, 700, Some(800)));
    assert_eq!((missed.theirs, missed.ours), (prompt(708)[696..].to_vec(), other[696..708].to_vec()));
    assert_eq!(missed.session.as_deref(), Some("one"));
    assert!(missed.cost > usage.prefill / 2 && missed.cost < usage.prefill);
    let usage = run(&engine, request(prompt(500), 0)).2;
    assert_eq!(usage.missed.unwrap().why, Why::NotKept);
    assert_eq!(run(&engine, request(prompt(801), 0)).2.missed, None);
    assert_eq!(engine.counts().missed.values().sum::<u64>(), 3);
}

/// The same text in other tokens goes on from the tokens that are known.
#[test]
fn seams_are_joined() {
    struct Pairs;
    impl Seam for Pairs {
        /// Here a token 500 + x is the text of tokens x and 1.
        fn join(&self, prompt: &[u32], known: &[u32], from: usize) -> Option<Vec<u32>> {
            let spell = |tokens: &[u32]| -> Vec<u32> {
                tokens.iter().flat_map(|&t| if t >= 500 { vec![t - 500, 1] } else { vec![t] }).collect()
            };
            let rest = spell(&prompt[from..]);
            let rest = rest.strip_prefix(&spell(&known[from..])[..])?;
            Some([known, rest].concat())
        }
    }
    let engine = engine(64, 4, 3000);
    let known = [prompt(200), vec![5, 1, 6, 1]].concat();
    run(&engine, request(known.clone(), 0));
    let sent = [prompt(200), vec![505, 506, 7]].concat();
    let request = Request { seam: Some(Arc::new(Pairs)), branch: Some(202), ..request(sent, 3) };
    let (ids, _, usage) = run(&engine, request);
    assert_eq!((usage.prompt_tokens, usage.reused_tokens), (205, 204));
    assert_eq!(ids, run(&self::engine(64, 4, 3000), self::request([known, vec![7]].concat(), 3)).0);
}

/// Lets only tokens come that are in turn even and odd, and an end, token 0, after `ends` of them; fails at `fails`.
struct InTurn {
    ends: usize,
    fails: usize,
}

struct Turn {
    said: usize,
    ends: usize,
    fails: usize,
    mask: Vec<u32>,
}

impl crate::Constraint for InTurn {
    fn begin(&self) -> Box<dyn crate::Mask> {
        Box::new(Turn { said: 0, ends: self.ends, fails: self.fails, mask: vec![0; 16] })
    }
}

impl crate::Mask for Turn {
    fn allowed(&mut self) -> Result<&[u32], String> {
        if self.said == self.fails {
            return Err("it is too much".to_owned());
        }
        self.mask.fill(if self.said.is_multiple_of(2) { 0x5555_5555 } else { 0xAAAA_AAAA });
        self.mask[0] &= !1;
        if self.said == self.ends {
            self.mask.fill(0);
            self.mask[0] = 1;
        }
        Ok(&self.mask)
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        assert_eq!(token as usize % 2, self.said % 2);
        self.said += 1;
        Ok(())
    }
}

/// A constraint holds each answer by itself, whoever runs beside it, and changes nothing for those that have none.
#[test]
fn constraints_hold_each_answer_alone() {
    let all = engine(64, 16, 1000);
    let held = |i: u64, ends, fails| {
        let sampling = Sampling { seed: Some(i), temperature: 1.5, ..Sampling::default() };
        let constraint: Arc<dyn crate::Constraint> = Arc::new(InTurn { ends, fails });
        Request { sampling, stop_tokens: vec![0], constraint: Some(constraint), ..request(prompt(40), 30) }
    };
    let free = |i: u64| Request { constraint: None, ..held(i, 0, 0) };
    let begin = |engine: &Engine, request| {
        let (send, receive) = mpsc::channel();
        let sink = move |event| send.send(event).map_or(ControlFlow::Break(()), ControlFlow::Continue);
        engine.submit(request, sink).unwrap();
        receive
    };
    let running: Vec<_> =
        (0..6).flat_map(|i| [begin(&all, held(i, 4 + 3 * i as usize, 99)), begin(&all, free(i))]).collect();
    let answers: Vec<(Vec<u32>, Finish)> = running
        .into_iter()
        .map(|events| {
            let (mut ids, mut end) = (Vec::new(), None);
            for event in events {
                match event {
                    Event::Token { id, .. } => ids.push(id),
                    Event::Done { reason, .. } => end = Some(reason),
                    _ => {}
                }
            }
            (ids, end.unwrap())
        })
        .collect();
    for (i, pair) in answers.chunks(2).enumerate() {
        let (ids, reason, _) = run(&engine(64, 16, 1000), held(i as u64, 4 + 3 * i, 99));
        assert_eq!((ids.len(), reason), (4 + 3 * i, Finish::Stop));
        assert_eq!(pair[0], (ids, reason));
        let (ids, reason, _) = run(&engine(64, 16, 1000), free(i as u64));
        assert_eq!(pair[1], (ids, reason));
    }
    let failed = begin(&all, held(1, 20, 3)).into_iter().last();
    let Some(Event::Failed(error)) = failed else { panic!("{failed:?}") };
    assert!(error.to_string().contains("it is too much"), "{error}");
}
