//! The thread that runs the model: passes over the weights, in which every running request takes its part.
//!
//! How a request comes to run is in `entry.rs`. It reads its prompt from the longest state that this begins with, and speaks. In a
//! pass all who speak get their next token, and beside them as many tokens of prompts are read as may delay those. Who runs beside
//! a request does not change its bits, so when and with whom it runs is free.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fathom_kernels::{Device, Share};
use fathom_model::Model;

use crate::engine::{Asked, Shared};
use crate::keeper::{Keeper, Wish};
use crate::kept::{Cache, Kept};
use crate::lookup::Looking;
use crate::pace::Pace;
use crate::room::{Hold, fit};
use crate::running::{Part, Phase, Running};
use crate::sampler::{Choice, Sampler, report};
use crate::snapshot::SnapshotError;
use crate::{Error, Event, Finish, Mask};

mod entry;

/// New tokens that make a state worth keeping, and old ones worth looking for.
pub(crate) const WORTH: usize = 32;
/// Sessions that are tried for the same text in other tokens.
const SEAMS: usize = 4;
/// Tokens of prompts of which all logits are wanted, in one pass: each takes a row as wide as the vocabulary.
pub(crate) const ROWS: usize = 32;

pub(crate) struct Worker<D: Device> {
    model: Arc<Model<D>>,
    shared: Arc<Shared>,
    pub(crate) cache: Cache<D>,
    pub(crate) keeper: Option<Keeper<D>>,
    looking: Vec<Looking<D>>,
    /// The oldest first.
    running: Vec<Running<D>>,
    pace: Pace,
    /// Passes so far.
    passes: u64,
    /// Requests that were started.
    started: u64,
    /// Whether somebody waits for memory to go on: nobody is let in meanwhile.
    tight: bool,
}

/// Where in a request a state is.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// Inside the prompt, which is read on.
    OnTheWay,
    /// The same, and somebody waits for it, or has it in common.
    Mark,
    /// Inside the prompt, which nobody waits for any more.
    Stopped,
    /// At the end of the prompt or of the answer.
    End,
}

impl<D: Device> Worker<D> {
    pub(crate) fn new(model: Arc<Model<D>>, shared: Arc<Shared>, keeper: Option<Keeper<D>>) -> Self {
        let pace = Pace::new(shared.options.stall);
        let (looking, running) = (Vec::new(), Vec::new());
        let cache = Cache::new();
        Worker { model, shared, cache, keeper, looking, running, pace, passes: 0, started: 0, tight: false }
    }

    /// Works until the engine is closed and nothing is left to do.
    pub(crate) fn run(mut self) {
        let model = Arc::clone(&self.model);
        let mut idle = true;
        loop {
            self.shared.news(idle, self.cache.held()).iter().for_each(|past| self.cache.forget(past));
            if self.running.is_empty() && self.looking.is_empty() && self.shared.is_over() {
                break;
            }
            idle = model.device().scope(|| {
                self.take_found();
                match self.shared.stopped() {
                    Some(waiting) => self.stop(waiting),
                    None => self.admit(),
                }
                !self.pass()
            });
        }
        if let Some(keeper) = &self.keeper {
            self.cache.drain().filter(Kept::is_owed).for_each(|kept| keeper.save(&kept, None));
        }
    }

    fn limit(&self) -> u64 {
        self.model.device().ledger().holding(Share::State).limit
    }

    /// What those hold that have been let in.
    fn holds(&self) -> Vec<Hold> {
        let running =
            self.running.iter().map(|running| running.hold(running.tokens.len(), |n| self.model.state_bytes(n)));
        running.chain(self.looking.iter().map(|looking| looking.hold)).collect()
    }

