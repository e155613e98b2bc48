//! How fast a model reads and writes at given depths, beside what the machine could do.

use std::io::Write;
use std::time::Instant;

use fathom_engine::prefill;
use fathom_kernels::{Cpu, Device, Peaks, Profile, Share, human};
use fathom_model::{Cost, LogitsWanted, Model, Segment, State};
use serde_json::json;

use super::Args;
use crate::bench;
use crate::cli::Outcome;
use crate::cli::model::{Files, Loaded, load};
use crate::ui::{Progress, commas, forget_peak, out, peak_rss, say};

/// Runs of each test, where nobody says.
const RUNS: u32 = 5;

/// Random tokens, the same in every run of the program (SplitMix64).
pub(super) struct Tokens {
    state: u64,
    vocab: u64,
}

impl Tokens {
    /// From the beginning.
    pub fn new(vocab: usize) -> Tokens {
        Tokens { state: 1, vocab: vocab as u64 }
    }

    /// The next few.
    pub fn take(&mut self, n: usize) -> Vec<u32> {
        (0..n).map(|_| self.next()).collect()
    }

    fn next(&mut self) -> u32 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % self.vocab) as u32
    }
}

/// As [`Outcome`], between threads.
type Timed = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// What a run does.
#[derive(Clone, Copy)]
enum Test {
    Prefill,
    Decode,
}

struct Bench<'a> {
    args: &'a Args,
    loaded: &'a Loaded,
    tokens: Tokens,
    runs: Vec<Run>,
}

/// One run, and what the machine could do just before it: a neighbour takes its share of both.
struct Run {
    tokens_per_second: f64,
    fraction_of_bandwidth: f64,
    fraction_of_compute: f64,
    peaks: Peaks,
    rss: Option<u64>,
}

/// The median of what `of` says of the runs.
fn median(runs: &[Run], of: impl Fn(&Run) -> f64) -> f64 {
    bench::median(&runs.iter().map(of).collect::<Vec<_>>()).unwrap_or(f64::NAN)
}

/// Times a model.
pub fn depths(args: &Args) -> Outcome {
    let files = Files::open(args.model.as_deref())?;
    let mut depths: Vec<usize> = args.depth.iter().map(|&depth| depth as usize).collect();
    depths.sort_unstable();
    depths.dedup();
    let longest = args.prefill.iter().chain(&args.decode).max().map_or(0, |&n| n as usize);
    let deepest = depths.last().copied().unwrap_or(0);
    let limit = files.checkpoint.config().max_position_embeddings;
    let most = deepest + longest;
    if most > limit {
        return Err(
            format!("depth {deepest} and {longest} tokens more make {most}, but the model holds {limit}").into()
        );
    }
    let loaded = load(&files, &args.options, Some(most))?;
    let model = &loaded.model;
    // A fork owns its open page and those it adds; the rest it shares.
    let forked = model.state_bytes((longest + 2048).min(most));
    model.device().ledger().limit(Share::State, loaded.plan.state + forked);
    say!("{}", loaded.describe(&files.name, files.checkpoint.release()));
    say!("memory: {}", loaded.plan);
    let tokens = Tokens::new(model.config().vocab_size);
    let mut bench = Bench { args, loaded: &loaded, tokens, runs: Vec::new() };
    model.device().scope(|| bench.all(&depths)).map_err(|e| e as Box<dyn std::error::Error>)
}

