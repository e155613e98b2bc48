//! The indexer: which compressed entries a position attends to (V4.md, *Indexer*).
//!
//! `score_b = Σ_h w_h · relu(q_h · key_b)`, the products exact in integers. Of sixteen sums, sum h mod 16 takes its heads
//! ascending; then they fold, 16 → 8 → 4 → 2 → 1.
//! The best are kept while streaming over the entries, so no row of scores as long as the context ever exists.

mod top;

#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::ops::rows::{FP4_BLOCK, hadamard, index_integers, rotate};
use crate::pool::{Output, Pool};
use crate::simd::{FP4_BIAS, Isa, Kernel, LANES, Simd};
use crate::{IndexShape, index_row_bytes};
use top::Top;

/// Dims that are decoded together.
const BLOCK: usize = 128;
/// Entries whose keys are decoded together.
const TILE: usize = 64;
/// Rows that share decoded keys.
const ROWS: usize = 16;
/// Entries a task scores at least, where one row's entries are shared out.
const STRETCH: usize = 4096;

/// Rows of queries, rounded to doubled FP4 integers.
struct Queries {
    heads: usize,
    groups: usize,
    /// `[n, heads, groups, 32]`: 16 of even k, then 16 of odd k, as keys are decoded.
    integers: Vec<i8>,
    /// `[n, heads, groups]`: FP4_BIAS · Σ.
    bias: Vec<i32>,
    /// `[n, heads, groups]`, halved.
    scales: Vec<f32>,
    /// `[n, heads]`: wi.
    weights: Vec<f32>,
}

/// Where the keys are: entry b is `pages[b / per_page]` from `offset + (b mod per_page) · row` on.
#[derive(Clone, Copy)]
pub(crate) struct Keys<'a> {
    pub pages: &'a [&'a [u8]],
    pub offset: usize,
    pub per_page: usize,
}

impl Queries {
    fn new(pool: &Pool, shape: IndexShape, q: &[f32], weights: &[f32], angles: &[f32]) -> Self {
        let IndexShape { heads, width, .. } = shape;
        let groups = width / FP4_BLOCK;
        let n = q.len() / (heads * width);
        let turn = angles.len() / n;
        let mut all = Queries {
            heads,
            groups,
            integers: vec![0; n * heads * width],
            bias: vec![0; n * heads * groups],
            scales: vec![0.0; n * heads * groups],
            weights: vec![0.0; n * heads],
        };
        let scale = (1.0 / (width as f32).sqrt()) * (1.0 / (heads as f32).sqrt());
        all.weights.iter_mut().zip(weights).for_each(|(out, w)| *out = w * scale);
        let (integers, bias) = (Output::new(&mut all.integers), Output::new(&mut all.bias));
        let scales = Output::new(&mut all.scales);
        pool.ranges(n * heads, 16, 2, |cells| {
            let mut x = vec![0.0; width];
            let mut ints = [0i8; FP4_BLOCK];
            for cell in cells {
                x.copy_from_slice(&q[cell * width..(cell + 1) * width]);
                rotate(&mut x, &angles[cell / heads * turn..(cell / heads + 1) * turn]);
                hadamard(&mut x);
                // SAFETY: cells are disjoint.
                let (integers, bias, scales) = unsafe {
                    (
                        integers.slice(cell * width..(cell + 1) * width),
                        bias.slice(cell * groups..(cell + 1) * groups),
                        scales.slice(cell * groups..(cell + 1) * groups),
                    )
                };
                for (group, x) in x.chunks_exact(FP4_BLOCK).enumerate() {
                    scales[group] = index_integers(x, &mut ints);
                    bias[group] = FP4_BIAS * ints.iter().map(|&v| i32::from(v)).sum::<i32>();
                    for (i, out) in integers[group * FP4_BLOCK..(group + 1) * FP4_BLOCK].iter_mut().enumerate() {
                        *out = ints[if i < 16 { 2 * i } else { 2 * i - 31 }];
                    }
                }
            }
        });
        all
    }
}

/// Scores of some rows against some entries, into each row's best.
struct Score<'a> {
    queries: &'a Queries,
    width: usize,
    keys: Keys<'a>,
    rows: Range<usize>,
    /// Entries visible to a row end here.
    visible: &'a (dyn Fn(usize) -> usize + Sync),
    entries: Range<usize>,
    tops: &'a mut [Top],
}

/// Keys of a tile: `[TILE / 16][groups][8][16 entries][4]` biased integers, and `[TILE / 16][groups][16]` scales, halved.
struct Decoded {
    keys: Vec<u8>,
    scales: Vec<f32>,
}

