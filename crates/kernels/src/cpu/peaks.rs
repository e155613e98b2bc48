//! What this machine could do at best: the rooflines that benchmarks stand under.

use std::hint::black_box;
use std::time::Instant;

use crate::simd::{Kernel, LANES, Simd};
use crate::{Buffer, Cpu, Error};

/// The best of a few short measurements, all threads together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Peaks {
    /// Bytes read from memory in a second, in order.
    pub read_bytes: f64,
    /// f32 operations in a second; a fused multiply-add counts two.
    pub f32_flops: f64,
    /// Operations on int8 in a second, sums in 32 bits; a multiply-add counts two.
    pub int8_ops: f64,
}

/// Bytes read: far more than any cache holds.
const BYTES: usize = 512 << 20;
/// Measurements, of which the best counts.
const RUNS: usize = 7;

/// Sums f32.
struct Read<'a>(&'a [f32]);

impl Kernel for Read<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f32 {
        let mut sums = [s.splat(0.0); 4];
        for part in self.0.chunks_exact(4 * LANES) {
            for i in 0..4 {
                // SAFETY: the part has 64 values.
                sums[i] = s.add(sums[i], unsafe { s.load(part.as_ptr().add(i * LANES)) });
            }
        }
        s.sum(s.add(s.add(sums[0], sums[1]), s.add(sums[2], sums[3])))
    }
}

/// Fused multiply-adds in registers; returns how many operations.
struct Multiply(usize);

impl Kernel for Multiply {
    type Output = f64;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        if S::WIDE { chains::<S, 12>(s, self.0) } else { chains::<S, 6>(s, self.0) }
    }
}

#[inline(always)]
fn chains<S: Simd, const N: usize>(s: S, rounds: usize) -> f64 {
    let (a, b) = (s.splat(black_box(0.5)), s.splat(black_box(0.25)));
    let mut sums = [s.splat(1.0); N];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = s.fma(*sum, a, b);
        }
    }
    black_box(sums.map(|sum| s.sum(sum)));
    (2 * LANES * N * rounds) as f64
}

/// Integer products in registers; returns how many operations.
struct Integers(usize);

impl Kernel for Integers {
    type Output = f64;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> f64 {
        s.int8_products(self.0) as f64
    }
}

impl Cpu {
    /// Measures this machine, for about a second.
    ///
    /// # Errors
    /// [`Error::Map`]: the system has no memory to read.
    pub fn peaks(&self) -> Result<Peaks, Error> {
        self.peaks_of(BYTES)
    }

    /// The same with so many bytes of memory to read: what caches hold of them counts as read.
    ///
    /// # Errors
    /// [`Error::Map`]: the system has no memory to read.
    pub fn peaks_of(&self, bytes: usize) -> Result<Peaks, Error> {
        let mut memory = Buffer::probe(bytes.max(4 * LANES * 4 * self.threads()).next_multiple_of(4096))?;
        memory.f32_mut().fill(1.0);
        let memory = memory.f32();
        let threads = self.threads();
        let best = |work: &(dyn Fn(usize) -> f64 + Sync)| {
            let run = |_| {
                let start = Instant::now();
                let done = std::sync::Mutex::new(0.0);
                self.pool.each(threads, |i| {
                    let some = work(i);
                    *done.lock().unwrap_or_else(std::sync::PoisonError::into_inner) += some;
                });
                let done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
                done / start.elapsed().as_secs_f64()
            };
            (0..RUNS).map(run).fold(0.0, f64::max)
        };
        let part = memory.len() / threads;
        Ok(Peaks {
            read_bytes: best(&|i| {
                let part = &memory[i * part..(i + 1) * part];
                black_box(self.isa.run(Read(part)));
                size_of_val(part) as f64
            }),
            f32_flops: best(&|_| self.isa.run(Multiply(2_000_000))),
            int8_ops: best(&|_| self.isa.run(Integers(2_000_000))),
        })
    }
}
