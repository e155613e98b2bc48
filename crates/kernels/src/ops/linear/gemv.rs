//! One input: every weight is used once, so they are decoded on the way, four rows side by side.

use std::ops::Range;

use super::decode::{FP8_BLOCK, Row, one, row, sixteen};
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
        if self.w.format == Format::Fp8 && self.scales_fit(s) {
            if S::WIDE { self.fp8::<S, 8>(s) } else { self.fp8::<S, 4>(s) }
        } else if S::WIDE {
            self.any::<S, 8>(s);
        } else {
            self.any::<S, 4>(s);
        }
    }
}

impl Gemv<'_> {
    /// R rows at once, any format.
    #[inline(always)]
    fn any<S: Simd, const R: usize>(self, s: S) {
        let mut r = self.rows.start;
        let mut out = self.out.chunks_exact_mut(R);
        for out in &mut out {
            let sums = any(s, self.w.format, rows::<R>(self.w, r), self.x);
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = s.sum(sum);
            }
            r += R;
        }
        for out in out.into_remainder() {
            *out = s.sum(any(s, self.w.format, rows::<1>(self.w, r), self.x)[0]);
            r += 1;
        }
    }

    /// R rows of FP8 at once, where they share their scales.
    #[inline(always)]
    fn fp8<S: Simd, const R: usize>(self, s: S) {
        let mut at = 0;
        while at < self.out.len() {
            let r = self.rows.start + at;
            if at + R <= self.out.len() && r / FP8_BLOCK == (r + R - 1) / FP8_BLOCK {
                let sums = fp8(s, rows::<R>(self.w, r), self.x);
                for (out, sum) in self.out[at..at + R].iter_mut().zip(sums) {
                    *out = s.sum(sum);
                }
                at += R;
            } else {
                self.out[at] = s.sum(fp8(s, rows::<1>(self.w, r), self.x)[0]);
                at += 1;
            }
        }
    }

    /// Whether the scales of FP8 may be multiplied into x instead of into every weight. A scale is a power of two, so that
    /// moves no bit as long as x stays finite and the weights alone are not so small that they would be rounded.
    #[inline(always)]
    fn scales_fit<S: Simd>(&self, s: S) -> bool {
        let mut most = 0;
        for block in self.rows.start / FP8_BLOCK..self.rows.end.div_ceil(FP8_BLOCK) {
            for &e in row(self.w, block * FP8_BLOCK).scales {
                if !(16..=134).contains(&e) {
                    return false;
                }
                most = most.max(e);
            }
        }
        let largest = f32::from_bits((254 - u32::from(most) - 120 + 127) << 23);
        let (least, most) = (s.splat(-largest), s.splat(largest));
        let whole = self.x.len() / LANES * LANES;
        let mut inside = u32::from(u16::MAX);
        for at in (0..whole).step_by(LANES) {
            // SAFETY: sixteen values from `at` on.
            let x = unsafe { s.load(self.x.as_ptr().add(at)) };
            inside &= s.ge(x, least) & s.ge(most, x);
        }
        inside == u32::from(u16::MAX) && self.x[whole..].iter().all(|x| x.abs() <= largest)
    }
}

/// R rows from r on.
#[inline(always)]
fn rows<const R: usize>(w: &Matrix<Buffer>, r: usize) -> [Row<'_>; R] {
    let mut rows = [row(w, r); R];
    for i in 1..R {
        rows[i] = row(w, r + i);
    }
    rows
}

/// Bytes of a cache line.
const LINE: usize = 64;
/// How far ahead memory is asked for, in bytes.
const AHEAD: usize = 16 << 10;

/// Asks for what comes later while `bytes` from `at` on of some rows' common memory are used. Several rows are read side by
/// side, and memory gives three times as much to who asks for it in one straight line: so this does, whatever the rows.
#[inline(always)]
pub(super) fn ahead<S: Simd>(s: S, first: &[u8], at: usize, bytes: usize) {
    for line in 0..bytes / LINE {
        s.prefetch(first.as_ptr().wrapping_add(AHEAD + at + line * LINE));
    }
}

/// The lanes' sums of some rows: one loop for each format, which does not ask for it again.
#[inline(always)]
fn any<S: Simd, const R: usize>(s: S, format: Format, rows: [Row<'_>; R], x: &[f32]) -> [S::F; R] {
    match format {
        Format::F32 => plain(s, Format::F32, rows, x),
        Format::Bf16 => plain(s, Format::Bf16, rows, x),
        Format::Fp8 => plain(s, Format::Fp8, rows, x),
        Format::Fp4 => plain(s, Format::Fp4, rows, x),
    }
}

/// As [`any`], for a format known when this is compiled.
#[inline(always)]
fn plain<S: Simd, const R: usize>(s: S, format: Format, rows: [Row<'_>; R], x: &[f32]) -> [S::F; R] {
    let whole = x.len() / LANES * LANES;
    let mut sums = [s.splat(0.0); R];
    let bytes = format.row_bytes(LANES);
    for k in (0..whole).step_by(LANES) {
        ahead(s, rows[0].data, k / LANES * bytes * R, bytes * R);
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

/// As [`plain`] for rows of FP8 that share their scales, which are multiplied into x: see [`Gemv::scales_fit`].
#[inline(always)]
fn fp8<S: Simd, const R: usize>(s: S, rows: [Row<'_>; R], x: &[f32]) -> [S::F; R] {
    let whole = x.len() / LANES * LANES;
    let mut sums = [s.splat(0.0); R];
    for block in (0..whole).step_by(FP8_BLOCK) {
        // load_fp8 gives value · 2⁻¹²⁰.
        let scale = s.splat(f32::from_bits((u32::from(rows[0].scales[block / FP8_BLOCK]) + 120) << 23));
        for k in (block..whole.min(block + FP8_BLOCK)).step_by(LANES) {
            // SAFETY: sixteen columns from k on exist in x and in every row.
            unsafe {
                ahead(s, rows[0].data, k * R, LANES * R);
                let x = s.mul(s.load(x.as_ptr().add(k)), scale);
                for i in 0..R {
                    sums[i] = s.fma(s.load_fp8(rows[i].data.as_ptr().add(k)), x, sums[i]);
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
