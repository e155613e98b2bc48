//! Many inputs: weights are decoded into a panel that stays in cache, and every sum's sixteen lanes wait in memory
//! between panels, so that the order of a sum is that of one input alone.

use std::cell::Cell;
use std::ops::Range;

use super::decode::{panel, row};
use super::{INPUTS, Place, ROWS};
use crate::simd::{Kernel, LANES, Simd};
use crate::{Buffer, Matrix};

/// Columns of a panel.
const COLS: usize = 1024;
/// Steps of sixteen columns in a panel.
const STEPS: usize = COLS / LANES;
/// Inputs that are packed together, to stay in the second cache beside the weights.
const PACKED: usize = 32;

/// Rows `rows` · inputs `picks`.
pub(super) struct Gemm<'a> {
    pub w: &'a Matrix<Buffer>,
    pub rows: Range<usize>,
    pub data: &'a [f32],
    pub stride: usize,
    pub offset: usize,
    pub picks: &'a [u32],
    pub out: Place<'a>,
}

/// Sixteen f32 on a cache line of their own.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([f32; LANES]);

/// What a thread keeps. A panel and inputs are packed as a tile reads them: for R rows side by side, `[STEPS, R, 16]`.
#[derive(Default)]
struct Scratch {
    panel: Vec<Line>,
    inputs: Vec<Line>,
    /// `[ROWS · INPUTS]`, a tile's together.
    lanes: Vec<Line>,
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
}

fn floats(lines: &mut [Line]) -> &mut [f32] {
    // SAFETY: a line is sixteen f32 without gaps.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * LANES) }
}

impl Kernel for Gemm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // Taken out, not borrowed: a closure would not have the instruction set's features.
        let mut scratch = SCRATCH.take();
        scratch.panel.resize((ROWS + 4) * STEPS, Line([0.0; LANES]));
        scratch.inputs.resize(PACKED * STEPS, Line([0.0; LANES]));
        scratch.lanes.resize((ROWS + 4) * INPUTS, Line([0.0; LANES]));
        if S::WIDE {
            self.multiply::<S, 4, 4>(s, &mut scratch)
        } else {
            self.multiply::<S, 3, 2>(s, &mut scratch)
        }
        SCRATCH.set(scratch);
    }
}

impl Gemm<'_> {
    #[inline(always)]
    fn multiply<S: Simd, const R: usize, const N: usize>(self, s: S, scratch: &mut Scratch) {
        let (rows, cols, n) = (self.rows.len(), self.w.cols, self.picks.len());
        assert!(rows <= ROWS && n <= INPUTS, "a task's size");
        let Scratch { panel: w, inputs: x, lanes } = scratch;
        for from in (0..cols).step_by(COLS) {
            let steps = COLS.min(cols - from).div_ceil(LANES);
            let packed = floats(w);
            for (i, r) in self.rows.clone().enumerate() {
                let out = &mut packed[(i / R * R * STEPS + i % R) * LANES..];
                panel(s, self.w.format, row(self.w, r), cols, from, steps, out, R * LANES);
            }
            // Rows after the last one hold what was there before; their sums go nowhere.
            for first in (0..n).step_by(PACKED) {
                let some = PACKED.min(n - first);
                for i in 0..some {
                    let size = if i < some / N * N { N } else { 1 };
                    self.pack(s, first + i, from, steps, &mut x[i / size * size * STEPS + i % size..], size);
                }
                let tiles = Tiles { w, x, first, rows, n, steps, start: from == 0, end: from + COLS >= cols };
                tiles.all::<S, R, N>(s, some, lanes, self.out);
            }
        }
    }

    /// Columns from `from` on of input `picks[i]`, sixteen at every `size` lines.
    #[inline(always)]
    fn pack<S: Simd>(&self, s: S, i: usize, from: usize, steps: usize, out: &mut [Line], size: usize) {
        let live = (self.w.cols - from).min(steps * LANES);
        let at = |i: usize| self.picks[i] as usize * self.stride + self.offset + from;
        let input = &self.data[at(i)..][..live];
        // Another input is somewhere else in memory, and memory is far.
        let next = self.data[at((i + 2).min(self.picks.len() - 1))..].as_ptr();
        for (step, part) in input.chunks(LANES).enumerate() {
            s.prefetch(next.wrapping_add(step * LANES).cast());
            let line = &mut out[step * size].0;
            if part.len() == LANES {
                // SAFETY: sixteen values in, and out.
                unsafe { s.store(line.as_mut_ptr(), s.load(part.as_ptr())) };
            } else {
                line.fill(0.0);
                line[..part.len()].copy_from_slice(part);
            }
        }
    }
}

/// One panel against some packed inputs.
struct Tiles<'a> {
    w: &'a [Line],
    x: &'a [Line],
    /// The number of the first of the inputs, all of them, and of the rows.
    first: usize,
    n: usize,
    rows: usize,
    steps: usize,
    /// Whether sums begin here, and whether they end.
    start: bool,
    end: bool,
}

impl Tiles<'_> {
    #[inline(always)]
    fn all<S: Simd, const R: usize, const N: usize>(&self, s: S, some: usize, lanes: &mut [Line], out: Place<'_>) {
        for r in (0..self.rows).step_by(R) {
            let mut i = 0;
            while i + N <= some {
                self.tile::<S, R, N>(s, r, i, lanes, out);
                i += N;
            }
            while i < some {
                self.tile::<S, R, 1>(s, r, i, lanes, out);
                i += 1;
            }
        }
    }

    /// R rows times N inputs, their lanes in registers.
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const N: usize>(
        &self,
        s: S,
        r: usize,
        i: usize,
        lanes: &mut [Line],
        out: Place<'_>,
    ) {
        let (w, x) = (&self.w[r * STEPS..][..R * self.steps], &self.x[i * STEPS..][..N * self.steps]);
        let lanes = &mut lanes[r * self.n + (self.first + i) * R..][..R * N];
        let mut sums = [[s.splat(0.0); N]; R];
        // SAFETY: a line is sixteen f32, and there are as many as the loops go over: see the slices.
        unsafe {
            if !self.start {
                for a in 0..R {
                    for b in 0..N {
                        sums[a][b] = s.load(lanes.as_ptr().add(a * N + b).cast());
                    }
                }
            }
            for step in 0..self.steps {
                let mut inputs = [s.splat(0.0); N];
                for b in 0..N {
                    inputs[b] = s.load(x.as_ptr().add(step * N + b).cast());
                }
                for a in 0..R {
                    let weight = s.load(w.as_ptr().add(step * R + a).cast());
                    for b in 0..N {
                        sums[a][b] = s.fma(weight, inputs[b], sums[a][b]);
                    }
                }
            }
            if !self.end {
                for a in 0..R {
                    for b in 0..N {
                        s.store(lanes.as_mut_ptr().add(a * N + b).cast(), sums[a][b]);
                    }
                }
                return;
            }
        }
        let live = R.min(self.rows - r);
        for b in 0..N {
            let mut four = [s.splat(0.0); 4];
            for a in 0..R {
                four[a] = sums[a][b];
            }
            // SAFETY: it lives for this line.
            unsafe { out.of(self.first + i + b, r..r + live) }.copy_from_slice(&s.sum4(four)[..live]);
        }
    }
}
