//! Tokens per second of many requests at once: `cargo bench -p fathom-engine --bench parallel -- FOLDER [--most N] [--tokens N]`.
//!
//! Each reads 32 tokens of its own and then speaks; what is counted is the time in which all speak. Greedy, and at temperature 1.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use fathom_engine::{Engine, EngineOptions, Event, Request, Sampling};
use fathom_kernels::{Cpu, CpuOptions};
use fathom_model::Model;
use fathom_weights::Checkpoint;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let Some(folder) = args.first().filter(|arg| !arg.starts_with("--")) else {
        return println!("parallel: no folder of a checkpoint was given, nothing measured");
    };
    let number = |name: &str, default: usize| {
        let at = args.iter().position(|arg| arg == name);
        at.map_or(default, |at| args[at + 1].parse().expect("a number"))
    };
    let (most, tokens) = (number("--most", 8), number("--tokens", 64));
    let checkpoint = Checkpoint::open(Path::new(folder)).expect("a checkpoint");
    let model = Arc::new(Model::load(Cpu::new(CpuOptions::default()).expect("a CPU"), &checkpoint).expect("a model"));
    let vocab = model.config().vocab_size;
    let counts = || std::iter::successors(Some(1), |n| Some(n * 2)).take_while(|&n| n <= most);
    for temperature in [0.0, 1.0] {
        let mut alone = 0.0;
        for parallel in counts() {
            let options =
                EngineOptions { parallel, stall: Duration::from_secs(10), queue: parallel, ..EngineOptions::default() };
            let engine = Engine::start(Arc::clone(&model), options, None);
            let (send, events) = mpsc::channel();
            for i in 0..parallel {
                let prompt = (0..32).map(|k| ((i * 7919 + k * 104_729 + 1) % vocab) as u32).collect();
                let sampling = Sampling { temperature, seed: Some(i as u64), ..Sampling::default() };
                let request = Request { prompt, max_tokens: Some(tokens + 16), sampling, ..Request::default() };
                let send = send.clone();
                let sink = move |event| send.send((i, event)).map_or(ControlFlow::Break(()), ControlFlow::Continue);
                engine.submit(request, sink).expect("a place");
            }
            drop(send);
            let mut got = vec![0; parallel];
            let (mut start, mut counted) = (None, 0);
            while let Ok((i, event)) = events.recv() {
                match event {
                    Event::Token { .. } if start.is_some() => counted += 1,
                    Event::Token { .. } => got[i] += 1,
                    // From the first end on fewer speak.
                    Event::Done { .. } => break,
                    Event::Failed(e) => panic!("{e}"),
                    _ => {}
                }
                if start.is_none() && got.iter().all(|&n| n >= 2) {
                    start = Some(Instant::now());
                }
            }
            let speed = counted as f64 / start.expect("all spoke").elapsed().as_secs_f64();
            if parallel == 1 {
                alone = speed;
            }
            println!("temperature {temperature}: {parallel} at once {speed:.1} tokens/s, {:.2} of one", speed / alone);
        }
    }
}
