//! Opening a model: the flags that all commands share, the files, the plan, the engine.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fathom_engine::{Counts, Engine, EngineOptions, Keep};
use fathom_kernels::{Cpu, CpuOptions, Device, Profile, Share};
use fathom_model::Model;
use fathom_weights::experts::{ExpertCache, ReaderKind, Stats, StreamOptions};
use fathom_weights::{Checkpoint, Release, Sizes};

use super::store::{bytes, cache_folder};
use crate::chat::{Dialect, Loading, Prompter, Tokenizer};
use crate::doctor::shard_files;
use crate::plan::{
    Forecast, PROBE, Plan, Used, Wanted, measure, measure_drive, plan, remember, remember_drive, remembered,
    remembered_drive,
};
use crate::ui::{forget_peak, say};

/// The name of the embedded model.
pub const EMBEDDED: &str = "demo";

/// Its `config.json`.
pub const CONFIG: &[u8] = include_bytes!("../../assets/demo-model/config.json");
const WEIGHTS: &[u8] = include_bytes!("../../assets/demo-model/model-00001.safetensors");
const TOKENIZER: &[u8] = include_bytes!("../../assets/demo-model/tokenizer.json");

/// How long a start waits for the experts that earlier runs used most; those that are not read by then go on coming.
const WARM: Duration = Duration::from_secs(5);

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
    /// Tokens of a prompt that are read at once [default: up to 1024, as many as 256 MiB of scratch hold; up to 8192 with
    /// streamed experts]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub prefill_chunk: Option<u32>,
    /// Memory that the program may hold, such as 24GiB; experts that do not fit are read from the model's files as they are
    /// needed [default: what the machine or its control group has free, less a margin]
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub memory: Option<u64>,
    /// How streamed experts are read: fixed, ring or pool; the best that works, from this one on
    #[arg(long, value_name = "KIND", default_value = "fixed", value_parser = reader, hide = true)]
    pub reader: ReaderKind,
    /// Write which experts are demanded to a file, for fathom simulate
    #[arg(long, value_name = "FILE", hide = true)]
    pub trace: Option<PathBuf>,
    /// Neither take up nor leave behind how often experts were used
    #[arg(long, hide = true)]
    pub no_counts: bool,
}

fn reader(name: &str) -> Result<ReaderKind, String> {
    match name {
        "fixed" => Ok(ReaderKind::FixedRing),
        "ring" => Ok(ReaderKind::Ring),
        "pool" => Ok(ReaderKind::Pool),
        _ => Err(format!("'{name}' is none of fixed, ring, pool")),
    }
}

/// A model's files, opened and checked, before any weight is read.
pub struct Files {
    /// How people call it.
    pub name: String,
    /// The tensors.
    pub checkpoint: Checkpoint,
    tokenizer: Result<Loading, crate::Error>,
    /// Bytes of its file.
    pub text: u64,
    /// Where they are, if they are not part of the program.
    pub folder: Option<PathBuf>,
}

