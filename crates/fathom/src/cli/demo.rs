//! `fathom demo`: the embedded model finds a needle in a long text.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use fathom_engine::{Engine, EngineOptions, Request, Sampling};
use fathom_kernels::{Device, Share, human};
use serde_json::{Value, json};

use super::Outcome;
use super::ask::{Answer, Reading, Shown, ask};
use super::model::{Files, Loaded, Options, load};
use crate::chat::{Effort, Message, Prompter, Role};
use crate::demo::{Document, document};
use crate::ui::{commas, out, peak_rss, say};

/// Tokens that the answer and the turn's marks may take.
const ROOM: usize = 64;

/// Flags of `fathom demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Tokens of the text, its question and the answer
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(256..=1_048_576))]
    context: u32,
    /// Which text [default: another every time]
    #[arg(long)]
    seed: Option<u64>,
    /// Run this many texts, seeds one after another, and report the share found
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    seeds: u32,
    /// The control: the same text without the needle
    #[arg(long)]
    no_needle: bool,
    /// JSON for machines, one object for each text, instead of the show
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    options: Options,
}

/// Writes texts, asks, and says whether the answers were right.
pub fn demo(args: &Args) -> Outcome {
    let files = Files::open(None)?;
    let loaded = load(&files, &args.options, Some(args.context as usize))?;
    let eos = files.checkpoint.config().eos_token_id;
    let about = loaded.describe(&files.name, files.checkpoint.release());
    let prompter = files.prompter()?;
    let engine = loaded.engine(EngineOptions::default(), None);
    let first = args.seed.unwrap_or_else(|| u64::from(std::process::id()) ^ clock());
    if !args.json {
        say!("{about}");
        say!("memory: {}", loaded.plan);
    }
    let mut found = 0;
    for seed in (0..u64::from(args.seeds)).map(|i| first.wrapping_add(i)) {
        found += u32::from(one(args, &loaded, &engine, &prompter, eos, seed)?);
    }
    if args.seeds > 1 && !args.json {
        writeln!(out(), "found {found} of {}", args.seeds)?;
    }
    Ok(())
}

/// One text; returns whether the code was found.
fn one(
    args: &Args,
    loaded: &Loaded,
    engine: &Engine,
    prompter: &Prompter,
    eos: u32,
    seed: u64,
) -> Result<bool, Box<dyn std::error::Error>> {
    let start = Instant::now();
    let budget = args.context as usize - ROOM;
    let tokenizer = prompter.tokenizer();
    let count = |text: &str| tokenizer.encode(text).map_or(0, |ids| ids.len());
    let text = document(seed, budget, !args.no_needle, count);
    let message = Message { role: Role::User, text: text.prompt.clone() };
    let (prompt, parsing) = prompter.chat(&[message], Effort::None)?;
    let tokens = prompt.len();
    if !args.json {
        let what = if args.no_needle { "no code in it" } else { "a code hidden" };
        let place = if args.no_needle { String::new() } else { format!(" at {:.0} %", text.depth * 100.0) };
        say!("text {seed}: {} tokens, {what}{place}", commas(tokens));
    }
    let (stop_tokens, sampling) = (vec![eos], Sampling::greedy());
    let request = Request { prompt, max_tokens: Some(32), stop_tokens, sampling, ..Request::default() };
    let mut out = out();
    let question = text.prompt.rsplit_once(". ").map_or("", |(_, question)| question);
    let mut asked = false;
    let cancel = Arc::new(AtomicBool::new(false));
    let answer = ask(loaded, engine, tokenizer, request, Reading::Chat(parsing), args.json, &cancel, |shown| {
        if let (false, Shown::Answer(piece)) = (args.json, shown) {
            if !asked {
                writeln!(out, "> {question}")?;
                asked = true;
            }
            write!(out, "{piece}")?;
            out.flush()?;
        }
        Ok(())
    })?;
    let found = answer.text.trim() == text.expected;
    let seconds = start.elapsed().as_secs_f64();
    if args.json {
        writeln!(out, "{}", report(args, loaded, seed, &text, tokens, &answer, found, seconds))?;
    } else {
        verdict(args, loaded, &text, &answer, found, &mut out)?;
    }
    Ok(found)
}

fn verdict(
    args: &Args,
    loaded: &Loaded,
    text: &Document,
    answer: &Answer,
    found: bool,
    out: &mut impl Write,
) -> Outcome {
    let word = match (found, args.no_needle) {
        (true, false) => "right".to_owned(),
        (false, false) => format!("wrong: it was {}", text.code),
        (true, true) => "found what is not there".to_owned(),
        (false, true) => "there was nothing to find".to_owned(),
    };
    writeln!(out, "   ({word})")?;
    say!("{}", answer.numbers());
    let ledger = loaded.model.device().ledger();
    let [state, scratch] = [Share::State, Share::Scratch].map(|share| ledger.holding(share));
    let rss = peak_rss().map_or_else(|| "not told by this system".to_owned(), human);
    say!(
        "memory: state {} of {} planned, scratch {} of {}, peak RSS {rss} of {}",
        human(state.peak),
        human(loaded.plan.state),
        human(scratch.peak),
        human(loaded.plan.scratch),
        human(loaded.plan.total()),
    );
    Ok(())
}

#[allow(clippy::too_many_arguments)]
fn report(
    args: &Args,
    loaded: &Loaded,
    seed: u64,
    text: &Document,
    tokens: usize,
    answer: &Answer,
    found: bool,
    seconds: f64,
) -> Value {
    let ledger = loaded.model.device().ledger();
    let prefill = answer.usage.prefill.as_secs_f64();
    let decode = answer.usage.decode.as_secs_f64();
    json!({
        "context": args.context,
        "seed": seed,
        "needle": !args.no_needle,
        "depth": text.depth,
        "prompt_tokens": tokens,
        "expected": text.expected,
        "answer": answer.text,
        "found": found,
        "seconds": seconds,
        "prefill_tokens_per_second": (tokens - answer.usage.reused_tokens) as f64 / prefill,
        "decode_tokens_per_second": answer.usage.generated_tokens as f64 / decode,
        "state_bytes": ledger.holding(Share::State).peak,
        "scratch_bytes": ledger.holding(Share::Scratch).peak,
        "planned_state_bytes": loaded.plan.state,
        "planned_scratch_bytes": loaded.plan.scratch,
        "planned_bytes": loaded.plan.total(),
        "peak_rss_bytes": peak_rss(),
    })
}

/// Something that differs from run to run.
fn clock() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |t| t.subsec_nanos().into())
}
