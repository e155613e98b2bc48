//! One thread with an io_uring.
//!
//! An expert is read in pieces, as many at once as the drive likes. A frame belongs to the ring's thread from before the
//! first of its pieces is handed to the kernel until the kernel has answered for the last.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use fathom_kernels::{FRAME_ALIGN, Frame, Frames};
use io_uring::{IoUring, opcode, types};

use super::{Done, Read, Shared, pool};
use crate::Error;

/// Bytes of a piece at most.
const PIECE: usize = 512 << 10;
/// The most bytes that the kernel takes as one registered buffer.
const LARGEST_BUFFER: usize = 1 << 30;
/// The most bytes that are registered: to have them pinned takes a second for some ten gigabytes.
const MOST_FIXED: usize = 8 << 30;
/// What the kernel says the bell by.
const BELL: u64 = u64::MAX;

/// Wakes the ring's thread.
#[derive(Debug)]
pub(super) struct Bell(Arc<OwnedFd>);

impl Bell {
    pub(super) fn ring(&self) {
        // A counter that is full rings anyway.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

/// Buffers that the kernel was told of: some frames each, as they lie.
#[derive(Debug, Clone, Copy)]
struct Fixed {
    start: usize,
    /// Bytes of each but the last.
    each: usize,
}

/// An expert being read.
struct UnderWay {
    expert: usize,
    frame: Frame,
    /// Pieces that have not ended.
    pieces: usize,
    failed: Option<Error>,
    /// Where the frame is: asked for before the kernel writes to it.
    start: *mut u8,
}

/// A part of a run.
#[derive(Debug, Clone, Copy)]
struct Piece {
    /// Which of those under way.
    of: usize,
    shard: u32,
    from: u64,
    len: usize,
    /// Bytes that must be there; 0 where it is all past the tensors' end.
    need: usize,
    /// First byte in the frame.
    at: usize,
}

pub(super) struct Ring {
    ring: IoUring,
    shared: Arc<Shared>,
    fixed: Option<Fixed>,
    bell: Arc<OwnedFd>,
    /// Where the kernel puts the bell's count.
    rung: Box<[u8; 8]>,
    depth: usize,
    experts: Vec<Option<UnderWay>>,
    /// Pieces handed to the kernel, by the number that comes back.
    flying: Vec<Option<Piece>>,
    count: usize,
    /// Pieces that wait for a place.
    waiting: VecDeque<Piece>,
    /// What the kernel has not taken yet, the oldest first, by the number that it comes back with.
    pushed: VecDeque<u64>,
    /// Whether the kernel is to read, or reads, the bell.
    listening: bool,
    since: Option<Instant>,
}

// SAFETY: the pointers are into frames that it owns.
unsafe impl Send for Ring {}

impl Ring {
    /// None where the system has no io_uring for us. Says whether buffers are registered.
    pub(super) fn new(shared: &Arc<Shared>, frames: &Frames, fixed: bool, depth: usize) -> Option<(Ring, bool, Bell)> {
        let ring = IoUring::new(2 * depth as u32 + 2).ok()?;
        let mut probe = io_uring::Probe::new();
        ring.submitter().register_probe(&mut probe).ok()?;
        if !probe.is_supported(opcode::Read::CODE) || !probe.is_supported(opcode::ReadFixed::CODE) {
            return None;
        }
        // A sandbox may let us make a ring and not use it.
        ring.submit().ok()?;
        let bell = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).ok()?;
        let bell = Arc::new(bell);
        let fixed = if fixed { register(&ring, frames) } else { None };
        let this = Ring {
            ring,
            shared: Arc::clone(shared),
            fixed,
            bell: Arc::clone(&bell),
            rung: Box::new([0; 8]),
            depth,
            experts: Vec::new(),
            flying: vec![None; depth],
            count: 0,
            waiting: VecDeque::new(),
            pushed: VecDeque::new(),
            listening: false,
            since: None,
        };
        Some((this, fixed.is_some(), Bell(bell)))
    }

    /// Reads until the reader is closed and the kernel has nothing of ours any more.
    pub(super) fn run(mut self, done: &Sender<Done>) {
        let safety = AbortOnPanic;
        let mut failed = None;
        while failed.is_none() {
            self.take();
            if self.count == 0 && self.shared.lock().closed {
                if !self.listening {
                    break;
                }
                // The kernel is still to write to `rung`. Who closes rings; but who comes here first has not been rung for.
                Bell(Arc::clone(&self.bell)).ring();
            } else {
                self.listen();
                self.hand_over();
            }
            failed = self.submit().err();
            for (which, result) in self.answers() {
                self.answer(which, result, done);
            }
        }
        if let Some(cause) = &failed {
            self.give_up(cause, done);
        }
        std::mem::forget(safety);
        let shared = Arc::clone(&self.shared);
        drop(self);
        if failed.is_some() {
            pool::work(&shared, done);
        }
    }

    /// Has the kernel take what was pushed, and waits until it has ended with something. An error is one that does not pass.
    fn submit(&mut self) -> std::io::Result<()> {
        let submitted = self.ring.submit_and_wait(1);
        let left = self.ring.submission().len();
        self.pushed.drain(..self.pushed.len() - left);
        match submitted.as_ref().map_err(std::io::Error::raw_os_error) {
            Ok(_) | Err(Some(libc::EINTR | libc::EBUSY)) => Ok(()),
            Err(Some(libc::EAGAIN | libc::ENOMEM)) => {
                // The kernel lacks memory, which comes back.
                std::thread::sleep(Duration::from_millis(1));
                Ok(())
            }
            Err(_) => submitted.map(|_| ()),
        }
    }

    fn answers(&mut self) -> Vec<(u64, i32)> {
        self.ring.completion().map(|answer| (answer.user_data(), answer.result())).collect()
    }

    /// The kernel takes no more of ours. What it has not taken fails: nothing hands it over any more. What it has is waited
    /// for, and its answers come without our asking.
    fn give_up(&mut self, cause: &std::io::Error, done: &Sender<Done>) {
        let cause = format!("io_uring takes no more reads ({cause}) and a thread reads from now on");
        loop {
            // Among these may be what an answer had asked for again.
            for which in std::mem::take(&mut self.pushed) {
                if which == BELL {
                    self.listening = false;
                } else {
                    let piece = self.landed(which as usize);
                    let failed = self.shared.files[piece.shard as usize].failed(piece.from, &cause);
                    self.end(piece, Some(failed), done);
                }
            }
            for piece in std::mem::take(&mut self.waiting) {
                let failed = self.shared.files[piece.shard as usize].failed(piece.from, &cause);
                self.end(piece, Some(failed), done);
            }
            if self.count == 0 && !self.listening {
                return;
            }
            Bell(Arc::clone(&self.bell)).ring();
            std::thread::sleep(Duration::from_millis(1));
            for (which, result) in self.answers() {
                self.answer(which, result, done);
            }
        }
    }

    /// Has the bell's next ring reported.
    fn listen(&mut self) {
        if !self.listening {
            self.listening = true;
            let read = opcode::Read::new(types::Fd(self.bell.as_raw_fd()), self.rung.as_mut_ptr(), 8);
            self.push(read.build().user_data(BELL));
        }
    }

    fn push(&mut self, entry: io_uring::squeue::Entry) {
        self.pushed.push_back(entry.get_user_data());
        // SAFETY: what the entry points to lives until its answer: `run` leaves, and the ring with its box for the bell is
        // dropped, when the kernel has answered for all that it took; until then a piece's frame is in `experts`, and files
        // live as long as `shared`. A panic before that ends the process.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("the queue has room for twice the depth");
    }

    /// Takes experts off the queue as long as there is room for their pieces.
    fn take(&mut self) {
        while self.waiting.len() + self.count < self.depth {
            let Some(read) = self.shared.lock().pop() else { return };
            self.begin(read);
        }
    }

    fn begin(&mut self, Read { expert, mut frame }: Read) {
        let of = self.experts.iter().position(Option::is_none).unwrap_or(self.experts.len());
        let places = Arc::clone(&self.shared.places);
        let runs = &places.get(expert).runs;
        let fault = self.shared.fault().map(|fault| self.shared.faulty(fault, &runs[0]));
        let mut pieces = 0;
        for run in runs {
            for at in (0..run.len).step_by(PIECE) {
                let len = PIECE.min(run.len - at);
                let need = run.need.saturating_sub(at).min(len);
                let from = run.from + at as u64;
                self.waiting.push_back(Piece { of, shard: run.shard, from, len, need, at: run.at + at });
                pieces += 1;
            }
        }
        let start = frame.as_mut().as_mut_ptr();
        let under_way = Some(UnderWay { expert, frame, pieces, failed: fault, start });
        if of == self.experts.len() { self.experts.push(under_way) } else { self.experts[of] = under_way }
    }

    /// Hands waiting pieces to the kernel, as many as may be there at once.
    fn hand_over(&mut self) {
        while self.count < self.depth
            && let Some(piece) = self.waiting.pop_front()
        {
            let slot = self.flying.iter().position(Option::is_none).expect("fewer than the depth are there");
            self.fly(slot, piece);
        }
    }

    fn fly(&mut self, slot: usize, piece: Piece) {
        let under_way = self.experts[piece.of].as_ref().expect("a piece is of an expert under way");
        // SAFETY: pieces are inside their frame, as places are made.
        let to = unsafe { under_way.start.add(piece.at) };
        let fd = types::Fd(self.shared.files[piece.shard as usize].file.as_raw_fd());
        let len = piece.len as u32;
        let entry = match self.fixed {
            Some(Fixed { start, each }) => {
                let buffer = ((to as usize - start) / each) as u16;
                opcode::ReadFixed::new(fd, to, len, buffer).offset(piece.from).build()
            }
            None => opcode::Read::new(fd, to, len).offset(piece.from).build(),
        };
        self.flying[slot] = Some(piece);
        self.count += 1;
        self.since.get_or_insert_with(Instant::now);
        self.push(entry.user_data(slot as u64));
    }

    /// The kernel has ended with the bell or a piece.
    fn answer(&mut self, which: u64, result: i32, done: &Sender<Done>) {
        if which == BELL {
            self.listening = false;
            return;
        }
        let slot = which as usize;
        let piece = self.landed(slot);
        let shared = Arc::clone(&self.shared);
        let shard = &shared.files[piece.shard as usize];
        let got = usize::try_from(result).unwrap_or(0);
        let again = matches!(-result, libc::EINTR | libc::EAGAIN);
        let aligned = got.is_multiple_of(FRAME_ALIGN) || shard.buffered.is_some();
        if again || (0 < got && got < piece.need && aligned) {
            let (from, at) = (piece.from + got as u64, piece.at + got);
            let rest = Piece { from, at, len: piece.len - got, need: piece.need - got, ..piece };
            return self.fly(slot, rest);
        }
        let failed = if result < 0 {
            Some(shard.failed(piece.from, &std::io::Error::from_raw_os_error(-result).to_string()))
        } else if got < piece.need {
            Some(shard.ended(piece.from + got as u64))
        } else {
            None
        };
        self.end(piece, failed, done);
    }

    /// Takes a piece back that was handed to the kernel.
    fn landed(&mut self, slot: usize) -> Piece {
        let piece = self.flying[slot].take().expect("the kernel answers what it was asked");
        self.count -= 1;
        if self.count == 0
            && let Some(since) = self.since.take()
        {
            self.shared.totals.busy.fetch_add(since.elapsed().as_nanos() as u64, Ordering::Relaxed);
        }
        piece
    }

    /// A piece is done with; with the last of its expert the expert is.
    fn end(&mut self, piece: Piece, failed: Option<Error>, done: &Sender<Done>) {
        let under_way = self.experts[piece.of].as_mut().expect("a piece is of an expert under way");
        under_way.failed = under_way.failed.take().or(failed);
        under_way.pieces -= 1;
        if under_way.pieces == 0 {
            let UnderWay { expert, frame, failed, .. } = self.experts[piece.of].take().expect("it was there");
            let read = failed.map_or_else(|| self.shared.check(expert), Err);
            if read.is_ok() {
                self.shared.count(expert);
            }
            // Nobody waits any more where the reader is being dropped.
            let _ = done.send(Done { expert, frame: read.map(|()| frame) });
        }
    }
}

/// Frames that the kernel may be writing to must not be given back.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        std::process::abort();
    }
}

