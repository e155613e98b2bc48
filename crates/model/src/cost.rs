//! What a pass must read and compute, from the shapes alone: the other side of every roofline.

use std::ops::{Add, AddAssign};

use fathom_kernels::{Device, Expert, ExpertShape, Format, Matrix, index_row_bytes};

use crate::Model;
use crate::attention::{Kind, LayerCompressor};
use crate::moe::Experts;

/// The least that a pass needs.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Cost {
    /// Bytes of weights and session state, each read once.
    pub bytes: f64,
    /// Floating-point operations; a multiply-add counts two.
    pub flops: f64,
    /// Operations on int8: the indexer's and, where they are counted so, those of FP4 weights.
    pub int8: f64,
}

impl Add for Cost {
    type Output = Cost;

    fn add(self, other: Cost) -> Cost {
        Cost { bytes: self.bytes + other.bytes, flops: self.flops + other.flops, int8: self.int8 + other.int8 }
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Cost) {
        *self = *self + other;
    }
}

/// A matrix read once for `n` inputs.
fn operations<B>(w: &Matrix<B>, n: f64, fp4_in_int8: bool) -> Cost {
    let operations = 2.0 * w.rows as f64 * w.cols as f64 * n;
    let int8 = fp4_in_int8 && w.format == Format::Fp4;
    Cost {
        bytes: w.bytes() as f64,
        flops: if int8 { 0.0 } else { operations },
        int8: if int8 { operations } else { 0.0 },
    }
}

impl<D: Device> Model<D> {
    /// What a pass over positions `[start, start + tokens)` needs that ends in `outputs` rows of logits. Experts count as
    /// if routing were uniform. `fp4_in_int8` says whether FP4 weights meet int8 inputs, as in the native profile.
    pub fn cost(&self, start: usize, tokens: usize, outputs: usize, fp4_in_int8: bool) -> Cost {
        let (n, end) = (tokens as f64, start + tokens);
        let product = |w: &Matrix<D::Buffer>, n: f64| operations(w, n, fp4_in_int8);
        let expert = |e: &Expert<D::Buffer>, n: f64| product(&e.w1, n) + product(&e.w2, n) + product(&e.w3, n);
        let compressor = |c: &LayerCompressor<D>| product(&c.wkv, n) + product(&c.wgate, n);
        // Sums over the pass's positions p of what p sees, a function of p + 1.
        let seen = |sees: &dyn Fn(usize) -> usize| (start + 1..=end).map(|p| sees(p) as f64).sum::<f64>();

        let mut all = Cost { bytes: n * self.embed.format.row_bytes(self.embed.cols) as f64, ..Cost::default() };
        for (layer, block) in self.layers.iter().enumerate() {
            let (a, moe) = (&block.attention, &block.experts);
            for w in [&a.wq_a, &a.wq_b, &a.wkv, &a.wo_a, &a.wo_b, &moe.router] {
                all += product(w, n);
            }
            all += product(&block.attention_connection.hyper.mix, n) + product(&block.experts_connection.hyper.mix, n);
            all += expert(&moe.shared, n);
            let share = moe.slots as f64 / moe.count as f64;
            let touched = moe.count as f64 * (1.0 - (1.0 - share).powf(n));
            let one = match (&moe.experts, &self.cache) {
                (Experts::Here(all), _) => all.first().map(|first| expert(first, n * moe.slots as f64)),
                (Experts::Streamed, cache) => cache.as_ref().map(|cache| {
                    let ExpertShape { format, inter } = cache.shape(layer);
                    let matrix = |rows, cols| Matrix { format, rows, cols, data: (), scale: None };
                    let (up, down) = (matrix(inter, self.config.hidden_size), matrix(self.config.hidden_size, inter));
                    let n = n * moe.slots as f64;
                    operations(&up, n, fp4_in_int8)
                        + operations(&up, n, fp4_in_int8)
                        + operations(&down, n, fp4_in_int8)
                }),
            };
            if let Some(one) = one {
                all += Cost { bytes: one.bytes * touched, ..one };
            }

            let (window, row) = (a.shape.window, a.shape.row);
            let key = 4.0 * (a.shape.heads * row.width) as f64;
            let mut keys = seen(&|p| p.min(window));
            let mut state = (end.min(window + tokens) * row.bytes()) as f64;
            match &a.kind {
                Kind::Window => {}
                Kind::Hca { compressor: c } => {
                    all += compressor(c);
                    keys += seen(&|p| p / c.shape.ratio);
                    state += (end / c.shape.ratio * row.bytes()) as f64;
                }
                Kind::Csa { compressor: c, indexer } => {
                    all += compressor(c) + compressor(&indexer.compressor);
                    all += product(&indexer.wq_b, n) + product(&indexer.weights_proj, n);
                    let shape = indexer.shape;
                    keys += seen(&|p| (p / 4).min(shape.keep));
                    state += ((end / 4).min(tokens * shape.keep) * row.bytes()) as f64;
                    // Where all entries fit, none needs a score.
                    let scored = seen(&|p| if p / 4 > shape.keep { p / 4 } else { 0 });
                    all.int8 += 2.0 * scored * (shape.heads * shape.width) as f64;
                    if scored > 0.0 {
                        state += (end / 4 * index_row_bytes(shape.width)) as f64;
                    }
                }
            }
            all += Cost { bytes: state, flops: key * keys, int8: 0.0 };
        }
        if outputs > 0 {
            all += product(&self.head_mix.mix, outputs as f64) + product(&self.head, outputs as f64);
        }
        all
    }
}