    /// One pass over the weights; false if there is nothing to do in it.
    fn pass(&mut self) -> bool {
        self.catch_up();
        let mut parts = self.parts();
        if parts.is_empty() {
            return false;
        }
        self.passes += 1;
        let start = Instant::now();
        let out = loop {
            let running = &mut self.running;
            let result = with_room(&mut self.cache, &self.keeper, || {
                let all = running.iter_mut().enumerate();
                let mut segments: Vec<_> = all
                    .filter_map(|(at, running)| Some(running.segment(parts.iter().find(|part| part.at == at)?.tokens)))
                    .collect();
                self.model.forward_each(&mut segments)
            });
            match result {
                // They fit by what each may hold; where that is not all there is, the oldest goes on.
                Err(e) if e.is_full() && parts.len() > 1 => drop(parts.pop()),
                other => break other,
            }
        };
        self.measure(&parts, start.elapsed());
        match out {
            // From the last, so that the others stay where they are.
            Ok(out) => {
                parts.into_iter().zip(out).rev().for_each(|(part, out)| self.advance(part, out.map_err(Error::from)))
            }
            Err(e) => {
                let e = Error::from(e);
                parts.into_iter().rev().for_each(|part| self.advance(part, Err(e.clone())));
            }
        }
        self.tell_followers();
        true
    }

    /// Who does how much in the next pass, the oldest first: all who speak, and beside them readers by turns, in one pass the one
    /// who has least left first, so that short prompts overtake long ones, in the other the one who came first.
    fn parts(&mut self) -> Vec<Part> {
        let (limit, bytes) = (self.limit(), |n| self.model.state_bytes(n));
        let mut holds = self.holds();
        let mut parts = Vec::new();
        self.tight = false;
        for (at, running) in self.running.iter().enumerate().filter(|(_, running)| running.is_speaking()) {
            let before = std::mem::replace(&mut holds[at], running.hold(running.tokens.len() + 1, bytes));
            if before == holds[at] || fit(limit, &holds) {
                parts.push(Part { at, tokens: 1 });
            } else {
                (holds[at], self.tight) = (before, true);
            }
        }
        let most = self.shared.options.prefill_chunk.max(1);
        let (mut budget, mut rows) = (if parts.is_empty() { most } else { most.min(self.pace.tokens()) }, ROWS);
        let mut readers: Vec<usize> = (0..self.running.len()).filter(|&at| self.running[at].is_reading()).collect();
        if self.passes.is_multiple_of(2) {
            readers.sort_by_key(|&at| self.running[at].left());
        }
        for at in readers {
            let running = &self.running[at];
            let mut tokens = running.stretch().len().min(budget);
            if running.asked.request.prompt_logprobs.is_some() {
                tokens = tokens.min(rows);
                rows -= tokens;
            }
            budget -= tokens;
            if tokens > 0 {
                parts.push(Part { at, tokens });
            }
        }
        parts.sort_unstable_by_key(|part| part.at);
        parts
    }

    fn measure(&mut self, parts: &[Part], time: Duration) {
        let spoken = parts.iter().filter(|part| self.running[part.at].is_speaking()).count();
        let read = parts.iter().map(|part| part.tokens).sum::<usize>() - spoken;
        self.pace.took(read, spoken, time);
    }

    /// Takes what a pass gave to one request.
    fn advance(&mut self, part: Part, out: Result<Vec<f32>, Error>) {
        let mut running = self.running.remove(part.at);
        let ended = match out {
            Ok(out) if running.is_speaking() => self.spoke(&mut running, out),
            Ok(out) => self.read(&mut running, part.tokens, out),
            Err(e) => Some(Err(e)),
        };
        match ended {
            Some(ended) => self.end(running, ended),
            None => self.running.insert(part.at, running),
        }
    }

