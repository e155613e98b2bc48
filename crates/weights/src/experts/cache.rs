//! Experts in memory: frames that the reader fills, and whose experts are in them.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use fathom_kernels::{Device, Expert, ExpertShape, Frame, Frames, Matrix};
use serde_json::json;

use super::file::ShardFile;
use super::history::History;
use super::place::{InFrame, Places};
use super::policy::Policy;
use super::reader::{Done, Faults, Read, Reader, ReaderKind};
use super::stats::{Phase, Stats};
use super::trace::Trace;
use crate::{Checkpoint, Error, Sizes};

/// Frames that a cache has at least: enough for two layers of decode to overlap.
const LEAST_FRAMES: usize = 16;
/// Frames that every pass may put what it reads in: one part in so many, and this at least. What the others hold when a pass
/// begins stays, as long as there is any other way: a prompt that passes over all experts leaves most of those that are used
/// most where they are, and does not read them again for its next chunk.
const WORKING_PART: usize = 4;
/// See [`WORKING_PART`].
const LEAST_WORKING: usize = 64;

fn working(frames: usize) -> usize {
    (frames / WORKING_PART).max(LEAST_WORKING).min(frames)
}

/// Of so many experts in memory, the ones that stay through a pass over a prompt.
pub fn kept(room: usize) -> usize {
    room - working(room)
}
/// Tokens that an expert must be expected to get to be read ahead: with so many, half of the time it gets one.
const LIKELY: f64 = 0.7;
/// A drive that has not answered for so long is spoken of.
const SLOW: Duration = Duration::from_secs(5);
/// How often what was counted is written down, and told.
const SAVE: Duration = Duration::from_secs(60);

/// Told what a person should know.
pub type Tell = Arc<dyn Fn(&str) + Send + Sync>;

/// Experts with their numbers, for as long as they are in use.
pub type Given<D> = Vec<(u32, Arc<Expert<<D as Device>::Buffer>>)>;

/// How to stream experts.
#[derive(Clone)]
pub struct StreamOptions {
    /// Bytes that experts may take.
    pub memory: u64,
    /// How to read, or the best way after that.
    pub reader: ReaderKind,
    /// Past the page cache, where the file system lets us.
    pub direct: bool,
    /// Guess what the next layer needs.
    pub guess: bool,
    /// Tokens after which one counts half: see [`Policy`].
    pub half_life: f64,
    /// A folder where counts are kept between runs.
    pub counts: Option<PathBuf>,
    /// Told what a person should know, such as that a drive does not answer; from the thread that waits.
    pub tell: Option<Tell>,
    /// A file that gets what is demanded: see `fathom simulate`.
    pub trace: Option<PathBuf>,
    /// For tests: what happens to a read, by its number.
    pub faults: Option<Faults>,
}

impl Default for StreamOptions {
    fn default() -> Self {
        StreamOptions {
            memory: 0,
            reader: ReaderKind::FixedRing,
            direct: true,
            guess: true,
            half_life: 1024.0,
            counts: None,
            tell: None,
            trace: None,
            faults: None,
        }
    }
}

impl fmt::Debug for StreamOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamOptions").field("memory", &self.memory).field("reader", &self.reader).finish()
    }
}

/// Why an expert is read before it is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ahead {
    /// It will be.
    Known,
    /// It may be.
    Guess,
}

/// The experts of a model that are not all in memory.
pub struct ExpertCache<D: Device> {
    state: Mutex<State<D>>,
    stats: Mutex<Stats>,
    about: String,
    places: Arc<Places>,
    guess: bool,
}

enum Held<D: Device> {
    No,
    Reading,
    Here(Arc<Expert<D::Buffer>>),
}

/// What makes way for a read: each of these, and those before.
#[derive(Clone, Copy, PartialEq, PartialOrd)]
enum Way {
    /// What nobody asked for, used least.
    Least,
    /// What was asked for ahead and was here when the pass began: it is read once after all.
    Before,
    /// What is used most.
    Kept,
    /// What was read ahead, and is read again.
    Ahead,
}

