//! Servers under the same work, side by side.

use std::io::Write;

use serde_json::json;

use super::Args;
use crate::bench::Item;
use crate::bench::workload::{Size, Trace, export};
use crate::bench::{
    About, Folder, Limits, Report, Rounds, Servers, Tested, Workload, end, measure, stop_on_ctrl_c, write_whole,
};
use crate::cli::Outcome;
use crate::cli::targets::{Asking, Targets};
use crate::ui::{commas, out, say};

const CONTEXT: usize = 4096;
const ROUNDS: u32 = 3;

/// What is asked.
enum Work {
    Made(Workload, Size),
    Recorded(Trace),
}

impl Work {
    /// A round, from 1. Each has texts of its own, so that nothing is known from the one before.
    fn items(&self, args: &Args, round: u32) -> Vec<Item> {
        let seed = args.seed.wrapping_add(u64::from(round) - 1);
        let mut items = match self {
            Work::Made(workload, size) => workload.items(seed, *size),
            Work::Recorded(trace) => trace.items(seed),
        };
        if let Some(most) = args.max_tokens {
            items.iter_mut().for_each(|item| item.max_tokens = most as usize);
        }
        items
    }
}

/// Measures servers.
pub fn servers(args: &Args) -> Outcome {
    let work = work(args)?;
    let first = work.items(args, 1);
    if let Some(path) = &args.export {
        write_whole(path, export(&first).map_err(|e| format!("{}: {e}", path.display()))?.as_bytes())?;
        say!("{}: {} requests", path.display(), commas(first.len()));
        if args.servers.url.is_empty() && args.model.is_none() {
            return Ok(());
        }
    }
    let folder = args.report.as_deref().map(Folder::open).transpose()?;
    stop_on_ctrl_c();
    let mut servers = unmeasured(&work, args, &first);
    let answers = first.iter().map(|item| item.max_tokens).max().unwrap_or(0);
    let asking = Asking {
        model: args.model.as_deref(),
        servers: &args.servers,
        options: &args.options,
        store: &args.store,
        // The guess of a prompt's length may be wrong by half.
        context: servers.longest * 3 / 2 + answers + 1024,
        identify: false,
    };
    let about = About::this_run();
    let targets = Targets::connect(&asking)?;
    let mut report = Report {
        title: format!("{}: {}", targets.names().join(" and "), servers.workload),
        about,
        partial: Some("it is still running".to_owned()),
        method: method(&work, args),
        servers: None,
        frontiers: None,
        needle: None,
    };
    let mut keep = |servers: &Servers| match &folder {
        Some(folder) => {
            report.servers = Some(servers.clone());
            folder.write(&report)
        }
        None => Ok(()),
    };
    let how = Rounds {
        rounds: servers.rounds,
        limits: Limits { timeout: args.servers.timeout() },
        items: &|round| work.items(args, round),
        keep: &mut keep,
        tell: &|what| say!("{what}"),
    };
    let measured = targets.runtime.block_on(measure(&targets.clients, how, &mut servers));
    targets.end();
    show(&servers, args.json)?;
    report.servers = Some(servers);
    end(folder.as_ref(), report, measured.map_err(Into::into))
}

fn work(args: &Args) -> Result<Work, String> {
    let context = args.context.map_or(CONTEXT, |context| context as usize);
    Ok(match &args.trace {
        Some(path) => Work::Recorded(Trace::read(path)?),
        None => {
            let (workload, size) =
                (args.workload.unwrap_or(Workload::Chat), Size { context, scale: args.scale, rate: args.rate });
            workload.check(size)?;
            Work::Made(workload, size)
        }
    })
}

