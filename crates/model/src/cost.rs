//! What a pass must read and compute, from the shapes alone: the other side of every roofline.

use std::ops::{Add, AddAssign};

use fathom_kernels::{Device, Format, RowShape, index_row_bytes};
use fathom_weights::Config;

use crate::Model;
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

/// How a model's matrices are stored.
#[derive(Debug, Clone, Copy)]
pub struct Formats<'a> {
    /// Attention's.
    pub matrices: Format,
    /// Of the experts that all share.
    pub shared: Format,
    /// Of each layer's routed experts.
    pub experts: &'a [Format],
    /// Whether FP4 weights meet int8 inputs, as in the native profile.
    pub fp4_in_int8: bool,
}

/// A kernel with a speed of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// Products of a dense matrix in this format.
    Matrix(Format),
    /// The routed experts, in this format.
    Experts(Format),
    /// Queries, keys and values: the window's, and all compressed entries.
    AttendAll,
    /// The same, with the entries that an indexer has chosen for each token.
    AttendChosen,
    /// The indexer's scores.
    Index,
    /// mHC, norms, rotations, SwiGLU: arithmetic on what lies between the products.
    Between,
}

/// Work of one kernel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Piece {
    /// Which.
    pub kernel: Kernel,
    /// What it needs; for [`Kernel::Between`], bytes of values read and written.
    pub cost: Cost,
    /// Inputs, or heads of one token, that share what is decoded once.
    pub sharing: f64,
    /// How long the sums are: columns of a matrix.
    pub width: f64,
    /// Whether a token is alone: what shares is of one token, not of many.
    pub alone: bool,
    /// How many times threads begin together and wait for one another.
    pub calls: f64,
}

/// Tokens of one session in a pass: positions `[start, start + tokens)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// The first position.
    pub start: usize,
    /// How many.
    pub tokens: usize,
}

impl Stretch {
    fn end(&self) -> usize {
        self.start + self.tokens
    }

    /// The sum over positions p of ⌊(p + 1) ÷ ratio⌋, of at most `most` each.
    fn sum(&self, ratio: usize, most: usize) -> f64 {
        let to = |n: usize| {
            let (ratio, most, n) = (ratio as f64, most as f64, n as f64);
            // Up to here less than `most` is seen.
            let below = n.min(most * ratio - 1.0).max(0.0);
            let whole = (below / ratio).floor();
            ratio * whole * (whole - 1.0) / 2.0 + whole * (below - whole * ratio + 1.0) + most * (n - below)
        };
        to(self.end()) - to(self.start)
    }

    /// The same of those positions alone that see more than `few`.
    fn sum_beyond(&self, ratio: usize, few: usize) -> f64 {
        let start = self.start.max(((few + 1) * ratio - 1).min(self.end()));
        Stretch { start, tokens: self.end() - start }.sum(ratio, usize::MAX >> 16)
    }
}

