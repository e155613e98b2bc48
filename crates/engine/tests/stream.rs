//! A read that fails ends the request that needed it, with file, place and cause; the engine lives and answers the next.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use fathom_engine::{Engine, EngineOptions, Event, Request, Sampling};
use fathom_kernels::{Cpu, CpuOptions};
use fathom_model::Model;
use fathom_weights::Checkpoint;
use fathom_weights::experts::{Fault, StreamOptions};
use fathom_weights::synth::Synth;

/// The answer's tokens, or what was wrong.
fn run(engine: &Engine, prompt: Vec<u32>) -> Result<Vec<u32>, String> {
    let (send, receive) = mpsc::channel();
    let request = Request { prompt, max_tokens: Some(20), sampling: Sampling::greedy(), ..Request::default() };
    engine
        .submit(request, move |event| send.send(event).map_or(ControlFlow::Break(()), ControlFlow::Continue))
        .unwrap();
    let mut ids = Vec::new();
    for event in receive {
        match event {
            Event::Token { id, .. } => ids.push(id),
            Event::Done { .. } => return Ok(ids),
            Event::Failed(e) => return Err(e.to_string()),
            _ => {}
        }
    }
    panic!("the engine went away");
}

#[test]
fn a_failed_read_ends_one_request() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    Synth::tiny(5).set("n_routed_experts", 64).write(folder.path()).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let failing = Arc::new(AtomicBool::new(false));
    let now = Arc::clone(&failing);
    let faults = move |_| now.load(Ordering::Relaxed).then_some(Fault::Error(5));
    let options = StreamOptions { memory: 100 * 30_000, faults: Some(Arc::new(faults)), ..StreamOptions::default() };
    let cpu = Cpu::new(CpuOptions { threads: Some(2), ..CpuOptions::default() }).unwrap();
    let model = Arc::new(Model::stream(cpu, &checkpoint, options).unwrap());
    let engine = Engine::start(
        model,
        EngineOptions { prefill_chunk: 32, queue: 4, context: 500, ..EngineOptions::default() },
        None,
    );
    let prompt: Vec<u32> = (0..100).map(|i| i * 7919 % 512).collect();
    let answer = run(&engine, prompt.clone()).unwrap();
    failing.store(true, Ordering::Relaxed);
    let other: Vec<u32> = (0..100).map(|i| i * 31 % 512).collect();
    let message = run(&engine, other).unwrap_err();
    assert!(message.contains("model.safetensors at byte") && message.contains("Input/output error"), "{message}");
    failing.store(false, Ordering::Relaxed);
    assert_eq!(run(&engine, prompt).unwrap(), answer);
}