/// What is known of an expert.
struct Entry<D: Device> {
    held: Held<D>,
    /// Demanded in the layer that runs, and not handed out.
    wanted: bool,
    /// Asked for ahead: stays until its layer has come.
    soon: bool,
    /// Among those used most when the pass began: stays.
    kept: bool,
    /// Read ahead, and its layer has not come since.
    ahead: Option<Ahead>,
    /// The pass for which it was last read.
    read_in: u64,
    /// The pass in which that read began: the one before, where it was read ahead for the next.
    begun_in: u64,
}

struct State<D: Device> {
    /// Before `frames`, so that its threads end first.
    reader: Reader,
    frames: Frames,
    places: Arc<Places>,
    policy: Policy,
    entries: Vec<Entry<D>>,
    /// Those that are here.
    here: Vec<u32>,
    pass: u64,
    /// Demanded and not begun to be read; and here and not handed out; how many are being read.
    missing: VecDeque<usize>,
    ready: Vec<usize>,
    awaited: usize,
    /// Asked for ahead and not begun.
    queue: VecDeque<(usize, Ahead)>,
    /// The last guess for each layer.
    guesses: Vec<Vec<u32>>,
    history: Option<History>,
    saved: Instant,
    trace: Option<Trace>,
    tell: Option<Tell>,
    stats: Stats,
    /// As it was when it was spoken of last.
    told: Stats,
    is_decode: bool,
    hash_layers: usize,
    /// The layer that runs.
    layer: Option<usize>,
}

impl<D: Device> ExpertCache<D> {
    /// Frames that a cache of so many bytes has.
    fn room(places: &Places, memory: u64) -> usize {
        let (layers, experts) = places.counts();
        let fit = memory / (places.frame_bytes() as u64).max(1);
        usize::try_from(fit).unwrap_or(usize::MAX).min(layers * experts)
    }

    /// The fewest bytes that experts can do with.
    pub fn least_memory(sizes: &Sizes) -> u64 {
        (LEAST_FRAMES.min(sizes.count) * sizes.frame) as u64
    }

    /// Opens the shards for reading experts, takes memory for them from the device's ledger, and starts the reader.
    ///
    /// # Errors
    /// A shard cannot be opened or has changed, and there is no memory.
    pub fn new(device: &D, checkpoint: &Checkpoint, options: StreamOptions) -> Result<Self, Error> {
        let places = Arc::new(Places::new(checkpoint)?);
        let (layers, experts) = places.counts();
        let room = Self::room(&places, options.memory).max(LEAST_FRAMES.min(layers * experts));
        let frames = Frames::new(device.ledger(), room, places.frame_bytes())?;
        let mut probe = frames.take();
        let files = checkpoint.shards.iter().map(|shard| {
            let known = shard.id.ok_or_else(|| Error::File {
                path: shard.path.clone(),
                problem: "is in memory; only experts in files can be streamed".into(),
            })?;
            ShardFile::open(&shard.path, known, options.direct, probe.as_mut())
        });
        let files = files.collect::<Result<Vec<_>, _>>()?;
        drop(probe);
        let reader = Reader::start(Arc::clone(&places), files, &frames, options.reader, options.faults)?;
        let mut policy = Policy::new(layers * experts, options.half_life);
        let history = options.counts.map(|folder| History::new(&folder, checkpoint)).transpose()?;
        if let Some(counts) = history.as_ref().and_then(History::read) {
            policy.restore(&counts);
        }
        let c = checkpoint.config();
        let trace = options.trace.map(|path| {
            let about = json!({
                "layers": layers, "experts": experts, "slots": c.num_experts_per_tok, "hash_layers": c.num_hash_layers,
                "expert_bytes": places.frame_bytes(), "room": room, "guess": options.guess,
                "half_life": options.half_life, "counts": policy.counts().map(|v| v as f32).collect::<Vec<_>>(),
            });
            Trace::new(&path, &about)
        });
        let about = reader.describe();
        let entry =
            |_| Entry { held: Held::No, wanted: false, soon: false, kept: false, ahead: None, read_in: 0, begun_in: 0 };
        let state = State {
            entries: (0..layers * experts).map(entry).collect(),
            reader,
            frames,
            places: Arc::clone(&places),
            policy,
            here: Vec::new(),
            pass: 0,
            missing: VecDeque::new(),
            ready: Vec::new(),
            awaited: 0,
            queue: VecDeque::new(),
            guesses: vec![Vec::new(); layers],
            history,
            saved: Instant::now(),
            trace: trace.transpose()?,
            tell: options.tell,
            stats: Stats { room, ..Stats::default() },
            told: Stats::default(),
            is_decode: false,
            hash_layers: c.num_hash_layers,
            layer: None,
        };
        let stats = Mutex::new(state.stats);
        Ok(ExpertCache { state: Mutex::new(state), stats, about, places, guess: options.guess })
    }

