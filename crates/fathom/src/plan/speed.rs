//! How long passes take: what `fathom_model::pieces` counts, on a machine's rates, at what each kernel reaches of them.

use fathom_kernels::Format;
use fathom_model::{Cost, Formats, Kernel, Stretch, pieces};
use fathom_weights::{Config, Sizes};
use serde::Serialize;

use super::efficiency::{CALL, Class, Efficiency, efficiency};
use super::machine::Machine;

/// What holds a pass up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Weights come no faster.
    MemoryBandwidth,
    /// Products in f32 or bfloat16, and what lies between them.
    FloatRate,
    /// Products of FP4 experts in int8.
    IntegerRate,
    /// Keys: attention and the indexer.
    AttentionAtDepth,
    /// Threads beginning together, many times for little work.
    Calls,
    /// Experts come from the drive no faster.
    Drive,
}

impl Limit {
    /// All of them.
    pub const ALL: [Limit; 6] = [
        Limit::MemoryBandwidth,
        Limit::FloatRate,
        Limit::IntegerRate,
        Limit::AttentionAtDepth,
        Limit::Calls,
        Limit::Drive,
    ];

    /// For people.
    pub fn words(self) -> &'static str {
        match self {
            Limit::MemoryBandwidth => "memory bandwidth",
            Limit::FloatRate => "f32 rate",
            Limit::IntegerRate => "integer rate",
            Limit::AttentionAtDepth => "attention at depth",
            Limit::Calls => "threads' calls",
            Limit::Drive => "drive",
        }
    }
}

/// Where the time of a pass goes.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Seconds {
    by: [f64; 6],
    /// Of all, what routed experts take.
    pub experts: f64,
    /// What it would take at the peaks: the larger of reading and computing.
    pub least: f64,
    /// What drives take to read, beside the rest or waited for.
    pub reading: f64,
}

impl Seconds {
    /// All of it.
    pub fn total(&self) -> f64 {
        self.by.iter().sum()
    }

    /// What one limit takes.
    pub fn of(&self, limit: Limit) -> f64 {
        self.by[limit as usize]
    }

    /// What takes most: the drive, where it reads for longer than all else takes.
    pub fn bottleneck(&self) -> Limit {
        if self.reading > self.total() - self.of(Limit::Drive) {
            return Limit::Drive;
        }
        let most = Limit::ALL.into_iter().max_by(|a, b| self.of(*a).total_cmp(&self.of(*b)));
        most.unwrap_or(Limit::MemoryBandwidth)
    }

    /// Adds to a limit.
    pub fn add(&mut self, limit: Limit, seconds: f64) {
        self.by[limit as usize] += seconds;
    }
}

/// A prompt of more chunks than this is told from so many of them, evenly taken: the others lie between.
const CHUNKS: usize = 4096;

/// The chunks in which the tokens from `from` to `to` are read: the start of each, its tokens, and for how many it stands.
pub(super) fn chunks(from: usize, to: usize, chunk: usize) -> impl Iterator<Item = (usize, usize, f64)> {
    let chunk = chunk.max(1);
    let all = to.saturating_sub(from).div_ceil(chunk);
    let each = all.div_ceil(CHUNKS).max(1);
    (0..all).step_by(each).map(move |first| {
        // The last of those for which it stands.
        let like = each.min(all - first);
        let start = from + (first + like - 1) * chunk;
        (start, chunk.min(to - start), like as f64)
    })
}

/// A model on a machine.
#[derive(Debug, Clone, Copy)]
pub struct Speed<'a> {
    /// The model's.
    pub config: &'a Config,
    /// Its weights.
    pub sizes: &'a Sizes,
    /// The machine.
    pub machine: &'a Machine,
    /// Whether FP4 weights meet int8 inputs and FP8 weights bfloat16: the native profile.
    pub native: bool,
}

impl Speed<'_> {
    /// A pass with all weights in memory, that ends in `outputs` rows of logits.
    pub fn pass(&self, pass: &[Stretch], outputs: usize) -> Seconds {
        let formats = Formats {
            matrices: self.sizes.matrices,
            shared: self.sizes.shared,
            experts: &self.sizes.experts,
            fp4_in_int8: self.native,
        };
        let (mut seconds, mut all) = (Seconds::default(), Cost::default());
        pieces(self.config, formats, pass, outputs, |_, piece| {
            let e = self.reaches(piece.kernel);
            let Cost { bytes, flops, int8 } = piece.cost;
            let call = piece.calls * CALL;
            seconds.add(Limit::Calls, call);
            if piece.kernel == Kernel::Between {
                let of = if piece.alone { 1.0 } else { e.memory };
                seconds.add(Limit::FloatRate, bytes / self.read() / of);
                return;
            }
            all += Cost { flops: if self.in_bf16(piece.kernel) { flops / 2.0 } else { flops }, ..piece.cost };
            let reading = bytes / self.read() / e.memory;
            let computing = self.computing(flops, int8) / e.arithmetic(piece.sharing, piece.width, piece.alone);
            let taken = reading.max(computing);
            let limit = match piece.kernel {
                Kernel::AttendAll | Kernel::AttendChosen | Kernel::Index => Limit::AttentionAtDepth,
                _ if reading > computing => Limit::MemoryBandwidth,
                _ if int8 > 0.0 => Limit::IntegerRate,
                _ => Limit::FloatRate,
            };
            seconds.add(limit, taken);
            if let Kernel::Experts(_) = piece.kernel {
                seconds.experts += taken + call;
            }
        });
        seconds.least = (all.bytes / self.read()).max(self.computing(all.flops, all.int8));
        seconds
    }

    /// Whether products go twice as fast as f32's peak.
    fn in_bf16(&self, kernel: Kernel) -> bool {
        let fits = match kernel {
            Kernel::Matrix(format) | Kernel::Experts(format) => format == Format::Fp8,
            Kernel::AttendAll | Kernel::AttendChosen => true,
            Kernel::Index | Kernel::Between => false,
        };
        fits && self.native && Class::of(&self.machine.isa) == Class::Bf16
    }

    fn read(&self) -> f64 {
        self.machine.read_gbps * 1e9
    }

    fn computing(&self, flops: f64, int8: f64) -> f64 {
        flops / (self.machine.f32_gflops * 1e9) + int8 / (self.machine.int8_tops * 1e12)
    }

    /// In the exact profile nothing is rounded: all is f32, and its kernels are those of BF16 weights.
    fn reaches(&self, kernel: Kernel) -> Efficiency {
        let class = Class::of(&self.machine.isa);
        match kernel {
            Kernel::Matrix(_) | Kernel::Experts(_) if !self.native => efficiency(Kernel::Matrix(Format::Bf16), class),
            Kernel::AttendAll | Kernel::AttendChosen if !self.native && class == Class::Bf16 => {
                efficiency(kernel, Class::Avx512)
            }
            kernel => efficiency(kernel, class),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_all_there_or_stand_for_all() {
        let few: Vec<_> = chunks(3, 10, 4).collect();
        assert_eq!(few, [(3, 4, 1.0), (7, 3, 1.0)]);
        assert_eq!(chunks(5, 5, 4).count() + chunks(9, 5, 4).count(), 0);
        for (to, chunk) in [(CHUNKS * 3 + 1, 1), (1 << 20, 7), (1 << 24, 1)] {
            let many: Vec<_> = chunks(0, to, chunk).collect();
            assert!(many.len() <= CHUNKS && many.last().is_some_and(|&(start, n, _)| start + n == to));
            assert_eq!(many.iter().map(|&(.., like)| like as usize).sum::<usize>(), to.div_ceil(chunk));
        }
    }
}
