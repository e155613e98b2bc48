//! Every tensor of a random checkpoint: its name, its shape, and what its values are like.

use fathom_kernels::Format;

use crate::{Config, Error};

/// Each block adds little to its residual, as in a trained model.
const RESIDUAL_GAIN: f32 = 0.25;
/// About how many bytes are made at once, and the most.
const STRIP: usize = 1 << 20;
const MAX_STRIP: usize = 128 << 20;

/// What a tensor holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Values {
    /// Normal noise around `mean`.
    Bf16 { mean: f32, deviation: f32 },
    /// Normal noise, in f32.
    F32 { deviation: f32 },
    /// ½ and more: the three scales of an mHC mix.
    Scales,
    /// An mHC mix's base, which favours a copy of the residual going on as itself.
    MixBase { hc: usize },
    /// Normal noise in E4M3, under a scale for each 128 × 128.
    Fp8 { deviation: f32 },
    /// Normal noise in E2M1, under a scale for 32 of a row.
    Fp4 { deviation: f32 },
    /// For each token some of this many experts, no two alike.
    Routes { experts: usize },
}

/// A tensor, or a matrix and its scales.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tensor {
    /// Its name; without `.weight` where there are scales.
    pub name: String,
    /// As stored, but that two FP4 values count as two.
    pub shape: Vec<usize>,
    pub values: Values,
}

/// What a tensor is in a safetensors header.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Part {
    pub name: String,
    pub dtype: &'static str,
    pub shape: Vec<usize>,
    pub bytes: u64,
}

impl Tensor {
    /// Rows and columns; a vector is one row.
    pub fn size(&self) -> (usize, usize) {
        match *self.shape {
            [rows, cols] => (rows, cols),
            ref other => (1, other.iter().product()),
        }
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        let cols = self.size().1;
        match self.values {
            Values::Bf16 { .. } => 2 * cols,
            Values::F32 { .. } | Values::Scales | Values::MixBase { .. } => 4 * cols,
            Values::Fp8 { .. } => cols,
            Values::Fp4 { .. } => cols / 2,
            Values::Routes { .. } => 8 * cols,
        }
    }

    /// How many rows are made at once: whole blocks of scales.
    pub fn strip_rows(&self) -> usize {
        match self.values {
            Values::Fp8 { .. } => 128,
            Values::MixBase { .. } => self.size().0,
            _ => (STRIP / self.row_bytes().max(1)).max(1),
        }
    }

    /// How many scales a full strip has.
    pub fn scales_of_strip(&self) -> usize {
        let cols = self.size().1;
        match self.values {
            Values::Fp8 { .. } => cols.div_ceil(128),
            Values::Fp4 { .. } => self.strip_rows() * (cols / 32),
            _ => 0,
        }
    }

    /// The one or two tensors of a file.
    pub fn parts(&self) -> Vec<Part> {
        let (rows, cols) = self.size();
        let part = |name: String, dtype, shape: Vec<usize>, size: u64| {
            let bytes = shape.iter().fold(size, |n, &d| n.saturating_mul(d as u64));
            Part { name, dtype, shape, bytes }
        };
        let whole = |dtype, size| vec![part(self.name.clone(), dtype, self.shape.clone(), size)];
        let scaled = |dtype, shape, scales| {
            let weight = part(format!("{}.weight", self.name), dtype, shape, 1);
            vec![weight, part(format!("{}.scale", self.name), "F8_E8M0", scales, 1)]
        };
        match self.values {
            Values::Bf16 { .. } => whole("BF16", 2),
            Values::F32 { .. } | Values::Scales | Values::MixBase { .. } => whole("F32", 4),
            Values::Routes { .. } => whole("I64", 8),
            Values::Fp8 { .. } => scaled("F8_E4M3", vec![rows, cols], vec![rows.div_ceil(128), cols.div_ceil(128)]),
            Values::Fp4 { .. } => scaled("I8", vec![rows, cols / 2], vec![rows, cols / 32]),
        }
    }

    /// How many weights it has, scales and tables aside.
    pub fn parameters(&self) -> u64 {
        let (rows, cols) = self.size();
        if let Values::Routes { .. } = self.values { 0 } else { (rows as u64).saturating_mul(cols as u64) }
    }
}

