//! The stored formats against their definitions, and every way to read them against the plain one.

use super::*;
use crate::simd::tests::Random;
use crate::simd::{Isa, Kernel, Plain};

fn e4m3(code: u8) -> f64 {
    let (e, m) = (i32::from(code >> 3 & 15), f64::from(code & 7));
    let value = if e == 0 { m / 512.0 } else { (1.0 + m / 8.0) * f64::from(e - 7).exp2() };
    if code & 0x80 == 0 { value } else { -value }
}

/// The nearest of all codes, ties to the even one: the slow and obvious way.
fn nearest(x: f64, values: &[f64]) -> usize {
    let mut best = 0;
    for (i, v) in values.iter().enumerate() {
        let (d, b) = ((x - v).abs(), (x - values[best]).abs());
        if d < b || (d == b && i % 2 == 0) {
            best = i;
        }
    }
    best
}

#[test]
fn codes_are_the_nearest() {
    let fp8: Vec<f64> = (0..0x7f).map(e4m3).collect();
    let fp4 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let mut random = Random(2);
    let halves = fp8.windows(2).map(|w| ((w[0] + w[1]) / 2.0) as f32);
    let samples: Vec<f32> = (0..20_000).map(|_| random.normal().abs() * 100.0).chain(halves).chain([448.0]).collect();
    for x in samples {
        let x = x.min(448.0);
        assert_eq!(usize::from(to_e4m3(x)), nearest(f64::from(x), &fp8), "{x}");
        assert_eq!(to_e4m3(-x), to_e4m3(x) | 0x80);
        let y = x / 448.0 * 6.0;
        assert_eq!(usize::from(to_e2m1(y)), nearest(f64::from(y), &fp4), "{y}");
    }
    for (i, w) in fp4.windows(2).enumerate() {
        let middle = (w[0] + w[1]) / 2.0;
        assert_eq!(usize::from(to_e2m1(middle as f32)), i + i % 2);
    }
}

#[test]
fn scales_are_the_formula() {
    let mut random = Random(3);
    for i in 0..20_000 {
        let x = (random.normal().abs() + 1e-6) * (random.normal() * 8.0).exp2();
        let x = match i % 4 {
            0 => 448.0 * f64::from((i % 40) - 20).exp2() as f32,
            1 => 6.0 * f64::from((i % 40) - 20).exp2() as f32,
            _ => x,
        };
        let formula = |limit: f64, least: f64| (f64::from(x).max(least) / limit).log2().ceil() as i32;
        assert_eq!(ceil_log2_ratio(x.max(1e-4), 0x60_0000, 8), formula(448.0, 1e-4), "{x}");
        assert_eq!(ceil_log2_ratio(x.max(6.0 * pow2(-126)), 0x40_0000, 2), formula(6.0, 6.0 * 2f64.powi(-126)), "{x}");
    }
}

struct Decode<'a>(&'a [u8], RowShape);

impl Kernel for Decode<'_> {
    type Output = Vec<f32>;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<f32> {
        let mut out = vec![0.0; self.1.width];
        // SAFETY: the row and the output are as long as the shape says.
        unsafe { decode_attention(s, self.0.as_ptr(), self.1, out.as_mut_ptr()) };
        out
    }
}

#[test]
fn attention_rows_round_once_and_read_the_same_everywhere() {
    let mut random = Random(4);
    for (width, rope) in [(192, 64), (512, 64), (128, 64), (80, 16)] {
        let row = RowShape { width, rope };
        for _ in 0..50 {
            let size = (random.normal() * 6.0).exp2();
            let x: Vec<f32> = random.floats(width).iter().map(|v| v * size).collect();
            let mut stored = vec![0; row.bytes()];
            encode_attention(&x, row, &mut stored);
            let plain = Isa::Plain(Plain).run(Decode(&stored, row));
            for (at, (&got, &want)) in plain.iter().zip(&x).enumerate() {
                let largest = x[at / 64 * 64..(at / 64 * 64 + 64).min(width)].iter().fold(0f32, |a, v| a.max(v.abs()));
                let tolerance =
                    if at < width - rope { largest / 448.0 + want.abs() / 16.0 } else { want.abs() / 256.0 };
                assert!((got - want).abs() <= tolerance.max(1e-6), "{at}: {got} {want}");
            }
            let mut again = vec![0; row.bytes()];
            encode_attention(&plain, row, &mut again);
            assert_eq!(Isa::Plain(Plain).run(Decode(&again, row)), plain, "rounding twice changes nothing");
            for isa in Isa::available() {
                assert_eq!(isa.run(Decode(&stored, row)), plain, "{}", isa.name());
            }
        }
    }
}

#[test]
fn hadamard_is_its_own_inverse() {
    let mut random = Random(5);
    let x = random.floats(128);
    let mut y = x.clone();
    hadamard(&mut y);
    let first: f32 = x.iter().sum::<f32>() / 128f32.sqrt();
    assert!((y[0] - first).abs() < 1e-4);
    hadamard(&mut y);
    assert!(x.iter().zip(&y).all(|(a, b)| (a - b).abs() < 1e-5));
}
