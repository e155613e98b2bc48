//! Random checkpoints in the official layout, of any geometry: small ones in memory for tests, whole models straight to disk.
//!
//! The weights are noise of the same sizes as `oracle/make_checkpoint.py` draws (its bits are NumPy's, these are ours, the
//! same on every machine and for any number of threads).

mod folder;
mod noise;
mod presets;
mod tensors;

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use fathom_kernels::Format;
use fathom_kernels::math::{ln, sin_cos};
use serde_json::{Map, Value, json};

use self::noise::Noise;
use self::tensors::{Part, Tensor};
use crate::{Checkpoint, Config, Error};

pub use folder::{Folder, Size};
pub use presets::NAMES;

/// `config.json` of `oracle/tiny`, without its MTP block.
const TINY: &str = r#"{
    "architectures": ["DeepseekV4ForCausalLM"], "model_type": "deepseek_v4", "torch_dtype": "bfloat16",
    "bos_token_id": 0, "eos_token_id": 1, "expert_dtype": "fp4", "hidden_act": "silu",
    "norm_topk_prob": true, "num_key_value_heads": 1, "n_shared_experts": 1, "attention_bias": false,
    "scoring_func": "sqrtsoftplus", "topk_method": "noaux_tc", "tie_word_embeddings": false,
    "hc_eps": 1e-5, "hc_mult": 4, "hc_sinkhorn_iters": 20, "rms_norm_eps": 1e-6, "swiglu_limit": 2.0,
    "rope_theta": 10000, "compress_rope_theta": 160000, "max_position_embeddings": 1048576,
    "rope_scaling": {"type": "yarn", "factor": 16, "beta_fast": 32, "beta_slow": 1,
    "original_max_position_embeddings": 65536},
    "vocab_size": 512, "hidden_size": 128, "num_hidden_layers": 7, "num_attention_heads": 4,
    "head_dim": 192, "qk_rope_head_dim": 64, "q_lora_rank": 128, "o_groups": 2, "o_lora_rank": 64,
    "moe_intermediate_size": 128, "n_routed_experts": 16, "num_experts_per_tok": 4,
    "num_hash_layers": 3, "num_nextn_predict_layers": 0, "routed_scaling_factor": 1.5,
    "sliding_window": 32, "index_n_heads": 8, "index_head_dim": 128, "index_topk": 16,
    "compress_ratios": [0, 128, 4, 128, 4, 128, 4]
}"#;

/// A small deterministic generator (SplitMix64).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// The sequence of a seed.
    pub fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5DEE_CE66_D1CE_4E5B)
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// One of some values.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// A standard normal (Box–Muller, with our own logarithm and sine).
    pub fn normal(&mut self) -> f32 {
        let unit = |bits: u64| ((bits >> 11) + 1) as f64 / (1u64 << 53) as f64;
        let (a, b) = (unit(self.bits()), unit(self.bits()));
        ((-2.0 * ln(a)).sqrt() * sin_cos(2.0 * std::f64::consts::PI * b).1) as f32
    }
}

/// What to generate.
#[derive(Debug, Clone)]
pub struct Synth {
    /// The `config.json` to be.
    pub config: Map<String, Value>,
    /// The weights' seed.
    pub seed: u64,
}

impl Synth {
    /// The geometry of `oracle/tiny`: every layer kind, both routers.
    pub fn tiny(seed: u64) -> Self {
        let config = serde_json::from_str(TINY).expect("the text below is a JSON object");
        Synth { config, seed }
    }

    /// A session's state as V4-Flash has it, and its vocabulary, around a model that is next to nothing.
    pub fn flash_state(seed: u64) -> Self {
        let ratios: Vec<usize> = (0..43).map(|layer| if layer < 2 { 0 } else { [4, 128][layer % 2] }).collect();
        Synth::tiny(seed)
            .set("num_hidden_layers", ratios.len())
            .set("compress_ratios", ratios)
            .set("head_dim", 512)
            .set("sliding_window", 128)
            .set("vocab_size", 129_280)
            .set("num_hash_layers", 0)
            .set("hidden_size", 32)
            .set("moe_intermediate_size", 32)
            .set("num_attention_heads", 2)
            .set("o_lora_rank", 8)
            .set("q_lora_rank", 8)
            .set("index_n_heads", 1)
            .set("n_routed_experts", 2)
            .set("num_experts_per_tok", 1)
    }