/// Tells the kernel of all frames, if it and the limits on locked memory allow.
fn register(ring: &IoUring, frames: &Frames) -> Option<Fixed> {
    let (start, len) = frames.region();
    if len > MOST_FIXED || len == 0 {
        return None;
    }
    let each = LARGEST_BUFFER / frames.bytes() * frames.bytes();
    if each == 0 {
        return None;
    }
    let buffers: Vec<libc::iovec> = (0..len)
        .step_by(each)
        .map(|at| libc::iovec { iov_base: start.wrapping_add(at).cast(), iov_len: each.min(len - at) })
        .collect();
    // SAFETY: the region stays as long as a frame or the frames do; the reader's owner keeps them until the ring is gone.
    unsafe { ring.submitter().register_buffers(&buffers) }.ok()?;
    Some(Fixed { start: start as usize, each })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};
    use std::thread::JoinHandle;

    use fathom_kernels::Ledger;

    use super::super::{Reader, ReaderKind};
    use super::*;
    use crate::Checkpoint;
    use crate::experts::Places;
    use crate::experts::file::ShardFile;
    use crate::synth::Synth;

    const COUNT: usize = 20;

    struct Setting {
        checkpoint: Checkpoint,
        places: Arc<Places>,
        frames: Frames,
        _folder: tempfile::TempDir,
    }

    impl Setting {
        fn new() -> Setting {
            let folder = tempfile::tempdir().unwrap();
            Synth::tiny(1).write(folder.path()).unwrap();
            let checkpoint = Checkpoint::open(folder.path()).unwrap();
            let places = Arc::new(Places::new(&checkpoint).unwrap());
            let frames = Frames::new(&Ledger::default(), COUNT, places.frame_bytes()).unwrap();
            Setting { checkpoint, places, frames, _folder: folder }
        }

        fn reader(&self) -> Reader {
            let mut probe = self.frames.take();
            let shards = self.checkpoint.shards.iter();
            let files =
                shards.map(|s| ShardFile::open(&s.path, s.id.unwrap(), true, probe.as_mut()).unwrap()).collect();
            drop(probe);
            Reader::start(Arc::clone(&self.places), files, &self.frames, ReaderKind::Pool, None).unwrap()
        }

        fn reads(&self) -> Vec<Read> {
            (0..COUNT).map(|expert| Read { expert, frame: self.frames.take().unwrap() }).collect()
        }

        fn check(&self, expert: usize, frame: &Frame) {
            for run in &self.places.get(expert).runs {
                let want = &self.checkpoint.shards[run.shard as usize].bytes[run.from as usize..][..run.need];
                assert!(&frame.as_ref()[run.at..run.at + run.need] == want);
            }
        }
    }

    /// A ring that a test has hold of.
    struct Running {
        shared: Arc<Shared>,
        fd: i32,
        bell: Bell,
        done: Receiver<Done>,
        thread: JoinHandle<()>,
    }

    /// None where the system has no io_uring for us.
    fn start(setting: &Setting) -> Option<Running> {
        // What a reader shares with its threads, which have ended.
        let shared = Arc::clone(&setting.reader().shared);
        shared.lock().closed = false;
        let (ring, _, bell) = Ring::new(&shared, &setting.frames, true, 6)?;
        let (fd, (send, done)) = (ring.ring.as_raw_fd(), channel());
        let thread = std::thread::spawn(move || ring.run(&send));
        Some(Running { shared, fd, bell, done, thread })
    }

    /// Whatever of it the kernel had when it stopped taking reads, all that was asked for comes out, read or failed, and what
    /// is asked for later is read.
    #[test]
    fn a_ring_that_fails_is_followed_by_a_thread() {
        let setting = Setting::new();
        let mut wait = Duration::from_millis(50);
        let mut round = 0;
        while round < 30 {
            let Some(Running { shared, fd, bell, done, thread }) = start(&setting) else { return };
            let ask = || {
                shared.lock().urgent.extend(setting.reads());
                shared.changed.notify_all();
                bell.ring();
            };
            if round > 0 {
                ask();
                std::thread::sleep(Duration::from_micros(20 * round));
            } else {
                // It waits for the bell: what it is asked for next the kernel does not take.
                std::thread::sleep(wait);
            }
            let none = std::fs::File::open("/dev/null").unwrap();
            // SAFETY: the ring's memory stays mapped; its number only names another file, as if the kernel refused it.
            assert_eq!(unsafe { libc::dup2(none.as_raw_fd(), fd) }, fd);
            let mut failed = 0;
            for again in 0..3 {
                if round == 0 || again > 0 {
                    ask();
                }
                let now = (0..COUNT).filter(|_| {
                    let Done { expert, frame } = done.recv().unwrap();
                    match frame {
                        Ok(frame) => setting.check(expert, &frame),
                        Err(e) => {
                            let e = e.to_string();
                            assert!(e.contains("model.safetensors at byte ") && e.contains("io_uring takes no"), "{e}");
                            return true;
                        }
                    }
                    false
                });
                let now = now.count();
                assert!(failed == 0 || now == 0, "those after it are read");
                failed += now;
            }
            if failed > 0 || round > 0 {
                round += 1;
            } else {
                // On a busy machine it may not have come to wait by then.
                wait *= 2;
                assert!(wait < Duration::from_secs(5), "nothing failed");
            }
            shared.lock().closed = true;
            shared.changed.notify_all();
            bell.ring();
            thread.join().unwrap();
        }
    }

    /// A reader that is dropped, busy or not, ends.
    #[test]
    fn rings_end() {
        let setting = Setting::new();
        for round in 0..100 {
            let Some(Running { shared, bell, done, thread, .. }) = start(&setting) else { return };
            if round % 3 > 0 {
                shared.lock().ahead.extend(setting.reads());
                bell.ring();
            }
            if round % 2 > 0 {
                std::thread::sleep(Duration::from_micros(7 * round));
            }
            let mut queue = shared.lock();
            queue.closed = true;
            queue.ahead.clear();
            drop(queue);
            bell.ring();
            thread.join().unwrap();
            drop(done);
            assert_eq!(setting.frames.idle(), COUNT);
        }
    }
}
