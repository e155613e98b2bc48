//! Threads that each wait for one expert at a time.

use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use fathom_kernels::Frame;

use super::{Done, Read, Shared, spawn};
use crate::Error;

/// As many threads as can be had, up to that number.
///
/// # Errors
/// There is not one.
pub(super) fn start(shared: &Arc<Shared>, threads: usize, done: &Sender<Done>) -> Result<Vec<JoinHandle<()>>, Error> {
    let mut all = Vec::new();
    for _ in 0..threads {
        let (shared, done) = (Arc::clone(shared), done.clone());
        match spawn(move || work(&shared, &done)) {
            Ok(thread) => all.push(thread),
            Err(e) if all.is_empty() => return Err(e),
            Err(_) => break,
        }
    }
    Ok(all)
}

/// Reads until the reader is closed.
pub(super) fn work(shared: &Shared, done: &Sender<Done>) {
    while let Some(Read { expert, mut frame }) = next(shared) {
        let read = read(shared, expert, &mut frame);
        rest(shared);
        if done.send(Done { expert, frame: read.map(|()| frame) }).is_err() {
            return;
        }
    }
}

/// Waits for something to read; none when the reader is closed.
fn next(shared: &Shared) -> Option<Read> {
    let mut queue = shared.lock();
    loop {
        if let Some(read) = queue.pop() {
            queue.busy += 1;
            queue.since.get_or_insert_with(Instant::now);
            return Some(read);
        }
        if queue.closed {
            return None;
        }
        queue = shared.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
    }
}

/// A read has ended.
fn rest(shared: &Shared) {
    let mut queue = shared.lock();
    queue.busy -= 1;
    if queue.busy == 0
        && let Some(since) = queue.since.take()
    {
        shared.totals.busy.fetch_add(since.elapsed().as_nanos() as u64, Ordering::Relaxed);
    }
}

fn read(shared: &Shared, expert: usize, frame: &mut Frame) -> Result<(), Error> {
    let runs = &shared.places.get(expert).runs;
    if let Some(fault) = shared.fault() {
        return Err(shared.faulty(fault, &runs[0]));
    }
    for run in runs {
        shared.files[run.shard as usize].read(run, frame.as_mut())?;
    }
    shared.count(expert);
    shared.check(expert)
}
