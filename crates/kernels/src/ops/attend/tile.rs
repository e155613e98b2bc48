//! One tile of keys against the heads of one row. All heads share the keys, which are the values too, so both halves are
//! small matrix products.

use std::ops::Range;

use crate::math::{exp_f32, exp_lanes};
use crate::simd::{LANES, Simd, load_part, store_part};

/// Keys decoded and weighed together.
pub(super) const TILE: usize = 32;

/// Sums of no more than this become zero when they are scaled down, as [`Arithmetic::Rounded`] has it.
const LEAST: f32 = f32::from_bits((127 - 90) << 23);

/// What is multiplied.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Arithmetic {
    /// f32.
    Exact,
    /// Queries and weights are bfloat16, as keys are. No number is so small that products or sums were subnormal: queries and
    /// weights by [`Simd::round_bf16`], keys as they are stored, sums by [`LEAST`].
    Rounded,
    /// The same in pairs, with the same bits.
    Paired,
}

/// Decoded keys, `[TILE, d]`.
#[derive(Default)]
pub(super) struct Keys {
    values: Vec<f32>,
    width: usize,
    /// Two times sixteen dims of a key in pairs, `[TILE, d / 2]`.
    dims: Vec<f32>,
    /// Two keys in pairs, `[TILE / 2, d]`.
    couples: Vec<f32>,
}

impl Keys {
    /// From one key to the next: a line more than d, or all keys would compete for a few lines of the first cache.
    const fn stride(&self) -> usize {
        self.width + LANES
    }

    /// As [`Keys::stride`], of `dims`.
    const fn dims_stride(&self) -> usize {
        self.width / 2 + LANES
    }

    /// Makes room for keys of `width` values. What the slots hold is left.
    pub(super) fn reset(&mut self, width: usize, arithmetic: Arithmetic) {
        self.width = width;
        self.values.resize(TILE * self.stride(), 0.0);
        if arithmetic == Arithmetic::Paired {
            self.dims.resize(TILE * self.dims_stride(), 0.0);
            self.couples.resize(TILE / 2 * self.stride(), 0.0);
        }
    }

    /// Key j.
    pub(super) fn slot(&mut self, j: usize) -> &mut [f32] {
        let at = j * self.stride();
        &mut self.values[at..at + self.width]
    }

    /// Makes pairs of the decoded keys `some`.
    #[inline(always)]
    pub(super) fn pair_up<S: Simd>(&mut self, s: S, some: Range<usize>) {
        let (d, stride, dims_stride) = (self.width, self.stride(), self.dims_stride());
        assert!(d.is_multiple_of(2 * LANES) && some.end <= TILE && self.values.len() == TILE * stride, "a tile");
        assert!(self.dims.len() == TILE * dims_stride && self.couples.len() == TILE / 2 * stride, "a tile's pairs");
        // SAFETY: by the assertions.
        unsafe {
            for j in some.clone() {
                let (key, out) = (self.values.as_ptr().add(j * stride), self.dims.as_mut_ptr().add(j * dims_stride));
                for at in (0..d / 2).step_by(LANES) {
                    s.store(out.add(at), s.pair(s.load(key.add(2 * at)), s.load(key.add(2 * at + LANES))));
                }
            }
            for j in some.start.div_ceil(2)..some.end / 2 {
                let (first, out) =
                    (self.values.as_ptr().add(2 * j * stride), self.couples.as_mut_ptr().add(j * stride));
                for at in (0..d).step_by(LANES) {
                    s.store(out.add(at), s.pair(s.load(first.add(at)), s.load(first.add(stride + at))));
                }
            }
        }
    }
}