    /// How experts are read, for people.
    pub fn describe(&self) -> &str {
        &self.about
    }

    /// How experts are read.
    pub fn reader(&self) -> ReaderKind {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).reader.kind()
    }

    /// What a layer's experts are to the arithmetic.
    pub fn shape(&self, layer: usize) -> ExpertShape {
        self.places.shape(layer)
    }

    /// Whether the next layer's experts should be guessed.
    pub fn guesses(&self) -> bool {
        self.guess
    }

    /// What it has done so far, up to the last layer that ended.
    pub fn stats(&self) -> Stats {
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads what was used most in earlier runs, as far as there is room, and waits for it at most so long; what is not read
    /// by then goes on coming.
    pub fn warm(&self, device: &D, wait: Duration) {
        let mut pass = self.begin(device, 0, false);
        let state = &mut *pass.state;
        let mut order: Vec<usize> = (0..state.entries.len()).filter(|&i| state.policy.score(i) > 0.0).collect();
        order.sort_by(|&a, &b| state.policy.score(b).total_cmp(&state.policy.score(a)));
        order.truncate(state.frames.idle());
        let reads = order.into_iter().filter_map(|expert| {
            state.entries[expert].held = Held::Reading;
            Some(Read { expert, frame: state.frames.take()? })
        });
        let reads = reads.collect();
        state.reader.submit(reads, false);
        let start = Instant::now();
        while state.reader.under_way() > 0
            && let Some(left) = wait.checked_sub(start.elapsed()).filter(|left| !left.is_zero())
        {
            if let Some(done) = state.reader.next(left) {
                // What fails here is read again when it is needed.
                let _ = state.arrived(device, done);
            }
        }
    }

    /// Begins a pass over the layers for `tokens` tokens; one at a time.
    pub fn begin<'a>(&'a self, device: &'a D, tokens: usize, is_decode: bool) -> Pass<'a, D> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.begin(tokens, is_decode);
        Pass { state, device, cache: self, start: Instant::now() }
    }
}

impl<D: Device> fmt::Debug for ExpertCache<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ExpertCache({})", self.about)
    }
}

impl<D: Device> Drop for ExpertCache<D> {
    fn drop(&mut self) {
        self.state.get_mut().unwrap_or_else(PoisonError::into_inner).save();
    }
}

/// A pass over the layers.
pub struct Pass<'a, D: Device> {
    state: MutexGuard<'a, State<D>>,
    device: &'a D,
    cache: &'a ExpertCache<D>,
    start: Instant,
}

impl<D: Device> Drop for Pass<'_, D> {
    fn drop(&mut self) {
        let time = self.start.elapsed();
        self.state.phase().time += time;
        *self.cache.stats.lock().unwrap_or_else(PoisonError::into_inner) = self.state.totals();
    }
}

impl<D: Device> Pass<'_, D> {
    /// Asks for experts of a layer that is still to come; asked again, the later counts.
    pub fn ahead(&mut self, layer: usize, experts: &[u32], why: Ahead) {
        self.state.ahead(layer, experts, why);
        // What failed is read again when it is needed.
        let _ = self.state.drain(self.device);
        self.state.pump();
    }

    /// Asks for those experts of a layer that at least one of `pairs` pairs of token and slot is likely to go to, by how often
    /// they were used so far: what is used most first.
    pub fn ahead_by_counts(&mut self, layer: usize, pairs: usize) {
        let likely = self.state.likely(layer, pairs);
        self.ahead(layer, &likely, Ahead::Guess);
    }

    /// Says which experts a layer needs, and how many of `rows` tokens go to each.
    pub fn demand(&mut self, layer: usize, rows: usize, wanted: &[(u32, usize)]) {
        let _ = self.state.drain(self.device);
        self.state.demand(layer, rows, wanted);
        self.state.pump();
    }

    /// Some of the demanded experts, those that are there first; waits where none is. None when all have been given out.
    /// They must be dropped before the next call.
    ///
    /// # Errors
    /// One of them could not be read: file, place and cause.
    pub fn take(&mut self) -> Result<Option<Given<D>>, Error> {
        let given = self.state.take(self.device)?;
        if given.is_none() {
            *self.cache.stats.lock().unwrap_or_else(PoisonError::into_inner) = self.state.totals();
        }
        Ok(given)
    }
}

