//! Reads experts in the background: what is asked for goes in a queue, what was read comes out of a channel.
//!
//! Tried in this order, and the first that the system allows is used: io_uring with buffers that it was told of before,
//! io_uring, threads that wait for one read each. Files are read past the page cache where their file system lets us.

mod pool;
#[cfg(target_os = "linux")]
mod ring;

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fathom_kernels::{Frame, Frames};

use super::file::ShardFile;
use super::place::{Places, Run};
use crate::Error;

/// Reads under way on one drive: three megabytes, in pieces of half a megabyte. Enough for 14 GB/s at 200 µs, and few enough
/// that what is needed now does not wait long behind what was asked for ahead.
const DEPTH: usize = 6;
/// The most reads under way.
const MOST: usize = 64;

/// How experts are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReaderKind {
    /// io_uring, with buffers registered.
    FixedRing,
    /// io_uring.
    Ring,
    /// Threads that each wait for a read.
    Pool,
}

impl fmt::Display for ReaderKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ReaderKind::FixedRing => "io_uring with fixed buffers",
            ReaderKind::Ring => "io_uring",
            ReaderKind::Pool => "a pool of threads",
        })
    }
}

/// What a test has happen to a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The system reports this error number.
    Error(i32),
    /// The file gives fewer bytes than it has.
    Short,
    /// The drive does not answer for a while.
    Stall(Duration),
}

/// Says what happens to the read of an expert, by how many were read before; for tests.
pub type Faults = Arc<dyn Fn(u64) -> Option<Fault> + Send + Sync>;

/// An expert to read.
#[derive(Debug)]
pub(crate) struct Read {
    /// What it is to who asked.
    pub expert: usize,
    pub frame: Frame,
}

/// An expert that was read, or why not.
#[derive(Debug)]
pub(crate) struct Done {
    pub expert: usize,
    pub frame: Result<Frame, Error>,
}

/// Totals of a reader.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub bytes: AtomicU64,
    pub reads: AtomicU64,
    /// Nanoseconds with at least one read under way.
    pub busy: AtomicU64,
}

/// What its threads share.
pub(crate) struct Shared {
    pub places: Arc<Places>,
    pub files: Vec<ShardFile>,
    queue: Mutex<Queue>,
    changed: Condvar,
    pub totals: Totals,
    faults: Option<Faults>,
    started: AtomicU64,
}

#[derive(Default)]
struct Queue {
    /// Needed now; and likely to be.
    urgent: VecDeque<Read>,
    ahead: VecDeque<Read>,
    closed: bool,
    /// Reads that threads of the pool have in hand, and since when there is one.
    busy: usize,
    since: Option<Instant>,
}

impl Queue {
    fn pop(&mut self) -> Option<Read> {
        self.urgent.pop_front().or_else(|| self.ahead.pop_front())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What happens to the next read that starts; a stall happens here.
    fn fault(&self) -> Option<Fault> {
        let fault = self.faults.as_ref()?(self.started.fetch_add(1, Ordering::Relaxed));
        if let Some(Fault::Stall(time)) = fault {
            std::thread::sleep(time);
            return None;
        }
        fault
    }

    /// A fault as the error that it would come out as.
    fn faulty(&self, fault: Fault, run: &Run) -> Error {
        let shard = &self.files[run.shard as usize];
        match fault {
            Fault::Error(number) => shard.failed(run.from, &std::io::Error::from_raw_os_error(number).to_string()),
            _ => shard.ended(run.from + run.need as u64 / 2),
        }
    }

    /// Whether the files of a finished read are still those that were opened.
    fn check(&self, expert: usize) -> Result<(), Error> {
        let runs = &self.places.get(expert).runs;
        runs.iter().try_for_each(|run| self.files[run.shard as usize].check(run.from))
    }

    fn count(&self, expert: usize) {
        let runs = &self.places.get(expert).runs;
        let bytes: usize = runs.iter().map(|run| run.len).sum();
        self.totals.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.totals.reads.fetch_add(runs.len() as u64, Ordering::Relaxed);
    }
}

/// Reads experts; dropping it waits for those under way.
pub(crate) struct Reader {
    shared: Arc<Shared>,
    done: Receiver<Done>,
    kind: ReaderKind,
    depth: usize,
    /// Wakes the ring's thread.
    #[cfg(target_os = "linux")]
    bell: Option<ring::Bell>,
    threads: Vec<JoinHandle<()>>,
    under_way: usize,
}

impl Reader {
    /// Starts reading out of `files` into frames of `frames`. `best` is the first kind that is tried.
    pub(crate) fn start(
        places: Arc<Places>,
        files: Vec<ShardFile>,
        frames: &Frames,
        best: ReaderKind,
        faults: Option<Faults>,
    ) -> Result<Reader, Error> {
        let mut drives: Vec<i128> = files.iter().map(ShardFile::drive).collect();
        drives.sort_unstable();
        drives.dedup();
        let depth = (DEPTH * drives.len()).clamp(1, MOST);
        let shared = Arc::new(Shared {
            places,
            files,
            queue: Mutex::default(),
            changed: Condvar::new(),
            totals: Totals::default(),
            faults,
            started: AtomicU64::new(0),
        });
        let (send, done) = channel();
        let started = start(&shared, frames, best, depth, &send)?;
        #[cfg(target_os = "linux")]
        let (kind, bell, threads) = started;
        #[cfg(not(target_os = "linux"))]
        let (kind, threads) = started;
        Ok(Reader {
            shared,
            done,
            kind,
            depth,
            #[cfg(target_os = "linux")]
            bell,
            threads,
            under_way: 0,
        })
    }

