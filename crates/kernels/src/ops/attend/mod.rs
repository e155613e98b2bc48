//! Attention over window rows and compressed entries, with the sink (V4.md, *Attention*).
//!
//! The order of the sums is a function of a row's position alone. Keys come in tiles of [`TILE`]: window rows by
//! position, then compressed entries by number (HCA) or by rank in the selection (CSA). Over the tiles runs an online
//! softmax that starts from the sink; inside a tile, key j's weight is summed in lane j mod 16 and values are added
//! by ascending key. Nothing as long as the context is ever held.

#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::RowShape;
use crate::math::exp_lanes;
use crate::ops::rows::{decode_attention, rotate_back};
use crate::pool::{Output, Pool};
use crate::simd::{Isa, Kernel, LANES, Simd};

/// Keys decoded and weighed together.
const TILE: usize = 32;
/// f32 of accumulators that a task keeps at most, to stay in a core's cache.
const TASK: usize = 32 * 1024;
/// Rows that share decoded keys at most.
const ROWS: usize = 16;

/// What all rows of a segment share.
#[derive(Clone, Copy)]
pub(crate) struct Segment<'a> {
    pub heads: usize,
    pub row: RowShape,
    /// `sliding_window`.
    pub span: usize,
    pub sink: &'a [f32],
    /// Position of the first row.
    pub start: usize,
    /// Stored rows of positions from `start` on.
    pub rows: &'a [u8],
    /// Stored rows of earlier positions: p at row `p mod sliding_window`.
    pub ring: &'a [u8],
    pub entries: Entries<'a>,
}

/// The compressed entries of a layer.
#[derive(Clone, Copy)]
pub(crate) struct Stored<'a> {
    pub pages: &'a [&'a [u8]],
    pub offset: usize,
    pub per_page: usize,
}

impl<'a> Stored<'a> {
    #[inline(always)]
    fn row(&self, entry: usize, bytes: usize) -> &'a [u8] {
        &self.pages[entry / self.per_page][self.offset + entry % self.per_page * bytes..][..bytes]
    }
}

/// Which of them a row sees.
#[derive(Clone, Copy)]
pub(crate) enum Entries<'a> {
    None,
    All { stored: Stored<'a>, ratio: usize },
    Selected { stored: Stored<'a>, entries: &'a [u32], counts: &'a [u32], keep: usize },
}

/// Some rows and heads of a segment.
struct Task<'a> {
    segment: Segment<'a>,
    /// `[n, H·d]`.
    q: &'a [f32],
    rows: Range<usize>,
    heads: Range<usize>,
    /// `[n, r]`.
    angles: &'a [f32],
    out: &'a Output<f32>,
}

/// The online softmax of one row and head: largest logit and sum of exponentials.
#[derive(Clone, Copy)]
struct Soft {
    top: f32,
    sum: f32,
}

struct Scratch {
    /// Decoded keys, `[TILE, d]`.
    keys: Vec<f32>,
    /// `[rows · heads, d]`.
    acc: Vec<f32>,
    /// `[rows · heads]`.
    soft: Vec<Soft>,
    /// Weights of one tile, `[heads, TILE]`, and what each head's sums so far are multiplied by.
    weights: Vec<f32>,
    keep: Vec<f32>,
}

