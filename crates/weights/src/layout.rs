//! Every tensor that a configuration needs, with its shape.

use crate::Config;

/// What a tensor must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Shape {
    /// BF16 or F32, read whole.
    Vector(Vec<usize>),
    /// A matrix `[out, in]` in any format with its scales; `name` or `name.weight`.
    Matrix(usize, usize),
    /// I64.
    Table(usize, usize),
}

/// Calls `need(name, shape)` for every tensor of the layers and the head; matrices are named without `.weight`.
pub(crate) fn tensors(c: &Config, mut need: impl FnMut(String, Shape)) {
    let (d, hc) = (c.hidden_size, c.hc_mult);
    need("embed".into(), Shape::Matrix(c.vocab_size, d));
    need("head".into(), Shape::Matrix(c.vocab_size, d));
    need("norm.weight".into(), Shape::Vector(vec![d]));
    hyper(&mut need, "hc_head", hc, 1, hc * d);
    for (i, &ratio) in c.compress_ratios[..c.num_hidden_layers].iter().enumerate() {
        let p = format!("layers.{i}");
        for half in ["attn", "ffn"] {
            hyper(&mut need, &format!("{p}.hc_{half}"), (2 + hc) * hc, 3, hc * d);
            need(format!("{p}.{half}_norm.weight"), Shape::Vector(vec![d]));
        }
        attention(c, &mut need, &format!("{p}.attn"), ratio);
        experts(c, &mut need, &format!("{p}.ffn"), i < c.num_hash_layers);
    }
}

fn hyper(need: &mut impl FnMut(String, Shape), p: &str, mixes: usize, scales: usize, width: usize) {
    need(format!("{p}_fn"), Shape::Matrix(mixes, width));
    need(format!("{p}_base"), Shape::Vector(vec![mixes]));
    need(format!("{p}_scale"), Shape::Vector(vec![scales]));
}

fn attention(c: &Config, need: &mut impl FnMut(String, Shape), p: &str, ratio: usize) {
    let (d, wide) = (c.hidden_size, c.num_attention_heads * c.head_dim);
    need(format!("{p}.attn_sink"), Shape::Vector(vec![c.num_attention_heads]));
    need(format!("{p}.wq_a"), Shape::Matrix(c.q_lora_rank, d));
    need(format!("{p}.q_norm.weight"), Shape::Vector(vec![c.q_lora_rank]));
    need(format!("{p}.wq_b"), Shape::Matrix(wide, c.q_lora_rank));
    need(format!("{p}.wkv"), Shape::Matrix(c.head_dim, d));
    need(format!("{p}.kv_norm.weight"), Shape::Vector(vec![c.head_dim]));
    need(format!("{p}.wo_a"), Shape::Matrix(c.o_groups * c.o_lora_rank, wide / c.o_groups));
    need(format!("{p}.wo_b"), Shape::Matrix(d, c.o_groups * c.o_lora_rank));
    if ratio > 0 {
        compressor(need, &format!("{p}.compressor"), ratio, c.head_dim, d);
    }
    if ratio == 4 {
        let q = format!("{p}.indexer");
        need(format!("{q}.wq_b"), Shape::Matrix(c.index_n_heads * c.index_head_dim, c.q_lora_rank));
        need(format!("{q}.weights_proj"), Shape::Matrix(c.index_n_heads, d));
        compressor(need, &format!("{q}.compressor"), ratio, c.index_head_dim, d);
    }
}

fn compressor(need: &mut impl FnMut(String, Shape), p: &str, ratio: usize, width: usize, d: usize) {
    let wide = if ratio == 4 { 2 * width } else { width };
    need(format!("{p}.wkv"), Shape::Matrix(wide, d));
    need(format!("{p}.wgate"), Shape::Matrix(wide, d));
    need(format!("{p}.ape"), Shape::Vector(vec![ratio, wide]));
    need(format!("{p}.norm.weight"), Shape::Vector(vec![width]));
}

fn experts(c: &Config, need: &mut impl FnMut(String, Shape), p: &str, hash: bool) {
    let (d, inter) = (c.hidden_size, c.moe_intermediate_size);
    need(format!("{p}.gate"), Shape::Matrix(c.n_routed_experts, d));
    if hash {
        need(format!("{p}.gate.tid2eid"), Shape::Table(c.vocab_size, c.num_experts_per_tok));
    } else {
        need(format!("{p}.gate.bias"), Shape::Vector(vec![c.n_routed_experts]));
    }
    let mut expert = |p: String| {
        need(format!("{p}.w1"), Shape::Matrix(inter, d));
        need(format!("{p}.w2"), Shape::Matrix(d, inter));
        need(format!("{p}.w3"), Shape::Matrix(inter, d));
    };
    (0..c.n_routed_experts).for_each(|e| expert(format!("{p}.experts.{e}")));
    expert(format!("{p}.shared_experts"));
}
