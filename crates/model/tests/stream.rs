//! Experts that are read as they are needed give the bits of those in memory, whatever there is room for and however they are
//! read; what goes wrong with a file ends one pass and names it.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fathom_kernels::{Cpu, CpuOptions, Device, Profile, Share};
use fathom_model::{LogitsWanted, Model, Segment, State};
use fathom_weights::Checkpoint;
use fathom_weights::experts::{Fault, ReaderKind, StreamOptions};
use fathom_weights::synth::{Random, Synth};
use proptest::prelude::*;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

fn cpu(profile: Profile) -> Cpu {
    Cpu::new(CpuOptions { threads: Some(2), profile, ..CpuOptions::default() }).unwrap()
}

/// In memory of little more than `frames` experts.
fn streamed(folder: &Path, profile: Profile, memory: u64, options: StreamOptions) -> Model<Cpu> {
    let checkpoint = Checkpoint::open(folder).unwrap();
    Model::stream(cpu(profile), &checkpoint, StreamOptions { memory, ..options }).unwrap()
}

fn tokens(random: &mut Random, vocab: usize, n: usize) -> Vec<u32> {
    (0..n).map(|_| random.below(vocab) as u32).collect()
}

fn step(model: &Model<Cpu>, state: &mut State<Cpu>, tokens: &[u32]) -> Result<Vec<u32>, fathom_model::Error> {
    let rows = model.forward(&mut [Segment { state, tokens, logits: LogitsWanted::All }])?;
    Ok(rows[0].iter().map(|v| v.to_bits()).collect())
}

/// A prompt in chunks, and some tokens one by one.
fn all(model: &Model<Cpu>, prompt: &[u32], chunk: usize, rest: &[u32]) -> Result<Vec<u32>, fathom_model::Error> {
    let mut state = model.new_state()?;
    let mut out = Vec::new();
    for part in prompt.chunks(chunk).chain(rest.chunks(1)) {
        out.extend(step(model, &mut state, part)?);
    }
    Ok(out)
}

const KINDS: [ReaderKind; 3] = [ReaderKind::FixedRing, ReaderKind::Ring, ReaderKind::Pool];

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn same_bits(seed: u64, n in 1usize..200, chunk in 1usize..120, exact: bool, direct: bool, frames in 0u64..40) {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let synth = Synth::random(seed).set("n_routed_experts", 20).set("num_experts_per_tok", 1 + seed % 5);
        synth.write(folder.path()).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let mut random = Random::new(seed);
        let vocab = checkpoint.config().vocab_size;
        let (prompt, rest) = (tokens(&mut random, vocab, n), tokens(&mut random, vocab, 20));
        let profile = if exact { Profile::Exact } else { Profile::Native };
        let want = all(&Model::load(cpu(profile), &checkpoint).unwrap(), &prompt, n, &rest).unwrap();
        for reader in KINDS {
            let options = StreamOptions { reader, direct, guess: seed % 4 > 0, ..StreamOptions::default() };
            let model = streamed(folder.path(), profile, frames * 8192, options);
            let ledger = model.device().ledger();
            ledger.limit(Share::Scratch, model.scratch_bytes(chunk.max(1), 1));
            // Cold, then warm.
            for _ in 0..2 {
                let got = all(&model, &prompt, chunk, &rest).unwrap();
                prop_assert!(got == want, "{reader}, {:?}", model.streaming().unwrap().stats());
            }
            let stats = model.streaming().unwrap().stats();
            prop_assert_eq!(stats.failed, 0);
            prop_assert_eq!(stats.decode.tokens + stats.prefill.tokens, 2 * (n as u64 + 20));
            prop_assert!(ledger.holding(Share::Weights).held <= checkpoint.dense_bytes());
        }
    }
}

/// A checkpoint whose experts are worth reading, and a model that has room for some of them.
fn some_room(folder: &Path, options: StreamOptions) -> (Synth, Model<Cpu>) {
    let synth = Synth::tiny(3).set("n_routed_experts", 40);
    synth.write(folder).unwrap();
    let model = streamed(folder, Profile::Native, 90 * 30_000, options);
    (synth, model)
}

