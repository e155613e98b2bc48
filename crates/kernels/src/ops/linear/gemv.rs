//! One input, or a few: every weight is used once or a few times, so they are decoded on the way, some rows side by side.

use std::ops::Range;

use super::Place;
use super::decode::{FP8_BLOCK, Row, one, row, sixteen};
use crate::simd::{Kernel, LANES, Simd, load_part};
use crate::{Buffer, Format, Matrix};

/// Row `rows.start + j` · input i, for N inputs of the matrix's width, to the place of input `first + i` and row j.
pub(super) struct Gemv<'a, const N: usize> {
    pub w: &'a Matrix<Buffer>,
    pub rows: Range<usize>,
    pub x: [&'a [f32]; N],
    pub first: usize,
    pub out: Place<'a>,
}

impl<const N: usize> Kernel for Gemv<'_, N> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        assert!(self.x.iter().all(|x| x.len() == self.w.cols), "inputs as wide as the matrix");
        // As many rows as leave registers for what is decoded: sixteen lanes are one of 32, two of 16 or four of 32.
        match (S::WIDE, N) {
            (true, 1 | 2) => self.all::<S, 8>(s),
            (true, _) | (false, 1) => self.all::<S, 4>(s),
            (false, 2) => self.all::<S, 2>(s),
            (false, _) => self.all::<S, 1>(s),
        }
    }
}

impl<const N: usize> Gemv<'_, N> {
    /// R rows at once; FP8 where they share their scales.
    #[inline(always)]
    fn all<S: Simd, const R: usize>(self, s: S) {
        let fits = self.w.format == Format::Fp8 && self.scales_fit(s);
        let mut at = 0;
        while at < self.rows.len() {
            let r = self.rows.start + at;
            let together = at + R <= self.rows.len() && (!fits || r / FP8_BLOCK == (r + R - 1) / FP8_BLOCK);
            match (together, fits) {
                (true, true) => self.put(s, at, fp8(s, rows::<R>(self.w, r), self.x)),
                (true, false) => self.put(s, at, any(s, self.w.format, rows::<R>(self.w, r), self.x)),
                (false, true) => self.put(s, at, fp8(s, rows::<1>(self.w, r), self.x)),
                (false, false) => self.put(s, at, any(s, self.w.format, rows::<1>(self.w, r), self.x)),
            }
            at += if together { R } else { 1 };
        }
    }

    /// The sums of rows from `at` on.
    #[inline(always)]
    fn put<S: Simd, const R: usize>(&self, s: S, at: usize, sums: [[S::F; N]; R]) {
        for i in 0..N {
            // SAFETY: it lives for this loop alone.
            let out = unsafe { self.out.of(self.first + i, at..at + R) };
            for j in 0..R {
                out[j] = s.sum(sums[j][i]);
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
        let mut inside = u32::from(u16::MAX);
        for x in self.x {
            let (whole, rest) = x.split_at(x.len() / LANES * LANES);
            for at in (0..whole.len()).step_by(LANES) {
                // SAFETY: sixteen values from `at` on.
                let x = unsafe { s.load(whole.as_ptr().add(at)) };
                inside &= s.ge(x, least) & s.ge(most, x);
            }
            if rest.iter().any(|x| x.is_nan() || x.abs() > largest) {
                return false;
            }
        }
        inside == u32::from(u16::MAX)
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

/// The lanes' sums of some rows and inputs: one loop for each format, which does not ask for it again.
#[inline(always)]
fn any<S: Simd, const R: usize, const N: usize>(
    s: S,
    format: Format,
    rows: [Row<'_>; R],
    x: [&[f32]; N],
) -> [[S::F; N]; R] {
    match format {
        Format::F32 => plain(s, Format::F32, rows, x),
        Format::Bf16 => plain(s, Format::Bf16, rows, x),
        Format::Fp8 => plain(s, Format::Fp8, rows, x),
        Format::Fp4 => plain(s, Format::Fp4, rows, x),
    }
}

/// As [`any`], for a format known when this is compiled.
#[inline(always)]
fn plain<S: Simd, const R: usize, const N: usize>(
    s: S,
    format: Format,
    rows: [Row<'_>; R],
    x: [&[f32]; N],
) -> [[S::F; N]; R] {
    let whole = x[0].len() / LANES * LANES;
    let mut sums = [[s.splat(0.0); N]; R];
    let bytes = format.row_bytes(LANES);
    for k in (0..whole).step_by(LANES) {
        ahead(s, rows[0].data, k / LANES * bytes * R, bytes * R);
        // SAFETY: sixteen columns from k on exist in every input and in every row.
        unsafe {
            let mut inputs = [s.splat(0.0); N];
            for i in 0..N {
                inputs[i] = s.load(x[i].as_ptr().add(k));
            }
            for j in 0..R {
                let w = sixteen(s, format, rows[j], k);
                for i in 0..N {
                    sums[j][i] = s.fma(w, inputs[i], sums[j][i]);
                }
            }
        }
    }
    tail(s, format, rows, x, whole, sums)
}

/// As [`plain`] for rows of FP8 that share their scales, which are multiplied into x: see [`Gemv::scales_fit`].
#[inline(always)]
fn fp8<S: Simd, const R: usize, const N: usize>(s: S, rows: [Row<'_>; R], x: [&[f32]; N]) -> [[S::F; N]; R] {
    let whole = x[0].len() / LANES * LANES;
    let mut sums = [[s.splat(0.0); N]; R];
    for block in (0..whole).step_by(FP8_BLOCK) {
        // load_fp8 gives value · 2⁻¹²⁰.
        let scale = s.splat(f32::from_bits((u32::from(rows[0].scales[block / FP8_BLOCK]) + 120) << 23));
        for k in (block..whole.min(block + FP8_BLOCK)).step_by(LANES) {
            // SAFETY: sixteen columns from k on exist in every input and in every row.
            unsafe {
                ahead(s, rows[0].data, k * R, LANES * R);
                let mut inputs = [s.splat(0.0); N];
                for i in 0..N {
                    inputs[i] = s.mul(s.load(x[i].as_ptr().add(k)), scale);
                }
                for j in 0..R {
                    let w = s.load_fp8(rows[j].data.as_ptr().add(k));
                    for i in 0..N {
                        sums[j][i] = s.fma(w, inputs[i], sums[j][i]);
                    }
                }
            }
        }
    }
    tail(s, Format::Fp8, rows, x, whole, sums)
}

/// The columns after the last sixteen.
#[inline(always)]
fn tail<S: Simd, const R: usize, const N: usize>(
    s: S,
    format: Format,
    rows: [Row<'_>; R],
    x: [&[f32]; N],
    whole: usize,
    mut sums: [[S::F; N]; R],
) -> [[S::F; N]; R] {
    let rest = x[0].len() - whole;
    if rest > 0 {
        for j in 0..R {
            let w: [f32; LANES] = std::array::from_fn(|k| if k < rest { one(format, rows[j], whole + k) } else { 0.0 });
            for i in 0..N {
                // SAFETY: `rest` more values of each input, and sixteen of w.
                unsafe {
                    let x = load_part(s, x[i].as_ptr().add(whole), rest);
                    sums[j][i] = s.fma(s.load(w.as_ptr()), x, sums[j][i]);
                }
            }
        }
    }
    sums
}
