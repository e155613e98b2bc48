//! The indexer: which compressed entries a position attends to (V4.md, *Indexer*).
//!
//! `score_b = Σ_h w_h · relu(q_h · key_b)`, the products exact in integers. Of sixteen sums, sum h mod 16 takes its heads
//! ascending; then they fold, 16 → 8 → 4 → 2 → 1.
//! The best are kept while streaming over the entries, so no row of scores as long as the context ever exists.

mod top;

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::ops::rows::{FP4_BLOCK, hadamard, index_integers, rotate};
use crate::pool::{Output, Pool};
use crate::simd::{FP4_BIAS, Isa, Kernel, LANES, Simd, lane_of_group};
use crate::{IndexShape, index_row_bytes};
use top::Top;

/// Entries whose keys are decoded together.
const TILE: usize = 64;
/// Entries a task scores at least, where one row's entries are shared out.
const STRETCH: usize = 4096;

/// Rows of queries, rounded to doubled FP4 integers.
struct Queries {
    heads: usize,
    groups: usize,
    /// `[n, heads, groups, 32]`: of every eight the even four, then the odd four, as keys are decoded.
    integers: Vec<i8>,
    /// `[n, heads, groups]`: FP4_BIAS · Σ.
    bias: Vec<i32>,
    /// `[n, heads, groups]`, halved.
    scales: Vec<f32>,
    /// `[n, heads]`: wi.
    weights: Vec<f32>,
}

/// Rows that share decoded keys: few heads do little with a key, so more rows have to make up for its decoding.
fn together(heads: usize) -> usize {
    (256 / heads).clamp(16, 64)
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
                        *out = ints[i / 8 * 8 + 2 * (i % 4) + i / 4 % 2];
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
    keys: Keys<'a>,
    rows: Range<usize>,
    /// Entries visible to a row end here.
    visible: &'a (dyn Fn(usize) -> usize + Sync),
    entries: Range<usize>,
    tops: &'a mut [Top],
    /// Each row's largest threshold, where other tasks have parts of the same rows: what one has found spares the others.
    thresholds: &'a [AtomicU64],
}

/// Keys of a tile, for each sixteen entries and each group of dims: `[16 entries][16]` codes as stored, `[8][16 entries][4]`
/// biased integers, and `[16 entries]` scales as f32, halved; as stored, those are by entry.
struct Decoded {
    codes: Vec<u8>,
    keys: Vec<u8>,
    exponents: Vec<u8>,
    scales: Vec<f32>,
}

