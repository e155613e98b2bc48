//! Rounds of work, server after server.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fathom_kernels::Ledger;
use tokio::task::JoinSet;

use super::numbers::{median, quantile};
use super::{
    Asked, Energy, INTERRUPTED, Item, Limits, Request, Round, Servers, Summary, Target, Tested, Watch, ask,
    interrupted, until_interrupted,
};

/// Failures in a row after which a server is left alone.
const ENOUGH: usize = 3;

/// A server to measure, and its ledger where it is part of this program.
pub struct Client {
    /// The server.
    pub target: Target,
    /// Its memory by part.
    pub ledger: Option<Ledger>,
}

/// How to measure.
pub struct Rounds<'a> {
    /// How often each server gets the work.
    pub rounds: u32,
    /// What a request may take.
    pub limits: Limits,
    /// The work of a round, from 1.
    pub items: &'a dyn Fn(u32) -> Vec<Item>,
    /// Gets what there is after every round of every server.
    pub keep: &'a mut dyn FnMut(&Servers) -> Result<(), String>,
    /// Hears what is being done.
    pub tell: &'a dyn Fn(&str),
}

impl Tested {
    fn of(target: &Target) -> Tested {
        Tested {
            name: target.name.clone(),
            url: target.url.to_string(),
            model: target.model.clone(),
            software: target.software.clone(),
            api: target.api,
            failed: None,
            summary: Summary::default(),
            rounds: Vec::new(),
            requests: Vec::new(),
            memory: Vec::new(),
            gaps: Vec::new(),
        }
    }
}

/// Puts the work to every server in turn, round after round; a server that fails too often is left out of what follows. The
/// order turns with each round. `servers` fills as it goes.
///
/// # Errors
/// What `keep` says; or, with all results kept, why they are not whole.
pub async fn measure(clients: &[Client], how: Rounds<'_>, servers: &mut Servers) -> Result<(), String> {
    servers.tested = clients.iter().map(|client| Tested::of(&client.target)).collect();
    let mut energy = Energy::open();
    servers.no_joules = energy.as_ref().err().cloned();
    for round in 1..=how.rounds {
        let items = (how.items)(round);
        for i in 0..clients.len() {
            let i = (i + round as usize - 1) % clients.len();
            if servers.tested[i].failed.is_some() {
                continue;
            }
            (how.tell)(&format!("round {round} of {}: {}", how.rounds, clients[i].target.name));
            one(&clients[i], &items, round, how.limits, energy.as_mut().ok(), &mut servers.tested[i]).await;
            (how.keep)(servers)?;
            if interrupted() {
                return Err(INTERRUPTED.to_owned());
            }
        }
    }
    let failed: Vec<String> =
        servers.tested.iter().filter_map(|t| Some(format!("{}: {}", t.name, t.failed.as_ref()?))).collect();
    if failed.is_empty() { Ok(()) } else { Err(failed.join("; ")) }
}

/// A request's place in the work, its lane, when it was sent, and what came.
type Done = (usize, usize, f64, Asked);

/// What lanes share.
struct Shared {
    target: Target,
    limits: Limits,
    start: Instant,
    done: Mutex<Vec<Done>>,
    in_a_row: AtomicUsize,
    enough: AtomicBool,
}

impl Shared {
    fn took(&self, done: Done) {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).push(done);
    }
}

