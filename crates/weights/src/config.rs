//! `config.json`: every field that matters, checked.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::Error;

/// YaRN, from `rope_scaling`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Yarn {
    /// How many times the original context.
    pub factor: f64,
    /// Turns within the original context above which a frequency stays.
    pub beta_fast: f64,
    /// Turns below which it is divided by `factor`.
    pub beta_slow: f64,
    /// The original context, in positions.
    pub original_max_position_embeddings: usize,
}

/// A DeepSeek V4 configuration that the model can run. Names are those of `config.json`.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub struct Config {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub head_dim: usize,
    pub qk_rope_head_dim: usize,
    pub q_lora_rank: usize,
    pub o_groups: usize,
    pub o_lora_rank: usize,
    pub n_routed_experts: usize,
    pub num_experts_per_tok: usize,
    pub moe_intermediate_size: usize,
    pub num_hash_layers: usize,
    pub num_nextn_predict_layers: usize,
    pub routed_scaling_factor: f32,
    pub sliding_window: usize,
    pub index_n_heads: usize,
    pub index_head_dim: usize,
    pub index_topk: usize,
    /// For each layer 0 (sliding window), 4 (CSA) or 128 (HCA); entries after the layers' are MTP's.
    pub compress_ratios: Vec<usize>,
    pub swiglu_limit: f32,
    pub hc_mult: usize,
    pub hc_sinkhorn_iters: usize,
    pub hc_eps: f32,
    pub rms_norm_eps: f32,
    pub rope_theta: f64,
    pub compress_rope_theta: f64,
    pub rope_scaling: Yarn,
    pub max_position_embeddings: usize,
    pub bos_token_id: u32,
    pub eos_token_id: u32,
}

/// The most positions whose numbers an f32 holds exactly.
const MAX_POSITIONS: usize = 1 << 24;

struct Fields<'a>(&'a Map<String, Value>);

fn wrong<T>(field: &str, problem: impl Into<String>) -> Result<T, Error> {
    Err(Error::Config { field: field.to_owned(), problem: problem.into() })
}

impl Fields<'_> {
    fn size(&self, name: &str, range: RangeInclusive<usize>, default: Option<usize>) -> Result<usize, Error> {
        let limits = format!("a whole number from {} to {}", range.start(), range.end());
        match (self.0.get(name), default) {
            (None, Some(default)) => Ok(default),
            (None, None) => wrong(name, format!("is missing; it must be {limits}")),
            (Some(value), _) => match value.as_u64().and_then(|v| usize::try_from(v).ok()) {
                Some(v) if range.contains(&v) => Ok(v),
                _ => wrong(name, format!("is {value}; it must be {limits}")),
            },
        }
    }

    fn number(&self, name: &str, least: f64, most: f64, default: Option<f64>) -> Result<f64, Error> {
        match (self.0.get(name), default) {
            (None, Some(default)) => Ok(default),
            (None, None) => wrong(name, format!("is missing; it must be a number from {least} to {most}")),
            (Some(value), _) => match value.as_f64() {
                Some(v) if (least..=most).contains(&v) => Ok(v),
                _ => wrong(name, format!("is {value}; it must be a number from {least} to {most}")),
            },
        }
    }

    /// A field that has one value we can run; absent counts as that value.
    fn only(&self, name: &str, value: Value) -> Result<(), Error> {
        match self.0.get(name) {
            None => Ok(()),
            Some(found) if *found == value => Ok(()),
            Some(found) => wrong(name, format!("is {found}; fathom runs models with {value} only")),
        }
    }

    /// An object that may be absent or null.
    fn part(&self, name: &str) -> Result<Option<Fields<'_>>, Error> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(inner)) => Ok(Some(Fields(inner))),
            Some(found) => wrong(name, format!("is {found}; it must be an object")),
        }
    }
}

