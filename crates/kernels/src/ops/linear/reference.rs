//! Matrix products, said plainly.

use super::int8::Quantised;
use crate::{Format, Matrix, Profile};

const E2M1: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// 2^(e−127).
fn ue8m0(e: u8) -> f32 {
    f64::from(i32::from(e) - 127).exp2() as f32
}

/// A matrix as f32 `[rows, cols]`.
pub(crate) fn dequantise(format: Format, data: &[u8], scales: &[u8], rows: usize, cols: usize) -> Vec<f32> {
    let at = |r: usize, c: usize| match format {
        Format::F32 => f32::from_le_bytes(std::array::from_fn(|i| data[(r * cols + c) * 4 + i])),
        Format::Bf16 => {
            let raw = [data[(r * cols + c) * 2], data[(r * cols + c) * 2 + 1]];
            f32::from_bits(u32::from(u16::from_le_bytes(raw)) << 16)
        }
        Format::Fp8 => {
            let code = data[r * cols + c];
            let (e, m) = (i32::from(code >> 3 & 15), f32::from(code & 7));
            let value = if e == 0 { m / 512.0 } else { (1.0 + m / 8.0) * ((e - 7) as f32).exp2() };
            let scale = ue8m0(scales[r / 128 * cols.div_ceil(128) + c / 128]);
            if code & 0x80 == 0 { value * scale } else { -value * scale }
        }
        Format::Fp4 => {
            let code = data[(r * cols + c) / 2] >> (4 * (c % 2)) & 15;
            let value = E2M1[usize::from(code & 7)] * ue8m0(scales[r * (cols / 32) + c / 32]);
            if code & 8 == 0 { value } else { -value }
        }
    };
    (0..rows * cols).map(|i| at(i / cols, i % cols)).collect()
}

/// The lanes folded: 16 → 8 → 4 → 2 → 1.
fn fold(mut lanes: [f32; 16]) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}

/// w · x in f32, in the order of the module's text.
pub(crate) fn dot(w: &[f32], x: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    for (k, (w, x)) in w.iter().zip(x).enumerate() {
        lanes[k % 16] = w.mul_add(*x, lanes[k % 16]);
    }
    fold(lanes)
}

/// w · x with x rounded to int8 in groups of 32; w is an FP4 row with its scales.
pub(crate) fn dot_int8(w: &[f32], scales: &[u8], x: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    for (group, (w, x)) in w.chunks(32).zip(x.chunks(32)).enumerate() {
        let largest = x.iter().fold(0f32, |a, v| a.max(v.abs()));
        let factor = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        let step = ue8m0(scales[group]);
        let sum: f32 = w.iter().zip(x).map(|(w, x)| w / step * 2.0 * (x * factor).round_ties_even()).sum();
        let lane = 4 * (group % 4) + group % 16 / 4;
        lanes[lane] = sum.mul_add(largest / 127.0 * 0.5 * step, lanes[lane]);
    }
    fold(lanes)
}

/// x to bfloat16 and back, what is below 2^−70 to zero.
pub(crate) fn bf16(x: f32) -> f32 {
    let rounded = half::bf16::from_f32(x).to_f32();
    if rounded.abs() < 2f32.powi(-70) { 0.0 } else { rounded }
}

/// `linear` with loops.
pub(crate) fn linear(profile: Profile, x: &[f32], w: &Matrix<&[u8]>, groups: usize) -> Vec<f32> {
    let native = profile == Profile::Native;
    let rounded: Vec<f32> = x.iter().map(|&x| if native && w.format == Format::Fp8 { bf16(x) } else { x }).collect();
    let x = &rounded[..];
    let (rows, cols) = (w.rows, w.cols);
    let weights = dequantise(w.format, w.data, w.scale.unwrap_or(&[]), rows, cols);
    let n = x.len() / (groups * cols);
    let mut y = Vec::new();
    for i in 0..n {
        for r in 0..rows {
            let group = r / (rows / groups);
            let (w_row, x) = (&weights[r * cols..(r + 1) * cols], &x[(i * groups + group) * cols..][..cols]);
            y.push(match w.scale {
                Some(scales) if native && w.format == Format::Fp4 => {
                    dot_int8(w_row, &scales[r * (cols / 32)..][..cols / 32], x)
                }
                _ => dot(w_row, x),
            });
        }
    }
    y
}

/// Bytes that rounding takes are what it says.
#[test]
fn quantised_bytes() {
    assert_eq!(Quantised::bytes(2, 600), 2 * 2 * 640);
}
