//! The plan as it is told: memory, speed, snapshots and wear at several contexts, and what to change first.

use std::collections::BTreeMap;

use fathom_engine::SnapshotBytes;
use fathom_kernels::{Cpu, Profile};
use fathom_model::Stretch;
use serde::Serialize;

use super::efficiency::{RESTORE, SAVE};
use super::faster::{Change, faster};
use super::machine::Machine;
use super::memory::{Plan, TooSmall, Wanted, plan};
use super::speed::{Limit, Seconds, Speed, chunks};
use super::stream::{Drawn, Streaming};
use super::subject::Subject;

/// Between two states of a prompt that an engine keeps, in tokens.
const KEPT: usize = 8192;
/// Days of a month.
const DAYS: f64 = 30.0;

/// What sessions there are in a day.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Workload {
    /// Sessions that begin in a day.
    pub sessions: f64,
    /// Tokens of all of them, read and written.
    pub tokens: f64,
    /// Questions and answers of each.
    pub turns: f64,
}

/// What is asked of a plan.
#[derive(Debug, Clone, PartialEq)]
pub struct Questions {
    /// The contexts, in tokens, in order.
    pub contexts: Vec<usize>,
    /// Requests at once.
    pub parallel: usize,
    /// Tokens of a prompt that are read at once, where somebody says.
    pub chunk: Option<usize>,
    /// Bytes that the program may hold.
    pub budget: u64,
    /// The recipe.
    pub profile: Profile,
    /// Where tokens go.
    pub drawn: Drawn,
    /// What is written in a day.
    pub workload: Workload,
}

/// Memory, in bytes, with a context of so many tokens.
#[derive(Debug, Clone, Serialize)]
pub struct Memory {
    /// See [`Plan`].
    pub weights: u64,
    /// See [`Plan`]; none where all are mapped.
    pub experts: Option<u64>,
    /// The part of all experts that those are, from 0 to 1.
    pub experts_share: f64,
    /// See [`Plan`].
    pub state: u64,
    /// See [`Plan`].
    pub scratch: u64,
    /// See [`Plan`].
    pub program: u64,
    /// The most that it will be.
    pub total: u64,
    /// What it is expected to be.
    pub expected: u64,
    /// Tokens of a prompt that are read at once.
    pub chunk: usize,
}

/// Tokens a second at a depth, and what holds them up.
#[derive(Debug, Clone, Serialize)]
pub struct Rate {
    /// As predicted.
    pub tokens_per_second: f64,
    /// At the machine's peaks, each byte read and each operation done once: nothing is faster.
    pub roofline_tokens_per_second: f64,
    /// What most of the time goes to.
    pub bottleneck: Limit,
    /// The parts of the time, each from 0 to 1.
    pub shares: BTreeMap<Limit, f64>,
}

impl Rate {
    fn of(seconds: &Seconds, tokens: usize) -> Rate {
        let n = tokens as f64;
        Rate {
            tokens_per_second: n / seconds.total(),
            roofline_tokens_per_second: n / seconds.least,
            bottleneck: seconds.bottleneck(),
            shares: Limit::ALL.into_iter().map(|limit| (limit, seconds.of(limit) / seconds.total())).collect(),
        }
    }
}

/// What a snapshot of so many tokens takes.
#[derive(Debug, Clone, Serialize)]
pub struct Snapshot {
    /// Bytes of files in all.
    pub bytes: u64,
    /// Of those, the ones that each further save writes again.
    pub own_bytes: u64,
    /// Seconds to save it, nothing of it stored; none where no drive is known.
    pub save_seconds: Option<f64>,
    /// Seconds to go on from it.
    pub restore_seconds: Option<f64>,
}

