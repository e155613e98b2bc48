//! FP4 weights times int8 inputs, exact in integers.
//!
//! An input is rounded in groups of 32 columns, `q = round(x · 127/amax)`, scale amax/127. Lane j takes the columns of
//! octet j of every 128: its integer sum times both scales is added with fused multiply-add, blocks of 128 ascending;
//! then the lanes fold. Columns after the last are zero.

use std::ops::Range;

use super::decode::row;
use super::gemv::ahead;
use crate::formats::ROUND;
use crate::pool::{Output, Pool};
use crate::simd::{FP4_BIAS, Isa, Kernel, LANES, Simd};
use crate::{Buffer, Matrix};

/// Columns multiplied at once.
const BLOCK: usize = 128;
const GROUP: usize = 32;

/// 128 columns of a rounded input, as [`Simd::dot_fp4`] takes them.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Block {
    /// 64 of even k, then 64 of odd k.
    integers: [i8; BLOCK],
    /// `−FP4_BIAS · Σ` of each octet.
    start: [i32; LANES],
    /// Each octet's scale, halved, because FP4 comes doubled.
    scales: [f32; LANES],
}

const ZERO: Block = Block { integers: [0; BLOCK], start: [0; LANES], scales: [0.0; LANES] };

/// Rounded inputs.
pub(crate) struct Quantised {
    /// Blocks of an input.
    width: usize,
    /// `[n, width]`.
    blocks: Vec<Block>,
}

impl Quantised {
    /// Rounds every row of x `[n, cols]`.
    pub(crate) fn new(isa: Isa, pool: &Pool, x: &[f32], cols: usize) -> Self {
        let (n, width) = (x.len() / cols, cols.div_ceil(BLOCK));
        let mut blocks = vec![ZERO; n * width];
        let out = Output::new(&mut blocks);
        pool.ranges(n, 8, 2, |rows| {
            for i in rows {
                // SAFETY: rows are disjoint.
                let out = unsafe { out.slice(i * width..(i + 1) * width) };
                isa.run(Round { x: &x[i * cols..(i + 1) * cols], out });
            }
        });
        Quantised { width, blocks }
    }

    /// Bytes that [`Quantised::new`] takes for `n` inputs.
    pub(crate) const fn bytes(n: usize, cols: usize) -> usize {
        n * cols.div_ceil(BLOCK) * size_of::<Block>()
    }
}

/// Rounds one input.
struct Round<'a> {
    x: &'a [f32],
    out: &'a mut [Block],
}

impl Kernel for Round<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (i, x) in self.x.chunks(GROUP).enumerate() {
            let (block, group) = (&mut self.out[i / 4], i % 4);
            let mut padded = [0.0; GROUP];
            padded[..x.len()].copy_from_slice(x);
            let mut rounded = [0.0f32; GROUP];
            // SAFETY: two times sixteen values in, and out.
            unsafe {
                let x = [s.load(padded.as_ptr()), s.load(padded.as_ptr().add(LANES))];
                let zero = s.splat(0.0);
                let mut sizes = [0.0f32; LANES];
                let size = s.max(s.max(x[0], s.sub(zero, x[0])), zero);
                s.store(sizes.as_mut_ptr(), s.max(s.max(x[1], s.sub(zero, x[1])), size));
                let largest = sizes.iter().fold(0.0f32, |a, &v| if v > a { v } else { a });
                block.scales[4 * group..][..4].fill(largest / 127.0 * 0.5);
                let factor = s.splat(if largest > 0.0 { 127.0 / largest } else { 0.0 });
                // The integer stands in the low bits.
                let magic = s.splat(ROUND);
                s.store(rounded.as_mut_ptr(), s.add(s.mul(x[0], factor), magic));
                s.store(rounded.as_mut_ptr().add(LANES), s.add(s.mul(x[1], factor), magic));
            }
            let mut sums = [0i32; 4];
            for i in 0..GROUP / 2 {
                let (even, odd) = (rounded[2 * i].to_bits() as i8, rounded[2 * i + 1].to_bits() as i8);
                block.integers[16 * group + i] = even;
                block.integers[64 + 16 * group + i] = odd;
                sums[i / 4] -= FP4_BIAS * (i32::from(even) + i32::from(odd));
            }
            block.start[4 * group..][..4].copy_from_slice(&sums);
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
        let mut i = 0;
        while i < self.picks.len() {
            let left = self.picks.len() - i;
            // As many sums as there are registers for, the decoded weights beside them.
            i += match left {
                6.. if S::WIDE => self.inputs::<S, 2, 6>(s, i),
                4.. => self.inputs::<S, 1, 4>(s, i),
                2.. => self.inputs::<S, 2, 2>(s, i),
                _ => self.inputs::<S, 4, 1>(s, i),
            }
        }
    }
}

