//! What reading experts came to.

use std::fmt;
use std::ops::Sub;
use std::time::Duration;

use fathom_kernels::human;

/// Numbers of passes of one kind. All count from the start; the difference of two is what happened between.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Phase {
    /// Passes over the layers.
    pub passes: u64,
    /// Tokens in them.
    pub tokens: u64,
    /// Time that they took.
    pub time: Duration,
    /// Experts that were needed, each once for a pass and layer.
    pub demanded: u64,
    /// Of those, in memory when the pass began.
    pub hits: u64,
    /// Of the others, in memory when they were needed, because they had been read ahead.
    pub in_time: u64,
    /// And being read ahead when they were needed.
    pub late: u64,
    /// Bytes of demanded experts that were not in memory when the pass began.
    pub missed_bytes: u64,
    /// Of those, of layers whose experts are known from the tokens.
    pub missed_known_bytes: u64,
    /// Experts that were read ahead and not needed then, and their bytes.
    pub wasted: u64,
    /// See `wasted`.
    pub wasted_bytes: u64,
    /// Experts that the next layer was guessed to need, and those of them that it needed.
    pub guessed: u64,
    /// See `guessed`.
    pub guessed_right: u64,
    /// Experts that were read a second time in one pass.
    pub reread: u64,
    /// Time with nothing to compute until a read ended.
    pub stalled: Duration,
    /// Of that, in layers whose experts are known from the tokens.
    pub stalled_known: Duration,
}

impl Phase {
    /// The share of demanded experts that were in memory when the pass began.
    pub fn hit_rate(&self) -> f64 {
        self.hits as f64 / self.demanded.max(1) as f64
    }

    /// The share of guesses that were right.
    pub fn guess_accuracy(&self) -> f64 {
        self.guessed_right as f64 / self.guessed.max(1) as f64
    }
}

impl Sub for Phase {
    type Output = Phase;

    fn sub(self, o: Phase) -> Phase {
        Phase {
            passes: self.passes - o.passes,
            tokens: self.tokens - o.tokens,
            time: self.time - o.time,
            demanded: self.demanded - o.demanded,
            hits: self.hits - o.hits,
            in_time: self.in_time - o.in_time,
            late: self.late - o.late,
            missed_bytes: self.missed_bytes - o.missed_bytes,
            missed_known_bytes: self.missed_known_bytes - o.missed_known_bytes,
            wasted: self.wasted - o.wasted,
            wasted_bytes: self.wasted_bytes - o.wasted_bytes,
            guessed: self.guessed - o.guessed,
            guessed_right: self.guessed_right - o.guessed_right,
            reread: self.reread - o.reread,
            stalled: self.stalled - o.stalled,
            stalled_known: self.stalled_known - o.stalled_known,
        }
    }
}

/// What a cache of experts has done.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Stats {
    /// Passes with more than one token of a session.
    pub prefill: Phase,
    /// Passes of one token each.
    pub decode: Phase,
    /// Bytes read from drives, and with how many reads.
    pub read_bytes: u64,
    /// See `read_bytes`.
    pub reads: u64,
    /// Time in which at least one read was under way.
    pub reading: Duration,
    /// Reads that failed.
    pub failed: u64,
    /// Experts that memory has room for, and those that are in it.
    pub room: usize,
    /// See `room`.
    pub held: usize,
}

impl Stats {
    /// Bytes a second while something was being read.
    pub fn bandwidth(&self) -> f64 {
        self.read_bytes as f64 / self.reading.as_secs_f64().max(1e-9)
    }
}

impl Sub for Stats {
    type Output = Stats;

    /// What happened since `o`; what memory has room for and holds is as it is now.
    fn sub(self, o: Stats) -> Stats {
        Stats {
            prefill: self.prefill - o.prefill,
            decode: self.decode - o.decode,
            read_bytes: self.read_bytes - o.read_bytes,
            reads: self.reads - o.reads,
            reading: self.reading - o.reading,
            failed: self.failed - o.failed,
            ..self
        }
    }
}

impl fmt::Display for Stats {
    /// A line for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "read {} at {:.2} GB/s", human(self.read_bytes), self.bandwidth() / 1e9)?;
        for (name, phase) in [("prefill", &self.prefill), ("decode", &self.decode)] {
            if let Some(missed) = phase.missed_bytes.checked_div(phase.tokens) {
                let (hits, right) = (100.0 * phase.hit_rate(), 100.0 * phase.guess_accuracy());
                let (missed, stalled) = (human(missed), phase.stalled.as_secs_f64());
                write!(f, "; {name}: hits {hits:.1} %, missed {missed} a token, guesses right {right:.0} %")?;
                write!(f, ", waited {stalled:.2} s")?;
            }
        }
        Ok(())
    }
}
