use bytes::Bytes;

use super::*;
use crate::Format;
use crate::ops::linear::reference;
use crate::ops::linear::tests::{on_cpu, random_matrix};
use crate::simd::tests::Random;

fn plain(w: &Matrix<Bytes>) -> Matrix<&[u8]> {
    let (format, rows, cols) = (w.format, w.rows, w.cols);
    Matrix { format, rows, cols, data: &w.data, scale: w.scale.as_deref() }
}

/// One expert for one row.
fn one(profile: Profile, x: &[f32], e: &[Matrix<Bytes>; 3], weight: f32, limit: f32) -> Vec<f32> {
    let linear = |x: &[f32], w: &Matrix<Bytes>| reference::linear(profile, x, &plain(w), 1);
    let (gate, up) = (linear(x, &e[0]), linear(x, &e[2]));
    let h: Vec<f32> = gate
        .iter()
        .zip(&up)
        .map(|(&g, &u)| {
            let (g, u) = (g.min(limit), u.clamp(-limit, limit));
            weight * (g / (1.0 + crate::math::exp_f32(-g))) * u
        })
        .collect();
    linear(&h, &e[1])
}

#[test]
fn every_variant_is_the_reference() {
    let mut random = Random(30);
    for (format, width, inter, count, slots) in
        [(Format::Fp4, 96, 64, 5, 3), (Format::Fp4, 128, 160, 3, 1), (Format::Fp8, 70, 50, 4, 2)]
    {
        let experts_host: Vec<[Matrix<Bytes>; 3]> = (0..count)
            .map(|_| {
                [(inter, width), (width, inter), (inter, width)]
                    .map(|(rows, cols)| random_matrix(&mut random, format, rows, cols))
            })
            .collect();
        let on_device: Vec<Expert<Buffer>> =
            experts_host.iter().map(|e| Expert { w1: on_cpu(&e[0]), w2: on_cpu(&e[1]), w3: on_cpu(&e[2]) }).collect();
        for n in [1, 4, 130] {
            let (x, y) = (random.floats(n * width), random.floats(n * width));
            let mut routing = Routing { experts: Vec::new(), weights: random.floats(n * slots), slots };
            for _ in 0..n {
                let first = random.byte() as usize;
                routing.experts.extend((0..slots).map(|slot| ((first + slot) % count) as u32));
            }
            for profile in [Profile::Native, Profile::Exact] {
                let mut want = y.clone();
                for row in 0..n {
                    let mut sum: Option<Vec<f32>> = None;
                    for slot in 0..slots {
                        let e = &experts_host[routing.experts[row * slots + slot] as usize];
                        let weight = routing.weights[row * slots + slot];
                        let part = one(profile, &x[row * width..(row + 1) * width], e, weight, 2.0);
                        sum = Some(match sum {
                            None => part,
                            Some(sum) => sum.iter().zip(&part).map(|(a, b)| a + b).collect(),
                        });
                    }
                    want[row * width..(row + 1) * width].iter_mut().zip(sum.unwrap()).for_each(|(y, v)| *y += v);
                }
                for isa in Isa::available() {
                    for threads in [1, 3] {
                        let (mut got, mut h) = (y.clone(), vec![f32::NAN; n * slots * inter]);
                        let pool = Pool::new(threads).unwrap();
                        let on = On { isa, pool: &pool, profile, limit: 2.0 };
                        experts(on, &x, &routing, &on_device, &mut h, &mut got);
                        assert!(got == want, "{} {format:?} n {n} {profile}", isa.name());
                        assert!(in_parts(on, &x, &y, &routing, &on_device) == want, "{} in parts", isa.name());
                    }
                }
            }
        }
    }
}

/// The experts one after another and in pairs, the last first.
fn in_parts(on: On<'_>, x: &[f32], y: &[f32], routing: &Routing, experts: &[Expert<Buffer>]) -> Vec<f32> {
    let (width, inter) = (experts[0].w1.cols, experts[0].w1.rows);
    let (mut y, pairs) = (y.to_vec(), routing.experts.len());
    let rounded = is_int8(on.profile, &experts[0].w1).then(|| Quantised::new(on.isa, on.pool, x, width));
    let sorted = Sorted::new(routing);
    let (mut h, mut waiting) = (vec![f32::NAN; pairs * inter], vec![f32::NAN; pairs * width]);
    let mut all: Vec<(u32, &Expert<Buffer>)> = experts.iter().enumerate().map(|(i, e)| (i as u32, e)).collect();
    all.reverse();
    let (one, rest) = all.split_at(1);
    for part in std::iter::once(one).chain(rest.chunks(2)) {
        some(on, x, rounded.as_ref(), routing, &sorted, part, &mut h, &mut waiting);
    }
    sum(on.pool, &sorted, &waiting, routing.slots, width, &mut y);
    y
}

/// NaN passes through and panics nowhere.
#[test]
fn nan_goes_through() {
    let mut gate = vec![f32::NAN, 1.0, f32::INFINITY];
    let up = [1.0, f32::NAN, 2.0];
    let mut out = vec![0.0; 3];
    for isa in Isa::available() {
        swiglu(isa, &Pool::new(1).unwrap(), &gate, &up, 10.0, &mut out);
    }
    gate.clear();
}