impl Product<'_> {
    /// All rows, R at once, times N inputs from pick i on.
    #[inline(always)]
    fn inputs<S: Simd, const R: usize, const N: usize>(&mut self, s: S, i: usize) -> usize {
        let mut j = 0;
        while j < self.rows.len() {
            if j + R <= self.rows.len() {
                self.tile::<S, R, N>(s, j, i);
                j += R;
            } else {
                self.tile::<S, 1, N>(s, j, i);
                j += 1;
            }
        }
        N
    }

    /// Rows from j on times inputs from pick i on.
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const N: usize>(&mut self, s: S, j: usize, i: usize) {
        let Quantised { width, blocks } = self.x;
        let mut inputs = [std::ptr::null::<Block>(); N];
        for b in 0..N {
            let pick = self.picks[i + b] as usize;
            inputs[b] = blocks[pick * width..(pick + 1) * width].as_ptr();
        }
        let mut rows = [row(self.w, self.rows.start + j); R];
        for a in 1..R {
            rows[a] = row(self.w, self.rows.start + j + a);
        }
        let whole = self.w.cols / BLOCK;
        let mut sums = [[s.splat(0.0); N]; R];
        for block in 0..whole {
            // SAFETY: every row has 64 code bytes of this block.
            let codes = std::array::from_fn(|a| unsafe { rows[a].data.as_ptr().add(block * BLOCK / 2) });
            // SAFETY: and 4 exponents.
            let exponents = std::array::from_fn(|a| unsafe { rows[a].scales.as_ptr().add(block * 4) });
            if N == 1 {
                ahead(s, rows[0].data, block * BLOCK / 2 * R, BLOCK / 2 * R);
            }
            // SAFETY: as above, and every input has this block.
            unsafe { add::<S, R, N>(s, codes, exponents, &inputs, block, &mut sums) };
        }
        if whole < *width {
            // A short block: its missing columns are zeros under scales of one.
            let (mut codes, mut exponents) = ([[0; BLOCK / 2]; R], [[127; 4]; R]);
            for a in 0..R {
                let (data, scales) = (&rows[a].data[whole * BLOCK / 2..], &rows[a].scales[whole * 4..]);
                codes[a][..data.len()].copy_from_slice(data);
                exponents[a][..scales.len()].copy_from_slice(scales);
            }
            let (codes, exponents) = (codes.each_ref().map(|c| c.as_ptr()), exponents.each_ref().map(|e| e.as_ptr()));
            // SAFETY: 64 code bytes and 4 exponents each, and every input has this block.
            unsafe { add::<S, R, N>(s, codes, exponents, &inputs, whole, &mut sums) };
        }
        for a in 0..R {
            for b in 0..N {
                self.out[(i + b) * self.rows.len() + j + a] = s.sum(sums[a][b]);
            }
        }
    }
}

/// Adds the products of one block.
///
/// # Safety
/// 64 readable bytes at all `codes`, 4 at all `exponents`, and `inputs` have that block.
#[inline(always)]
unsafe fn add<S: Simd, const R: usize, const N: usize>(
    s: S,
    codes: [*const u8; R],
    exponents: [*const u8; R],
    inputs: &[*const Block; N],
    block: usize,
    sums: &mut [[S::F; N]; R],
) {
    // SAFETY: by the caller's word.
    unsafe {
        // Loops, not `map`: a closure would not have the instruction set's features.
        let (mut w, mut scales) = ([s.load_fp4(codes[0]); R], [s.scale_fp4(exponents[0]); R]);
        for a in 1..R {
            (w[a], scales[a]) = (s.load_fp4(codes[a]), s.scale_fp4(exponents[a]));
        }
        for b in 0..N {
            let x = inputs[b].add(block);
            let x_scales = s.load((&raw const (*x).scales).cast());
            for a in 0..R {
                let dot = s.dot_fp4(w[a], (&raw const (*x).integers).cast(), (&raw const (*x).start).cast());
                sums[a][b] = s.fma(dot, s.mul(x_scales, scales[a]), sums[a][b]);
            }
        }
    }
}
