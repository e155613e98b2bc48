//! What sessions cost on V4-Flash's geometry: `cargo bench -p fathom-engine --bench sessions`, with `-- --json` for machines.
//!
//! The model around the state is next to nothing, and long states are made up: what is measured is the state's way to
//! a disk and back. `--tokens N` sets the longest session (1,000,000), `--folder DIR` where stores go (the target folder:
//! it must be on the disk that is to be measured), `--rounds N` how often a restore is repeated, `--only restore` leaves
//! out what comes before.

use std::fs::{self, File};
use std::io::Read;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fathom_engine::{prefill, resume, save, subject};
use fathom_kernels::{Cpu, CpuOptions};
use fathom_model::{Model, State};
use fathom_store::{Namespace, NewSnapshot, Options, Store, Subject};
use fathom_weights::synth::{Random, Synth};
use rustix::fs::{Advice, fadvise};

/// What was measured, and how much of what.
struct Row(String, f64, &'static str);

struct Bench {
    model: Model<Cpu>,
    subject: Subject,
    folder: PathBuf,
    rows: Vec<Row>,
}

/// V4-Flash's state, with its vocabulary, around a model that is next to nothing.
fn flash() -> (Model<Cpu>, Subject) {
    let checkpoint = Synth::flash_state(1).checkpoint().expect("a checkpoint");
    let model = Model::load(Cpu::new(CpuOptions::default()).expect("a CPU"), &checkpoint).expect("a model");
    let subject = subject(&model, checkpoint.fingerprint(None, true, &mut |_, _| {}).unwrap());
    (model, subject)
}

/// Bytes that could be rows of a cache: every number is finite, and no two pages are the same.
fn made_up(seed: usize, length: usize) -> Vec<u8> {
    let mut random = Random::new(seed as u64);
    let mut bytes = vec![0; length];
    for word in bytes.chunks_mut(8) {
        let noise = (random.bits() & 0x3737_3737_3737_3737).to_le_bytes();
        word.copy_from_slice(&noise[..word.len()]);
    }
    bytes
}

fn tokens(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| i.wrapping_mul(2_654_435_761) % 129_280).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

impl Bench {
    fn say(&mut self, what: impl Into<String>, value: f64, unit: &'static str) {
        self.rows.push(Row(what.into(), value, unit));
        let Row(what, value, unit) = &self.rows[self.rows.len() - 1];
        eprintln!("{what}: {value:.3} {unit}");
    }

    fn page_bytes(&self) -> usize {
        (self.model.state_bytes(1) - self.model.state_bytes(0)) as usize
    }

    /// A tail as long as a session's at `n`, a multiple of 128.
    fn tail(&self, n: usize) -> Vec<u8> {
        made_up(0, self.model.state_bytes(0) as usize + self.page_bytes() * (n % 1024) / 1024)
    }

    fn made(&self, n: usize) -> State<Cpu> {
        let page = |i| Ok(made_up(i + 1, self.page_bytes()));
        self.model.restore::<fathom_model::Error, _>(n, &self.tail(n), page).expect("a state")
    }

    fn open(&self, name: &str) -> Namespace {
        let options = Options { quota: u64::MAX, ..Options::default() };
        let place = self.folder.join(name);
        Store::open(place.to_str().expect("a path"), options).and_then(|store| store.namespace("a")).expect("a store")
    }

    /// Bytes written, and seconds.
    fn save(&self, ns: &Namespace, state: &State<Cpu>, tokens: &[u32], logits: &[f32]) -> (f64, f64) {
        let new = NewSnapshot { tokens, ..NewSnapshot::default() };
        let start = Instant::now();
        let saved = save(&self.model, state, logits, ns, &self.subject, &new).expect("saved");
        (saved.bytes_written as f64, start.elapsed().as_secs_f64())
    }

    fn read(&self, state: &mut State<Cpu>, tokens: &[u32]) -> Vec<f32> {
        let read = prefill(&self.model, state, tokens, 512, &mut |_| ControlFlow::Continue(()));
        read.expect("read").expect("logits")
    }

    /// 100 tokens more on 100,000.
    fn grown(&mut self) {
        let all = tokens(100_100);
        let mut state = self.made(99_968);
        let ns = self.open("grown");
        for (end, what) in [(100_000, "save 100,000 tokens, all new"), (100_100, "save 100 tokens more")] {
            let from = state.position();
            let logits = self.read(&mut state, &all[from..end]);
            let (bytes, seconds) = self.save(&ns, &state, &all[..end], &logits);
            self.say(what, bytes / 1e6, "MB");
            self.say("  time", seconds * 1e3, "ms");
        }
    }

    /// An agent's day: 25,000 tokens, then 100 turns of 500. Saved every 8,192 tokens of the first prompt and after
    /// each turn, as the engine does.
    fn agent(&mut self) {
        let all = tokens(75_000);
        let ns = self.open("agent");
        let mut state = self.model.new_state().expect("a state");
        let turns = (1..=100).map(|turn| 25_000 + 500 * turn);
        let (mut written, mut times) = (0.0, Vec::new());
        for end in [8192, 16_384, 24_576, 25_000].into_iter().chain(turns) {
            let from = state.position();
            let logits = self.read(&mut state, &all[from..end]);
            let (bytes, seconds) = self.save(&ns, &state, &all[..end], &logits);
            written += bytes;
            times.push(seconds);
        }
        self.say("an agent's day, 25,000 tokens and 100 turns of 500: written", written / 1e6, "MB");
        self.say("  times the state at its end", written / self.model.state_bytes(all.len()) as f64, "");
        self.say("  a save, slowest", times.iter().copied().fold(0.0, f64::max) * 1e3, "ms");
        self.say("  a save, median", median(times) * 1e3, "ms");
    }

    fn fork(&mut self, state: &State<Cpu>) {
        let times = (0..200).map(|_| {
            let start = Instant::now();
            let fork = self.model.fork(state).expect("a fork");
            let took = start.elapsed().as_secs_f64();
            drop(fork);
            took
        });
        let times: Vec<f64> = times.collect();
        let (slowest, middle) = (times.iter().copied().fold(0.0, f64::max), median(times));
        self.say(format!("fork at {} tokens, median of 200", state.position()), middle * 1e6, "µs");
        self.say("  slowest", slowest * 1e6, "µs");
    }

    /// A long session from the disk, against reading the same files and doing nothing with them, in turn.
    ///
    /// A virtual machine may lend free memory to its host, and have it back at half a gigabyte a second: more than what is
    /// measured here. So a restore is timed twice: as it comes, and right after a session as large has been dropped,
    /// whose memory is still at hand. Files are read from the disk both times.
    fn restore(&mut self, n: usize, rounds: usize) {
        let n = n / 128 * 128;
        let all = tokens(n);
        self.save_long(n, &all);
        let files = objects(&self.folder.join("long"));
        let bytes: u64 = files.iter().map(|file| fs::metadata(file).expect("a file").len()).sum();
        let gb = bytes as f64 / 1e9;
        let mut all_speeds = [const { Vec::new() }; 5];
        for _ in 0..rounds {
            let cold = || {
                drop_cached(&files);
                let before = from_disk();
                let (state, seconds) = self.resume(&all);
                assert!((from_disk() - before) * 100 >= bytes * 99, "the files came from memory");
                drop(state);
                seconds
            };
            let (first, at_hand) = (cold(), cold());
            let (state, cached) = self.resume(&all);
            drop(state);
            let seconds = [read_all(&files, bytes), self.load(&files, &all), at_hand, first, cached];
            let speeds = seconds.map(|seconds| gb / seconds);
            eprintln!("  read, verified, restored, in new memory, from memory: {speeds:.2?} GB/s");
            all_speeds.iter_mut().zip(speeds).for_each(|(all, speed)| all.push(speed));
        }
        let share = |of: usize| {
            let pairs = all_speeds[0].iter().zip(&all_speeds[of]);
            median(pairs.map(|(raw, other)| 100.0 * other / raw).collect())
        };
        let shares = [share(1), share(2)];
        let [raw, verified, restored, first, cached] = all_speeds.map(median);
        self.say(format!("read the files of {n} tokens, cold, median of {rounds}"), raw, "GB/s");
        self.say("read and verify them, cold, median", verified, "GB/s");
        self.say("  of reading, median of pairs", shares[0], "%");
        self.say("restore them, cold, median", restored, "GB/s");
        self.say("  of reading, median of pairs", shares[1], "%");
        self.say("  into memory that is new to the process, median", first, "GB/s");
        self.say("restore them from the page cache, median", cached, "GB/s");
        let (state, _) = self.resume(&all);
        self.fork(&state);
    }

    /// Pages go to the disk as they are made: beside a state they might not fit in memory.
    fn save_long(&mut self, n: usize, all: &[u32]) {
        let ns = self.open("long");
        let tail = [0u32.to_le_bytes().to_vec(), self.tail(n)].concat();
        let new = NewSnapshot { tokens: all, ..NewSnapshot::default() };
        let length = self.page_bytes();
        let start = Instant::now();
        let saved = ns.save(&self.subject, &new, &mut |i| Ok(made_up(i + 1, length)), &tail).expect("saved");
        let (gb, seconds) = (saved.bytes_written as f64 / 1e9, start.elapsed().as_secs_f64());
        self.say(format!("save {n} tokens, made as they are saved"), gb, "GB");
        self.say("  speed", gb / seconds, "GB/s");
    }

    /// The seconds that the store takes for all pages, which are verified and dropped.
    fn load(&self, files: &[PathBuf], all: &[u32]) -> f64 {
        drop_cached(files);
        let start = Instant::now();
        let ns = self.open("long");
        let best = ns.find(&self.subject, all).expect("found").best.expect("a snapshot");
        for page in ns.load(&best.id).expect("loaded").pages {
            page.expect("whole");
        }
        start.elapsed().as_secs_f64()
    }

    /// All of a session from a store that is opened for it, and the seconds that took.
    fn resume(&self, all: &[u32]) -> (State<Cpu>, f64) {
        let start = Instant::now();
        let found = resume(&self.model, &self.open("long"), &self.subject, all, 0).expect("resumed");
        let state = found.resumed.expect("a session").state;
        assert_eq!(state.position(), all.len());
        (state, start.elapsed().as_secs_f64())
    }
}

fn objects(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("a file").path();
        match path.is_dir() {
            true => all.extend(objects(&path)),
            false if path.components().any(|part| part.as_os_str() == "objects") => all.push(path),
            false => {}
        }
    }
    all
}