impl<D: Device> State<D> {
    fn phase(&mut self) -> &mut Phase {
        if self.is_decode { &mut self.stats.decode } else { &mut self.stats.prefill }
    }

    /// Whether the tokens alone decide what the layer that runs needs.
    fn is_known_layer(&self) -> bool {
        self.layer.is_some_and(|layer| layer < self.hash_layers)
    }

    fn experts_of(&self, layer: usize) -> Range<usize> {
        let experts = self.places.counts().1;
        layer * experts..(layer + 1) * experts
    }

    fn bytes(&self, expert: usize) -> u64 {
        self.places.get(expert).runs.iter().map(|run| run.len as u64).sum()
    }

    fn totals(&mut self) -> Stats {
        let totals = self.reader.totals();
        self.stats.read_bytes = totals.bytes.load(Ordering::Relaxed);
        self.stats.reads = totals.reads.load(Ordering::Relaxed);
        self.stats.reading = Duration::from_nanos(totals.busy.load(Ordering::Relaxed));
        self.stats.held = self.here.len();
        self.stats
    }

    fn begin(&mut self, tokens: usize, is_decode: bool) {
        // What an earlier pass that failed left behind.
        for expert in self.ready.drain(..).chain(self.missing.drain(..)) {
            self.entries[expert].wanted = false;
        }
        for entry in &mut self.entries {
            (entry.wanted, entry.soon, entry.kept) = (false, false, false);
        }
        self.keep();
        (self.awaited, self.layer) = (0, None);
        self.queue.clear();
        self.pass += 1;
        self.is_decode = is_decode;
        self.policy.tokens(tokens);
        if tokens > 0 {
            let phase = self.phase();
            phase.passes += 1;
            phase.tokens += tokens as u64;
        }
        if self.saved.elapsed() > SAVE {
            self.save();
            let now = self.totals();
            if let Some(tell) = &self.tell
                && now.read_bytes > self.told.read_bytes
            {
                tell(&format!("experts, last minute: {}", now - self.told));
            }
            self.told = now;
        }
    }

    /// Frames that a pass may put what it reads in.
    fn working(&self) -> usize {
        working(self.frames.count())
    }

    /// Marks those of the experts here that were used most, so many as need not make way.
    fn keep(&mut self) {
        let count = self.frames.count() - self.working();
        if count < self.here.len() && count > 0 {
            let score = |&expert: &u32| self.policy.score(expert as usize);
            self.here.select_nth_unstable_by(count - 1, |a, b| score(b).total_cmp(&score(a)).then(a.cmp(b)));
        }
        for &expert in self.here.iter().take(count) {
            self.entries[expert as usize].kept = true;
        }
    }

    fn save(&mut self) {
        self.saved = Instant::now();
        if let Some(history) = &self.history {
            history.write(self.policy.counts());
        }
    }

    fn ahead(&mut self, layer: usize, experts: &[u32], why: Ahead) {
        let first = self.experts_of(layer).start;
        if why == Ahead::Guess {
            self.guesses[layer] = experts.to_vec();
        }
        for &expert in experts {
            let expert = first + expert as usize;
            let entry = &mut self.entries[expert];
            entry.soon = true;
            if matches!(entry.held, Held::No) && !self.queue.iter().any(|&(queued, _)| queued == expert) {
                self.queue.push_back((expert, why));
            }
        }
    }

    fn likely(&self, layer: usize, pairs: usize) -> Vec<u32> {
        let range = self.experts_of(layer);
        let all: f64 = range.clone().map(|expert| self.policy.score(expert)).sum();
        // Where little is known, all may be.
        let known = self.policy.tokens_in(range.clone()) >= (4 * range.len()) as f64;
        let expected = |&expert: &u32| pairs as f64 * self.policy.score(range.start + expert as usize) / all;
        let mut likely: Vec<u32> =
            (0..range.len() as u32).filter(|expert| !known || expected(expert) >= LIKELY).collect();
        likely.sort_by(|a, b| expected(b).total_cmp(&expected(a)));
        likely
    }