async fn one(
    client: &Client,
    items: &[Item],
    round: u32,
    limits: Limits,
    mut energy: Option<&mut Energy>,
    tested: &mut Tested,
) {
    let watched = client.ledger.is_some() || client.target.pid.is_some();
    let watch = watched.then(|| Watch::start(client.target.pid, client.ledger.clone()));
    let joules_before = energy.as_deref_mut().map(Energy::joules);
    let shared = Arc::new(Shared {
        target: client.target.clone(),
        limits,
        start: Instant::now(),
        done: Mutex::default(),
        in_a_row: AtomicUsize::new(0),
        enough: AtomicBool::new(false),
    });
    let mut lanes: BTreeMap<usize, Vec<(usize, Item)>> = BTreeMap::new();
    for (index, item) in items.iter().enumerate() {
        lanes.entry(item.lane).or_default().push((index, item.clone()));
    }
    let mut running: JoinSet<()> =
        lanes.into_iter().map(|(number, items)| lane(Arc::clone(&shared), number, items)).collect();
    tokio::select! {
        () = async { while running.join_next().await.is_some() {} } => {}
        () = until_interrupted() => running.shutdown().await,
    }
    let seconds = shared.start.elapsed().as_secs_f64();
    let joules = energy.map(Energy::joules).zip(joules_before).map(|(after, before)| after - before);
    let points = watch.map(Watch::end).unwrap_or_default();
    let mut done = std::mem::take(&mut *shared.done.lock().unwrap_or_else(PoisonError::into_inner));
    done.sort_by_key(|&(index, ..)| index);
    // One of whose answers none came has failed, however few were asked.
    let none = !done.is_empty() && done.iter().all(|(.., asked)| asked.error.is_some());
    if shared.enough.load(Ordering::Relaxed) || none {
        let last = done.iter().rev().find_map(|(.., asked)| asked.error.clone()).unwrap_or_default();
        tested.failed = Some(format!("was given up: {last}"));
    }
    let good = done.iter().filter(|(.., asked)| asked.error.is_none());
    let output_tokens = good.map(|(.., asked)| asked.output()).sum::<u64>();
    tested.rounds.push(Round {
        seconds,
        errors: done.iter().filter(|(.., asked)| asked.error.is_some()).count(),
        output_tokens,
        output_per_second: output_tokens as f64 / seconds.max(1e-9),
        joules,
        peak_rss: points.iter().filter_map(|point| point.rss).max(),
    });
    let before = tested.memory.last().map_or(0.0, |point| point.seconds);
    tested.memory.extend(points.into_iter().map(|mut point| {
        point.seconds += before;
        point
    }));
    for (index, lane, started, asked) in done {
        let mut gaps: Vec<f64> = asked.pieces.windows(2).map(|w| (w[1] - w[0]) * 1000.0).collect();
        tested.requests.push(request(round, index, lane, started, &asked, &gaps));
        if asked.error.is_none() {
            tested.gaps.append(&mut gaps);
        }
    }
    tested.sum_up();
}

async fn lane(shared: Arc<Shared>, number: usize, items: Vec<(usize, Item)>) {
    for (index, item) in items {
        tokio::time::sleep_until((shared.start + item.at).into()).await;
        if shared.enough.load(Ordering::Relaxed) {
            return;
        }
        let started = shared.start.elapsed();
        let asked = ask(&shared.target, &item, shared.limits).await;
        let failures = if asked.error.is_some() { shared.in_a_row.fetch_add(1, Ordering::Relaxed) + 1 } else { 0 };
        if failures == 0 {
            shared.in_a_row.store(0, Ordering::Relaxed);
        }
        if failures >= ENOUGH || asked.hangs {
            shared.enough.store(true, Ordering::Relaxed);
        }
        shared.took((index, number, started.as_secs_f64(), asked));
        // A server that refuses at once is not to be flooded.
        if failures > 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

fn request(round: u32, index: usize, lane: usize, started: f64, asked: &Asked, gaps: &[f64]) -> Request {
    let spoke = asked.pieces.last().zip(asked.pieces.first()).map(|(last, first)| last - first);
    let after_first = asked.output().saturating_sub(1);
    let mut sorted = gaps.to_vec();
    sorted.sort_by(f64::total_cmp);
    Request {
        round,
        index,
        lane,
        started,
        first: asked.pieces.first().copied(),
        seconds: asked.seconds,
        prompt_tokens: asked.counted.prompt,
        cached_tokens: asked.counted.cached,
        output_tokens: asked.output(),
        output_per_second: spoke.filter(|&s| s > 0.0 && after_first > 0).map(|s| after_first as f64 / s),
        gap_ms: median(gaps),
        longest_gap_ms: quantile(&sorted, 1.0),
        error: asked.error.clone(),
    }
}
