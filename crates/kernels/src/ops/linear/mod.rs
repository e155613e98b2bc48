//! Matrix products, `y = x · wᵀ`, over weights in their released formats.
//!
//! One order for every batch size: lane k mod 16 takes `fma(w, x, sum)` for ascending k, w being the weight with its
//! scale as f32; then the lanes fold. In the native profile x is first rounded to bfloat16 where the weights are FP8
//! ([`Simd::round_bf16`](crate::simd::Simd::round_bf16)), and to int8 where they are FP4: see [`int8`].

mod decode;
mod gemm;
mod gemv;
pub(crate) mod int8;

#[cfg(test)]
pub(crate) mod reference;
#[cfg(test)]
pub(crate) mod tests;

use std::ops::Range;

use crate::pool::{Output, Pool};
use crate::profile::Profile;
use crate::simd::{Isa, Kernel, LANES, Simd, load_part, store_part};
use crate::{Buffer, Format, Matrix};
use int8::Quantised;

/// Rows of a matrix that a task multiplies with many inputs, or [`rows_of_many`].
pub(crate) const ROWS: usize = 72;
/// Inputs that are few: weights are decoded as they are used.
const FEW: usize = 8;
/// Inputs that a task takes at once.
pub(crate) const INPUTS: usize = 128;
/// Tasks a thread that one input's rows are cut into at most, so that some are left to share out when another program takes
/// a core.
const TASKS_OF_ONE: usize = 4;
/// Bytes of weights that such a task should have: memory gives most in long straight stretches.
const STRETCH: usize = 512 << 10;
/// Rows of a matrix that a task multiplies with one input at least, and a multiple of.
const ROWS_OF_ONE: usize = 4;

/// The left-hand side of a product.
#[derive(Clone, Copy)]
pub(crate) enum Input<'a> {
    /// Input i is `data[i · stride + offset ..][.. cols]`, still to be rounded to bfloat16 where `round` says so.
    Float { data: &'a [f32], stride: usize, offset: usize, round: bool },
    /// Rounded inputs, for FP4.
    Int8(&'a Quantised),
}

/// Whether the inputs of a matrix are rounded to int8.
pub(crate) fn is_int8<B>(profile: Profile, w: &Matrix<B>) -> bool {
    profile == Profile::Native && w.format == Format::Fp4
}

/// Whether the inputs of a matrix are rounded to bfloat16.
pub(crate) fn is_bf16<B>(profile: Profile, w: &Matrix<B>) -> bool {
    profile == Profile::Native && w.format == Format::Fp8
}

/// x rounded to bfloat16.
struct Round<'a>(&'a mut [f32]);

impl Kernel for Round<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for at in (0..self.0.len()).step_by(LANES) {
            let (p, n) = (self.0[at..].as_mut_ptr(), self.0.len() - at);
            // SAFETY: n values from p on.
            unsafe { store_part(s, p, n, s.round_bf16(load_part(s, p, n))) };
        }
    }
}

/// Where products go: that of row `rows.start + j` and input i to `start + i · stride + j`. Tasks write to disjoint places.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub all: &'a Output<f32>,
    pub start: usize,
    pub stride: usize,
}

impl Place<'_> {
    /// The places of input i and rows j.
    ///
    /// # Safety
    /// No other slice of them lives.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    unsafe fn of(&self, i: usize, j: Range<usize>) -> &mut [f32] {
        let at = self.start + i * self.stride;
        // SAFETY: no other task writes there, by what a place is; this one by the caller's word.
        unsafe { self.all.slice(at + j.start..at + j.end) }
    }
}

/// Some rows of w times the inputs with numbers `picks`.
pub(crate) fn product(
    isa: Isa,
    w: &Matrix<Buffer>,
    rows: Range<usize>,
    input: Input<'_>,
    picks: &[u32],
    out: Place<'_>,
) {
    assert!(rows.end <= w.rows, "rows of a matrix");
    match (input, picks) {
        (Input::Int8(x), _) => {
            // What is unsafe below reads codes and scales as FP4 has them.
            assert!(w.format == Format::Fp4 && x.fits(w.cols), "rounded inputs meet FP4 of their width");
            isa.run(int8::Product { w, rows, x, picks, out });
        }
        (Input::Float { data, stride, offset, round }, _) if picks.len() <= FEW => {
            let mut x: Vec<&[f32]> =
                picks.iter().map(|&pick| &data[pick as usize * stride + offset..][..w.cols]).collect();
            let rounded = round.then(|| {
                let mut all = x.concat();
                isa.run(Round(&mut all));
                all
            });
            if let Some(rounded) = &rounded {
                x = rounded.chunks_exact(w.cols).collect();
            }
            few(isa, w, rows, &x, out);
        }
        (Input::Float { data, stride, offset, round }, _) => {
            isa.run(gemm::Gemm { w, rows, data, stride, offset, round, picks, out });
        }
    }
}

