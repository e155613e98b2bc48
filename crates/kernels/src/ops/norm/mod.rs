//! RMSNorm: `x · rsqrt(mean(x²) + eps) · w`, in f32.

use crate::pool::{Output, Pool};
use crate::simd::{Isa, Kernel, LANES, Simd, load_part, store_part};

#[cfg(test)]
mod tests;

/// 1 / rms of x.
#[inline(always)]
pub(crate) fn inverse_rms<S: Simd>(s: S, x: &[f32], eps: f32) -> f32 {
    let mut sum = s.splat(0.0);
    for at in (0..x.len()).step_by(LANES) {
        // SAFETY: `at` is inside x, and no more than its rest is read.
        let v = unsafe { load_part(s, x.as_ptr().add(at), x.len() - at) };
        sum = s.fma(v, v, sum);
    }
    1.0 / (s.sum(sum) / x.len() as f32 + eps).sqrt()
}

/// `x = x · factor · weight`; without a weight `x · factor`.
#[inline(always)]
fn scale<S: Simd>(s: S, x: &mut [f32], factor: f32, weight: Option<&[f32]>) {
    assert!(weight.is_none_or(|w| w.len() == x.len()), "norm widths");
    let factor = s.splat(factor);
    for at in (0..x.len()).step_by(LANES) {
        let n = x.len() - at;
        // SAFETY: `at` is inside both, and no more than their rest is read or written.
        unsafe {
            let mut v = s.mul(load_part(s, x.as_ptr().add(at), n), factor);
            if let Some(w) = weight {
                v = s.mul(v, load_part(s, w.as_ptr().add(at), n));
            }
            store_part(s, x.as_mut_ptr().add(at), n, v);
        }
    }
}

/// Norms one vector in place.
pub(crate) struct NormOne<'a> {
    pub x: &'a mut [f32],
    pub weight: Option<&'a [f32]>,
    pub eps: f32,
}

impl Kernel for NormOne<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let factor = inverse_rms(s, self.x, self.eps);
        scale(s, self.x, factor, self.weight);
    }
}

/// Every row of x `[n, width]`.
pub(crate) fn rms_norm(isa: Isa, pool: &Pool, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let width = weight.len();
    let out = Output::new(out);
    pool.ranges(x.len() / width, 8, 2, |rows| {
        for row in rows {
            let span = row * width..(row + 1) * width;
            // SAFETY: rows are disjoint.
            let out = unsafe { out.slice(span.clone()) };
            out.copy_from_slice(&x[span]);
            isa.run(NormOne { x: out, weight: Some(weight), eps });
        }
    });
}
