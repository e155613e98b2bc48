//! What a model will take of a device's memory, from its configuration alone.

use fathom_kernels::{Device, IndexShape, RowShape};
use fathom_weights::Config;

use crate::model::strips;
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

/// Bytes of device scratch that a pass over `rows` tokens takes at most, where logits are wanted after `wanted` of them, with
/// experts in memory or streamed.
pub fn scratch_bytes<D: Device>(device: &D, config: &Config, streamed: bool, rows: usize, wanted: usize) -> u64 {
    let c = config;
    let (hc, d_model, inter) = (c.hc_mult, c.hidden_size, c.moe_intermediate_size);
    let heads = c.num_attention_heads * c.head_dim;
    // What lives through a pass, then the larger of attention's and the experts' most.
    let row_shape = RowShape { width: c.head_dim, rope: c.qk_rope_head_dim };
    let row = row_shape.bytes();
    let strip = strips(rows.max(1)).map(|rows| rows.len()).max().unwrap_or(1);
    let through = hc * d_model + 2 * c.qk_rope_head_dim + d_model + 2 * (hc + hc * hc) + (2 + hc) * hc + d_model;
    let index = c.index_n_heads * (c.index_head_dim + 1);
    let compress = 5 * c.head_dim;
    let attention = 3 * c.q_lora_rank + 2 * heads + 2 * c.head_dim + row.div_ceil(4) + index + compress;
    let output = d_model + heads + c.o_groups * c.o_lora_rank + d_model;
    let experts = c.n_routed_experts + 3 * inter + 2 * d_model;
    let index_shape = IndexShape { heads: c.index_n_heads, width: c.index_head_dim, keep: c.index_topk };
    // The number of rows decides how a device shares out the indexer's work: one row may take more than two.
    let index_own = [1, strip.min(32), strip].map(|n| device.index_bytes(index_shape, n));
    let entries = (c.max_position_embeddings / 128).max(c.index_topk);
    let attend_own = device.attend_bytes(c.num_attention_heads, row_shape, strip, entries);
    let experts_own = match streamed {
        false => device.experts_bytes(rows, c.num_experts_per_tok, d_model, inter),
        true => {
            let parts = device.experts_in_parts_bytes(rows, c.num_experts_per_tok, d_model, inter);
            parts + guess_values(c, rows) * 4
        }
    };
    let own = index_own.into_iter().fold(attend_own, usize::max);
    let attention = (strip * (attention + output) + rows * d_model) * 4 + own;
    let last = wanted * ((hc + 4) * d_model + c.vocab_size);
    ((rows * through + last) * 4 + attention.max(rows * experts * 4 + experts_own)) as u64
}
