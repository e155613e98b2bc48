//! One tile of keys against the heads of one row. All heads share the keys, which are the values too, so both halves are
//! small matrix products.

use std::ops::Range;

use crate::math::{exp_f32, exp_lanes};
use crate::simd::{LANES, Simd};

/// Keys decoded and weighed together.
pub(super) const TILE: usize = 32;

/// Decoded keys, `[TILE, d]`.
#[derive(Default)]
pub(super) struct Keys {
    values: Vec<f32>,
    width: usize,
}

impl Keys {
    /// From one key to the next: a line more than d, or all keys would compete for a few lines of the first cache.
    const fn stride(&self) -> usize {
        self.width + LANES
    }

    /// Makes room for keys of `width` values. What the slots hold is left.
    pub(super) fn reset(&mut self, width: usize) {
        self.width = width;
        self.values.resize(TILE * self.stride(), 0.0);
    }

    /// Key j.
    pub(super) fn slot(&mut self, j: usize) -> &mut [f32] {
        let at = j * self.stride();
        &mut self.values[at..at + self.width]
    }
}

/// The online softmax of one row and head: largest logit and sum of exponentials.
#[derive(Clone, Copy)]
pub(super) struct Soft {
    pub top: f32,
    pub sum: f32,
}

/// What the heads of one row make of a tile.
#[derive(Default)]
pub(super) struct Heads {
    /// Logits, then weights, `[heads, TILE]`.
    weights: Vec<f32>,
    /// What each head's sums so far are multiplied by.
    keep: Vec<f32>,
}

impl Heads {
    /// Adds keys `live` to the sums of some heads: q and acc `[heads, d]`, soft `[heads]`.
    #[inline(always)]
    pub(super) fn add<S: Simd>(
        &mut self,
        s: S,
        q: &[f32],
        keys: &Keys,
        live: Range<usize>,
        soft: &mut [Soft],
        acc: &mut [f32],
    ) {
        self.weights.resize(soft.len() * TILE, 0.0);
        self.keep.resize(soft.len(), 0.0);
        if S::WIDE {
            self.logits::<S, 4>(s, q, keys, &live);
            self.soften(s, keys.width, &live, soft);
            self.values::<S, 4, 4>(s, keys, live, acc);
        } else {
            self.logits::<S, 2>(s, q, keys, &live);
            self.soften(s, keys.width, &live, soft);
            self.values::<S, 3, 2>(s, keys, live, acc);
        }
    }

    /// q · key for R heads at once.
    #[inline(always)]
    fn logits<S: Simd, const R: usize>(&mut self, s: S, q: &[f32], keys: &Keys, live: &Range<usize>) {
        let heads = self.keep.len();
        // Four keys of a tile at a time, then the next four for all heads: those keys stay in the first cache.
        for j in (live.start / 4 * 4..live.end).step_by(4) {
            let mut h = 0;
            while h < heads {
                if h + R <= heads {
                    self.dots::<S, R>(s, q, keys, h, j);
                    h += R;
                } else {
                    self.dots::<S, 1>(s, q, keys, h, j);
                    h += 1;
                }
            }
        }
    }

    /// R heads from h on times four keys from j on. Keys that are not live come out as anything.
    #[inline(always)]
    fn dots<S: Simd, const R: usize>(&mut self, s: S, q: &[f32], keys: &Keys, h: usize, j: usize) {
        let (d, stride) = (keys.width, keys.stride());
        let q = &q[h * d..(h + R) * d];
        let key = &keys.values[j * stride..(j + 4) * stride];
        assert!(d.is_multiple_of(LANES), "a key's width");
        let mut sums = [[s.splat(0.0); 4]; R];
        for at in (0..d).step_by(LANES) {
            // SAFETY: R heads of q and four keys have d values each.
            unsafe {
                let mut k = [s.splat(0.0); 4];
                for b in 0..4 {
                    k[b] = s.load(key.as_ptr().add(b * stride + at));
                }
                for a in 0..R {
                    let q = s.load(q.as_ptr().add(a * d + at));
                    for b in 0..4 {
                        sums[a][b] = s.fma(q, k[b], sums[a][b]);
                    }
                }
            }
        }
        for a in 0..R {
            self.weights[(h + a) * TILE + j..][..4].copy_from_slice(&s.sum4(sums[a]));
        }
    }