impl Config {
    /// Reads and checks a `config.json`. Unknown fields are ignored.
    ///
    /// # Errors
    /// [`Error::Config`], naming the field, its value and what would do.
    pub fn parse(json: &[u8]) -> Result<Config, Error> {
        let value: Value = match serde_json::from_slice(json) {
            Ok(value) => value,
            Err(e) => return wrong("(whole file)", format!("is not JSON: {e}")),
        };
        let Value::Object(map) = &value else { return wrong("(whole file)", "is not a JSON object") };
        let f = Fields(map);
        match map.get("model_type") {
            Some(Value::String(s)) if s == "deepseek_v4" => {}
            Some(other) => return wrong("model_type", format!("is {other}; fathom runs \"deepseek_v4\" only")),
            None => return wrong("model_type", "is missing; it must be \"deepseek_v4\""),
        }
        architectures(map)?;
        quantization(&f)?;
        f.only("scoring_func", "sqrtsoftplus".into())?;
        f.only("topk_method", "noaux_tc".into())?;
        f.only("hidden_act", "silu".into())?;
        f.only("norm_topk_prob", true.into())?;
        f.only("attention_bias", false.into())?;
        f.only("tie_word_embeddings", false.into())?;
        f.only("n_shared_experts", 1.into())?;
        f.only("num_key_value_heads", 1.into())?;
        let num_hidden_layers = f.size("num_hidden_layers", 1..=4096, None)?;
        let config = Config {
            vocab_size: f.size("vocab_size", 1..=1 << 24, None)?,
            hidden_size: f.size("hidden_size", 1..=1 << 20, None)?,
            num_hidden_layers,
            num_attention_heads: f.size("num_attention_heads", 1..=1 << 14, None)?,
            head_dim: f.size("head_dim", 1..=1 << 14, None)?,
            qk_rope_head_dim: f.size("qk_rope_head_dim", 1..=1 << 14, None)?,
            q_lora_rank: f.size("q_lora_rank", 1..=1 << 20, None)?,
            o_groups: f.size("o_groups", 1..=1 << 14, None)?,
            o_lora_rank: f.size("o_lora_rank", 1..=1 << 20, None)?,
            n_routed_experts: f.size("n_routed_experts", 1..=1 << 16, None)?,
            num_experts_per_tok: f.size("num_experts_per_tok", 1..=1 << 10, None)?,
            moe_intermediate_size: f.size("moe_intermediate_size", 1..=1 << 20, None)?,
            num_hash_layers: f.size("num_hash_layers", 0..=4096, Some(0))?,
            num_nextn_predict_layers: f.size("num_nextn_predict_layers", 0..=64, Some(0))?,
            routed_scaling_factor: f.number("routed_scaling_factor", 1e-6, 1e6, None)? as f32,
            sliding_window: f.size("sliding_window", 1..=1 << 16, None)?,
            index_n_heads: f.size("index_n_heads", 1..=1 << 12, None)?,
            index_head_dim: f.size("index_head_dim", 1..=1 << 12, None)?,
            index_topk: f.size("index_topk", 1..=1 << 20, None)?,
            compress_ratios: ratios(map, num_hidden_layers)?,
            swiglu_limit: f.number("swiglu_limit", 1e-6, 1e30, Some(10.0))? as f32,
            hc_mult: f.size("hc_mult", 1..=16, Some(4))?,
            hc_sinkhorn_iters: f.size("hc_sinkhorn_iters", 1..=1000, Some(20))?,
            hc_eps: f.number("hc_eps", 0.0, 1.0, Some(1e-6))? as f32,
            rms_norm_eps: f.number("rms_norm_eps", 0.0, 1.0, Some(1e-6))? as f32,
            rope_theta: f.number("rope_theta", 1.5, 1e12, Some(10_000.0))?,
            compress_rope_theta: f.number("compress_rope_theta", 1.5, 1e12, Some(160_000.0))?,
            rope_scaling: yarn(map)?,
            max_position_embeddings: f.size("max_position_embeddings", 1..=MAX_POSITIONS, Some(1 << 20))?,
            bos_token_id: f.size("bos_token_id", 0..=1 << 24, Some(0))? as u32,
            eos_token_id: f.size("eos_token_id", 0..=1 << 24, Some(1))? as u32,
        };
        config.check()?;
        Ok(config)
    }

    /// What fields must be to each other.
    fn check(&self) -> Result<(), Error> {
        let (d, r) = (self.head_dim, self.qk_rope_head_dim);
        if !r.is_multiple_of(16) || r > d || !(d - r).is_multiple_of(64) {
            let rule = "must be a multiple of 16 and leave a multiple of 64 of head_dim";
            return wrong("qk_rope_head_dim", format!("is {r} with head_dim {d}; it {rule}"));
        }
        let di = self.index_head_dim;
        if !di.is_power_of_two() || di < 32 || r > di {
            let rule = "must be a power of two, at least 32 and at least qk_rope_head_dim";
            return wrong("index_head_dim", format!("is {di}; it {rule}"));
        }
        let (heads, groups) = (self.num_attention_heads, self.o_groups);
        if !(heads * d).is_multiple_of(groups) {
            return wrong("o_groups", format!("is {groups}, which does not divide {heads} heads of {d}"));
        }
        let (k, experts) = (self.num_experts_per_tok, self.n_routed_experts);
        if k > experts {
            return wrong("num_experts_per_tok", format!("is {k}, but there are only {experts} experts"));
        }
        // V4-Pro has 23,424 experts in all; a config that asks for millions is no model's.
        if experts * self.num_hidden_layers > 1 << 20 {
            let layers = self.num_hidden_layers;
            return wrong("n_routed_experts", format!("is {experts} in {layers} layers; a million in all is the most"));
        }
        if self.num_hash_layers > self.num_hidden_layers {
            let (hash, all) = (self.num_hash_layers, self.num_hidden_layers);
            return wrong("num_hash_layers", format!("is {hash}, but there are only {all} layers"));
        }
        for (name, token) in [("bos_token_id", self.bos_token_id), ("eos_token_id", self.eos_token_id)] {
            if token as usize >= self.vocab_size {
                return wrong(name, format!("is {token}, outside the vocabulary of {}", self.vocab_size));
            }
        }
        Ok(())
    }
}