/// Tells `each` what a pass over some sessions' tokens needs that ends in `outputs` rows of logits, layer after layer, then
/// the head. Experts count as if routing were uniform.
pub fn pieces(
    c: &Config,
    formats: Formats<'_>,
    pass: &[Stretch],
    outputs: usize,
    mut each: impl FnMut(Option<usize>, Piece),
) {
    let n = pass.iter().map(|stretch| stretch.tokens).sum::<usize>() as f64;
    let (d, hc, inter) = (c.hidden_size, c.hc_mult, c.moe_intermediate_size);
    let wide = c.num_attention_heads * c.head_dim;
    let alone = n < 1.5;
    let embed = Cost { bytes: n * Format::Bf16.row_bytes(d) as f64, ..Cost::default() };
    each(
        None,
        Piece { kernel: Kernel::Matrix(Format::Bf16), cost: embed, sharing: n, width: d as f64, alone, calls: 1.0 },
    );
    let mixes = (2 + hc) * hc;
    for (layer, &ratio) in c.compress_ratios[..c.num_hidden_layers].iter().enumerate() {
        let mut put = |piece| each(Some(layer), piece);
        let dense = formats.matrices;
        let mut matrices = |all: &[(Format, usize, usize)], calls: f64| {
            for (i, &(format, rows, cols)) in all.iter().enumerate() {
                put(matrix(formats, format, rows, cols, n, if i == 0 { calls } else { 0.0 }));
            }
        };
        matrices(&[(Format::F32, mixes, hc * d), (Format::F32, mixes, hc * d)], 4.0);
        matrices(&[(dense, c.q_lora_rank, d), (dense, c.head_dim, d)], 1.0);
        matrices(&[(dense, wide, c.q_lora_rank)], 1.0);
        matrices(&[(dense, c.o_groups * c.o_lora_rank, wide / c.o_groups)], 1.0);
        matrices(&[(dense, d, c.o_groups * c.o_lora_rank)], 1.0);
        let sets = if ratio == 4 { 2 } else { 1 };
        if ratio > 0 {
            matrices(&[(Format::Bf16, sets * c.head_dim, d), (Format::Bf16, sets * c.head_dim, d)], 2.0);
        }
        if ratio == 4 {
            let width = 2 * c.index_head_dim;
            matrices(&[(Format::Bf16, width, d), (Format::Bf16, width, d)], 2.0);
            matrices(&[(dense, c.index_n_heads * c.index_head_dim, c.q_lora_rank)], 1.0);
            matrices(&[(Format::Bf16, c.index_n_heads, d)], 1.0);
        }
        let up = (formats.shared, inter, d);
        matrices(&[(Format::Bf16, c.n_routed_experts, d), up, up], 2.0);
        matrices(&[(formats.shared, d, inter)], 1.0);

        put(experts(c, formats, formats.experts[layer], n));
        attention(c, ratio, pass, &mut put);
        // Values that are read or written between products: mHC and norms, queries and outputs, SwiGLU and the slots' sums.
        let slots = c.num_experts_per_tok;
        let values = 8 * hc * d + 8 * d + 4 * wide + 2 * c.q_lora_rank + (3 + 4 * slots) * inter + (slots + 1) * d;
        let cost = Cost { bytes: 4.0 * n * values as f64, ..Cost::default() };
        put(Piece { kernel: Kernel::Between, cost, sharing: n, width: d as f64, alone, calls: 9.0 });
    }
    if outputs > 0 {
        let m = outputs as f64;
        each(None, matrix(formats, Format::F32, hc, hc * d, m, 2.0));
        each(None, matrix(formats, Format::Bf16, c.vocab_size, d, m, 2.0));
    }
}

/// A matrix read once for `n` inputs.
fn matrix(formats: Formats<'_>, format: Format, rows: usize, cols: usize, n: f64, calls: f64) -> Piece {
    let cost = product(formats, format, rows, cols, n);
    Piece { kernel: Kernel::Matrix(format), cost, sharing: n, width: cols as f64, alone: n < 1.5, calls }
}

fn product(formats: Formats<'_>, format: Format, rows: usize, cols: usize, n: f64) -> Cost {
    let operations = 2.0 * rows as f64 * cols as f64 * n;
    let int8 = formats.fp4_in_int8 && format == Format::Fp4;
    Cost {
        bytes: rows as f64 * format.row_bytes(cols) as f64 + format.scale_bytes(rows, cols) as f64,
        flops: if int8 { 0.0 } else { operations },
        int8: if int8 { operations } else { 0.0 },
    }
}

/// How many of a layer's experts `n` tokens go to, where routing is uniform.
pub fn touched(c: &Config, n: f64) -> f64 {
    let (all, slots) = (c.n_routed_experts as f64, c.num_experts_per_tok as f64);
    all * (1.0 - (1.0 - slots / all).powf(n))
}

fn experts(c: &Config, formats: Formats<'_>, format: Format, n: f64) -> Piece {
    let (d, inter) = (c.hidden_size, c.moe_intermediate_size);
    let pairs = n * c.num_experts_per_tok as f64;
    let touched = touched(c, n);
    let [up, down] = [(inter, d), (d, inter)].map(|(rows, cols)| product(formats, format, rows, cols, pairs));
    let one = up + up + down;
    let cost = Cost { bytes: one.bytes * touched, ..one };
    let sharing = pairs / touched;
    // Two of the three are D wide.
    let width = 3.0 / (2.0 / d as f64 + 1.0 / inter as f64);
    Piece { kernel: Kernel::Experts(format), cost, sharing, width, alone: sharing < 1.5, calls: 3.0 }
}

