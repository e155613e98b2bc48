//! Many requests at once, each as if it were alone.

use std::time::Duration;

use fathom_kernels::Share;

use super::tests::{Told, keeping_with, model, prompt};
use super::*;
use crate::{Finish, Sampling};

/// What a request says: tokens, and how likely each was, to the bit.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Said {
    tokens: Vec<(u32, u32)>,
    finish: Finish,
}

type Events = std::sync::mpsc::Receiver<Event>;

fn submit(engine: &Engine, request: Request) -> Events {
    let (send, receive) = std::sync::mpsc::channel();
    let sink = move |event| send.send(event).map_or(ControlFlow::Break(()), ControlFlow::Continue);
    engine.submit(request, sink).unwrap();
    receive
}

fn said(events: Events) -> (Said, Usage) {
    let mut tokens = Vec::new();
    for event in events {
        match event {
            Event::Token { id, logprob, .. } => tokens.push((id, logprob.unwrap().to_bits())),
            Event::Done { reason, usage } => return (Said { tokens, finish: reason }, usage),
            Event::Failed(e) => panic!("{e}"),
            _ => {}
        }
    }
    panic!("the engine went away");
}

fn alone(request: &Request) -> Said {
    said(submit(&Engine::start(model(), options(1), None), request.clone())).0
}

fn options(parallel: usize) -> EngineOptions {
    EngineOptions { prefill_chunk: 64, parallel, queue: 100, context: 3000, ..EngineOptions::default() }
}

/// Another text for each start.
fn text(start: usize, n: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * 31 + start * 17 + i * i * start) % 512) as u32).collect()
}

fn request(prompt: Vec<u32>, most: usize, seed: u64) -> Request {
    let sampling = Sampling { seed: Some(seed), logprobs: Some(0), temperature: 1.2, ..Sampling::default() };
    Request { prompt, max_tokens: Some(most), sampling, ..Request::default() }
}

/// Mixed lengths, from one token to more than a page, and some that begin alike.
fn mixed(n: usize) -> Vec<Request> {
    let one = |i: usize| {
        let length = [1, 7, 300, 64, 1100, 129, 33, 700][i % 8];
        let mut prompt = text(i / 2, length);
        prompt.extend(text(i, 5));
        request(prompt, [1, 40, 3, 25, 10, 0, 60, 15][(i * 5 + i / 8) % 8], i as u64)
    };
    (0..n).map(one).collect()
}

#[test]
fn neighbours_change_no_bit() {
    let requests = mixed(24);
    let alone: Vec<Said> = requests.iter().map(alone).collect();
    for parallel in [2, 3, 8, 24] {
        let engine = Engine::start(model(), options(parallel), None);
        let events: Vec<Events> = requests.iter().map(|request| submit(&engine, request.clone())).collect();
        for (i, (events, alone)) in events.into_iter().zip(&alone).enumerate() {
            assert_eq!(said(events).0, *alone, "request {i} of {parallel} at once");
        }
        assert_eq!(engine.load(), (0, 0));
    }
}

