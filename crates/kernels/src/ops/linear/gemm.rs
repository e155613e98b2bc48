//! Many inputs: weights are decoded into a panel that stays in cache, and every sum's sixteen lanes wait in memory
//! between panels, so that the order of a sum is that of one input alone.

use std::cell::RefCell;
use std::ops::Range;

use super::decode::{panel, row};
use super::{INPUTS, ROWS};
use crate::simd::{Kernel, LANES, Simd};
use crate::{Buffer, Matrix};

/// Columns of a panel.
const COLS: usize = 512;

/// `out[i · rows.len() + j]` = row `rows.start + j` · input `picks[i]`.
pub(super) struct Gemm<'a> {
    pub w: &'a Matrix<Buffer>,
    pub rows: Range<usize>,
    pub data: &'a [f32],
    pub stride: usize,
    pub offset: usize,
    pub picks: &'a [u32],
    pub out: &'a mut [f32],
}

/// A thread's panel `[ROWS, COLS]`, inputs `[INPUTS, COLS]` and lanes `[ROWS, INPUTS, 16]`.
struct Scratch {
    panel: Vec<f32>,
    inputs: Vec<f32>,
    lanes: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch {
        panel: vec![0.0; ROWS * COLS],
        inputs: vec![0.0; INPUTS * COLS],
        lanes: vec![0.0; ROWS * INPUTS * LANES],
    });
}

impl Kernel for Gemm<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        // Taken out, not borrowed: the closure of `with_borrow_mut` would not have the instruction set's features.
        let mut scratch = SCRATCH.replace(Scratch { panel: Vec::new(), inputs: Vec::new(), lanes: Vec::new() });
        if scratch.panel.is_empty() {
            scratch = Scratch {
                panel: vec![0.0; ROWS * COLS],
                inputs: vec![0.0; INPUTS * COLS],
                lanes: vec![0.0; ROWS * INPUTS * LANES],
            };
        }
        self.multiply(s, &mut scratch);
        SCRATCH.set(scratch);
    }
}

impl Gemm<'_> {
    #[inline(always)]
    fn multiply<S: Simd>(self, s: S, scratch: &mut Scratch) {
        let (rows, cols) = (self.rows.len(), self.w.cols);
        assert!(rows <= ROWS && self.picks.len() <= INPUTS, "a task's size");
        let n = self.picks.len();
        let Scratch { panel: w, inputs: x, lanes } = scratch;
        lanes[..rows * n * LANES].fill(0.0);
        let mut from = 0;
        while from < cols {
            let wide = COLS.min(cols - from).next_multiple_of(LANES);
            for (i, r) in self.rows.clone().enumerate() {
                panel(s, self.w.format, row(self.w, r), cols, from, &mut w[i * COLS..i * COLS + wide]);
            }
            let live = wide.min(cols - from);
            for (&pick, x) in self.picks.iter().zip(x.chunks_exact_mut(COLS)) {
                let input = &self.data[pick as usize * self.stride + self.offset + from..][..live];
                x[..live].copy_from_slice(input);
                x[live..wide].fill(0.0);
            }
            let tile = Tiles { w, x, lanes, rows, n, wide };
            if S::WIDE {
                tile.all::<S, 4, 4>(s)
            } else {
                tile.all::<S, 3, 2>(s)
            }
            from += COLS;
        }
        for i in 0..n {
            for r in 0..rows {
                // SAFETY: every sum has sixteen lanes.
                self.out[i * rows + r] = s.sum(unsafe { s.load(lanes.as_ptr().add((r * n + i) * LANES)) });
            }
        }
    }
}

/// One panel against one block of inputs.
struct Tiles<'a> {
    w: &'a [f32],
    x: &'a [f32],
    lanes: &'a mut [f32],
    rows: usize,
    n: usize,
    wide: usize,
}

impl Tiles<'_> {
    #[inline(always)]
    fn all<S: Simd, const R: usize, const N: usize>(mut self, s: S) {
        let mut r = 0;
        while r < self.rows {
            let whole = r + R <= self.rows;
            let mut i = 0;
            while i < self.n {
                match (whole, i + N <= self.n) {
                    (true, true) => self.tile::<S, R, N>(s, r, i),
                    (true, false) => self.tile::<S, R, 1>(s, r, i),
                    (false, true) => self.tile::<S, 1, N>(s, r, i),
                    (false, false) => self.tile::<S, 1, 1>(s, r, i),
                }
                i += if i + N <= self.n { N } else { 1 };
            }
            r += if whole { R } else { 1 };
        }
    }

    /// R rows times N inputs, their lanes in registers.
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const N: usize>(&mut self, s: S, r: usize, i: usize) {
        assert!(r + R <= self.rows && i + N <= self.n && self.wide <= COLS);
        assert!(self.rows <= ROWS && self.n <= INPUTS);
        let (w, x) = (self.w[r * COLS..(r + R) * COLS].as_ptr(), self.x[i * COLS..(i + N) * COLS].as_ptr());
        // SAFETY: panels have COLS columns for each row and input, of which `wide`, a multiple of 16, are used; the
        // lanes have room for every row and input.
        unsafe {
            let lanes = self.lanes.as_mut_ptr();
            let at = |a: usize, b: usize| ((r + a) * self.n + i + b) * LANES;
            let mut sums = [[s.splat(0.0); N]; R];
            for a in 0..R {
                for b in 0..N {
                    sums[a][b] = s.load(lanes.add(at(a, b)));
                }
            }
            let mut k = 0;
            while k < self.wide {
                let mut inputs = [s.splat(0.0); N];
                for b in 0..N {
                    inputs[b] = s.load(x.add(b * COLS + k));
                }
                for a in 0..R {
                    let weight = s.load(w.add(a * COLS + k));
                    for b in 0..N {
                        sums[a][b] = s.fma(weight, inputs[b], sums[a][b]);
                    }
                }
                k += LANES;
            }
            for a in 0..R {
                for b in 0..N {
                    s.store(lanes.add(at(a, b)), sums[a][b]);
                }
            }
        }
    }
}