fn attention(c: &Config, ratio: usize, pass: &[Stretch], put: &mut impl FnMut(Piece)) {
    let row = RowShape { width: c.head_dim, rope: c.qk_rope_head_dim }.bytes();
    let window = c.sliding_window;
    let key = 4.0 * (c.num_attention_heads * c.head_dim) as f64;
    let (mut attend, mut index) = (Cost::default(), Cost::default());
    for stretch in pass {
        let (end, tokens) = (stretch.end(), stretch.tokens);
        let mut keys = stretch.sum(1, window);
        let mut state = (end.min(window + tokens) * row) as f64;
        match ratio {
            0 => {}
            4 => {
                let (keep, width) = (c.index_topk, c.index_head_dim);
                keys += stretch.sum(4, keep);
                state += ((end / 4).min(tokens * keep) * row) as f64;
                // Where all entries fit, none needs a score.
                let scored = stretch.sum_beyond(4, keep);
                let bytes = if scored > 0.0 { (end / 4 * index_row_bytes(width)) as f64 } else { 0.0 };
                index += Cost { bytes, flops: 0.0, int8: 2.0 * scored * (c.index_n_heads * width) as f64 };
            }
            ratio => {
                keys += stretch.sum(ratio, usize::MAX >> 16);
                state += (end / ratio * row) as f64;
            }
        }
        attend += Cost { bytes: state, flops: key * keys, int8: 0.0 };
    }
    let calls = 2.0 * pass.len() as f64;
    let alone = pass.iter().all(|stretch| stretch.tokens == 1);
    let kernel = if ratio == 4 { Kernel::AttendChosen } else { Kernel::AttendAll };
    let (heads, width) = (c.num_attention_heads as f64, c.head_dim as f64);
    put(Piece { kernel, cost: attend, sharing: heads, width, alone, calls });
    if ratio == 4 {
        let (sharing, width) = (c.index_n_heads as f64, c.index_head_dim as f64);
        put(Piece { kernel: Kernel::Index, cost: index, sharing, width, alone, calls });
    }
}

impl<D: Device> Model<D> {
    /// What a pass over positions `[start, start + tokens)` needs that ends in `outputs` rows of logits. Experts count as
    /// if routing were uniform. `fp4_in_int8` says whether FP4 weights meet int8 inputs, as in the native profile.
    pub fn cost(&self, start: usize, tokens: usize, outputs: usize, fp4_in_int8: bool) -> Cost {
        let experts: Vec<Format> = (0..self.layers.len()).map(|layer| self.format(layer)).collect();
        let first = &self.layers[0];
        let formats = Formats {
            matrices: first.attention.wq_a.format,
            shared: first.experts.shared.w1.format,
            experts: &experts,
            fp4_in_int8,
        };
        let mut all = Cost::default();
        pieces(&self.config, formats, &[Stretch { start, tokens }], outputs, |_, piece| {
            if piece.kernel != Kernel::Between {
                all += piece.cost;
            }
        });
        all
    }

    /// How a layer's routed experts are stored.
    fn format(&self, layer: usize) -> Format {
        match (&self.layers[layer].experts.experts, &self.cache) {
            (Experts::Streamed, Some(cache)) => cache.shape(layer).format,
            (Experts::Here(all), _) => all.first().map_or(Format::Fp4, |first| first.w1.format),
            (Experts::Streamed, None) => Format::Fp4,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_the_positions() {
        for (start, tokens) in [(0, 1), (0, 700), (3, 5), (511, 2), (1000, 129), (127, 1)] {
            let stretch = Stretch { start, tokens };
            let each = |f: &dyn Fn(usize) -> usize| (start + 1..=start + tokens).map(f).sum::<usize>() as f64;
            for ratio in [1, 4, 128] {
                for most in [1, 7, 128, 1 << 40] {
                    assert_eq!(
                        stretch.sum(ratio, most),
                        each(&|p| (p / ratio).min(most)),
                        "{stretch:?} {ratio} {most}"
                    );
                }
                for few in [0, 3, 100] {
                    let want = each(&|p| if p / ratio > few { p / ratio } else { 0 });
                    assert_eq!(stretch.sum_beyond(ratio, few), want, "{stretch:?} {ratio} {few}");
                }
            }
        }
    }
}