    /// A small random geometry: two to five layers of any kind, FP4 or FP8 experts, odd ranks, one to four residual
    /// copies.
    pub fn random(seed: u64) -> Self {
        let mut r = Random::new(seed);
        let fp4 = r.below(3) > 0;
        let layers = 2 + r.below(4);
        let ratios: Vec<usize> = (0..layers).map(|_| r.pick(&[0, 4, 4, 128])).collect();
        let rope = r.pick(&[16, 32, 64]);
        let groups = r.pick(&[1, 2, 3]);
        let experts = 2 + r.below(7);
        Synth::tiny(seed)
            .set("expert_dtype", if fp4 { "fp4" } else { "fp8" })
            .set("num_hidden_layers", layers)
            .set("compress_ratios", ratios)
            .set("vocab_size", 64 + r.below(200))
            .set("hidden_size", if fp4 { 32 * (1 + r.below(6)) } else { 16 * (1 + r.below(12)) })
            .set("moe_intermediate_size", if fp4 { 32 * (1 + r.below(5)) } else { 8 * (1 + r.below(20)) })
            .set("qk_rope_head_dim", rope)
            .set("head_dim", rope + 64 * (1 + r.below(2)))
            .set("num_attention_heads", groups * (1 + r.below(3)))
            .set("o_groups", groups)
            .set("o_lora_rank", 8 * (1 + r.below(9)))
            .set("q_lora_rank", 8 * (1 + r.below(16)))
            .set("n_routed_experts", experts)
            .set("num_experts_per_tok", 1 + r.below(experts.min(4)))
            .set("num_hash_layers", r.below(layers + 1))
            .set("sliding_window", r.pick(&[1, 8, 20, 128]))
            .set("index_n_heads", r.pick(&[1, 4, 8, 20]))
            .set("index_head_dim", r.pick(&[64, 128, 256]))
            .set("index_topk", r.pick(&[1, 4, 16, 50]))
            .set("hc_mult", 1 + r.below(4))
            .set("hc_sinkhorn_iters", r.pick(&[1, 4, 20]))
            .set("swiglu_limit", r.pick(&[2.0, 10.0]))
    }

    /// Overrides one field of `config.json`.
    #[must_use]
    pub fn set(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.config.insert(field.to_owned(), value.into());
        self
    }

    /// The checkpoint, in memory.
    ///
    /// # Errors
    /// The configuration is none that the model can run.
    pub fn checkpoint(&self) -> Result<Checkpoint, Error> {
        let shard = self.shard()?;
        Checkpoint::from_memory(&self.config_json(), vec![("model.safetensors".to_owned(), Bytes::from(shard))])
    }

    /// `config.json` and one `model.safetensors` in a folder, by way of memory. [`Synth::write_folder`] is for large ones.
    ///
    /// # Errors
    /// As [`Synth::checkpoint`], and what the system says.
    pub fn write(&self, folder: &Path) -> Result<(), Error> {
        let put = |name: &str, bytes: &[u8]| {
            let path = folder.join(name);
            std::fs::write(&path, bytes).map_err(|cause| Error::Write { path, cause })
        };
        put("model.safetensors", &self.shard()?)?;
        put("config.json", &self.config_json())
    }

    /// Fields by name, whichever order this build's `serde_json` keeps.
    fn fields(&self) -> Value {
        json!(self.config.iter().collect::<BTreeMap<_, _>>())
    }

    fn config_json(&self) -> Vec<u8> {
        self.fields().to_string().into_bytes()
    }

    /// The configuration, and the experts' format.
    pub(crate) fn parsed(&self) -> Result<(Config, Format), Error> {
        let experts = match self.config.get("expert_dtype").and_then(Value::as_str) {
            Some("fp8") => Format::Fp8,
            Some("bf16") => Format::Bf16,
            _ => Format::Fp4,
        };
        Ok((Config::parse(&self.config_json())?, experts))
    }

    /// The configuration as the model takes it.
    ///
    /// # Errors
    /// It is none that the model can run.
    pub fn parse(&self) -> Result<Config, Error> {
        Ok(self.parsed()?.0)
    }

    /// Every tensor there will be.
    fn tensors(&self) -> Result<Vec<Tensor>, Error> {
        let (config, experts) = self.parsed()?;
        tensors::tensors(&config, experts)
    }

    /// Tells every tensor that a file would have.
    pub(crate) fn parts(&self, mut each: impl FnMut(Part)) -> Result<(), Error> {
        self.tensors()?.iter().flat_map(Tensor::parts).for_each(&mut each);
        Ok(())
    }

    /// The one shard of a small checkpoint.
    fn shard(&self) -> Result<Vec<u8>, Error> {
        let all = self.tensors()?;
        let mut out = header(all.iter().flat_map(Tensor::parts));
        let mut noise = Noise::new();
        for tensor in &all {
            let (mut data, mut scales) = (Vec::new(), Vec::new());
            for first in (0..tensor.size().0).step_by(tensor.strip_rows()) {
                let strip = noise.strip(tensor, self.seed, first);
                data.extend(strip.data);
                scales.extend(strip.scales);
            }
            out.extend(data);
            out.extend(scales);
        }
        Ok(out)
    }
}

/// A safetensors file's header. It is written by hand, so that tensors are named in the order in which they lie, whatever
/// order another crate of the build has `serde_json` keep.
fn header(parts: impl Iterator<Item = Part>) -> Vec<u8> {
    let mut text = String::from("{");
    let mut at = 0;
    for Part { name, dtype, shape, bytes } in parts {
        let comma = if at == 0 { "" } else { "," };
        let end = at + bytes;
        // By name: the same whether serde_json keeps the order or sorts.
        let entry = json!({"data_offsets": [at, end], "dtype": dtype, "shape": shape});
        text.push_str(&format!("{comma}\"{name}\":{entry}"));
        at = end;
    }
    text.push('}');
    let padded = text.len().next_multiple_of(8);
    let mut out = (padded as u64).to_le_bytes().to_vec();
    out.extend(text.into_bytes());
    out.resize(8 + padded, b' ');
    out
}

#[cfg(test)]
mod tests;
