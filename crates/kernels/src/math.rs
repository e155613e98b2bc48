//! Exponentials, logarithms, sines: our own, so that no system library decides the bits.

use std::sync::LazyLock;

use crate::simd::{Isa, Kernel, LANES, Plain, Simd, load_part, store_part};

const LN2: f64 = std::f64::consts::LN_2;
// ln 2 in two parts: the first has 32 trailing zero bits, so that n · high is exact.
const LN2_HIGH: f64 = 6.931_471_803_691_238e-1;
const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;

/// 1/k.
const RECIPROCAL: [f64; 40] = {
    let mut table = [0.0; 40];
    let mut k = 1;
    while k < 40 {
        table[k] = 1.0 / k as f64;
        k += 1;
    }
    table
};

/// eˣ in f64, to about 1e-16 relative. Below −745 it is 0, above 709.7 infinite.
pub fn exp(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    if x > 709.7 {
        return f64::INFINITY;
    }
    if x < -745.0 {
        return 0.0;
    }
    let n = (x / LN2).round_ties_even();
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    // |r| ≤ 0.35: thirteen terms of the series are enough.
    let mut sum = 1.0;
    for k in (1..=14).rev() {
        sum = 1.0 + r * RECIPROCAL[k] * sum;
    }
    scale2(sum, n as i32)
}

/// x · 2ⁿ, in two steps so that subnormal results round once at the end.
fn scale2(x: f64, n: i32) -> f64 {
    let power = |n: i32| f64::from_bits(((n + 1023) as u64) << 52);
    if n < -1000 { x * power(n + 200) * power(-200) } else { x * power(n / 2) * power(n - n / 2) }
}

/// ln x in f64 for x > 0, to about 2e-16 relative (absolute near 1). 0 gives −∞, below that NaN.
pub fn ln(x: f64) -> f64 {
    if x.is_nan() || x < 0.0 {
        return f64::NAN;
    }
    if x == 0.0 {
        return f64::NEG_INFINITY;
    }
    if x.is_infinite() {
        return x;
    }
    let (x, shift) = if x < f64::MIN_POSITIVE { (x * (1u64 << 54) as f64, -54) } else { (x, 0) };
    let bits = x.to_bits();
    let mut n = (bits >> 52) as i32 - 1023 + shift;
    let mut m = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    if m > std::f64::consts::SQRT_2 {
        m *= 0.5;
        n += 1;
    }
    // ln m = 2 artanh((m − 1)/(m + 1)), |argument| ≤ 0.172.
    let s = (m - 1.0) / (m + 1.0);
    let s2 = s * s;
    let mut sum = 0.0;
    for k in (1..=11).rev() {
        sum = (sum + RECIPROCAL[2 * k + 1]) * s2;
    }
    f64::from(n) * LN2_HIGH + (f64::from(n) * LN2_LOW + 2.0 * s * (1.0 + sum))
}

/// ln(1 + eˣ) in f64.
pub fn softplus(x: f64) -> f64 {
    let e = exp(-x.abs());
    // ln(1 + e) for e in (0, 1]: by the series of artanh, exact enough for tiny e too.
    let s = e / (2.0 + e);
    let s2 = s * s;
    let mut sum = 0.0;
    for k in (1..=17).rev() {
        sum = (sum + RECIPROCAL[2 * k + 1]) * s2;
    }
    x.max(0.0) + 2.0 * s * (1.0 + sum)
}

/// (sin x, cos x) in f64, to about 1e-15 for |x| up to 2²⁴.
pub fn sin_cos(x: f64) -> (f64, f64) {
    // π/2 in three parts of 33 bits each: n · part is exact for n below 2²⁰.
    const P1: f64 = 1.570_796_326_734_125_6;
    const P2: f64 = 6.077_100_506_303_966e-11;
    const P3: f64 = 2.022_266_248_795_950_6e-21;
    let n = (x * std::f64::consts::FRAC_2_PI).round_ties_even();
    let r = ((x - n * P1) - n * P2) - n * P3;
    let r2 = r * r;
    let (mut s, mut c) = (0.0, 0.0);
    for k in (1..=8).rev() {
        s = (1.0 + s) * (-r2 * (RECIPROCAL[2 * k] * RECIPROCAL[2 * k + 1]));
        c = (1.0 + c) * (-r2 * (RECIPROCAL[2 * k - 1] * RECIPROCAL[2 * k]));
    }
    let (s, c) = (r * (1.0 + s), 1.0 + c);
    match (n as i64).rem_euclid(4) {
        0 => (s, c),
        1 => (c, -s),
        2 => (-s, -c),
        _ => (-c, s),
    }
}

