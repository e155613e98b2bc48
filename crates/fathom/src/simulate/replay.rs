//! The replay: a clock, a queue of reads, and a cache that forgets what is worth least.

use std::collections::BTreeSet;

use fathom_weights::experts::Policy;

use super::trace::{About, Demand, Trace};

/// What decides how long things take.
#[derive(Debug, Clone, Copy)]
pub struct Machine {
    /// Seconds that a token takes in a layer before its experts are known, and beside them.
    pub before: f64,
    /// See `before`: the shared expert.
    pub beside: f64,
    /// Seconds that an expert takes for a token.
    pub expert: f64,
    /// Bytes a second that the drives give together.
    pub bandwidth: f64,
    /// Seconds from asking to the first byte.
    pub latency: f64,
    /// Seconds of computing that reading a byte takes away: cores and memory that the system needs for it.
    pub cost: f64,
}

impl Machine {
    /// One that takes `token` seconds for a token with all experts in memory, `experts` of that for the routed ones, and whose
    /// drives give all at once.
    pub fn shared_out(about: &About, token: f64, experts: f64) -> Machine {
        let layer = token / about.layers as f64;
        let rest = layer * (1.0 - experts);
        Machine {
            before: rest * 0.9,
            beside: rest * 0.1,
            expert: layer * experts / about.slots as f64,
            bandwidth: f64::INFINITY,
            latency: 0.0,
            cost: 0.0,
        }
    }
}

/// What is forgotten when there is no more room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Keep {
    /// What was used least, as [`Policy`] counts: what fathom does
    Scores,
    /// What was used longest ago
    Lru,
    /// What will be used last: the best there is, for who knows the future
    Best,
}

/// What a replay came to.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Outcome {
    /// Tokens.
    pub tokens: usize,
    /// Experts demanded.
    pub demanded: u64,
    /// In memory when their token began.
    pub hits: u64,
    /// Read ahead and there when they were needed.
    pub in_time: u64,
    /// Bytes demanded and not in memory when their token began.
    pub missed_bytes: u64,
    /// Bytes read ahead for nothing.
    pub wasted_bytes: u64,
    /// Time in all.
    pub seconds: f64,
    /// Of that, waiting for reads.
    pub stalled: f64,
    /// Of that, in hash layers.
    pub stalled_known: f64,
}

impl Outcome {
    /// Hits ÷ demanded.
    pub fn hit_rate(&self) -> f64 {
        self.hits as f64 / self.demanded.max(1) as f64
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Held {
    No,
    /// From this time on.
    At(f64),
}

struct Cache<'a> {
    machine: &'a Machine,
    bytes: u64,
    experts: usize,
    held: Vec<Held>,
    /// What is here, by what it is worth; and under which worth each is there.
    order: BTreeSet<(u64, u32)>,
    key: Vec<u64>,
    room: usize,
    policy: Policy,
    keep: Keep,
    /// When each was used last, or will be next, where that decides.
    when: Vec<u64>,
    /// Read ahead, and not used since; asked for ahead and to stay until its layer has come.
    ahead: Vec<bool>,
    soon: Vec<bool>,
    /// When the drives are done with what they have.
    free: f64,
    /// Seconds that reads asked for took from computing, and that have not been added yet.
    debt: f64,
    out: Outcome,
}

/// Replays a trace with room for so many experts. The first `skip` passes count for nothing but what they leave in memory.
pub fn replay(trace: &Trace, room: usize, keep: Keep, machine: &Machine, skip: u64) -> Outcome {
    let about = &trace.about;
    let count = about.layers * about.experts;
    let mut policy = Policy::new(count, about.half_life);
    policy.restore(&about.counts);
    let mut cache = Cache {
        machine,
        bytes: about.expert_bytes,
        experts: about.experts,
        held: vec![Held::No; count],
        order: BTreeSet::new(),
        key: vec![0; count],
        room: room.clamp(about.slots, count),
        policy,
        keep,
        when: vec![0; count],
        ahead: vec![false; count],
        soon: vec![false; count],
        free: 0.0,
        debt: 0.0,
        out: Outcome::default(),
    };
    cache.warm();
    let future = if keep == Keep::Best { next_uses(trace) } else { Vec::new() };
    let mut now = 0.0;
    let mut begin = 0.0;
    let mut at = 0;
    let mut passes = 0;
    while at < trace.demands.len() {
        let pass = trace.demands[at].pass;
        let end = at + trace.demands[at..].iter().take_while(|demand| demand.pass == pass).count();
        if passes == skip {
            (cache.out, begin) = (Outcome::default(), now);
        }
        passes += 1;
        let uses = future.get(at..end).unwrap_or(&[]);
        now = cache.pass(&trace.demands[at..end], about.hash_layers, uses, now);
        at = end;
    }
    cache.out.seconds = now - begin;
    cache.out
}

/// For each demand and each of its experts: the number of the demand that uses it next.
fn next_uses(trace: &Trace) -> Vec<Vec<u64>> {
    let experts = trace.about.experts;
    let mut next = vec![u64::MAX; trace.about.layers * experts];
    let mut all: Vec<Vec<u64>> = Vec::with_capacity(trace.demands.len());
    for (at, demand) in trace.demands.iter().enumerate().rev() {
        let uses = demand.experts.iter().map(|&e| {
            let slot = &mut next[demand.layer * experts + e as usize];
            std::mem::replace(slot, at as u64)
        });
        all.push(uses.collect());
    }
    all.reverse();
    all
}

impl Cache<'_> {
    /// What earlier runs used most is there.
    fn warm(&mut self) {
        let mut order: Vec<usize> = (0..self.held.len()).filter(|&e| self.policy.score(e) > 0.0).collect();
        order.sort_by(|&a, &b| self.policy.score(b).total_cmp(&self.policy.score(a)));
        for &expert in order.iter().take(self.room) {
            self.held[expert] = Held::At(0.0);
            self.insert(expert);
        }
    }