impl Score<'_> {
    /// Decodes the keys of entries `[from, from + count)`.
    #[inline(always)]
    fn decode<S: Simd>(&self, s: S, from: usize, count: usize, out: &mut Decoded) {
        let (row, codes) = (index_row_bytes(self.width), self.width / 2);
        let groups = self.queries.groups;
        let mut plain = [0u8; BLOCK];
        for i in 0..count {
            let entry = from + i;
            let page = self.keys.pages[entry / self.keys.per_page];
            let at = self.keys.offset + entry % self.keys.per_page * row;
            let stored = &page[at..at + row];
            let sixteen = i / LANES * groups;
            for first in (0..groups).step_by(BLOCK / FP4_BLOCK) {
                let from = first * FP4_BLOCK / 2;
                // SAFETY: 64 readable bytes, of the row or of a padded copy, and 128 writable ones.
                unsafe {
                    if codes - from >= BLOCK / 2 {
                        s.store_fp4(plain.as_mut_ptr(), s.load_fp4(stored.as_ptr().add(from)));
                    } else {
                        let mut padded = [0; BLOCK / 2];
                        padded[..codes - from].copy_from_slice(&stored[from..codes]);
                        s.store_fp4(plain.as_mut_ptr(), s.load_fp4(padded.as_ptr()));
                    }
                }
                // 64 of even k, then 64 of odd k; a group has 16 of either.
                for group in first..groups.min(first + BLOCK / FP4_BLOCK) {
                    for step in 0..8 {
                        let at = (group - first) * 16 + step / 4 * 64 + step % 4 * 4;
                        let to = (((sixteen + group) * 8 + step) * LANES + i % LANES) * 4;
                        out.keys[to..to + 4].copy_from_slice(&plain[at..at + 4]);
                    }
                }
            }
            for (group, &e) in stored[codes..].iter().enumerate() {
                out.scales[(sixteen + group) * LANES + i % LANES] = 0.5 * f32::from_bits(u32::from(e) << 23);
            }
        }
    }

    /// One row's scores of sixteen decoded keys, with N of the sixteen sums: as many as there are heads, or all. A sum that no
    /// head adds to is zero and changes no score.
    #[inline(always)]
    fn score<S: Simd, const N: usize>(&self, s: S, row: usize, keys: &[u8], scales: &[f32]) -> S::F {
        let Queries { heads, groups, integers, bias, scales: query_scales, weights } = self.queries;
        assert!(keys.len() >= groups * FP4_BLOCK * LANES && scales.len() >= groups * LANES, "a tile");
        assert!((row + 1) * heads * groups <= bias.len(), "a row of queries");
        let mut lanes = [s.splat(0.0); N];
        for head in 0..*heads {
            let mut dot = s.splat(0.0);
            for group in 0..*groups {
                let cell = (row * heads + head) * groups + group;
                // SAFETY: by the assertions; integers, bias and scales have every cell.
                unsafe {
                    let whole = s.dot_index(
                        keys.as_ptr().add(group * FP4_BLOCK * LANES),
                        integers.as_ptr().add(cell * FP4_BLOCK),
                        *bias.get_unchecked(cell),
                    );
                    let scale = s.splat(*query_scales.get_unchecked(cell));
                    dot = s.fma(whole, s.mul(scale, s.load(scales.as_ptr().add(group * LANES))), dot);
                }
            }
            let weight = s.splat(weights[row * heads + head]);
            lanes[head % N] = s.fma(weight, s.max(dot, s.splat(0.0)), lanes[head % N]);
        }
        let mut half = N;
        while half > 1 {
            half /= 2;
            for i in 0..half {
                lanes[i] = s.add(lanes[i], lanes[i + half]);
            }
        }
        lanes[0]
    }
}

impl Kernel for Score<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match self.queries.heads {
            ..=2 => self.all::<S, 2>(s),
            3..=8 => self.all::<S, 8>(s),
            _ => self.all::<S, LANES>(s),
        }
    }
}

