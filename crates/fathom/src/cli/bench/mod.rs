//! `fathom bench`: how fast a model reads and writes, at given depths or up to a length, and servers side by side.

mod depths;
mod frontiers;
mod servers;
mod show;

use std::path::PathBuf;

use super::Outcome;
use super::model::Options;
use super::store::StoreOptions;
use super::targets::ServerFlags;
use crate::bench::Workload;

/// Flags of `fathom bench`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A folder with an official checkpoint [default: the embedded model, or none beside --url]
    model: Option<PathBuf>,
    /// Lengths of prompts to time, with commas between
    #[arg(long, value_delimiter = ',', default_value = "512", value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    prefill: Vec<u32>,
    /// Tokens to decode one by one, with commas between
    #[arg(long, value_delimiter = ',', default_value = "32", value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    decode: Vec<u32>,
    /// Tokens already in the session, with commas between; each depth goes on from the one before
    #[arg(long, value_delimiter = ',', default_value = "0", value_parser = clap::value_parser!(u32).range(0..=1 << 24))]
    depth: Vec<u32>,
    /// Runs of each test, after one to warm up, or rounds of a workload; medians are reported [default: 5; 3 with --context,
    /// --url or --workload]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: Option<u32>,
    /// Speed at 2,048 tokens, twice that and so on up to this length, in one session, and a question at the end; with --url or
    /// --workload: about how many tokens the longest prompt has [default there: 4096]
    #[arg(long, value_parser = clap::value_parser!(u32).range(256..=1 << 24))]
    context: Option<u32>,
    #[command(flatten)]
    servers: ServerFlags,
    /// What servers are asked; a MODEL without --url is served and measured alone [default with --url: chat]
    #[arg(long, value_enum, conflicts_with = "trace")]
    workload: Option<Workload>,
    /// What servers are asked, from a file: a line of JSON for each request, {"at_ms", "messages" or "prompt_tokens",
    /// "max_tokens"}
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Write what the first round asks to such a file; without --url and MODEL nothing is measured
    #[arg(long, value_name = "FILE")]
    export: Option<PathBuf>,
    /// The same seed makes the same texts
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Requests of a workload, as a share of what it has by itself
    #[arg(long, default_value_t = 1.0, value_parser = positive)]
    scale: f64,
    /// Requests a second, where they come at random times
    #[arg(long, default_value_t = 1.0, value_parser = positive)]
    rate: f64,
    /// The most tokens of an answer [default: as the workload says]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    max_tokens: Option<u32>,
    /// A folder for a page with charts, the numbers as JSON, and tables as CSV
    #[arg(long, value_name = "FOLDER")]
    report: Option<PathBuf>,
    /// One JSON object a line instead of the table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreOptions,
    #[command(flatten)]
    options: Options,
}

/// A factor that makes sense.
fn positive(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "a number".to_owned())?;
    if (1e-3..=1e4).contains(&number) { Ok(number) } else { Err("a number from 0.001 to 10000".to_owned()) }
}

/// Times a model, or servers.
pub fn bench(args: &Args) -> Outcome {
    let asks = args.workload.is_some() || args.trace.is_some() || !args.servers.url.is_empty() || args.export.is_some();
    match args.context {
        _ if asks => servers::servers(args),
        Some(context) => frontiers::frontiers(args, context as usize),
        None if args.store.location().is_some() || args.report.is_some() => {
            Err("--store and --report are for --context, --workload or --url".into())
        }
        None => depths::depths(args),
    }
}
