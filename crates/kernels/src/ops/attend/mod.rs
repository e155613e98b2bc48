//! Attention over window rows and compressed entries, with the sink (V4.md, *Attention*).
//!
//! The order of the sums is a function of a row's position alone. Keys come in tiles of [`TILE`]: window rows by
//! position, then compressed entries by number (HCA) or by rank in the selection (CSA). Over the tiles runs an online
//! softmax that starts from the sink; inside a tile, key j's weight is summed in lane j mod 16 and values are added
//! by ascending key. Nothing as long as the context is ever held.
//!
//! In the native profile queries and weights are rounded to bfloat16, as keys are: see [`tile::Arithmetic`].

mod tile;

#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::ops::Range;

use crate::RowShape;
use crate::ops::rows::{decode_attention, rotate_back};
use crate::pool::{Output, Pool};
use crate::profile::Profile;
use crate::simd::{Isa, Kernel, LANES, Simd};
use tile::{Arithmetic, Heads, Keys, Soft, TILE, round};

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
    profile: Profile,
    rows: Range<usize>,
    heads: Range<usize>,
    /// `[n, r]`.
    angles: &'a [f32],
    out: &'a Output<f32>,
}

/// What a thread keeps from task to task.
#[derive(Default)]
struct Scratch {
    keys: Keys,
    /// As [`round`] leaves it.
    q: Vec<f32>,
    /// Unnormalised sums `[rows · heads, d]`.
    acc: Vec<f32>,
    /// `[rows · heads]`.
    soft: Vec<Soft>,
    heads: Heads,
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
}

impl Task<'_> {
    /// Adds the decoded keys `live` to the sums of one row.
    #[inline(always)]
    fn add<S: Simd>(&self, s: S, arithmetic: Arithmetic, row: usize, live: Range<usize>, scratch: &mut Scratch) {
        if live.is_empty() {
            return;
        }
        let (d, heads) = (self.segment.row.width, self.heads.len());
        let first = (row - self.rows.start) * heads;
        let Scratch { keys, q, acc, soft, heads: weights } = scratch;
        let wide = q.len() / self.rows.len() / heads;
        let q = &q[first * wide..(first + heads) * wide];
        let (acc, soft) = (&mut acc[first * d..(first + heads) * d], &mut soft[first..first + heads]);
        weights.add(s, arithmetic, q, keys, live, soft, acc);
    }
}

impl Kernel for Task<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Segment { row: shape, span, sink, start, rows, ring, entries, .. } = self.segment;
        let (d, bytes, heads) = (shape.width, shape.bytes(), self.heads.len());
        let arithmetic = match self.profile {
            Profile::Exact => Arithmetic::Exact,
            Profile::Native if S::PAIRS && d.is_multiple_of(2 * LANES) => Arithmetic::Paired,
            Profile::Native => Arithmetic::Rounded,
        };
        let paired = arithmetic == Arithmetic::Paired;
        let mut scratch = SCRATCH.take();
        scratch.keys.reset(d, arithmetic);
        scratch.q.clear();
        for row in self.rows.clone() {
            let q = &self.q[(row * self.segment.heads + self.heads.start) * d..][..heads * d];
            round(s, arithmetic, q, &mut scratch.q);
        }
        scratch.acc.clear();
        scratch.acc.resize(self.rows.len() * heads * d, 0.0);
        scratch.soft.clear();
        for _ in self.rows.clone() {
            scratch.soft.extend(sink[self.heads.clone()].iter().map(|&top| Soft { top, sum: 1.0 }));
        }

        // The window: positions (p − span, p].
        let position = |row: usize| start + row;
        let oldest = |row: usize| (position(row) + 1).saturating_sub(span);
        let (from, end) = (oldest(self.rows.start), position(self.rows.end - 1) + 1);
        for tile in from / TILE..end.div_ceil(TILE) {
            let base = tile * TILE;
            let needed = base.max(from)..(base + TILE).min(end);
            for p in needed.clone() {
                let (stored, at) = if p < start { (ring, p % span * bytes) } else { (rows, (p - start) * bytes) };
                decode(s, shape, &stored[at..at + bytes], scratch.keys.slot(p - base));
            }
            if paired {
                scratch.keys.pair_up(s, needed.start - base..needed.end - base);
            }
            for row in self.rows.clone() {
                let live = needed.start.max(oldest(row))..needed.end.min(position(row) + 1);
                if !live.is_empty() {
                    self.add(s, arithmetic, row, live.start - base..live.end - base, &mut scratch);
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
                        decode(s, shape, stored.row(entry, bytes), scratch.keys.slot(entry - base));
                    }
                    if paired {
                        scratch.keys.pair_up(s, 0..TILE.min(end - base));
                    }
                    for row in self.rows.clone() {
                        let count = visible(row).saturating_sub(base).min(TILE);
                        self.add(s, arithmetic, row, 0..count, &mut scratch);
                    }
                }
            }
            Entries::Selected { stored, entries, counts, keep } => {
                for row in self.rows.clone() {
                    let chosen = &entries[row * keep..][..counts[row] as usize];
                    for tile in chosen.chunks(TILE) {
                        for (j, &entry) in tile.iter().enumerate() {
                            decode(s, shape, stored.row(entry as usize, bytes), scratch.keys.slot(j));
                        }
                        if paired {
                            scratch.keys.pair_up(s, 0..tile.len());
                        }
                        self.add(s, arithmetic, row, 0..tile.len(), &mut scratch);
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
        SCRATCH.set(scratch);
    }
}

/// A stored row to a key.
#[inline(always)]
fn decode<S: Simd>(s: S, shape: RowShape, stored: &[u8], key: &mut [f32]) {
    assert!(stored.len() == shape.bytes() && key.len() == shape.width, "a stored row");
    // SAFETY: by the assertion.
    unsafe { decode_attention(s, stored.as_ptr(), shape, key.as_mut_ptr()) }
}

/// All rows of a segment: q and out `[n, H·d]`, angles `[n, r]`.
pub(crate) fn attend(
    isa: Isa,
    pool: &Pool,
    profile: Profile,
    segment: Segment<'_>,
    q: &[f32],
    angles: &[f32],
    out: &mut [f32],
) {
    let (heads, d) = (segment.heads, segment.row.width);
    let n = q.len() / (heads * d);
    // Share decoded keys among rows as far as the accumulators stay small; split heads where rows are few.
    let rows = (TASK / (heads * d)).clamp(1, ROWS).min(n);
    let row_tasks = n.div_ceil(rows);
    let head_tasks = if row_tasks >= 2 * pool.threads() { 1 } else { pool.threads().min(heads) };
    let heads_each = heads.div_ceil(head_tasks);
    let head_tasks = heads.div_ceil(heads_each);
    let out = Output::new(out);
    pool.each(row_tasks * head_tasks, |task| {
        let (i, j) = (task / head_tasks, task % head_tasks);
        let rows = i * rows..((i + 1) * rows).min(n);
        let heads = j * heads_each..((j + 1) * heads_each).min(heads);
        isa.run(Task { segment, q, profile, rows, heads, angles, out: &out });
    });
}