/// Errors of the fields of `object` name it too.
fn inside(object: &str) -> impl Fn(Error) -> Error + '_ {
    move |e| match e {
        Error::Config { field, problem } => Error::Config { field: format!("{object}.{field}"), problem },
        other => other,
    }
}

/// `architectures` is what `model_type` says, where it is there.
fn architectures(map: &Map<String, Value>) -> Result<(), Error> {
    const NAME: &str = "architectures";
    let ours = |v: &Value| v.as_str().is_some_and(|name| name.starts_with("DeepseekV4"));
    match map.get(NAME) {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Array(list)) if list.iter().any(ours) => Ok(()),
        Some(found) => wrong(NAME, format!("is {found}; fathom runs [\"DeepseekV4ForCausalLM\"] only")),
    }
}

/// How matrices are stored, where the config says. Which matrices are, and as what, the files themselves say.
fn quantization(f: &Fields<'_>) -> Result<(), Error> {
    const NAME: &str = "quantization_config";
    if let Some(q) = f.part(NAME)? {
        let known = [
            ("quant_method", Value::from("fp8")),
            ("fmt", "e4m3".into()),
            ("scale_fmt", "ue8m0".into()),
            ("weight_block_size", vec![128, 128].into()),
            ("activation_scheme", "dynamic".into()),
        ];
        known.into_iter().try_for_each(|(name, value)| q.only(name, value)).map_err(inside(NAME))?;
    }
    match f.0.get("expert_dtype") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::String(s)) if matches!(s.as_str(), "fp4" | "fp8" | "bf16") => Ok(()),
        Some(found) => wrong("expert_dtype", format!("is {found}; fathom knows \"fp4\", \"fp8\" and \"bf16\"")),
    }
}

fn ratios(map: &Map<String, Value>, layers: usize) -> Result<Vec<usize>, Error> {
    const NAME: &str = "compress_ratios";
    let Some(Value::Array(list)) = map.get(NAME) else {
        return wrong(NAME, "is missing or not a list; it must have 0, 4 or 128 for each layer");
    };
    if list.len() < layers || list.len() > layers + 64 {
        return wrong(NAME, format!("has {} entries for {layers} layers", list.len()));
    }
    list.iter()
        .enumerate()
        .map(|(i, value)| match value.as_u64() {
            Some(ratio @ (0 | 4 | 128)) => Ok(ratio as usize),
            _ => wrong(NAME, format!("has {value} for layer {i}; fathom knows 0, 4 and 128")),
        })
        .collect()
}