/// eˣ of sixteen f32, to about 1 unit in the last place; 0 below −87.3, and never above e^88.
#[inline(always)]
pub(crate) fn exp_lanes<S: Simd>(s: S, x: S::F) -> S::F {
    let lowest = s.splat(-87.3);
    let y = s.min(s.max(x, lowest), s.splat(88.0));
    let n = s.round(s.mul(y, s.splat(std::f32::consts::LOG2_E)));
    let r = s.fma(n, s.splat(-0.693_359_4), y);
    let r = s.fma(n, s.splat(2.121_944_4e-4), r);
    let mut p = s.splat(1.987_569_1e-4);
    p = s.fma(p, r, s.splat(1.398_199_9e-3));
    p = s.fma(p, r, s.splat(8.333_452e-3));
    p = s.fma(p, r, s.splat(4.166_579_6e-2));
    p = s.fma(p, r, s.splat(1.666_666_5e-1));
    p = s.fma(p, r, s.splat(0.5));
    let p = s.add(s.fma(p, s.mul(r, r), r), s.splat(1.0));
    s.keep_ge(x, lowest, s.mul(p, s.pow2(n)))
}

/// `e^((v − best) / temperature)` for every value: the weights of a softmax, in f32, to about a millionth; 0 below 1e-38. `best` is finite,
/// no value is larger or NaN, and the temperature is above 0. The same on every instruction set.
///
/// # Panics
/// If the lengths differ.
pub fn weigh(values: &[f32], best: f32, temperature: f32, weights: &mut [f32]) {
    static ISA: LazyLock<Isa> = LazyLock::new(|| Isa::available()[0]);
    ISA.run(Weigh { values, best, temperature, weights });
}

struct Weigh<'a> {
    values: &'a [f32],
    best: f32,
    temperature: f32,
    weights: &'a mut [f32],
}

impl Kernel for Weigh<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Weigh { values, best, temperature, weights } = self;
        assert!(values.len() == weights.len(), "as many weights as values");
        let (best, temperature) = (s.splat(best), s.splat(temperature));
        for at in (0..values.len()).step_by(LANES) {
            let n = values.len() - at;
            // SAFETY: `at` is inside both, and no more than their rest is touched.
            unsafe {
                let x = s.div(s.sub(load_part(s, values.as_ptr().add(at), n), best), temperature);
                store_part(s, weights.as_mut_ptr().add(at), n, exp_lanes(s, x));
            }
        }
    }
}

/// eˣ in f32, with the bits of [`exp_lanes`].
#[inline(always)]
pub(crate) fn exp_f32(x: f32) -> f32 {
    exp_lanes(Plain, [x; 16])[0]
}

/// 1 / (1 + e⁻ˣ) in f32.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp_f32(-x))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(got: f64, want: f64, tolerance: f64) {
        let error = (got - want).abs() / want.abs().max(1e-300);
        assert!(error <= tolerance || got == want, "{got} is not {want}: {error:e}");
    }

    #[test]
    fn agree_with_the_system_library() {
        for i in -60_000..60_000 {
            let x = f64::from(i) * 0.011_7;
            close(exp(x), x.exp(), 3e-16);
            close(softplus(x), x.exp().ln_1p().min(f64::MAX).max(x), 1e-15);
            close(ln(x.abs() + 1e-9), (x.abs() + 1e-9).ln(), 4e-16);
            let (s, c) = sin_cos(x * 1234.5);
            assert!((s - (x * 1234.5).sin()).abs() < 2e-15 && (c - (x * 1234.5).cos()).abs() < 2e-15, "{x}");
        }
        assert_eq!(exp(-800.0), 0.0);
        assert_eq!(ln(0.0), f64::NEG_INFINITY);
        close(exp(-744.0), (-744.0f64).exp(), 0.1);
    }

    #[test]
    fn weights_are_the_same_on_every_instruction_set() {
        let mut values: Vec<f32> = (0..1001).map(|i| 7.25 - i as f32 * 0.11).collect();
        values[500] = f32::NEG_INFINITY;
        for temperature in [1e-40, 0.3, 1.0, 2.0] {
            let mut want = vec![9.0; values.len()];
            weigh(&values, 7.25, temperature, &mut want);
            for (w, v) in want.iter().zip(&values) {
                let exact = ((f64::from(*v) - 7.25) / f64::from(temperature)).exp();
                assert!((f64::from(*w) - exact).abs() <= exact * 2e-5 + 2e-38, "{v} at {temperature}: {w}, {exact}");
            }
            assert_eq!((want[0], want[500]), (1.0, 0.0));
            for isa in Isa::available() {
                let mut got = vec![9.0; values.len()];
                isa.run(Weigh { values: &values, best: 7.25, temperature, weights: &mut got });
                assert!(got == want, "{}", isa.name());
            }
        }
    }

    #[test]
    fn exp_f32_is_within_two_units() {
        for i in -870..880 {
            let x = i as f32 * 0.1;
            let (got, want) = (f64::from(exp_f32(x)), f64::from(x).exp());
            assert!((got - want).abs() <= want * 1.6e-7, "{x}: {got} {want}");
        }
        assert_eq!(exp_f32(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp_f32(-88.0), 0.0);
        assert_eq!(exp_f32(0.0), 1.0);
    }
}