impl Task<'_> {
    fn query(&self, row: usize, head: usize) -> &[f32] {
        let d = self.segment.row.width;
        &self.q[(row * self.segment.heads + head) * d..][..d]
    }

    /// Adds the decoded keys `live` to the sums of one row.
    #[inline(always)]
    fn add<S: Simd>(&self, s: S, row: usize, live: Range<usize>, scratch: &mut Scratch) {
        if live.is_empty() {
            return;
        }
        let d = self.segment.row.width;
        let heads = self.heads.len();
        let first = (row - self.rows.start) * heads;
        let scale = 1.0 / (d as f32).sqrt();
        let Scratch { keys, acc, soft, weights, keep } = scratch;
        let key = |j: usize| &keys[j * d..(j + 1) * d];
        weights.fill(f32::NEG_INFINITY);
        for h in 0..heads {
            let (q, weights) = (self.query(row, self.heads.start + h), &mut weights[h * TILE..(h + 1) * TILE]);
            let mut j = live.start;
            while j + 4 <= live.end {
                let dots = dot4(s, q, [key(j), key(j + 1), key(j + 2), key(j + 3)]);
                weights[j..j + 4].copy_from_slice(&dots.map(|dot| dot * scale));
                j += 4;
            }
            for (j, weight) in weights.iter_mut().enumerate().take(live.end).skip(j) {
                *weight = dot4(s, q, [key(j); 4])[0] * scale;
            }
            let soft = &mut soft[first + h];
            let top = weights[live.clone()].iter().fold(soft.top, |a, &v| if v > a { v } else { a });
            let mut sum = s.splat(0.0);
            for at in (0..TILE).step_by(LANES) {
                // SAFETY: TILE is a multiple of LANES.
                unsafe {
                    let w = exp_lanes(s, s.sub(s.load(weights.as_ptr().add(at)), s.splat(top)));
                    s.store(weights.as_mut_ptr().add(at), w);
                    sum = s.add(sum, w);
                }
            }
            keep[h] = crate::math::exp_f32(soft.top - top);
            *soft = Soft { top, sum: soft.sum.mul_add(keep[h], s.sum(sum)) };
        }
        // 64 dims of every head, then the next 64: that part of the keys stays in the first cache.
        let mut at = 0;
        while at < d {
            let wide = at + 4 * LANES <= d;
            for h in 0..heads {
                let acc = &mut acc[(first + h) * d..(first + h + 1) * d];
                let weights = &weights[h * TILE..(h + 1) * TILE];
                if wide {
                    values::<S, 4>(s, acc, at, keys, d, weights, live.clone(), keep[h]);
                } else {
                    values::<S, 1>(s, acc, at, keys, d, weights, live.clone(), keep[h]);
                }
            }
            at += if wide { 4 * LANES } else { LANES };
        }
    }
}

/// q · k for four keys.
#[inline(always)]
fn dot4<S: Simd>(s: S, q: &[f32], keys: [&[f32]; 4]) -> [f32; 4] {
    assert!(keys.iter().all(|k| k.len() == q.len()) && q.len().is_multiple_of(LANES), "key widths");
    let mut sums = [s.splat(0.0); 4];
    for at in (0..q.len()).step_by(LANES) {
        // SAFETY: all are as long as q, a multiple of LANES.
        unsafe {
            let q = s.load(q.as_ptr().add(at));
            sums[0] = s.fma(q, s.load(keys[0].as_ptr().add(at)), sums[0]);
            sums[1] = s.fma(q, s.load(keys[1].as_ptr().add(at)), sums[1]);
            sums[2] = s.fma(q, s.load(keys[2].as_ptr().add(at)), sums[2]);
            sums[3] = s.fma(q, s.load(keys[3].as_ptr().add(at)), sums[3]);
        }
    }
    [s.sum(sums[0]), s.sum(sums[1]), s.sum(sums[2]), s.sum(sums[3])]
}

/// `acc = acc · keep + Σ_j weight_j · key_j` for N·16 dims from `at` on, j ascending.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn values<S: Simd, const N: usize>(
    s: S,
    acc: &mut [f32],
    at: usize,
    keys: &[f32],
    d: usize,
    weights: &[f32],
    live: Range<usize>,
    keep: f32,
) {
    assert!(at + N * LANES <= d && acc.len() == d && live.end * d <= keys.len() && live.end <= weights.len());
    // SAFETY: by the assertion.
    unsafe {
        let mut sums = [s.splat(0.0); N];
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = s.mul(s.load(acc.as_ptr().add(at + i * LANES)), s.splat(keep));
        }
        for j in live {
            let weight = s.splat(*weights.get_unchecked(j));
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = s.fma(weight, s.load(keys.as_ptr().add(j * d + at + i * LANES)), *sum);
            }
        }
        for (i, sum) in sums.into_iter().enumerate() {
            s.store(acc.as_mut_ptr().add(at + i * LANES), sum);
        }
    }
}

/// A stored row to key j of a tile. No closure: those do not get the instruction set's features.
#[inline(always)]
fn decode<S: Simd>(s: S, shape: RowShape, stored: &[u8], j: usize, keys: &mut [f32]) {
    assert!(stored.len() == shape.bytes() && (j + 1) * shape.width <= keys.len(), "a stored row");
    // SAFETY: by the assertion.
    unsafe { decode_attention(s, stored.as_ptr(), shape, keys.as_mut_ptr().add(j * shape.width)) }
}