/// Appends queries, `[heads, d]`, as [`Heads::add`] takes them: rounded, and two times sixteen dims in pairs.
#[inline(always)]
pub(super) fn round<S: Simd>(s: S, arithmetic: Arithmetic, q: &[f32], out: &mut Vec<f32>) {
    let step = if arithmetic == Arithmetic::Paired { 2 * LANES } else { LANES };
    assert!(q.len().is_multiple_of(step), "queries of whole steps");
    let before = out.len();
    out.resize(before + q.len() / step * LANES, 0.0);
    for (q, out) in q.chunks_exact(step).zip(out[before..].chunks_exact_mut(LANES)) {
        // SAFETY: a step in, sixteen out.
        unsafe {
            let first = s.load(q.as_ptr());
            let v = match arithmetic {
                Arithmetic::Exact => first,
                Arithmetic::Rounded => s.round_bf16(first),
                Arithmetic::Paired => s.round_pair(first, s.load(q.as_ptr().add(LANES))),
            };
            s.store(out.as_mut_ptr(), v);
        }
    }
}

/// The online softmax of one row and head: largest logit and sum of exponentials.
#[derive(Clone, Copy)]
pub(super) struct Soft {
    pub top: f32,
    pub sum: f32,
}

impl Soft {
    /// No keys yet, not even the sink.
    pub(super) const NOTHING: Soft = Soft { top: f32::NEG_INFINITY, sum: 0.0 };

    /// Whether no key was seen.
    pub(super) fn is_nothing(&self) -> bool {
        self.top == f32::NEG_INFINITY && self.sum == 0.0
    }

    /// Adds what later keys came to: `acc` and `more` are `[d]`.
    #[inline(always)]
    pub(super) fn merge<S: Simd>(&mut self, s: S, acc: &mut [f32], later: Soft, more: &[f32]) {
        if later.is_nothing() {
            return;
        }
        let (top, keep, take) = match later.top > self.top {
            true => (later.top, exp_f32(self.top - later.top), 1.0),
            false => (self.top, 1.0, exp_f32(later.top - self.top)),
        };
        *self = Soft { top, sum: self.sum.mul_add(keep, later.sum * take) };
        let (keep, take) = (s.splat(keep), s.splat(take));
        for (acc, more) in acc.chunks_exact_mut(LANES).zip(more.chunks_exact(LANES)) {
            // SAFETY: sixteen of each.
            unsafe {
                let kept = s.mul(s.load(acc.as_ptr()), keep);
                s.store(acc.as_mut_ptr(), s.fma(s.load(more.as_ptr()), take, kept));
            }
        }
    }
}

/// What the heads of one row make of a tile.
#[derive(Default)]
pub(super) struct Heads {
    /// Logits, then weights, `[heads, TILE]`.
    weights: Vec<f32>,
    /// Weights of two keys in pairs, `[heads, TILE / 2]`.
    couples: Vec<f32>,
    /// What each head's sums so far are multiplied by.
    keep: Vec<f32>,
    /// The sum of each head's new weights.
    new: Vec<f32>,
}

impl Heads {
    /// Adds keys `live` to the sums of some heads: q as [`round`] leaves it, acc `[heads, d]`, soft `[heads]`. If `fresh`, there
    /// are no sums yet, and acc holds anything.
    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    pub(super) fn add<S: Simd>(
        &mut self,
        s: S,
        arithmetic: Arithmetic,
        q: &[f32],
        keys: &Keys,
        live: Range<usize>,
        fresh: bool,
        soft: &mut [Soft],
        acc: &mut [f32],
    ) {
        self.weights.resize(soft.len() * TILE, 0.0);
        self.keep.resize(soft.len(), 0.0);
        self.new.resize(soft.len(), 0.0);
        let rounded = arithmetic != Arithmetic::Exact;
        if arithmetic == Arithmetic::Paired {
            self.logits::<S, 4, true>(s, q, keys, &live);
            self.soften(s, rounded, keys.width, &live, soft);
            self.rescale(s, rounded, fresh, acc);
            self.pair_up();
            self.values::<S, 4, 4, true>(s, keys, live, fresh, acc);
        } else if S::WIDE {
            self.logits::<S, 4, false>(s, q, keys, &live);
            self.soften(s, rounded, keys.width, &live, soft);
            self.rescale(s, rounded, fresh, acc);
            self.values::<S, 4, 4, false>(s, keys, live, fresh, acc);
        } else {
            self.logits::<S, 2, false>(s, q, keys, &live);
            self.soften(s, rounded, keys.width, &live, soft);
            self.rescale(s, rounded, fresh, acc);
            self.values::<S, 3, 2, false>(s, keys, live, fresh, acc);
        }
    }

