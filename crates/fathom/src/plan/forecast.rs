//! What `run` and `serve` say before they start, and what came of it.

use fathom_engine::Counts;
use fathom_kernels::human;
use fathom_model::Stretch;
use fathom_weights::Config;
use fathom_weights::Sizes;

use super::machine::Machine;
use super::memory::{Plan, Used};
use super::speed::{Limit, Speed, chunks};
use super::stream::{Drawn, Streaming};
use crate::ui::{commas, duration};

/// A model that is about to run, on this machine.
pub struct Forecast {
    machine: Machine,
    config: Config,
    sizes: Sizes,
    plan: Plan,
    native: bool,
}

/// What is expected of a prompt and an answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Expected {
    /// Seconds to read the prompt.
    pub prompt_seconds: f64,
    /// Tokens a second of the answer.
    pub decode: f64,
    /// What holds the answer up.
    pub bottleneck: Limit,
}

impl Forecast {
    /// On a machine, with memory as planned.
    pub fn new(machine: Machine, config: &Config, sizes: Sizes, plan: Plan, native: bool) -> Forecast {
        Forecast { machine, config: config.clone(), sizes, plan, native }
    }

    /// Of a prompt of which `from` tokens need not be read, and of its answer's beginning. None where experts come from a drive
    /// that was not measured.
    pub fn expect(&self, from: usize, tokens: usize) -> Option<Expected> {
        let (config, sizes, machine, native) = (&self.config, &self.sizes, &self.machine, self.native);
        let speed = Speed { config, sizes, machine, native };
        let streamed = match self.plan.experts {
            None => None,
            Some(memory) => Some((memory, machine.drive.as_ref()?, Streaming::new(speed, Drawn::default()))),
        };
        let mut prompt_seconds = 0.0;
        for (start, part, like) in chunks(from, tokens, self.plan.chunk) {
            let mut pass = speed.pass(&[Stretch { start, tokens: part }], usize::from(start + part == tokens));
            if let Some((memory, drive, streaming)) = &streamed {
                pass = streaming.chunk(pass, part, *memory, drive, start == from);
            }
            prompt_seconds += pass.total() * like;
        }
        let mut token = speed.pass(&[Stretch { start: tokens, tokens: 1 }], 1);
        if let Some((memory, drive, streaming)) = &streamed {
            token = streaming.decode(token, *memory, drive).0;
        }
        Some(Expected { prompt_seconds, decode: 1.0 / token.total(), bottleneck: token.bottleneck() })
    }

    /// One line about a prompt and its answer.
    pub fn of_prompt(&self, from: usize, tokens: usize) -> String {
        let memory = human(self.plan.expected_of(&self.config, tokens));
        match self.expect(from, tokens) {
            None => format!("predicted: {memory} (fathom plan measures the drive, and says how fast)"),
            Some(it) => format!(
                "predicted: prompt {} tokens in {}, answer {} ({}), {memory}",
                commas(tokens),
                duration(it.prompt_seconds),
                per_second(it.decode),
                it.bottleneck.words()
            ),
        }
    }

    /// One line about a server's sessions.
    pub fn of_server(&self, context: usize) -> String {
        let memory = human(self.plan.expected_of_server());
        let at = |tokens: usize| {
            let tokens = tokens.min(context.saturating_sub(1)).max(1);
            let it = self.expect(0, tokens)?;
            let read = per_second(tokens as f64 / it.prompt_seconds);
            Some(format!(
                "{} tokens are read in {} ({read}) and answered at {} ({})",
                commas(tokens),
                duration(it.prompt_seconds),
                per_second(it.decode),
                it.bottleneck.words()
            ))
        };
        match at(4096) {
            None => format!("predicted: {memory} (fathom plan measures the drive, and says how fast)"),
            Some(short) if context <= 4096 => format!("predicted: {short}; {memory}"),
            Some(short) => format!("predicted: {short}; {}; {memory}", at(131_072).unwrap_or_default()),
        }
    }

    /// What came of a server's requests, at their mean length, and of the memory that they used. Where several ran at once each
    /// was slower than alone.
    pub fn of_counts(&self, counts: &Counts, used: &Used, peak: Option<u64>) -> String {
        let Counts { requests, prompt_tokens, reused_tokens, generated_tokens, prefill, decode, .. } = counts;
        let n = (*requests).max(1);
        let (from, tokens) = ((reused_tokens / n) as usize, (prompt_tokens / n) as usize);
        let mut pairs = Vec::new();
        if let Some(expected) = self.expect(from, tokens.max(from + 1)).filter(|_| *requests > 0) {
            let read = (prompt_tokens - reused_tokens) as f64;
            pairs.push(("prompts", read / n as f64 / expected.prompt_seconds, read / prefill.as_secs_f64()));
            pairs.push(("answers", expected.decode, *generated_tokens as f64 / decode.as_secs_f64()));
        }
        against(&pairs, self.plan.expected_of_used(used), peak)
    }

    /// What came of a request: tokens a second, as predicted and as measured, and memory with a session of so many `tokens`.
    pub fn against(&self, pairs: &[(&str, f64, f64)], tokens: usize, peak: Option<u64>) -> String {
        against(pairs, self.plan.expected_of(&self.config, tokens), peak)
    }
}

/// Tokens a second, and memory, as predicted and as measured.
fn against(pairs: &[(&str, f64, f64)], expected: u64, peak: Option<u64>) -> String {
    let mut all: Vec<String> = pairs
        .iter()
        .filter(|(_, predicted, measured)| predicted.is_finite() && measured.is_finite() && *measured > 0.0)
        .map(|(what, predicted, measured)| {
            format!("{what} {} predicted, {} measured", per_second(*predicted), per_second(*measured))
        })
        .collect();
    if let Some(peak) = peak {
        all.push(format!("memory {} predicted, {} measured", human(expected), human(peak)));
    }
    all.join("; ")
}

/// A speed with as many digits as say something.
pub fn per_second(speed: f64) -> String {
    if speed >= 100.0 { format!("{}/s", commas(speed.round() as usize)) } else { format!("{speed:.1}/s") }
}
