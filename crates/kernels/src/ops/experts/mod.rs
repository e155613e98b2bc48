//! The routed experts (V4.md, *MoE*): each expert's weights are read once for all the rows that go to it.

#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::ops::Range;

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

/// Pairs (row · slots + slot), by expert, then by row: what a pass does, expert after expert.
pub(crate) struct Sorted {
    pairs: Vec<usize>,
    /// Where each pair stands in that order.
    order: Vec<u32>,
    /// Which stretch of it each expert has that has any, by expert.
    work: Vec<Work>,
}

/// The pairs that go to one expert: positions in the order.
#[derive(Clone)]
struct Work {
    expert: usize,
    pairs: Range<usize>,
}

impl Sorted {
    pub(crate) fn new(routing: &Routing) -> Self {
        let mut pairs: Vec<usize> = (0..routing.experts.len()).collect();
        pairs.sort_by_key(|&pair| routing.experts[pair]);
        let mut work: Vec<Work> = Vec::new();
        for (at, &pair) in pairs.iter().enumerate() {
            let expert = routing.experts[pair] as usize;
            match work.last_mut() {
                Some(last) if last.expert == expert => last.pairs.end = at + 1,
                _ => work.push(Work { expert, pairs: at..at + 1 }),
            }
        }
        let mut order = vec![0u32; pairs.len()];
        pairs.iter().enumerate().for_each(|(at, &pair)| order[pair] = at as u32);
        Sorted { pairs, order, work }
    }

    /// How many pairs go to an expert.
    pub(crate) fn pairs_of(&self, expert: u32) -> usize {
        self.of(expert).map_or(0, |work| work.pairs.len())
    }

    fn of(&self, expert: u32) -> Option<&Work> {
        let at = self.work.binary_search_by_key(&(expert as usize), |work| work.expert).ok()?;
        Some(&self.work[at])
    }
}

/// Rows of an operand as a product takes them.
enum Rows<'a> {
    Float { data: &'a [f32], stride: usize, round: bool },
    Int8(Quantised),
    Rounded(&'a Quantised),
}

impl<'a> Rows<'a> {
    fn new(on: On<'_>, x: &'a [f32], w: &Matrix<Buffer>) -> Self {
        if is_int8(on.profile, w) {
            return Rows::Int8(Quantised::new(on.isa, on.pool, x, w.cols));
        }
        Rows::Float { data: x, stride: w.cols, round: is_bf16(on.profile, w) }
    }

    fn input(&self) -> Input<'_> {
        match self {
            &Rows::Float { data, stride, round } => Input::Float { data, stride, offset: 0, round },
            Rows::Int8(x) => Input::Int8(x),
            &Rows::Rounded(x) => Input::Int8(x),
        }
    }
}

/// One task: a block of a matrix's rows for some pairs of one expert.
struct Task {
    /// Which of the work it belongs to.
    work: usize,
    /// Positions of the pairs.
    pairs: Range<usize>,
    rows: Range<usize>,
}

/// Cuts `rows` matrix rows for every expert's pairs into tasks: of `alone` rows where an expert has one pair.
fn tasks(work: &[Work], rows: Range<usize>, alone: usize) -> Vec<Task> {
    let mut all = Vec::new();
    for (i, w) in work.iter().enumerate() {
        let size = if w.pairs.len() == 1 { alone } else { ROWS };
        for from in w.pairs.clone().step_by(INPUTS) {
            let pairs = from..(from + INPUTS).min(w.pairs.end);
            for from in rows.clone().step_by(size) {
                all.push(Task { work: i, pairs: pairs.clone(), rows: from..(from + size).min(rows.end) });
            }
        }
    }
    all
}

/// Rows of a task of one pair, of `rows` in each of `count` experts.
fn alone(pool: &Pool, count: usize, rows: usize, row_bytes: usize) -> usize {
    let alone = rows_of_one(pool, count * rows, row_bytes);
    rows.div_ceil(rows.div_ceil(alone))
}

/// How many of D's columns a task sums: for one row, as many as keep memory going in straight stretches.
fn columns(pool: &Pool, n: usize, slots: usize, width: usize) -> usize {
    let most = if n == 1 { width.div_ceil(2 * pool.threads()).next_multiple_of(8) } else { ROWS };
    (WAITING / (n * slots).max(1) / 8 * 8).clamp(8, most.max(8))
}

