use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::*;

fn write(synth: &Synth, path: &Path, threads: usize, others: &[PathBuf]) -> Result<(Size, u64), Error> {
    let (cancel, told) = (AtomicBool::new(false), AtomicU64::new(0));
    let folder = Folder { path, shard_bytes: 300_000, threads, others, cancel: &cancel };
    let size = synth.write_folder(&folder, &|bytes| _ = told.fetch_add(bytes, Ordering::Relaxed))?;
    Ok((size, told.into_inner()))
}

/// The names in a folder.
fn names(folder: &Path) -> Vec<String> {
    let mut all: Vec<_> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    all.sort();
    all
}

#[test]
fn every_geometry_opens() {
    for seed in 0..60 {
        let synth = Synth::random(seed);
        synth.checkpoint().unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let bytes = |seed| Synth::tiny(seed).shard().unwrap();
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

/// Shards hold what the one in memory holds, for any number of threads.
#[test]
fn a_folder_is_the_checkpoint_in_memory() {
    let folder = tempfile::tempdir().unwrap();
    for (i, synth) in [Synth::named("tiny", 5).unwrap(), Synth::random(6), Synth::random(7).set("expert_dtype", "bf16")]
        .iter()
        .enumerate()
    {
        let memory = synth.checkpoint().unwrap();
        for threads in [1, 3] {
            let path = folder.path().join(format!("{i}-{threads}"));
            let (size, told) = write(synth, &path, threads, &[]).unwrap();
            let disk = Checkpoint::open(&path).unwrap();
            assert_eq!(disk.counts(), (size.shards, size.tensors));
            assert_eq!(told, size.bytes);
            let shards: Vec<_> = names(&path).into_iter().filter(|n| n.ends_with(".safetensors")).collect();
            let bytes: u64 = shards.iter().map(|n| fs::metadata(path.join(n)).unwrap().len()).sum();
            assert_eq!((shards.len(), bytes), (size.shards, size.bytes));
            for tensor in synth.tensors().unwrap() {
                for part in tensor.parts() {
                    let (a, b) = (memory.bytes(&part.name).unwrap(), disk.bytes(&part.name).unwrap());
                    assert!(a == b, "{}", part.name);
                    assert_eq!(a.len() as u64, part.bytes, "{}", part.name);
                }
            }
        }
    }
    assert_eq!(names(folder.path()).len(), 6, "no other folder is left");
}

#[test]
fn named_geometries_are_the_released_ones() {
    let sizes: Vec<Size> = NAMES.map(|name| Synth::named(name, 0).unwrap().size(5 << 30).unwrap()).to_vec();
    // Flash: 284 B and its MTP block; Pro: 1.6 T and its own.
    let parameters = |at: usize| sizes[at].parameters as f64;
    assert!((284e9..295e9).contains(&parameters(3)), "{:?}", sizes[3]);
    assert!((1.56e12..1.65e12).contains(&parameters(4)), "{:?}", sizes[4]);
    assert!((150e9..170e9).contains(&(sizes[3].bytes as f64)), "{:?}", sizes[3]);
    assert!((8.2e11..9.2e11).contains(&(sizes[4].bytes as f64)), "{:?}", sizes[4]);
    assert!(Synth::named("v3", 0).is_none());
}

#[test]
fn another_number_of_layers_keeps_the_kinds() {
    let ratios = |layers| Synth::named("v4-pro", 0).unwrap().with_layers(layers).config["compress_ratios"].to_string();
    assert_eq!(ratios(2), "[128,128,0]");
    assert_eq!(ratios(5), "[128,128,4,128,4,0]");
    assert!(ratios(64).ends_with("128,4,128,0]"));
    for layers in [1, 2, 3, 5, 64] {
        Synth::named("mid", 0).unwrap().with_layers(layers).size(1 << 30).unwrap_or_else(|e| panic!("{layers}: {e}"));
    }
}

#[test]
fn nothing_that_looks_whole_is_left_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model");
    let synth = Synth::named("tiny", 1).unwrap();

    let cancel = AtomicBool::new(false);
    let wanted = Folder { path: &path, shard_bytes: 300_000, threads: 2, others: &[], cancel: &cancel };
    let stopped = synth.write_folder(&wanted, &|_| cancel.store(true, Ordering::Relaxed));
    assert!(matches!(stopped, Err(Error::Write { cause, .. }) if cause.kind() == std::io::ErrorKind::Interrupted));
    assert!(names(folder.path()).is_empty());
    // A file to copy that is not there.
    let missing = write(&synth, &path, 2, &[folder.path().join("tokenizer.json")]).unwrap_err().to_string();
    assert!(missing.contains("tokenizer.json") && names(folder.path()).is_empty(), "{missing}");

    // What a killed run left is cleared away; what is not ours stops us.
    let partial = folder.path().join("model.partial");
    fs::create_dir(&partial).unwrap();
    fs::write(partial.join("model-00001-of-00002.safetensors"), "half").unwrap();
    fs::write(partial.join("diary.txt"), "mine").unwrap();
    let message = write(&synth, &path, 1, &[]).unwrap_err().to_string();
    assert!(message.contains("diary.txt") && message.contains("move it"), "{message}");
    assert_eq!(fs::read(partial.join("diary.txt")).unwrap(), b"mine");
    fs::remove_file(partial.join("diary.txt")).unwrap();
    write(&synth, &path, 1, &[]).unwrap();
    assert_eq!(names(folder.path()), ["model"]);
    Checkpoint::open(&path).unwrap();

    let message = write(&synth, &path, 1, &[]).unwrap_err().to_string();
    assert!(message.contains("not empty"), "{message}");
    let message = write(&synth, &path.join("config.json"), 1, &[]).unwrap_err().to_string();
    assert!(message.contains("there already"), "{message}");
    let message = write(&synth, &path.join("config.json/x"), 1, &[]).unwrap_err().to_string();
    assert!(message.contains("config.json"), "{message}");
}

#[test]
fn geometries_that_cannot_be_are_refused() {
    for (field, value, expected) in [
        ("hidden_size", json!(100), "multiples of 32"),
        ("num_nextn_predict_layers", json!(9), "compress_ratios has 8 entries"),
        ("moe_intermediate_size", json!(-1), "moe_intermediate_size is -1"),
        ("head_dim", json!("x"), "head_dim"),
        ("q_lora_rank", json!(1 << 20), ""),
        ("num_attention_heads", json!(1 << 14), "too wide"),
    ] {
        let synth = Synth::named("tiny", 0).unwrap().set(field, value);
        match synth.size(1 << 30) {
            Err(e) => assert!(!expected.is_empty() && e.to_string().contains(expected), "{field}: {e}"),
            Ok(size) => assert!(expected.is_empty(), "{field}: {size:?}"),
        }
    }
}
