//! Weights to f32, sixteen at a time.

use crate::ops::rows::Fp8Scale;
use crate::simd::{LANES, Simd};
use crate::{Buffer, Format, Matrix};

/// Columns under one FP8 scale, and rows.
pub(super) const FP8_BLOCK: usize = 128;
const FP4_BLOCK: usize = 32;

/// 2^(e−127+more) for a UE8M0 byte, as exactly as f32 can.
pub(super) fn scale(e: u8, more: i32) -> f32 {
    match i32::from(e) + more {
        over if over >= 255 => f32::INFINITY,
        normal if normal >= 1 => f32::from_bits((normal as u32) << 23),
        under if under > -23 => f32::from_bits(1 << (22 + under)),
        _ => 0.0,
    }
}

/// One row of a matrix.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    pub data: &'a [u8],
    /// FP8: one for each 128 columns; FP4: one for each 32.
    pub scales: &'a [u8],
}

#[inline(always)]
pub(super) fn row(w: &Matrix<Buffer>, row: usize) -> Row<'_> {
    let bytes = w.format.row_bytes(w.cols);
    let data = &w.data.bytes()[row * bytes..][..bytes];
    let scales = w.scale.as_ref().map_or(&[][..], Buffer::bytes);
    let scales = match w.format {
        Format::Fp8 => {
            let across = w.cols.div_ceil(FP8_BLOCK);
            &scales[row / FP8_BLOCK * across..][..across]
        }
        Format::Fp4 => &scales[row * (w.cols / FP4_BLOCK)..][..w.cols / FP4_BLOCK],
        Format::F32 | Format::Bf16 => &[],
    };
    Row { data, scales }
}

/// A row's weights in columns `[from, from + STEP · steps)`, zeros after the last column; a step's at every `stride` of
/// out. A step has sixteen columns, or thirty-two as pairs of bfloat16 ([`Simd::pair`]): its first sixteen are the high halves.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
pub(super) fn panel<S: Simd, const STEP: usize>(
    s: S,
    format: Format,
    row: Row<'_>,
    cols: usize,
    from: usize,
    steps: usize,
    out: &mut [f32],
    stride: usize,
) {
    debug_assert!(from.is_multiple_of(FP8_BLOCK));
    assert!(steps == 0 || (steps - 1) * stride + LANES <= out.len(), "room for a panel");
    let whole = (cols - from).min(steps * STEP) / STEP;
    // One loop for each format, which does not ask for it again.
    match format {
        Format::F32 => decode::<S, STEP>(s, Format::F32, row, from, whole, out, stride),
        Format::Bf16 => decode::<S, STEP>(s, Format::Bf16, row, from, whole, out, stride),
        Format::Fp8 => decode::<S, STEP>(s, Format::Fp8, row, from, whole, out, stride),
        Format::Fp4 => decode::<S, STEP>(s, Format::Fp4, row, from, whole, out, stride),
    }
    for step in whole..steps {
        let k = from + step * STEP;
        let some: [f32; 2 * LANES] = std::array::from_fn(|i| if k + i < cols { one(format, row, k + i) } else { 0.0 });
        // SAFETY: two times sixteen values, and room for sixteen in out.
        unsafe {
            let first = s.load(some.as_ptr());
            let v = if STEP == LANES { first } else { s.pair(first, s.load(some.as_ptr().add(LANES))) };
            s.store(out[step * stride..][..LANES].as_mut_ptr(), v);
        }
    }
}

/// `steps` steps of weights of columns from `from` on.
#[inline(always)]
fn decode<S: Simd, const STEP: usize>(
    s: S,
    format: Format,
    row: Row<'_>,
    from: usize,
    steps: usize,
    out: &mut [f32],
    stride: usize,
) {
    for step in 0..steps {
        // SAFETY: a step's columns exist there, and out has room for it: see the assertion of `panel`.
        unsafe {
            let k = from + step * STEP;
            let first = sixteen(s, format, row, k);
            let v = if STEP == LANES { first } else { s.pair(first, sixteen(s, format, row, k + LANES)) };
            s.store(out.as_mut_ptr().add(step * stride), v);
        }
    }
}

/// Sixteen weights from column k on, a multiple of 16.
///
/// # Safety
/// They all exist.
#[inline(always)]
pub(super) unsafe fn sixteen<S: Simd>(s: S, format: Format, row: Row<'_>, k: usize) -> S::F {
    let data = row.data.as_ptr();
    // SAFETY: by the caller's word, and a row has a scale for each of its blocks.
    unsafe {
        match format {
            Format::F32 => s.load(data.add(4 * k).cast()),
            Format::Bf16 => s.load_bf16(data.add(2 * k)),
            Format::Fp8 => Fp8Scale::new(s, *row.scales.get_unchecked(k / FP8_BLOCK)).apply(s, s.load_fp8(data.add(k))),
            Format::Fp4 => {
                let mut v = [0.0; LANES];
                for (i, v) in v.iter_mut().enumerate() {
                    *v = fp4(*data.add((k + i) / 2) >> (4 * (i % 2)));
                }
                s.mul(s.load(v.as_ptr()), s.splat(scale(*row.scales.get_unchecked(k / FP4_BLOCK), 0)))
            }
        }
    }
}

fn fp4(code: u8) -> f32 {
    const E2M1: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];
    E2M1[usize::from(code & 15)]
}

/// One weight, as [`sixteen`] would read it.
pub(super) fn one(format: Format, row: Row<'_>, k: usize) -> f32 {
    match format {
        Format::F32 => f32::from_le_bytes(std::array::from_fn(|i| row.data[4 * k + i])),
        Format::Bf16 => {
            let raw = [row.data[2 * k], row.data[2 * k + 1]];
            f32::from_bits(u32::from(u16::from_le_bytes(raw)) << 16)
        }
        Format::Fp8 => {
            let code = row.data[k];
            let (e, m) = (u32::from(code >> 3 & 15), f32::from(code & 7));
            // value · 2⁻⁸, exact.
            let magnitude = if e == 0 { m / 131_072.0 } else { (8.0 + m) * 0.125 * f32::from_bits((e + 112) << 23) };
            let value = if code & 0x80 == 0 { magnitude } else { -magnitude };
            value * scale(row.scales[k / FP8_BLOCK], 8)
        }
        Format::Fp4 => fp4(row.data[k / 2] >> (4 * (k % 2))) * scale(row.scales[k / FP4_BLOCK], 0),
    }
}
