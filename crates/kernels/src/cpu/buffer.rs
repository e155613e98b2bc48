//! Memory of the CPU device.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::block::Block;
use super::scratch::Scratch;
use crate::{Error, Reservation, Share};

/// Memory of the CPU device: bytes of its own, or a read-only view of somebody else's (a mapped file).
pub struct Buffer(Storage);

enum Storage {
    /// The block is there until the buffer is dropped.
    Owned {
        block: Option<Block>,
        reservation: Option<Reservation>,
        home: Option<Arc<Scratch>>,
    },
    Shared(Bytes),
}

impl Buffer {
    pub(crate) fn shared(bytes: Bytes) -> Self {
        Buffer(Storage::Shared(bytes))
    }

    fn owned(block: Block, reservation: Option<Reservation>, home: Option<Arc<Scratch>>) -> Self {
        Buffer(Storage::Owned { block: Some(block), reservation, home })
    }

    pub(crate) fn zeroed(len: usize, reservation: Reservation) -> Result<Self, Error> {
        Ok(Buffer::owned(Block::zeroed(reservation.share(), len)?, Some(reservation), None))
    }

    /// Zeroed memory that no ledger counts, for as long as a measurement takes.
    pub(super) fn probe(len: usize) -> Result<Self, Error> {
        Ok(Buffer::owned(Block::mapped(Share::Scratch, len)?, None, None))
    }

    /// Scratch, which holds anything.
    pub(super) fn scratch(len: usize, reservation: Reservation, home: &Arc<Scratch>) -> Result<Self, Error> {
        Ok(Buffer::owned(home.take(len)?, Some(reservation), Some(Arc::clone(home))))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.0 {
            Storage::Owned { block, .. } => block.as_ref().expect("until it is dropped").bytes(),
            Storage::Shared(bytes) => bytes,
        }
    }

    /// Panics on shared memory: nothing the model does writes to weights.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Storage::Owned { block, .. } => block.as_mut().expect("until it is dropped").bytes_mut(),
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
        if let Storage::Owned { block, reservation, home: Some(home) } = &mut self.0 {
            // Before the memory is somebody else's.
            *reservation = None;
            block.take().into_iter().for_each(|block| home.give(block));
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if matches!(self.0, Storage::Shared(_)) { "shared" } else { "owned" };
        write!(f, "Buffer({kind}, {} bytes)", self.bytes().len())
    }
}