    /// What is in use.
    pub(crate) fn kind(&self) -> ReaderKind {
        self.kind
    }

    /// What is in use, for people.
    pub(crate) fn describe(&self) -> String {
        format!("{}, {} reads at once, {}", self.kind, self.depth, ways(&self.shared.files))
    }

    pub(crate) fn totals(&self) -> &Totals {
        &self.shared.totals
    }

    /// Experts that were asked for and have not come out.
    pub(crate) fn under_way(&self) -> usize {
        self.under_way
    }

    /// Queues reads; urgent ones go before the others.
    pub(crate) fn submit(&mut self, reads: Vec<Read>, urgent: bool) {
        if reads.is_empty() {
            return;
        }
        self.under_way += reads.len();
        let mut queue = self.shared.lock();
        if urgent {
            queue.urgent.extend(reads)
        } else {
            queue.ahead.extend(reads)
        }
        drop(queue);
        self.wake();
    }

    /// Takes back what is queued ahead and not begun.
    pub(crate) fn forget_ahead(&mut self) -> Vec<Read> {
        let back: Vec<Read> = self.shared.lock().ahead.drain(..).collect();
        self.under_way -= back.len();
        back
    }

    /// The next expert that was read; waits for it at most so long.
    pub(crate) fn next(&mut self, wait: Duration) -> Option<Done> {
        let got = match wait.is_zero() {
            true => self.done.try_recv().ok(),
            false => match self.done.recv_timeout(wait) {
                Ok(done) => Some(done),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => panic!("the reader's threads are gone"),
            },
        };
        self.under_way -= usize::from(got.is_some());
        got
    }

    fn wake(&self) {
        self.shared.changed.notify_all();
        #[cfg(target_os = "linux")]
        if let Some(bell) = &self.bell {
            bell.ring();
        }
    }
}

/// Which files are read past the page cache, for people, and why others are not.
pub(super) fn ways(files: &[ShardFile]) -> String {
    let buffered: Vec<_> =
        files.iter().filter_map(|file| Some((file.path.display(), file.buffered.as_ref()?))).collect();
    let (some, all) = (buffered.len(), files.len());
    match buffered.first() {
        None => "direct I/O".to_owned(),
        Some((_, why)) if some == all => format!("the page cache: {why}"),
        Some((path, why)) => format!("direct I/O, but the page cache for {some} of {all} files, such as {path}: {why}"),
    }
}

#[cfg(target_os = "linux")]
type Started = (ReaderKind, Option<ring::Bell>, Vec<JoinHandle<()>>);
#[cfg(not(target_os = "linux"))]
type Started = (ReaderKind, Vec<JoinHandle<()>>);

#[cfg(target_os = "linux")]
fn start(
    shared: &Arc<Shared>,
    frames: &Frames,
    best: ReaderKind,
    depth: usize,
    send: &Sender<Done>,
) -> Result<Started, Error> {
    if best != ReaderKind::Pool
        && let Some((ring, fixed, bell)) = ring::Ring::new(shared, frames, best == ReaderKind::FixedRing, depth)
    {
        let send = send.clone();
        let thread = spawn(move || ring.run(&send))?;
        let kind = if fixed { ReaderKind::FixedRing } else { ReaderKind::Ring };
        return Ok((kind, Some(bell), vec![thread]));
    }
    Ok((ReaderKind::Pool, None, pool::start(shared, depth, send)?))
}

#[cfg(not(target_os = "linux"))]
fn start(
    shared: &Arc<Shared>,
    _frames: &Frames,
    _best: ReaderKind,
    depth: usize,
    send: &Sender<Done>,
) -> Result<Started, Error> {
    Ok((ReaderKind::Pool, pool::start(shared, depth, send)?))
}

/// A thread that reads.
fn spawn(work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, Error> {
    std::thread::Builder::new().name("experts".into()).spawn(work).map_err(|cause| Error::Thread { cause })
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut queue = self.shared.lock();
        queue.closed = true;
        queue.urgent.clear();
        queue.ahead.clear();
        drop(queue);
        self.wake();
        for thread in self.threads.drain(..) {
            // A panic of the thread has been printed by it.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reader({})", self.describe())
    }
}