fn yarn(map: &Map<String, Value>) -> Result<Yarn, Error> {
    let scaling = map.get("rope_scaling").filter(|v| !v.is_null());
    let Some(Value::Object(inner)) = scaling.or_else(|| map.get("rope_parameters")) else {
        return wrong("rope_scaling", "is missing or not an object; it must describe YaRN");
    };
    let names = ["type", "rope_type"].map(|name| (name, inner.get(name)));
    for (name, kind) in names.iter().filter_map(|(name, kind)| Some((name, (*kind)?))) {
        if kind != "yarn" {
            return wrong(&format!("rope_scaling.{name}"), format!("is {kind}; fathom knows \"yarn\" only"));
        }
    }
    if names.iter().all(|(_, kind)| kind.is_none()) {
        return wrong("rope_scaling.type", "is missing; it must be \"yarn\"");
    }
    let f = Fields(inner);
    let read = || {
        let (fast, slow) =
            (f.number("beta_fast", 1e-3, 1e6, Some(32.0))?, f.number("beta_slow", 1e-3, 1e6, Some(1.0))?);
        if fast < slow {
            return wrong("beta_fast", format!("is {fast}, but beta_slow is {slow}; it must be no less"));
        }
        Ok(Yarn {
            factor: f.number("factor", 1.0, 1e6, None)?,
            beta_fast: fast,
            beta_slow: slow,
            original_max_position_embeddings: f.size("original_max_position_embeddings", 1..=MAX_POSITIONS, None)?,
        })
    };
    read().map_err(inside("rope_scaling"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tiny() -> Map<String, Value> {
        match serde_json::from_slice(include_bytes!("../../../fixtures/tiny/config.json")).unwrap() {
            Value::Object(map) => map,
            _ => unreachable!(),
        }
    }

    fn parse(map: &Map<String, Value>) -> Result<Config, Error> {
        Config::parse(&serde_json::to_vec(map).unwrap())
    }

    #[test]
    fn reads_the_official_layout() {
        let config = parse(&tiny()).unwrap();
        assert_eq!((config.hidden_size, config.head_dim, config.compress_ratios.len()), (128, 192, 8));
        assert_eq!(config.rope_scaling.original_max_position_embeddings, 65_536);
    }

    #[test]
    fn refuses_by_name() {
        let bad = [
            ("model_type", "\"llama\"", "deepseek_v4"),
            ("hidden_size", "0", "hidden_size is 0"),
            ("hidden_size", "-5", "hidden_size is -5"),
            ("hidden_size", "\"128\"", "hidden_size is \"128\""),
            ("hidden_size", "1e30", "hidden_size is 1e+30"),
            ("head_dim", "190", "qk_rope_head_dim"),
            ("index_head_dim", "96", "index_head_dim is 96"),
            ("o_groups", "7", "o_groups is 7"),
            ("num_experts_per_tok", "17", "only 16 experts"),
            ("compress_ratios", "[0, 128, 4, 128, 4, 64, 4, 0]", "has 64 for layer 5"),
            ("compress_ratios", "[0]", "1 entries for 7 layers"),
            ("scoring_func", "\"softmax\"", "scoring_func is \"softmax\""),
            ("rope_scaling", "{\"type\": \"linear\"}", "rope_scaling.type is \"linear\""),
            ("rope_scaling", "{\"type\": \"yarn\", \"factor\": 0}", "rope_scaling.factor is 0"),
            ("max_position_embeddings", "999999999", "max_position_embeddings is 999999999"),
            ("eos_token_id", "512", "outside the vocabulary"),
            ("rms_norm_eps", "-1", "rms_norm_eps is -1"),
            ("hc_mult", "null", "hc_mult is null"),
            ("hidden_act", "null", "hidden_act is null"),
            ("architectures", "[\"LlamaForCausalLM\"]", "architectures is [\"LlamaForCausalLM\"]"),
            ("expert_dtype", "\"int4\"", "expert_dtype is \"int4\""),
            ("quantization_config", "7", "quantization_config is 7"),
            ("quantization_config", "{\"fmt\": \"e5m2\"}", "quantization_config.fmt is \"e5m2\""),
            ("quantization_config", "{\"weight_block_size\": [64, 64]}", "weight_block_size is [64,64]"),
            ("rope_scaling", "{\"type\": \"yarn\", \"rope_type\": \"linear\"}", "rope_scaling.rope_type is \"linear\""),
            (
                "rope_scaling",
                "{\"type\": \"yarn\", \"factor\": 16, \"beta_fast\": 1, \"beta_slow\": 32}",
                "rope_scaling.beta_fast is 1, but beta_slow is 32",
            ),
        ];
        for (field, value, expected) in bad {
            let mut map = tiny();
            map.insert(field.to_owned(), serde_json::from_str(value).unwrap());
            let message = parse(&map).unwrap_err().to_string();
            assert!(message.starts_with("config.json: ") && message.contains(expected), "{field} {value}: {message}");
        }
        for field in ["hidden_size", "vocab_size", "compress_ratios", "model_type", "rope_scaling"] {
            let mut map = tiny();
            map.remove(field);
            let message = parse(&map).unwrap_err().to_string();
            assert!(message.contains(field) && message.contains("missing"), "{message}");
        }
        assert!(Config::parse(b"[1]").unwrap_err().to_string().contains("not a JSON object"));
        assert!(Config::parse(b"{").unwrap_err().to_string().contains("not JSON"));
    }

    proptest! {
        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300), at in 0usize..1600, byte: u8) {
            let _ = Config::parse(&bytes);
            let mut json = include_bytes!("../../../fixtures/tiny/config.json").to_vec();
            let at = at % json.len();
            json[at] = byte;
            let _ = Config::parse(&json);
        }
    }
}
