//! How cache rows are stored: FP8 and BF16 for attention, FP4 for the index (V4.md, *Rounding*).

use crate::formats::{to_bf16, to_e2m1, to_e4m3};
use crate::simd::{LANES, Simd};
use crate::{RowShape, index_row_bytes};

#[cfg(test)]
mod tests;

/// Dims under one FP8 scale.
const FP8_BLOCK: usize = 64;
/// Dims under one FP4 scale.
pub(crate) const FP4_BLOCK: usize = 32;

/// Rope dims below 2⁻⁴⁰ are stored as zero, which they are beside a row whose RMS was one: so that products of bfloat16 stay
/// among the normal numbers (see [`BF16_LEAST`](crate::simd::BF16_LEAST)).
const ROPE_LEAST: f32 = f32::from_bits((127 - 40) << 23);

/// 2ⁿ for a normal result.
pub(crate) fn pow2(n: i32) -> f32 {
    f32::from_bits(((n + 127) as u32) << 23)
}

/// ⌈log2(x / (mantissa · 2^exponent))⌉ for normal x > 0, where the divisor's mantissa bits are given.
fn ceil_log2_ratio(x: f32, mantissa: u32, exponent: i32) -> i32 {
    let bits = x.to_bits();
    (bits >> 23) as i32 - 127 - exponent + i32::from(bits & 0x7f_ffff > mantissa)
}

fn largest(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |a, v| if v.abs() > a { v.abs() } else { a })
}

/// Stores an attention row: x is `[d]`, out `row.bytes()`.
pub(crate) fn encode_attention(x: &[f32], row: RowShape, out: &mut [u8]) {
    let nope = row.width - row.rope;
    let (codes, rest) = out.split_at_mut(nope);
    let (scales, rope) = rest.split_at_mut(nope / FP8_BLOCK);
    for ((x, codes), scale) in x[..nope].chunks(FP8_BLOCK).zip(codes.chunks_mut(FP8_BLOCK)).zip(scales) {
        let exponent = ceil_log2_ratio(largest(x).max(1e-4), 0x60_0000, 8); // 448 = 1.75 · 2⁸
        *scale = (exponent + 127) as u8;
        let inverse = pow2(-exponent);
        for (code, &v) in codes.iter_mut().zip(x) {
            *code = to_e4m3(v * inverse);
        }
    }
    for (out, &v) in rope.chunks_mut(2).zip(&x[nope..]) {
        let v = if v.abs() < ROPE_LEAST { 0.0 } else { v };
        out.copy_from_slice(&to_bf16(v).to_le_bytes());
    }
}

/// What makes weights of [`Simd::load_fp8`], which gives value · 2⁻¹²⁰: 2^(e−127) is multiplied by 2¹²⁰ first where that
/// is a number, and later where it is not. Both are exact.
#[derive(Clone, Copy)]
pub(crate) struct Fp8Scale<S: Simd> {
    first: S::F,
    then: S::F,
    twice: bool,
}

impl<S: Simd> Fp8Scale<S> {
    #[inline(always)]
    pub(crate) fn new(s: S, e: u8) -> Self {
        if e <= 134 {
            Fp8Scale { first: s.splat(f32::from_bits((u32::from(e) + 120) << 23)), then: s.splat(1.0), twice: false }
        } else {
            let then = if e == 255 { f32::INFINITY } else { f32::from_bits(u32::from(e) << 23) };
            Fp8Scale { first: s.splat(pow2(120)), then: s.splat(then), twice: true }
        }
    }

    #[inline(always)]
    pub(crate) fn apply(self, s: S, loaded: S::F) -> S::F {
        let v = s.mul(loaded, self.first);
        if self.twice { s.mul(v, self.then) } else { v }
    }
}

/// Reads an attention row back: `row.bytes()` → f32 `[d]`.
///
/// # Safety
/// `stored` and `out` are valid for those lengths; d − r is a multiple of 64 and r of 16.
#[inline(always)]
pub(crate) unsafe fn decode_attention<S: Simd>(s: S, stored: *const u8, row: RowShape, out: *mut f32) {
    let nope = row.width - row.rope;
    // SAFETY: all offsets stay inside the row and `out` by the caller's word.
    unsafe {
        let scales = stored.add(nope);
        for block in 0..nope / FP8_BLOCK {
            let scale = Fp8Scale::new(s, *scales.add(block));
            for at in (block * FP8_BLOCK..(block + 1) * FP8_BLOCK).step_by(LANES) {
                s.store(out.add(at), scale.apply(s, s.load_fp8(stored.add(at))));
            }
        }
        let rope = scales.add(nope / FP8_BLOCK);
        for at in (0..row.rope).step_by(LANES) {
            s.store(out.add(nope + at), s.load_bf16(rope.add(2 * at)));
        }
    }
}

