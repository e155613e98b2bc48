//! mHC: the residual's copies, mixed into a sublayer's input and back (V4.md, *mHC*).

use crate::HyperShape;
use crate::math::{exp_f32, sigmoid};
use crate::ops::norm::inverse_rms;
use crate::pool::{Output, Pool};
use crate::simd::{Isa, Kernel, LANES, Simd, load_part, store_part};

#[cfg(test)]
mod tests;

/// The most copies a residual may have.
pub(crate) const MAX_COPIES: usize = 16;

/// Softmax of the rows of `comb` [hc, hc], then Sinkhorn.
fn doubly_stochastic(comb: &mut [f32], hc: usize, shape: HyperShape) {
    let eps = shape.eps;
    for row in comb.chunks_exact_mut(hc) {
        let top = row.iter().fold(f32::NEG_INFINITY, |a, &v| if v > a { v } else { a });
        let mut sum = 0.0;
        for v in row.iter_mut() {
            *v = exp_f32(*v - top);
            sum += *v;
        }
        row.iter_mut().for_each(|v| *v = *v / sum + eps);
    }
    let columns = |comb: &mut [f32]| {
        for j in 0..hc {
            let sum = (0..hc).fold(0.0, |a, i| a + comb[i * hc + j]) + eps;
            (0..hc).for_each(|i| comb[i * hc + j] /= sum);
        }
    };
    columns(comb);
    for _ in 1..shape.iterations {
        for row in comb.chunks_exact_mut(hc) {
            let sum = row.iter().fold(0.0, |a, v| a + v) + eps;
            row.iter_mut().for_each(|v| *v /= sum);
        }
        columns(comb);
    }
}

/// One row: h `[hc, D]` and m = fn · h `[(2+hc)·hc]` → input `[D]`, put_back `[hc + hc·hc]` (none for the head).
struct Mix<'a> {
    h: &'a [f32],
    m: &'a [f32],
    base: &'a [f32],
    scale: &'a [f32],
    shape: HyperShape,
    input: &'a mut [f32],
    put_back: &'a mut [f32],
}

impl Kernel for Mix<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (hc, width) = (self.shape.copies, self.input.len());
        let inverse = inverse_rms(s, self.h, self.shape.norm_eps);
        let m = |i: usize, part: usize| self.m[i] * inverse * self.scale[part] + self.base[i];
        let mut pre = [0.0; MAX_COPIES];
        for (i, pre) in pre[..hc].iter_mut().enumerate() {
            *pre = sigmoid(m(i, 0)) + self.shape.eps;
        }
        if !self.put_back.is_empty() {
            let (post, comb) = self.put_back.split_at_mut(hc);
            for (i, post) in post.iter_mut().enumerate() {
                *post = 2.0 * sigmoid(m(hc + i, 1));
            }
            for (i, comb) in comb.iter_mut().enumerate() {
                *comb = m(2 * hc + i, 2);
            }
            doubly_stochastic(comb, hc, self.shape);
        }
        for at in (0..width).step_by(LANES) {
            let n = width - at;
            // SAFETY: `at` is inside a copy, and no more than the copy's rest is touched.
            unsafe {
                let mut y = s.mul(load_part(s, self.h.as_ptr().add(at), n), s.splat(pre[0]));
                for (i, &pre) in pre[..hc].iter().enumerate().skip(1) {
                    y = s.fma(load_part(s, self.h.as_ptr().add(i * width + at), n), s.splat(pre), y);
                }
                store_part(s, self.input.as_mut_ptr().add(at), n, y);
            }
        }
    }
}

/// h `[n, hc·D]`, m `[n, base.len()]` → input `[n, D]`, put_back `[n, hc + hc·hc]` or empty for the head.
#[allow(clippy::too_many_arguments)]
pub(crate) fn mix(
    isa: Isa,
    pool: &Pool,
    h: &[f32],
    m: &[f32],
    base: &[f32],
    scale: &[f32],
    shape: HyperShape,
    input: &mut [f32],
    put_back: &mut [f32],
) {
    let rows = m.len() / base.len();
    let (wide, width, back) = (h.len() / rows, input.len() / rows, put_back.len() / rows);
    assert!(wide == width * shape.copies && shape.copies <= MAX_COPIES, "mHC widths");
    let (input, put_back) = (Output::new(input), Output::new(put_back));
    pool.ranges(rows, 4, 2, |rows| {
        for row in rows {
            // SAFETY: rows are disjoint.
            let (input, put_back) =
                unsafe { (input.slice(row * width..(row + 1) * width), put_back.slice(row * back..(row + 1) * back)) };
            let (h, m) = (&h[row * wide..(row + 1) * wide], &m[row * base.len()..(row + 1) * base.len()]);
            isa.run(Mix { h, m, base, scale, shape, input, put_back });
        }
    });
}

/// One row, in place: `h'ⱼ = postⱼ · out + Σᵢ comb[i,j] hᵢ`, i ascending.
struct Merge<'a> {
    h: &'a mut [f32],
    out: &'a [f32],
    put_back: &'a [f32],
}

impl Kernel for Merge<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let width = self.out.len();
        let hc = self.h.len() / width;
        let (post, comb) = self.put_back.split_at(hc);
        let mut old = [s.splat(0.0); MAX_COPIES];
        for at in (0..width).step_by(LANES) {
            let n = width - at;
            // SAFETY: `at` is inside a copy, and no more than the copy's rest is touched.
            unsafe {
                let out = load_part(s, self.out.as_ptr().add(at), n);
                for (i, old) in old[..hc].iter_mut().enumerate() {
                    *old = load_part(s, self.h.as_ptr().add(i * width + at), n);
                }
                for j in 0..hc {
                    let mut v = s.mul(s.splat(post[j]), out);
                    for (i, &old) in old[..hc].iter().enumerate() {
                        v = s.fma(s.splat(comb[i * hc + j]), old, v);
                    }
                    store_part(s, self.h.as_mut_ptr().add(j * width + at), n, v);
                }
            }
        }
    }
}

/// h `[n, hc·D]` in place, out `[n, D]`.
pub(crate) fn merge(isa: Isa, pool: &Pool, h: &mut [f32], out: &[f32], put_back: &[f32], copies: usize) {
    let rows = put_back.len() / (copies + copies * copies);
    let (width, back) = (out.len() / rows, put_back.len() / rows);
    assert!(h.len() == out.len() * copies && copies <= MAX_COPIES, "mHC widths");
    let h = Output::new(h);
    pool.ranges(rows, 4, 2, |rows| {
        for row in rows {
            // SAFETY: rows are disjoint.
            let h = unsafe { h.slice(row * width * copies..(row + 1) * width * copies) };
            let (out, put_back) = (&out[row * width..(row + 1) * width], &put_back[row * back..(row + 1) * back]);
            isa.run(Merge { h, out, put_back });
        }
    });
}
