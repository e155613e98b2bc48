//! Official names of tensors, whatever a checkpoint spells them.

/// The official name of a tensor that may have a `model.` prefix or a third party's spelling.
pub(crate) fn official(name: &str) -> String {
    let name = name.strip_prefix("model.").unwrap_or(name);
    let mut out = String::with_capacity(name.len());
    for part in name.split('.') {
        let part = match part {
            "self_attn" => "attn",
            "mlp" => "ffn",
            "lm_head" => "head",
            "embed_tokens" => "embed",
            "weight_scale_inv" => "scale",
            "e_score_correction_bias" => "bias",
            "input_layernorm" => "attn_norm",
            "post_attention_layernorm" => "ffn_norm",
            other => other,
        };
        if !out.is_empty() {
            out.push('.');
        }
        out.push_str(part);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::official;

    #[test]
    fn spellings() {
        for (found, name) in [
            ("layers.3.attn.wq_a.weight", "layers.3.attn.wq_a.weight"),
            ("model.layers.3.self_attn.wq_a.weight_scale_inv", "layers.3.attn.wq_a.scale"),
            ("model.layers.0.mlp.gate.e_score_correction_bias", "layers.0.ffn.gate.bias"),
            ("lm_head.weight", "head.weight"),
            ("model.embed_tokens.weight", "embed.weight"),
            ("model.norm.weight", "norm.weight"),
        ] {
            assert_eq!(official(found), name);
        }
    }
}