/// The Hadamard transform in natural order, divided by the root of the width: butterflies over 1, 2, 4, … apart.
pub(crate) fn hadamard(x: &mut [f32]) {
    let mut half = 1;
    while half < x.len() {
        for pair in x.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
    let scale = 1.0 / (x.len() as f32).sqrt();
    x.iter_mut().for_each(|v| *v *= scale);
}

/// Stores an index row: x is `[w]`, out `index_row_bytes(w)`.
pub(crate) fn encode_index(x: &[f32], out: &mut [u8]) {
    debug_assert_eq!(out.len(), index_row_bytes(x.len()));
    let (codes, scales) = out.split_at_mut(x.len() / 2);
    for ((x, codes), scale) in x.chunks(FP4_BLOCK).zip(codes.chunks_mut(FP4_BLOCK / 2)).zip(scales) {
        let (e, inverse) = index_scale(x);
        *scale = e;
        for (code, pair) in codes.iter_mut().zip(x.chunks_exact(2)) {
            *code = to_e2m1(pair[0] * inverse) | to_e2m1(pair[1] * inverse) << 4;
        }
    }
}

/// The UE8M0 byte of a block of index dims, and what to multiply them by.
fn index_scale(x: &[f32]) -> (u8, f32) {
    let smallest = 6.0 * pow2(-126);
    let exponent = ceil_log2_ratio(largest(x).max(smallest), 0x40_0000, 2).min(126); // 6 = 1.5 · 2²
    ((exponent + 127) as u8, pow2(-exponent))
}

/// Rounds a block of index dims to doubled FP4 integers and their scale, halved.
pub(crate) fn index_integers(x: &[f32], out: &mut [i8]) -> f32 {
    const DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];
    let (e, inverse) = index_scale(x);
    for (out, &v) in out.iter_mut().zip(x) {
        *out = DOUBLED[usize::from(to_e2m1(v * inverse))];
    }
    0.5 * f32::from_bits(u32::from(e) << 23)
}

/// Rotates the last `angles.len()` dims of x by (cos, sin) pairs.
pub(crate) fn rotate(x: &mut [f32], angles: &[f32]) {
    let start = x.len() - angles.len();
    for (pair, angle) in x[start..].chunks_exact_mut(2).zip(angles.chunks_exact(2)) {
        let (even, odd, cos, sin) = (pair[0], pair[1], angle[0], angle[1]);
        pair[0] = even * cos - odd * sin;
        pair[1] = even * sin + odd * cos;
    }
}

/// Rotates back.
pub(crate) fn rotate_back(x: &mut [f32], angles: &[f32]) {
    let start = x.len() - angles.len();
    for (pair, angle) in x[start..].chunks_exact_mut(2).zip(angles.chunks_exact(2)) {
        let (even, odd, cos, sin) = (pair[0], pair[1], angle[0], angle[1]);
        pair[0] = even * cos + odd * sin;
        pair[1] = odd * cos - even * sin;
    }
}

/// (cos, sin) of position · frequency, the product in f32, `[2 · frequencies]`.
pub(crate) fn angles(position: u32, frequencies: &[f32], out: &mut [f32]) {
    for (pair, &f) in out.chunks_exact_mut(2).zip(frequencies) {
        let (sin, cos) = crate::math::sin_cos(f64::from(position as f32 * f));
        (pair[0], pair[1]) = (cos as f32, sin as f32);
    }
}

#[cfg(test)]
pub(crate) mod tests_support {
    /// An index row back to f32, slowly.
    pub(crate) fn decode_index(stored: &[u8], width: usize) -> Vec<f32> {
        const E2M1: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        (0..width)
            .map(|k| {
                let code = stored[k / 2] >> (4 * (k % 2)) & 15;
                let value = E2M1[usize::from(code & 7)] * (f32::from(stored[width / 2 + k / 32]) - 127.0).exp2();
                if code & 8 == 0 { value } else { -value }
            })
            .collect()
    }
}
