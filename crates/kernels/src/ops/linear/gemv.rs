//! One input: every weight is used once, so they are decoded on the way, four rows side by side.

use std::ops::Range;

use super::decode::{FP8_BLOCK, Row, one, row, scale, sixteen};
use crate::simd::{Kernel, LANES, Simd, load_part};
use crate::{Buffer, Format, Matrix};

/// `out[j]` = row `rows.start + j` · x.
pub(super) struct Gemv<'a> {
    pub w: &'a Matrix<Buffer>,
    pub rows: Range<usize>,
    pub x: &'a [f32],
    pub out: &'a mut [f32],
}

impl Kernel for Gemv<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut r = self.rows.start;
        let mut out = self.out.chunks_exact_mut(4);
        for out in &mut out {
            // Four rows share the scales of FP8 only where no border of a block runs between them.
            let rows: [Row<'_>; 4] = std::array::from_fn(|i| row(self.w, r + i));
            let sums = match self.w.format {
                Format::Fp8 => fp8(s, rows, self.x),
                format => plain(s, format, rows, self.x),
            };
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = s.sum(sum);
            }
            r += 4;
        }
        for out in out.into_remainder() {
            *out = s.sum(plain(s, self.w.format, [row(self.w, r)], self.x)[0]);
            r += 1;
        }
    }
}

/// The lanes' sums of some rows, any format.
#[inline(always)]
fn plain<S: Simd, const R: usize>(s: S, format: Format, rows: [Row<'_>; R], x: &[f32]) -> [S::F; R] {
    let whole = x.len() / LANES * LANES;
    let mut sums = [s.splat(0.0); R];
    for k in (0..whole).step_by(LANES) {
        // SAFETY: sixteen columns from k on exist in x and in every row.
        unsafe {
            let x = s.load(x.as_ptr().add(k));
            for i in 0..R {
                sums[i] = s.fma(sixteen(s, format, rows[i], k), x, sums[i]);
            }
        }
    }
    tail(s, format, rows, x, whole, sums)
}

/// As [`plain`], with the scales looked up once for 128 columns.
#[inline(always)]
fn fp8<S: Simd, const R: usize>(s: S, rows: [Row<'_>; R], x: &[f32]) -> [S::F; R] {
    let whole = x.len() / LANES * LANES;
    let mut sums = [s.splat(0.0); R];
    for block in (0..whole).step_by(FP8_BLOCK) {
        let mut scales = [s.splat(0.0); R];
        for i in 0..R {
            scales[i] = s.splat(scale(rows[i].scales[block / FP8_BLOCK], 8));
        }
        for k in (block..whole.min(block + FP8_BLOCK)).step_by(LANES) {
            // SAFETY: sixteen columns from k on exist in x and in every row.
            unsafe {
                let x = s.load(x.as_ptr().add(k));
                for i in 0..R {
                    sums[i] = s.fma(s.mul(s.load_fp8(rows[i].data.as_ptr().add(k)), scales[i]), x, sums[i]);
                }
            }
        }
    }
    tail(s, Format::Fp8, rows, x, whole, sums)
}

/// The columns after the last sixteen.
#[inline(always)]
fn tail<S: Simd, const R: usize>(
    s: S,
    format: Format,
    rows: [Row<'_>; R],
    x: &[f32],
    whole: usize,
    mut sums: [S::F; R],
) -> [S::F; R] {
    let rest = x.len() - whole;
    if rest > 0 {
        // SAFETY: `rest` more values of x, and room for sixteen in w.
        unsafe {
            let x = load_part(s, x.as_ptr().add(whole), rest);
            for i in 0..R {
                let w: [f32; LANES] =
                    std::array::from_fn(|j| if j < rest { one(format, rows[i], whole + j) } else { 0.0 });
                sums[i] = s.fma(s.load(w.as_ptr()), x, sums[i]);
            }
        }
    }
    sums
}