    /// A pass over the layers; returns when it ends.
    fn pass(&mut self, demands: &[Demand], hash_layers: usize, uses: &[Vec<u64>], start: f64) -> f64 {
        let rows = demands.first().map_or(1, |demand| demand.rows);
        self.out.tokens += rows;
        self.policy.tokens(rows);
        let mut now = start;
        let there: Vec<Held> = self.held.clone();
        let index = |demand: &Demand, expert: u32| demand.layer * self.experts + expert as usize;
        let known: Vec<usize> = demands
            .iter()
            .filter(|demand| demand.layer < hash_layers)
            .flat_map(|demand| demand.experts.iter().map(move |&e| (demand, e)))
            .map(|(demand, e)| index(demand, e))
            .collect();
        self.read_ahead(&known, now);
        for (i, demand) in demands.iter().enumerate() {
            now += self.machine.before * rows as f64 + std::mem::take(&mut self.debt);
            let wanted: Vec<usize> = demand.experts.iter().map(|&e| demand.layer * self.experts + e as usize).collect();
            for (&expert, &tokens) in wanted.iter().zip(&demand.tokens) {
                self.policy.used(expert, tokens);
                self.revalue(expert);
                self.soon[expert] = true;
                let hit = matches!(there[expert], Held::At(since) if since <= start);
                let in_time = !hit && matches!(self.held[expert], Held::At(since) if since <= now);
                self.out.demanded += 1;
                self.out.hits += u64::from(hit);
                self.out.in_time += u64::from(in_time);
                self.out.missed_bytes += if hit { 0 } else { self.bytes };
            }
            for &expert in &wanted {
                if self.held[expert] == Held::No {
                    self.read(expert, now, false);
                }
                self.ahead[expert] = false;
            }
            if let Some(next) = demands.get(i + 1).filter(|next| next.layer >= hash_layers) {
                let guessed: Vec<usize> =
                    next.guessed.iter().map(|&e| next.layer * self.experts + e as usize).collect();
                self.read_ahead(&guessed, now);
            }
            now += self.machine.beside * rows as f64;
            now = self.compute(&wanted, &demand.tokens, now, demand.layer < hash_layers);
            for (j, &expert) in wanted.iter().enumerate() {
                self.soon[expert] = false;
                self.when[expert] = match uses.get(i) {
                    Some(next) => u64::MAX - next[j],
                    None => self.out.demanded,
                };
                self.revalue(expert);
            }
            self.forget_guesses(demand.layer);
        }
        now
    }

    /// Computes experts as they come; returns when that is done.
    fn compute(&mut self, wanted: &[usize], tokens: &[usize], start: f64, known: bool) -> f64 {
        let mut order: Vec<(f64, usize)> = wanted
            .iter()
            .zip(tokens)
            .map(|(&expert, &n)| (if let Held::At(since) = self.held[expert] { since } else { start }, n))
            .collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut now = start;
        for (since, n) in order {
            let wait = (since - now).max(0.0);
            self.out.stalled += wait;
            self.out.stalled_known += if known { wait } else { 0.0 };
            now += wait + self.machine.expert * n as f64;
        }
        now
    }

    fn read_ahead(&mut self, experts: &[usize], now: f64) {
        experts.iter().for_each(|&expert| self.soon[expert] = true);
        for &expert in experts {
            if self.held[expert] == Held::No {
                self.read(expert, now, true);
            }
        }
    }

