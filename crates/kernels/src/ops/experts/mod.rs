//! The routed experts (V4.md, *MoE*): each expert's weights are read once for all the rows that go to it.

#[cfg(test)]
mod tests;

use std::cell::Cell;

use crate::math::exp_lanes;
use crate::ops::linear::int8::Quantised;
use crate::ops::linear::{INPUTS, Input, Place, ROWS, is_bf16, is_int8, product, rows_of_one};
use crate::pool::{Output, Pool};
use crate::profile::Profile;
use crate::simd::{Isa, Kernel, LANES, Simd, load_part, store_part};
use crate::{Buffer, Expert, Matrix, Routing};

/// `weight · (g · sigmoid(g)) · u`, g = min(gate, limit), u = clamp(up, ±limit), into `gate`.
struct Swiglu<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
    weight: f32,
    limit: f32,
}

impl Kernel for Swiglu<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        assert!(self.gate.len() == self.up.len(), "swiglu widths");
        let (one, limit, weight) = (s.splat(1.0), s.splat(self.limit), s.splat(self.weight));
        let minus = s.splat(-self.limit);
        for at in (0..self.up.len()).step_by(LANES) {
            let n = self.up.len() - at;
            // SAFETY: `at` is inside both, and no more than their rest is touched.
            unsafe {
                let g = s.min(load_part(s, self.gate.as_ptr().add(at), n), limit);
                let u = s.max(s.min(load_part(s, self.up.as_ptr().add(at), n), limit), minus);
                let silu = s.div(g, s.add(one, exp_lanes(s, s.sub(s.splat(0.0), g))));
                store_part(s, self.gate.as_mut_ptr().add(at), n, s.mul(s.mul(weight, silu), u));
            }
        }
    }
}

/// `out = silu(min(gate, limit)) · clamp(up, ±limit)`.
pub(crate) fn swiglu(isa: Isa, pool: &Pool, gate: &[f32], up: &[f32], limit: f32, out: &mut [f32]) {
    let all = Output::new(out);
    pool.ranges(gate.len(), 1024, 2, |range| {
        // SAFETY: ranges are disjoint.
        let out = unsafe { all.slice(range.clone()) };
        out.copy_from_slice(&gate[range.clone()]);
        isa.run(Swiglu { gate: out, up: &up[range], weight: 1.0, limit });
    });
}

/// f32 of down-projections that wait for their sum in a task at most.
const WAITING: usize = 256 << 10;

/// The rows that go to one expert: positions in a list of (row, slot) pairs sorted by expert.
struct Work {
    expert: usize,
    pairs: std::ops::Range<usize>,
}

/// Rows of an operand as a product takes them.
enum Rows<'a> {
    Float { data: &'a [f32], stride: usize, round: bool },
    Int8(Quantised),
}

impl<'a> Rows<'a> {
    fn new(isa: Isa, pool: &Pool, profile: Profile, x: &'a [f32], w: &Matrix<Buffer>) -> Self {
        if is_int8(profile, w) {
            return Rows::Int8(Quantised::new(isa, pool, x, w.cols));
        }
        Rows::Float { data: x, stride: w.cols, round: is_bf16(profile, w) }
    }

    fn input(&self) -> Input<'_> {
        match self {
            &Rows::Float { data, stride, round } => Input::Float { data, stride, offset: 0, round },
            Rows::Int8(x) => Input::Int8(x),
        }
    }
}

/// One task: a block of a matrix's rows for some pairs of one expert.
struct Task<'a> {
    expert: usize,
    pairs: &'a [usize],
    rows: std::ops::Range<usize>,
}

/// Cuts `rows` matrix rows for every expert's pairs into tasks: of `alone` rows where an expert has one pair.
fn tasks<'a>(work: &[Work], pairs: &'a [usize], rows: std::ops::Range<usize>, alone: usize) -> Vec<Task<'a>> {
    let mut all = Vec::new();
    for w in work {
        let size = if w.pairs.len() == 1 { alone } else { ROWS };
        for pairs in pairs[w.pairs.clone()].chunks(INPUTS) {
            for from in rows.clone().step_by(size) {
                all.push(Task { expert: w.expert, pairs, rows: from..(from + size).min(rows.end) });
            }
        }
    }
    all
}

/// How many of D's columns a task sums: for one row, as many as keep memory going in straight stretches.
fn columns(pool: &Pool, n: usize, slots: usize, width: usize) -> usize {
    let most = if n == 1 { width.div_ceil(2 * pool.threads()).next_multiple_of(8) } else { ROWS };
    (WAITING / (n * slots).max(1) / 8 * 8).clamp(8, most.max(8))
}

