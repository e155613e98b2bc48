//! Scratch that comes back: a pass over the layers asks for the same sizes again and again, and memory fresh from the
//! system costs a fault for every page.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{Ledger, Share};

/// Owned memory starts on a cache line.
const ALIGN: usize = 64;
/// What is smaller is left to the allocator.
const SMALLEST: usize = 16 << 10;

/// Memory that is nobody's at the moment, by size. With what is held it never exceeds what was held at once before.
#[derive(Debug)]
pub(super) struct Scratch {
    ledger: Ledger,
    idle: Mutex<Idle>,
}

#[derive(Debug, Default)]
struct Idle {
    by_size: HashMap<usize, Vec<NonNull<u8>>>,
    bytes: usize,
}

// SAFETY: idle memory has no owner but the list, which is behind a lock.
unsafe impl Send for Idle {}

fn layout(len: usize) -> Layout {
    Layout::from_size_align(len, ALIGN).expect("a length below isize::MAX")
}

/// Zeroed memory of `len > 0` bytes.
pub(super) fn allocate(len: usize) -> NonNull<u8> {
    // SAFETY: the layout's size is not zero.
    NonNull::new(unsafe { alloc_zeroed(layout(len)) }).unwrap_or_else(|| handle_alloc_error(layout(len)))
}

/// Gives back what [`allocate`] gave.
///
/// # Safety
/// It came from there with this length, and nobody uses it any more.
pub(super) unsafe fn free(start: NonNull<u8>, len: usize) {
    // SAFETY: by the caller's word.
    unsafe { dealloc(start.as_ptr(), layout(len)) }
}

impl Scratch {
    pub(super) fn new(ledger: Ledger) -> Self {
        Scratch { ledger, idle: Mutex::default() }
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Initialised memory of `len > 0` bytes that holds anything. The ledger counts it already.
    pub(super) fn take(&self, len: usize) -> NonNull<u8> {
        let mut idle = self.idle();
        if let Some(start) = idle.by_size.get_mut(&len).and_then(Vec::pop) {
            idle.bytes -= len;
            return start;
        }
        if self.over(&idle) {
            idle.clear();
        }
        drop(idle);
        allocate(len)
    }

    /// Takes memory back. The ledger does not count it any more.
    ///
    /// # Safety
    /// It came from [`Scratch::take`] with this length, and nobody uses it any more.
    pub(super) unsafe fn give(&self, start: NonNull<u8>, len: usize) {
        if len >= SMALLEST {
            let mut idle = self.idle();
            idle.bytes += len;
            if !self.over(&idle) {
                idle.by_size.entry(len).or_default().push(start);
                return;
            }
            idle.bytes -= len;
        }
        // SAFETY: by the caller's word.
        unsafe { free(start, len) }
    }

    fn over(&self, idle: &Idle) -> bool {
        let held = self.ledger.holding(Share::Scratch);
        held.held + idle.bytes as u64 > held.peak
    }
}

impl Idle {
    fn clear(&mut self) {
        for (len, all) in self.by_size.drain() {
            for start in all {
                // SAFETY: it was given with this length, and the list was its only owner.
                unsafe { free(start, len) };
            }
        }
        self.bytes = 0;
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        self.clear();
    }
}
