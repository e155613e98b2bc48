//! Matrix products, `y = x · wᵀ`, over weights in their released formats.
//!
//! One order for every batch size: lane k mod 16 takes `fma(w, x, sum)` for ascending k, w being the weight with its
//! scale as f32; then the lanes fold. FP4 in the native profile: see [`int8`].

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
use crate::simd::Isa;
use crate::{Buffer, Format, Matrix};
use int8::Quantised;

/// Rows of a matrix that a task multiplies with many inputs.
pub(crate) const ROWS: usize = 72;
/// Inputs that a task takes at once.
pub(crate) const INPUTS: usize = 192;
/// Tasks a thread that one input's rows are cut into: long straight stretches of memory, and some left to share out when
/// another program takes a core.
const TASKS_OF_ONE: usize = 4;
/// Rows of a matrix that a task multiplies with one input at least, and a multiple of.
const ROWS_OF_ONE: usize = 16;

/// The left-hand side of a product.
#[derive(Clone, Copy)]
pub(crate) enum Input<'a> {
    /// Input i is `data[i · stride + offset ..][.. cols]`.
    Float { data: &'a [f32], stride: usize, offset: usize },
    /// Rounded inputs, for FP4.
    Int8(&'a Quantised),
}

/// Whether the inputs of a matrix are rounded to int8.
pub(crate) fn is_int8<B>(profile: Profile, w: &Matrix<B>) -> bool {
    profile == Profile::Native && w.format == Format::Fp4
}

/// Some rows of w times the inputs with numbers `picks`: `out[i · rows.len() + j]` = row `rows.start + j` · input
/// `picks[i]`.
pub(crate) fn product(
    isa: Isa,
    w: &Matrix<Buffer>,
    rows: Range<usize>,
    input: Input<'_>,
    picks: &[u32],
    out: &mut [f32],
) {
    assert!(rows.end <= w.rows && out.len() == rows.len() * picks.len(), "product shapes");
    match (input, picks) {
        (Input::Int8(x), _) => isa.run(int8::Product { w, rows, x, picks, out }),
        (Input::Float { data, stride, offset }, &[pick]) => {
            let x = &data[pick as usize * stride + offset..][..w.cols];
            isa.run(gemv::Gemv { w, rows, x, out });
        }
        (Input::Float { data, stride, offset }, _) => {
            isa.run(gemm::Gemm { w, rows, data, stride, offset, picks, out });
        }
    }
}

/// Rows of a task for one input, of `rows`.
fn rows_of_one(pool: &Pool, rows: usize) -> usize {
    rows.div_ceil(pool.threads() * TASKS_OF_ONE).next_multiple_of(ROWS_OF_ONE)
}

/// x `[n, G·in]`, w `[G·out, in]` → y `[n, G·out]`; group g of the rows sees group g of the inputs.
pub(crate) fn linear(
    isa: Isa,
    pool: &Pool,
    profile: Profile,
    x: &[f32],
    w: &Matrix<Buffer>,
    groups: usize,
    y: &mut [f32],
) {
    let (stride, outs, each) = (groups * w.cols, w.rows, w.rows / groups);
    let n = x.len() / stride;
    assert!(x.len() == n * stride && y.len() == n * outs && each * groups == outs, "linear shapes");
    let quantised = (is_int8(profile, w) && groups == 1).then(|| Quantised::new(isa, pool, x, w.cols));
    assert!(quantised.is_some() || !is_int8(profile, w), "grouped matrices are not FP4");
    let (rows, inputs) = if n == 1 { (rows_of_one(pool, each), 1) } else { (ROWS, INPUTS) };
    let (row_tasks, input_tasks) = (each.div_ceil(rows), n.div_ceil(inputs));
    let y = Output::new(y);
    pool.each(groups * row_tasks * input_tasks, |task| {
        let (input_task, rest) = (task % input_tasks, task / input_tasks);
        let (row_task, group) = (rest % row_tasks, rest / row_tasks);
        let rows = group * each + row_task * rows..group * each + ((row_task + 1) * rows).min(each);
        let picks: Vec<u32> = ((input_task * inputs) as u32..((input_task + 1) * inputs).min(n) as u32).collect();
        let input = match &quantised {
            Some(x) => Input::Int8(x),
            None => Input::Float { data: x, stride, offset: group * w.cols },
        };
        if n == 1 {
            // SAFETY: tasks have disjoint rows.
            return product(isa, w, rows.clone(), input, &picks, unsafe { y.slice(rows) });
        }
        let mut part = [0.0; ROWS * INPUTS];
        let part = &mut part[..rows.len() * picks.len()];
        product(isa, w, rows.clone(), input, &picks, part);
        for (&pick, part) in picks.iter().zip(part.chunks_exact(rows.len())) {
            let at = pick as usize * outs;
            // SAFETY: tasks have disjoint rows or inputs.
            unsafe { y.slice(at + rows.start..at + rows.end) }.copy_from_slice(part);
        }
    });
}
