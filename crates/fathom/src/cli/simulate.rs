//! `fathom simulate`: how fast decode would be with experts on given drives.

use std::io::Write;
use std::path::PathBuf;

use fathom_kernels::human;
use fathom_model::{Formats, Kernel, Stretch, pieces};
use serde_json::json;

use super::Outcome;
use super::store::bytes;
use crate::plan::Subject;
use crate::simulate::{About, Keep, Machine, Synthetic, Trace, replay};
use crate::ui::out;

/// Flags of `fathom simulate`. The table has machines of its own; flags that describe one are for a trace or for `--experts`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("one").args(["trace", "experts"]).multiple(true))]
pub struct Args {
    /// A trace that was recorded with --trace
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// A model to draw a trace for, where none is given
    #[arg(long, value_enum, default_value_t = Shape::V4Flash, conflicts_with = "trace")]
    model: Shape,
    /// Tokens to draw; the first half fills the cache and does not count
    #[arg(long, default_value_t = 2000, value_parser = tokens, conflicts_with = "trace")]
    tokens: usize,
    /// s of the experts' popularity, 1 ÷ rankˢ
    #[arg(long, default_value_t = 0.9, value_parser = at_least_0, conflicts_with = "trace")]
    skew: f64,
    /// The chance that a slot goes where one of the token before went
    #[arg(long, default_value_t = 0.1, value_parser = part, conflicts_with = "trace")]
    locality: f64,
    /// The chance that a guess of the next layer's experts is right
    #[arg(long, default_value_t = 0.75, value_parser = part, conflicts_with = "trace")]
    guess: f64,
    /// Memory for experts [default: what the recorded run had; for a model a table of machines]
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    experts: Option<u64>,
    /// What is forgotten first
    #[arg(long, value_enum, default_value_t = Keep::Scores)]
    keep: Keep,
    /// Drives
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..), requires = "one")]
    drives: u32,
    /// GB/s that a drive gives
    #[arg(long, default_value_t = 7.0, value_parser = more_than_0, requires = "one")]
    drive_gbps: f64,
    /// Microseconds from asking a drive to its first byte
    #[arg(long, default_value_t = 100.0, value_parser = at_least_0)]
    latency_us: f64,
    /// Milliseconds of computing that reading a GB takes away
    #[arg(long, default_value_t = 0.0, value_parser = at_least_0)]
    read_cost_ms: f64,
    /// Milliseconds that a token takes with all in memory [default: from --memory-gbps]
    #[arg(long, value_parser = more_than_0, requires = "one")]
    token_ms: Option<f64>,
    /// The part of those that routed experts take
    #[arg(long, default_value_t = 0.3, value_parser = part, requires = "token_ms")]
    experts_part: f64,
    /// GB/s that memory gives
    #[arg(long, default_value_t = 80.0, value_parser = more_than_0, requires = "experts", conflicts_with_all = ["trace", "token_ms"])]
    memory_gbps: f64,
    /// Passes at the start that do not count [default: half of a drawn trace, and those that read a prompt of a recorded one]
    #[arg(long)]
    skip: Option<u64>,
    /// One JSON object
    #[arg(long, requires = "one")]
    json: bool,
}

/// A number within bounds that `what` says.
fn number(text: &str, what: &str, fits: impl Fn(f64) -> bool) -> Result<f64, String> {
    text.parse().ok().filter(|n: &f64| n.is_finite() && fits(*n)).ok_or_else(|| format!("it must be {what}"))
}

pub(super) fn part(text: &str) -> Result<f64, String> {
    number(text, "a number from 0 to 1", |n| (0.0..=1.0).contains(&n))
}

pub(super) fn at_least_0(text: &str) -> Result<f64, String> {
    number(text, "a number that is not less than 0", |n| n >= 0.0)
}

pub(super) fn more_than_0(text: &str) -> Result<f64, String> {
    number(text, "a number that is more than 0", |n| n > 0.0)
}

/// A trace that is drawn is in memory.
fn tokens(text: &str) -> Result<usize, String> {
    const MOST: usize = 1 << 20;
    text.parse().ok().filter(|n| (1..=MOST).contains(n)).ok_or_else(|| format!("it must be a number from 1 to {MOST}"))
}

/// A model's sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Shape {
    V4Flash,
    V4Pro,
}