/// What products of experts need of the machine and the recipe.
#[derive(Clone, Copy)]
pub(crate) struct On<'a> {
    pub isa: Isa,
    pub pool: &'a Pool,
    pub profile: Profile,
    /// `swiglu_limit`.
    pub limit: f32,
}

/// `h = weight · swiglu(w1 x, w3 x)` for the pairs of `work`, whose positions follow one another from `first` on: h
/// `[pairs, inter]`.
fn up<'a>(
    on: On<'_>,
    inputs: &Rows<'_>,
    routing: &Routing,
    sorted: &Sorted,
    work: &[Work],
    expert: impl Fn(usize) -> &'a Expert<Buffer> + Sync,
    h: &mut [f32],
) {
    let (Some(first), slots) = (work.first(), routing.slots) else { return };
    let (start, w1) = (first.pairs.start, &expert(0).w1);
    let inter = w1.rows;
    let out = Output::new(h);
    // Of w1 and w3, each task has as many rows.
    let alone = alone(on.pool, work.len(), inter, 2 * w1.format.row_bytes(w1.cols));
    let tasks = tasks(work, 0..inter, alone);
    on.pool.each(tasks.len(), |i| {
        let Task { work, pairs, rows } = &tasks[i];
        let all = &sorted.pairs[pairs.clone()];
        let size = rows.len() * pairs.len();
        let mut both = vec![0.0; 2 * size];
        let (gate, up) = both.split_at_mut(size);
        let picks: Vec<u32> = all.iter().map(|pair| (pair / slots) as u32).collect();
        let expert = expert(*work);
        for (w, out) in [(&expert.w1, &mut *gate), (&expert.w3, &mut *up)] {
            let place = Place { all: &Output::new(out), start: 0, stride: rows.len() };
            product(on.isa, w, rows.clone(), inputs.input(), &picks, place);
        }
        for (j, (gate, up)) in gate.chunks_exact_mut(rows.len()).zip(up.chunks_exact(rows.len())).enumerate() {
            on.isa.run(Swiglu { gate, up, weight: routing.weights[all[j]], limit: on.limit });
            let at = (pairs.start + j - start) * inter;
            // SAFETY: tasks have disjoint pairs or rows.
            unsafe { out.slice(at + rows.start..at + rows.end) }.copy_from_slice(gate);
        }
    });
}

/// x `[n, D]`; y `[n, D]` `+= Σ_slot w2(weight · swiglu(w1 x, w3 x))`, the sum over slots first. h `[n · slots, inter]` is
/// scratch.
pub(crate) fn experts(
    on: On<'_>,
    x: &[f32],
    routing: &Routing,
    experts: &[Expert<Buffer>],
    h: &mut [f32],
    y: &mut [f32],
) {
    let (first, slots) = (&experts[0], routing.slots);
    let (width, inter) = (first.w1.cols, first.w1.rows);
    let n = x.len() / width;
    assert!(h.len() == n * slots * inter, "scratch of experts");
    let sorted = Sorted::new(routing);
    let inputs = Rows::new(on, x, &first.w1);
    up(on, &inputs, routing, &sorted, &sorted.work, |i| &experts[sorted.work[i].expert], h);

    // Down: a task has some columns of D and all pairs; every slot's value waits, then the slots are summed in order.
    let hidden = Rows::new(on, h, &first.w2);
    let wide = columns(on.pool, n, slots, width);
    let y = Output::new(y);
    on.pool.each(width.div_ceil(wide), |i| {
        let columns = i * wide..((i + 1) * wide).min(width);
        let count = columns.len();
        let mut down = DOWN.take();
        down.resize(n * slots * count, 0.0);
        for w in &sorted.work {
            for from in w.pairs.clone().step_by(INPUTS) {
                let picks: Vec<u32> = (from as u32..(from + INPUTS).min(w.pairs.end) as u32).collect();
                let place = Place { all: &Output::new(&mut down), start: from * count, stride: count };
                product(on.isa, &experts[w.expert].w2, columns.clone(), hidden.input(), &picks, place);
            }
        }
        for row in 0..n {
            // SAFETY: tasks have disjoint columns.
            let y = unsafe { y.slice(row * width + columns.start..row * width + columns.end) };
            sum_slots(y, slots, |slot| &down[sorted.order[row * slots + slot] as usize * count..][..count]);
        }
        DOWN.set(down);
    });
}

