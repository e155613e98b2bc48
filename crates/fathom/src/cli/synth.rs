//! `fathom synth`: a random checkpoint in the official layout, of any geometry, straight to disk.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, Once, PoisonError};

use fathom_kernels::human;
use fathom_weights::Error;
use fathom_weights::synth::{Folder, NAMES, Size, Synth};
use serde_json::{Map, Value, json};

use super::Outcome;
use super::store::bytes;
use crate::drive::free_bytes;
use crate::plan::read_config;
use crate::ui::{Transfer, commas, out, say};

/// Room that is left for others, in bytes.
const SPARE: u64 = 64 << 20;
/// The smallest shard, in bytes.
const SMALLEST_SHARD: u64 = 1 << 16;
/// The most tensors of experts, each of which takes a name and a place: V4-Pro has 140,544.
const MOST_TENSORS: usize = 2_000_000;
/// What a tokenizer is, in files.
const TOKENIZER: [&str; 2] = ["tokenizer.json", "tokenizer_config.json"];

/// Set by Ctrl-C.
static CANCEL: AtomicBool = AtomicBool::new(false);

/// Flags of `fathom synth`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A geometry: tiny, mid, flash-slice, v4-flash, v4-pro, or a config.json
    geometry: String,
    /// The folder to write; it must not be there
    out: PathBuf,
    /// The weights' seed: the same seed and geometry give the same bytes everywhere
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Another value for a field of config.json, such as num_hidden_layers=8; may be given several times
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// A folder whose tokenizer is copied along, so that text can be read
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
    /// About how long a shard may be
    #[arg(long, value_name = "BYTES", default_value = "5GB", value_parser = bytes)]
    shard_size: u64,
    /// Threads [default: one for each core]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
    /// Say what would be written, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// One JSON object for machines
    #[arg(long)]
    json: bool,
}

/// Writes the checkpoint.
pub fn synth(args: &Args) -> Outcome {
    if args.shard_size < SMALLEST_SHARD {
        return Err(format!(
            "--shard-size is {}; it must be at least {}",
            human(args.shard_size),
            human(SMALLEST_SHARD)
        )
        .into());
    }
    let synth = geometry(args)?;
    let config = synth.parse()?;
    let tensors = config.num_hidden_layers.saturating_mul(config.n_routed_experts).saturating_mul(6);
    if tensors > MOST_TENSORS {
        let (tensors, most) = (commas(tensors), commas(MOST_TENSORS));
        return Err(format!(
            "{tensors} tensors of experts are more than {most}; take fewer num_hidden_layers or n_routed_experts"
        )
        .into());
    }
    let size = synth.size(args.shard_size)?;
    let others = tokenizer(args.tokenizer.as_deref())?;
    let free = free_bytes(&args.out).map_err(|e| format!("{}: {e}", args.out.display()))?;
    let fits = free >= size.bytes.saturating_add(SPARE);
    if !args.dry_run {
        if !fits {
            let (free, needed) = (human(free), human(size.bytes));
            let out = args.out.display();
            return Err(format!(
                "{out}: {free} are free, but {} takes {needed}; make room, name a folder on another drive, or make it \
                 smaller with --set num_hidden_layers=…",
                args.geometry
            )
            .into());
        }
        write(args, &synth, &size, &others)
    } else if args.json {
        Ok(writeln!(out(), "{}", report(args, &size, None, Some(free)))?)
    } else {
        let room = if fits { "enough" } else { "too little" };
        writeln!(out(), "{}", describe(&size))?;
        Ok(writeln!(out(), "{} are free below {}: {room}", human(free), args.out.display())?)
    }
}