impl Files {
    /// Opens a folder, or the embedded model where there is none or it is called `demo`.
    pub fn open(folder: Option<&Path>) -> Result<Files, Box<dyn std::error::Error>> {
        let Some(folder) = folder.filter(|folder| *folder != Path::new(EMBEDDED) || folder.is_dir()) else {
            let shard = ("model-00001.safetensors".to_owned(), Bytes::from_static(WEIGHTS));
            let checkpoint = Checkpoint::from_memory(CONFIG, vec![shard])?;
            let tokenizer = Tokenizer::bytes_in_background("tokenizer.json (embedded)", TOKENIZER);
            return Ok(Files {
                name: EMBEDDED.into(),
                checkpoint,
                tokenizer,
                text: TOKENIZER.len() as u64,
                folder: None,
            });
        };
        if !folder.is_dir() {
            return Err(format!("{}: no such folder; MODEL is the folder of a checkpoint", folder.display()).into());
        }
        let tokenizer = Tokenizer::load_in_background(folder);
        let checkpoint = Checkpoint::open(folder)?;
        let name = folder_name(folder);
        let text = std::fs::metadata(folder.join("tokenizer.json")).map_or(0, |m| m.len());
        Ok(Files { name, checkpoint, tokenizer, text, folder: Some(folder.to_owned()) })
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

/// What a model in a folder is called.
pub fn folder_name(folder: &Path) -> String {
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    folder.file_name().map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// A model on this CPU.
pub struct Loaded {
    /// It.
    pub model: Arc<Model<Cpu>>,
    /// The memory it may take, for one session of `context` tokens, and states of others as far as there is room.
    pub plan: Plan,
    /// The most tokens of a session.
    pub context: usize,
    /// The most tokens of prompts that are read at once.
    pub chunk: usize,
    /// What streaming had done when the start was over.
    pub started: Stats,
    /// Requests that run at once.
    pub parallel: usize,
    /// How fast it is expected to be, where somebody asked.
    pub forecast: Option<Forecast>,
}

/// Puts the model on the CPU and limits the ledger to what is planned for one request at a time.
pub fn load(files: &Files, options: &Options, context: Option<usize>) -> Result<Loaded, Box<dyn std::error::Error>> {
    load_for(files, options, context, 1, 0, false)
}

/// The same for `parallel` requests at once: one of the whole context beside others of 8,192 tokens. `beside` is what else the
/// program holds, in bytes. With `predict` there is a forecast, for which a machine that was not measured lately is measured now.
pub fn load_for(
    files: &Files,
    options: &Options,
    context: Option<usize>,
    parallel: usize,
    beside: u64,
    predict: bool,
) -> Result<Loaded, Box<dyn std::error::Error>> {
    let cpu = Cpu::new(CpuOptions {
        threads: options.threads.map(usize::from),
        isa: options.isa.clone(),
        profile: options.profile,
    })?;
    if cpu.isa() == "plain" && options.isa.is_none() {
        say!("this CPU has neither AVX2 nor NEON: plain code runs, with the same results, many times slower");
    }
    let limit = files.checkpoint.config().max_position_embeddings;
    let context = context.unwrap_or(limit);
    if context > limit {
        return Err(format!("--context is {context}, but the model holds {limit} tokens at most").into());
    }
    let wanted = Wanted {
        context,
        chunk: options.prefill_chunk.map(|chunk| chunk as usize),
        parallel,
        threads: cpu.threads(),
        text: files.text,
        beside,
        budget: options.memory,
    };
    let sizes = Sizes::of(&files.checkpoint)?;
    let plan = plan(&cpu, files.checkpoint.config(), &sizes, wanted)?;
    let forecast = predict.then(|| forecast(&cpu, files, options, plan, sizes)).flatten();
    let ledger = cpu.ledger();
    ledger.limit(Share::State, plan.state);
    ledger.limit(Share::Scratch, plan.scratch);
    let model = match plan.experts {
        None => Model::load(cpu, &files.checkpoint)?,
        Some(memory) => {
            ledger.limit(Share::Weights, plan.weights);
            ledger.limit(Share::Experts, memory);
            stream(cpu, files, options, memory)?
        }
    };
    let started = model.streaming().map(ExpertCache::stats).unwrap_or_default();
    Ok(Loaded { model: Arc::new(model), plan, context, chunk: plan.chunk, parallel, started, forecast })
}

/// What is expected of a plan on this machine, which is measured within the memory that is planned, before the weights come.
fn forecast(cpu: &Cpu, files: &Files, options: &Options, plan: Plan, sizes: Sizes) -> Option<Forecast> {
    let cache = cache_folder();
    let probe = PROBE.min(plan.total() / 2);
    let cache = cache.as_deref();
    let mut machine = match cache.and_then(|cache| remembered(cache, cpu, probe)) {
        Some(machine) => machine,
        None => {
            let measured = measure(cpu, probe).ok()?;
            // What the probe took, within the plan, is given back; the peak that is told at the end is the model's.
            forget_peak();
            if let Some(cache) = cache {
                remember(cache, &measured, probe);
            }
            measured
        }
    };
    if let Some(folder) = files.folder.as_deref().filter(|_| plan.experts.is_some()) {
        machine.drive = cache.and_then(|cache| remembered_drive(cache, folder));
        if machine.drive.is_none() {
            machine.drive = shard_files(folder).and_then(|files| measure_drive(folder, &files)).ok();
            if let (Some(cache), Some(drive)) = (cache, machine.drive) {
                remember_drive(cache, folder, drive);
            }
        }
    }
    Some(Forecast::new(machine, files.checkpoint.config(), sizes, plan, options.profile == Profile::Native))
}

/// The model with its experts in their files, and those in memory that earlier runs used most.
fn stream(cpu: Cpu, files: &Files, options: &Options, memory: u64) -> Result<Model<Cpu>, Box<dyn std::error::Error>> {
    let stream = StreamOptions {
        memory,
        reader: options.reader,
        counts: cache_folder().filter(|_| !options.no_counts).map(|folder| folder.join("experts")),
        trace: options.trace.clone(),
        tell: Some(Arc::new(|message: &str| say!("{message}"))),
        ..StreamOptions::default()
    };
    let model = Model::stream(cpu, &files.checkpoint, stream)?;
    if let Some(cache) = model.streaming() {
        cache.warm(model.device(), WARM);
    }
    Ok(model)
}

impl Loaded {
    /// One line about what runs and how.
    pub fn describe(&self, name: &str, release: Release) -> String {
        let device = self.model.device();
        let streams = self.model.streaming().map_or(String::new(), |cache| {
            let Stats { held, room, .. } = cache.stats();
            format!(", experts from {}, {held} of {room} in memory", cache.describe())
        });
        format!("{name}: {release}, {}, profile {}{streams}", device.name(), device.profile())
    }

    /// What of the memory that was planned came to be used for such requests.
    pub fn used(&self, counts: &Counts) -> Used {
        let peak = |share| self.model.device().ledger().holding(share).peak;
        let filled = |cache: &ExpertCache<Cpu>| {
            let Stats { held, room, .. } = cache.stats();
            self.plan.experts.unwrap_or(0) as f64 * (held as f64 / room.max(1) as f64)
        };
        let experts = self.model.streaming().map_or(0.0, filled) as u64;
        let read = (counts.prompt_tokens + counts.generated_tokens).saturating_sub(counts.reused_tokens) as usize;
        Used { state: peak(Share::State), scratch: peak(Share::Scratch), experts, longest: counts.longest, read }
    }

    /// An engine over it, which keeps its sessions in a store if there is one.
    pub fn engine(&self, options: EngineOptions, keep: Option<Keep>) -> Engine {
        let (prefill_chunk, parallel, context) = (self.chunk, self.parallel, self.context);
        Engine::start(Arc::clone(&self.model), EngineOptions { prefill_chunk, parallel, context, ..options }, keep)
    }
}
