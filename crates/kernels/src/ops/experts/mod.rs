//! The routed experts (V4.md, *MoE*): each expert's weights are read once for all the rows that go to it.

#[cfg(test)]
mod tests;

use crate::math::exp_lanes;
use crate::ops::linear::int8::Quantised;
use crate::ops::linear::{INPUTS, Input, ROWS, is_int8, product};
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

/// f32 of down-projections that wait for their sum at most.
const WAITING: usize = 8 << 20;

/// The rows that go to one expert: positions in a list of (row, slot) pairs sorted by expert.
struct Work {
    expert: usize,
    pairs: std::ops::Range<usize>,
}

/// Rows of an operand as a product takes them.
enum Rows<'a> {
    Float(&'a [f32], usize),
    Int8(Quantised),
}

impl<'a> Rows<'a> {
    fn new(isa: Isa, pool: &Pool, profile: Profile, x: &'a [f32], w: &Matrix<Buffer>) -> Self {
        if is_int8(profile, w) { Rows::Int8(Quantised::new(isa, pool, x, w.cols)) } else { Rows::Float(x, w.cols) }
    }

    fn input(&self) -> Input<'_> {
        match self {
            Rows::Float(data, stride) => Input::Float { data, stride: *stride, offset: 0 },
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

/// Cuts `rows` matrix rows for every expert's pairs into tasks.
fn tasks<'a>(work: &[Work], pairs: &'a [usize], rows: std::ops::Range<usize>) -> Vec<Task<'a>> {
    let mut all = Vec::new();
    for w in work {
        for pairs in pairs[w.pairs.clone()].chunks(INPUTS) {
            for from in rows.clone().step_by(ROWS) {
                all.push(Task { expert: w.expert, pairs, rows: from..(from + ROWS).min(rows.end) });
            }
        }
    }
    all
}

/// x `[n, D]`; y `[n, D]` `+= Σ_slot w2(weight · swiglu(w1 x, w3 x))`, the sum over slots first.
#[allow(clippy::too_many_arguments)]
pub(crate) fn experts(
    isa: Isa,
    pool: &Pool,
    profile: Profile,
    x: &[f32],
    routing: &Routing,
    experts: &[Expert<Buffer>],
    limit: f32,
    y: &mut [f32],
) {
    let Some(first) = experts.first() else { return };
    let (width, inter, slots) = (first.w1.cols, first.w1.rows, routing.slots);
    let n = x.len() / width;
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
    let mut h = vec![0.0; n * slots * inter];
    let out = Output::new(&mut h);
    let inputs = Rows::new(isa, pool, profile, x, &first.w1);
    let up_tasks = tasks(&work, &pairs, 0..inter);
    pool.each(up_tasks.len(), |i| {
        let Task { expert, pairs, rows } = &up_tasks[i];
        let (mut gate, mut up) = ([0.0; ROWS * INPUTS], [0.0; ROWS * INPUTS]);
        let size = rows.len() * pairs.len();
        let picks: Vec<u32> = pairs.iter().map(|pair| (pair / slots) as u32).collect();
        let expert = &experts[*expert];
        product(isa, &expert.w1, rows.clone(), inputs.input(), &picks, &mut gate[..size]);
        product(isa, &expert.w3, rows.clone(), inputs.input(), &picks, &mut up[..size]);
        for (j, &pair) in pairs.iter().enumerate() {
            let part = j * rows.len()..(j + 1) * rows.len();
            let gate = &mut gate[part.clone()];
            isa.run(Swiglu { gate, up: &up[part], weight: routing.weights[pair], limit });
            // SAFETY: tasks have disjoint pairs or rows.
            unsafe { out.slice(pair * inter + rows.start..pair * inter + rows.end) }.copy_from_slice(gate);
        }
    });

    // Down, some columns of D at a time: every slot's value waits in `down`, then the slots are summed in order.
    let hidden = Rows::new(isa, pool, profile, &h, &first.w2);
    let columns = (WAITING / (n * slots)).clamp(ROWS, width.next_multiple_of(ROWS)) / ROWS * ROWS;
    let mut down = vec![0.0; n * slots * columns.min(width)];
    for from in (0..width).step_by(columns) {
        let columns = from..(from + columns).min(width);
        let wide = columns.len();
        let out = Output::new(&mut down);
        let down_tasks = tasks(&work, &pairs, columns.clone());
        pool.each(down_tasks.len(), |i| {
            let Task { expert, pairs, rows } = &down_tasks[i];
            let mut part = [0.0; ROWS * INPUTS];
            let picks: Vec<u32> = pairs.iter().map(|&pair| pair as u32).collect();
            let part = &mut part[..rows.len() * pairs.len()];
            product(isa, &experts[*expert].w2, rows.clone(), hidden.input(), &picks, part);
            for (&pair, part) in pairs.iter().zip(part.chunks_exact(rows.len())) {
                let at = pair * wide + rows.start - from;
                // SAFETY: tasks have disjoint pairs or rows.
                unsafe { out.slice(at..at + rows.len()) }.copy_from_slice(part);
            }
        });
        let y = Output::new(y);
        pool.ranges(n, 8, 2, |rows| {
            for row in rows {
                // SAFETY: rows are disjoint.
                let y = unsafe { y.slice(row * width + columns.start..row * width + columns.end) };
                let down = &down[row * slots * wide..(row + 1) * slots * wide];
                for (i, y) in y.iter_mut().enumerate() {
                    *y += (1..slots).fold(down[i], |sum, slot| sum + down[slot * wide + i]);
                }
            }
        });
    }
}

/// Bytes that [`experts`] takes for itself at most.
pub(crate) fn scratch_bytes(n: usize, slots: usize, width: usize, inter: usize) -> usize {
    let pairs = n * slots;
    let waiting = (pairs * width).min(WAITING.max(pairs * ROWS));
    (pairs * inter + waiting) * 4 + Quantised::bytes(n, width) + Quantised::bytes(pairs, inter) + pairs * 16
}
