//! Experts that are read as they are needed: what the simulator makes of them on a machine.

use std::cell::RefCell;
use std::collections::BTreeMap;

use fathom_model::touched;
use fathom_weights::experts::kept;

use super::efficiency::DRIVE;
use super::machine::Drive;
use super::speed::{Limit, Seconds, Speed};
use crate::simulate::{self, About, Keep, Outcome, Synthetic, Trace, replay};

/// Tokens that are drawn; the first half fills the memory and does not count.
const TOKENS: usize = 1200;
/// What a run's scores halve after, in tokens.
const HALF_LIFE: f64 = 1024.0;

/// What decides which experts tokens go to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Drawn {
    /// s of the experts' popularity, 1 ÷ rankˢ.
    pub skew: f64,
    /// The chance that a slot goes where one of the token before went.
    pub locality: f64,
    /// The chance that a guess of the next layer's experts is right.
    pub guess: f64,
}

impl Default for Drawn {
    fn default() -> Self {
        Drawn { skew: 0.9, locality: 0.1, guess: 0.75 }
    }
}

/// A model whose experts do not all fit.
pub struct Streaming<'a> {
    speed: Speed<'a>,
    trace: Trace,
    /// What was replayed already: the trace is the same for all contexts, and so is most of a token's time.
    done: RefCell<BTreeMap<(usize, u64, u64), Outcome>>,
}

impl<'a> Streaming<'a> {
    /// Draws what decode demands.
    pub fn new(speed: Speed<'a>, drawn: Drawn) -> Streaming<'a> {
        let about = About::of(speed.config, speed.sizes.expert_bytes / speed.sizes.count.max(1) as u64, HALF_LIFE);
        let Drawn { skew, locality, guess } = drawn;
        let trace = Synthetic { tokens: TOKENS, skew, locality, guess, seed: 1 }.trace(about);
        Streaming { speed, trace, done: RefCell::default() }
    }

    /// The same demands on another machine.
    pub fn with(&self, speed: Speed<'a>) -> Streaming<'a> {
        Streaming { speed, trace: self.trace.clone(), done: RefCell::default() }
    }

    /// What a token takes with so many bytes of experts in memory, where it takes `token` with all of them, and what the
    /// simulator says of hits.
    pub fn decode(&self, mut token: Seconds, memory: u64, drive: &Drive) -> (Seconds, Outcome) {
        let room = self.room(memory);
        let machine = self.machine(&token, drive);
        let key = (room, token.total().to_bits(), drive.read().to_bits());
        let out = *self
            .done
            .borrow_mut()
            .entry(key)
            .or_insert_with(|| replay(&self.trace, room, Keep::Scores, &machine, TOKENS as u64 / 2));
        let tokens = out.tokens.max(1) as f64;
        token.add(Limit::Drive, (out.seconds / tokens - token.total()).max(0.0));
        let missed = out.missed_bytes as f64 / tokens;
        token.reading = (missed + out.wasted_bytes as f64 / tokens) / (drive.read() * DRIVE);
        token.least = token.least.max(missed / drive.read());
        (token, out)
    }

    /// A chunk of a prompt that takes `pass` with all experts in memory: those that do not stay are read once. The `first` one
    /// finds none.
    pub fn chunk(&self, mut pass: Seconds, tokens: usize, memory: u64, drive: &Drive, first: bool) -> Seconds {
        let sizes = self.speed.sizes;
        let needed = touched(self.speed.config, tokens as f64) * self.speed.config.num_hidden_layers as f64;
        let stay = if first { 0.0 } else { kept(self.room(memory)) as f64 * needed / sizes.count.max(1) as f64 };
        let bytes = (needed - stay) * sizes.expert_bytes as f64 / sizes.count.max(1) as f64;
        pass.reading = bytes / (drive.read() * DRIVE);
        pass.add(Limit::Drive, (pass.reading - pass.total()).max(0.0));
        pass.least = pass.least.max(bytes / drive.read());
        pass
    }

    fn room(&self, memory: u64) -> usize {
        (memory / (self.speed.sizes.frame as u64).max(1)) as usize
    }

    fn machine(&self, token: &Seconds, drive: &Drive) -> simulate::Machine {
        let part = token.experts / token.total().max(1e-12);
        let machine = simulate::Machine::shared_out(&self.trace.about, token.total(), part);
        simulate::Machine { bandwidth: drive.read() * DRIVE, latency: drive.latency_us / 1e6, ..machine }
    }
}
