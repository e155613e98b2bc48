//! `fathom needle`: what a model or a server finds in long texts, by length and depth.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::Outcome;
use super::model::Options;
use super::store::StoreOptions;
use super::targets::{Asking, ServerFlags, Targets};
use crate::bench::{
    About, Asked, Cell, Folder, Grid, INTERRUPTED, Item, Limits, Message, Report, Target, ask, axes, end, groups,
    interrupted, shares, stop_on_ctrl_c, until_interrupted,
};
use crate::demo::estimate;
use crate::needle::{Kept, Kind, found, question};
use crate::ui::{Progress, commas, out, say};

/// What keys begin with; another number when texts become others.
const TEXTS: &str = "1";
/// The most questions of a run.
const MOST: usize = 100_000;
/// Tokens that a turn's marks may take.
const MARKS: usize = 40;
/// Failures in a row after which a server is left alone.
const ENOUGH: usize = 3;

/// Flags of `fathom needle`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A folder with an official checkpoint [default: the embedded model, or none beside --url]
    model: Option<PathBuf>,
    #[command(flatten)]
    servers: ServerFlags,
    /// What is hidden and asked, with commas between
    #[arg(long, value_enum, value_delimiter = ',', default_value = "single,multi,chain,aggregate")]
    kinds: Vec<Kind>,
    /// About how many tokens texts have, with commas between
    #[arg(long, value_delimiter = ',', default_value = "1024,4096,16384", value_parser = clap::value_parser!(u32).range(200..=1 << 21))]
    lengths: Vec<u32>,
    /// Where the first needle stands, in percent of the text, with commas between
    #[arg(long, value_delimiter = ',', default_value = "0,25,50,75,100", value_parser = clap::value_parser!(u32).range(0..=100))]
    depths: Vec<u32>,
    /// Texts for each cell
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    seeds: u32,
    /// The first text's number
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The most tokens of an answer
    #[arg(long, default_value_t = 96, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    max_tokens: u32,
    /// A file that answers are added to as they come; what is in it is not asked again [default: needle.jsonl in --report]
    #[arg(long, value_name = "FILE")]
    results: Option<PathBuf>,
    /// A folder for a page with heat maps, the numbers as JSON, and a table as CSV
    #[arg(long, value_name = "FOLDER")]
    report: Option<PathBuf>,
    /// One JSON object a line, one for each question, instead of the tables
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreOptions,
    #[command(flatten)]
    options: Options,
}

/// A question that is to be asked.
#[derive(Clone, Copy)]
struct Wanted {
    kind: Kind,
    length: usize,
    depth: u32,
    seed: u64,
}

impl Wanted {
    fn settings(self) -> String {
        format!("{}|{}|{}|{}", self.kind.word(), self.length, self.depth, self.seed)
    }
}

struct Run<'a> {
    args: &'a Args,
    kept: Kept,
    report: Report,
    folder: Option<Folder>,
    limits: Limits,
}

/// Asks, and shows what was found.
pub fn needle(args: &Args) -> Outcome {
    let wanted = wanted(args)?;
    let folder = args.report.as_deref().map(Folder::open).transpose()?;
    let results = args.results.clone().or_else(|| Some(folder.as_ref()?.file("needle.jsonl")));
    let kept = results.as_deref().map(Kept::open).transpose()?.unwrap_or_else(Kept::nowhere);
    stop_on_ctrl_c();
    let longest = args.lengths.iter().max().map_or(0, |&n| n as usize);
    let asking = Asking {
        model: args.model.as_deref(),
        servers: &args.servers,
        options: &args.options,
        store: &args.store,
        context: longest + longest / 8 + args.max_tokens as usize + 512,
        identify: results.is_some(),
    };
    let targets = Targets::connect(&asking)?;
    let report = Report {
        title: format!("What {} found in long texts", targets.names().join(" and ")),
        about: About::this_run(),
        partial: Some("it is still running".to_owned()),
        method: method(args),
        servers: None,
        frontiers: None,
        needle: Some(Grid::default()),
    };
    let mut run = Run { args, kept, report, folder, limits: Limits { timeout: args.servers.timeout() } };
    // One that could be asked nothing is named before any is asked.
    let possible: Result<Vec<_>, _> =
        targets.clients.iter().map(|client| run.possible(&client.target, &wanted)).collect();
    let mut asked = Ok(());
    for (client, wanted) in targets.clients.iter().zip(possible?) {
        // One that fails keeps nobody from the others.
        asked = asked.and(run.target(&targets, &client.target, &wanted));
        if interrupted() {
            break;
        }
    }
    targets.end();
    run.end(asked, args.model.is_none() && args.servers.url.is_empty())
}

