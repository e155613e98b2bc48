use super::*;
use crate::simd::tests::Random;

/// V4.md's equations in f64.
fn plain(h: &[f32], m: &[f32], base: &[f32], scale: &[f32], shape: HyperShape) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let (hc, eps) = (shape.copies, f64::from(shape.eps));
    let mean = h.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / h.len() as f64;
    let m: Vec<f64> = m.iter().map(|&v| f64::from(v) / (mean + f64::from(shape.norm_eps)).sqrt()).collect();
    let at = |i: usize, part: usize| m[i] * f64::from(scale[part]) + f64::from(base[i]);
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let pre: Vec<f64> = (0..hc).map(|i| sigmoid(at(i, 0)) + eps).collect();
    let post: Vec<f64> = (0..hc).map(|i| 2.0 * sigmoid(at(hc + i, 1))).collect();
    let mut comb = vec![vec![0.0; hc]; hc];
    for i in 0..hc {
        let row: Vec<f64> = (0..hc).map(|j| at(2 * hc + i * hc + j, 2).exp()).collect();
        let sum: f64 = row.iter().sum();
        comb[i] = row.iter().map(|v| v / sum + eps).collect();
    }
    for iteration in 0..shape.iterations {
        if iteration > 0 {
            for row in &mut comb {
                let sum: f64 = row.iter().sum::<f64>() + eps;
                row.iter_mut().for_each(|v| *v /= sum);
            }
        }
        for j in 0..hc {
            let sum: f64 = comb.iter().map(|row| row[j]).sum::<f64>() + eps;
            comb.iter_mut().for_each(|row| row[j] /= sum);
        }
    }
    (pre, post, comb.concat())
}

#[test]
fn is_the_formula_and_the_same_everywhere() {
    let mut random = Random(7);
    for (copies, width) in [(4, 128), (1, 32), (2, 40), (3, 7)] {
        let shape = HyperShape { copies, iterations: 20, eps: 1e-6, norm_eps: 1e-6 };
        let (rows, mixes) = (9, (2 + copies) * copies);
        let (h, m) = (random.floats(rows * copies * width), random.floats(rows * mixes));
        let (base, scale, out) = (random.floats(mixes), random.floats(3), random.floats(rows * width));
        let mut first: Option<(Vec<f32>, Vec<f32>)> = None;
        for isa in Isa::available() {
            for threads in [1, 3] {
                let pool = Pool::new(threads).unwrap();
                let mut input = vec![0.0; rows * width];
                let mut back = vec![0.0; rows * (copies + copies * copies)];
                mix(isa, &pool, &h, &m, &base, &scale, shape, &mut input, &mut back);
                let mut merged = h.clone();
                merge(isa, &pool, &mut merged, &out, &back, copies);
                for row in 0..rows {
                    let h = &h[row * copies * width..(row + 1) * copies * width];
                    let (pre, post, comb) = plain(h, &m[row * mixes..(row + 1) * mixes], &base, &scale, shape);
                    for d in 0..width {
                        let want: f64 = (0..copies).map(|i| pre[i] * f64::from(h[i * width + d])).sum();
                        assert!((f64::from(input[row * width + d]) - want).abs() < 1e-5);
                        for j in 0..copies {
                            let want = post[j] * f64::from(out[row * width + d])
                                + (0..copies).map(|i| comb[i * copies + j] * f64::from(h[i * width + d])).sum::<f64>();
                            assert!((f64::from(merged[(row * copies + j) * width + d]) - want).abs() < 1e-5);
                        }
                    }
                }
                let got = (input, merged);
                assert_eq!(first.get_or_insert_with(|| got.clone()), &got, "{}", isa.name());
            }
        }
    }
}
