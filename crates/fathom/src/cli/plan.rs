//! `fathom plan`: what fits, how fast, for how long.

use std::io::Write;
use std::path::{Path, PathBuf};

use fathom_kernels::{Cpu, CpuOptions, Profile, human};

use super::Outcome;
use super::simulate::part;
use super::store::{bytes, cache_folder};
use crate::doctor::shard_files;
use crate::plan::{
    Drawn, Machine, PROBE, Point, Questions, Report, Subject, Workload, chart, forget, free_memory, measure,
    measure_drive, per_second, remember, remember_drive, remembered, remembered_drive, report,
};
use crate::ui::{commas, duration, out, say};

/// Contexts that are planned where nobody names some.
const CONTEXTS: [u32; 4] = [4096, 32_768, 131_072, 1 << 20];

/// A count of the workload.
fn amount(text: &str) -> Result<f64, String> {
    const BOUNDS: std::ops::RangeInclusive<f64> = 0.001..=1e12;
    text.parse().ok().filter(|n| BOUNDS.contains(n)).ok_or_else(|| "it must be a number from 0.001 to 1e12".into())
}

/// Flags of `fathom plan`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A folder with an official checkpoint, a config.json, v4-flash or v4-pro [default: the embedded model]
    model: Option<String>,
    /// A machine: a file that describes it (docs/planning.md), or one of those that --machines lists [default: this one,
    /// measured]
    #[arg(long, value_name = "FILE")]
    machine: Option<String>,
    /// List the machines that are known by name, and end
    #[arg(long)]
    machines: bool,
    /// Print this machine, measured, as a file for --machine, and end
    #[arg(long, conflicts_with = "machine")]
    describe: bool,
    /// Forget what was measured of this machine before: without it the best of the last month's measurements counts
    #[arg(long, conflicts_with = "machine")]
    anew: bool,
    /// The folder whose drive is measured [default: the model's, or this one]
    #[arg(long, value_name = "DIR", conflicts_with = "machine")]
    drive: Option<PathBuf>,
    /// Memory that the program may hold, such as 24GiB [default: what the machine has]
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    memory: Option<u64>,
    /// Contexts in tokens, with commas between [default: 4096,32768,131072,1048576]
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    context: Vec<u32>,
    /// Requests at once: one of the whole context beside others of 8,192 tokens
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    parallel: u16,
    /// Tokens of a prompt that are read at once [default: as run and serve choose]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    prefill_chunk: Option<u32>,
    /// Numeric profile: native or exact
    #[arg(long, default_value_t = Profile::Native)]
    profile: Profile,
    /// Sessions that begin in a day, for wear
    #[arg(long, value_name = "N", default_value_t = 20.0, value_parser = amount)]
    sessions: f64,
    /// Tokens of all of them in a day, read and written
    #[arg(long, value_name = "N", default_value_t = 400_000.0, value_parser = amount)]
    tokens: f64,
    /// Questions and answers of each
    #[arg(long, value_name = "N", default_value_t = 10.0, value_parser = amount)]
    turns: f64,
    /// s of the experts' popularity, 1 ÷ rankˢ, where experts are streamed
    #[arg(long, default_value_t = 0.9, value_parser = super::simulate::at_least_0)]
    skew: f64,
    /// The chance that a slot goes where one of the token before went
    #[arg(long, default_value_t = 0.1, value_parser = part)]
    locality: f64,
    /// The chance that a guess of the next layer's experts is right
    #[arg(long, default_value_t = 0.75, value_parser = part)]
    guess: f64,
    /// Threads [default: one for each core]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024), conflicts_with = "machine")]
    threads: Option<u16>,
    /// Instruction set [default: the best this CPU has]
    #[arg(long, conflicts_with = "machine")]
    isa: Option<String>,
    /// One JSON object
    #[arg(long)]
    json: bool,
    /// Write a chart, an SVG
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// Plans.
pub fn plan(args: &Args) -> Outcome {
    if args.machines {
        for name in Machine::names() {
            writeln!(out(), "{name:26} {}", Machine::find(name)?.name)?;
        }
        return Ok(());
    }
    let given = args.machine.as_deref().map(Machine::find).transpose()?;
    let subject = Subject::open(args.model.as_deref())?;
    let questions = |budget| questions(args, &subject, budget);
    questions(0)?;
    let (machine, cpu, budget) = match given {
        Some(machine) => {
            let cpu = Cpu::new(CpuOptions { threads: Some(machine.threads), isa: None, profile: args.profile })?;
            let budget = (machine.memory_gib * (1u64 << 30) as f64) as u64;
            (machine, cpu, budget)
        }
        None => {
            let threads = args.threads.map(usize::from);
            let cpu = Cpu::new(CpuOptions { threads, isa: args.isa.clone(), profile: args.profile })?;
            let machine = this_machine(args, &subject, &cpu)?;
            (machine, cpu, free_memory().unwrap_or(u64::MAX >> 8))
        }
    };
    if args.describe {
        let text = if args.json { serde_json::to_string(&machine)? + "\n" } else { machine.describe() };
        return Ok(write!(out(), "{text}")?);
    }
    let report = report(&subject, &machine, &cpu, &questions(args.memory.unwrap_or(budget))?);
    if args.json {
        writeln!(out(), "{}", serde_json::to_string(&report)?)?;
    }
    if let Some(problem) = report.points.iter().find_map(|point| point.refused.clone())
        && report.points.iter().all(|point| point.memory.is_none())
    {
        return Err(problem.into());
    }
    if let Some(path) = &args.svg {
        let text = chart(&report)?;
        std::fs::write(path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    }
    if !args.json {
        table(&report)?;
    }
    Ok(())
}

fn questions(args: &Args, subject: &Subject, budget: u64) -> Result<Questions, String> {
    let limit = subject.config.max_position_embeddings;
    let mut contexts: Vec<usize> = match &args.context[..] {
        [] => CONTEXTS.iter().map(|&n| n as usize).filter(|&n| n <= limit).collect(),
        given => given.iter().map(|&n| n as usize).collect(),
    };
    if contexts.is_empty() {
        contexts.push(limit);
    }
    contexts.sort_unstable();
    contexts.dedup();
    if let Some(&most) = contexts.last().filter(|&&most| most > limit) {
        return Err(format!("--context is {most}, but the model holds {limit} tokens at most"));
    }
    Ok(Questions {
        contexts,
        parallel: usize::from(args.parallel),
        chunk: args.prefill_chunk.map(|chunk| chunk as usize),
        budget,
        profile: args.profile,
        drawn: Drawn { skew: args.skew, locality: args.locality, guess: args.guess },
        workload: Workload { sessions: args.sessions, tokens: args.tokens, turns: args.turns },
    })
}

/// Measures for some seconds, and says so.
fn this_machine(args: &Args, subject: &Subject, cpu: &Cpu) -> Result<Machine, Box<dyn std::error::Error>> {
    if !args.json {
        say!("measuring this machine: processor and memory …");
    }
    let probe = free_memory().map_or(PROBE, |free| PROBE.min(free / 4)).max(1 << 20);
    let cache = cache_folder();
    if let Some(cache) = cache.as_deref().filter(|_| args.anew) {
        forget(cache);
    }
    let mut machine = measure(cpu, probe)?;
    if let Some(cache) = &cache {
        remember(cache, &machine, probe);
        machine = remembered(cache, cpu, probe).unwrap_or(machine);
    }
    let folder = args.drive.as_deref().or(subject.folder.as_deref()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        return Err(format!("--drive {}: no such folder", folder.display()).into());
    }
    let files = match (&args.drive, &subject.folder) {
        (None, Some(folder)) => shard_files(folder).map_err(|e| format!("{}: {e}", folder.display()))?,
        _ => Vec::new(),
    };
    if !args.json {
        say!("measuring this machine: the drive of {} …", folder.display());
    }
    match measure_drive(folder, &files) {
        Ok(drive) => {
            machine.drive = Some(drive);
            if let Some(cache) = &cache {
                remember_drive(cache, folder, drive);
                machine.drive = remembered_drive(cache, folder).or(machine.drive);
            }
        }
        Err(e) => say!("the drive of {} was not measured: {e}", folder.display()),
    }
    Ok(machine)
}

fn table(report: &Report) -> Outcome {
    let mut out = out();
    let Machine { name, isa, threads, read_gbps, f32_gflops, int8_tops, drive, .. } = &report.machine;
    writeln!(out, "{}: weights {}", report.model, human(report.weight_bytes))?;
    let drives = drive.map_or_else(String::new, |drive| {
        let many = if drive.count > 1 { format!("{} drives of ", drive.count) } else { "drive ".into() };
        format!(", {many}{:.2} GB/s", drive.read_gbps)
    });
    writeln!(
        out,
        "{name}: {threads} threads, {isa}, memory {read_gbps:.1} GB/s, f32 {f32_gflops:.0} Gflop/s, int8 {int8_tops:.2} \
         Top/s{drives}; {} for fathom",
        human(report.budget)
    )?;
    memory(report, &mut out)?;
    speed(report, &mut out)?;
    snapshots(report, &mut out)?;
    let wear = &report.wear;
    let years = wear.years.map_or_else(String::new, |years| format!(", its warranty in {years:.0} years"));
    writeln!(
        out,
        "\nwear with a store: {} sessions a day of {} tokens in {} turns write {} a month{years}",
        wear.workload.sessions,
        commas((wear.workload.tokens / wear.workload.sessions) as usize),
        wear.workload.turns,
        human(wear.bytes_per_month as u64)
    )?;
    if let Some(at) = report.faster_at.filter(|_| !report.faster.is_empty()) {
        writeln!(out, "\nto be faster at {} tokens, change first:", commas(at))?;
        for change in &report.faster {
            let (what, decode, first) = (&change.what, change.decode, change.first_token);
            writeln!(out, "  {what}: answer {decode:.2} times as fast, first token {first:.2} times")?;
        }
    }
    Ok(())
}

fn memory(report: &Report, out: &mut impl Write) -> Outcome {
    writeln!(
        out,
        "\n{:>10} {:>11} {:>18} {:>11} {:>11} {:>11} {:>11} {:>11}",
        "context", "weights", "experts", "state", "scratch", "program", "at most", "expected"
    )?;
    for Point { context, memory, refused, .. } in &report.points {
        let Some(m) = memory else {
            writeln!(out, "{:>10} {}", commas(*context), refused.as_deref().unwrap_or(""))?;
            continue;
        };
        let experts = m
            .experts
            .map_or("with weights".into(), |experts| format!("{} {:>3.0} %", human(experts), 100.0 * m.experts_share));
        writeln!(
            out,
            "{:>10} {:>11} {experts:>18} {:>11} {:>11} {:>11} {:>11} {:>11}",
            commas(*context),
            human(m.weights),
            human(m.state),
            human(m.scratch),
            human(m.program),
            human(m.total),
            human(m.expected)
        )?;
    }
    Ok(())
}

fn speed(report: &Report, out: &mut impl Write) -> Outcome {
    writeln!(
        out,
        "\n{:>10} {:>9} {:>9} {:<19} {:>9} {:>9} {:<19} {:>12} {:>6} {:>12}",
        "context",
        "answer",
        "roofline",
        "held up by",
        "prompt",
        "roofline",
        "held up by",
        "first token",
        "hits",
        "read a token"
    )?;
    for point in report.points.iter().filter(|point| point.memory.is_some()) {
        let context = commas(point.context);
        let (Some(decode), Some(prefill), Some(first)) = (&point.decode, &point.prefill, point.first_token_seconds)
        else {
            writeln!(out, "{context:>10} experts come from a drive of which nothing is known: give the machine one")?;
            continue;
        };
        writeln!(
            out,
            "{context:>10} {:>9} {:>9} {:<19} {:>9} {:>9} {:<19} {:>12} {:>6} {:>12}",
            per_second(decode.tokens_per_second),
            per_second(decode.roofline_tokens_per_second),
            decode.bottleneck.words(),
            per_second(prefill.tokens_per_second),
            per_second(prefill.roofline_tokens_per_second),
            prefill.bottleneck.words(),
            duration(first),
            point.hit_rate.map_or("all".into(), |rate| format!("{:.0} %", 100.0 * rate)),
            point.read_bytes_per_token.map_or("nothing".into(), |bytes| human(bytes as u64))
        )?;
    }
    Ok(())
}

fn snapshots(report: &Report, out: &mut impl Write) -> Outcome {
    writeln!(out, "\n{:>10} {:>11} {:>13} {:>11} {:>11}", "context", "snapshot", "a save more", "save", "restore")?;
    let time = |seconds: Option<f64>| seconds.map_or("?".into(), duration);
    for Point { context, snapshot, .. } in &report.points {
        writeln!(
            out,
            "{:>10} {:>11} {:>13} {:>11} {:>11}",
            commas(*context),
            human(snapshot.bytes),
            human(snapshot.own_bytes),
            time(snapshot.save_seconds),
            time(snapshot.restore_seconds)
        )?;
    }
    Ok(())
}