    fn demand(&mut self, layer: usize, rows: usize, wanted: &[(u32, usize)]) {
        let range = self.experts_of(layer);
        self.layer = Some(layer);
        let guesses = std::mem::take(&mut self.guesses[layer]);
        if let Some(trace) = &mut self.trace {
            trace.demand(self.pass, layer as u32, rows, wanted, &guesses);
        }
        for &(expert, tokens) in wanted {
            let expert = range.start + expert as usize;
            self.policy.used(expert, tokens);
            self.entries[expert].wanted = true;
        }
        let right = guesses.iter().filter(|&&expert| self.entries[range.start + expert as usize].wanted).count();
        let phase = self.phase();
        phase.guessed += guesses.len() as u64;
        phase.guessed_right += right as u64;
        self.call_off(&range);
        for &(expert, _) in wanted {
            self.want(range.start + expert as usize);
        }
        for expert in range {
            let entry = &mut self.entries[expert];
            entry.soon = false;
            let wasted = entry.ahead.is_some() && !entry.wanted && matches!(entry.held, Held::Here(_));
            if wasted {
                entry.ahead = None;
                let bytes = self.bytes(expert);
                let phase = self.phase();
                phase.wasted += 1;
                phase.wasted_bytes += bytes;
            } else if entry.wanted {
                entry.ahead = None;
            }
        }
    }

    /// Reads ahead for this layer that have not begun: those that are wanted hurry, the others do not happen.
    fn call_off(&mut self, layer: &Range<usize>) {
        self.queue.retain(|(expert, _)| !layer.contains(expert));
        let (mut urgent, mut later) = (Vec::new(), Vec::new());
        for read in self.reader.forget_ahead() {
            let entry = &mut self.entries[read.expert];
            if entry.wanted {
                urgent.push(read);
            } else if layer.contains(&read.expert) && entry.ahead.is_some() {
                (entry.held, entry.ahead) = (Held::No, None);
            } else {
                later.push(read);
            }
        }
        self.reader.submit(urgent, true);
        self.reader.submit(later, false);
    }

    fn want(&mut self, expert: usize) {
        let bytes = self.bytes(expert);
        let pass = self.pass;
        let known = self.is_known_layer();
        let entry = &self.entries[expert];
        let hit = matches!(entry.held, Held::Here(_)) && entry.read_in != pass;
        let (ready, reading) = (matches!(entry.held, Held::Here(_)), matches!(entry.held, Held::Reading));
        let phase = self.phase();
        phase.demanded += 1;
        phase.hits += u64::from(hit);
        phase.in_time += u64::from(ready && !hit);
        phase.late += u64::from(reading);
        phase.missed_bytes += if hit { 0 } else { bytes };
        phase.missed_known_bytes += if hit || !known { 0 } else { bytes };
        match (ready, reading) {
            (true, _) => self.ready.push(expert),
            (_, true) => self.awaited += 1,
            _ => self.missing.push_back(expert),
        }
    }

    /// Begins reads, as far as there are frames: what is demanded, then what is asked for ahead.
    fn pump(&mut self) {
        let wanted = self.missing.len();
        self.make_room(wanted, Way::Least);
        let mut reads = Vec::new();
        while let Some(&expert) = self.missing.front()
            && let Some(frame) = self.frames.take()
        {
            self.missing.pop_front();
            self.awaited += 1;
            reads.push(self.read(expert, frame, None));
        }
        self.reader.submit(reads, true);
        if !self.missing.is_empty() || self.queue.is_empty() {
            return;
        }
        self.make_room(self.queue.len(), Way::Least);
        let mut reads = Vec::new();
        while let Some(&(expert, why)) = self.queue.front() {
            if !matches!(self.entries[expert].held, Held::No) {
                self.queue.pop_front();
                continue;
            }
            let Some(frame) = self.frames.take() else { break };
            self.queue.pop_front();
            reads.push(self.read(expert, frame, Some(why)));
        }
        self.reader.submit(reads, false);
    }