/// Every cell, short texts first.
fn wanted(args: &Args) -> Result<Vec<Wanted>, String> {
    let sorted = |numbers: &[u32]| {
        let mut numbers = numbers.to_vec();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    };
    let (lengths, depths) = (sorted(&args.lengths), sorted(&args.depths));
    let count = lengths.len() * depths.len() * args.kinds.len() * args.seeds as usize;
    if count > MOST {
        return Err(format!("{count} questions are more than {MOST}; take fewer lengths, depths or seeds"));
    }
    let mut wanted = Vec::with_capacity(count);
    for &length in &lengths {
        for &kind in &args.kinds {
            for &depth in &depths {
                let seeds = (0..u64::from(args.seeds)).map(|i| args.seed.wrapping_add(i));
                wanted.extend(seeds.map(|seed| Wanted { kind, length: length as usize, depth, seed }));
            }
        }
    }
    Ok(wanted)
}

fn method(args: &Args) -> Vec<String> {
    vec![
        format!(
            "Texts are made-up sentences with needles in them; {} for each cell, the same for every server. The question stands \
             behind the text. Answers are taken at temperature 0, of up to {} tokens.",
            args.seeds, args.max_tokens
        ),
        "An answer is right if every number that was asked for stands in it, digit for digit and as a number of its own; in which \
         words does not matter."
            .to_owned(),
        "Lengths are in tokens of each server's own tokenizer, which is found by a first short text; what it counts is in \
         needle.csv."
            .to_owned(),
    ]
}

