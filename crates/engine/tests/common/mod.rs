//! A model, tokens, what a straight run makes of them, and stores of every kind.
#![allow(dead_code, missing_docs)]

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fathom_engine::{Resume, Resumed, SnapshotError, prefill, resume, save};
use fathom_kernels::{Cpu, CpuOptions};
use fathom_model::{LogitsWanted, Model, Segment, State};
use fathom_store::{Key, Namespace, NewSnapshot, Options, Saved, Store, Subject};
use fathom_weights::Checkpoint;
use fathom_weights::synth::Synth;

/// Tests multiply their counts by this: `FATHOM_TEST_TIMES=20 cargo test --release -p fathom-engine --test NAME`.
pub fn times() -> usize {
    std::env::var("FATHOM_TEST_TIMES").map_or(1, |n| n.parse().expect("FATHOM_TEST_TIMES is a number"))
}

/// A loaded model, and what its states are stored under.
pub struct Loaded {
    pub model: Model<Cpu>,
    pub subject: Subject,
}

impl Loaded {
    pub fn new(checkpoint: &Checkpoint) -> Loaded {
        let cpu = Cpu::new(CpuOptions { threads: Some(1), ..CpuOptions::default() }).unwrap();
        let model = Model::load(cpu, checkpoint).unwrap();
        let fingerprint = checkpoint.fingerprint(None, true, &mut |_, _| {}).unwrap();
        Loaded { subject: fathom_engine::subject(&model, fingerprint), model }
    }

    /// The tiny checkpoint in the official layout.
    pub fn tiny() -> Loaded {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/tiny");
        Loaded::new(&Checkpoint::open(&folder).unwrap())
    }

    /// Every kind of layer in a state of a few kilobytes.
    pub fn small() -> Loaded {
        let synth = Synth::tiny(3)
            .set("num_hidden_layers", 3)
            .set("compress_ratios", vec![0, 128, 4])
            .set("num_hash_layers", 1)
            .set("hidden_size", 64)
            .set("head_dim", 80)
            .set("qk_rope_head_dim", 16)
            .set("index_head_dim", 64)
            .set("sliding_window", 8)
            .set("n_routed_experts", 4)
            .set("num_experts_per_tok", 2)
            .set("vocab_size", 64);
        Loaded::new(&synth.checkpoint().unwrap())
    }

    pub fn tokens(&self, seed: u32, n: usize) -> Vec<u32> {
        let vocab = self.model.config().vocab_size as u32;
        let mixed = |i: u32| (i + 1).wrapping_mul(2_654_435_761) ^ seed.wrapping_mul(2_246_822_519);
        (0..n as u32).map(|i| (mixed(i) >> 11) % vocab).collect()
    }

    /// The logits after each of some tokens, read at once: row i follows token i.
    pub fn straight(&self, tokens: &[u32]) -> Vec<Vec<f32>> {
        let mut state = self.model.new_state().unwrap();
        self.append(&mut state, tokens)
    }

    /// The logits after each of some more tokens.
    pub fn append(&self, state: &mut State<Cpu>, tokens: &[u32]) -> Vec<Vec<f32>> {
        let mut rows = Vec::new();
        for tokens in tokens.chunks(512) {
            let logits = LogitsWanted::All;
            let out = self.model.forward(&mut [Segment { state, tokens, logits }]).unwrap().remove(0);
            rows.extend(out.chunks(self.model.config().vocab_size).map(<[f32]>::to_vec));
        }
        rows
    }

    /// Reads more of a prompt; the logits after it.
    pub fn read(&self, state: &mut State<Cpu>, tokens: &[u32]) -> Vec<f32> {
        prefill(&self.model, state, tokens, 100, &mut |_| ControlFlow::Continue(())).unwrap().unwrap()
    }

    pub fn save(
        &self,
        state: &State<Cpu>,
        tokens: &[u32],
        logits: &[f32],
        ns: &Namespace,
    ) -> Result<Saved, SnapshotError> {
        let new = NewSnapshot { tokens, ..NewSnapshot::default() };
        save(&self.model, state, logits, ns, &self.subject, &new)
    }

    pub fn resume(&self, ns: &Namespace, tokens: &[u32]) -> Result<Resume<Cpu>, SnapshotError> {
        resume(&self.model, ns, &self.subject, tokens, 0)
    }

    /// Goes on from the longest that is stored of `prompt`, reads the rest of it, then `more` one by one. The logits after
    /// `prompt` and after each of `more`, how many tokens were reused, and why not all.
    pub fn answer(&self, ns: &Namespace, prompt: &[u32], more: &[u32]) -> (Vec<Vec<f32>>, usize, Option<String>) {
        let found = self.resume(ns, prompt).expect("damage fails no request");
        let why = found.lost.first().map(ToString::to_string).or_else(|| found.miss.map(|miss| miss.to_string()));
        let Resumed { mut state, logits } =
            found.resumed.unwrap_or_else(|| Resumed { state: self.model.new_state().unwrap(), logits: Vec::new() });
        let reused = state.position();
        let mut rows = vec![if reused < prompt.len() { self.read(&mut state, &prompt[reused..]) } else { logits }];
        for token in more {
            rows.extend(self.append(&mut state, &[*token]));
        }
        (rows, reused, why)
    }
}

/// Whether logits are the same bits.
pub fn same(a: &[Vec<f32>], b: &[Vec<f32>]) -> bool {
    let bits =
        |rows: &[Vec<f32>]| rows.iter().map(|row| row.iter().map(|v| v.to_bits()).collect()).collect::<Vec<Vec<_>>>();
    bits(a) == bits(b)
}

/// In memory where that can be had: these tests wait for a disk's syncs otherwise.
pub fn new_folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// What others do is seen at once.
pub fn options() -> Options {
    Options { refresh: Duration::ZERO, ..Options::default() }
}

pub fn packed() -> Options {
    Options { compress: Some(3), ..options() }
}

pub fn secret() -> Options {
    Options { key: Some(Key::new([7; 32])), ..options() }
}

pub fn open(path: &Path, options: Options) -> Namespace {
    Store::open(path.to_str().unwrap(), options).unwrap().namespace("a").unwrap()
}

/// All files below a folder, but the cache, which is not part of the truth.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_none_or(|e| e != "redb") {
                all.push(path);
            }
        }
    }
    all.sort();
    all
}

/// This test program again, for one of its tests alone.
pub fn child(test: &str) -> std::process::Command {
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", test, "--nocapture"]);
    child
}
