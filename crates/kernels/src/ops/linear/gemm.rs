//! Many inputs: weights are decoded into a panel that stays in cache, and every sum's sixteen lanes wait in memory
//! between panels, so that the order of a sum is that of one input alone. A step of a panel is a register: sixteen columns,
//! or thirty-two as pairs of bfloat16, where the CPU multiplies those and both sides are no more than that.

use std::cell::Cell;
use std::ops::Range;

use super::decode::{FP8_BLOCK, panel, row};
use super::{INPUTS, Place, rows_of_many};
use crate::simd::{Kernel, LANES, Simd};
use crate::{Buffer, Matrix};

/// Steps of a panel.
const STEPS: usize = 64;
/// Columns of a step of pairs.
const PAIRS: usize = 2 * LANES;
/// Inputs that are packed together, to stay in the second cache beside the weights.
const PACKED: usize = 32;

/// Rows `rows` · inputs `picks`.
pub(super) struct Gemm<'a> {
    pub w: &'a Matrix<Buffer>,
    pub rows: Range<usize>,
    pub data: &'a [f32],
    pub stride: usize,
    pub offset: usize,
    /// Whether inputs are rounded to bfloat16.
    pub round: bool,
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
    /// `[rows · inputs]`, a tile's together.
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
        scratch.inputs.resize(PACKED * STEPS, Line([0.0; LANES]));
        if S::PAIRS && self.round && self.sums_are_normal() {
            self.multiply::<S, 4, 4, PAIRS>(s, &mut scratch)
        } else if S::WIDE {
            self.multiply::<S, 4, 4, LANES>(s, &mut scratch)
        } else {
            self.multiply::<S, 3, 2, LANES>(s, &mut scratch)
        }
        SCRATCH.set(scratch);
    }
}

impl Gemm<'_> {
    /// Whether the weights are none that, with rounded inputs, have subnormal products or sums: their least bit is 2⁻⁹ of
    /// their scale, the inputs' 2⁻⁷⁷ ([`BF16_LEAST`](crate::simd::BF16_LEAST)), so sums are multiples of 2⁻¹²⁶.
    fn sums_are_normal(&self) -> bool {
        let blocks = self.rows.start / FP8_BLOCK..self.rows.end.div_ceil(FP8_BLOCK);
        blocks.flat_map(|block| row(self.w, block * FP8_BLOCK).scales).all(|e| (127 - 40..=127 + 40).contains(e))
    }

    #[inline(always)]
    fn multiply<S: Simd, const R: usize, const N: usize, const STEP: usize>(self, s: S, scratch: &mut Scratch) {
        let (rows, cols, n) = (self.rows.len(), self.w.cols, self.picks.len());
        assert!(rows <= rows_of_many(cols) && n <= INPUTS, "a task's size");
        let Scratch { panel: w, inputs: x, lanes } = scratch;
        let zero = Line([0.0; LANES]);
        w.resize((rows + R) * STEPS.min(cols.div_ceil(STEP)), zero);
        lanes.resize(if cols > STEPS * STEP { (rows + R) * n } else { 0 }, zero);
        for from in (0..cols).step_by(STEPS * STEP) {
            let steps = STEPS.min((cols - from).div_ceil(STEP));
            let packed = floats(w);
            for (i, r) in self.rows.clone().enumerate() {
                let out = &mut packed[(i / R * R * steps + i % R) * LANES..];
                panel::<S, STEP>(s, self.w.format, row(self.w, r), cols, from, steps, out, R * LANES);
            }
            // Rows after the last one hold what was there before; their sums go nowhere.
            for first in (0..n).step_by(PACKED) {
                let some = PACKED.min(n - first);
                for i in 0..some {
                    let size = if i < some / N * N { N } else { 1 };
                    let out = &mut x[i / size * size * STEPS + i % size..];
                    self.pack::<S, STEP>(s, first + i, from, out, size);
                }
                let end = from + steps * STEP >= cols;
                let tiles = Tiles { w, x, first, rows, n, steps, start: from == 0, end };
                tiles.all::<S, R, N, STEP>(s, some, lanes, self.out);
            }
        }
    }

    /// Columns from `from` on of input `picks[i]`, a step's at every `size` lines.
    #[inline(always)]
    fn pack<S: Simd, const STEP: usize>(&self, s: S, i: usize, from: usize, out: &mut [Line], size: usize) {
        let live = (self.w.cols - from).min(STEPS * STEP);
        let at = |i: usize| self.picks[i] as usize * self.stride + self.offset + from;
        let input = &self.data[at(i)..][..live];
        // Another input is somewhere else in memory, and memory is far.
        let next = self.data[at((i + 2).min(self.picks.len() - 1))..].as_ptr();
        for (step, part) in input.chunks(STEP).enumerate() {
            for line in 0..STEP / LANES {
                s.prefetch(next.wrapping_add(step * STEP + line * LANES).cast());
            }
            let mut padded = [0.0; PAIRS];
            let part = if part.len() == STEP {
                part
            } else {
                padded[..part.len()].copy_from_slice(part);
                &padded[..STEP]
            };
            // SAFETY: a step's values in, sixteen out.
            unsafe {
                let first = s.load(part.as_ptr());
                let v = match (STEP == PAIRS, self.round) {
                    (true, _) => s.round_pair(first, s.load(part.as_ptr().add(LANES))),
                    (false, true) => s.round_bf16(first),
                    (false, false) => first,
                };
                s.store(out[step * size].0.as_mut_ptr(), v);
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
    fn all<S: Simd, const R: usize, const N: usize, const STEP: usize>(
        &self,
        s: S,
        some: usize,
        lanes: &mut [Line],
        out: Place<'_>,
    ) {
        for r in (0..self.rows).step_by(R) {
            let mut i = 0;
            while i + N <= some {
                self.tile::<S, R, N, STEP>(s, r, i, lanes, out);
                i += N;
            }
            while i < some {
                self.tile::<S, R, 1, STEP>(s, r, i, lanes, out);
                i += 1;
            }
        }
    }

    /// R rows times N inputs, their lanes in registers.
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const N: usize, const STEP: usize>(
        &self,
        s: S,
        r: usize,
        i: usize,
        lanes: &mut [Line],
        out: Place<'_>,
    ) {
        let (w, x) = (&self.w[r * self.steps..][..R * self.steps], &self.x[i * STEPS..][..N * self.steps]);
        let lanes = match self.start && self.end {
            true => &mut [],
            false => &mut lanes[r * self.n + (self.first + i) * R..][..R * N],
        };
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
                        let (x, sum) = (inputs[b], sums[a][b]);
                        sums[a][b] = if STEP == PAIRS { s.dot_pair(weight, x, sum) } else { s.fma(weight, x, sum) };
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
            let four = s.sum4(four);
            // SAFETY: it lives for this block.
            let out = unsafe { out.of(self.first + i + b, r..r + live) };
            // A copy whose length is known is one store.
            match out.first_chunk_mut::<4>() {
                Some(out) if R == 4 => *out = four,
                _ => out.copy_from_slice(&four[..live]),
            }
        }
    }
}