impl Score<'_> {
    /// Decodes the keys of entries `[from, from + count)`.
    #[inline(always)]
    fn decode<S: Simd>(&self, s: S, from: usize, count: usize, out: &mut Decoded) {
        // The released models' number is worth code of its own.
        match self.queries.groups {
            4 => self.gather(from, count, 4, out),
            groups => self.gather(from, count, groups, out),
        }
        let cells = out.codes.chunks_exact(LANES * FP4_BLOCK / 2).zip(out.keys.chunks_exact_mut(LANES * FP4_BLOCK));
        for (codes, keys) in cells.take(count.div_ceil(LANES) * self.queries.groups) {
            // SAFETY: 256 and 512 bytes.
            unsafe { s.spread_fp4(codes.as_ptr(), keys.as_mut_ptr()) };
        }
    }

    /// The codes and scales of those keys, each to its lane.
    #[inline(always)]
    fn gather(&self, from: usize, count: usize, groups: usize, out: &mut Decoded) {
        const CODES: usize = FP4_BLOCK / 2;
        let row = index_row_bytes(groups * FP4_BLOCK);
        let (mut page, mut at, mut i) = (from / self.keys.per_page, from % self.keys.per_page, 0);
        while i < count {
            // As many as the page has.
            let some = (count - i).min(self.keys.per_page - at);
            let stored = &self.keys.pages[page][self.keys.offset + at * row..][..some * row];
            for stored in stored.chunks_exact(row) {
                let (sixteen, lane) = (i / LANES * LANES * groups, i % LANES);
                let codes = &mut out.codes[sixteen * CODES..][..LANES * groups * CODES];
                for group in 0..groups {
                    // Where spreading finds the lane.
                    let to = (group * LANES + lane_of_group(lane)) * CODES;
                    codes[to..to + CODES].copy_from_slice(&stored[group * CODES..(group + 1) * CODES]);
                }
                out.exponents[sixteen + lane * groups..][..groups].copy_from_slice(&stored[groups * CODES..]);
                i += 1;
            }
            (page, at) = (page + 1, 0);
        }
        let all = out.scales.chunks_exact_mut(LANES * groups).zip(out.exponents.chunks_exact(LANES * groups));
        for (scales, exponents) in all.take(count.div_ceil(LANES)) {
            for (group, scales) in scales.chunks_exact_mut(LANES).enumerate() {
                for (lane, scale) in scales.iter_mut().enumerate() {
                    *scale = 0.5 * f32::from_bits(u32::from(exponents[lane * groups + group]) << 23);
                }
            }
        }
    }

    /// One row's scores of sixteen decoded keys, with N of the sixteen sums: as many as there are heads, or all. A sum that no
    /// head adds to is zero and changes no score.
    #[inline(always)]
    fn score<S: Simd, const N: usize>(&self, s: S, row: usize, keys: &[u8], scales: &[f32]) -> S::F {
        let Queries { heads, groups, bias, .. } = self.queries;
        assert!(keys.len() >= groups * FP4_BLOCK * LANES && scales.len() >= groups * LANES, "a tile");
        assert!((row + 1) * heads * groups <= bias.len(), "a row of queries");
        let mut lanes = [s.splat(0.0); N];
        let mut head = 0;
        // Where registers allow, a key that is loaded meets several heads.
        while S::WIDE && head + 4 <= *heads {
            self.add::<S, N, 4>(s, row, head, keys, scales, &mut lanes);
            head += 4;
        }
        while S::WIDE && head + 2 <= *heads {
            self.add::<S, N, 2>(s, row, head, keys, scales, &mut lanes);
            head += 2;
        }
        while head < *heads {
            self.add::<S, N, 1>(s, row, head, keys, scales, &mut lanes);
            head += 1;
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

    /// Adds what H heads from `head` on give to the sums of one row. `score` has checked the sizes.
    #[inline(always)]
    fn add<S: Simd, const N: usize, const H: usize>(
        &self,
        s: S,
        row: usize,
        head: usize,
        keys: &[u8],
        scales: &[f32],
        lanes: &mut [S::F; N],
    ) {
        let Queries { heads, groups, integers, bias, scales: query_scales, weights } = self.queries;
        let mut dots = [s.splat(0.0); H];
        for group in 0..*groups {
            for (i, dot) in dots.iter_mut().enumerate() {
                let cell = (row * heads + head + i) * groups + group;
                // SAFETY: by the assertions of `score`; integers, bias and scales have every cell.
                unsafe {
                    let whole = s.dot_index(
                        keys.as_ptr().add(group * FP4_BLOCK * LANES),
                        integers.as_ptr().add(cell * FP4_BLOCK),
                        *bias.get_unchecked(cell),
                    );
                    let scale = s.splat(*query_scales.get_unchecked(cell));
                    *dot = s.fma(whole, s.mul(scale, s.load(scales.as_ptr().add(group * LANES))), *dot);
                }
            }
        }
        for (i, dot) in dots.into_iter().enumerate() {
            let weight = s.splat(weights[row * heads + head + i]);
            lanes[(head + i) % N] = s.fma(weight, s.max(dot, s.splat(0.0)), lanes[(head + i) % N]);
        }
    }

    /// Scores all the entries.
    #[inline(always)]
    fn all<S: Simd, const N: usize>(mut self, s: S) {
        let groups = self.queries.groups;
        let cells = TILE * groups;
        let mut tile = Decoded {
            codes: vec![0; cells * FP4_BLOCK / 2],
            keys: vec![0; cells * FP4_BLOCK],
            exponents: vec![0; cells],
            scales: vec![0.0; cells],
        };
        let tops = std::mem::take(&mut self.tops);
        let mut from = self.entries.start;
        while from < self.entries.end {
            let count = TILE.min(self.entries.end - from);
            self.decode(s, from, count, &mut tile);
            for (top, row) in tops.iter_mut().zip(self.rows.clone()) {
                if let Some(threshold) = self.thresholds.get(row) {
                    top.raise(threshold.fetch_max(top.threshold(), Ordering::Relaxed));
                }
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

/// How many parts the entries of `n` rows are scored in, at most.
fn most_stretches(pool: &Pool, heads: usize, n: usize) -> usize {
    if n.div_ceil(together(heads)) >= 2 * pool.threads() { 1 } else { 4 * pool.threads() }
}

/// Bytes that [`select`] takes for itself at most: rounded queries, and twice `keep` candidates for each row and part.
pub(crate) fn scratch_bytes(pool: &Pool, shape: IndexShape, n: usize) -> usize {
    let queries = n * shape.heads * (shape.width + shape.width / FP4_BLOCK * 8 + 4);
    let rows = n.next_multiple_of(together(shape.heads));
    let tops = rows * most_stretches(pool, shape.heads, n) * (2 * shape.keep * 8 + size_of::<Top>());
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
    let together = together(shape.heads);
    let row_tasks = hard.div_ceil(together);
    let stretches =
        if row_tasks >= 2 * pool.threads() { 1 } else { (visible(n - 1) / STRETCH).clamp(1, 4 * pool.threads()) };
    let stretch = visible(n - 1).div_ceil(stretches).next_multiple_of(TILE);
    let mut tops: Vec<Top> = (0..row_tasks * together * stretches).map(|_| Top::new(keep)).collect();
    let all = Output::new(&mut tops);
    let thresholds: Vec<AtomicU64> = (0..if stretches > 1 { n } else { 0 }).map(|_| AtomicU64::new(0)).collect();
    pool.each(row_tasks * stretches, |task| {
        let (rows, part) = (task / stretches, task % stretches);
        let rows = easy + rows * together..(easy + (rows + 1) * together).min(n);
        let end = visible(rows.end - 1).min((part + 1) * stretch);
        // SAFETY: every task has its own.
        let tops = unsafe { all.slice(task * together..(task + 1) * together) };
        let entries = (part * stretch).min(end)..end;
        let thresholds = &thresholds[..];
        isa.run(Score { queries: &queries, keys, rows, visible: &visible, entries, tops, thresholds });
    });
    let all = Output::new(&mut tops);
    pool.ranges(hard, 4, 2, |rows| {
        for row in rows {
            let mut best = Top::new(keep);
            for part in 0..stretches {
                let at = (row / together * stretches + part) * together + row % together;
                // SAFETY: every row has its own.
                best.merge(&unsafe { all.slice(at..at + 1) }[0]);
            }
            put(easy + row, &best.entries());
        }
    });
}
