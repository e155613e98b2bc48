use std::sync::Mutex;

use super::*;
use crate::ops::rows::tests_support::decode_index;
use crate::simd::tests::Random;

/// V4.md's equations in f64, all positions at once: entries before rounding, after norm and rotation.
fn plain(spec: &Spec<'_>, kv: &[f32], score: &[f32]) -> Vec<Vec<f64>> {
    let (m, w, sets) = (spec.ratio, spec.width, spec.sets());
    let blocks = kv.len() / (sets * w) / m;
    (0..blocks)
        .map(|b| {
            let mut entry: Vec<f64> = (0..w)
                .map(|c| {
                    let own = (b * m..(b + 1) * m).map(|t| (t, (sets - 1) * w + c));
                    let before = (b.saturating_sub(1) * m..b * m).map(|t| (t, c));
                    let all: Vec<_> = if sets == 2 { before.chain(own).collect() } else { own.collect() };
                    let s =
                        |(t, c): (usize, usize)| f64::from(score[t * sets * w + c] + spec.ape[t % m * sets * w + c]);
                    let sum: f64 = all.iter().map(|&at| s(at).exp()).sum();
                    all.iter().map(|&(t, c)| s((t, c)).exp() / sum * f64::from(kv[t * sets * w + c])).sum()
                })
                .collect();
            let mean = entry.iter().map(|v| v * v).sum::<f64>() / w as f64;
            entry
                .iter_mut()
                .zip(spec.norm)
                .for_each(|(v, &n)| *v *= f64::from(n) / (mean + f64::from(spec.eps)).sqrt());
            for (i, &f) in spec.frequencies.iter().enumerate() {
                let (sin, cos) = f64::from((b * m) as f32 * f).sin_cos();
                let at = w - spec.rope + 2 * i;
                let (x, y) = (entry[at], entry[at + 1]);
                (entry[at], entry[at + 1]) = (x * cos - y * sin, x * sin + y * cos);
            }
            entry
        })
        .collect()
}

/// All stored entries after folding `cuts` one after another, and the frontier at the end.
fn run(
    isa: Isa,
    threads: usize,
    spec: Spec<'_>,
    kv: &[f32],
    score: &[f32],
    cuts: &[usize],
) -> (Vec<Vec<u8>>, Vec<f32>) {
    let (pool, stride) = (Pool::new(threads).unwrap(), spec.sets() * spec.width);
    let entries = Mutex::new(vec![Vec::new(); kv.len() / stride / spec.ratio]);
    let mut frontier = vec![0.0; spec.sets() * 3 * spec.width];
    let mut start = 0;
    for &len in cuts {
        let span = start * stride..(start + len) * stride;
        let mut raw = vec![0.0; ((start + len) / spec.ratio - start / spec.ratio) * spec.width];
        compress(isa, &pool, spec, &kv[span.clone()], &score[span], start, &mut frontier, &mut raw, |b, row| {
            entries.lock().unwrap()[b] = row.to_vec();
        });
        start += len;
    }
    (entries.into_inner().unwrap(), frontier)
}

#[test]
fn is_the_formula_for_every_cut_and_everywhere() {
    let mut random = Random(9);
    for (ratio, width, rope, kind) in [
        (4, 192, 64, EntryKind::Attention),
        (4, 128, 64, EntryKind::Index),
        (128, 80, 16, EntryKind::Attention),
        (4, 32, 16, EntryKind::Index),
    ] {
        let sets = if ratio == 4 { 2 } else { 1 };
        let n = 300;
        let (kv, score) = (random.floats(n * sets * width), random.floats(n * sets * width));
        let (ape, norm) = (random.floats(ratio * sets * width), random.floats(width));
        let frequencies: Vec<f32> = (0..rope / 2).map(|i| 10f32.powf(-(i as f32) / 8.0)).collect();
        let spec = Spec { ratio, width, rope, kind, ape: &ape, norm: &norm, eps: 1e-6, frequencies: &frequencies };
        let want = run(Isa::Plain(crate::simd::Plain), 1, spec, &kv, &score, &[n]);
        if kind == EntryKind::Attention {
            for (stored, exact) in want.0.iter().zip(plain(&spec, &kv, &score)) {
                let nope = width - rope;
                for (at, chunk) in stored[nope + nope / 64..].chunks_exact(2).enumerate() {
                    let got = f32::from_bits(u32::from(u16::from_le_bytes([chunk[0], chunk[1]])) << 16);
                    assert!((f64::from(got) - exact[nope + at]).abs() < 0.005 * exact[nope + at].abs().max(0.1));
                }
            }
        } else {
            for (stored, exact) in want.0.iter().zip(plain(&spec, &kv, &score)) {
                let mut exact: Vec<f32> = exact.iter().map(|&v| v as f32).collect();
                hadamard(&mut exact);
                let top = exact.iter().fold(0f32, |a, v| a.max(v.abs()));
                for (got, want) in decode_index(stored, width).iter().zip(&exact) {
                    assert!((got - want).abs() <= top / 5.0, "{got} {want}");
                }
            }
        }
        for isa in Isa::available() {
            for (threads, cuts) in
                [(1, vec![1; n]), (2, vec![7; 42].into_iter().chain([6]).collect()), (3, vec![127, 1, 2, 170])]
            {
                let got = run(isa, threads, spec, &kv, &score, &cuts);
                assert!(got == want, "{} ratio {ratio} cut differently", isa.name());
            }
        }
    }
}