/// All about one context.
#[derive(Debug, Clone, Serialize)]
pub struct Point {
    /// Tokens.
    pub context: usize,
    /// None where it does not fit.
    pub memory: Option<Memory>,
    /// Why it does not fit.
    pub refused: Option<String>,
    /// One session that speaks alone at the context's end.
    pub decode: Option<Rate>,
    /// The last chunk of a prompt that is as long.
    pub prefill: Option<Rate>,
    /// Seconds from a prompt as long to its first token.
    pub first_token_seconds: Option<f64>,
    /// The part of demanded experts that are in memory in decode; none where all are.
    pub hit_rate: Option<f64>,
    /// Bytes of experts that a token reads in decode.
    pub read_bytes_per_token: Option<f64>,
    /// A snapshot of it.
    pub snapshot: Snapshot,
}

/// What sessions write to a drive.
#[derive(Debug, Clone, Serialize)]
pub struct Wear {
    /// What is written.
    pub workload: Workload,
    /// Bytes in a month of thirty days.
    pub bytes_per_month: f64,
    /// Years until the drive's warranted bytes are written.
    pub years: Option<f64>,
}

/// All of it.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The model's name.
    pub model: String,
    /// Bytes of its weights.
    pub weight_bytes: u64,
    /// What it runs on.
    pub machine: Machine,
    /// Bytes that the program may hold.
    pub budget: u64,
    /// Each context.
    pub points: Vec<Point>,
    /// Of the workload.
    pub wear: Wear,
    /// What would make it faster, best first, at the context of `faster_at` tokens.
    pub faster: Vec<Change>,
    /// See `faster`.
    pub faster_at: Option<usize>,
}

/// A model, a machine and what is asked, put together.
pub(super) struct Planner<'a> {
    pub subject: &'a Subject,
    pub cpu: &'a Cpu,
    pub questions: &'a Questions,
}

/// How fast one context is.
pub(super) struct Pace {
    pub decode: Seconds,
    pub chunk: Seconds,
    pub chunk_tokens: usize,
    pub first_token: f64,
    pub hits: Option<(f64, f64)>,
}

