//! Geometries by name, as `config.json`s.

use serde_json::{Map, Value, json};

use super::Synth;

/// The names that [`Synth::named`] knows, smallest first.
pub const NAMES: [&str; 5] = ["tiny", "mid", "flash-slice", "v4-flash", "v4-pro"];

impl Synth {
    /// A geometry by name: `tiny` and `mid` of the test oracle, `flash-slice` (V4-Flash cut to four layers and 16 experts),
    /// and `v4-flash` and `v4-pro`, the released models' own.
    pub fn named(name: &str, seed: u64) -> Option<Synth> {
        let config = match name {
            "tiny" => {
                Synth::tiny(seed)
                    .set("num_nextn_predict_layers", 1)
                    .set("compress_ratios", vec![0, 128, 4, 128, 4, 128, 4, 0])
                    .config
            }
            "mid" => mid(),
            "flash-slice" => flash_slice(),
            "v4-flash" => flash(),
            "v4-pro" => pro(),
            _ => return None,
        };
        let Value::Object(mut all) = common() else { return None };
        all.extend(config);
        Some(Synth { config: all, seed })
    }

    /// Another number of layers, with `compress_ratios` to go with it: those there are, then the last two in turn; what the
    /// MTP blocks have stays. A model of fewer layers than have hash routing has it in all.
    #[must_use]
    pub fn with_layers(mut self, layers: usize) -> Synth {
        let number = |v: &Value| v.as_u64().unwrap_or(0) as usize;
        let old = self.config.get("num_hidden_layers").map_or(0, number);
        let list: Vec<usize> = match self.config.get("compress_ratios") {
            Some(Value::Array(list)) => list.iter().map(number).collect(),
            _ => Vec::new(),
        };
        let (body, drafts) = list.split_at(old.min(list.len()));
        let mut ratios: Vec<usize> = body.iter().copied().take(layers).collect();
        while ratios.len() < layers {
            let at = ratios.len();
            ratios.push(if at < 2 { 0 } else { ratios[at - 2] });
        }
        ratios.extend(drafts);
        let hash = self.config.get("num_hash_layers").map_or(0, number).min(layers);
        self = self.set("num_hidden_layers", layers).set("compress_ratios", ratios);
        self.set("num_hash_layers", hash)
    }
}

/// What all have in common.
fn common() -> Value {
    json!({
        "architectures": ["DeepseekV4ForCausalLM"], "model_type": "deepseek_v4", "torch_dtype": "bfloat16",
        "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 1,
        "expert_dtype": "fp4", "hidden_act": "silu", "norm_topk_prob": true, "num_key_value_heads": 1,
        "n_shared_experts": 1, "scoring_func": "sqrtsoftplus", "topk_method": "noaux_tc",
        "tie_word_embeddings": false, "use_cache": true, "initializer_range": 0.02,
        "hc_eps": 1e-6, "hc_mult": 4, "hc_sinkhorn_iters": 20, "rms_norm_eps": 1e-6, "swiglu_limit": 10.0,
        "rope_theta": 10000, "compress_rope_theta": 160_000, "max_position_embeddings": 1_048_576,
        "rope_scaling": {
            "type": "yarn", "factor": 16, "beta_fast": 32, "beta_slow": 1, "original_max_position_embeddings": 65536
        },
        "quantization_config": {
            "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "scale_fmt": "ue8m0",
            "weight_block_size": [128, 128]
        }
    })
}

/// The fields of an object.
fn fields(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

/// Two layers of kind `first`, then CSA and HCA in turn, then MTP's.
fn ratios(layers: usize, first: usize) -> Vec<usize> {
    let kind = |layer: usize| if layer < 2 { first } else { [4, 128][layer % 2] };
    (0..layers).map(kind).chain([0]).collect()
}

/// The attention geometry of V4-Flash, few and narrow experts.
fn mid() -> Map<String, Value> {
    fields(json!({
        "vocab_size": 8192, "hidden_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 16,
        "head_dim": 512, "qk_rope_head_dim": 64, "q_lora_rank": 512, "o_groups": 4, "o_lora_rank": 256,
        "moe_intermediate_size": 512, "n_routed_experts": 64, "num_experts_per_tok": 6,
        "num_hash_layers": 3, "num_nextn_predict_layers": 1, "routed_scaling_factor": 1.5,
        "sliding_window": 128, "index_n_heads": 16, "index_head_dim": 128, "index_topk": 512,
        "compress_ratios": [0, 0, 4, 128, 4, 128, 0]
    }))
}

fn flash() -> Map<String, Value> {
    fields(json!({
        "vocab_size": 129_280, "hidden_size": 4096, "num_hidden_layers": 43, "num_attention_heads": 64,
        "head_dim": 512, "qk_rope_head_dim": 64, "q_lora_rank": 1024, "o_groups": 8, "o_lora_rank": 1024,
        "moe_intermediate_size": 2048, "n_routed_experts": 256, "num_experts_per_tok": 6,
        "num_hash_layers": 3, "num_nextn_predict_layers": 1, "routed_scaling_factor": 1.5,
        "sliding_window": 128, "index_n_heads": 64, "index_head_dim": 128, "index_topk": 512,
        "compress_ratios": ratios(43, 0)
    }))
}

fn flash_slice() -> Map<String, Value> {
    let mut config = flash();
    config.extend(fields(json!({
        "num_hidden_layers": 4, "n_routed_experts": 16, "num_hash_layers": 1, "num_nextn_predict_layers": 0,
        "compress_ratios": [0, 4, 128, 4]
    })));
    config
}

fn pro() -> Map<String, Value> {
    let mut config = flash();
    config.extend(fields(json!({
        "hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 128, "q_lora_rank": 1536, "o_groups": 16,
        "moe_intermediate_size": 3072, "n_routed_experts": 384, "routed_scaling_factor": 2.5, "index_topk": 1024,
        "compress_ratios": ratios(61, 128)
    })));
    config
}
