//! What a model will take of a device's memory, from its configuration alone.

use fathom_kernels::{Device, IndexShape, RowShape};
use fathom_weights::Config;

use crate::model::STRIP;
use crate::state::Layout;
use crate::stream::guess_values;

/// Bytes of state that a session of `positions` tokens takes: V4.md's table, rounded up to whole pages.
pub fn state_bytes(config: &Config, positions: usize) -> u64 {
    Layout::new(config).bytes(positions)
}

/// Positions of a page.
pub const PAGE: usize = crate::state::PAGE;

/// Bytes of a full page: all layers' compressed rows of [`PAGE`] positions.
pub fn page_bytes(config: &Config) -> u64 {
    Layout::new(config).page as u64
}

/// Bytes of what a session of `positions` tokens has beside its full pages, as [`Model::tail`](crate::Model::tail) gives them.
pub fn tail_bytes(config: &Config, positions: usize) -> u64 {
    Layout::new(config).tail(positions).iter().map(|part| part.bytes.len() as u64).sum()
}

/// Bytes of device scratch that a pass over `rows` tokens or fewer takes at most, where logits are wanted after `wanted` of them, with
/// experts in memory or streamed.
pub fn scratch_bytes<D: Device>(device: &D, config: &Config, streamed: bool, rows: usize, wanted: usize) -> u64 {
    let c = config;
    let (hc, d_model, inter, head) = (c.hc_mult, c.hidden_size, c.moe_intermediate_size, c.head_dim);
    let (heads, mix) = (c.num_attention_heads * head, (2 + hc) * hc);
    let row_shape = RowShape { width: head, rope: c.qk_rope_head_dim };
    // Fewer rows than these may come in longer strips.
    let strip = rows.clamp(1, STRIP);

    // Values of each row that live through a pass: the residual, both kinds of angles; through a layer's half: its input, and
    // what puts its output back.
    let through = hc * d_model + 2 * c.qk_rope_head_dim;
    let around = d_model + hc + hc * hc;
    let mixing = mix.max(d_model);

    // A strip's attention has its projections to the end, beside them in turn the rows' norm, the compressors, the indexer and
    // attention itself, the output.
    let projections = 2 * c.q_lora_rank + heads + head + row_shape.bytes().div_ceil(4);
    let compressors = 5 * head.max(c.index_head_dim);
    let queries = c.index_n_heads * (c.index_head_dim + 1) + heads;
    let output = c.o_groups * c.o_lora_rank + d_model;
    let index_shape = IndexShape { heads: c.index_n_heads, width: c.index_head_dim, keep: c.index_topk };
    // How many rows a session has decides how a device shares out the indexer's work: few may take more than many.
    let selecting = (1..=strip).map(|n| device.index_bytes(index_shape, n)).max().unwrap_or(0);
    let entries = (c.max_position_embeddings / 128).max(c.index_topk);
    let selected = strip * (c.index_topk + 1) * 4;
    let attending = selected + device.attend_bytes(c.num_attention_heads, row_shape, strip, entries);
    let attention = (strip * queries * 4 + attending.max(selecting))
        .max(strip * (queries + output) * 4)
        .max(strip * compressors * 4);
    // Of several strips each takes its rows out of the input, and its output into that of all.
    let cut = if strip < rows { (strip + rows) * d_model } else { 0 };
    let attention = (strip * projections + cut) * 4 + attention;

    let shared = (c.n_routed_experts + 3 * inter + d_model) * rows * 4;
    let experts = match streamed {
        false => {
            let own =
                (1..=rows).map(|n| device.experts_bytes(n, c.num_experts_per_tok, d_model, inter)).max().unwrap_or(0);
            shared.max((c.n_routed_experts + 2 * inter + d_model) * rows * 4 + own)
        }
        true => {
            let parts = device.experts_in_parts_bytes(rows, c.num_experts_per_tok, d_model, inter);
            shared.max(guess_values(c, rows) * 4).max(d_model * rows * 4 + parts)
        }
    };
    let layers = (through + around) * rows * 4 + attention.max(experts).max(mixing * rows * 4);
    // Behind the layers the rows that matter, and those alone.
    let logits = (hc * d_model + hc + 2 * d_model).max(d_model + c.vocab_size);
    let last = (through * rows + hc * d_model * wanted).max(2 * c.qk_rope_head_dim * rows + logits * wanted) * 4;
    layers.max(last) as u64
}