fn write(args: &Args, synth: &Synth, size: &Size, others: &[PathBuf]) -> Outcome {
    // Where there can be no handler, Ctrl-C ends the program, and the next run clears what it left.
    let _ = ctrlc::set_handler(|| CANCEL.store(true, Ordering::Relaxed));
    let threads = args.threads.map_or_else(|| std::thread::available_parallelism().map_or(1, usize::from), usize::from);
    let (done, shown) = (AtomicU64::new(0), Mutex::new(Transfer::new("writing", args.json)));
    let begun = Once::new();
    let tell = |bytes| {
        begun.call_once(|| {
            if !args.json {
                say!("{}", describe(size));
            }
        });
        let done = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        // Who finds it busy need not wait: another tells nearly the same.
        if let Ok(mut shown) = shown.try_lock() {
            shown.update(done, size.bytes);
        }
    };
    let shard_bytes = args.shard_size;
    let folder = Folder { path: &args.out, shard_bytes, threads, others, cancel: &CANCEL };
    let written = synth.write_folder(&folder, &tell);
    let mut shown = shown.into_inner().unwrap_or_else(PoisonError::into_inner);
    shown.finish();
    match written {
        Err(Error::Write { cause, .. }) if cause.kind() == std::io::ErrorKind::Interrupted => {
            return Err(format!("{}: stopped; what was written is removed", args.out.display()).into());
        }
        written => written?,
    };
    let seconds = shown.seconds();
    if args.json {
        writeln!(out(), "{}", report(args, size, Some(seconds), None))?;
    } else {
        let speed = human((size.bytes as f64 / seconds.max(1e-9)) as u64);
        writeln!(out(), "{} in {seconds:.1} s, {speed}/s", args.out.display())?;
    }
    Ok(())
}

fn describe(size: &Size) -> String {
    format!(
        "{:.2} billion parameters, {} in {} shards, {} tensors",
        size.parameters as f64 / 1e9,
        human(size.bytes),
        commas(size.shards),
        commas(size.tensors)
    )
}

fn report(args: &Args, size: &Size, seconds: Option<f64>, free: Option<u64>) -> Value {
    json!({
        "geometry": args.geometry,
        "folder": args.out.display().to_string(),
        "seed": args.seed,
        "parameters": size.parameters,
        "bytes": size.bytes,
        "tensors": size.tensors,
        "shards": size.shards,
        "written": seconds.is_some(),
        "seconds": seconds,
        "bytes_per_second": seconds.map(|s| (size.bytes as f64 / s.max(1e-9)).round()),
        "free": free,
    })
}

/// The geometry by name or file, with what `--set` changes.
fn geometry(args: &Args) -> Result<Synth, Box<dyn std::error::Error>> {
    let mut synth = match Synth::named(&args.geometry, args.seed) {
        Some(synth) => synth,
        None => Synth { config: read(&args.geometry)?, seed: args.seed },
    };
    let mut sets = Vec::new();
    for set in &args.sets {
        let (key, value) = set.split_once('=').ok_or_else(|| format!("--set {set}: write it as KEY=VALUE"))?;
        if !synth.config.contains_key(key) {
            let mut known: Vec<&str> = synth.config.keys().map(String::as_str).collect();
            known.sort_unstable();
            return Err(format!("--set {key}: config.json has no such field; it has {}", known.join(", ")).into());
        }
        // What is no JSON is text, so that fp8 needs no quotes in quotes.
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
        sets.push((key, value));
    }
    let layers = sets.iter().find(|(key, _)| *key == "num_hidden_layers").and_then(|(_, n)| n.as_u64());
    if let Some(layers) = layers.filter(|&layers| layers <= 4096) {
        synth = synth.with_layers(layers as usize);
    }
    Ok(sets.into_iter().fold(synth, |synth, (key, value)| synth.set(key, value)))
}

fn read(path: &str) -> Result<Map<String, Value>, String> {
    match Path::new(path).exists() {
        true => read_config(Path::new(path)),
        false => Err(format!("{path}: is neither a file nor one of {}", NAMES.join(", "))),
    }
}

/// The files of a tokenizer in a folder.
fn tokenizer(folder: Option<&Path>) -> Result<Vec<PathBuf>, String> {
    let Some(folder) = folder else { return Ok(Vec::new()) };
    let files: Vec<PathBuf> =
        TOKENIZER.map(|name| folder.join(name)).into_iter().filter(|path| path.is_file()).collect();
    match files.first() {
        Some(first) if first.ends_with(TOKENIZER[0]) => Ok(files),
        _ => Err(format!("--tokenizer {}: has no {}", folder.display(), TOKENIZER[0])),
    }
}