impl Score<'_> {
    #[inline(always)]
    fn all<S: Simd, const N: usize>(mut self, s: S) {
        let groups = self.queries.groups;
        let mut tile = Decoded { keys: vec![0; TILE * groups * FP4_BLOCK], scales: vec![0.0; TILE * groups] };
        let tops = std::mem::take(&mut self.tops);
        let mut from = self.entries.start;
        while from < self.entries.end {
            let count = TILE.min(self.entries.end - from);
            self.decode(s, from, count, &mut tile);
            for (top, row) in tops.iter_mut().zip(self.rows.clone()) {
                let live = count.min((self.visible)(row).saturating_sub(from));
                for first in (0..live).step_by(LANES) {
                    let keys = &tile.keys[first * groups * FP4_BLOCK..];
                    let scores = self.score::<S, N>(s, row, keys, &tile.scales[first * groups..]);
                    let mut good = s.ge(scores, s.splat(top.least()));
                    if live - first < LANES {
                        good &= (1 << (live - first)) - 1;
                    }
                    if good != 0 {
                        let mut all = [0.0; LANES];
                        // SAFETY: room for sixteen.
                        unsafe { s.store(all.as_mut_ptr(), scores) };
                        while good != 0 {
                            let i = good.trailing_zeros() as usize;
                            top.push(all[i], (from + first + i) as u32);
                            good &= good - 1;
                        }
                    }
                }
            }
            from += count;
        }
    }
}

/// How many parts the entries of `n` rows are scored in, at most.
fn most_stretches(pool: &Pool, n: usize) -> usize {
    if n.div_ceil(ROWS) >= 2 * pool.threads() { 1 } else { 4 * pool.threads() }
}

/// Bytes that [`select`] takes for itself at most: rounded queries, and twice `keep` candidates for each row and part.
pub(crate) fn scratch_bytes(pool: &Pool, shape: IndexShape, n: usize) -> usize {
    let queries = n * shape.heads * (shape.width + shape.width / FP4_BLOCK * 8 + 4);
    let tops = n.next_multiple_of(ROWS) * most_stretches(pool, n) * (2 * shape.keep * 8 + size_of::<Top>());
    queries + tops
}

/// For each row of q `[n, Hi·di]`, at positions from `start` on, the entries to attend to.
#[allow(clippy::too_many_arguments)]
pub(crate) fn select(
    isa: Isa,
    pool: &Pool,
    shape: IndexShape,
    q: &[f32],
    weights: &[f32],
    angles: &[f32],
    start: usize,
    keys: Keys<'_>,
    entries: &mut [u32],
    counts: &mut [u32],
) {
    let n = counts.len();
    let keep = shape.keep;
    // Ratio 4: entry b is visible to position p when (b+1)·4 ≤ p+1.
    let visible = |row: usize| (start + row + 1) / 4;
    let (entries, counts) = (Output::new(entries), Output::new(counts));
    let put = |row: usize, chosen: &[u32]| {
        // SAFETY: every row is put once.
        let (entries, counts) = unsafe { (entries.slice(row * keep..(row + 1) * keep), counts.slice(row..row + 1)) };
        entries[..chosen.len()].copy_from_slice(chosen);
        counts[0] = chosen.len() as u32;
    };
    // Where all fit, nothing needs a score.
    let easy = (0..n).take_while(|&row| visible(row) <= keep).count();
    let everything: Vec<u32> = (0..keep as u32).collect();
    (0..easy).for_each(|row| put(row, &everything[..visible(row)]));
    if easy == n {
        return;
    }
    let queries = Queries::new(pool, shape, q, weights, angles);
    let hard = n - easy;
    let row_tasks = hard.div_ceil(ROWS);
    let stretches =
        if row_tasks >= 2 * pool.threads() { 1 } else { (visible(n - 1) / STRETCH).clamp(1, 4 * pool.threads()) };
    let stretch = visible(n - 1).div_ceil(stretches).next_multiple_of(TILE);
    let mut tops: Vec<Top> = (0..row_tasks * ROWS * stretches).map(|_| Top::new(keep)).collect();
    let all = Output::new(&mut tops);
    pool.each(row_tasks * stretches, |task| {
        let (rows, part) = (task / stretches, task % stretches);
        let rows = easy + rows * ROWS..(easy + (rows + 1) * ROWS).min(n);
        let end = visible(rows.end - 1).min((part + 1) * stretch);
        // SAFETY: every task has its own.
        let tops = unsafe { all.slice(task * ROWS..(task + 1) * ROWS) };
        let entries = (part * stretch).min(end)..end;
        isa.run(Score { queries: &queries, width: shape.width, keys, rows, visible: &visible, entries, tops });
    });
    let all = Output::new(&mut tops);
    pool.ranges(hard, 4, 2, |rows| {
        for row in rows {
            let mut best = Top::new(keep);
            for part in 0..stretches {
                let at = (row / ROWS * stretches + part) * ROWS + row % ROWS;
                // SAFETY: every row has its own.
                best.merge(&unsafe { all.slice(at..at + 1) }[0]);
            }
            put(easy + row, &best.entries());
        }
    });
}
