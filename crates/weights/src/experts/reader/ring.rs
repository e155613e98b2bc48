//! One thread with an io_uring.
//!
//! An expert is read in pieces, as many at once as the drive likes. A frame belongs to the ring's thread from before the
//! first of its pieces is handed to the kernel until the kernel has answered for the last.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::Instant;

use fathom_kernels::{FRAME_ALIGN, Frame, Frames};
use io_uring::{IoUring, opcode, types};

use super::{Done, Read, Shared};
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
    waiting: std::collections::VecDeque<Piece>,
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
            waiting: std::collections::VecDeque::new(),
            since: None,
        };
        Some((this, fixed.is_some(), Bell(bell)))
    }

    /// Reads until the reader is closed and nothing is under way.
    pub(super) fn run(mut self, done: &Sender<Done>) {
        let safety = AbortOnPanic;
        self.listen();
        loop {
            self.take();
            if self.count == 0 && self.shared.lock().closed {
                break;
            }
            self.hand_over();
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => {}
                // The kernel takes no more of ours: nothing could be read any more, and frames would be lost.
                Err(e) => panic!("io_uring: {e}"),
            }
            let answers: Vec<(u64, i32)> =
                self.ring.completion().map(|answer| (answer.user_data(), answer.result())).collect();
            for (which, result) in answers {
                if which == BELL { self.listen() } else { self.answer(which as usize, result, done) }
            }
        }
        std::mem::forget(safety);
    }

    /// Has the bell's next ring reported.
    fn listen(&mut self) {
        let read = opcode::Read::new(types::Fd(self.bell.as_raw_fd()), self.rung.as_mut_ptr(), 8);
        self.push(read.build().user_data(BELL));
    }

    fn push(&mut self, entry: io_uring::squeue::Entry) {
        // SAFETY: what the entry points to lives until its answer: the bell's box as long as the ring, a piece's frame in
        // `experts`, and files as long as `shared`.
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
            self.count += 1;
            self.since.get_or_insert_with(Instant::now);
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
        self.push(entry.user_data(slot as u64));
    }

    /// The kernel has ended with a piece.
    fn answer(&mut self, slot: usize, result: i32, done: &Sender<Done>) {
        let piece = self.flying[slot].take().expect("the kernel answers what it was asked");
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
        self.count -= 1;
        if self.count == 0
            && let Some(since) = self.since.take()
        {
            shared.totals.busy.fetch_add(since.elapsed().as_nanos() as u64, Ordering::Relaxed);
        }
        let under_way = self.experts[piece.of].as_mut().expect("a piece is of an expert under way");
        if result < 0 {
            let cause = std::io::Error::from_raw_os_error(-result).to_string();
            under_way.failed.get_or_insert_with(|| shard.failed(piece.from, &cause));
        } else if got < piece.need {
            under_way.failed.get_or_insert_with(|| shard.ended(piece.from + got as u64));
        }
        under_way.pieces -= 1;
        if under_way.pieces == 0 {
            let UnderWay { expert, frame, failed, .. } = self.experts[piece.of].take().expect("it was there");
            let read = failed.map_or_else(|| shared.check(expert), Err);
            if read.is_ok() {
                shared.count(expert);
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