/// Every tensor of a configuration, in the order of the layers. `experts` is FP4, FP8 or BF16.
pub(super) fn tensors(c: &Config, experts: Format) -> Result<Vec<Tensor>, Error> {
    let wrong = |field: &str, problem| Err(Error::Config { field: field.to_owned(), problem });
    let (inter, d) = (c.moe_intermediate_size, c.hidden_size);
    if experts == Format::Fp4 && !(inter.is_multiple_of(32) && d.is_multiple_of(32)) {
        let problem = format!("is {inter} with hidden_size {d}; with FP4 experts both must be multiples of 32");
        return wrong("moe_intermediate_size", problem);
    }
    let ratios = c.compress_ratios.len();
    if ratios < c.num_hidden_layers + c.num_nextn_predict_layers {
        let (layers, drafts) = (c.num_hidden_layers, c.num_nextn_predict_layers);
        let problem = format!("has {ratios} entries for {layers} layers and {drafts} MTP blocks");
        return wrong("compress_ratios", problem);
    }
    let mut list = List { experts, all: Vec::new() };
    list.model(c);
    for tensor in &list.all {
        let strip = tensor.strip_rows().saturating_mul(tensor.row_bytes());
        if strip > MAX_STRIP {
            let problem = format!("makes {} too wide, {:?}", tensor.name, tensor.shape);
            return wrong("(whole file)", problem);
        }
    }
    Ok(list.all)
}

struct List {
    experts: Format,
    all: Vec<Tensor>,
}

impl List {
    fn put(&mut self, name: String, shape: &[usize], values: Values) {
        self.all.push(Tensor { name, shape: shape.to_vec(), values });
    }

    fn f32(&mut self, name: String, shape: &[usize], deviation: f32) {
        self.put(name, shape, Values::F32 { deviation });
    }

    fn norm(&mut self, name: String, n: usize) {
        self.put(name, &[n], Values::Bf16 { mean: 1.0, deviation: 0.1 });
    }

    fn bf16(&mut self, name: String, rows: usize, cols: usize, gain: f32) {
        self.put(name, &[rows, cols], Values::Bf16 { mean: 0.0, deviation: gain * root(cols) });
    }

    fn fp8(&mut self, name: String, rows: usize, cols: usize, gain: f32) {
        self.put(name, &[rows, cols], Values::Fp8 { deviation: gain * root(cols) });
    }

    fn expert(&mut self, name: String, rows: usize, cols: usize, gain: f32) {
        match self.experts {
            Format::Fp4 => self.put(name, &[rows, cols], Values::Fp4 { deviation: gain * root(cols) }),
            Format::Fp8 => self.fp8(name, rows, cols, gain),
            Format::Bf16 | Format::F32 => self.bf16(format!("{name}.weight"), rows, cols, gain),
        }
    }

    fn hyper(&mut self, name: &str, hc: usize, d: usize) {
        let mixes = (2 + hc) * hc;
        self.f32(format!("{name}_fn"), &[mixes, hc * d], root(hc * d));
        self.put(format!("{name}_base"), &[mixes], Values::MixBase { hc });
        self.put(format!("{name}_scale"), &[3], Values::Scales);
    }

    fn hyper_head(&mut self, p: &str, hc: usize, d: usize) {
        self.f32(format!("{p}hc_head_fn"), &[hc, hc * d], root(hc * d));
        self.f32(format!("{p}hc_head_base"), &[hc], 0.3);
        self.put(format!("{p}hc_head_scale"), &[1], Values::Scales);
    }

    fn compressor(&mut self, p: &str, ratio: usize, width: usize, d: usize) {
        let wide = if ratio == 4 { 2 * width } else { width };
        self.f32(format!("{p}.ape"), &[ratio, wide], 0.5);
        self.bf16(format!("{p}.wkv.weight"), wide, d, 1.0);
        self.bf16(format!("{p}.wgate.weight"), wide, d, 2.0);
        self.norm(format!("{p}.norm.weight"), width);
    }