impl Kernel for Task<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Segment { row: shape, span, sink, start, rows, ring, entries, .. } = self.segment;
        let (d, bytes, heads) = (shape.width, shape.bytes(), self.heads.len());
        let mut scratch = Scratch {
            keys: vec![0.0; TILE * d],
            acc: vec![0.0; self.rows.len() * heads * d],
            soft: sink[self.heads.clone()]
                .iter()
                .map(|&top| Soft { top, sum: 1.0 })
                .collect::<Vec<_>>()
                .repeat(self.rows.len()),
            weights: vec![0.0; heads * TILE],
            keep: vec![0.0; heads],
        };

        // The window: positions (p − span, p].
        let position = |row: usize| start + row;
        let oldest = |row: usize| (position(row) + 1).saturating_sub(span);
        let (from, end) = (oldest(self.rows.start), position(self.rows.end - 1) + 1);
        for tile in from / TILE..end.div_ceil(TILE) {
            let base = tile * TILE;
            let needed = base.max(from)..(base + TILE).min(end);
            for p in needed.clone() {
                let (stored, at) = if p < start { (ring, p % span * bytes) } else { (rows, (p - start) * bytes) };
                decode(s, shape, &stored[at..at + bytes], p - base, &mut scratch.keys);
            }
            for row in self.rows.clone() {
                let live = needed.start.max(oldest(row))..needed.end.min(position(row) + 1);
                if !live.is_empty() {
                    self.add(s, row, live.start - base..live.end - base, &mut scratch);
                }
            }
        }

        match entries {
            Entries::None => {}
            Entries::All { stored, ratio } => {
                let visible = |row: usize| (position(row) + 1) / ratio;
                let end = visible(self.rows.end - 1);
                for base in (0..end).step_by(TILE) {
                    for entry in base..end.min(base + TILE) {
                        decode(s, shape, stored.row(entry, bytes), entry - base, &mut scratch.keys);
                    }
                    for row in self.rows.clone() {
                        let count = visible(row).saturating_sub(base).min(TILE);
                        self.add(s, row, 0..count, &mut scratch);
                    }
                }
            }
            Entries::Selected { stored, entries, counts, keep } => {
                for row in self.rows.clone() {
                    let chosen = &entries[row * keep..][..counts[row] as usize];
                    for tile in chosen.chunks(TILE) {
                        for (j, &entry) in tile.iter().enumerate() {
                            decode(s, shape, stored.row(entry as usize, bytes), j, &mut scratch.keys);
                        }
                        self.add(s, row, 0..tile.len(), &mut scratch);
                    }
                }
            }
        }

        for (i, (sums, soft)) in scratch.acc.chunks_exact(d).zip(&scratch.soft).enumerate() {
            let (row, head) = (self.rows.start + i / heads, self.heads.start + i % heads);
            let at = (row * self.segment.heads + head) * d;
            // SAFETY: tasks have disjoint rows and heads.
            let out = unsafe { self.out.slice(at..at + d) };
            let factor = 1.0 / soft.sum;
            out.iter_mut().zip(sums).for_each(|(out, &v)| *out = v * factor);
            rotate_back(out, &self.angles[row * shape.rope..(row + 1) * shape.rope]);
        }
    }
}

/// All rows of a segment: q and out `[n, H·d]`, angles `[n, r]`.
pub(crate) fn attend(isa: Isa, pool: &Pool, segment: Segment<'_>, q: &[f32], angles: &[f32], out: &mut [f32]) {
    let (heads, d) = (segment.heads, segment.row.width);
    let n = q.len() / (heads * d);
    // Share decoded keys among rows as far as the accumulators stay small; split heads where rows are few.
    let rows = (TASK / (heads * d)).clamp(1, ROWS).min(n);
    let row_tasks = n.div_ceil(rows);
    let head_tasks = if row_tasks >= 2 * pool.threads() { 1 } else { (2 * pool.threads()).min(heads) };
    let heads_each = heads.div_ceil(head_tasks);
    let head_tasks = heads.div_ceil(heads_each);
    let out = Output::new(out);
    pool.each(row_tasks * head_tasks, |task| {
        let (i, j) = (task / head_tasks, task % head_tasks);
        let rows = i * rows..((i + 1) * rows).min(n);
        let heads = j * heads_each..((j + 1) * heads_each).min(heads);
        isa.run(Task { segment, q, rows, heads, angles, out: &out });
    });
}