impl Planner<'_> {
    pub fn plan(&self, context: usize, budget: u64) -> Result<Plan, TooSmall> {
        self.plan_with(context, budget, self.questions.chunk)
    }

    pub fn plan_with(&self, context: usize, budget: u64, chunk: Option<usize>) -> Result<Plan, TooSmall> {
        let wanted = Wanted {
            context,
            chunk,
            parallel: self.questions.parallel,
            threads: self.cpu.threads(),
            text: self.subject.text,
            beside: 0,
            budget: Some(budget),
        };
        plan(self.cpu, &self.subject.config, &self.subject.sizes, wanted)
    }

    pub fn speed<'m>(&'m self, machine: &'m Machine) -> Speed<'m> {
        let native = self.questions.profile == Profile::Native;
        Speed { config: &self.subject.config, sizes: &self.subject.sizes, machine, native }
    }

    /// None where experts are streamed from a drive of which nothing is known.
    pub fn pace(&self, context: usize, plan: &Plan, streaming: &Streaming<'_>, machine: &Machine) -> Option<Pace> {
        let speed = self.speed(machine);
        let chunk = plan.chunk.min(context).max(1);
        let (mut first_token, mut last) = (0.0, (Seconds::default(), chunk));
        for (start, tokens, like) in chunks(0, context, chunk) {
            let ends = start + tokens == context;
            let mut pass = speed.pass(&[Stretch { start, tokens }], usize::from(ends));
            if let Some(memory) = plan.experts {
                pass = streaming.chunk(pass, tokens, memory, machine.drive.as_ref()?, start == 0);
            }
            first_token += pass.total() * like;
            // The speed of a prompt is that of its full chunks.
            if tokens == chunk {
                last = (pass, tokens);
            }
        }
        let token = speed.pass(&[Stretch { start: context - 1, tokens: 1 }], 1);
        let (decode, hits) = match plan.experts {
            None => (token, None),
            Some(memory) => {
                let (seconds, out) = streaming.decode(token, memory, machine.drive.as_ref()?);
                let missed = out.missed_bytes as f64 / out.tokens.max(1) as f64;
                (seconds, Some((out.hit_rate(), missed)))
            }
        };
        Some(Pace { decode, chunk: last.0, chunk_tokens: last.1, first_token, hits })
    }

    fn point(&self, context: usize, streaming: &Streaming<'_>, machine: &Machine) -> Point {
        let snapshot = self.snapshot(context, machine);
        let nothing = Point {
            context,
            memory: None,
            refused: None,
            decode: None,
            prefill: None,
            first_token_seconds: None,
            hit_rate: None,
            read_bytes_per_token: None,
            snapshot,
        };
        let plan = match self.plan(context, self.questions.budget) {
            Ok(plan) => plan,
            Err(e) => return Point { refused: Some(e.to_string()), ..nothing },
        };
        let pace = self.pace(context, &plan, streaming, machine);
        let share = plan.experts.map_or(1.0, |experts| experts as f64 / plan.all_experts.max(1) as f64);
        let memory = Memory {
            weights: plan.weights,
            experts: plan.experts,
            experts_share: share.min(1.0),
            state: plan.state,
            scratch: plan.scratch,
            program: plan.program,
            total: plan.total(),
            expected: plan.expected,
            chunk: plan.chunk,
        };
        Point {
            memory: Some(memory),
            decode: pace.as_ref().map(|pace| Rate::of(&pace.decode, 1)),
            prefill: pace.as_ref().map(|pace| Rate::of(&pace.chunk, pace.chunk_tokens)),
            first_token_seconds: pace.as_ref().map(|pace| pace.first_token),
            hit_rate: pace.as_ref().and_then(|pace| Some(pace.hits?.0)),
            read_bytes_per_token: pace.as_ref().and_then(|pace| Some(pace.hits?.1)),
            ..nothing
        }
    }

    fn files(&self, tokens: usize) -> SnapshotBytes {
        use fathom_kernels::Device;
        SnapshotBytes::of(&self.subject.config, &self.cpu.profile(), tokens)
    }

    fn snapshot(&self, tokens: usize, machine: &Machine) -> Snapshot {
        let files = self.files(tokens);
        let seconds = |rate: f64| files.total() as f64 / rate;
        Snapshot {
            bytes: files.total(),
            own_bytes: files.own,
            save_seconds: machine.drive.map(|drive| seconds(drive.write() * SAVE)),
            restore_seconds: machine.drive.map(|drive| seconds(drive.read_gbps * 1e9 * RESTORE)),
        }
    }

    /// A session is saved at the end of each prompt and answer, and on the way through a long prompt.
    fn wear(&self, machine: &Machine) -> Wear {
        let workload = self.questions.workload;
        let limit = self.subject.config.max_position_embeddings as f64;
        let tokens = (workload.tokens / workload.sessions).clamp(1.0, limit);
        let files = self.files(tokens as usize);
        let saves = 2.0 * workload.turns + (tokens / KEPT as f64).floor();
        let session = files.shared as f64 + saves * files.own as f64;
        let month = session * workload.sessions * DAYS;
        let endurance = machine.drive.and_then(|drive| drive.endurance_tb);
        let years = endurance.filter(|_| month > 0.0).map(|tb| tb * 1e12 / month / 12.0);
        Wear { workload, bytes_per_month: month, years }
    }
}

/// Answers the questions about a model on a machine. `cpu` has as many threads as the machine; nothing is computed on it.
pub fn report(subject: &Subject, machine: &Machine, cpu: &Cpu, questions: &Questions) -> Report {
    let planner = Planner { subject, cpu, questions };
    let streaming = Streaming::new(planner.speed(machine), questions.drawn);
    let points: Vec<Point> =
        questions.contexts.iter().map(|&context| planner.point(context, &streaming, machine)).collect();
    let fits = |point: &&Point| point.decode.is_some() && point.context <= 32_768;
    let at = points.iter().rev().find(fits).or(points.iter().find(|point| point.decode.is_some()));
    let faster_at = at.map(|point| point.context);
    let faster = faster_at.map_or_else(Vec::new, |context| faster(&planner, context, &streaming, machine));
    Report {
        model: subject.name.clone(),
        weight_bytes: subject.sizes.weights,
        machine: machine.clone(),
        budget: questions.budget,
        points,
        wear: planner.wear(machine),
        faster,
        faster_at,
    }
}
