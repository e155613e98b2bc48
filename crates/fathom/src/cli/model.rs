//! Opening a model: the flags that all commands share, the files, the plan, the engine.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use fathom_engine::{Engine, EngineOptions, Keep};
use fathom_kernels::{Cpu, CpuOptions, Device, Profile, Share};
use fathom_model::Model;
use fathom_weights::{Checkpoint, Release};

use crate::chat::{Dialect, Loading, Prompter, Tokenizer};
use crate::ui::{Plan, say};

/// The name of the embedded model.
pub const EMBEDDED: &str = "demo";

/// Its `config.json`.
pub const CONFIG: &[u8] = include_bytes!("../../assets/demo-model/config.json");
const WEIGHTS: &[u8] = include_bytes!("../../assets/demo-model/model-00001.safetensors");
const TOKENIZER: &[u8] = include_bytes!("../../assets/demo-model/tokenizer.json");

/// What the program itself takes: code, tables, the allocator's slack, and fastokens' tables of words that each of its
/// threads makes or not, as it happens. Measured over some 60 runs: 18 to 55 MiB.
const PROGRAM: u64 = 64 << 20;
/// What a thread takes beside its part of the scratch: a stack, and what the allocator keeps for it. Measured: 1.6 MB.
const THREAD: u64 = 2 << 20;
/// fastokens' table of words that its threads share, made when the first long text is read: 2^19 entries of 64 bytes.
const WORDS: u64 = 32 << 20;

/// Tokens of a prompt that are read at once, where nobody says: the first whose scratch fits.
const CHUNKS: [usize; 5] = [1024, 768, 512, 256, 128];
/// What scratch may take, where nobody says how many tokens are read at once.
const SCRATCH: u64 = 256 << 20;

/// How to run a model.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Threads [default: one for each core]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Instruction set: plain, avx2, avx512, avx512-bf16, neon [default: the best this CPU has]
    #[arg(long)]
    pub isa: Option<String>,
    /// Numeric profile: native or exact
    #[arg(long, default_value_t = Profile::Native)]
    pub profile: Profile,
    /// Tokens of a prompt that are read at once [default: up to 1024, as many as 256 MiB of scratch hold]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub prefill_chunk: Option<u32>,
}

impl Options {
    /// Tokens of a prompt that are read at once.
    fn chunk(&self, model: &Model<Cpu>) -> usize {
        let fits = |chunk: &usize| model.scratch_bytes(*chunk) <= SCRATCH;
        self.prefill_chunk.map_or_else(|| CHUNKS.into_iter().find(fits).unwrap_or(64), |chunk| chunk as usize)
    }
}

/// A model's files, opened and checked, before any weight is read.
pub struct Files {
    /// How people call it.
    pub name: String,
    /// The tensors.
    pub checkpoint: Checkpoint,
    tokenizer: Result<Loading, crate::Error>,
    text: u64,
}

impl Files {
    /// Opens a folder, or the embedded model where there is none or it is called `demo`.
    pub fn open(folder: Option<&Path>) -> Result<Files, Box<dyn std::error::Error>> {
        let Some(folder) = folder.filter(|folder| *folder != Path::new(EMBEDDED) || folder.is_dir()) else {
            let shard = ("model-00001.safetensors".to_owned(), Bytes::from_static(WEIGHTS));
            let checkpoint = Checkpoint::from_memory(CONFIG, vec![shard])?;
            let tokenizer = Tokenizer::bytes_in_background("tokenizer.json (embedded)", TOKENIZER);
            return Ok(Files { name: EMBEDDED.into(), checkpoint, tokenizer, text: TOKENIZER.len() as u64 });
        };
        if !folder.is_dir() {
            return Err(format!("{}: no such folder; MODEL is the folder of a checkpoint", folder.display()).into());
        }
        let tokenizer = Tokenizer::load_in_background(folder);
        let checkpoint = Checkpoint::open(folder)?;
        let name = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        let name = name.file_name().map_or_else(|| "model".to_owned(), |n| n.to_string_lossy().into_owned());
        let text = std::fs::metadata(folder.join("tokenizer.json")).map_or(0, |m| m.len());
        Ok(Files { name, checkpoint, tokenizer, text })
    }

    /// Waits for the tokenizer and checks that it is this model's.
    pub fn prompter(self) -> Result<Prompter, Box<dyn std::error::Error>> {
        let config = self.checkpoint.config();
        let tokenizer = self.tokenizer?.wait()?;
        tokenizer.check(config.vocab_size, config.bos_token_id, config.eos_token_id)?;
        let dialect = match self.checkpoint.release() {
            Release::Dspark => Dialect::Current,
            Release::Preview | Release::Base => Dialect::Preview,
        };
        Ok(Prompter::new(Arc::new(tokenizer), dialect))
    }
}

/// A model on this CPU.
pub struct Loaded {
    /// It.
    pub model: Arc<Model<Cpu>>,
    /// The memory it may take, for one session of `context` tokens, and states of others as far as there is room.
    pub plan: Plan,
    /// The most tokens of a session.
    pub context: usize,
    /// Tokens of a prompt that are read at once.
    pub chunk: usize,
}

/// Puts the model on the CPU and limits the ledger to what is planned.
pub fn load(files: &Files, options: &Options, context: Option<usize>) -> Result<Loaded, Box<dyn std::error::Error>> {
    let cpu = Cpu::new(CpuOptions {
        threads: options.threads.map(usize::from),
        isa: options.isa.clone(),
        profile: options.profile,
    })?;
    if cpu.isa() == "plain" && options.isa.is_none() {
        say!("this CPU has neither AVX2 nor NEON: plain code runs, with the same results, many times slower");
    }
    let model = Model::load(cpu, &files.checkpoint)?;
    let limit = model.config().max_position_embeddings;
    let context = context.unwrap_or(limit);
    if context > limit {
        return Err(format!("--context is {context}, but the model holds {limit} tokens at most").into());
    }
    let chunk = options.chunk(&model).min(context);
    let plan = Plan {
        weights: files.checkpoint.weight_bytes(),
        state: model.state_bytes(context) + Engine::spare_bytes(&model),
        scratch: model.scratch_bytes(chunk),
        // A tokenizer takes some twenty times its file, and fastokens a table once texts are long enough for two threads;
        // a token of a prompt takes a few bytes as text, as token, twice over, and as a word remembered.
        program: PROGRAM
            + WORDS
            + THREAD * model.device().threads() as u64
            + 20 * files.text
            + 40 * context.min(1 << 20) as u64,
    };
    let ledger = model.device().ledger();
    ledger.limit(Share::State, plan.state);
    ledger.limit(Share::Scratch, plan.scratch);
    Ok(Loaded { model: Arc::new(model), plan, context, chunk })
}

impl Loaded {
    /// One line about what runs and how.
    pub fn describe(&self, name: &str, release: Release) -> String {
        let device = self.model.device();
        format!("{name}: {release}, {}, profile {}", device.name(), device.profile())
    }

    /// An engine over it, which keeps its sessions in a store if there is one.
    pub fn engine(&self, queue: usize, keep: Option<Keep>) -> Engine {
        let options = EngineOptions { prefill_chunk: self.chunk, queue, context: self.context };
        Engine::start(Arc::clone(&self.model), options, keep)
    }
}