#[test]
fn each_expert_is_read_once_for_a_layer_and_chunk() {
    for reader in KINDS {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (_, model) = some_room(folder.path(), StreamOptions { reader, ..StreamOptions::default() });
        let prompt = tokens(&mut Random::new(1), 512, 600);
        all(&model, &prompt, 150, &[]).unwrap();
        let stats = model.streaming().unwrap().stats();
        assert_eq!((stats.prefill.reread, stats.prefill.passes), (0, 4), "{stats:?}");
        assert!(stats.held <= stats.room && stats.prefill.demanded > 4 * 7 * 30);
    }
}

#[test]
fn a_read_error_ends_one_pass() {
    for (reader, fault) in [
        (ReaderKind::Ring, Fault::Error(5)),
        (ReaderKind::Pool, Fault::Error(5)),
        (ReaderKind::Ring, Fault::Short),
        (ReaderKind::Pool, Fault::Short),
    ] {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let bad = Arc::new(AtomicU64::new(u64::MAX));
        let which = Arc::clone(&bad);
        let faults = move |n| (n >= which.load(Ordering::Relaxed)).then_some(fault);
        let options = StreamOptions { reader, faults: Some(Arc::new(faults)), ..StreamOptions::default() };
        let (_, model) = some_room(folder.path(), options);
        let prompt = tokens(&mut Random::new(1), 512, 100);
        let want = all(&model, &prompt, 50, &[1, 2, 3]).unwrap();
        bad.store(0, Ordering::Relaxed);
        let message = all(&model, &prompt, 50, &[1, 2, 3]).unwrap_err().to_string();
        let cause = if fault == Fault::Short { "fewer bytes" } else { "Input/output error" };
        assert!(message.contains("model.safetensors at byte ") && message.contains(cause), "{message}");
        bad.store(u64::MAX, Ordering::Relaxed);
        assert!(all(&model, &prompt, 50, &[1, 2, 3]).unwrap() == want, "later passes work");
    }
}

/// For five seconds, or `FATHOM_TEST_TIMES` times as long.
#[test]
fn a_drive_that_stalls_is_waited_for() {
    let times: u32 = std::env::var("FATHOM_TEST_TIMES").map_or(1, |n| n.parse().expect("FATHOM_TEST_TIMES is a number"));
    let stall = Duration::from_millis(5500) * times;
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let messages = Arc::clone(&told);
    let faults = move |n| (n == 10).then_some(Fault::Stall(stall));
    let options = StreamOptions {
        faults: Some(Arc::new(faults)),
        tell: Some(Arc::new(move |message: &str| messages.lock().unwrap().push(message.to_owned()))),
        ..StreamOptions::default()
    };
    let (synth, model) = some_room(folder.path(), options);
    let prompt = tokens(&mut Random::new(1), 512, 30);
    let got = all(&model, &prompt, 50, &[]).unwrap();
    let want =
        all(&Model::load(cpu(Profile::Native), &synth.checkpoint().unwrap()).unwrap(), &prompt, 50, &[]).unwrap();
    assert!(got == want);
    let told = told.lock().unwrap();
    assert_eq!(told.len() as u64, stall.as_secs() / 5, "{told:?}");
    assert!(told[0].contains("not answered for 5 s"), "{told:?}");
}