    fn read(&mut self, expert: usize, frame: Frame, ahead: Option<Ahead>) -> Read {
        // What is read for a layer that has been is for the pass to come.
        let later = self.layer.is_some_and(|layer| expert < layer * self.places.counts().1);
        let pass = self.pass + u64::from(later);
        let entry = &mut self.entries[expert];
        (entry.held, entry.ahead) = (Held::Reading, ahead);
        let again = entry.read_in == pass;
        (entry.read_in, entry.begun_in) = (pass, self.pass);
        self.phase().reread += u64::from(again);
        Read { expert, frame }
    }

    /// Gives frames of experts that are worth least back until `frames` are free, if so many can be. Those that wait to be
    /// computed stay.
    fn make_room(&mut self, frames: usize, way: Way) {
        let idle = self.frames.idle();
        if idle >= frames {
            return;
        }
        let mut candidates: Vec<((u32, f64), u32)> = Vec::new();
        for &expert in &self.here {
            let entry = &self.entries[expert as usize];
            let Held::Here(held) = &entry.held else { continue };
            let least = match (entry.kept, entry.soon) {
                (_, true) if entry.read_in == self.pass => Way::Ahead,
                (true, _) => Way::Kept,
                (false, true) => Way::Before,
                (false, false) => Way::Least,
            };
            if !entry.wanted && least <= way && Arc::strong_count(held) == 1 {
                // Of what is to come, the last first.
                let soon = if entry.soon { u32::MAX - expert } else { 0 };
                candidates.push(((soon, self.policy.score(expert as usize)), expert));
            }
        }
        let count = (frames - idle).min(candidates.len());
        if count == 0 {
            return;
        }
        candidates
            .select_nth_unstable_by(count - 1, |(a, i), (b, j)| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)).then(i.cmp(j)));
        for &(_, expert) in &candidates[..count] {
            let entry = &mut self.entries[expert as usize];
            entry.held = Held::No;
            if entry.ahead.take().is_some() {
                let bytes = self.bytes(expert as usize);
                let phase = self.phase();
                phase.wasted += 1;
                phase.wasted_bytes += bytes;
            }
        }
        let entries = &self.entries;
        self.here.retain(|&expert| matches!(entries[expert as usize].held, Held::Here(_)));
    }

    /// Takes in what has been read meanwhile.
    fn drain(&mut self, device: &D) -> Result<(), Error> {
        let mut failed = Ok(());
        while let Some(done) = self.reader.next(Duration::ZERO) {
            failed = failed.and(self.arrived(device, done));
        }
        failed
    }

    /// An expert was read. An error only where it is wanted.
    fn arrived(&mut self, device: &D, Done { expert, frame }: Done) -> Result<(), Error> {
        let wanted = self.entries[expert].wanted;
        let made = frame.and_then(|frame| in_frame(device, &self.places.get(expert).matrices, frame));
        let entry = &mut self.entries[expert];
        match made {
            Ok(made) => {
                entry.held = Held::Here(Arc::new(made));
                self.here.push(expert as u32);
                if wanted {
                    self.awaited -= 1;
                    self.ready.push(expert);
                }
                Ok(())
            }
            Err(e) => {
                (entry.held, entry.ahead) = (Held::No, None);
                self.stats.failed += 1;
                let earlier = entry.begun_in < self.pass;
                if wanted {
                    self.awaited -= 1;
                    self.missing.push_back(expert);
                }
                // What an earlier pass began to read, and failed, is read again.
                if wanted && !earlier { Err(e) } else { Ok(()) }
            }
        }
    }

    fn take(&mut self, device: &D) -> Result<Option<Given<D>>, Error> {
        loop {
            self.drain(device)?;
            self.pump();
            if !self.ready.is_empty() {
                return Ok(Some(self.give()));
            }
            if self.awaited == 0 && self.missing.is_empty() {
                return Ok(None);
            }
            if self.reader.under_way() == 0 {
                let wanted = self.missing.len().min(LEAST_FRAMES / 2);
                [Way::Before, Way::Kept, Way::Ahead].into_iter().for_each(|way| self.make_room(wanted, way));
                assert!(self.frames.idle() > 0, "the experts given out before were dropped");
                continue;
            }
            let done = self.wait();
            self.arrived(device, done)?;
        }
    }

    /// Some that are here: not all at once where that would leave no frames to read into meanwhile.
    fn give(&mut self) -> Given<D> {
        let experts = self.places.counts().1;
        self.ready.sort_unstable();
        let some = self.ready.len().min((self.working() / 4).max(8));
        let given = self.ready.drain(..some).map(|expert| {
            let entry = &mut self.entries[expert];
            entry.wanted = false;
            let Held::Here(held) = &entry.held else { panic!("it is here until it is given out") };
            ((expert % experts) as u32, Arc::clone(held))
        });
        given.collect()
    }

    /// The next expert that is read, however long it takes.
    fn wait(&mut self) -> Done {
        let start = Instant::now();
        loop {
            if let Some(done) = self.reader.next(SLOW) {
                let stalled = start.elapsed();
                let known = if self.is_known_layer() { stalled } else { Duration::ZERO };
                let phase = self.phase();
                phase.stalled += stalled;
                phase.stalled_known += known;
                return done;
            }
            if let Some(tell) = &self.tell {
                let waiting = self.entries.iter().position(|e| e.wanted && matches!(e.held, Held::Reading));
                let id = waiting.map(|i| (i / self.places.counts().1, i % self.places.counts().1));
                let which = id.map_or(String::new(), |(layer, expert)| format!(" for layer {layer}, expert {expert}"));
                tell(&format!("the drive has not answered for {} s{which}; still waiting", start.elapsed().as_secs()));
            }
        }
    }
}

