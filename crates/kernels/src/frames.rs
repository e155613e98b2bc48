//! Memory that drives write into: frames of one size, on pages of their own, next to one another.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use memmap2::{MmapMut, MmapRaw};

use crate::{Error, Ledger, Reservation, Share};

/// A frame's length is a multiple of this, and so is its address: what direct I/O asks for.
pub const FRAME_ALIGN: usize = 4096;

/// Bytes of a huge page.
const HUGE: usize = 2 << 20;

/// A fixed number of frames; clones are the same ones.
#[derive(Debug, Clone)]
pub struct Frames(Arc<Arena>);

#[derive(Debug)]
struct Arena {
    map: MmapRaw,
    /// Bytes before the first frame.
    before: usize,
    /// Bytes of a frame.
    bytes: usize,
    count: usize,
    /// Frames that are nobody's, the last given back on top.
    idle: Mutex<Vec<u32>>,
    _reservation: Reservation,
}

impl Arena {
    fn idle(&self) -> MutexGuard<'_, Vec<u32>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Frames {
    /// `count` frames of `bytes` each, which is rounded up to whole pages, out of the share of experts.
    ///
    /// # Errors
    /// The ledger or the system has no room.
    pub fn new(ledger: &Ledger, count: usize, bytes: usize) -> Result<Frames, Error> {
        let bytes = bytes.next_multiple_of(FRAME_ALIGN);
        let no_room = || Error::OutOfMemory { share: Share::Experts, wanted: u64::MAX, held: 0, limit: u64::MAX };
        let len = bytes.checked_mul(count).filter(|len| *len < isize::MAX as usize - HUGE).ok_or_else(no_room)?;
        let reservation = ledger.reserve(Share::Experts, len)?;
        let failed = |source| Error::Map { share: Share::Experts, bytes: len as u64, source };
        // Room to start on a huge page.
        let map = MmapMut::map_anon((len + HUGE).max(1)).map_err(failed)?;
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        let before = map.as_ptr().align_offset(HUGE).min(HUGE);
        let idle = Mutex::new((0..count as u32).rev().collect());
        Ok(Frames(Arc::new(Arena { map: map.into(), before, bytes, count, idle, _reservation: reservation })))
    }

    /// One that is nobody's, which holds anything; it comes back when it is dropped.
    pub fn take(&self) -> Option<Frame> {
        let index = self.0.idle().pop()?;
        Some(Frame { arena: Arc::clone(&self.0), index })
    }

    /// How many are nobody's.
    pub fn idle(&self) -> usize {
        self.0.idle().len()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.count
    }

    /// Bytes of a frame.
    pub fn bytes(&self) -> usize {
        self.0.bytes
    }

    /// Address and length of all frames together, which a system may be told of before it writes to them. They stay as long
    /// as a frame or a clone of this does.
    pub fn region(&self) -> (*mut u8, usize) {
        // SAFETY: `before` is inside the mapping.
        (unsafe { self.0.map.as_mut_ptr().add(self.0.before) }, self.0.bytes * self.0.count)
    }
}

/// Memory of a frame's length, for its owner alone.
#[derive(Debug)]
pub struct Frame {
    arena: Arc<Arena>,
    index: u32,
}

impl Frame {
    fn start(&self) -> *mut u8 {
        let at = self.arena.before + self.index as usize * self.arena.bytes;
        // SAFETY: the mapping has room for `count` frames after `before`, and the index is below that.
        unsafe { self.arena.map.as_mut_ptr().add(at) }
    }
}

impl AsRef<[u8]> for Frame {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: initialised bytes (the system's zeros, or what was written later) of this frame alone, for as long as the
        // arena lives; an index is in one frame or in the list of idle ones.
        unsafe { std::slice::from_raw_parts(self.start(), self.arena.bytes) }
    }
}

impl AsMut<[u8]> for Frame {
    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_ref`, and the borrow is unique.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.arena.bytes) }
    }
}

impl Drop for Frame {
    fn drop(&mut self) {
        self.arena.idle().push(self.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_apart_aligned_and_come_back() {
        let ledger = Ledger::default();
        let frames = Frames::new(&ledger, 3, 5000).unwrap();
        assert_eq!((frames.count(), frames.bytes(), frames.idle()), (3, 8192, 3));
        assert_eq!(ledger.holding(Share::Experts).held, 3 * 8192);
        let mut all: Vec<Frame> = std::iter::from_fn(|| frames.take()).collect();
        assert_eq!(all.len(), 3);
        let (start, len) = frames.region();
        for (i, frame) in all.iter_mut().enumerate() {
            let bytes = frame.as_mut();
            bytes.fill(i as u8 + 1);
            let at = bytes.as_ptr() as usize;
            assert!(at.is_multiple_of(FRAME_ALIGN) && at >= start as usize && at + bytes.len() <= start as usize + len);
        }
        assert!(all.iter().enumerate().all(|(i, frame)| frame.as_ref().iter().all(|&b| b == i as u8 + 1)));
        all.pop();
        assert_eq!(frames.idle(), 1);
        drop(frames);
        drop(all);
        assert_eq!(ledger.holding(Share::Experts).held, 0);
    }

    #[test]
    fn no_room_is_an_error() {
        let ledger = Ledger::default();
        ledger.limit(Share::Experts, 1 << 20);
        assert!(Frames::new(&ledger, 300, 4096).is_err());
        assert!(Frames::new(&Ledger::default(), usize::MAX / 4096, 8192).is_err());
    }
}