/// What may happen to a shard while it is in use, and what then is said; nothing where reading goes on.
#[test]
fn files_that_change() {
    type Change = fn(&Path);
    let cases: [(&str, Change, Option<&str>); 5] = [
        ("renamed", |path| fs::rename(path, path.with_extension("old")).unwrap(), None),
        (
            "replaced",
            |path| {
                let new = path.with_extension("new");
                fs::write(&new, vec![7; fs::metadata(path).unwrap().len() as usize]).unwrap();
                fs::rename(new, path).unwrap();
            },
            None,
        ),
        (
            "cut short",
            |path| File::options().write(true).open(path).unwrap().set_len(100_000).unwrap(),
            Some("it has 100000 bytes"),
        ),
        (
            "written to",
            |path| File::options().write(true).open(path).unwrap().write_all_at(&[1; 10], 200_000).unwrap(),
            Some("it was written to"),
        ),
        (
            "written to, and its time put back",
            |path| {
                let file = File::options().write(true).open(path).unwrap();
                let before = file.metadata().unwrap().modified().unwrap();
                file.write_all_at(&[1; 10], 200_000).unwrap();
                file.set_modified(before).unwrap();
            },
            Some("its change time moved"),
        ),
    ];
    for reader in [ReaderKind::FixedRing, ReaderKind::Pool] {
        for (name, change, error) in &cases {
            let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
            let (synth, model) = some_room(folder.path(), StreamOptions { reader, ..StreamOptions::default() });
            let in_memory = Model::load(cpu(Profile::Native), &synth.checkpoint().unwrap()).unwrap();
            let prompt = tokens(&mut Random::new(1), 512, 100);
            let (mut state, mut twin) = (model.new_state().unwrap(), in_memory.new_state().unwrap());
            let both = |state: &mut _, twin: &mut _, tokens: &[u32]| {
                step(&model, state, tokens).map(|got| assert!(got == step(&in_memory, twin, tokens).unwrap(), "{name}"))
            };
            both(&mut state, &mut twin, &prompt[..40]).unwrap();
            std::thread::sleep(Duration::from_millis(20));
            change(&folder.path().join("model.safetensors"));
            let outcome = prompt[40..].chunks(20).try_for_each(|part| both(&mut state, &mut twin, part));
            match error {
                None => outcome.unwrap(),
                Some(expected) => {
                    let message = outcome.unwrap_err().to_string();
                    assert!(
                        message.contains("model.safetensors changed while") && message.contains(expected),
                        "{message}"
                    );
                    // The process lives, and says the same to the next.
                    assert!(all(&model, &prompt, 50, &[]).unwrap_err().to_string().contains("changed while"));
                }
            }
        }
    }
}

/// A file system in memory has no drive to read from directly.
#[test]
fn where_direct_reads_are_refused_the_page_cache_is_used() {
    let Ok(folder) = tempfile::tempdir_in("/dev/shm") else { return };
    let (synth, model) = some_room(folder.path(), StreamOptions::default());
    println!("{}", model.streaming().unwrap().describe());
    let prompt = tokens(&mut Random::new(1), 512, 60);
    let want =
        all(&Model::load(cpu(Profile::Native), &synth.checkpoint().unwrap()).unwrap(), &prompt, 60, &[]).unwrap();
    assert!(all(&model, &prompt, 60, &[]).unwrap() == want);
}

/// What tokens alone decide is asked for before the first layer: nothing is first asked for when it is needed.
#[test]
fn hash_layers_are_read_ahead() {
    for reader in KINDS {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        Synth::tiny(4).set("n_routed_experts", 40).set("num_hash_layers", 7).write(folder.path()).unwrap();
        let options = StreamOptions { reader, guess: false, ..StreamOptions::default() };
        let model = streamed(folder.path(), Profile::Native, 90 * 30_000, options);
        all(&model, &[1], 1, &tokens(&mut Random::new(1), 512, 60)).unwrap();
        let stats = model.streaming().unwrap().stats().decode;
        assert_eq!(stats.hits + stats.in_time + stats.late, stats.demanded, "{stats:?}");
        assert!(stats.in_time + stats.late > 60 && stats.wasted == 0 && stats.guessed == 0, "{stats:?}");
        assert_eq!((stats.missed_bytes, stats.stalled), (stats.missed_known_bytes, stats.stalled_known));
    }
}

/// A long prompt takes memory from nothing that answers go on to need.
#[test]
fn a_prompt_does_not_wash_out_what_decode_uses() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    Synth::tiny(4).set("n_routed_experts", 40).set("num_hash_layers", 7).write(folder.path()).unwrap();
    let model = streamed(folder.path(), Profile::Native, 120 * 30_720, StreamOptions::default());
    let (mut state, mut other) = (model.new_state().unwrap(), model.new_state().unwrap());
    for _ in 0..200 {
        step(&model, &mut state, &[7]).unwrap();
    }
    for part in tokens(&mut Random::new(2), 512, 300).chunks(100) {
        step(&model, &mut other, part).unwrap();
    }
    let before = model.streaming().unwrap().stats();
    assert!(before.prefill.demanded > 2 * before.room as u64, "{before:?}");
    step(&model, &mut state, &[7]).unwrap();
    let after = (model.streaming().unwrap().stats() - before).decode;
    assert_eq!((after.hits, after.demanded > 0), (after.demanded, true), "{after:?}");
}

