//! Attention over window rows and compressed entries, with the sink (V4.md, *Attention*).
//!
//! The order of the sums is a function of a row's position alone. Part 0 of the keys is the window's rows by position, each
//! part after it [`PART`] compressed entries, by number (HCA) or by rank in the selection (CSA). Keys come in tiles of
//! [`TILE`], over which runs an online softmax, for each part its own; inside a tile, key j's weight is summed in lane j mod
//! 16 and values are added by ascending key. Part 0 starts from the sink, and the others are merged into it ascending.
//! Nothing as long as the context is ever held, but by a few rows alone: their parts are shared out to threads and wait.
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

/// Compressed entries of a part.
const PART: usize = 16 * TILE;
/// Bytes of a cache line.
const LINE: usize = 64;
/// How many chosen rows ahead memory is asked for.
const SOON: usize = 8;
/// f32 of accumulators that a task keeps at most, to stay in a core's cache.
const TASK: usize = 32 * 1024;
/// Rows that share decoded keys at most.
const ROWS: usize = 16;
/// f32 of parts' sums that wait at most.
const WAITING: usize = 10 << 18;

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
    what: What<'a>,
}

/// What to do with them.
#[derive(Clone, Copy)]
enum What<'a> {
    /// All parts, into `out` `[n, H·d]`; angles `[n, r]`.
    All { angles: &'a [f32], out: &'a Output<f32> },
    /// One part, into `waiting` `[n, H, parts, d + 16]`: the sums, then the softmax's two numbers.
    One { part: usize, parts: usize, waiting: &'a Output<f32> },
}

/// What a thread keeps from task to task.
#[derive(Default)]
struct Scratch {
    keys: Keys,
    /// As [`round`] leaves it.
    q: Vec<f32>,
    /// Part 0 and what was merged into it: unnormalised sums `[rows · heads, d]`.
    all: Vec<f32>,
    /// `[rows · heads]`.
    all_soft: Vec<Soft>,
    /// Another part.
    part: Vec<f32>,
    part_soft: Vec<Soft>,
    /// Which rows have no sums of the part yet.
    fresh: Vec<bool>,
    heads: Heads,
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
}

impl Segment<'_> {
    /// Compressed entries that a row sees.
    fn visible(&self, row: usize) -> usize {
        match self.entries {
            Entries::None => 0,
            Entries::All { ratio, .. } => (self.start + row + 1) / ratio,
            Entries::Selected { counts, .. } => counts[row] as usize,
        }
    }

    /// Parts that some rows have.
    fn parts(&self, rows: Range<usize>) -> usize {
        1 + rows.map(|row| self.visible(row)).max().unwrap_or(0).div_ceil(PART)
    }
}

impl Task<'_> {
    /// Adds the decoded keys `live` to the part's sums of one row.
    #[inline(always)]
    fn add<S: Simd>(&self, s: S, arithmetic: Arithmetic, row: usize, live: Range<usize>, scratch: &mut Scratch) {
        if live.is_empty() {
            return;
        }
        let (d, heads) = (self.segment.row.width, self.heads.len());
        let first = (row - self.rows.start) * heads;
        let Scratch { keys, q, part, part_soft, fresh, heads: weights, .. } = scratch;
        let wide = q.len() / self.rows.len() / heads;
        let q = &q[first * wide..(first + heads) * wide];
        let (part, soft) = (&mut part[first * d..(first + heads) * d], &mut part_soft[first..first + heads]);
        let fresh = std::mem::take(&mut fresh[row - self.rows.start]);
        weights.add(s, arithmetic, q, keys, live, fresh, soft, part);
    }

    /// The sums of one part, into the scratch's.
    #[inline(always)]
    fn part<S: Simd>(&self, s: S, arithmetic: Arithmetic, part: usize, scratch: &mut Scratch) {
        let Segment { row: shape, span, sink, start, rows, ring, entries, .. } = self.segment;
        let (d, bytes, heads) = (shape.width, shape.bytes(), self.heads.len());
        let paired = arithmetic == Arithmetic::Paired;
        scratch.part.resize(self.rows.len() * heads * d, 0.0);
        scratch.part_soft.clear();
        scratch.part_soft.resize(self.rows.len() * heads, Soft::NOTHING);
        scratch.fresh.clear();
        scratch.fresh.resize(self.rows.len(), true);
        if part == 0 {
            for soft in scratch.part_soft.chunks_exact_mut(heads) {
                soft.iter_mut().zip(&sink[self.heads.clone()]).for_each(|(soft, &top)| *soft = Soft { top, sum: 1.0 });
            }
            // Positions (p − span, p].
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
                        self.add(s, arithmetic, row, live.start - base..live.end - base, scratch);
                    }
                }
            }
            return;
        }
        let first = (part - 1) * PART;
        match entries {
            Entries::None => {}
            Entries::All { stored, .. } => {
                let end = self.segment.visible(self.rows.end - 1).min(first + PART);
                for base in (first..end).step_by(TILE) {
                    let some = base..end.min(base + TILE);
                    for entry in some.clone() {
                        decode(s, shape, stored.row(entry, bytes), scratch.keys.slot(entry - base));
                    }
                    if paired {
                        scratch.keys.pair_up(s, 0..some.len());
                    }
                    for row in self.rows.clone() {
                        let count = self.segment.visible(row).saturating_sub(base).min(TILE);
                        self.add(s, arithmetic, row, 0..count, scratch);
                    }
                }
            }
            Entries::Selected { stored, entries, keep, .. } => {
                for row in self.rows.clone() {
                    let end = self.segment.visible(row);
                    let chosen = &entries[row * keep..][first.min(end)..(first + PART).min(end)];
                    for (i, tile) in chosen.chunks(TILE).enumerate() {
                        for (j, &entry) in tile.iter().enumerate() {
                            // Chosen rows lie anywhere, where no CPU foresees them.
                            if let Some(&later) = chosen.get(i * TILE + j + SOON) {
                                let row = stored.row(later as usize, bytes);
                                row.chunks(LINE).for_each(|line| s.prefetch(line.as_ptr()));
                            }
                            decode(s, shape, stored.row(entry as usize, bytes), scratch.keys.slot(j));
                        }
                        if paired {
                            scratch.keys.pair_up(s, 0..tile.len());
                        }
                        self.add(s, arithmetic, row, 0..tile.len(), scratch);
                    }
                }
            }
        }
    }
}