    /// What was asked for ahead in a layer that has come, and was not needed.
    fn forget_guesses(&mut self, layer: usize) {
        for expert in layer * self.experts..(layer + 1) * self.experts {
            self.soon[expert] = false;
            if std::mem::take(&mut self.ahead[expert]) {
                self.out.wasted_bytes += self.bytes;
            }
        }
    }

    fn read(&mut self, expert: usize, now: f64, ahead: bool) {
        // Where nothing can be forgotten, what is urgent takes a place for this once.
        if self.order.len() >= self.room && !self.forget_one(!ahead) && ahead {
            return;
        }
        self.free = self.free.max(now) + self.bytes as f64 / self.machine.bandwidth;
        self.debt += self.bytes as f64 * self.machine.cost;
        self.held[expert] = Held::At(self.free + self.machine.latency);
        self.insert(expert);
        self.ahead[expert] = ahead;
    }

    /// What an expert is worth now: a number that orders as it does.
    fn worth(&self, expert: usize) -> u64 {
        match self.keep {
            // Scores are no less than 0.
            Keep::Scores => self.policy.score(expert).to_bits(),
            Keep::Lru | Keep::Best => self.when[expert],
        }
    }

    fn insert(&mut self, expert: usize) {
        self.key[expert] = self.worth(expert);
        self.order.insert((self.key[expert], expert as u32));
    }

    /// What an expert is worth has changed.
    fn revalue(&mut self, expert: usize) {
        if self.order.remove(&(self.key[expert], expert as u32)) {
            self.insert(expert);
        }
    }

    /// Forgets what is worth least; that which is to stay only where there is nothing else.
    fn forget_one(&mut self, urgent: bool) -> bool {
        let stays = self.order.iter().find(|(_, expert)| !self.soon[*expert as usize]);
        let Some(&first) = stays.or_else(|| self.order.first().filter(|_| urgent)) else { return false };
        self.order.remove(&first);
        let expert = first.1 as usize;
        self.held[expert] = Held::No;
        if std::mem::take(&mut self.ahead[expert]) {
            self.out.wasted_bytes += self.bytes;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::{About, Synthetic};

    const MACHINE: Machine =
        Machine { before: 1e-3, beside: 1e-4, expert: 1e-4, bandwidth: 1e9, latency: 1e-4, cost: 0.0 };

    fn trace(skew: f64, guess: f64) -> Trace {
        let about = About {
            layers: 6,
            experts: 64,
            slots: 4,
            hash_layers: 1,
            expert_bytes: 1_000_000,
            room: 0,
            half_life: 256.0,
            counts: Vec::new(),
        };
        Synthetic { tokens: 500, skew, locality: 0.2, guess, seed: 3 }.trace(about)
    }

    #[test]
    fn what_is_known_beforehand_comes_out() {
        let trace = trace(1.0, 0.0);
        let all = replay(&trace, usize::MAX, Keep::Scores, &MACHINE, 400);
        // All in memory: computing alone.
        let computing = 6.0 * (1e-3 + 1e-4 + 4.0 * 1e-4);
        assert_eq!(all.tokens, 100);
        assert!(all.hit_rate() > 0.97 && all.seconds / 100.0 < 1.05 * computing, "{all:?}");
        // Nothing in memory, and drives that decide: bytes ÷ bandwidth.
        let slow = Machine { bandwidth: 1e7, ..MACHINE };
        let none = replay(&trace, 4, Keep::Scores, &slow, 0);
        let reading = none.missed_bytes as f64 / 1e7;
        assert!((none.seconds / reading - 1.0).abs() < 0.1, "{none:?} {reading}");
        // A drive that takes nothing but the cores: computing, and that.
        let busy = Machine { bandwidth: 1e15, latency: 0.0, cost: 1e-9, ..MACHINE };
        let taken = replay(&trace, 4, Keep::Scores, &busy, 0);
        // What was there when its token began, and was forgotten for another before it was used, is read too.
        let read = |experts: u64| 500.0 * computing + experts as f64 * 1e6 * 1e-9;
        let (least, most) = (read(taken.demanded - taken.hits), read(taken.demanded));
        assert!((least - 1e-6..most + 1e-6).contains(&taken.seconds), "{taken:?} {least} {most}");
    }

    #[test]
    fn better_policies_hit_more_and_guesses_hide_reads() {
        let trace = trace(1.0, 0.9);
        let hits = |keep| replay(&trace, 100, keep, &MACHINE, 100).hit_rate();
        let (scores, lru, best) = (hits(Keep::Scores), hits(Keep::Lru), hits(Keep::Best));
        assert!(best > scores && scores > lru, "{best} {scores} {lru}");
        let blind = super::tests::trace(1.0, 0.0);
        let stalled = |trace: &Trace| replay(trace, 100, Keep::Scores, &MACHINE, 100).stalled;
        assert!(stalled(&trace) < 0.7 * stalled(&blind));
    }
}