    /// Some tokens of the prompt have been read.
    fn read(&mut self, running: &mut Running<D>, tokens: usize, mut out: Vec<f32>) -> Option<Result<Finish, Error>> {
        let stretch = running.stretch();
        let to = stretch.start + tokens;
        if let Some(top) = running.asked.request.prompt_logprobs {
            let vocab = self.model.config().vocab_size;
            let request = &running.asked.request;
            let ids = request.prompt[stretch.start + 1..].iter();
            for (row, &id) in out.chunks_exact(vocab).zip(ids) {
                let Choice { id, logprob, top } = report(row, id, top);
                if (running.asked.sink)(Event::Read { id, logprob, top }).is_break() {
                    return Some(Ok(Finish::Cancelled));
                }
            }
            out = if to == stretch.end { out.split_off(out.len() - vocab) } else { Vec::new() };
        }
        running.tokens.extend_from_slice(&running.asked.request.prompt[stretch.start..to]);
        running.logits = out;
        if !running.tell_progress() {
            running.logits.clear();
            return Some(Ok(Finish::Cancelled));
        }
        if to < stretch.end {
            return None;
        }
        let total = running.asked.request.prompt.len();
        let is_mark = running.marks.remove(&to);
        if running.tokens.len() >= running.kept + WORTH || is_mark {
            let place = match running.asked.request.branch.unwrap_or(total) == to {
                true => Place::End,
                false if is_mark => Place::Mark,
                false => Place::OnTheWay,
            };
            self.keep(running, place, None);
        }
        if to < total { None } else { self.begin_speaking(running) }
    }

    fn begin_speaking(&mut self, running: &mut Running<D>) -> Option<Result<Finish, Error>> {
        running.usage.prefill = running.since.elapsed();
        running.since = Instant::now();
        if let Some(mut missed) = running.usage.missed.take() {
            missed.cost = missed.spared(&running.usage);
            running.usage.missed = Some(missed);
        }
        let sampler = Box::new(Sampler::new(running.asked.request.sampling.clone()));
        let mask = running.asked.request.constraint.as_ref().map(|constraint| constraint.begin());
        running.phase = Phase::Speaking { sampler, mask, next: 0, heard: true };
        self.choose(running)
    }

    /// A token of the answer has been read.
    fn spoke(&mut self, running: &mut Running<D>, out: Vec<f32>) -> Option<Result<Finish, Error>> {
        running.logits = out;
        let Phase::Speaking { next, heard, .. } = running.phase else { return None };
        running.tokens.push(next);
        if heard { self.choose(running) } else { Some(Ok(Finish::Cancelled)) }
    }

    /// Chooses the next token, or ends.
    fn choose(&self, running: &mut Running<D>) -> Option<Result<Finish, Error>> {
        let request = &running.asked.request;
        let Phase::Speaking { sampler, mask, next, heard } = &mut running.phase else { return None };
        if request.max_tokens.is_some_and(|most| running.usage.generated_tokens >= most) {
            return Some(Ok(Finish::Length));
        }
        if running.tokens.len() >= self.shared.options.context {
            return Some(Ok(Finish::ContextFull));
        }
        let Choice { id, logprob, top } = match chosen(sampler, mask, &running.logits, &request.stop_tokens) {
            Ok(choice) => choice,
            Err(problem) => return Some(Err(Error::Constraint { problem })),
        };
        if request.stop_tokens.contains(&id) {
            return Some(Ok(Finish::Stop));
        }
        running.usage.generated_tokens += 1;
        *next = id;
        // Also what nobody listens to any more is read: the session has the token, and its state is to have seen it.
        *heard = (running.asked.sink)(Event::Token { id, logprob, top }).is_continue();
        None
    }

    /// Ends a request.
    fn end(&mut self, mut running: Running<D>, ended: Result<Finish, Error>) {
        let finish = match ended {
            Ok(finish) => finish,
            Err(e) => return self.fail(running.asked, e),
        };
        let has_read = running.is_speaking();
        let took = running.since.elapsed();
        *(if has_read { &mut running.usage.decode } else { &mut running.usage.prefill }) = took;
        let whole = has_read && finish != Finish::Cancelled;
        let wish = running.asked.wish.take().filter(|_| whole);
        // Where the prompt was not read to its end the state is good, and the session as it was.
        self.keep(&mut running, if has_read { Place::End } else { Place::Stopped }, wish);
        let Running { asked: Asked { mut sink, .. }, usage, state, tokens, .. } = running;
        // Before anybody hears of it, and may ask for more.
        drop(state);
        self.shared.count(&usage, tokens.len());
        self.shared.ended();
        // Nobody left to tell is no error.
        let _ = sink(Event::Done { reason: finish, usage });
    }

