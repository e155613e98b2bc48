use bytes::Bytes;

use super::*;
use crate::simd::tests::Random;

/// A random matrix: bytes of sane magnitude in any format.
pub(crate) fn random_matrix(random: &mut Random, format: Format, rows: usize, cols: usize) -> Matrix<Bytes> {
    let data = match format {
        Format::F32 => random.floats(rows * cols).into_iter().flat_map(f32::to_le_bytes).collect(),
        Format::Bf16 => {
            random.floats(rows * cols).into_iter().flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes()).collect()
        }
        Format::Fp8 => {
            random.bytes(rows * cols).into_iter().map(|b| if b & 0x7f == 0x7f { b ^ 1 } else { b }).collect()
        }
        Format::Fp4 => random.bytes(rows * cols / 2),
    };
    let scales: Vec<u8> = (0..format.scale_bytes(rows, cols)).map(|_| 110 + random.byte() % 12).collect();
    Matrix { format, rows, cols, data: Bytes::from(data), scale: (!scales.is_empty()).then(|| Bytes::from(scales)) }
}

pub(crate) fn on_cpu(w: &Matrix<Bytes>) -> Matrix<Buffer> {
    w.clone().try_map(|bytes| Ok::<_, ()>(Buffer::shared(bytes))).unwrap()
}

fn plain(w: &Matrix<Bytes>) -> Matrix<&[u8]> {
    let (format, rows, cols) = (w.format, w.rows, w.cols);
    Matrix { format, rows, cols, data: &w.data, scale: w.scale.as_deref() }
}

#[test]
fn every_variant_is_the_reference() {
    let mut random = Random(20);
    for isa in Isa::available() {
        println!("linear: {} run", isa.name());
    }
    Isa::missing().iter().for_each(|name| println!("linear: {name} skipped, this CPU lacks it"));
    for (format, rows, cols, groups) in [
        (Format::F32, 24, 512, 1),
        (Format::F32, 5, 37, 1),
        (Format::Bf16, 200, 96, 1),
        (Format::Bf16, 7, 24, 1),
        (Format::Fp8, 300, 256, 1),
        (Format::Fp8, 96, 600, 2),
        (Format::Fp8, 131, 40, 1),
        (Format::Fp8, 260, 1100, 1),
        (Format::Fp4, 100, 256, 1),
        (Format::Fp4, 51, 160, 1),
        (Format::Fp4, 9, 32, 1),
        (Format::Fp4, 13, 1184, 1),
    ] {
        let w = random_matrix(&mut random, format, rows, cols);
        for n in [1, 2, 5, 70] {
            let x = random.floats(n * groups * cols);
            for profile in [Profile::Native, Profile::Exact] {
                let want = reference::linear(profile, &x, &plain(&w), groups);
                for isa in Isa::available() {
                    for threads in [1, 3] {
                        let mut y = vec![0.0; n * rows];
                        let (w, out) = (&on_cpu(&w), Output::new(&mut y));
                        linear(isa, &Pool::new(threads).unwrap(), profile, &x, n, &[Projection { w, groups, y: out }]);
                        let same = y.iter().zip(&want).all(|(a, b)| a.to_bits() == b.to_bits());
                        assert!(same, "{} {format:?} {rows}×{cols} n {n} {profile}", isa.name());
                    }
                }
            }
        }
    }
}

#[test]
fn the_reference_is_a_product() {
    let mut random = Random(21);
    for (format, rows, cols) in [(Format::Fp8, 130, 256), (Format::Fp4, 20, 160), (Format::Bf16, 3, 50)] {
        let w = random_matrix(&mut random, format, rows, cols);
        let x = random.floats(cols);
        let weights = reference::dequantise(format, &w.data, w.scale.as_deref().unwrap_or(&[]), rows, cols);
        for profile in [Profile::Exact, Profile::Native] {
            let got = reference::linear(profile, &x, &plain(&w), 1);
            for (r, got) in got.into_iter().enumerate() {
                let terms = weights[r * cols..(r + 1) * cols].iter().zip(&x);
                let exact: f64 = terms.clone().map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                let size: f64 = terms.map(|(w, x)| (f64::from(*w) * f64::from(*x)).abs()).sum();
                let tolerance = match (profile, format) {
                    (Profile::Native, Format::Fp4) => 0.02,
                    (Profile::Native, Format::Fp8) => 0.004,
                    _ => 1e-6,
                };
                assert!((f64::from(got) - exact).abs() <= tolerance * size, "{format:?} {r}");
            }
        }
    }
}

/// Scales and inputs at the ends of their ranges neither panic nor differ, whichever of the two a scale is multiplied into.
#[test]
fn extreme_scales() {
    let mut random = Random(22);
    let fp8 = [0, 7, 15, 16, 117, 134, 135, 250, 255].map(|e| (Format::Fp8, e));
    for (format, e) in fp8.into_iter().chain([(Format::Fp4, 255)]) {
        let mut w = random_matrix(&mut random, format, 9, 160);
        w.scale = Some(Bytes::from(vec![e; format.scale_bytes(9, 160)]));
        for size in [1e-38, 1e-20, 1.0, 3e3, 1e6, 1e38] {
            let mut x = random.floats(3 * 160);
            x.iter_mut().for_each(|v| *v *= size);
            for profile in [Profile::Exact, Profile::Native] {
                let run = |isa, x: &[f32]| {
                    let mut y = vec![0.0; x.len() / 160 * 9];
                    let all = [Projection { w: &on_cpu(&w), groups: 1, y: Output::new(&mut y) }];
                    linear(isa, &Pool::new(1).unwrap(), profile, x, x.len() / 160, &all);
                    y.into_iter().map(|v| if v.is_nan() { 1 } else { v.to_bits() }).collect::<Vec<_>>()
                };
                let want = run(Isa::Plain(crate::simd::Plain), &x);
                for isa in Isa::available() {
                    assert_eq!(run(isa, &x), want, "{} {format:?} {e} {size}", isa.name());
                    assert_eq!(run(isa, &x[..160]), want[..9], "{} {format:?} {e} {size} alone", isa.name());
                }
            }
        }
    }
}
