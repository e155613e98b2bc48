//! Memory of the CPU device.

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

use bytes::Bytes;
use memmap2::MmapMut;

use super::scratch::{self, Scratch};
use crate::{Error, Reservation, Share};

/// What is this large and no scratch gets pages of its own from the system: it lives long among scratch that comes and goes,
/// and would otherwise keep a heap's holes from being used or given back.
const MAPPED: usize = 64 << 10;

/// Bytes of a huge page.
#[cfg(target_os = "linux")]
const HUGE: usize = 2 << 20;

/// Memory of the CPU device: bytes of its own, or a read-only view of somebody else's (a mapped file).
pub struct Buffer(Storage);

enum Storage {
    /// The reservation is taken out when the memory is given back.
    Owned {
        start: NonNull<u8>,
        len: usize,
        reservation: Option<Reservation>,
        home: Option<Arc<Scratch>>,
    },
    Mapped {
        map: MmapMut,
        _reservation: Option<Reservation>,
    },
    Shared(Bytes),
}

// SAFETY: an owned buffer is plain bytes with one owner; access follows the borrow of the buffer.
unsafe impl Send for Buffer {}
// SAFETY: as above; a shared borrow only reads.
unsafe impl Sync for Buffer {}

/// Zeroed memory from the system, in huge pages if it likes.
fn map(share: Share, len: usize) -> Result<MmapMut, Error> {
    let map = MmapMut::map_anon(len).map_err(|source| Error::Map { share, bytes: len as u64, source })?;
    // What is smaller than a huge page cannot have one.
    #[cfg(target_os = "linux")]
    if len >= HUGE {
        let _ = map.advise(memmap2::Advice::HugePage);
    }
    Ok(map)
}

impl Buffer {
    pub(crate) fn shared(bytes: Bytes) -> Self {
        Buffer(Storage::Shared(bytes))
    }

    pub(crate) fn zeroed(len: usize, reservation: Reservation) -> Result<Self, Error> {
        let share = reservation.share();
        if share != Share::Scratch && len >= MAPPED {
            return Ok(Buffer(Storage::Mapped { map: map(share, len)?, _reservation: Some(reservation) }));
        }
        let start = if len == 0 { NonNull::<u128>::dangling().cast() } else { scratch::allocate(len) };
        Ok(Buffer(Storage::Owned { start, len, reservation: Some(reservation), home: None }))
    }

    /// Zeroed memory that no ledger counts, for as long as a measurement takes.
    pub(super) fn probe(len: usize) -> Result<Self, Error> {
        Ok(Buffer(Storage::Mapped { map: map(Share::Scratch, len)?, _reservation: None }))
    }

    /// Scratch, which holds anything.
    pub(super) fn scratch(len: usize, reservation: Reservation, home: &Arc<Scratch>) -> Self {
        let start = if len == 0 { NonNull::<u128>::dangling().cast() } else { home.take(len) };
        Buffer(Storage::Owned { start, len, reservation: Some(reservation), home: Some(Arc::clone(home)) })
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.0 {
            // SAFETY: `start` is valid for `len` initialised bytes as long as the buffer lives.
            Storage::Owned { start, len, .. } => unsafe { std::slice::from_raw_parts(start.as_ptr(), *len) },
            Storage::Mapped { map, .. } => map,
            Storage::Shared(bytes) => bytes,
        }
    }

    /// Panics on shared memory: nothing the model does writes to weights.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            // SAFETY: as in `bytes`, and the borrow is unique.
            Storage::Owned { start, len, .. } => unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), *len) },
            Storage::Mapped { map, .. } => map,
            Storage::Shared(_) => panic!("write to a read-only buffer"),
        }
    }

    /// The bytes as f32. Panics where they are not aligned for it, as mapped files may be.
    pub(crate) fn f32(&self) -> &[f32] {
        // SAFETY: every bit pattern is an f32; alignment is checked below.
        let (before, values, after) = unsafe { self.bytes().align_to::<f32>() };
        assert!(before.is_empty() && after.is_empty(), "buffer is not f32");
        values
    }

    pub(crate) fn f32_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `f32`.
        let (before, values, after) = unsafe { self.bytes_mut().align_to_mut::<f32>() };
        assert!(before.is_empty() && after.is_empty(), "buffer is not f32");
        values
    }

    /// The bytes as u32.
    pub(crate) fn u32(&self) -> &[u32] {
        // SAFETY: every bit pattern is a u32; alignment is checked below.
        let (before, values, after) = unsafe { self.bytes().align_to::<u32>() };
        assert!(before.is_empty() && after.is_empty(), "buffer is not u32");
        values
    }

    pub(crate) fn u32_mut(&mut self) -> &mut [u32] {
        // SAFETY: as in `u32`.
        let (before, values, after) = unsafe { self.bytes_mut().align_to_mut::<u32>() };
        assert!(before.is_empty() && after.is_empty(), "buffer is not u32");
        values
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Storage::Owned { start, len, reservation, home } = &mut self.0
            && *len > 0
        {
            // Before the memory is somebody else's.
            *reservation = None;
            // SAFETY: allocated with this length, by whom it is given back to.
            unsafe {
                match home {
                    Some(home) => home.give(*start, *len),
                    None => scratch::free(*start, *len),
                }
            }
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if matches!(self.0, Storage::Shared(_)) { "shared" } else { "owned" };
        write!(f, "Buffer({kind}, {} bytes)", self.bytes().len())
    }
}
