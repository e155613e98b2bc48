//! FP4 weights times int8 inputs, exact in integers.
//!
//! An input is rounded in groups of 32 columns, `q = round(x · 127/amax)`, scale amax/127. Lane j takes the columns of
//! octet j of every 128: its integer sum times both scales is added with fused multiply-add, blocks of 128 ascending;
//! then the lanes fold. Columns after the last are zero.

use std::ops::Range;

use super::decode::row;
use crate::pool::{Output, Pool};
use crate::simd::{FP4_BIAS, Kernel, LANES, Simd};
use crate::{Buffer, Matrix};

/// Columns multiplied at once.
const BLOCK: usize = 128;
const GROUP: usize = 32;

/// Rounded inputs, each in blocks of 128 columns: 64 of even k, then 64 of odd k.
pub(crate) struct Quantised {
    /// Blocks of an input.
    blocks: usize,
    /// `[n, blocks, 128]`.
    integers: Vec<i8>,
    /// `FP4_BIAS · Σ` of each octet, `[n, blocks, 16]`.
    bias: Vec<i32>,
    /// `[n, blocks, 4]`.
    scales: Vec<f32>,
}

impl Quantised {
    /// Rounds every row of x `[n, cols]`.
    pub(crate) fn new(pool: &Pool, x: &[f32], cols: usize) -> Self {
        let (n, blocks) = (x.len() / cols, cols.div_ceil(BLOCK));
        let mut all = Quantised {
            blocks,
            integers: vec![0; n * blocks * BLOCK],
            bias: vec![0; n * blocks * LANES],
            scales: vec![0.0; n * blocks * 4],
        };
        let (integers, bias) = (Output::new(&mut all.integers), Output::new(&mut all.bias));
        let scales = Output::new(&mut all.scales);
        pool.ranges(n, 8, 2, |rows| {
            for i in rows {
                // SAFETY: rows are disjoint.
                let (integers, bias, scales) = unsafe {
                    (
                        integers.slice(i * blocks * BLOCK..(i + 1) * blocks * BLOCK),
                        bias.slice(i * blocks * LANES..(i + 1) * blocks * LANES),
                        scales.slice(i * blocks * 4..(i + 1) * blocks * 4),
                    )
                };
                round(&x[i * cols..(i + 1) * cols], integers, bias, scales);
            }
        });
        all
    }

    /// Bytes that [`Quantised::new`] takes for `n` inputs.
    pub(crate) const fn bytes(n: usize, cols: usize) -> usize {
        n * cols.div_ceil(BLOCK) * (BLOCK + LANES * 4 + 16)
    }
}

fn round(x: &[f32], integers: &mut [i8], bias: &mut [i32], scales: &mut [f32]) {
    for (group, x) in x.chunks(GROUP).enumerate() {
        let largest = x.iter().fold(0.0f32, |a, v| if v.abs() > a { v.abs() } else { a });
        scales[group] = largest / 127.0;
        let factor = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        let block = group / 4 * BLOCK;
        let half = group % 4 * 16;
        for (i, pair) in x.chunks_exact(2).enumerate() {
            let q = |v: f32| (v * factor).round_ties_even() as i8;
            let (even, odd) = (q(pair[0]), q(pair[1]));
            integers[block + half + i] = even;
            integers[block + 64 + half + i] = odd;
            bias[group / 4 * LANES + group % 4 * 4 + i / 4] += FP4_BIAS * (i32::from(even) + i32::from(odd));
        }
    }
}

/// `out[i · rows.len() + j]` = row `rows.start + j` · input `picks[i]`.
pub(super) struct Product<'a> {
    pub w: &'a Matrix<Buffer>,
    pub rows: Range<usize>,
    pub x: &'a Quantised,
    pub picks: &'a [u32],
    pub out: &'a mut [f32],
}

impl Kernel for Product<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let rows = self.rows.len();
        let mut i = 0;
        while i < self.picks.len() {
            match self.picks.len() - i {
                4.. => i += self.inputs::<S, 4>(s, i, rows),
                2 | 3 => i += self.inputs::<S, 2>(s, i, rows),
                _ => i += self.inputs::<S, 1>(s, i, rows),
            }
        }
    }
}

impl Product<'_> {
    /// All rows times N inputs from pick i on.
    #[inline(always)]
    fn inputs<S: Simd, const N: usize>(&mut self, s: S, i: usize, rows: usize) -> usize {
        let Quantised { blocks, integers, bias, scales } = self.x;
        let picks: [usize; N] = std::array::from_fn(|b| self.picks[i + b] as usize);
        assert!(picks.iter().all(|pick| (pick + 1) * blocks * BLOCK <= integers.len()), "inputs");
        let whole = self.w.cols / BLOCK;
        for j in 0..rows {
            let r = row(self.w, self.rows.start + j);
            let mut sums = [s.splat(0.0); N];
            for block in 0..*blocks {
                // The last block may be short: its missing columns are zeros under scales of one.
                let (mut codes, mut exponents) = ([0; BLOCK / 2], [127; 4]);
                let (codes, exponents) = if block < whole {
                    (r.data[block * BLOCK / 2..].as_ptr(), r.scales[block * 4..].as_ptr())
                } else {
                    let (data, scales) = (&r.data[block * BLOCK / 2..], &r.scales[block * 4..]);
                    codes[..data.len()].copy_from_slice(data);
                    exponents[..scales.len()].copy_from_slice(scales);
                    (codes.as_ptr(), exponents.as_ptr())
                };
                // SAFETY: 64 code bytes and 4 exponents are readable, and every input has this block.
                unsafe {
                    let w = s.load_fp4(codes);
                    for b in 0..N {
                        let at = picks[b] * blocks + block;
                        let dot = s.dot_fp4(w, integers.as_ptr().add(at * BLOCK), bias.as_ptr().add(at * LANES));
                        let scale = s.scale_fp4(exponents, scales.as_ptr().add(at * 4));
                        sums[b] = s.fma(dot, scale, sums[b]);
                    }
                }
            }
            for (b, sum) in sums.into_iter().enumerate() {
                self.out[(i + b) * rows + j] = s.sum(sum);
            }
        }
        N
    }
}
