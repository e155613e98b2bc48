//! Random checkpoints in the official layout, small and seeded, for tests over many geometries.
//!
//! The weights are noise of the same sizes as `oracle/make_checkpoint.py` draws (its bits are NumPy's, these are ours, the
//! same on every machine).

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use bytes::Bytes;
use fathom_kernels::formats::{to_bf16, to_e2m1, to_e4m3};
use fathom_kernels::math::{ln, sin_cos};
use serde_json::{Map, Value, json};

use crate::{Checkpoint, Config, Error};

/// Each block adds little to its residual, as in a trained model.
const RESIDUAL_GAIN: f32 = 0.25;

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

struct Tensor {
    dtype: &'static str,
    shape: Vec<usize>,
    bytes: Vec<u8>,
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
        let (config, shard) = self.bytes()?;
        Checkpoint::from_memory(&config, vec![("model.safetensors".to_owned(), Bytes::from(shard))])
    }

    /// `config.json` and one `model.safetensors` in a folder.
    ///
    /// # Errors
    /// As [`Synth::checkpoint`], and what the system says.
    pub fn write(&self, folder: &Path) -> Result<(), Error> {
        let (config, shard) = self.bytes()?;
        let put = |name: &str, bytes: &[u8]| -> Result<(), Error> {
            let path = folder.join(name);
            std::fs::write(&path, bytes).map_err(|cause: io::Error| Error::Read { path, cause })
        };
        put("config.json", &config)?;
        put("model.safetensors", &shard)
    }

    fn bytes(&self) -> Result<(Vec<u8>, Vec<u8>), Error> {
        // By name, whichever order this build's `serde_json` keeps.
        let fields: BTreeMap<_, _> = self.config.iter().collect();
        let config = json!(fields).to_string().into_bytes();
        let parsed = Config::parse(&config)?;
        let fp4 = self.config.get("expert_dtype").is_none_or(|v| v == "fp4");
        let mut draw = Draw { random: Random::new(self.seed), tensors: BTreeMap::new(), fp4 };
        draw.model(&parsed);
        Ok((config, serialise(&draw.tensors)))
    }
}

