//! Work on several threads, split so that the split never shows in the results.

use std::ops::Range;

use rayon::prelude::*;

use crate::Error;

/// A fixed number of threads.
#[derive(Debug)]
pub(crate) struct Pool(rayon::ThreadPool);

impl Pool {
    pub(crate) fn new(threads: usize) -> Result<Self, Error> {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("fathom-{i}"))
            .build()
            .map(Pool)
            .map_err(|e| Error::Threads { threads, cause: e.to_string() })
    }

    pub(crate) fn threads(&self) -> usize {
        self.0.current_num_threads()
    }

    /// Runs `f` on a thread of the pool, where starting work is cheapest.
    pub(crate) fn install<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        self.0.install(f)
    }

    /// Runs `f(i)` for every i below `tasks`, on all threads, in any order.
    pub(crate) fn each(&self, tasks: usize, f: impl Fn(usize) + Sync + Send) {
        if tasks <= 1 || self.threads() == 1 {
            (0..tasks).for_each(f);
        } else {
            self.install(|| (0..tasks).into_par_iter().with_max_len(1).for_each(f));
        }
    }

    /// Cuts `0..n` into about `pieces` ranges a thread, each a multiple of `grain` long but the last, and runs `f` on
    /// each.
    pub(crate) fn ranges(&self, n: usize, grain: usize, pieces: usize, f: impl Fn(Range<usize>) + Sync + Send) {
        let size = n.div_ceil(self.threads() * pieces).next_multiple_of(grain).max(grain);
        self.each(n.div_ceil(size), |i| f(i * size..((i + 1) * size).min(n)));
    }
}

/// A pointer into an output that tasks write disjoint parts of.
pub(crate) struct Output<T> {
    start: *mut T,
    len: usize,
}

// SAFETY: `slice` asks its callers to keep to disjoint ranges.
unsafe impl<T: Send> Send for Output<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Output<T> {}

impl<T> Output<T> {
    pub(crate) fn new(all: &mut [T]) -> Self {
        Output { start: all.as_mut_ptr(), len: all.len() }
    }

    /// How many values there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Part of the output.
    ///
    /// # Safety
    /// No two live slices overlap, and the borrow given to `new` is still held by the code that started the tasks.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "output range");
        // SAFETY: in bounds by the assertion, disjoint by the caller's word.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}
