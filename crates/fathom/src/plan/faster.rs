//! What to change first: the same plan with one thing twice as good.

use serde::Serialize;

use super::machine::Machine;
use super::memory::Plan;
use super::report::Planner;
use super::stream::Streaming;

/// Less than this is not worth telling.
const LEAST: f64 = 1.02;

/// One thing twice as good, or an option.
#[derive(Debug, Clone, Serialize)]
pub struct Change {
    /// Which.
    pub what: String,
    /// How many times as fast decode is then.
    pub decode: f64,
    /// How many times as fast the first token comes then.
    pub first_token: f64,
}

/// What makes a model faster with a context, best first.
pub(super) fn faster(
    planner: &Planner<'_>,
    context: usize,
    streaming: &Streaming<'_>,
    machine: &Machine,
) -> Vec<Change> {
    let with = |machine: &Machine, plan: Plan| {
        let streaming = streaming.with(planner.speed(machine));
        let pace = planner.pace(context, &plan, &streaming, machine)?;
        Some((pace.decode.total(), pace.first_token))
    };
    let pace = |machine: &Machine, budget: u64| with(machine, planner.plan(context, budget).ok()?);
    let budget = planner.questions.budget;
    let Some(now) = pace(machine, budget) else { return Vec::new() };
    let wider = planner.plan(context, budget).map_or(0, |plan| 4 * plan.chunk).min(context);
    let wide = planner.plan_with(context, budget, Some(wider)).ok().filter(|_| planner.questions.chunk.is_none());
    let memory = Machine { read_gbps: 2.0 * machine.read_gbps, ..machine.clone() };
    let cores = Machine { f32_gflops: 2.0 * machine.f32_gflops, int8_tops: 2.0 * machine.int8_tops, ..machine.clone() };
    let mut drive = machine.clone();
    if let Some(drive) = &mut drive.drive {
        drive.read_gbps *= 2.0;
    }
    let changes = [
        ("twice the memory bandwidth".to_owned(), pace(&memory, budget)),
        ("twice the cores".to_owned(), pace(&cores, budget)),
        ("a drive twice as fast, or a second one".to_owned(), pace(&drive, budget)),
        ("twice the memory".to_owned(), pace(machine, budget.saturating_mul(2))),
        (format!("--prefill-chunk {wider}"), wide.and_then(|plan| with(machine, plan))),
    ];
    let mut all: Vec<Change> = changes
        .into_iter()
        .filter_map(|(what, then)| {
            let (decode, first_token) = then?;
            Some(Change { what, decode: now.0 / decode, first_token: now.1 / first_token })
        })
        .filter(|change| change.decode.max(change.first_token) > LEAST)
        .collect();
    all.sort_by(|a, b| (b.decode * b.first_token).total_cmp(&(a.decode * a.first_token)));
    all
}