/// [`experts`] for some of the experts only: what their pairs come to waits in `waiting` `[n · slots, D]`, by position.
/// `rounded` is x where the profile rounds it; h `[pairs of these experts, inter]` is scratch, as long as the positions of
/// these experts follow one another.
pub(crate) fn some(
    on: On<'_>,
    x: &[f32],
    rounded: Option<&Quantised>,
    routing: &Routing,
    sorted: &Sorted,
    some: &[(u32, &Expert<Buffer>)],
    h: &mut [f32],
    waiting: &mut [f32],
) {
    let chosen: Vec<(&Work, &Expert<Buffer>)> =
        some.iter().filter_map(|&(expert, weights)| Some((sorted.of(expert)?, weights))).collect();
    let Some(&(_, first)) = chosen.first() else { return };
    let (width, inter) = (first.w1.cols, first.w1.rows);
    let inputs = match rounded {
        Some(rounded) => Rows::Rounded(rounded),
        None => Rows::new(on, x, &first.w1),
    };
    // As if only these pairs were there: their positions then follow one another.
    let (mut own, mut at) = (Sorted { pairs: Vec::new(), order: Vec::new(), work: Vec::new() }, Vec::new());
    for (work, _) in &chosen {
        let from = own.pairs.len();
        own.pairs.extend(&sorted.pairs[work.pairs.clone()]);
        own.work.push(Work { expert: work.expert, pairs: from..own.pairs.len() });
        at.push(work.pairs.start);
    }
    let h = &mut h[..own.pairs.len() * inter];
    up(on, &inputs, routing, &own, &own.work, |i| chosen[i].1, h);
    let hidden = Rows::new(on, h, &first.w2);
    let out = Output::new(waiting);
    let alone = alone(on.pool, own.work.len(), width, first.w2.format.row_bytes(inter));
    let tasks = tasks(&own.work, 0..width, alone);
    on.pool.each(tasks.len(), |i| {
        let Task { work, pairs, rows } = &tasks[i];
        let picks: Vec<u32> = (pairs.start as u32..pairs.end as u32).collect();
        let position = at[*work] + pairs.start - own.work[*work].pairs.start;
        // Tasks have disjoint pairs or rows.
        let place = Place { all: &out, start: position * width + rows.start, stride: width };
        product(on.isa, &chosen[*work].1.w2, rows.clone(), hidden.input(), &picks, place);
    });
}

/// What waits, summed over slots in their order: y `[n, D]` `+=`.
pub(crate) fn sum(pool: &Pool, sorted: &Sorted, waiting: &[f32], slots: usize, width: usize, y: &mut [f32]) {
    let n = y.len() / width;
    let y = Output::new(y);
    pool.ranges(n, 4, 2, |rows| {
        for row in rows {
            // SAFETY: rows are disjoint.
            let y = unsafe { y.slice(row * width..(row + 1) * width) };
            sum_slots(y, slots, |slot| &waiting[sorted.order[row * slots + slot] as usize * width..][..width]);
        }
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

/// Bytes that [`some`] takes for `pairs` pairs at once, and what it and [`sum`] keep of `n` rows between.
pub(crate) fn some_bytes(n: usize, slots: usize, width: usize, inter: usize, pairs: usize) -> usize {
    let kept = n * slots * (width * 4 + 12) + Quantised::bytes(n, width);
    kept + pairs * (inter * 4 + 8) + Quantised::bytes(pairs, inter)
}

/// Bytes that [`experts`] takes for itself at most, h not counted.
pub(crate) fn scratch_bytes(pool: &Pool, n: usize, slots: usize, width: usize, inter: usize) -> usize {
    let pairs = n * slots;
    let down = pool.threads() * pairs * columns(pool, n, slots, width).min(width) * 4;
    down + Quantised::bytes(n, width) + Quantised::bytes(pairs, inter) + pairs * 16
}
