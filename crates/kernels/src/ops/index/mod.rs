//! The indexer: which compressed entries a position attends to (V4.md, *Indexer*).
//!
//! `score_b = Σ_h w_h · relu(q_h · key_b)`, the products exact in integers. Lane h mod 16 takes its heads ascending.
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

/// Rows of queries, rounded and laid out for [`Simd::dot_index`].
struct Queries {
    groups: usize,
    blocks: usize,
    /// `[n][groups][blocks][8][16 heads][4]`.
    integers: Vec<i8>,
    /// `[n][groups][blocks][16]`: FP4_BIAS · Σ.
    bias: Vec<i32>,
    /// `[n][groups][blocks][16]`.
    scales: Vec<f32>,
    /// `[n][blocks][16]`: wi.
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
        let (groups, blocks) = (width / FP4_BLOCK, heads.div_ceil(LANES));
        let n = q.len() / (heads * width);
        let turn = angles.len() / n;
        let lanes = groups * blocks * LANES;
        let mut all = Queries {
            groups,
            blocks,
            integers: vec![0; n * lanes * FP4_BLOCK],
            bias: vec![0; n * lanes],
            scales: vec![0.0; n * lanes],
            weights: vec![0.0; n * blocks * LANES],
        };
        let scale = (1.0 / (width as f32).sqrt()) * (1.0 / (heads as f32).sqrt());
        let (integers, bias) = (Output::new(&mut all.integers), Output::new(&mut all.bias));
        let (scales, out) = (Output::new(&mut all.scales), Output::new(&mut all.weights));
        pool.ranges(n, 4, 2, |rows| {
            let mut x = vec![0.0; width];
            let mut ints = [0i8; FP4_BLOCK];
            for row in rows {
                // SAFETY: rows are disjoint.
                let (integers, bias, scales, out) = unsafe {
                    (
                        integers.slice(row * lanes * FP4_BLOCK..(row + 1) * lanes * FP4_BLOCK),
                        bias.slice(row * lanes..(row + 1) * lanes),
                        scales.slice(row * lanes..(row + 1) * lanes),
                        out.slice(row * blocks * LANES..(row + 1) * blocks * LANES),
                    )
                };
                for head in 0..heads {
                    out[head] = weights[row * heads + head] * scale;
                    x.copy_from_slice(&q[(row * heads + head) * width..][..width]);
                    rotate(&mut x, &angles[row * turn..(row + 1) * turn]);
                    hadamard(&mut x);
                    for (group, x) in x.chunks_exact(FP4_BLOCK).enumerate() {
                        let cell = (group * blocks + head / LANES) * LANES;
                        let lane = head % LANES;
                        scales[cell + lane] = index_integers(x, &mut ints);
                        bias[cell + lane] = FP4_BIAS * ints.iter().map(|&v| i32::from(v)).sum::<i32>();
                        // Even k first, then odd k, as keys are decoded.
                        for i in 0..FP4_BLOCK {
                            let k = if i < 16 { 2 * i } else { 2 * i - 31 };
                            integers[cell * FP4_BLOCK + (i / 4 * LANES + lane) * 4 + i % 4] = ints[k];
                        }
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

impl Score<'_> {
    /// Decodes the keys of entries `[from, from + count)`: `[TILE][blocks of 128 dims][128]` biased integers and
    /// `[TILE][groups]` scales, halved.
    #[inline(always)]
    fn decode<S: Simd>(&self, s: S, from: usize, count: usize, out: &mut [u8], scales: &mut [f32]) {
        let (row, codes) = (index_row_bytes(self.width), self.width / 2);
        let wide = self.width.next_multiple_of(BLOCK);
        let groups = self.queries.groups;
        for i in 0..count {
            let entry = from + i;
            let page = self.keys.pages[entry / self.keys.per_page];
            let at = self.keys.offset + entry % self.keys.per_page * row;
            let stored = &page[at..at + row];
            for block in 0..wide / BLOCK {
                let from = block * BLOCK / 2;
                let out = &mut out[i * wide + block * BLOCK..][..BLOCK];
                // SAFETY: 64 readable bytes, of the row or of a padded copy, and 128 writable ones.
                unsafe {
                    if codes - from >= BLOCK / 2 {
                        s.store_fp4(out.as_mut_ptr(), s.load_fp4(stored.as_ptr().add(from)));
                    } else {
                        let mut padded = [0; BLOCK / 2];
                        padded[..codes - from].copy_from_slice(&stored[from..codes]);
                        s.store_fp4(out.as_mut_ptr(), s.load_fp4(padded.as_ptr()));
                    }
                }
            }
            for (scale, &e) in scales[i * groups..(i + 1) * groups].iter_mut().zip(&stored[codes..]) {
                *scale = 0.5 * f32::from_bits(u32::from(e) << 23);
            }
        }
    }

    /// One row's score of one decoded key.
    #[inline(always)]
    fn score<S: Simd>(&self, s: S, row: usize, key: &[u8], scales: &[f32]) -> f32 {
        let Queries { groups, blocks, integers, bias, scales: query_scales, weights } = self.queries;
        let mut total = s.splat(0.0);
        for block in 0..*blocks {
            let mut dot = s.splat(0.0);
            for group in 0..*groups {
                let cell = ((row * groups + group) * blocks + block) * LANES;
                let even = group / 4 * BLOCK + group % 4 * 16;
                debug_assert!(even + 80 <= key.len() && (cell + LANES) * FP4_BLOCK <= integers.len());
                // SAFETY: `cell` is one of the queries' cells, `even` one of the key's groups.
                unsafe {
                    let whole = s.dot_index(
                        key.as_ptr().add(even),
                        key.as_ptr().add(even + 64),
                        integers.as_ptr().add(cell * FP4_BLOCK),
                        bias.as_ptr().add(cell),
                    );
                    let scale = s.mul(s.load(query_scales.as_ptr().add(cell)), s.splat(*scales.get_unchecked(group)));
                    dot = s.fma(whole, scale, dot);
                }
            }
            // SAFETY: 16 weights for each block of heads.
            let weight = unsafe { s.load(weights.as_ptr().add((row * blocks + block) * LANES)) };
            total = s.fma(weight, s.max(dot, s.splat(0.0)), total);
        }
        s.sum(total)
    }
}

impl Kernel for Score<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(mut self, s: S) {
        let wide = self.width.next_multiple_of(BLOCK);
        let groups = self.queries.groups;
        let mut keys = vec![0; TILE * wide];
        let mut scales = vec![0.0; TILE * groups];
        let tops = std::mem::take(&mut self.tops);
        let mut from = self.entries.start;
        while from < self.entries.end {
            let count = TILE.min(self.entries.end - from);
            self.decode(s, from, count, &mut keys, &mut scales);
            for (top, row) in tops.iter_mut().zip(self.rows.clone()) {
                for i in 0..count.min((self.visible)(row).saturating_sub(from)) {
                    let score = self.score(s, row, &keys[i * wide..(i + 1) * wide], &scales[i * groups..]);
                    top.push(score, (from + i) as u32);
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
    let lanes = shape.width / FP4_BLOCK * shape.heads.div_ceil(LANES) * LANES;
    let tops = n.next_multiple_of(ROWS) * most_stretches(pool, n) * (2 * shape.keep * 8 + size_of::<Top>());
    n * lanes * (FP4_BLOCK + 8 + 4) + tops
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