    /// q · key for R heads at once.
    #[inline(always)]
    fn logits<S: Simd, const R: usize, const PAIRED: bool>(
        &mut self,
        s: S,
        q: &[f32],
        keys: &Keys,
        live: &Range<usize>,
    ) {
        let heads = self.keep.len();
        // Four keys of a tile at a time, then the next four for all heads: those keys stay in the first cache.
        for j in (live.start / 4 * 4..live.end).step_by(4) {
            let mut h = 0;
            while h < heads {
                if h + R <= heads {
                    self.dots::<S, R, PAIRED>(s, q, keys, h, j);
                    h += R;
                } else {
                    self.dots::<S, 1, PAIRED>(s, q, keys, h, j);
                    h += 1;
                }
            }
        }
    }

    /// R heads from h on times four keys from j on. Keys that are not live come out as anything.
    #[inline(always)]
    fn dots<S: Simd, const R: usize, const PAIRED: bool>(&mut self, s: S, q: &[f32], keys: &Keys, h: usize, j: usize) {
        let (d, stride, keys) = match PAIRED {
            true => (keys.width / 2, keys.dims_stride(), &keys.dims),
            false => (keys.width, keys.stride(), &keys.values),
        };
        let q = &q[h * d..(h + R) * d];
        let key = &keys[j * stride..(j + 4) * stride];
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
                        sums[a][b] = if PAIRED { s.dot_pair(q, k[b], sums[a][b]) } else { s.fma(q, k[b], sums[a][b]) };
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
    fn soften<S: Simd>(&mut self, s: S, rounded: bool, d: usize, live: &Range<usize>, soft: &mut [Soft]) {
        let scale = 1.0 / (d as f32).sqrt();
        let each = self.weights.chunks_exact_mut(TILE).zip(&mut self.keep).zip(&mut self.new);
        for (((weights, keep), new), soft) in each.zip(soft.iter_mut()) {
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
                    let w = if rounded { s.round_bf16(w) } else { w };
                    s.store(weights.as_mut_ptr().add(at), w);
                    sum = s.add(sum, w);
                }
            }
            *keep = soft.top - top;
            (soft.top, *new) = (top, s.sum(sum));
        }
        for at in (0..self.keep.len()).step_by(LANES) {
            let (p, n) = (self.keep[at..].as_mut_ptr(), self.keep.len() - at);
            // SAFETY: n values from p on.
            unsafe { store_part(s, p, n, exp_lanes(s, load_part(s, p, n))) };
        }
        for ((soft, keep), new) in soft.iter_mut().zip(&self.keep).zip(&self.new) {
            soft.sum = soft.sum.mul_add(*keep, *new);
        }
    }

    /// `acc = acc · keep`.
    #[inline(always)]
    fn rescale<S: Simd>(&self, s: S, rounded: bool, fresh: bool, acc: &mut [f32]) {
        if fresh {
            return;
        }
        let d = acc.len() / self.keep.len();
        for (acc, &keep) in acc.chunks_exact_mut(d).zip(&self.keep) {
            // Most tiles have no larger logit.
            if keep == 1.0 {
                continue;
            }
            let (keep, zero, least) = (s.splat(keep), s.splat(0.0), s.splat(LEAST));
            for part in acc.chunks_exact_mut(LANES) {
                // SAFETY: a part has sixteen values.
                unsafe {
                    let mut v = s.mul(s.load(part.as_ptr()), keep);
                    if rounded {
                        // Less those that are small, if that can be said of them.
                        v = s.sub(v, s.keep_ge(least, s.max(v, s.sub(zero, v)), v));
                    }
                    s.store(part.as_mut_ptr(), v);
                }
            }
        }
    }

    /// Weights of two keys beside each other.
    #[inline(always)]
    fn pair_up(&mut self) {
        self.couples.resize(self.weights.len() / 2, 0.0);
        for (pair, w) in self.couples.iter_mut().zip(self.weights.chunks_exact(2)) {
            *pair = f32::from_bits(w[0].to_bits() & 0xffff_0000 | w[1].to_bits() >> 16);
        }
    }

    /// `acc += Σ_j weight_j · key_j`, j ascending: N times sixteen dims of R heads at once.
    #[inline(always)]
    fn values<S: Simd, const R: usize, const N: usize, const PAIRED: bool>(
        &self,
        s: S,
        keys: &Keys,
        live: Range<usize>,
        fresh: bool,
        acc: &mut [f32],
    ) {
        let (d, heads) = (keys.width, self.keep.len());
        // Some dims of every head, then the next: that part of the keys stays in the first cache.
        let mut at = 0;
        while at < d {
            let wide = at + N * LANES <= d;
            let mut h = 0;
            while h < heads {
                let live = live.clone();
                match (wide, h + R <= heads) {
                    (true, true) => self.sums::<S, R, N, PAIRED>(s, keys, live, fresh, acc, h, at),
                    (true, false) => self.sums::<S, 1, N, PAIRED>(s, keys, live, fresh, acc, h, at),
                    (false, true) => self.sums::<S, R, 1, PAIRED>(s, keys, live, fresh, acc, h, at),
                    (false, false) => self.sums::<S, 1, 1, PAIRED>(s, keys, live, fresh, acc, h, at),
                }
                h += if h + R <= heads { R } else { 1 };
            }
            at += if wide { N * LANES } else { LANES };
        }
    }

    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn sums<S: Simd, const R: usize, const N: usize, const PAIRED: bool>(
        &self,
        s: S,
        keys: &Keys,
        live: Range<usize>,
        fresh: bool,
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
            if !fresh {
                for a in 0..R {
                    for b in 0..N {
                        sums[a][b] = s.load(acc.as_ptr().add(a * d + at + b * LANES));
                    }
                }
            }
            if PAIRED {
                let couples = &self.couples[h * TILE / 2..(h + R) * TILE / 2];
                assert!(keys.couples.len() == TILE / 2 * stride, "a tile's pairs");
                // A key whose neighbour this row does not see goes alone: what a neighbour holds may be no number.
                let both = live.start.div_ceil(2)..live.end / 2;
                for j in live.start..live.end.min(2 * both.start) {
                    step::<S, R, N, false>(s, keys.values.as_ptr().add(j * stride + at), weights, TILE, j, &mut sums);
                }
                for j in both {
                    step::<S, R, N, true>(
                        s,
                        keys.couples.as_ptr().add(j * stride + at),
                        couples,
                        TILE / 2,
                        j,
                        &mut sums,
                    );
                }
                for j in live.start.max(live.end / 2 * 2)..live.end {
                    step::<S, R, N, false>(s, keys.values.as_ptr().add(j * stride + at), weights, TILE, j, &mut sums);
                }
            } else {
                for j in live {
                    step::<S, R, N, false>(s, keys.values.as_ptr().add(j * stride + at), weights, TILE, j, &mut sums);
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

/// Adds a key, or two in pairs, to the sums of R heads and N times sixteen dims; head a's weight is `weights[a · tile + j]`.
///
/// # Safety
/// `key` has N times sixteen values, and the weights are there.
#[inline(always)]
unsafe fn step<S: Simd, const R: usize, const N: usize, const PAIRED: bool>(
    s: S,
    key: *const f32,
    weights: &[f32],
    tile: usize,
    j: usize,
    sums: &mut [[S::F; N]; R],
) {
    // SAFETY: by the caller's word.
    unsafe {
        let mut values = [s.splat(0.0); N];
        for b in 0..N {
            values[b] = s.load(key.add(b * LANES));
        }
        for a in 0..R {
            let weight = s.splat(*weights.get_unchecked(a * tile + j));
            for b in 0..N {
                let sum = sums[a][b];
                sums[a][b] = if PAIRED { s.dot_pair(weight, values[b], sum) } else { s.fma(weight, values[b], sum) };
            }
        }
    }
}
