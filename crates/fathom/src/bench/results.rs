//! What was measured: plain data, as it stands in `report.json`. Times are in seconds unless a name says otherwise.

use serde::Serialize;

use super::numbers::{Quantiles, Spread, median};
use super::{Api, Machine, Point};
use crate::bench::machine::now;

/// A report.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What it is about, in a few words.
    pub title: String,
    /// Who measured, where and when.
    pub about: About,
    /// Why it is not whole, if it is not.
    pub partial: Option<String>,
    /// How it was measured, in sentences.
    pub method: Vec<String>,
    /// Servers under the same work.
    pub servers: Option<Servers>,
    /// A model at growing depths.
    pub frontiers: Option<Frontiers>,
    /// What was found in long texts.
    pub needle: Option<Grid>,
}

/// Who measured, where and when.
#[derive(Debug, Clone, Serialize)]
pub struct About {
    /// This program's version.
    pub fathom: String,
    /// When it began.
    pub date: String,
    /// Where.
    pub machine: Machine,
    /// The command.
    pub command: String,
}

impl About {
    /// Of this run.
    pub fn this_run() -> About {
        let quoted = |word: String| if word.contains([' ', '"']) { format!("'{word}'") } else { word };
        let words = std::env::args().skip(1).map(quoted);
        let command = std::iter::once("fathom".to_owned()).chain(words).collect::<Vec<_>>().join(" ");
        About { fathom: env!("CARGO_PKG_VERSION").into(), date: now(), machine: Machine::here(), command }
    }
}

/// Servers under the same work.
#[derive(Debug, Clone, Serialize)]
pub struct Servers {
    /// The work's name.
    pub workload: String,
    /// What it is.
    pub what: String,
    /// What its texts are made from.
    pub seed: u64,
    /// Requests of a round.
    pub requests: usize,
    /// About how many tokens the longest prompt has.
    pub longest: usize,
    /// Rounds that were asked for.
    pub rounds: u32,
    /// Why there are no joules, if there are none.
    pub no_joules: Option<String>,
    /// Each server.
    pub tested: Vec<Tested>,
}

/// A server, and how it did.
#[derive(Debug, Clone, Serialize)]
pub struct Tested {
    /// Its name in the report.
    pub name: String,
    /// Where it is.
    pub url: String,
    /// The model that was asked for.
    pub model: String,
    /// What it says it is.
    pub software: Option<String>,
    /// The interface that was used.
    pub api: Api,
    /// Why it was given up, if it was.
    pub failed: Option<String>,
    /// All rounds together.
    pub summary: Summary,
    /// Each round.
    pub rounds: Vec<Round>,
    /// Each request.
    pub requests: Vec<Request>,
    /// Memory while it was measured.
    pub memory: Vec<Point>,
    /// Times between pieces, in milliseconds.
    #[serde(skip)]
    pub gaps: Vec<f64>,
}

/// A round of a server.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Round {
    /// From the first request to the last answer.
    pub seconds: f64,
    /// Requests that failed.
    pub errors: usize,
    /// Tokens of answers.
    pub output_tokens: u64,
    /// Tokens of answers a second, of all requests together.
    pub output_per_second: f64,
    /// What the processor used, of everything that ran.
    pub joules: Option<f64>,
    /// The most resident memory, in bytes.
    pub peak_rss: Option<u64>,
}

/// A request and what came of it.
#[derive(Debug, Clone, Serialize)]
pub struct Request {
    /// The round, from 1.
    pub round: u32,
    /// Its place in the work.
    pub index: usize,
    /// Its lane.
    pub lane: usize,
    /// When it was sent, after the round's beginning.
    pub started: f64,
    /// When the first piece of the answer came, after it was sent.
    pub first: Option<f64>,
    /// When it was over, after it was sent.
    pub seconds: f64,
    /// Tokens of its prompt, by the server's count.
    pub prompt_tokens: Option<u64>,
    /// Of those, the ones that were not read again, where the server says.
    pub cached_tokens: Option<u64>,
    /// Tokens of its answer, or pieces where the server does not count.
    pub output_tokens: u64,
    /// Tokens a second after the first.
    pub output_per_second: Option<f64>,
    /// The middle time between pieces.
    pub gap_ms: Option<f64>,
    /// The longest.
    pub longest_gap_ms: Option<f64>,
    /// What went wrong.
    pub error: Option<String>,
}

/// All rounds of a server together.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Summary {
    /// Requests that were asked.
    pub requests: usize,
    /// Of those, the ones that failed.
    pub errors: usize,
    /// Time to the first piece of an answer.
    pub first: Quantiles,
    /// Time between pieces, in milliseconds.
    pub gap_ms: Quantiles,
    /// Tokens of answers a second, of all requests of a round together.
    pub output_per_second: Option<Spread>,
    /// Tokens a second of one answer after its first: the median of all requests.
    pub decode_per_second: Option<f64>,
    /// Tokens of the prompt that had to be read ÷ time to the first piece: the median of requests with 64 such tokens or more.
    pub read_per_second: Option<f64>,
    /// A round's time.
    pub seconds: Option<Spread>,
    /// Tokens of all prompts.
    pub prompt_tokens: u64,
    /// Of those, the ones that were not read again; none where the server does not say.
    pub cached_tokens: Option<u64>,
    /// The most resident memory, in bytes.
    pub peak_rss: Option<u64>,
    /// Joules for a token of an answer, of everything that ran.
    pub joules_per_token: Option<f64>,
}

