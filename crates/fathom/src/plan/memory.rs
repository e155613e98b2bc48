//! Memory: what a model will take, decided before it is loaded, and how that fits what there is.

use fathom_engine::Engine;
use fathom_kernels::{Cpu, human};
use fathom_model::{scratch_bytes, state_bytes};
use fathom_weights::experts::ExpertCache;
use fathom_weights::{Config, Sizes};

use super::free_memory;

/// What the program itself takes: code, tables, the allocator's slack. Measured: 39 MiB.
const PROGRAM: u64 = 48 << 20;
/// What of that a run that reads no text holds. Measured: 4 to 5 MiB.
const BASE: u64 = 5 << 20;
/// What is more where text is read, beside what a tokenizer's file makes. Measured: 24 MiB.
const TEXT: u64 = 24 << 20;
/// What a server takes beside a run, and what more once it has been asked. Measured: 5 MiB, and 3 to 7.
const SERVER: u64 = 5 << 20;
const ASKED: u64 = 4 << 20;
/// What a thread takes beside its part of the scratch: a stack, and what the allocator keeps for it. Measured: 1.6 MB.
const THREAD: u64 = 2 << 20;
/// Bytes that the system maps when one of them is missing: Linux's usual `fault_around_bytes`.
const AROUND: u64 = 64 << 10;
/// What a tensor takes as a name and a place; V4-Pro has 142,255.
const TENSOR: u64 = 300;

/// Tokens of a prompt that are read at once, where nobody says: the first whose scratch fits.
const CHUNKS: [usize; 9] = [8192, 4096, 2048, 1024, 768, 512, 256, 128, 64];
/// The most of those with all experts in memory, and what their scratch may take: so much, or that part of the weights.
const CHUNK_IN_MEMORY: usize = 1024;
const SCRATCH: u64 = 256 << 20;
const SCRATCH_PART: u64 = 64;
/// Tokens of a request that runs beside one of the whole context.
pub const BESIDE: usize = 8192;
/// With streamed experts scratch may take one part in so many of what experts and scratch have together: wider chunks read
/// each expert for more tokens, and leave room for fewer.
const PART: u64 = 3;

/// What a run is to hold.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// The most tokens of a session.
    pub context: usize,
    /// Tokens of a prompt that are read at once, where somebody says.
    pub chunk: Option<usize>,
    /// Requests at once: one of the whole context beside others of [`BESIDE`] tokens.
    pub parallel: usize,
    /// Threads that compute.
    pub threads: usize,
    /// Bytes of the tokenizer's file.
    pub text: u64,
    /// Bytes that the program holds beside all this.
    pub beside: u64,
    /// Bytes that the program may hold, where somebody says.
    pub budget: Option<u64>,
}

/// Bytes that fathom expects to hold at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Weights: all of them, mapped, though the system keeps only what is used and fits; or, where experts are streamed, the
    /// others, in memory of our own.
    pub weights: u64,
    /// Of those, drafts, which are never touched where they are mapped.
    pub drafts: u64,
    /// Streamed experts; none where all are mapped.
    pub experts: Option<u64>,
    /// All experts' bytes.
    pub all_experts: u64,
    /// A session's state at the context's end, and what an engine keeps beside it for others to go on from.
    pub state: u64,
    /// One pass over the layers.
    pub scratch: u64,
    /// The program, the tokenizer, the prompt's text and tokens.
    pub program: u64,
    /// Tokens of a prompt that are read at once.
    pub chunk: usize,
    /// The most tokens of a session.
    pub context: usize,
    /// The embedding, where it is mapped.
    embedding: Table,
    /// Bytes that it is expected to hold when all of the context has been used: the bounds leave room beside it for what an
    /// allocator and the system keep.
    pub expected: u64,
}