    /// Logits to weights, and the softmax moved on.
    #[inline(always)]
    fn soften<S: Simd>(&mut self, s: S, d: usize, live: &Range<usize>, soft: &mut [Soft]) {
        let scale = 1.0 / (d as f32).sqrt();
        for ((weights, keep), soft) in self.weights.chunks_exact_mut(TILE).zip(&mut self.keep).zip(soft) {
            weights[..live.start].fill(f32::NEG_INFINITY);
            weights[live.end..].fill(f32::NEG_INFINITY);
            let mut top = soft.top;
            for v in &mut weights[live.clone()] {
                *v *= scale;
                top = if *v > top { *v } else { top };
            }
            let mut sum = s.splat(0.0);
            for at in (0..TILE).step_by(LANES) {
                // SAFETY: TILE is a multiple of LANES.
                unsafe {
                    let w = exp_lanes(s, s.sub(s.load(weights.as_ptr().add(at)), s.splat(top)));
                    s.store(weights.as_mut_ptr().add(at), w);
                    sum = s.add(sum, w);
                }
            }
            *keep = exp_f32(soft.top - top);
            *soft = Soft { top, sum: soft.sum.mul_add(*keep, s.sum(sum)) };
        }
    }

    /// `acc = acc · keep + Σ_j weight_j · key_j`, j ascending: N times sixteen dims of R heads at once.
    #[inline(always)]
    fn values<S: Simd, const R: usize, const N: usize>(&self, s: S, keys: &Keys, live: Range<usize>, acc: &mut [f32]) {
        let (d, heads) = (keys.width, self.keep.len());
        // Some dims of every head, then the next: that part of the keys stays in the first cache.
        let mut at = 0;
        while at < d {
            let wide = at + N * LANES <= d;
            let mut h = 0;
            while h < heads {
                match (wide, h + R <= heads) {
                    (true, true) => self.sums::<S, R, N>(s, keys, live.clone(), acc, h, at),
                    (true, false) => self.sums::<S, 1, N>(s, keys, live.clone(), acc, h, at),
                    (false, true) => self.sums::<S, R, 1>(s, keys, live.clone(), acc, h, at),
                    (false, false) => self.sums::<S, 1, 1>(s, keys, live.clone(), acc, h, at),
                }
                h += if h + R <= heads { R } else { 1 };
            }
            at += if wide { N * LANES } else { LANES };
        }
    }

    #[inline(always)]
    fn sums<S: Simd, const R: usize, const N: usize>(
        &self,
        s: S,
        keys: &Keys,
        live: Range<usize>,
        acc: &mut [f32],
        h: usize,
        at: usize,
    ) {
        let (d, stride) = (keys.width, keys.stride());
        let (acc, weights) = (&mut acc[h * d..(h + R) * d], &self.weights[h * TILE..(h + R) * TILE]);
        assert!(at + N * LANES <= d && live.end <= TILE && keys.values.len() == TILE * stride, "a tile");
        // SAFETY: by the slices and the assertion.
        unsafe {
            let mut sums = [[s.splat(0.0); N]; R];
            for a in 0..R {
                let keep = s.splat(self.keep[h + a]);
                for b in 0..N {
                    sums[a][b] = s.mul(s.load(acc.as_ptr().add(a * d + at + b * LANES)), keep);
                }
            }
            for j in live {
                let mut key = [s.splat(0.0); N];
                for b in 0..N {
                    key[b] = s.load(keys.values.as_ptr().add(j * stride + at + b * LANES));
                }
                for a in 0..R {
                    let weight = s.splat(*weights.get_unchecked(a * TILE + j));
                    for b in 0..N {
                        sums[a][b] = s.fma(weight, key[b], sums[a][b]);
                    }
                }
            }
            for a in 0..R {
                for b in 0..N {
                    s.store(acc.as_mut_ptr().add(a * d + at + b * LANES), sums[a][b]);
                }
            }
        }
    }
}
