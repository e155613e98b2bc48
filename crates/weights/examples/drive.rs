//! What a drive gives to who does nothing but read: the yardstick of `docs/streaming.md`.
//!
//!     cargo run --release -p fathom-weights --example drive -- FILE BLOCK DEPTH SECONDS
//!
//! DEPTH threads each read BLOCK bytes at random places of FILE, past the page cache, one read after another.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fathom_kernels::{FRAME_ALIGN, Frames, Ledger};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [path, block, depth, seconds] = &args[..] else { return Err("FILE BLOCK DEPTH SECONDS".into()) };
    let (block, depth, seconds): (usize, usize, f64) = (block.parse()?, depth.parse()?, seconds.parse()?);
    let block = block.next_multiple_of(FRAME_ALIGN);
    #[cfg(target_os = "linux")]
    let file = File::options().read(true).custom_flags(libc::O_DIRECT).open(path)?;
    #[cfg(not(target_os = "linux"))]
    let file = File::options().read(true).custom_flags(0).open(path)?;
    let places = (file.metadata()?.len() as usize).saturating_sub(block) / FRAME_ALIGN;
    if places == 0 {
        return Err("the file is shorter than a block".into());
    }
    let frames = Frames::new(&Ledger::default(), depth, block)?;
    let (total, start) = (AtomicU64::new(0), Instant::now());
    std::thread::scope(|scope| {
        for thread in 0..depth as u64 {
            let (file, frames, total) = (&file, &frames, &total);
            scope.spawn(move || {
                let mut frame = frames.take().expect("one for each thread");
                let mut random = thread.wrapping_mul(0x9E37_79B9_7F4A_7C15) + 1;
                while start.elapsed() < Duration::from_secs_f64(seconds) {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let at = (random >> 33) as usize % places * FRAME_ALIGN;
                    let read = file.read_at(frame.as_mut(), at as u64).unwrap_or(0);
                    total.fetch_add(read as u64, Ordering::Relaxed);
                }
            });
        }
    });
    println!("{:.3} GB/s", total.into_inner() as f64 / start.elapsed().as_secs_f64() / 1e9);
    Ok(())
}