/// The expert in a frame, which comes back when the expert is dropped.
fn in_frame<D: Device>(device: &D, matrices: &[InFrame; 3], frame: Frame) -> Result<Expert<D::Buffer>, Error> {
    let bytes = Bytes::from_owner(frame);
    let matrix = |m: &InFrame| -> Result<Matrix<D::Buffer>, Error> {
        let upload = |range: &Range<usize>| device.upload(bytes.slice(range.clone()));
        Ok(Matrix {
            format: m.format,
            rows: m.rows,
            cols: m.cols,
            data: upload(&m.data)?,
            scale: m.scale.as_ref().map(upload).transpose()?,
        })
    };
    let [w1, w2, w3] = matrices;
    Ok(Expert { w1: matrix(w1)?, w2: matrix(w2)?, w3: matrix(w3)? })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use fathom_kernels::{Cpu, CpuOptions};

    use super::super::reader::Fault;
    use super::*;
    use crate::synth::Synth;

    /// What one pass reads for the next, and fails, the next reads again; what it fails itself it says.
    #[test]
    fn a_failed_read_for_the_next_pass_is_read_again() {
        for reader in [ReaderKind::Ring, ReaderKind::Pool] {
            let folder = tempfile::tempdir().unwrap();
            Synth::tiny(1).write(folder.path()).unwrap();
            let checkpoint = Checkpoint::open(folder.path()).unwrap();
            let cpu = Cpu::new(CpuOptions { threads: Some(1), ..CpuOptions::default() }).unwrap();
            let bad = Arc::new(AtomicBool::new(false));
            let which = Arc::clone(&bad);
            let faults: Faults = Arc::new(move |_| {
                which.load(Ordering::SeqCst).then(|| {
                    // Comes out in the next pass.
                    std::thread::sleep(Duration::from_millis(100));
                    which.store(false, Ordering::SeqCst);
                    Fault::Error(5)
                })
            });
            let options = StreamOptions { reader, faults: Some(faults), direct: false, ..StreamOptions::default() };
            let cache = ExpertCache::new(&cpu, &checkpoint, options).unwrap();
            let all = |pass: &mut Pass<'_, Cpu>| -> Result<usize, Error> {
                let mut count = 0;
                while let Some(given) = pass.take()? {
                    count += given.len();
                }
                Ok(count)
            };
            let mut pass = cache.begin(&cpu, 4, false);
            pass.demand(2, 4, &[(1, 4)]);
            assert_eq!(all(&mut pass).unwrap(), 1);
            bad.store(true, Ordering::SeqCst);
            pass.ahead(0, &[3], Ahead::Guess);
            drop(pass);
            let mut pass = cache.begin(&cpu, 4, false);
            pass.demand(0, 4, &[(3, 4)]);
            assert_eq!(all(&mut pass).unwrap(), 1);
            bad.store(true, Ordering::SeqCst);
            pass.demand(1, 4, &[(2, 4)]);
            assert!(all(&mut pass).unwrap_err().to_string().contains("Input/output error"));
            drop(pass);
            assert_eq!(cache.stats().failed, 2);
        }
    }
}
