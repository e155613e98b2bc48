//! The compressor: positions folded into entries (V4.md, *Compressor*).
//!
//! The frontier holds, for each channel, the running softmax of the block under way: the largest score, the sum of
//! exponentials and the sum of exponentials times values, as `[sets][max, sum, accumulator][w]` f32. Set 0 is the
//! entry that the current block completes; set 1 (ratio 4 only) what the current block gives to the next entry.
//! Positions are folded one after another, so no cut of a prompt shows in the bits.

use std::ops::Range;

use crate::math::exp_lanes;
use crate::ops::norm::NormOne;
use crate::ops::rows::{angles, encode_attention, encode_index, hadamard, rotate};
use crate::pool::{Output, Pool};
use crate::simd::{Isa, Kernel, LANES, Simd, load_part, store_part};
use crate::{EntryKind, RowShape};

#[cfg(test)]
mod tests;

/// A compressor's numbers: see [`crate::Compressor`].
#[derive(Clone, Copy)]
pub(crate) struct Spec<'a> {
    pub ratio: usize,
    pub width: usize,
    pub rope: usize,
    pub kind: EntryKind,
    pub ape: &'a [f32],
    pub norm: &'a [f32],
    pub eps: f32,
    pub frequencies: &'a [f32],
}

impl Spec<'_> {
    fn sets(&self) -> usize {
        if self.ratio == 4 { 2 } else { 1 }
    }
}

/// Folds positions from `start` on, `[n, sets·w]` each of kv and score, into some channels of the frontier; writes
/// `Σ e·v / Σ e` of every completed block to `raw` `[blocks, w]`.
struct Fold<'a> {
    spec: Spec<'a>,
    kv: &'a [f32],
    score: &'a [f32],
    start: usize,
    channels: Range<usize>,
    frontier: &'a Output<f32>,
    raw: &'a Output<f32>,
}

/// One channel's running softmax, sixteen at a time.
#[derive(Clone, Copy)]
struct Running<F> {
    top: F,
    sum: F,
    acc: F,
}

impl<F: Copy> Running<F> {
    #[inline(always)]
    fn empty<S: Simd<F = F>>(s: S) -> Self {
        Running { top: s.splat(f32::NEG_INFINITY), sum: s.splat(0.0), acc: s.splat(0.0) }
    }

    #[inline(always)]
    fn fold<S: Simd<F = F>>(&mut self, s: S, score: F, value: F) {
        let top = s.max(score, self.top);
        let keep = exp_lanes(s, s.sub(self.top, top));
        let weight = exp_lanes(s, s.sub(score, top));
        self.sum = s.fma(self.sum, keep, weight);
        self.acc = s.fma(self.acc, keep, s.mul(weight, value));
        self.top = top;
    }
}

impl Kernel for Fold<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Spec { ratio, width, ape, .. } = self.spec;
        let sets = self.spec.sets();
        let stride = sets * width;
        let n = self.kv.len() / stride;
        for at in self.channels.step_by(LANES) {
            let part = width - at;
            let live = part.min(LANES);
            let slot = |set: usize, what: usize| {
                let from = (set * 3 + what) * width + at;
                // SAFETY: tasks have disjoint channels.
                unsafe { self.frontier.slice(from..from + live) }
            };
            let mut running = [Running::empty(s); 2];
            for (set, r) in running[..sets].iter_mut().enumerate() {
                // SAFETY: a slot has `live` f32.
                unsafe {
                    r.top = load_part(s, slot(set, 0).as_ptr(), live);
                    r.sum = load_part(s, slot(set, 1).as_ptr(), live);
                    r.acc = load_part(s, slot(set, 2).as_ptr(), live);
                }
            }
            let mut block = 0;
            for i in 0..n {
                let phase = (self.start + i) % ratio;
                if phase == 0 {
                    let first = self.start + i == 0;
                    running[0] = if sets == 2 && !first { running[1] } else { Running::empty(s) };
                    running[1] = Running::empty(s);
                }
                // The last set of channels belongs to the entry under way, the first of two to the next.
                for set in 0..sets {
                    let channel = set * width + at;
                    let target = if sets == 2 && set == 0 { 1 } else { 0 };
                    // SAFETY: inside row i of kv and score, and row `phase` of ape.
                    unsafe {
                        let from = i * stride + channel;
                        let score = load_part(s, self.score.as_ptr().add(from), part);
                        let score = s.add(score, load_part(s, ape.as_ptr().add(phase * stride + channel), part));
                        running[target].fold(s, score, load_part(s, self.kv.as_ptr().add(from), part));
                    }
                }
                if phase == ratio - 1 {
                    let from = block * width + at;
                    // SAFETY: tasks have disjoint channels; the slice has `live` f32.
                    unsafe {
                        let out = self.raw.slice(from..from + live);
                        store_part(s, out.as_mut_ptr(), live, s.div(running[0].acc, running[0].sum));
                    }
                    block += 1;
                }
            }
            for (set, r) in running[..sets].iter().enumerate() {
                // SAFETY: as above.
                unsafe {
                    store_part(s, slot(set, 0).as_mut_ptr(), live, r.top);
                    store_part(s, slot(set, 1).as_mut_ptr(), live, r.sum);
                    store_part(s, slot(set, 2).as_mut_ptr(), live, r.acc);
                }
            }
        }
    }
}

/// Folds positions and gives every completed entry, stored, to `put(entry number, row)`, in any order.
#[allow(clippy::too_many_arguments)]
pub(crate) fn compress(
    isa: Isa,
    pool: &Pool,
    spec: Spec<'_>,
    kv: &[f32],
    score: &[f32],
    start: usize,
    frontier: &mut [f32],
    raw: &mut [f32],
    put: impl Fn(usize, &[u8]) + Sync,
) {
    let width = spec.width;
    let frontier = Output::new(frontier);
    let all = Output::new(raw);
    pool.ranges(width, LANES, 2, |channels| {
        isa.run(Fold { spec, kv, score, start, channels, frontier: &frontier, raw: &all });
    });
    let first = start / spec.ratio;
    let raw = Output::new(raw);
    pool.ranges(raw.len() / width, 1, 2, |blocks| {
        let mut turn = vec![0.0; spec.frequencies.len() * 2];
        let row = RowShape { width, rope: spec.rope };
        let mut stored = vec![
            0;
            match spec.kind {
                EntryKind::Attention => row.bytes(),
                EntryKind::Index => crate::index_row_bytes(width),
            }
        ];
        for block in blocks {
            // SAFETY: blocks are disjoint.
            let x = unsafe { raw.slice(block * width..(block + 1) * width) };
            isa.run(NormOne { x, weight: Some(spec.norm), eps: spec.eps });
            angles(((first + block) * spec.ratio) as u32, spec.frequencies, &mut turn);
            rotate(x, &turn);
            match spec.kind {
                EntryKind::Attention => encode_attention(x, row, &mut stored),
                EntryKind::Index => {
                    hadamard(x);
                    encode_index(x, &mut stored);
                }
            }
            put(first + block, &stored);
        }
    });
}
