use super::*;
use crate::simd::tests::Random;

#[test]
fn is_the_formula_and_the_same_everywhere() {
    let mut random = Random(6);
    for width in [1, 7, 16, 24, 96, 128, 1024] {
        let (x, weight) = (random.floats(5 * width), random.floats(width));
        let mut first: Option<Vec<f32>> = None;
        for isa in Isa::available() {
            for threads in [1, 3] {
                let mut out = vec![0.0; x.len()];
                rms_norm(isa, &Pool::new(threads).unwrap(), &x, &weight, 1e-6, &mut out);
                for (row, got) in x.chunks(width).zip(out.chunks(width)) {
                    let mean = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / width as f64;
                    for ((&x, &w), &got) in row.iter().zip(&weight).zip(got) {
                        let want = f64::from(x) / (mean + 1e-6).sqrt() * f64::from(w);
                        assert!((f64::from(got) - want).abs() <= 1e-6 * want.abs().max(1e-3), "{got} {want}");
                    }
                }
                assert_eq!(first.get_or_insert_with(|| out.clone()), &out, "{}", isa.name());
            }
        }
    }
}