/// A safetensors file. Keys are in alphabetical order, so that the bytes do not depend on whether another crate of
/// the build has `serde_json` keep the order they are put in.
fn serialise(tensors: &BTreeMap<String, Tensor>) -> Vec<u8> {
    let mut header = Map::new();
    let mut at = 0;
    for (name, t) in tensors {
        let end = at + t.bytes.len();
        header.insert(name.clone(), json!({"data_offsets": [at, end], "dtype": t.dtype, "shape": t.shape}));
        at = end;
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.extend(text);
    tensors.values().for_each(|t| out.extend(&t.bytes));
    out
}

struct Draw {
    random: Random,
    tensors: BTreeMap<String, Tensor>,
    fp4: bool,
}

impl Draw {
    fn noise(&mut self, n: usize, deviation: f32) -> Vec<f32> {
        (0..n).map(|_| self.random.normal() * deviation).collect()
    }

    fn put(&mut self, name: String, dtype: &'static str, shape: &[usize], bytes: Vec<u8>) {
        self.tensors.insert(name, Tensor { dtype, shape: shape.to_vec(), bytes });
    }

    fn f32(&mut self, name: String, shape: &[usize], values: Vec<f32>) {
        self.put(name, "F32", shape, values.into_iter().flat_map(f32::to_le_bytes).collect());
    }

    fn bf16(&mut self, name: String, rows: usize, cols: usize, gain: f32) {
        let values = self.noise(rows * cols, gain * root(cols));
        self.put(name, "BF16", &[rows, cols], values.into_iter().flat_map(|v| to_bf16(v).to_le_bytes()).collect());
    }

    fn norm(&mut self, name: String, n: usize) {
        let values = self.noise(n, 0.1);
        self.put(name, "BF16", &[n], values.into_iter().flat_map(|v| to_bf16(1.0 + v).to_le_bytes()).collect());
    }

    fn fp8(&mut self, name: &str, rows: usize, cols: usize, gain: f32) {
        let w = self.noise(rows * cols, gain * root(cols));
        let (down, across) = (rows.div_ceil(128), cols.div_ceil(128));
        let (mut codes, mut scales) = (vec![0; rows * cols], Vec::new());
        for block in 0..down * across {
            let (r, c) = (block / across * 128, block % across * 128);
            let cells = (r..rows.min(r + 128)).flat_map(|r| (c..cols.min(c + 128)).map(move |c| r * cols + c));
            let largest = cells.clone().fold(1e-4f32, |a, i| a.max(w[i].abs()));
            let e = exponent(largest / 448.0);
            scales.push(e);
            cells.for_each(|i| codes[i] = to_e4m3(w[i] / power(e)));
        }
        self.put(format!("{name}.weight"), "F8_E4M3", &[rows, cols], codes);
        self.put(format!("{name}.scale"), "F8_E8M0", &[down, across], scales);
    }

    fn fp4(&mut self, name: &str, rows: usize, cols: usize, gain: f32) {
        let w = self.noise(rows * cols, gain * root(cols));
        let (mut codes, mut scales) = (Vec::new(), Vec::new());
        for group in w.chunks(32) {
            let e = exponent(group.iter().fold(1e-6f32, |a, v| a.max(v.abs())) / 6.0);
            scales.push(e);
            codes.extend(group.chunks(2).map(|p| to_e2m1(p[0] / power(e)) | to_e2m1(p[1] / power(e)) << 4));
        }
        self.put(format!("{name}.weight"), "I8", &[rows, cols / 2], codes);
        self.put(format!("{name}.scale"), "F8_E8M0", &[rows, cols / 32], scales);
    }

    fn hyper(&mut self, name: &str, mixes: usize, scales: usize, hc: usize, d: usize) {
        let mix = self.noise(mixes * hc * d, root(hc * d));
        self.f32(format!("{name}_fn"), &[mixes, hc * d], mix);
        let mut base = self.noise(mixes, 0.3);
        if mixes > hc {
            (0..hc).for_each(|i| base[2 * hc + i * hc + i] += 2.0);
        }
        self.f32(format!("{name}_base"), &[mixes], base);
        let scale = self.noise(scales, 0.3).into_iter().map(|v| 0.5 + v.abs()).collect();
        self.f32(format!("{name}_scale"), &[scales], scale);
    }

    fn compressor(&mut self, p: &str, ratio: usize, width: usize, d: usize) {
        let wide = if ratio == 4 { 2 * width } else { width };
        let ape = self.noise(ratio * wide, 0.5);
        self.f32(format!("{p}.ape"), &[ratio, wide], ape);
        self.bf16(format!("{p}.wkv.weight"), wide, d, 1.0);
        self.bf16(format!("{p}.wgate.weight"), wide, d, 2.0);
        self.norm(format!("{p}.norm.weight"), width);
    }

    fn model(&mut self, c: &Config) {
        let (d, hc) = (c.hidden_size, c.hc_mult);
        self.bf16("embed.weight".into(), c.vocab_size, d, (d as f32).sqrt());
        self.bf16("head.weight".into(), c.vocab_size, d, 1.0);
        self.norm("norm.weight".into(), d);
        self.hyper("hc_head", hc, 1, hc, d);
        for (i, &ratio) in c.compress_ratios[..c.num_hidden_layers].iter().enumerate() {
            let p = format!("layers.{i}");
            for half in ["attn", "ffn"] {
                self.hyper(&format!("{p}.hc_{half}"), (2 + hc) * hc, 3, hc, d);
                self.norm(format!("{p}.{half}_norm.weight"), d);
            }
            self.attention(c, &format!("{p}.attn"), ratio);
            self.moe(c, &format!("{p}.ffn"), i < c.num_hash_layers);
        }
    }

    fn attention(&mut self, c: &Config, p: &str, ratio: usize) {
        let (d, wide) = (c.hidden_size, c.num_attention_heads * c.head_dim);
        let sink = self.noise(c.num_attention_heads, 1.0);
        self.f32(format!("{p}.attn_sink"), &[c.num_attention_heads], sink);
        self.fp8(&format!("{p}.wq_a"), c.q_lora_rank, d, 1.0);
        self.norm(format!("{p}.q_norm.weight"), c.q_lora_rank);
        self.fp8(&format!("{p}.wq_b"), wide, c.q_lora_rank, 1.0);
        self.fp8(&format!("{p}.wkv"), c.head_dim, d, 1.0);
        self.norm(format!("{p}.kv_norm.weight"), c.head_dim);
        self.fp8(&format!("{p}.wo_a"), c.o_groups * c.o_lora_rank, wide / c.o_groups, 1.0);
        self.fp8(&format!("{p}.wo_b"), d, c.o_groups * c.o_lora_rank, RESIDUAL_GAIN);
        if ratio > 0 {
            self.compressor(&format!("{p}.compressor"), ratio, c.head_dim, d);
        }
        if ratio == 4 {
            let q = format!("{p}.indexer");
            self.fp8(&format!("{q}.wq_b"), c.index_n_heads * c.index_head_dim, c.q_lora_rank, 1.0);
            self.bf16(format!("{q}.weights_proj.weight"), c.index_n_heads, d, 1.0);
            self.compressor(&format!("{q}.compressor"), ratio, c.index_head_dim, d);
        }
    }

    fn moe(&mut self, c: &Config, p: &str, hash: bool) {
        let (d, inter, experts) = (c.hidden_size, c.moe_intermediate_size, c.n_routed_experts);
        self.bf16(format!("{p}.gate.weight"), experts, d, 1.0);
        if hash {
            let k = c.num_experts_per_tok;
            let mut table = Vec::new();
            for _ in 0..c.vocab_size {
                let mut order: Vec<usize> = (0..experts).collect();
                for slot in 0..k {
                    let other = slot + self.random.below(experts - slot);
                    order.swap(slot, other);
                    table.extend((order[slot] as i64).to_le_bytes());
                }
            }
            self.put(format!("{p}.gate.tid2eid"), "I64", &[c.vocab_size, k], table);
        } else {
            let bias = self.noise(experts, 0.1);
            self.f32(format!("{p}.gate.bias"), &[experts], bias);
        }
        for e in 0..experts {
            for (w, rows, cols, gain) in [("w1", inter, d, 1.5), ("w2", d, inter, RESIDUAL_GAIN), ("w3", inter, d, 1.5)]
            {
                let name = format!("{p}.experts.{e}.{w}");
                if self.fp4 { self.fp4(&name, rows, cols, gain) } else { self.fp8(&name, rows, cols, gain) }
            }
        }
        for (w, rows, cols, gain) in [("w1", inter, d, 1.0), ("w2", d, inter, RESIDUAL_GAIN), ("w3", inter, d, 1.0)] {
            self.fp8(&format!("{p}.shared_experts.{w}"), rows, cols, gain);
        }
    }
}

/// n^-½.
fn root(n: usize) -> f32 {
    1.0 / (n as f32).sqrt()
}

/// The UE8M0 byte of the smallest power of two that is not below x.
fn exponent(x: f32) -> u8 {
    let bits = x.to_bits();
    ((bits >> 23) + u32::from(bits & 0x7f_ffff > 0)).clamp(1, 254) as u8
}

fn power(e: u8) -> f32 {
    f32::from_bits(u32::from(e) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_geometry_opens() {
        for seed in 0..60 {
            let synth = Synth::random(seed);
            synth.checkpoint().unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes() {
        let bytes = |seed| Synth::tiny(seed).bytes().unwrap().1;
        assert_eq!(bytes(3), bytes(3));
        assert_ne!(bytes(3), bytes(4));
    }

    #[test]
    fn noise_is_normal() {
        let mut random = Random::new(1);
        let values: Vec<f64> = (0..20_000).map(|_| f64::from(random.normal())).collect();
        let mean = values.iter().sum::<f64>() / 20_000.0;
        let square = values.iter().map(|v| v * v).sum::<f64>() / 20_000.0;
        assert!(mean.abs() < 0.03 && (square - 1.0).abs() < 0.05, "{mean} {square}");
    }
}