impl Plan {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights + self.experts.unwrap_or(0) + self.state + self.scratch + self.program
    }

    /// Bytes that it is expected to hold when a session has used so many tokens of the context.
    pub fn expected_of(&self, config: &Config, tokens: usize) -> u64 {
        let tokens = tokens.min(self.context);
        let of = |tokens| state_bytes(config, tokens) + text_bytes(tokens) + self.embedding.touched(tokens);
        // Scratch grows with the tokens that are read at once.
        let chunk = self.chunk.max(1);
        let unused = self.scratch / chunk as u64 * (chunk - tokens.min(chunk)) as u64;
        self.expected.saturating_sub(of(self.context).saturating_sub(of(tokens)) + unused)
    }

    /// Bytes that a server is expected to hold with a session of the whole context.
    pub fn expected_of_server(&self) -> u64 {
        self.expected + SERVER + ASKED
    }

    /// Bytes that a server is expected to hold when so much has been used.
    pub fn expected_of_used(&self, used: &Used) -> u64 {
        let untouched = match self.experts {
            Some(experts) => experts.saturating_sub(used.experts),
            // Mapped weights come when they are computed with.
            None if used.scratch == 0 => self.weights.saturating_sub(self.drafts + self.embedding.bytes()),
            None => 0,
        };
        let asked = if used.longest == 0 { ASKED } else { 0 };
        let unused = self.state.saturating_sub(used.state)
            + self.scratch.saturating_sub(used.scratch)
            + text_bytes(self.context).saturating_sub(text_bytes(used.longest))
            + untouched
            + self.embedding.touched(self.context)
            + asked;
        self.expected_of_server().saturating_sub(unused) + self.embedding.touched(used.read)
    }
}

/// What of a plan came to be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// The most bytes of state that sessions held at once.
    pub state: u64,
    /// The most bytes of scratch that a pass took: none where nothing was computed.
    pub scratch: u64,
    /// Bytes of streamed experts that came.
    pub experts: u64,
    /// The most tokens of a session.
    pub longest: usize,
    /// Tokens that all sessions had computed.
    pub read: usize,
}

/// A mapped table of which rows come into memory when tokens ask for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Table {
    rows: u64,
    /// Bytes of a row.
    row: u64,
}

impl Table {
    /// Bytes that a text of so many tokens brings: the system maps [`AROUND`] bytes about each that is asked for, and tokens are
    /// taken to be as frequent as 1 ÷ their number. A row x is then missing with exp(−c ÷ x); the sum of what is seen is an
    /// exponential integral (Abramowitz and Stegun 5.1.11).
    fn touched(self, tokens: usize) -> u64 {
        let rows = self.rows as f64;
        // Rows that begin or end among those bytes bring them too.
        let together = (AROUND + self.row) as f64 / self.row.max(1) as f64;
        let c = together * tokens as f64 / rows.max(3.0).ln();
        let z = c / rows.max(1.0);
        if z == 0.0 {
            return 0;
        }
        let integral = match z {
            z if z <= 1.0 => -0.577_215_7 - z.ln() + z - z.powi(2) / 4.0 + z.powi(3) / 18.0 - z.powi(4) / 96.0,
            z => (-z).exp() / (z + 1.0 - 1.0 / (z + 3.0)),
        };
        let seen = rows * (1.0 - (-z).exp()) + c * integral;
        self.bytes().min(seen as u64 * self.row)
    }

    fn bytes(self) -> u64 {
        self.rows * self.row
    }
}

/// What a text of so many tokens takes, as text and as tokens.
fn text_bytes(tokens: usize) -> u64 {
    40 * tokens.min(1 << 20) as u64
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Plan { weights, experts, all_experts, state, scratch, program, .. } = *self;
        write!(f, "{} = weights {}", human(self.total()), human(weights))?;
        if let Some(experts) = experts {
            let share = 100.0 * experts as f64 / all_experts.max(1) as f64;
            write!(f, " + experts {} ({share:.0} % of {})", human(experts), human(all_experts))?;
        }
        write!(f, " + state {} + scratch {} + program {}", human(state), human(scratch), human(program))
    }
}

/// A budget that the model cannot keep.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} of memory {}, too little: {}; give it --memory {} or more{}",
    human(*budget), if *given { "were given" } else { "are free" }, what, mebibytes(*least),
    if *context > 4096 { ", or a shorter --context" } else { "" }
)]
pub struct TooSmall {
    budget: u64,
    given: bool,
    what: String,
    context: usize,
    /// The smallest budget that would do, in bytes.
    pub least: u64,
}