impl Shape {
    fn subject(self) -> Result<Subject, Box<dyn std::error::Error>> {
        Subject::open(Some(match self {
            Shape::V4Flash => "v4-flash",
            Shape::V4Pro => "v4-pro",
        }))
    }
}

/// Bytes of weights that a token reads beside routed experts.
fn dense(subject: &Subject) -> f64 {
    let Subject { config, sizes, .. } = subject;
    let formats =
        Formats { matrices: sizes.matrices, shared: sizes.shared, experts: &sizes.experts, fp4_in_int8: true };
    let mut bytes = 0.0;
    pieces(config, formats, &[Stretch { start: 0, tokens: 1 }], 1, |_, piece| {
        bytes += if let Kernel::Matrix(_) = piece.kernel { piece.cost.bytes } else { 0.0 };
    });
    bytes
}

impl Args {
    /// `token` seconds of computing, shared out over layers.
    fn machine(&self, about: &About, token: f64, experts_part: f64, bandwidth: f64) -> Machine {
        let machine = Machine::shared_out(about, token, experts_part);
        Machine { bandwidth, latency: self.latency_us / 1e6, cost: self.read_cost_ms / 1e12, ..machine }
    }

    /// The same for a model whose weights are read at the speed of memory.
    fn of_shape(&self, about: &About, dense: f64, memory_gbps: f64, bandwidth: f64) -> Machine {
        let experts = (about.layers * about.slots) as f64 * about.expert_bytes as f64;
        let all = dense + experts;
        self.machine(about, all / (memory_gbps * 1e9), experts / all, bandwidth)
    }
}

/// Replays a trace, or draws one and shows a table of machines.
pub fn simulate(args: &Args) -> Outcome {
    let bandwidth = f64::from(args.drives) * args.drive_gbps * 1e9;
    if let Some(path) = &args.trace {
        let trace = Trace::read(path)?;
        let about = &trace.about;
        let token =
            args.token_ms.ok_or("a recorded trace needs --token-ms, what a token takes with all in memory")? / 1e3;
        let prompt = trace.demands.iter().filter(|demand| demand.layer == 0 && demand.rows > 1).count() as u64;
        let machine = args.machine(about, token, args.experts_part, bandwidth);
        let room = args.experts.map_or(about.room, |bytes| (bytes / about.expert_bytes.max(1)) as usize);
        return report(args, &trace, room, &machine, skipped(args, &trace, prompt)?);
    }
    let subject = args.model.subject()?;
    let each = subject.sizes.expert_bytes / subject.sizes.count as u64;
    let (about, dense) = (About::of(&subject.config, each, 1024.0), dense(&subject));
    let drawn = Synthetic { tokens: args.tokens, skew: args.skew, locality: args.locality, guess: args.guess, seed: 1 };
    let trace = drawn.trace(about);
    let about = &trace.about;
    let skip = skipped(args, &trace, args.tokens as u64 / 2)?;
    match args.experts {
        Some(bytes) => {
            let machine = match args.token_ms {
                Some(ms) => args.machine(about, ms / 1e3, args.experts_part, bandwidth),
                None => args.of_shape(about, dense, args.memory_gbps, bandwidth),
            };
            report(args, &trace, (bytes / about.expert_bytes) as usize, &machine, skip)
        }
        None => table(args, &subject, dense, &trace, skip),
    }
}

/// Passes at the start that do not count, of which there must be fewer than there are passes.
fn skipped(args: &Args, trace: &Trace, otherwise: u64) -> Result<u64, String> {
    let passes = trace.passes();
    match args.skip {
        Some(skip) if skip >= passes => {
            Err(format!("--skip is {skip}, but the trace has {passes} passes; of those some must count"))
        }
        None if otherwise >= passes => {
            let problem = "nothing of the trace counts, as all its passes read a prompt";
            Err(format!("{problem}; record some tokens of an answer, or give --skip 0 to count them"))
        }
        given => Ok(given.unwrap_or(otherwise)),
    }
}