/// What was used most in one run is there when the next begins.
#[test]
fn counts_warm_the_next_start() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let counts = Some(folder.path().join("counts"));
    let prompt = tokens(&mut Random::new(1), 512, 300);
    let options = || StreamOptions { counts: counts.clone(), guess: false, ..StreamOptions::default() };
    let (_, first) = some_room(folder.path(), options());
    first.streaming().unwrap().warm(first.device(), Duration::from_secs(10));
    assert_eq!(first.streaming().unwrap().stats().reads, 0, "nothing is known yet");
    all(&first, &prompt, 100, &[1, 2, 3]).unwrap();
    drop(first);
    let second = streamed(folder.path(), Profile::Native, 90 * 30_000, options());
    second.streaming().unwrap().warm(second.device(), Duration::from_secs(10));
    all(&second, &prompt[..1], 1, &[]).unwrap();
    let stats = second.streaming().unwrap().stats();
    assert!(stats.held == stats.room && stats.decode.hits > 0, "{stats:?}");
}

/// A shard may lose its name and get it back. What is done to it while it has another is seen all the same.
#[test]
fn a_shard_that_is_renamed_and_then_changed() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (synth, model) = some_room(folder.path(), StreamOptions::default());
    let prompt = tokens(&mut Random::new(1), 512, 100);
    let want =
        all(&Model::load(cpu(Profile::Native), &synth.checkpoint().unwrap()).unwrap(), &prompt, 50, &[]).unwrap();
    let path = folder.path().join("model.safetensors");
    let other = path.with_extension("old");
    for (from, to) in [(&path, &other), (&other, &path), (&path, &other)] {
        std::thread::sleep(Duration::from_millis(20));
        fs::rename(from, to).unwrap();
        assert!(all(&model, &prompt, 50, &[]).unwrap() == want);
    }
    std::thread::sleep(Duration::from_millis(20));
    let file = File::options().write(true).open(&other).unwrap();
    let before = file.metadata().unwrap().modified().unwrap();
    file.write_all_at(&[1; 10], 200_000).unwrap();
    file.set_modified(before).unwrap();
    let message = all(&model, &prompt, 50, &[]).unwrap_err().to_string();
    assert!(message.contains("its change time moved"), "{message}");
}

/// A checkpoint's two halves: the tensors of one, but the routed experts of some layers those of another.
fn mixed(folder: &Path, seed: u64, odd: &str) {
    let synth = |dtype: &str| Synth::tiny(seed).set("n_routed_experts", 12).set("expert_dtype", dtype);
    let files = ["fp4", odd].map(|dtype| {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        synth(dtype).write(folder.path()).unwrap();
        fs::read(folder.path().join("model.safetensors")).unwrap()
    });
    synth("fp4").write(folder).unwrap();
    let [fp4, other] = files.each_ref().map(|file| SafeTensors::deserialize(file).unwrap());
    let is_odd = |name: &str| {
        let layer = name.strip_prefix("layers.").and_then(|rest| rest.split_once(".ffn.experts."));
        layer.is_some_and(|(layer, _)| layer.parse::<usize>().unwrap() % 2 == 1)
    };
    let from = |file: &SafeTensors, odd: bool| {
        let tensors = file.iter().filter(|(name, _)| is_odd(name) == odd);
        tensors
            .map(|(name, view)| (name.to_owned(), view.dtype(), view.shape().to_vec(), view.data().to_vec()))
            .collect()
    };
    let mut all: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = from(&fp4, false);
    all.extend::<Vec<_>>(from(&other, true));
    let views =
        all.iter().map(|(name, dtype, shape, data)| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
    fs::write(folder.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn layers_of_different_formats() {
    for (odd, seed, profile) in [("fp8", 5, Profile::Native), ("bf16", 6, Profile::Native), ("fp8", 7, Profile::Exact)]
    {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        mixed(folder.path(), seed, odd);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let prompt = tokens(&mut Random::new(seed), 512, 90);
        let want = all(&Model::load(cpu(profile), &checkpoint).unwrap(), &prompt, 90, &[1, 2, 3]).unwrap();
        let model = streamed(folder.path(), profile, 1 << 20, StreamOptions::default());
        model.device().ledger().limit(Share::Scratch, model.scratch_bytes(40, 1));
        assert!(all(&model, &prompt, 40, &[1, 2, 3]).unwrap() == want, "{odd}");
        assert!(model.streaming().unwrap().stats().read_bytes > 0);
    }
}