/// What is to be measured, with nobody measured yet.
fn unmeasured(work: &Work, args: &Args, first: &[Item]) -> Servers {
    let (workload, what) = match work {
        Work::Made(workload, _) => (format!("{workload:?}").to_lowercase(), workload.about().to_owned()),
        Work::Recorded(_) => ("trace".to_owned(), "a recorded trace".to_owned()),
    };
    Servers {
        workload,
        what,
        seed: args.seed,
        requests: first.len(),
        longest: first.iter().map(Item::tokens).max().unwrap_or(0),
        rounds: args.runs.unwrap_or(ROUNDS),
        no_joules: None,
        tested: Vec::new(),
    }
}

fn method(work: &Work, args: &Args) -> Vec<String> {
    let texts = match work {
        Work::Recorded(trace) if trace.has_texts() => {
            "Requests and their times are a recorded trace's, the same in every round: what a server keeps from one round \
             helps it in the next."
        }
        Work::Recorded(_) => "Times and lengths are a recorded trace's, texts are made up, others in every round.",
        Work::Made(..) => {
            "Texts are made-up sentences, the same for every server; each round has others, so that only what the work itself \
             repeats can be reused. Answers that stand in a history are written beforehand."
        }
    };
    [
        "Servers take turns: in each round every server gets the whole work, then the next one does, in an order that turns \
         with the rounds. Before it, each answers one short request.",
        texts,
        "Answers are streamed, at temperature 0. The time to the first token is from sending a request to the first piece \
         of text that comes back; the time between tokens is that between pieces, which may have several tokens or part of one; pieces that come \
         together have none between them. \
         Tokens are those that the server counts in its usage; where it does not, pieces.",
        "Percentiles are over all requests or pieces of all rounds (nearest rank). Failed requests count as failed and \
         nowhere else.",
        "Memory is what the operating system says of the process that listens at the address, if that is on this machine. The \
         model that fathom itself serves runs in the process that measures.",
    ]
    .iter()
    .map(|&sentence| sentence.to_owned())
    .chain([format!("The seed of the texts is {}.", args.seed)])
    .collect()
}

fn show(servers: &Servers, json: bool) -> Outcome {
    let mut out = out();
    if json {
        for t in &servers.tested {
            let line = json!({
                "server": t.name, "url": t.url, "model": t.model, "software": t.software, "api": t.api,
                "workload": servers.workload, "failed": t.failed, "summary": t.summary,
            });
            writeln!(out, "{line}")?;
        }
        return Ok(());
    }
    writeln!(
        out,
        "{:16} {:>8} {:>6} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>7} {:>12}",
        "server",
        "requests",
        "failed",
        "first p50",
        "p95 (s)",
        "max (s)",
        "gap p50",
        "p99 (ms)",
        "max (ms)",
        "tokens/s",
        "reused",
        "peak RSS"
    )?;
    for t in &servers.tested {
        writeln!(out, "{}", line(t))?;
    }
    for t in servers.tested.iter().filter(|t| t.failed.is_none()) {
        if let Some(why) = t.requests.iter().find_map(|request| request.error.as_ref()) {
            say!("{}: {} of {} requests failed; the first {why}", t.name, t.summary.errors, t.summary.requests);
        }
    }
    Ok(())
}

fn line(t: &Tested) -> String {
    let s = &t.summary;
    let number = |value: Option<f64>, digits: usize| value.map_or_else(|| "?".into(), |v| format!("{v:.digits$}"));
    let reused = s.cached_tokens.map_or_else(
        || "?".to_owned(),
        |cached| format!("{:.0} %", 100.0 * cached as f64 / s.prompt_tokens.max(1) as f64),
    );
    format!(
        "{:16} {:>8} {:>6} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>7} {:>12}",
        t.name,
        s.requests,
        s.errors,
        number(s.first.p50, 3),
        number(s.first.p95, 3),
        number(s.first.max, 3),
        number(s.gap_ms.p50, 1),
        number(s.gap_ms.p99, 1),
        number(s.gap_ms.max, 1),
        number(s.decode_per_second, 1),
        reused,
        s.peak_rss.map_or_else(|| "?".into(), fathom_kernels::human),
    )
}
