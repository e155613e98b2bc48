use std::fs;

use super::*;
use crate::synth::Synth;

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/tiny")
}

/// A small checkpoint in a folder that can be spoilt.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let synth = Synth::tiny(1).set("num_hidden_layers", 3).set("num_hash_layers", 1);
    synth.set("compress_ratios", vec![0, 4, 128]).write(folder.path()).unwrap();
    folder
}

fn message(folder: &Path) -> String {
    Checkpoint::open(folder).expect_err("it is spoilt").to_string()
}

/// Replaces text in the header of the only shard; both have the same length.
fn edit(folder: &Path, from: &str, to: &str) {
    assert_eq!(from.len(), to.len());
    let path = folder.join(SINGLE);
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(from.len()).position(|w| w == from.as_bytes()).expect("the text is in the header");
    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    fs::write(path, bytes).unwrap();
}

#[test]
fn opens_the_official_layout() {
    let checkpoint = Checkpoint::open(&fixture()).unwrap();
    assert_eq!((checkpoint.release(), checkpoint.draft_stages()), (Release::Preview, 1));
    let wq_a = checkpoint.matrix("layers.2.attn.wq_a").unwrap();
    assert_eq!((wq_a.format, wq_a.rows, wq_a.cols, wq_a.data.len()), (Format::Fp8, 128, 128, 128 * 128));
    let w1 = checkpoint.matrix("layers.2.ffn.experts.7.w1").unwrap();
    assert_eq!((w1.format, w1.cols, w1.scale.unwrap().len()), (Format::Fp4, 128, 128 * 4));
    assert_eq!(checkpoint.matrix("hc_head_fn").unwrap().format, Format::F32);
    assert_eq!(checkpoint.vector("layers.0.attn_norm.weight").unwrap().len(), 128);
    assert_eq!(checkpoint.bytes("layers.0.ffn.gate.tid2eid").unwrap().len(), 512 * 4 * 8);
}

#[test]
fn tells_releases_apart() {
    let base = Synth::tiny(1).set("expert_dtype", "fp8").checkpoint().unwrap();
    assert_eq!(base.release(), Release::Base);
}

#[test]
fn spoilt_files_are_named() {
    let spoilt = folder();
    let path = spoilt.path().join(SINGLE);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 1000]).unwrap();
    let text = message(spoilt.path());
    assert!(text.contains("model.safetensors: is truncated: tensor "), "{text}");
    fs::write(&path, [&whole[..], &[0; 99]].concat()).unwrap();
    assert!(message(spoilt.path()).contains("tensors end at byte"));
    fs::write(&path, b"").unwrap();
    assert!(message(spoilt.path()).contains("is empty"));
    fs::remove_file(&path).unwrap();
    assert!(message(spoilt.path()).contains("nor a .safetensors file"));
    fs::remove_file(spoilt.path().join("config.json")).unwrap();
    assert!(message(spoilt.path()).contains("config.json"));
    assert!(message(Path::new("/nowhere/at/all")).contains("/nowhere/at/all/config.json"));
}

#[test]
fn spoilt_tensors_are_named() {
    for (from, to, expected) in [
        ("\"layers.1.attn.wkv.weight\"", "\"layers.1.attn.wkx.weight\"", "tensor layers.1.attn.wkv.weight is missing"),
        ("\"layers.1.attn.wkv.scale\"", "\"layers.1.attn.wkv.scalx\"", "tensor layers.1.attn.wkv.scale is missing"),
        (
            "{\"data_offsets\":[0,131072],\"dtype\":\"BF16\",\"shape\":[512,128]}",
            "{\"data_offsets\":[0,131072],\"dtype\":\"BF16\",\"shape\":[128,512]}",
            "tensor embed.weight has shape [128, 512]; config.json asks for [512, 128]",
        ),
    ] {
        let spoilt = folder();
        edit(spoilt.path(), from, to);
        let text = message(spoilt.path());
        assert!(text.contains(expected) && text.contains("model.safetensors"), "{text}");
    }
    // A matrix of a type that is none of a matrix's.
    let spoilt = folder();
    let path = spoilt.path().join(SINGLE);
    let text = String::from_utf8_lossy(&fs::read(&path).unwrap()[8..200]).into_owned();
    assert!(text.contains("BF16"));
    edit(spoilt.path(), "\"dtype\":\"BF16\",\"shape\":[512,128]", "\"dtype\":\"F16\", \"shape\":[512,128]");
    let text = message(spoilt.path());
    assert!(text.contains("tensor embed.weight is F16; a matrix must be"), "{text}");
}