impl Run<'_> {
    fn key(&self, target: &Target, w: Wanted) -> String {
        // Another model of the same name has other answers.
        let which = target.weights.as_deref().unwrap_or(target.url.as_str());
        format!("{TEXTS}|{}|{}|{which}|{}|{}", target.name, target.model, w.settings(), self.args.max_tokens)
    }

    /// Those of the questions that a server has room for, or has answered before; which lengths are left out is said.
    ///
    /// # Errors
    /// There are none.
    fn possible(&self, target: &Target, wanted: &[Wanted]) -> Result<Vec<Wanted>, String> {
        let answer = self.args.max_tokens as usize;
        let fits = |w: &Wanted| target.context.is_none_or(|most| w.length + answer <= most as usize);
        let answered = |w: &Wanted| self.kept.get(&self.key(target, *w)).is_some();
        let (possible, too_long): (Vec<_>, Vec<_>) = wanted.iter().copied().partition(|w| fits(w) || answered(w));
        let Some(shortest) = too_long.first() else { return Ok(possible) };
        let most = commas(target.context.unwrap_or(0) as usize);
        if possible.is_empty() {
            let shortest = commas(shortest.length);
            return Err(format!(
                "{}: holds {most} tokens, too few for a text of {shortest} and an answer of {answer}; give shorter --lengths",
                target.name
            ));
        }
        let mut lengths: Vec<String> = too_long.iter().map(|w| commas(w.length)).collect();
        lengths.dedup();
        let lengths = lengths.join(" and ");
        say!("{}: holds {most} tokens: texts of {lengths}, with answers of {answer}, are left out", target.name);
        Ok(possible)
    }

    /// Asks one server what it has not been asked.
    fn target(&mut self, targets: &Targets, target: &Target, wanted: &[Wanted]) -> Outcome {
        let known = wanted.iter().filter(|w| self.kept.get(&self.key(target, **w)).is_some()).count();
        if known > 0 {
            say!("{}: {known} of {} answers are there from before", target.name, wanted.len());
        }
        let mut ratio = None;
        let (mut failures, mut failed, mut new) = (0, 0, 0);
        let mut progress = Progress::of("asking", "questions", wanted.len(), self.args.json);
        for (i, &w) in wanted.iter().enumerate() {
            let key = self.key(target, w);
            if let Some(cell) = self.kept.get(&key).cloned() {
                self.show(cell)?;
                continue;
            }
            if interrupted() {
                return Err(INTERRUPTED.into());
            }
            let ratio = match ratio {
                Some(ratio) => ratio,
                None => *ratio.insert(self.ratio(targets, target)?),
            };
            let tokens = w.length.saturating_sub(MARKS) as f64 / ratio;
            let q = question(w.kind, tokens as usize, f64::from(w.depth) / 100.0, w.seed);
            let asked = self.ask(targets, target, q.prompt, self.args.max_tokens as usize)?;
            if let Some(problem) = &asked.error {
                failures += 1;
                failed += 1;
                say!("{}: {}: {problem}", target.name, w.settings());
                if failures == ENOUGH || asked.hangs {
                    return Err(format!("{}: was given up: {problem}", target.name).into());
                }
                continue;
            }
            failures = 0;
            let found = found(&asked.answer, &q.expected);
            let cell = Cell {
                key,
                target: target.name.clone(),
                model: target.model.clone(),
                kind: w.kind.word().to_owned(),
                length: w.length,
                depth: w.depth,
                seed: w.seed,
                prompt_tokens: asked.counted.prompt,
                right: found == q.expected.len(),
                found,
                expected: q.expected,
                answer: asked.answer.trim().to_owned(),
                first: asked.pieces.first().copied(),
                seconds: asked.seconds,
            };
            self.kept.add(&cell)?;
            self.show(cell)?;
            progress.update(i + 1, &target.name);
            new += 1;
            if let Some(folder) = self.folder.as_ref().filter(|_| new % 20 == 0) {
                folder.write(&self.report)?;
            }
        }
        progress.finish();
        match failed {
            0 => Ok(()),
            n => Err(format!("{}: {n} of {} questions failed", target.name, wanted.len()).into()),
        }
    }

    /// Tokens that the server makes of what is guessed to be one.
    fn ratio(&self, targets: &Targets, target: &Target) -> Result<f64, String> {
        let text = question(Kind::Single, 400, 0.5, self.args.seed).prompt;
        let guessed = estimate(&text) as f64;
        let asked = self.ask(targets, target, text, 1)?;
        match (asked.counted.prompt, asked.error) {
            (_, Some(problem)) => Err(format!("{}: {problem}", target.name)),
            (Some(counted), None) => Ok((counted as f64 / guessed).clamp(0.5, 4.0)),
            (None, None) => Ok(1.0),
        }
    }

    fn ask(&self, targets: &Targets, target: &Target, prompt: String, max_tokens: usize) -> Result<Asked, String> {
        let messages = vec![Message { role: "user".to_owned(), content: Arc::from(prompt) }];
        let item = Item { lane: 0, at: Duration::ZERO, messages, max_tokens };
        targets.runtime.block_on(async {
            tokio::select! {
                asked = ask(target, &item, self.limits) => Ok(asked),
                () = until_interrupted() => Err(INTERRUPTED.to_owned()),
            }
        })
    }

    fn show(&mut self, cell: Cell) -> Outcome {
        if self.args.json {
            writeln!(out(), "{}", serde_json::to_string(&cell)?)?;
        }
        self.report.needle.get_or_insert_default().cells.push(cell);
        Ok(())
    }

    /// The tables, the report, and the last words.
    fn end(mut self, asked: Outcome, embedded: bool) -> Outcome {
        let grid = self.report.needle.clone().unwrap_or_default();
        if !self.args.json {
            tables(&grid)?;
        }
        let sums = grid.cells.iter().any(|cell| cell.kind == Kind::Aggregate.word());
        if embedded && sums {
            let words = "The embedded model was not taught sums: aggregate shows what that looks like.";
            say!("{words}");
            self.report.method.push(words.to_owned());
        }
        end(self.folder.as_ref(), self.report, asked)
    }
}

/// A table for each target and kind: depths over lengths.
fn tables(grid: &Grid) -> Outcome {
    let mut out = out();
    for (target, kind) in groups(grid) {
        let cells: Vec<&Cell> = grid.cells.iter().filter(|c| (&c.target, &c.kind) == (&target, &kind)).collect();
        let (lengths, depths) = axes(&cells);
        let right = cells.iter().filter(|cell| cell.right).count();
        writeln!(out, "\n{target}, {kind}: {right} of {} right", cells.len())?;
        write!(out, "{:>10}", "depth")?;
        for length in &lengths {
            write!(out, " {:>9}", commas(*length))?;
        }
        writeln!(out, "  tokens")?;
        for (depth, row) in depths.iter().zip(shares(&cells, &lengths, &depths)) {
            write!(out, "{depth:>8} %")?;
            for share in row {
                let text = share.map_or_else(|| "–".to_owned(), |share| format!("{:.0} %", share * 100.0));
                write!(out, " {text:>9}")?;
            }
            writeln!(out)?;
        }
    }
    Ok(())
}