impl Tested {
    /// Puts the rounds together.
    pub fn sum_up(&mut self) {
        let good = || self.requests.iter().filter(|r| r.error.is_none());
        let per_round = |of: fn(&Round) -> f64| self.rounds.iter().map(of).collect::<Vec<_>>();
        let read = |r: &Request| {
            let new = r.prompt_tokens?.saturating_sub(r.cached_tokens.unwrap_or(0));
            (new >= 64).then_some(new as f64 / r.first?)
        };
        let joules: Option<f64> = self.rounds.iter().map(|round| round.joules).sum();
        let output: u64 = self.rounds.iter().map(|round| round.output_tokens).sum();
        self.summary = Summary {
            requests: self.requests.len(),
            errors: self.requests.iter().filter(|r| r.error.is_some()).count(),
            first: Quantiles::of(good().filter_map(|r| r.first).collect()),
            gap_ms: Quantiles::of(self.gaps.clone()),
            output_per_second: Spread::of(&per_round(|round| round.output_per_second)),
            decode_per_second: median(&good().filter_map(|r| r.output_per_second).collect::<Vec<_>>()),
            read_per_second: median(&good().filter_map(read).collect::<Vec<_>>()),
            seconds: Spread::of(&per_round(|round| round.seconds)),
            prompt_tokens: good().filter_map(|r| r.prompt_tokens).sum(),
            cached_tokens: good().filter_map(|r| r.cached_tokens).reduce(|a, b| a + b),
            peak_rss: self.rounds.iter().filter_map(|round| round.peak_rss).max(),
            joules_per_token: joules.filter(|_| output > 0).map(|joules| joules / output as f64),
        };
    }
}

/// A model at growing depths, in one session.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Frontiers {
    /// The model, the device and the profile, in a line.
    pub model: String,
    /// Tokens that the session was planned for.
    pub context: usize,
    /// Runs of each probe.
    pub runs: u32,
    /// Tokens of a prefill probe, and of a decode probe.
    pub probes: [usize; 2],
    /// Bytes planned: weights and experts, state, scratch, the program; and all of them.
    pub planned: Planned,
    /// Each depth.
    pub frontiers: Vec<Frontier>,
    /// The question at the end, where there is a tokenizer.
    pub needle: Option<Needle>,
    /// Memory from the beginning to the end.
    pub memory: Vec<Point>,
    /// The most resident memory, in bytes.
    pub peak_rss: Option<u64>,
    /// What the processor used, of everything that ran.
    pub joules: Option<f64>,
    /// Why there are no joules, if there are none.
    pub no_joules: Option<String>,
    /// Bytes written to the store.
    pub stored_bytes: Option<u64>,
}

/// Bytes that were planned.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Planned {
    /// Weights, and experts that are streamed.
    pub weights: u64,
    /// The session's state.
    pub state: u64,
    /// What a pass needs.
    pub scratch: u64,
    /// All, with the program's own.
    pub total: u64,
}

/// What a model did at a depth.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Frontier {
    /// Tokens of the session.
    pub tokens: usize,
    /// Whether its state came from the store.
    pub restored: bool,
    /// To the first token of an answer: reading all tokens from the first on, or the state from the store. Probes and writing are not in it.
    pub first: f64,
    /// Tokens a second from the depth before to this one; none where it was restored.
    pub read_per_second: Option<f64>,
    /// Tokens a second of a prefill from here on.
    pub prefill_per_second: Option<Spread>,
    /// Tokens a second of a decode from here on.
    pub decode_per_second: Option<Spread>,
    /// Resident memory, in bytes.
    pub rss: Option<u64>,
    /// Bytes of state that the ledger holds.
    pub state: u64,
    /// Time to write the state to the store.
    pub saved_seconds: Option<f64>,
}

/// A question about what a text hides.
#[derive(Debug, Clone, Serialize)]
pub struct Needle {
    /// Tokens of the prompt.
    pub tokens: usize,
    /// Where it was hidden, as a share of the text.
    pub depth: f64,
    /// What it should say.
    pub expected: String,
    /// What it said.
    pub answer: String,
    /// Whether the code is in it.
    pub right: bool,
}

/// What was found in texts of many lengths, at many depths.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Grid {
    /// Every cell, of all targets and kinds.
    pub cells: Vec<Cell>,
}

/// One question to one target.
#[derive(Debug, Clone, PartialEq, Serialize, serde::Deserialize)]
pub struct Cell {
    /// What it was asked by: targets and settings; a second run that has the same skips it.
    pub key: String,
    /// Who was asked.
    pub target: String,
    /// The model.
    pub model: String,
    /// What was hidden and asked.
    pub kind: String,
    /// Tokens that the prompt was to have.
    pub length: usize,
    /// Where the first needle stands, in percent of the text.
    pub depth: u32,
    /// The text.
    pub seed: u64,
    /// Tokens that it had by the server's count.
    pub prompt_tokens: Option<u64>,
    /// What the answer had to have, all of it.
    pub expected: Vec<String>,
    /// Of those, the ones it had.
    pub found: usize,
    /// Whether it had all.
    pub right: bool,
    /// The answer.
    pub answer: String,
    /// Time to the first piece of it.
    pub first: Option<f64>,
    /// Time to its end.
    pub seconds: f64,
}
