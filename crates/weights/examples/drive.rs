//! What a drive gives to who does nothing but read, and what fathom's reader makes of it.
//!
//!     cargo run --release -p fathom-weights --example drive -- FILE BLOCK DEPTH SECONDS [BUFFERS]
//!     cargo run --release -p fathom-weights --example drive -- MODEL SECONDS
//!
//! The first: DEPTH threads each read BLOCK bytes at random places of FILE, past the page cache, one read after another, each into
//! BUFFERS pieces of memory by turns (1). What is read into few stays in the processor's caches, which no cache of experts does. The
//! second: every layer's experts of a checkpoint are demanded, taken and dropped, again and again, with room for one layer.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fathom_kernels::{Cpu, CpuOptions, FRAME_ALIGN, Frames, Ledger};
use fathom_weights::Checkpoint;
use fathom_weights::experts::{ExpertCache, Places, StreamOptions};

type Outcome = Result<(), Box<dyn std::error::Error>>;

fn main() -> Outcome {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match &args[..] {
        [path, block, depth, seconds] => raw(path, block.parse()?, depth.parse()?, seconds.parse()?, 1),
        [path, block, depth, seconds, buffers] => {
            raw(path, block.parse()?, depth.parse()?, seconds.parse()?, buffers.parse()?)
        }
        [model, seconds] => reader(model, seconds.parse()?),
        _ => Err("FILE BLOCK DEPTH SECONDS [BUFFERS], or MODEL SECONDS".into()),
    }
}

fn raw(path: &str, block: usize, depth: usize, seconds: f64, buffers: usize) -> Outcome {
    let block = block.next_multiple_of(FRAME_ALIGN);
    #[cfg(target_os = "linux")]
    let file = File::options().read(true).custom_flags(libc::O_DIRECT).open(path)?;
    #[cfg(not(target_os = "linux"))]
    let file = File::options().read(true).custom_flags(0).open(path)?;
    let places = (file.metadata()?.len() as usize).saturating_sub(block) / FRAME_ALIGN;
    if places == 0 {
        return Err("the file is shorter than a block".into());
    }
    let frames = Frames::new(&Ledger::default(), depth * buffers, block)?;
    let (total, start) = (AtomicU64::new(0), Instant::now());
    std::thread::scope(|scope| {
        for thread in 0..depth as u64 {
            let (file, frames, total) = (&file, &frames, &total);
            scope.spawn(move || {
                let mut frames: Vec<_> =
                    (0..buffers).map(|_| frames.take().expect("as many for each thread")).collect();
                let mut turn = 0;
                let mut random = thread.wrapping_mul(0x9E37_79B9_7F4A_7C15) + 1;
                while start.elapsed() < Duration::from_secs_f64(seconds) {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let at = (random >> 33) as usize % places * FRAME_ALIGN;
                    turn = (turn + 1) % buffers.max(1);
                    let read = file.read_at(frames[turn].as_mut(), at as u64).unwrap_or(0);
                    total.fetch_add(read as u64, Ordering::Relaxed);
                }
            });
        }
    });
    println!("{:.3} GB/s", total.into_inner() as f64 / start.elapsed().as_secs_f64() / 1e9);
    Ok(())
}

fn reader(model: &str, seconds: f64) -> Outcome {
    let checkpoint = Checkpoint::open(Path::new(model))?;
    let places = Places::new(&checkpoint)?;
    let (layers, experts) = places.counts();
    let cpu = Cpu::new(CpuOptions { threads: Some(1), ..CpuOptions::default() })?;
    let memory = (experts * places.frame_bytes()) as u64;
    let cache = ExpertCache::new(&cpu, &checkpoint, StreamOptions { memory, ..StreamOptions::default() })?;
    let wanted: Vec<(u32, usize)> = (0..experts as u32).map(|expert| (expert, 1)).collect();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs_f64(seconds) {
        let mut pass = cache.begin(&cpu, 1, false);
        for layer in 0..layers {
            pass.demand(layer, 1, &wanted);
            while pass.take()?.is_some() {}
        }
    }
    let read = cache.stats().read_bytes as f64;
    println!("{:.3} GB/s, {}", read / start.elapsed().as_secs_f64() / 1e9, cache.describe());
    Ok(())
}