fn report(args: &Args, trace: &Trace, room: usize, machine: &Machine, skip: u64) -> Outcome {
    let done = replay(trace, room, args.keep, machine, skip);
    let tokens = done.tokens.max(1) as f64;
    if args.json {
        let json = json!({
            "tokens": done.tokens, "seconds": done.seconds, "tokens_per_second": tokens / done.seconds,
            "hit_rate": done.hit_rate(), "demanded": done.demanded, "hits": done.hits,
            "prefetched_in_time": done.in_time, "missed_bytes_per_token": done.missed_bytes as f64 / tokens,
            "wasted_bytes_per_token": done.wasted_bytes as f64 / tokens, "stall_seconds": done.stalled,
            "stall_known_layers_seconds": done.stalled_known,
        });
        writeln!(out(), "{json}")?;
    } else {
        writeln!(
            out(),
            "{} tokens in {:.3} s, {:.2} a second; hits {:.1} %, missed {} a token, wasted {}; waited {:.3} s",
            done.tokens,
            done.seconds,
            tokens / done.seconds,
            100.0 * done.hit_rate(),
            human((done.missed_bytes as f64 / tokens) as u64),
            human((done.wasted_bytes as f64 / tokens) as u64),
            done.stalled
        )?;
    }
    Ok(())
}

/// Machines that people own: memory in GB, and what it gives in GB/s.
const MACHINES: [(u64, f64); 4] = [(32, 80.0), (64, 80.0), (128, 100.0), (512, 300.0)];
/// Drives: how many, of which generation, and GB/s each.
const DRIVES: [(usize, &str, f64); 6] =
    [(1, "Gen4", 7.0), (2, "Gen4", 7.0), (4, "Gen4", 7.0), (1, "Gen5", 14.0), (2, "Gen5", 14.0), (4, "Gen5", 14.0)];
/// Memory that is for neither dense weights nor experts: state, scratch, the program, the system.
const OTHER: f64 = 6e9;

fn table(args: &Args, subject: &Subject, dense: f64, trace: &Trace, skip: u64) -> Outcome {
    let about = &trace.about;
    writeln!(
        out(),
        "{:?}: {} tokens, skew {}, locality {}, guesses right {:.0} %\n{:>8} {:>8} {:>8} {:>8} {:>10} {:>12} {:>14}",
        args.model,
        args.tokens as u64 - skip,
        args.skew,
        args.locality,
        100.0 * args.guess,
        "memory",
        "experts",
        "drives",
        "hits",
        "tokens/s",
        "in memory",
        "prefill 8192"
    )?;
    for (memory, memory_gbps) in MACHINES {
        let left = memory as f64 * 1e9 - subject.sizes.dense as f64 - OTHER;
        let all = about.layers * about.experts;
        let room = ((left.max(0.0) / about.expert_bytes as f64) as usize).min(all);
        if room < 16 {
            writeln!(out(), "{:>5} GB {:>8}", memory, "too little")?;
            continue;
        }
        for (count, kind, gbps) in DRIVES {
            let bandwidth = count as f64 * gbps * 1e9;
            let done = replay(trace, room, args.keep, &args.of_shape(about, dense, memory_gbps, bandwidth), skip);
            let without = args.of_shape(about, dense, memory_gbps, f64::INFINITY);
            let token = about.layers as f64 * (without.before + without.beside + about.slots as f64 * without.expert);
            // A chunk needs nearly all experts: those that are not in memory are read for it, whatever it computes meanwhile.
            let chunk = (all - room) as f64 * about.expert_bytes as f64 / bandwidth;
            let prefill = if chunk > 0.0 { format!("≤ {:.0}/s", 8192.0 / chunk) } else { "in memory".into() };
            writeln!(
                out(),
                "{:>5} GB {:>6.0} % {:>8} {:>6.1} % {:>10.2} {:>12.2} {:>14}",
                memory,
                100.0 * room as f64 / all as f64,
                format!("{count} {kind}"),
                100.0 * done.hit_rate(),
                done.tokens as f64 / done.seconds,
                1.0 / token,
                prefill
            )?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_within_bounds() {
        for text in ["0", "1", "0.5"] {
            assert!(part(text).is_ok() && at_least_0(text).is_ok(), "{text}");
        }
        assert!(at_least_0("70").is_ok() && more_than_0("1e-3").is_ok() && tokens("1048576").is_ok());
        for text in ["-0.1", "1.1", "nan", "inf", "", "x"] {
            assert!(part(text).is_err(), "{text}");
        }
        for text in ["-1", "nan", "inf", "1e999", "x"] {
            assert!(at_least_0(text).is_err() && more_than_0(text).is_err(), "{text}");
        }
        assert!(more_than_0("0").is_err());
        for text in ["0", "-1", "1048577", "x"] {
            assert!(tokens(text).is_err(), "{text}");
        }
    }
}
