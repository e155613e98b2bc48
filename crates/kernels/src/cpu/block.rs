//! Memory of our own, from the heap or from the system.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;

use memmap2::MmapMut;

use crate::{Error, Share};

/// Memory starts on a cache line.
const ALIGN: usize = 64;
/// What is this large gets pages of its own from the system. On a heap, scratch that comes and goes and state that stays leave
/// holes between them that nothing fits into and that are not given back: they were seen to take 50 MB beside 9 MB of scratch.
const MAPPED: usize = 64 << 10;
/// Bytes of a huge page.
#[cfg(target_os = "linux")]
const HUGE: usize = 2 << 20;

/// Initialised bytes with one owner.
#[derive(Debug)]
pub(super) enum Block {
    /// Of [`ALIGN`]; dangling where the length is 0.
    Heap { start: NonNull<u8>, len: usize },
    /// Pages.
    Mapped(MmapMut),
}

// SAFETY: plain bytes with one owner; access follows the borrow of the block.
unsafe impl Send for Block {}
// SAFETY: as above; a shared borrow only reads.
unsafe impl Sync for Block {}

fn layout(len: usize) -> Layout {
    Layout::from_size_align(len, ALIGN).expect("a length below isize::MAX")
}

impl Block {
    /// `len` bytes that are zero, for `share`.
    ///
    /// # Errors
    /// The system has no pages for it.
    pub(super) fn zeroed(share: Share, len: usize) -> Result<Self, Error> {
        if len >= MAPPED {
            return Block::mapped(share, len);
        }
        if len == 0 {
            return Ok(Block::Heap { start: NonNull::<u128>::dangling().cast(), len });
        }
        // SAFETY: the layout's size is not zero.
        let start =
            NonNull::new(unsafe { alloc_zeroed(layout(len)) }).unwrap_or_else(|| handle_alloc_error(layout(len)));
        Ok(Block::Heap { start, len })
    }

    /// The same in pages of its own, huge ones if the system likes.
    pub(super) fn mapped(share: Share, len: usize) -> Result<Self, Error> {
        let map = MmapMut::map_anon(len).map_err(|source| Error::Map { share, bytes: len as u64, source })?;
        // What is smaller than a huge page cannot have one.
        #[cfg(target_os = "linux")]
        if len >= HUGE {
            let _ = map.advise(memmap2::Advice::HugePage);
        }
        Ok(Block::Mapped(map))
    }

    pub(super) fn bytes(&self) -> &[u8] {
        match self {
            // SAFETY: `start` is valid for `len` initialised bytes as long as the block lives.
            Block::Heap { start, len } => unsafe { std::slice::from_raw_parts(start.as_ptr(), *len) },
            Block::Mapped(map) => map,
        }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            // SAFETY: as in `bytes`, and the borrow is unique.
            Block::Heap { start, len } => unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), *len) },
            Block::Mapped(map) => map,
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Block::Heap { start, len } = *self
            && len > 0
        {
            // SAFETY: it was allocated with this layout, and nobody has it after its only owner.
            unsafe { dealloc(start.as_ptr(), layout(len)) }
        }
    }
}