    fn model(&mut self, c: &Config) {
        let (d, hc, layers) = (c.hidden_size, c.hc_mult, c.num_hidden_layers);
        self.bf16("embed.weight".into(), c.vocab_size, d, (d as f32).sqrt());
        for layer in 0..layers {
            self.block(c, &format!("layers.{layer}"), layer);
        }
        self.norm("norm.weight".into(), d);
        self.bf16("head.weight".into(), c.vocab_size, d, 1.0);
        self.hyper_head("", hc, d);
        for draft in 0..c.num_nextn_predict_layers {
            let p = format!("mtp.{draft}");
            self.block(c, &p, layers + draft);
            ["e_proj", "h_proj"].iter().for_each(|w| self.fp8(format!("{p}.{w}"), d, d, 1.0));
            ["enorm", "hnorm", "norm"].iter().for_each(|w| self.norm(format!("{p}.{w}.weight"), d));
            self.hyper_head(&format!("{p}."), hc, d);
        }
    }

    fn block(&mut self, c: &Config, p: &str, layer: usize) {
        for half in ["attn", "ffn"] {
            self.hyper(&format!("{p}.hc_{half}"), c.hc_mult, c.hidden_size);
            self.norm(format!("{p}.{half}_norm.weight"), c.hidden_size);
        }
        self.attention(c, &format!("{p}.attn"), c.compress_ratios[layer]);
        self.moe(c, &format!("{p}.ffn"), layer < c.num_hash_layers);
    }

    fn attention(&mut self, c: &Config, p: &str, ratio: usize) {
        let (d, wide) = (c.hidden_size, c.num_attention_heads * c.head_dim);
        self.f32(format!("{p}.attn_sink"), &[c.num_attention_heads], 1.0);
        self.fp8(format!("{p}.wq_a"), c.q_lora_rank, d, 1.0);
        self.norm(format!("{p}.q_norm.weight"), c.q_lora_rank);
        self.fp8(format!("{p}.wq_b"), wide, c.q_lora_rank, 1.0);
        self.fp8(format!("{p}.wkv"), c.head_dim, d, 1.0);
        self.norm(format!("{p}.kv_norm.weight"), c.head_dim);
        self.fp8(format!("{p}.wo_a"), c.o_groups * c.o_lora_rank, wide / c.o_groups, 1.0);
        self.fp8(format!("{p}.wo_b"), d, c.o_groups * c.o_lora_rank, RESIDUAL_GAIN);
        if ratio > 0 {
            self.compressor(&format!("{p}.compressor"), ratio, c.head_dim, d);
        }
        if ratio == 4 {
            let q = format!("{p}.indexer");
            self.fp8(format!("{q}.wq_b"), c.index_n_heads * c.index_head_dim, c.q_lora_rank, 1.0);
            self.bf16(format!("{q}.weights_proj.weight"), c.index_n_heads, d, 1.0);
            self.compressor(&format!("{q}.compressor"), ratio, c.index_head_dim, d);
        }
    }

    fn moe(&mut self, c: &Config, p: &str, hash: bool) {
        let (d, inter, experts) = (c.hidden_size, c.moe_intermediate_size, c.n_routed_experts);
        self.bf16(format!("{p}.gate.weight"), experts, d, 1.0);
        if hash {
            let table = [c.vocab_size, c.num_experts_per_tok];
            self.put(format!("{p}.gate.tid2eid"), &table, Values::Routes { experts });
        } else {
            self.f32(format!("{p}.gate.bias"), &[experts], 0.1);
        }
        for e in 0..experts {
            self.expert(format!("{p}.experts.{e}.w1"), inter, d, 1.5);
            self.expert(format!("{p}.experts.{e}.w2"), d, inter, RESIDUAL_GAIN);
            self.expert(format!("{p}.experts.{e}.w3"), inter, d, 1.5);
        }
        self.fp8(format!("{p}.shared_experts.w1"), inter, d, 1.0);
        self.fp8(format!("{p}.shared_experts.w2"), d, inter, RESIDUAL_GAIN);
        self.fp8(format!("{p}.shared_experts.w3"), inter, d, 1.0);
    }
}

/// n^-½.
fn root(n: usize) -> f32 {
    1.0 / (n as f32).sqrt()
}