/// Some rows of w times at most [`FEW`] inputs.
fn few(isa: Isa, w: &Matrix<Buffer>, rows: Range<usize>, x: &[&[f32]], out: Place<'_>) {
    for (first, x) in (0..).step_by(4).zip(x.chunks(4)) {
        let rows = rows.clone();
        match *x {
            [a] => isa.run(gemv::Gemv { w, rows, x: [a], first, out }),
            [a, b] => isa.run(gemv::Gemv { w, rows, x: [a, b], first, out }),
            [a, b, c] => isa.run(gemv::Gemv { w, rows, x: [a, b, c], first, out }),
            [a, b, c, d] => isa.run(gemv::Gemv { w, rows, x: [a, b, c, d], first, out }),
            _ => unreachable!("four at once"),
        }
    }
}

/// A matrix and its results: w `[G·out, in]` → y `[n, G·out]`; group g of the rows sees group g of the inputs.
pub(crate) struct Projection<'a> {
    pub w: &'a Matrix<Buffer>,
    pub groups: usize,
    pub y: Output<f32>,
}

/// How a projection is cut: tasks of `rows` matrix rows and `inputs` inputs.
struct Cut {
    tasks: usize,
    rows: usize,
    row_tasks: usize,
    inputs: usize,
    input_tasks: usize,
}

/// Rows of a task with one input, where `rows` rows of `row_bytes` each are to be shared out.
pub(crate) fn rows_of_one(pool: &Pool, rows: usize, row_bytes: usize) -> usize {
    let tasks = (rows * row_bytes / pool.threads() / STRETCH).clamp(1, TASKS_OF_ONE);
    rows.div_ceil(pool.threads() * tasks).next_multiple_of(ROWS_OF_ONE)
}

/// Most rows of such a task: short rows are cheap to keep, and inputs, packed anew for each task, are not.
pub(crate) fn rows_of_many(cols: usize) -> usize {
    ROWS * (2048 / cols).clamp(1, 4)
}

impl Cut {
    /// `total` is how many matrix rows all projections have.
    fn new(pool: &Pool, projection: &Projection<'_>, n: usize, total: usize) -> Self {
        let each = projection.w.rows / projection.groups;
        let (rows, inputs) = match n {
            1..=FEW => (rows_of_one(pool, total, projection.w.format.row_bytes(projection.w.cols)), FEW),
            // Not so many that threads go without.
            _ if total * n.div_ceil(INPUTS) < 8 * pool.threads() * rows_of_many(projection.w.cols) => (ROWS, INPUTS),
            _ => (rows_of_many(projection.w.cols), INPUTS),
        };
        let (row_tasks, input_tasks) = (each.div_ceil(rows), n.div_ceil(inputs));
        Cut { tasks: projection.groups * row_tasks * input_tasks, rows, row_tasks, inputs, input_tasks }
    }
}

/// x `[n, G·in]` times every matrix.
pub(crate) fn linear(isa: Isa, pool: &Pool, profile: Profile, x: &[f32], n: usize, all: &[Projection<'_>]) {
    for Projection { w, groups, y } in all {
        assert!(
            x.len() == n * groups * w.cols && y.len() == n * w.rows && w.rows.is_multiple_of(*groups),
            "linear shapes"
        );
        assert!(*groups == 1 || !is_int8(profile, w), "grouped matrices are not FP4");
    }
    let rounded = all.iter().find(|p| is_int8(profile, p.w)).map(|p| Quantised::new(isa, pool, x, p.w.cols));
    // Few inputs are rounded once for all tasks, many as they are packed.
    let alone = (n <= FEW && all.iter().any(|p| is_bf16(profile, p.w))).then(|| {
        let mut x = x.to_vec();
        isa.run(Round(&mut x));
        x
    });
    let total = all.iter().map(|p| p.w.rows).sum();
    let cuts: Vec<Cut> = all.iter().map(|projection| Cut::new(pool, projection, n, total)).collect();
    pool.each(cuts.iter().map(|cut| cut.tasks).sum(), |mut task| {
        let mut which = 0;
        while task >= cuts[which].tasks {
            task -= cuts[which].tasks;
            which += 1;
        }
        let (cut, Projection { w, groups, y }) = (&cuts[which], &all[which]);
        let (input_task, rest) = (task % cut.input_tasks, task / cut.input_tasks);
        let (row_task, group) = (rest % cut.row_tasks, rest / cut.row_tasks);
        let each = w.rows / groups;
        let rows = group * each + row_task * cut.rows..group * each + ((row_task + 1) * cut.rows).min(each);
        let picks: Vec<u32> =
            ((input_task * cut.inputs) as u32..((input_task + 1) * cut.inputs).min(n) as u32).collect();
        let input = match &rounded {
            Some(x) if is_int8(profile, w) => Input::Int8(x),
            _ => {
                let (round, stride, offset) = (is_bf16(profile, w), groups * w.cols, group * w.cols);
                match &alone {
                    Some(x) if round => Input::Float { data: x, stride, offset, round: false },
                    _ => Input::Float { data: x, stride, offset, round },
                }
            }
        };
        // Tasks have disjoint rows or inputs.
        let start = input_task * cut.inputs * w.rows + rows.start;
        product(isa, w, rows, input, &picks, Place { all: y, start, stride: w.rows });
    });
}
