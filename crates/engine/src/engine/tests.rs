use std::sync::mpsc;

use fathom_kernels::{Cpu, CpuOptions};
use fathom_weights::synth::Synth;

use super::*;
use crate::Sampling;

fn model() -> Arc<Model<Cpu>> {
    let checkpoint = Synth::tiny(5).set("num_hidden_layers", 3).set("compress_ratios", vec![4, 128, 0]).checkpoint();
    let cpu = Cpu::new(CpuOptions { threads: Some(2), ..CpuOptions::default() }).unwrap();
    Arc::new(Model::load(cpu, &checkpoint.unwrap()).unwrap())
}

fn engine(chunk: usize, queue: usize, context: usize) -> Engine {
    Engine::start(model(), EngineOptions { prefill_chunk: chunk, queue, context }, None)
}

fn prompt(n: usize) -> Vec<u32> {
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
            Event::Queued { .. } | Event::Prefill { .. } => {}
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
    while engine.load() != (0, true) {
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

/// What one engine saved, another goes on from, with the same answers; and it saves no more than it must.
#[test]
fn a_store_outlives_its_engine() {
    let folder = tempfile::tempdir().unwrap();
    let open = || fathom_store::Store::open(folder.path().to_str().unwrap(), fathom_store::Options::default()).unwrap();
    let namespace = || open().namespace("default").unwrap();
    let saved = Arc::new(Mutex::new(Vec::new()));
    let engine = |context: usize| {
        let (model, saved) = (model(), Arc::clone(&saved));
        let ledger = model.device().ledger();
        ledger.limit(fathom_kernels::Share::State, model.state_bytes(context) + Engine::keep_bytes(&model));
        let told = Box::new(move |result: Result<fathom_store::Saved, _>| saved.lock().unwrap().push(result.unwrap()));
        let keep = Keep { namespace: namespace(), subject: crate::subject(&model, [7; 32]), told };
        Engine::start(model, EngineOptions { prefill_chunk: 64, queue: 4, context }, Some(keep))
    };
    let whole = run(&self::engine(512, 4, 1500), request(prompt(1200), 40)).0;

    let first = engine(1500);
    assert_eq!(run(&first, request(prompt(1200), 40)).0, whole);
    first.drain();
    let positions: Vec<usize> = saved.lock().unwrap().iter().map(|s| s.position).collect();
    assert_eq!(positions, [1200, 1240]);
    assert_eq!(saved.lock().unwrap()[1].new_pages, 0, "the first page is there already");

    let second = engine(1500);
    let (ids, _, usage) = run(&second, request(prompt(1200), 40));
    assert_eq!((ids, usage.reused_tokens), (whole.clone(), 1200), "the very prompt");
    let longer = [prompt(1200), whole.clone(), vec![9]].concat();
    let (ids, _, usage) = run(&second, request(longer.clone(), 5));
    assert_eq!(usage.reused_tokens, 1240, "the conversation goes on");
    assert_eq!(ids, run(&self::engine(512, 4, 1500), request(longer, 5)).0);
    // Another text while the first is still being written: there is memory for one session.
    for start in 0..4 {
        let other: Vec<u32> = (0..1400).map(|i| (i * 31 + start) % 512).collect();
        assert_eq!(run(&second, request(other, 40)).2.reused_tokens, 0);
    }
    second.drain();
    assert_eq!(run(&engine(1500), request(prompt(1100), 1)).2.reused_tokens, 0, "no state was kept before 1,200");
}