/// Some leave in the middle of their prompts, some in the middle of their answers, and the others do not notice.
#[test]
fn those_who_leave_change_nothing() {
    let requests = mixed(16);
    let alone: Vec<Said> = requests.iter().map(alone).collect();
    let engine = Engine::start(model(), options(5), None);
    let events: Vec<Events> = requests
        .iter()
        .enumerate()
        .map(|(i, request)| {
            let (send, receive) = std::sync::mpsc::channel();
            let mut heard = 0;
            let sink = move |event| {
                heard += 1;
                let _ = send.send(event);
                if i % 3 == 1 && heard > i / 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            engine.submit(request.clone(), sink).unwrap();
            receive
        })
        .collect();
    for (i, (events, alone)) in events.into_iter().zip(&alone).enumerate() {
        if i % 3 != 1 {
            assert_eq!(said(events).0, *alone, "request {i}");
        }
    }
    // What those who left had read is good.
    for (request, alone) in requests.iter().zip(&alone) {
        assert_eq!(said(submit(&engine, request.clone())).0, *alone);
    }
}

/// States from a store, and sessions, beside others.
#[test]
fn restored_states_beside_others() {
    // In memory where that can be had: what a slow disk is not done with is dropped, and what is found again is counted.
    let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let requests = mixed(12);
    let alone: Vec<Said> = requests.iter().map(alone).collect();
    for round in 0..3 {
        let engine = keeping_with(&folder, options(6), &Told::default());
        let of = |i: usize| i.is_multiple_of(2).then(|| format!("session-{i}").into());
        let named = requests.iter().enumerate().map(|(i, r)| Request { session: of(i), ..r.clone() });
        let events: Vec<Events> = named.map(|request| submit(&engine, request)).collect();
        let mut reused = 0;
        for (events, alone) in events.into_iter().zip(&alone) {
            let (said, usage) = said(events);
            assert_eq!(said, *alone, "round {round}");
            reused += usage.reused_tokens;
        }
        assert!(reused > 1000 || round == 0, "{reused}");
        engine.drain();
    }
}

/// A prompt of two tokens that comes after one of two thousand has its answer before that has been read.
#[test]
fn short_prompts_overtake_long_ones() {
    let options = EngineOptions { prefill_chunk: 16, stall: Duration::ZERO, ..options(4) };
    let engine = Engine::start(model(), options, None);
    let order = Arc::new(Mutex::new(Vec::new()));
    let events = |name: &'static str, request| {
        let (send, receive) = std::sync::mpsc::channel();
        let order = Arc::clone(&order);
        let sink = move |event| {
            if matches!(event, Event::Done { .. }) {
                order.lock().unwrap().push(name);
            }
            send.send(event).map_or(ControlFlow::Break(()), ControlFlow::Continue)
        };
        engine.submit(request, sink).unwrap();
        receive
    };
    let long = events("long", request(text(1, 2500), 1, 1));
    assert!(matches!(long.recv(), Ok(Event::Prefill { done: 0, .. })));
    let short = events("short", request(text(2, 2), 20, 2));
    said(short);
    said(long);
    assert_eq!(*order.lock().unwrap(), ["short", "long"]);
}

/// While somebody speaks, no pass reads more than the least where reading may add no time at all.
#[test]
fn reading_leaves_room_to_speak() {
    let options = EngineOptions { prefill_chunk: 512, stall: Duration::ZERO, ..options(4) };
    let engine = Engine::start(model(), options, None);
    let speaks = submit(&engine, request(text(1, 10), 2000, 1));
    while !matches!(speaks.recv(), Ok(Event::Token { .. })) {}
    let reads = submit(&engine, request(text(2, 900), 0, 2));
    let steps: Vec<usize> = reads
        .into_iter()
        .filter_map(|event| if let Event::Prefill { done, .. } = event { Some(done) } else { None })
        .collect();
    drop(speaks);
    let largest = steps.windows(2).map(|pair| pair[1] - pair[0]).collect::<Vec<_>>();
    assert!(largest[2..largest.len() - 2].iter().all(|&step| step <= 32), "{largest:?}");
}

/// Those who cannot all have what they may need wait for one another, and all end, with the bits that they would have had.
#[test]
fn memory_is_shared_without_loss() {
    let requests: Vec<Request> = (0..8).map(|i| request(text(i, 900), 400, i as u64)).collect();
    let alone: Vec<Said> = requests.iter().map(alone).collect();
    for sessions in [1, 2, 3] {
        let model = model();
        let room = sessions * model.state_bytes(1300) + model.state_bytes(900);
        model.device().ledger().limit(Share::State, room);
        let engine = Engine::start(Arc::clone(&model), options(8), None);
        let events: Vec<Events> = requests.iter().map(|request| submit(&engine, request.clone())).collect();
        for (events, alone) in events.into_iter().zip(&alone) {
            assert_eq!(said(events).0, *alone, "room for {sessions}");
        }
        let holding = model.device().ledger().holding(Share::State);
        assert!(holding.peak <= room);
    }
}