fn drop_cached(files: &[PathBuf]) {
    for file in files {
        let file = File::open(file).expect("a file");
        file.sync_all().expect("synced");
        fadvise(&file, 0, None, Advice::DontNeed).expect("dropped");
    }
}

/// Bytes that this process has had the system read from a disk.
fn from_disk() -> u64 {
    let io = fs::read_to_string("/proc/self/io").unwrap_or_default();
    io.lines().find_map(|line| line.strip_prefix("read_bytes: ")?.parse().ok()).unwrap_or(u64::MAX)
}

/// The seconds that reading all files takes, each at once, on one thread or on four, whichever is faster.
fn read_all(files: &[PathBuf], bytes: u64) -> f64 {
    let time = |threads: usize| {
        drop_cached(files);
        let before = from_disk();
        let start = Instant::now();
        std::thread::scope(|scope| {
            for thread in 0..threads {
                scope.spawn(move || {
                    let mut buffer = Vec::new();
                    for file in files.iter().skip(thread).step_by(threads) {
                        buffer.clear();
                        File::open(file).and_then(|mut file| file.read_to_end(&mut buffer)).expect("read");
                    }
                });
            }
        });
        let seconds = start.elapsed().as_secs_f64();
        assert!((from_disk() - before) * 100 >= bytes * 99, "the files came from memory");
        seconds
    };
    let (one, four) = (time(1), time(4));
    eprintln!("  one thread {:.2}, four {:.2} GB/s", bytes as f64 / 1e9 / one, bytes as f64 / 1e9 / four);
    one.min(four)
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let after = |flag: &str| args.iter().position(|arg| arg == flag).and_then(|at| args.get(at + 1));
    let number = |flag: &str, default: usize| after(flag).map_or(default, |n| n.parse().expect("a number"));
    let parent = after("--folder").map_or(Path::new(env!("CARGO_TARGET_TMPDIR")), Path::new);
    let folder = tempfile::tempdir_in(parent).expect("a folder");
    let (model, subject) = flash();
    let mut bench = Bench { model, subject, folder: folder.path().to_owned(), rows: Vec::new() };
    if after("--only").is_none() {
        let short = bench.made(1024);
        bench.fork(&short);
        drop(short);
        bench.grown();
        bench.agent();
        // What was written is on its way to the disk for a while.
        std::thread::sleep(Duration::from_secs(5));
    }
    bench.restore(number("--tokens", 1_000_000), number("--rounds", 5));
    if args.iter().any(|arg| arg == "--json") {
        let rows = bench.rows.iter().map(|Row(what, value, unit)| {
            format!("{{\"what\": \"{}\", \"value\": {value}, \"unit\": \"{unit}\"}}", what.trim_start())
        });
        println!("[{}]", rows.collect::<Vec<_>>().join(",\n "));
    } else {
        for Row(what, value, unit) in &bench.rows {
            println!("{what:<70} {value:>12.3} {unit}");
        }
    }
}