/// x `[n, D]`; y `[n, D]` `+= Σ_slot w2(weight · swiglu(w1 x, w3 x))`, the sum over slots first. h `[n · slots, inter]` is
/// scratch.
#[allow(clippy::too_many_arguments)]
pub(crate) fn experts(
    isa: Isa,
    pool: &Pool,
    profile: Profile,
    x: &[f32],
    routing: &Routing,
    experts: &[Expert<Buffer>],
    limit: f32,
    h: &mut [f32],
    y: &mut [f32],
) {
    let (first, slots) = (&experts[0], routing.slots);
    let (width, inter) = (first.w1.cols, first.w1.rows);
    let n = x.len() / width;
    assert!(h.len() == n * slots * inter, "scratch of experts");
    // Pairs (row · slots + slot), by expert, then by row.
    let mut pairs: Vec<usize> = (0..n * slots).collect();
    pairs.sort_by_key(|&pair| routing.experts[pair]);
    let mut work: Vec<Work> = Vec::new();
    for (at, &pair) in pairs.iter().enumerate() {
        let expert = routing.experts[pair] as usize;
        match work.last_mut() {
            Some(last) if last.expert == expert => last.pairs.end = at + 1,
            _ => work.push(Work { expert, pairs: at..at + 1 }),
        }
    }

    // h = weight · swiglu(w1 x, w3 x), [n·slots, inter]
    let out = Output::new(h);
    let inputs = Rows::new(isa, pool, profile, x, &first.w1);
    // Of w1 and w3, each task has as many rows.
    let alone = rows_of_one(pool, work.len() * inter, 2 * first.w1.format.row_bytes(width));
    let alone = inter.div_ceil(inter.div_ceil(alone));
    let up_tasks = tasks(&work, &pairs, 0..inter, alone);
    pool.each(up_tasks.len(), |i| {
        let Task { expert, pairs, rows } = &up_tasks[i];
        let size = rows.len() * pairs.len();
        let mut both = vec![0.0; 2 * size];
        let (gate, up) = both.split_at_mut(size);
        let picks: Vec<u32> = pairs.iter().map(|pair| (pair / slots) as u32).collect();
        let expert = &experts[*expert];
        for (w, out) in [(&expert.w1, &mut *gate), (&expert.w3, &mut *up)] {
            let place = Place { all: &Output::new(out), start: 0, stride: rows.len() };
            product(isa, w, rows.clone(), inputs.input(), &picks, place);
        }
        for ((&pair, gate), up) in pairs.iter().zip(gate.chunks_exact_mut(rows.len())).zip(up.chunks_exact(rows.len()))
        {
            isa.run(Swiglu { gate, up, weight: routing.weights[pair], limit });
            // SAFETY: tasks have disjoint pairs or rows.
            unsafe { out.slice(pair * inter + rows.start..pair * inter + rows.end) }.copy_from_slice(gate);
        }
    });

    // Down: a task has some columns of D and all pairs; every slot's value waits, then the slots are summed in order.
    let hidden = Rows::new(isa, pool, profile, h, &first.w2);
    let wide = columns(pool, n, slots, width);
    // Where a pair's values wait: by expert, as they are made.
    let mut order = vec![0u32; n * slots];
    pairs.iter().enumerate().for_each(|(at, &pair)| order[pair] = at as u32);
    let y = Output::new(y);
    pool.each(width.div_ceil(wide), |i| {
        let columns = i * wide..((i + 1) * wide).min(width);
        let count = columns.len();
        let mut down = DOWN.take();
        down.resize(n * slots * count, 0.0);
        for w in &work {
            for from in w.pairs.clone().step_by(INPUTS) {
                let some = from..(from + INPUTS).min(w.pairs.end);
                let picks: Vec<u32> = pairs[some].iter().map(|&pair| pair as u32).collect();
                let place = Place { all: &Output::new(&mut down), start: from * count, stride: count };
                product(isa, &experts[w.expert].w2, columns.clone(), hidden.input(), &picks, place);
            }
        }
        for row in 0..n {
            // SAFETY: tasks have disjoint columns.
            let y = unsafe { y.slice(row * width + columns.start..row * width + columns.end) };
            let slot = |slot: usize| &down[order[row * slots + slot] as usize * count..][..count];
            sum_slots(y, slots, slot);
        }
        DOWN.set(down);
    });
}

thread_local! {
    /// A task's down-projections.
    static DOWN: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// `y += slot(0) + slot(1) + …`, the slots first.
fn sum_slots<'a>(y: &mut [f32], slots: usize, slot: impl Fn(usize) -> &'a [f32]) {
    for (part, y) in y.chunks_mut(ROWS).enumerate() {
        let at = part * ROWS..part * ROWS + y.len();
        let mut sums = [0.0; ROWS];
        let sums = &mut sums[..y.len()];
        sums.copy_from_slice(&slot(0)[at.clone()]);
        for i in 1..slots {
            sums.iter_mut().zip(&slot(i)[at.clone()]).for_each(|(sum, v)| *sum += v);
        }
        y.iter_mut().zip(sums).for_each(|(y, sum)| *y += *sum);
    }
}

/// Bytes that [`experts`] takes for itself at most, h not counted.
pub(crate) fn scratch_bytes(pool: &Pool, n: usize, slots: usize, width: usize, inter: usize) -> usize {
    let pairs = n * slots;
    let down = pool.threads() * pairs * columns(pool, n, slots, width).min(width) * 4;
    down + Quantised::bytes(n, width) + Quantised::bytes(pairs, inter) + pairs * 16
}