/// The same prompt, or the same beginning, is read once, however many come with it.
#[test]
fn what_is_the_same_is_read_once() {
    let engine = Engine::start(model(), options(8), None);
    let ends = |i: usize| [text(1, 2000), text(i, 40)].concat();
    let requests: Vec<Request> = (0..6).map(|i| request(ends(i / 2 + 2), 5, i as u64)).collect();
    let alone: Vec<Said> = requests.iter().map(alone).collect();
    let events: Vec<Events> = requests.iter().map(|request| submit(&engine, request.clone())).collect();
    let mut read = 0;
    for (events, alone) in events.into_iter().zip(&alone) {
        let (said, usage) = said(events);
        assert_eq!(said, *alone);
        read += usage.prompt_tokens - usage.reused_tokens;
    }
    // Those that began before the first was known to read the same have read a chunk at most.
    assert!(read <= 2000 + 6 * 40 + 64, "{read}");
}

/// The one that reads for others leaves, and they go on from what it had read.
#[test]
fn a_leader_may_leave() {
    let engine = Engine::start(model(), options(4), None);
    let first = submit(&engine, request(text(1, 2500), 3, 1));
    let mut done = 0;
    let second = submit(&engine, request(text(1, 2500), 3, 2));
    while done < 500 {
        if let Event::Prefill { done: now, .. } = first.recv().unwrap() {
            done = now;
        }
    }
    drop(first);
    let (told, usage) = said(second);
    assert_eq!(told, alone(&request(text(1, 2500), 3, 2)));
    assert!(usage.reused_tokens >= 500);
}

/// Who waits for another's reading hears how far that is, and is let go at once.
#[test]
fn those_who_follow_hear_of_it() {
    let engine = Engine::start(model(), options(4), None);
    let prompt = text(1, 2500);
    let first = submit(&engine, request(prompt.clone(), 3, 1));
    while !matches!(first.recv(), Ok(Event::Prefill { done: 1.., .. })) {}
    let longer = submit(&engine, request([prompt.clone(), text(2, 100)].concat(), 3, 2));
    let leaves = submit(&engine, request(prompt, 3, 3));
    let follows = |event| match event {
        Event::Follows { done, shared, total } => Some((done, shared, total)),
        _ => None,
    };
    while follows(leaves.recv().unwrap()).is_none_or(|(done, ..)| done < 500) {}
    drop(leaves);
    while engine.load().1 > 2 {
        assert!(!matches!(first.recv(), Ok(Event::Token { .. }) | Err(_)), "it was let go at the end only");
    }
    let events: Vec<Event> = longer.into_iter().skip_while(|event| matches!(event, Event::Queued { .. })).collect();
    let heard: Vec<_> = events.iter().cloned().map_while(follows).collect();
    assert!(heard.len() > 10 && heard.is_sorted(), "{heard:?}");
    assert!(heard.iter().all(|&(_, shared, total)| (shared, total) == (2500, 2600)));
    let read = events.into_iter().nth(heard.len());
    assert!(matches!(read, Some(Event::Prefill { done: 2500, total: 2600, reused: 2500 })), "{read:?}");
    said(first);
    // Nothing counts as read that was not.
    let counts = engine.counts();
    assert_eq!(counts.prompt_tokens - counts.reused_tokens, 2600);
}

/// How likely each token of a prompt was.
#[test]
fn prompts_are_told_with_their_logprobs() {
    let engine = Engine::start(model(), options(4), None);
    let asked = Request { prompt_logprobs: Some(2), ..request(prompt(100), 1, 3) };
    // Even where all of it is known.
    said(submit(&engine, request(prompt(100), 1, 3)));
    for (ended, events) in (0..3).map(|i| (i, submit(&engine, asked.clone()))).collect::<Vec<_>>() {
        let mut ids = Vec::new();
        for event in events {
            let Event::Read { id, logprob, top } = event else { continue };
            // The next token of a shorter prompt is as likely.
            if ids.len().is_multiple_of(33) && ended == 0 {
                let bias = Sampling { logit_bias: vec![(id, 100.0)], logprobs: Some(2), ..Sampling::greedy() };
                let short = Request { sampling: bias, ..request(prompt(ids.len() + 1), 1, 0) };
                assert_eq!(said(submit(&engine, short)).0.tokens, [(id, logprob.unwrap().to_bits())]);
            }
            assert!(top.len() == 2 && top[0].logprob >= logprob.unwrap());
            ids.push(id);
        }
        assert_eq!(ids, prompt(100)[1..]);
    }
}