#[test]
fn indexes_are_checked() {
    let spoilt = folder();
    let write = |json: &str| fs::write(spoilt.path().join(INDEX), json).unwrap();
    write(r#"{"weight_map": {"embed.weight": "model-00002.safetensors"}}"#);
    assert!(message(spoilt.path()).contains("names the shard model-00002.safetensors, which is not there"));
    write(r#"{"weight_map": {"embed.weight": "../model.safetensors"}}"#);
    assert!(message(spoilt.path()).contains("not a file of this folder"));
    write(r#"{"weight_map": {"nothing.weight": "model.safetensors"}}"#);
    assert!(message(spoilt.path()).contains("says that model.safetensors has tensor nothing.weight, but it has not"));
    write(r#"{"weight_map": {}}"#);
    assert!(message(spoilt.path()).contains("index.json: has an empty weight_map"));
    write("[]");
    assert!(message(spoilt.path()).contains("is no index of shards"));
    write(r#"{"weight_map": {"embed.weight": "model.safetensors"}}"#);
    Checkpoint::open(spoilt.path()).unwrap();
}

/// A full V4-Pro layout in sparse files: 61 layers of 384 experts.
#[test]
fn a_model_of_the_largest_size_opens() {
    let config = Synth::tiny(0)
        .set("vocab_size", 129_280)
        .set("hidden_size", 7168)
        .set("num_hidden_layers", 61)
        .set("num_attention_heads", 128)
        .set("head_dim", 512)
        .set("q_lora_rank", 1536)
        .set("o_groups", 16)
        .set("o_lora_rank", 1024)
        .set("n_routed_experts", 384)
        .set("num_experts_per_tok", 6)
        .set("moe_intermediate_size", 3072)
        .set("sliding_window", 128)
        .set("index_n_heads", 64)
        .set("index_topk", 1024)
        .set("compress_ratios", (0..61).map(|i| if i < 2 || i % 2 == 1 { 128 } else { 4 }).collect::<Vec<_>>())
        .config;
    let folder = tempfile::tempdir().unwrap();
    let json = serde_json::to_vec(&config).unwrap();
    fs::write(folder.path().join("config.json"), &json).unwrap();
    let parsed = Config::parse(&json).unwrap();
    let mut headers: Vec<serde_json::Map<String, serde_json::Value>> = vec![Default::default(); 64];
    let mut sizes = vec![0usize; 64];
    let mut weight_map = serde_json::Map::new();
    let mut add = |name: String, dtype: &str, shape: Vec<usize>, width: usize| {
        let shard = name.split('.').nth(1).and_then(|i| i.parse::<usize>().ok()).unwrap_or(63);
        let (from, end) = (sizes[shard], sizes[shard] + shape.iter().product::<usize>() * width);
        sizes[shard] = end;
        weight_map.insert(name.clone(), format!("model-{shard:05}.safetensors").into());
        headers[shard].insert(name, serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [from, end]}));
    };
    layout::tensors(&parsed, |name, shape| match shape {
        Shape::Vector(shape) => add(name, "F32", shape, 4),
        Shape::Table(rows, cols) => add(name, "I64", vec![rows, cols], 8),
        Shape::Matrix(rows, cols) if name.contains(".experts.") => {
            add(format!("{name}.weight"), "I8", vec![rows, cols / 2], 1);
            add(format!("{name}.scale"), "F8_E8M0", vec![rows, cols / 32], 1);
        }
        Shape::Matrix(rows, cols) => {
            let name = if name.ends_with("_fn") { name } else { format!("{name}.weight") };
            add(name, "BF16", vec![rows, cols], 2);
        }
    });
    for (i, header) in headers.iter().enumerate().filter(|(_, header)| !header.is_empty()) {
        let mut text = serde_json::to_vec(header).unwrap();
        text.resize(text.len().next_multiple_of(8), b' ');
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(&text);
        let path = folder.path().join(format!("model-{i:05}.safetensors"));
        fs::write(&path, &bytes).unwrap();
        fs::File::options().write(true).open(path).unwrap().set_len((bytes.len() + sizes[i]) as u64).unwrap();
    }
    let tensors = weight_map.len();
    fs::write(folder.path().join(INDEX), serde_json::json!({"weight_map": weight_map}).to_string()).unwrap();
    drop(headers);
    let start = std::time::Instant::now();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    println!("{tensors} tensors, {} bytes, in {:?}", checkpoint.weight_bytes(), start.elapsed());
    assert_eq!(checkpoint.counts().1, tensors);
    assert!(tensors > 140_000);
}

/// Types that a matrix may have, but not in that place.
#[test]
fn formats_that_do_not_fit_are_named() {
    let experts = [("layers.0.ffn.experts.1.w3", Dtype::BF16), ("layers.0.ffn.experts.2.w2", Dtype::F8_E4M3)];
    for (name, dtype) in experts.into_iter().chain([("embed", Dtype::F8_E4M3), ("layers.1.attn.wo_a", Dtype::I8)]) {
        let mut checkpoint = Synth::tiny(1).checkpoint().unwrap();
        let full = format!("{name}.weight");
        checkpoint.tensors.get_mut(full.as_str()).unwrap().dtype = dtype;
        let text = checkpoint.check().expect_err("it does not fit").to_string();
        assert!(text.contains(&full) && text.contains("must be"), "{text}");
    }
}

/// A configuration that leaves out part of what the files have is another model's.
#[test]
fn a_config_that_says_less_than_the_files_is_named() {
    for (field, value, expected) in [
        ("num_hidden_layers", "2", "num_hidden_layers is 2, but model.safetensors has tensor layers.2."),
        (
            "compress_ratios",
            "[0, 0, 128]",
            "compress_ratios has 0 for layer 1, but model.safetensors has tensor layers.1.attn.comp",
        ),
    ] {
        let folder = folder();
        let path = folder.path().join("config.json");
        let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config[field] = serde_json::from_str(value).unwrap();
        fs::write(path, config.to_string()).unwrap();
        let text = message(folder.path()).replace(folder.path().to_str().unwrap(), "").replace("/model", "model");
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn a_scale_that_nothing_uses_is_named() {
    let mut checkpoint = Synth::tiny(1).checkpoint().unwrap();
    let (scale, weight) = ("layers.1.attn.wkv.scale", "layers.1.attn.wkv.weight");
    checkpoint.tensors.get_mut(weight).unwrap().dtype = Dtype::BF16;
    let text = checkpoint.check().expect_err("its scale would be ignored").to_string();
    assert!(text.contains(&format!("tensor {scale} is there, but {weight} is BF16")), "{text}");
}

#[cfg(unix)]
#[test]
fn pipes_and_devices_are_no_files() {
    let folder = folder();
    let config = folder.path().join("config.json");
    fs::remove_file(&config).unwrap();
    std::os::unix::fs::symlink("/dev/zero", &config).unwrap();
    assert!(message(folder.path()).contains("config.json: is not a regular file"));
}

/// What happens to a shard between its header and its tensors is seen; a new name is no harm.
#[test]
fn shards_that_change_after_they_were_opened_are_named() {
    let cut = |path: &Path| fs::OpenOptions::new().write(true).open(path).unwrap().set_len(100_000).unwrap();
    let write = |path: &Path| {
        let mut bytes = fs::read(path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(path, bytes).unwrap();
    };
    type Change<'a> = &'a dyn Fn(&Path);
    let cases: [(Change, Option<&str>); 3] = [
        (&cut, Some("it has 100000 bytes")),
        (&write, Some("it was written to")),
        (&|path| fs::rename(path, path.with_extension("old")).unwrap(), None),
    ];
    for (change, expected) in cases {
        let folder = tempfile::tempdir().unwrap();
        Synth::tiny(1).write(folder.path()).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let norm = checkpoint.vector("norm.weight").unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        change(&folder.path().join("model.safetensors"));
        let whole = checkpoint.vector("norm.weight");
        let parts = checkpoint.read_parts("head.weight", |_, _| Ok::<_, Error>(()));
        match expected {
            None => assert!(whole.unwrap() == norm && parts.is_ok()),
            Some(expected) => {
                for error in [whole.unwrap_err(), parts.unwrap_err()].map(|e| e.to_string()) {
                    assert!(error.contains("model.safetensors changed while") && error.contains(expected), "{error}");
                }
            }
        }
    }
}