impl Bench<'_> {
    fn all(&mut self, depths: &[usize]) -> Timed {
        let model = &*self.loaded.model;
        let mut base = model.new_state()?;
        if !self.args.json {
            writeln!(
                out(),
                "{:8} {:>8} {:>10} {:>12} {:>12} {:>12} {:>10} {:>8} {:>12}",
                "test",
                "tokens",
                "depth",
                "tokens/s",
                "min",
                "max",
                "of memory",
                "of f32",
                "peak RSS"
            )?;
        }
        for &depth in depths {
            self.deepen(&mut base, depth)?;
            for &n in &self.args.prefill {
                self.test(&base, Test::Prefill, n as usize)?;
            }
            for &n in &self.args.decode {
                self.test(&base, Test::Decode, n as usize)?;
            }
        }
        if !self.runs.is_empty() {
            let machine = |of: fn(&Peaks) -> f64| median(&self.runs, |run| of(&run.peaks));
            say!(
                "machine, median before each run: reads {:.1} GB/s, f32 {:.0} Gflop/s, int8 {:.2} Top/s",
                machine(|p| p.read_bytes) / 1e9,
                machine(|p| p.f32_flops) / 1e9,
                machine(|p| p.int8_ops) / 1e12
            );
        }
        Ok(())
    }

    /// Reads random tokens up to `depth`.
    fn deepen(&mut self, base: &mut State<Cpu>, depth: usize) -> Result<(), fathom_model::Error> {
        let from = base.position();
        let tokens = self.tokens.take(depth - from);
        let mut progress = Progress::new(tokens.len(), false);
        prefill(&*self.loaded.model, base, &tokens, self.chunk(), &mut |done| {
            progress.update(done, "");
            std::ops::ControlFlow::Continue(())
        })?;
        progress.finish();
        Ok(())
    }

    fn chunk(&self) -> usize {
        self.loaded.chunk
    }

    fn test(&mut self, base: &State<Cpu>, test: Test, n: usize) -> Timed {
        let model = &*self.loaded.model;
        let cost = self.cost(model, test, base.position(), n);
        let mut runs = Vec::new();
        // The first run warms caches and brings the weights in.
        for warm in (0..=self.args.runs.unwrap_or(RUNS)).map(|run| run > 0) {
            let peaks = if warm { Some(model.device().peaks()?) } else { None };
            // What the probe held is no part of the run.
            forget_peak();
            let mut state = model.fork(base)?;
            let tokens = self.tokens.take(n);
            let start = Instant::now();
            match test {
                Test::Prefill => {
                    prefill(model, &mut state, &tokens, self.chunk(), &mut |_| std::ops::ControlFlow::Continue(()))?;
                }
                Test::Decode => {
                    for token in &tokens {
                        let tokens = std::slice::from_ref(token);
                        model.forward(&mut [Segment { state: &mut state, tokens, logits: LogitsWanted::Last }])?;
                    }
                }
            }
            let seconds = start.elapsed().as_secs_f64();
            runs.extend(peaks.map(|peaks| Run {
                tokens_per_second: n as f64 / seconds,
                fraction_of_bandwidth: cost.bytes / peaks.read_bytes / seconds,
                fraction_of_compute: (cost.flops / peaks.f32_flops + cost.int8 / peaks.int8_ops) / seconds,
                peaks,
                rss: peak_rss(),
            }));
        }
        self.report(test, base.position(), n, &runs, cost)?;
        self.runs.extend(runs);
        Ok(())
    }

    /// What a run needs at least.
    fn cost(&self, model: &Model<Cpu>, test: Test, depth: usize, n: usize) -> Cost {
        let chunk = match test {
            Test::Prefill => self.chunk(),
            Test::Decode => 1,
        };
        let int8 = self.args.options.profile == Profile::Native;
        let mut all = Cost::default();
        for from in (0..n).step_by(chunk) {
            let size = chunk.min(n - from);
            let last = matches!(test, Test::Decode) || from + size == n;
            all += model.cost(depth + from, size, usize::from(last), int8);
        }
        all
    }

    fn report(&self, test: Test, depth: usize, n: usize, runs: &[Run], cost: Cost) -> std::io::Result<()> {
        let name = match test {
            Test::Prefill => "prefill",
            Test::Decode => "decode",
        };
        let rates = || runs.iter().map(|run| run.tokens_per_second);
        let (least, most) = (rates().fold(f64::INFINITY, f64::min), rates().fold(0.0, f64::max));
        let typical = median(runs, |run| run.tokens_per_second);
        let bandwidth = median(runs, |run| run.fraction_of_bandwidth);
        let compute = median(runs, |run| run.fraction_of_compute);
        let machine = |of: fn(&Peaks) -> f64| median(runs, |run| of(&run.peaks)).round();
        let rss = runs.iter().filter_map(|run| run.rss).max();
        if self.args.json {
            let each = |total: f64| (total / n as f64).round();
            writeln!(
                out(),
                "{}",
                json!({
                    "test": name,
                    "tokens": n,
                    "depth": depth,
                    "tokens_per_second": typical,
                    "min": least,
                    "max": most,
                    "roofline": {
                        "bytes_per_token": each(cost.bytes),
                        "flops_per_token": each(cost.flops + cost.int8),
                        "int8_per_token": each(cost.int8),
                        "fraction_of_bandwidth": bandwidth,
                        "fraction_of_compute": compute,
                        "machine": {
                            "read_bytes_per_second": machine(|p| p.read_bytes),
                            "f32_flops_per_second": machine(|p| p.f32_flops),
                            "int8_ops_per_second": machine(|p| p.int8_ops),
                        },
                    },
                    "peak_rss_bytes": rss,
                    "experts": self.loaded.experts_json(),
                })
            )
        } else {
            writeln!(
                out(),
                "{name:8} {:>8} {:>10} {typical:>12.1} {least:>12.1} {most:>12.1} {:>9.0} % {:>6.0} % {:>12}",
                commas(n),
                commas(depth),
                bandwidth * 100.0,
                compute * 100.0,
                rss.map_or_else(|| "?".into(), human)
            )
        }
    }
}