impl Kernel for Task<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (shape, all_heads, heads) = (self.segment.row, self.segment.heads, self.heads.len());
        let d = shape.width;
        let arithmetic = match self.profile {
            Profile::Exact => Arithmetic::Exact,
            Profile::Native if S::PAIRS && d.is_multiple_of(2 * LANES) => Arithmetic::Paired,
            Profile::Native => Arithmetic::Rounded,
        };
        let mut scratch = SCRATCH.take();
        scratch.keys.reset(d, arithmetic);
        scratch.q.clear();
        for row in self.rows.clone() {
            let q = &self.q[(row * all_heads + self.heads.start) * d..][..heads * d];
            round(s, arithmetic, q, &mut scratch.q);
        }
        match self.what {
            What::One { part, parts, waiting } => {
                self.part(s, arithmetic, part, &mut scratch);
                let each = scratch.part.chunks_exact(d).zip(&scratch.part_soft);
                for (i, (sums, soft)) in each.enumerate() {
                    let (row, head) = (self.rows.start + i / heads, self.heads.start + i % heads);
                    let at = ((row * all_heads + head) * parts + part) * (d + LANES);
                    // SAFETY: tasks have disjoint rows, parts or heads.
                    let record = unsafe { waiting.slice(at..at + d + LANES) };
                    record[..d].copy_from_slice(sums);
                    (record[d], record[d + 1]) = (soft.top, soft.sum);
                }
            }
            What::All { angles, out } => {
                self.part(s, arithmetic, 0, &mut scratch);
                std::mem::swap(&mut scratch.all, &mut scratch.part);
                std::mem::swap(&mut scratch.all_soft, &mut scratch.part_soft);
                for part in 1..self.segment.parts(self.rows.clone()) {
                    self.part(s, arithmetic, part, &mut scratch);
                    let Scratch { all, all_soft, part, part_soft, .. } = &mut scratch;
                    let parts = part.chunks_exact(d).zip(part_soft.iter());
                    for ((all, soft), (more, &later)) in all.chunks_exact_mut(d).zip(all_soft).zip(parts) {
                        soft.merge(s, all, later, more);
                    }
                }
                for (i, (sums, soft)) in scratch.all.chunks_exact(d).zip(&scratch.all_soft).enumerate() {
                    let (row, head) = (self.rows.start + i / heads, self.heads.start + i % heads);
                    let at = (row * all_heads + head) * d;
                    // SAFETY: tasks have disjoint rows and heads.
                    let out = unsafe { out.slice(at..at + d) };
                    finish(sums, *soft, &angles[row * shape.rope..(row + 1) * shape.rope], out);
                }
            }
        }
        SCRATCH.set(scratch);
    }
}

