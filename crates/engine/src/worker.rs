//! The thread that runs the model: passes over the weights, in which every running request takes its part.
//!
//! A request waits in the queue until there is a place and memory for it, is looked up in the store by a thread of its own, and
//! then runs: it reads its prompt from the longest state that it begins with, and speaks. In a pass all who speak get their next
//! token, and beside them as many tokens of prompts are read as may delay those. Who runs beside a request does not change its
//! bits, so when and with whom it runs is free.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::TryRecvError;
use std::time::{Duration, Instant};

use fathom_kernels::{Device, Share, human};
use fathom_model::Model;

use crate::engine::{Asked, Shared};
use crate::keeper::{Fate, Keeper, Wish};
use crate::kept::{Cache, Kept, shared};
use crate::lookup::{Found, Looking};
use crate::pace::Pace;
use crate::room::{Hold, fit};
use crate::running::{Part, Phase, Running};
use crate::sampler::{Choice, Sampler, report};
use crate::snapshot::{Resumed, SnapshotError};
use crate::{Error, Event, Finish, Request, Usage};

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
    /// The same, and somebody waits for it.
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
            self.shared.news(idle).iter().for_each(|past| self.cache.forget(past));
            if self.running.is_empty() && self.looking.is_empty() && self.shared.is_over() {
                break;
            }
            idle = model.device().scope(|| {
                self.take_found();
                self.admit();
                !self.pass()
            });
        }
        if let Some(keeper) = &self.keeper {
            self.cache.drain().filter(Kept::is_owed).for_each(|kept| keeper.save(&kept, None));
        }
    }

    /// Lets requests in, in their order, as long as there are places and memory.
    fn admit(&mut self) {
        while self.running.len() + self.looking.len() < self.shared.options.parallel && !self.tight {
            let limit = self.limit();
            let mut holds = self.holds();
            let fits = |request: &Request| {
                holds.push(self.hold(request));
                // One that never fits is told so now.
                self.fits_alone(request).is_err() || fit(limit, &holds)
            };
            let Some(asked) = self.shared.take(fits) else { return };
            match self.fits_alone(&asked.request) {
                Ok(()) => self.look(asked, false),
                Err(e) => self.fail(asked, e),
            }
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

    fn hold(&self, request: &Request) -> Hold {
        Hold { now: self.model.state_bytes(request.prompt.len()), most: self.model.state_bytes(self.longest(request)) }
    }

    /// The most tokens that a request may come to.
    fn longest(&self, request: &Request) -> usize {
        let context = self.shared.options.context;
        request.max_tokens.map_or(context, |most| context.min(request.prompt.len().saturating_add(most)))
    }

    /// Refuses what would not fit with nobody else there.
    fn fits_alone(&self, request: &Request) -> Result<(), Error> {
        let (needed, limit) = (self.hold(request).most, self.limit());
        match needed <= limit {
            true => Ok(()),
            false => Err(Error::Memory { tokens: self.longest(request), needed: human(needed), limit: human(limit) }),
        }
    }

    /// Looks for a request's prompt, in memory and in the store.
    fn look(&mut self, asked: Asked, joined: bool) {
        let request = &asked.request;
        let have = self.cache.longest(&request.owner, &request.prompt).map_or(0, |kept| kept.state.position());
        match &self.keeper {
            Some(keeper) if have + WORTH <= request.prompt.len() && request.prompt_logprobs.is_none() => {
                let hold = self.hold(request);
                self.looking.push(keeper.lookup().start(asked, joined, have, hold, Arc::clone(&self.shared)));
            }
            _ => self.found(Found::nothing(asked, joined)),
        }
    }

    /// Goes on with those that have been looked up.
    fn take_found(&mut self) {
        for looking in std::mem::take(&mut self.looking) {
            match looking.found.try_recv() {
                Ok(found) => self.found(found),
                Err(TryRecvError::Empty) => self.looking.push(looking),
                Err(TryRecvError::Disconnected) => self.shared.ended(),
            }
        }
    }

    /// Starts from the longest state that the prompt goes on from, kept or stored, or a new one. The prompt's text may be known in
    /// other tokens: then it takes those.
    fn found(&mut self, found: Found<D>) {
        let Found { mut asked, joined, resumed, missed, seam, full } = found;
        if full && make_room(&mut self.cache, &self.keeper) {
            return self.look(asked, joined);
        }
        let request = &mut asked.request;
        if request.prompt_logprobs.is_some() {
            // What follows each token is not kept anywhere.
            let start = with_room(&mut self.cache, &self.keeper, || self.model.new_state());
            return self.start(asked, start.map(|state| Resumed { state, logits: Vec::new() }), Arc::default(), None);
        }
        let have = self.cache.longest(&request.owner, &request.prompt).map_or(0, |kept| kept.state.position());
        let serves = |resumed: &Resumed<D>| {
            let position = resumed.state.position();
            position > have && (position < request.prompt.len() || !resumed.logits.is_empty())
        };
        if let Some(resumed) = resumed.filter(serves) {
            let missed = self.missed(request, resumed.state.position(), missed);
            return self.start(asked, Ok(resumed), Fate::saved(), missed);
        }
        let context = self.shared.options.context;
        let seam = (!joined).then(|| self.join(request, have).or(seam)).flatten();
        if let Some(prompt) = seam.filter(|prompt| prompt.len() < context) {
            let shorter = request.prompt.len() - request.branch.unwrap_or(request.prompt.len());
            request.branch = request.branch.map(|_| prompt.len().saturating_sub(shorter));
            request.prompt = prompt;
            return self.look(asked, true);
        }
        let missed = self.missed(request, have, missed);
        let (start, fate) = self.nearest(request);
        self.start(asked, start, fate, missed);
    }

    /// The longest state in memory that a prompt goes on from, or a new one.
    fn nearest(&mut self, request: &Request) -> (Result<Resumed<D>, fathom_model::Error>, Arc<Fate>) {
        match self.cache.longest(&request.owner, &request.prompt) {
            Some(kept) => {
                let logits = kept.logits.clone();
                (self.model.fork(&kept.state).map(|state| Resumed { state, logits }), Arc::clone(&kept.fate))
            }
            None => {
                let state = with_room(&mut self.cache, &self.keeper, || self.model.new_state());
                (state.map(|state| Resumed { state, logits: Vec::new() }), Arc::default())
            }
        }
    }

    /// The prompt in the tokens of a session in memory that has the same text and more of it than `have` tokens.
    fn join(&self, request: &Request, have: usize) -> Option<Vec<u32>> {
        let seam = request.seam.as_ref()?;
        let near = self.cache.near(&request.owner, &request.prompt, have);
        near.into_iter().take(SEAMS).find_map(|(shared, kept)| seam.join(&request.prompt, kept.tokens(), shared))
    }

    fn start(
        &mut self,
        asked: Asked,
        from: Result<Resumed<D>, fathom_model::Error>,
        fate: Arc<Fate>,
        missed: Option<crate::Missed>,
    ) {
        let Resumed { state, logits } = match from {
            Ok(from) => from,
            Err(e) => return self.fail(asked, e.into()),
        };
        self.started += 1;
        let reused = state.position();
        let usage =
            Usage { prompt_tokens: asked.request.prompt.len(), reused_tokens: reused, missed, ..Usage::default() };
        let running = Running {
            id: self.started,
            tokens: asked.request.prompt[..reused].to_vec(),
            most: self.hold(&asked.request).most,
            asked,
            state,
            logits,
            kept: reused,
            fate,
            marks: BTreeSet::new(),
            usage,
            since: Instant::now(),
            phase: Phase::Reading,
        };
        self.begin(running);
    }

    /// Begins to read, or waits for another that reads the same.
    fn begin(&mut self, mut running: Running<D>) {
        if let Some((leader, mark)) = self.leader(&running) {
            running.phase = Phase::Following { leader, mark };
            return self.running.push(running);
        }
        running.phase = Phase::Reading;
        let ended = match running.tell_progress() {
            true if running.left() == 0 => self.begin_speaking(&mut running),
            true => None,
            false => Some(Finish::Cancelled),
        };
        match ended {
            Some(finish) => self.end(running, Ok(finish)),
            None => self.running.push(running),
        }
    }

    /// One that reads on through the same text, and how far; it will keep its state there.
    fn leader(&mut self, running: &Running<D>) -> Option<(u64, usize)> {
        let request = &running.asked.request;
        let have = running.tokens.len();
        if request.prompt_logprobs.is_some() {
            return None;
        }
        let others =
            self.running.iter_mut().filter(|other| other.is_reading() && other.asked.request.owner == request.owner);
        let (mark, leader) = others
            .map(|other| (shared(&other.asked.request.prompt, &request.prompt), other))
            .filter(|(shared, other)| *shared >= have + WORTH && *shared > other.tokens.len())
            .max_by_key(|(shared, other)| (*shared, other.tokens.len()))?;
        leader.marks.insert(mark);
        Some((leader.id, mark))
    }

    /// Lets those go on whose leaders have come to where they part, or have ended.
    fn catch_up(&mut self) {
        let leads = |id: u64, mark: usize, all: &[Running<D>]| {
            all.iter().any(|other| other.id == id && other.is_reading() && other.tokens.len() < mark)
        };
        while let Some(at) = self.running.iter().position(
            |running| matches!(running.phase, Phase::Following { leader, mark } if !leads(leader, mark, &self.running)),
        ) {
            let mut running = self.running.remove(at);
            let have = running.tokens.len();
            let request = &running.asked.request;
            let longest = self.cache.longest(&request.owner, &request.prompt).map_or(0, |kept| kept.state.position());
            if longest > have
                && let (Ok(from), fate) = self.nearest(request)
            {
                (running.state, running.logits, running.fate) = (from.state, from.logits, fate);
                running.tokens.extend_from_slice(&request.prompt[have..longest]);
                (running.kept, running.usage.reused_tokens) = (longest, longest);
                running.usage.missed = running.usage.missed.filter(|missed| missed.matched > longest);
            }
            self.begin(running);
        }
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
            Ok(out) if running.is_speaking() => self.spoke(&mut running, out).map(Ok),
            Ok(out) => self.read(&mut running, part.tokens, out).map(Ok),
            Err(e) => Some(Err(e)),
        };
        match ended {
            Some(ended) => self.end(running, ended),
            None => self.running.insert(part.at, running),
        }
    }

    /// Some tokens of the prompt have been read.
    fn read(&mut self, running: &mut Running<D>, tokens: usize, mut out: Vec<f32>) -> Option<Finish> {
        let stretch = running.stretch();
        let to = stretch.start + tokens;
        if let Some(top) = running.asked.request.prompt_logprobs {
            let vocab = self.model.config().vocab_size;
            let request = &running.asked.request;
            let ids = request.prompt[stretch.start + 1..].iter();
            for (row, &id) in out.chunks_exact(vocab).zip(ids) {
                let Choice { id, logprob, top } = report(row, id, top);
                if (running.asked.sink)(Event::Read { id, logprob, top }).is_break() {
                    return Some(Finish::Cancelled);
                }
            }
            out = if to == stretch.end { out.split_off(out.len() - vocab) } else { Vec::new() };
        }
        running.tokens.extend_from_slice(&running.asked.request.prompt[stretch.start..to]);
        running.logits = out;
        if !running.tell_progress() {
            running.logits.clear();
            return Some(Finish::Cancelled);
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

    fn begin_speaking(&mut self, running: &mut Running<D>) -> Option<Finish> {
        running.usage.prefill = running.since.elapsed();
        running.since = Instant::now();
        if let Some(mut missed) = running.usage.missed.take() {
            missed.cost = missed.spared(&running.usage);
            running.usage.missed = Some(missed);
        }
        let sampler = Box::new(Sampler::new(running.asked.request.sampling.clone()));
        running.phase = Phase::Speaking { sampler, next: 0, heard: true };
        self.choose(running)
    }

    /// A token of the answer has been read.
    fn spoke(&mut self, running: &mut Running<D>, out: Vec<f32>) -> Option<Finish> {
        running.logits = out;
        let Phase::Speaking { next, heard, .. } = running.phase else { return None };
        running.tokens.push(next);
        if heard { self.choose(running) } else { Some(Finish::Cancelled) }
    }

    /// Chooses the next token, or ends.
    fn choose(&self, running: &mut Running<D>) -> Option<Finish> {
        let request = &running.asked.request;
        let Phase::Speaking { sampler, next, heard } = &mut running.phase else { return None };
        if request.max_tokens.is_some_and(|most| running.usage.generated_tokens >= most) {
            return Some(Finish::Length);
        }
        if running.tokens.len() >= self.shared.options.context {
            return Some(Finish::ContextFull);
        }
        let Choice { id, logprob, top } = sampler.choose(&running.logits);
        if request.stop_tokens.contains(&id) {
            return Some(Finish::Stop);
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
        let Running { asked: Asked { mut sink, .. }, usage, state, .. } = running;
        // Before anybody hears of it, and may ask for more.
        drop(state);
        self.shared.count(&usage);
        self.shared.ended();
        // Nobody left to tell is no error.
        let _ = sink(Event::Done { reason: finish, usage });
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