/// A size that `--memory` takes, none smaller.
fn mebibytes(bytes: u64) -> String {
    format!("{}MiB", bytes.div_ceil(1 << 20))
}

/// Plans a run of a checkpoint's model: with all weights mapped where that fits the budget, else with streamed experts.
/// Without a budget it is what the machine or its control group has free, less a margin.
///
/// # Errors
/// [`TooSmall`].
pub fn plan(device: &Cpu, config: &Config, sizes: &Sizes, wanted: Wanted) -> Result<Plan, TooSmall> {
    let budget = wanted.budget.or_else(free_memory).unwrap_or(u64::MAX);
    let (parallel, rows) = (wanted.parallel, Engine::logits_rows(wanted.parallel));
    let scratch = |streamed, chunk| scratch_bytes(device, config, streamed, chunk + parallel, rows);
    let state = state_bytes(config, wanted.context)
        + (parallel as u64 - 1) * state_bytes(config, wanted.context.min(BESIDE))
        + Engine::SPARE_STATES * state_bytes(config, 1);
    // A tokenizer takes some twenty times its file; a token of a prompt takes a few bytes as text, as token, twice over, and as a
    // word remembered.
    let program = PROGRAM
        + wanted.beside
        + THREAD * wanted.threads as u64
        + 20 * wanted.text
        + text_bytes(wanted.context)
        + TENSOR * sizes.tensors as u64;
    let base = BASE
        + THREAD * wanted.threads as u64
        + if wanted.text > 0 { TEXT + 20 * wanted.text } else { 0 }
        + text_bytes(wanted.context)
        + TENSOR * sizes.tensors as u64;
    let chunks = |most: usize| CHUNKS.into_iter().filter(move |&chunk| chunk <= most);
    // On many threads scratch is wide, and a chunk of few tokens would read all weights again and again.
    let room = SCRATCH.max(sizes.weights / SCRATCH_PART);
    let chosen = wanted.chunk.map(|chunk| chunk.min(wanted.context));
    let chunk = chosen
        .or_else(|| chunks(CHUNK_IN_MEMORY).find(|&chunk| scratch_bytes(device, config, false, chunk, 1) <= room));
    let chunk = chunk.unwrap_or(64).min(wanted.context);
    let weights = sizes.weights;
    let embedding = Table { rows: config.vocab_size as u64, row: 2 * config.hidden_size as u64 };
    let touched = weights.saturating_sub(sizes.drafts + embedding.bytes()) + embedding.touched(wanted.context);
    let mapped = Plan {
        weights,
        drafts: sizes.drafts,
        experts: None,
        all_experts: 0,
        state,
        scratch: scratch(false, chunk),
        program,
        chunk,
        context: wanted.context,
        embedding,
        expected: touched + state + scratch(false, chunk) + base,
    };
    if mapped.total() <= budget {
        return Ok(mapped);
    }

    let (dense, least) = (sizes.dense, ExpertCache::<Cpu>::least_memory(sizes));
    let fixed = dense + state + program;
    let left = budget.saturating_sub(fixed);
    let fits = |chunk: usize| {
        let scratch = scratch(true, chunk);
        scratch <= left / PART && scratch + least <= left
    };
    let smallest = chosen.unwrap_or(64).min(wanted.context);
    let chunk = chosen.unwrap_or_else(|| chunks(wanted.context).find(|&chunk| fits(chunk)).unwrap_or(smallest));
    let experts = left.saturating_sub(scratch(true, chunk)).clamp(least, sizes.frames());
    let streamed = Plan {
        weights: dense,
        experts: Some(experts),
        all_experts: sizes.expert_bytes,
        scratch: scratch(true, chunk),
        chunk,
        embedding: Table::default(),
        expected: dense + experts + state + scratch(true, chunk) + base,
        ..mapped
    };
    if !sizes.in_files || streamed.total() > budget {
        let smallest = Plan { experts: Some(least), scratch: scratch(true, smallest), ..streamed };
        // Of a model with few experts, all of them mapped can take less than some of them read.
        let streams = sizes.in_files && smallest.total() < mapped.total();
        let best = if streams { smallest } else { mapped };
        return Err(TooSmall {
            budget,
            given: wanted.budget.is_some(),
            what: format!("the model takes {best}"),
            context: wanted.context,
            least: best.total(),
        });
    }
    Ok(streamed)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use fathom_kernels::CpuOptions;
    use fathom_weights::Checkpoint;
    use fathom_weights::synth::Synth;

    /// A table's rows against tokens drawn as they are taken to be.
    #[test]
    fn rows_come_as_tokens_ask_for_them() {
        let table = Table { rows: 129_280, row: 8192 };
        let (mut seen, mut random) = (BTreeSet::new(), 1u64);
        assert_eq!(table.touched(0), 0);
        for drawn in 1..=200_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let token = (table.rows as f64).powf((random >> 11) as f64 / (1u64 << 53) as f64) as u64 - 1;
            // The table begins anywhere in a file: a row may be in two of the parts that are mapped.
            let from = token * table.row + 5000;
            seen.extend([from / AROUND, (from + table.row - 1) / AROUND]);
            if [500, 5_000, 50_000, 200_000].contains(&drawn) {
                let (found, said) = (seen.len() as u64 * AROUND, table.touched(drawn));
                assert!((said as f64 / found as f64 - 1.0).abs() < 0.04, "{drawn}: {said} said, {found} found");
            }
        }
        assert!(table.touched(20_000_000) * 1000 > table.bytes() * 999);
    }

    #[test]
    fn budgets_are_kept_or_refused_with_the_least_that_would_do() {
        let folder = tempfile::tempdir().unwrap();
        Synth::tiny(1).set("n_routed_experts", 600).write(folder.path()).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let sizes = Sizes::of(&checkpoint).unwrap();
        let cpu = Cpu::new(CpuOptions { threads: Some(1), ..CpuOptions::default() }).unwrap();
        let of = |budget| {
            let wanted = Wanted { context: 1000, chunk: None, parallel: 1, threads: 1, text: 0, beside: 0, budget };
            plan(&cpu, checkpoint.config(), &sizes, wanted)
        };
        let mapped = of(Some(1 << 40)).unwrap();
        let expected = |tokens| mapped.expected_of(checkpoint.config(), tokens);
        assert_eq!((expected(1000), expected(2000)), (mapped.expected, mapped.expected));
        assert!(expected(10) < expected(500) && expected(500) < mapped.expected);
        let used = Used { state: mapped.state, scratch: mapped.scratch, experts: 0, longest: 1000, read: 1000 };
        assert_eq!(mapped.expected_of_used(&used), mapped.expected_of_server());
        let less = mapped.expected_of_used(&Used { state: used.state - 99, ..used });
        assert_eq!(less, mapped.expected_of_server() - 99);
        let nothing = mapped.expected_of_used(&Used { state: 0, scratch: 0, experts: 0, longest: 0, read: 0 });
        let computed_with = mapped.weights - sizes.drafts - mapped.embedding.bytes() + mapped.embedding.touched(1000);
        assert_eq!(
            nothing + text_bytes(1000) - SERVER,
            mapped.expected - computed_with - mapped.state - mapped.scratch
        );
        assert_eq!(mapped.experts, None);
        let less = of(Some(mapped.total() - 1)).unwrap();
        assert!(less.experts.is_some() && less.total() < mapped.total());
        let refused = of(Some(1 << 20)).unwrap_err();
        let least = refused.least;
        assert!(refused.to_string().contains("1.00 MiB of memory were given, too little"), "{refused}");
        assert!(of(Some(least - 1)).is_err());
        let tight = of(Some(least)).unwrap();
        assert!(tight.total() <= least);
        for budget in (least..mapped.total()).step_by((mapped.total() - least) as usize / 20) {
            assert!(of(Some(budget)).unwrap().total() <= budget);
        }
    }
}