    /// Ends all requests, and keeps what they have read.
    fn stop(&mut self, waiting: Vec<Asked>) {
        for mut asked in waiting {
            let _ = (asked.sink)(Event::Failed(Error::ShuttingDown));
        }
        for mut running in std::mem::take(&mut self.running) {
            let place = if running.is_speaking() { Place::End } else { Place::Stopped };
            self.keep(&mut running, place, None);
            let Running { asked, state, .. } = running;
            drop(state);
            self.fail(asked, Error::ShuttingDown);
        }
    }

    fn fail(&self, mut asked: Asked, e: Error) {
        self.shared.ended();
        let _ = (asked.sink)(Event::Failed(e));
    }

    /// Keeps the state of a session as it is now, and has it written where there is a store.
    fn keep(&mut self, running: &mut Running<D>, place: Place, wish: Option<Wish>) {
        let position = running.tokens.len();
        let new = position > running.kept;
        let request = &running.asked.request;
        if position == 0 || !new && wish.is_none() && request.session.is_none() {
            return;
        }
        let Ok(state) = self.model.fork(&running.state) else { return };
        if new {
            running.fate = Arc::default();
        }
        let kept = Kept {
            owner: request.owner.clone(),
            session: request.session.clone(),
            timeline: Arc::new(running.tokens.clone()),
            state,
            logits: running.logits.clone(),
            end: place == Place::End,
            used: place == Place::Mark,
            head: place == Place::End && request.session.is_some(),
            fate: Arc::clone(&running.fate),
        };
        // A session of that name has no snapshot yet, though its state may have one.
        if let Some(keeper) = &self.keeper
            && (position >= running.kept + WORTH || wish.is_some() || kept.head)
        {
            keeper.save(&kept, wish);
        }
        running.kept = position;
        // What is on the way is in the store, if there is one, and not to take memory from sessions.
        if place != Place::OnTheWay || self.keeper.is_none() {
            self.cache.put(kept);
        }
    }
}

/// The next token, one of the mask's where there is one, which is told of it.
fn chosen(
    sampler: &mut Sampler,
    mask: &mut Option<Box<dyn Mask>>,
    logits: &[f32],
    stops: &[u32],
) -> Result<Choice, String> {
    let allowed = mask.as_mut().map(|mask| mask.allowed()).transpose()?;
    let choice = sampler.choose(logits, allowed).ok_or("no token may come next")?;
    if let Some(mask) = mask.as_mut().filter(|_| !stops.contains(&choice.id)) {
        mask.accept(choice.id)?;
    }
    Ok(choice)
}

/// Failures that more memory for state would mend.
pub(crate) trait Full {
    fn is_full(&self) -> bool;
}

impl Full for fathom_model::Error {
    fn is_full(&self) -> bool {
        matches!(self, fathom_model::Error::Device(fathom_kernels::Error::OutOfMemory { share: Share::State, .. }))
    }
}

impl Full for SnapshotError {
    fn is_full(&self) -> bool {
        matches!(self, SnapshotError::Model(e) if e.is_full())
    }
}

/// Does something that takes state, and lets kept states go while there is no room for it.
fn with_room<D: Device, T, E: Full>(
    cache: &mut Cache<D>,
    keeper: &Option<Keeper<D>>,
    mut work: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    loop {
        match work() {
            Err(e) if e.is_full() && make_room(cache, keeper) => {}
            other => return other,
        }
    }
}

/// Lets a kept state go, into the store where there is one; false if there is nothing left to let go.
fn make_room<D: Device>(cache: &mut Cache<D>, keeper: &Option<Keeper<D>>) -> bool {
    let gone = cache.evict();
    if let (Some(kept), Some(keeper)) = (&gone, keeper)
        && kept.is_owed()
    {
        keeper.save(kept, None);
    }
    let was_there = gone.is_some();
    drop(gone);
    // What waits to be written has memory too.
    was_there || keeper.as_ref().is_some_and(Keeper::relieve)
}