/// Sums to the attention's output, `[d]`.
#[inline(always)]
fn finish(sums: &[f32], soft: Soft, angles: &[f32], out: &mut [f32]) {
    let factor = 1.0 / soft.sum;
    out.iter_mut().zip(sums).for_each(|(out, &v)| *out = v * factor);
    rotate_back(out, angles);
}

/// The parts of a row and head, merged.
struct Merge<'a> {
    /// `[parts, d + 16]`. Part 0 takes the others' sums.
    waiting: &'a mut [f32],
    angles: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Merge<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let d = self.out.len();
        let soft = |part: &[f32]| Soft { top: part[d], sum: part[d + 1] };
        let (first, rest) = self.waiting.split_at_mut(d + LANES);
        let mut all = soft(first);
        rest.chunks_exact(d + LANES).for_each(|part| all.merge(s, &mut first[..d], soft(part), &part[..d]));
        finish(&first[..d], all, self.angles, self.out);
    }
}

/// A stored row to a key.
#[inline(always)]
fn decode<S: Simd>(s: S, shape: RowShape, stored: &[u8], key: &mut [f32]) {
    assert!(stored.len() == shape.bytes() && key.len() == shape.width, "a stored row");
    // SAFETY: by the assertion.
    unsafe { decode_attention(s, stored.as_ptr(), shape, key.as_mut_ptr()) }
}

/// f32 that the parts of `n` rows wait in, where they are shared out: 0 where they are not.
fn waiting(pool: &Pool, heads: usize, d: usize, n: usize, parts: usize) -> usize {
    let size = n * parts * heads * (d + LANES);
    if n <= 2 * pool.threads() && parts > 1 && size <= WAITING { size } else { 0 }
}

/// f32 that [`attend`] wants for a segment's rows.
pub(crate) fn waiting_of(pool: &Pool, segment: &Segment<'_>, n: usize) -> usize {
    waiting(pool, segment.heads, segment.row.width, n, segment.parts(0..n))
}

/// Bytes that [`attend`] wants for up to `n` rows that see up to `entries` compressed entries.
pub(crate) fn scratch_bytes(pool: &Pool, heads: usize, d: usize, n: usize, entries: usize) -> usize {
    let size = n.min(2 * pool.threads()) * (1 + entries.div_ceil(PART)) * heads * (d + LANES);
    size.min(WAITING) * 4
}

/// All rows of a segment: q and out `[n, H·d]`, angles `[n, r]`. `wait` is scratch of [`waiting_of`] f32.
#[allow(clippy::too_many_arguments)]
pub(crate) fn attend(
    isa: Isa,
    pool: &Pool,
    profile: Profile,
    segment: Segment<'_>,
    q: &[f32],
    angles: &[f32],
    wait: &mut [f32],
    out: &mut [f32],
) {
    let (heads, d, r) = (segment.heads, segment.row.width, segment.row.rope);
    let n = q.len() / (heads * d);
    // Share decoded keys among rows as far as the accumulators stay small.
    let rows = (TASK / (heads * d)).clamp(1, ROWS).min(n);
    let row_tasks = n.div_ceil(rows);
    let parts = if wait.is_empty() { 1 } else { segment.parts(0..n) };
    // Where rows are few, share out their parts, and then the heads, which all decode the same keys.
    let (units, busy) = (row_tasks * parts, 2 * pool.threads());
    let heads_each = if units >= busy { heads } else { heads.div_ceil(busy.div_ceil(units)) };
    let head_tasks = heads.div_ceil(heads_each);
    let (out, waits) = (Output::new(out), Output::new(wait));
    pool.each(units * head_tasks, |i| {
        let (unit, j) = (i / head_tasks, i % head_tasks);
        let (part, rows_task) = (unit / row_tasks, unit % row_tasks);
        let rows = rows_task * rows..((rows_task + 1) * rows).min(n);
        let heads = j * heads_each..((j + 1) * heads_each).min(heads);
        let what =
            if parts == 1 { What::All { angles, out: &out } } else { What::One { part, parts, waiting: &waits } };
        isa.run(Task { segment, q, profile, rows, heads, what });
    });
    if parts == 1 {
        return;
    }
    let each = parts * (d + LANES);
    pool.ranges(n * heads, 1, 2, |cells| {
        for cell in cells {
            let row = cell / heads;
            // SAFETY: cells are disjoint.
            let (waiting, out) =
                unsafe { (waits.slice(cell * each..(cell + 1) * each), out.slice(cell * d..(cell + 1) * d)) };
            isa.run(Merge { waiting, angles: &angles[row * r..(row + 1) * r], out });
        }
    });
}
