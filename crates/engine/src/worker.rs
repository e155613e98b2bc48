//! The thread that runs the model: one request after another, each from the longest state that its prompt begins with.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use fathom_kernels::{Device, Share, human};
use fathom_model::{LogitsWanted, Model, Segment, State};
use fathom_store::Miss;

use crate::engine::{Shared, Sink, Work};
use crate::keeper::{Fate, Keeper, Wish};
use crate::kept::{Cache, Kept};
use crate::prefill::in_chunks;
use crate::sampler::{Choice, Sampler};
use crate::snapshot::{Resumed, SnapshotError};
use crate::{Error, Event, Finish, Missed, Owner, Request, Usage};

/// Positions of a prompt at whose multiples its state is kept.
const INTERVAL: usize = 8192;
/// New tokens that make a state worth keeping, and old ones worth looking for.
pub(crate) const WORTH: usize = 32;
/// Sessions that are tried for the same text in other tokens.
const SEAMS: usize = 4;

pub(crate) struct Worker<D: Device> {
    model: Arc<Model<D>>,
    shared: Arc<Shared>,
    pub(crate) cache: Cache<D>,
    pub(crate) keeper: Option<Keeper<D>>,
}

/// The session of a request that runs.
struct Running<D: Device> {
    owner: Owner,
    session: Option<Arc<str>>,
    tokens: Vec<u32>,
    state: State<D>,
    /// What follows the last of the tokens, if that is known.
    logits: Vec<f32>,
    /// How many of the tokens the last state that was kept of it has.
    kept: usize,
    fate: Arc<Fate>,
}

/// Where in a request a state is.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    /// Inside the prompt, which is read on.
    OnTheWay,
    /// Inside the prompt, which nobody waits for any more.
    Stopped,
    /// At the end of the prompt or of the answer.
    End,
}

impl<D: Device> Worker<D> {
    pub(crate) fn new(model: Arc<Model<D>>, shared: Arc<Shared>, keeper: Option<Keeper<D>>) -> Self {
        Worker { model, shared, cache: Cache::new(), keeper }
    }

    /// Works until the engine is closed and nothing waits.
    pub(crate) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        while let Some(work) = shared.next() {
            let model = Arc::clone(&self.model);
            model.device().scope(|| match work {
                Work::Answer { request, sink, wish } => self.serve(*request, sink, wish),
                Work::Forget(past) => self.cache.forget(&past),
            });
            shared.done();
        }
        if let Some(keeper) = &self.keeper {
            self.cache.drain().filter(Kept::is_owed).for_each(|kept| keeper.save(&kept, None));
        }
    }

    fn serve(&mut self, request: Request, mut sink: Sink, wish: Option<Wish>) {
        let last = match self.answer(request, &mut sink, wish) {
            Ok((reason, usage)) => {
                self.shared.count(&usage);
                Event::Done { reason, usage }
            }
            Err(e) => Event::Failed(e),
        };
        // Nobody left to tell is no error.
        let _ = sink(last);
    }

    fn answer(&mut self, mut request: Request, sink: &mut Sink, wish: Option<Wish>) -> Result<(Finish, Usage), Error> {
        self.admit(&request)?;
        let (mut running, mut missed) = self.session(&mut request)?;
        let (total, reused) = (request.prompt.len(), running.tokens.len());
        let mut usage = Usage { prompt_tokens: total, reused_tokens: reused, ..Usage::default() };
        let start = Instant::now();
        let read = sink(Event::Prefill { done: reused, total, reused }).is_continue()
            && self.read(&mut running, &request, reused, sink)?;
        usage.prefill = start.elapsed();
        if let Some(missed) = &mut missed {
            missed.cost = missed.spared(&usage);
        }
        usage.missed = missed;
        let finish = match read {
            true => {
                let start = Instant::now();
                let finish = self.generate(&mut running, &request, &mut usage, sink)?;
                usage.decode = start.elapsed();
                finish
            }
            false => Finish::Cancelled,
        };
        let whole = read && finish != Finish::Cancelled;
        // Where the prompt was not read to its end the state is good, and the session as it was.
        self.keep(&mut running, if read { Place::End } else { Place::Stopped }, wish.filter(|_| whole));
        Ok((finish, usage))
    }

    /// Refuses what no eviction could make room for.
    fn admit(&self, request: &Request) -> Result<(), Error> {
        let context = self.shared.options.context;
        let tokens = request.max_tokens.map_or(context, |most| context.min(request.prompt.len().saturating_add(most)));
        let (needed, limit) =
            (self.model.state_bytes(tokens), self.model.device().ledger().holding(Share::State).limit);
        match needed <= limit {
            true => Ok(()),
            false => Err(Error::Memory { tokens, needed: human(needed), limit: human(limit) }),
        }
    }

    /// Reads the rest of the prompt; false if the receiver had enough.
    fn read(
        &mut self,
        running: &mut Running<D>,
        request: &Request,
        reused: usize,
        sink: &mut Sink,
    ) -> Result<bool, Error> {
        let (total, chunk) = (request.prompt.len(), self.shared.options.prefill_chunk);
        while running.tokens.len() < total {
            let part = stretch(running.tokens.len(), request);
            let Range { start, end } = part;
            let mut read = start;
            let (model, cache, keeper) = (&self.model, &mut self.cache, &self.keeper);
            let state = &mut running.state;
            let mut pass = |tokens: &[u32], logits| {
                with_room(cache, keeper, || model.forward(&mut [Segment { state: &mut *state, tokens, logits }]))
            };
            let logits = in_chunks(&request.prompt[part], chunk, &mut pass, &mut |done| {
                read = start + done;
                sink(Event::Prefill { done: read, total, reused })
            })?;
            running.tokens.extend_from_slice(&request.prompt[start..read]);
            running.logits = logits.unwrap_or_default();
            if running.logits.is_empty() {
                return Ok(false);
            }
            let place = request.branch.unwrap_or(total) == end;
            if running.tokens.len() >= running.kept + WORTH {
                self.keep(running, if place { Place::End } else { Place::OnTheWay }, None);
            }
        }
        Ok(true)
    }

    fn generate(
        &mut self,
        running: &mut Running<D>,
        request: &Request,
        usage: &mut Usage,
        sink: &mut Sink,
    ) -> Result<Finish, Error> {
        let mut sampler = Sampler::new(request.sampling.clone());
        loop {
            if request.max_tokens.is_some_and(|most| usage.generated_tokens >= most) {
                return Ok(Finish::Length);
            }
            if running.tokens.len() >= self.shared.options.context {
                return Ok(Finish::ContextFull);
            }
            let Choice { id, logprob, top } = sampler.choose(&running.logits);
            if request.stop_tokens.contains(&id) {
                return Ok(Finish::Stop);
            }
            usage.generated_tokens += 1;
            let heard = sink(Event::Token { id, logprob, top }).is_continue();
            // Also when nobody listens any more: the session has the token, and its state is to have seen it.
            let (model, state) = (&self.model, &mut running.state);
            let out = with_room(&mut self.cache, &self.keeper, || {
                model.forward(&mut [Segment { state: &mut *state, tokens: &[id], logits: LogitsWanted::Last }])
            })?;
            running.logits = out.into_iter().next().unwrap_or_default();
            running.tokens.push(id);
            if !heard {
                return Ok(Finish::Cancelled);
            }
        }
    }

    /// Keeps the state of a session as it is now, and has it written where there is a store.
    fn keep(&mut self, running: &mut Running<D>, place: Place, wish: Option<Wish>) {
        let position = running.tokens.len();
        let new = position > running.kept;
        if position == 0 || !new && wish.is_none() && running.session.is_none() {
            return;
        }
        let Ok(state) = self.model.fork(&running.state) else { return };
        if new {
            running.fate = Arc::default();
        }
        let kept = Kept {
            owner: running.owner.clone(),
            session: running.session.clone(),
            timeline: Arc::new(running.tokens.clone()),
            state,
            logits: running.logits.clone(),
            end: place == Place::End,
            head: place == Place::End && running.session.is_some(),
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

    /// The longest state that the prompt goes on from, kept or stored, or a new one; and why it is not longer. The prompt's
    /// text may be known in other tokens: then it takes those.
    fn session(&mut self, request: &mut Request) -> Result<(Running<D>, Option<Missed>), Error> {
        let mut joined = false;
        loop {
            let have = self.cache.longest(&request.owner, &request.prompt).map_or(0, |kept| kept.state.position());
            let miss = match self.stored(request, have) {
                Ok((Some(resumed), miss)) => {
                    let missed = self.missed(request, resumed.state.position(), Ok(miss));
                    return Ok((running(request, resumed, Fate::saved()), missed));
                }
                Ok((None, miss)) => Ok(miss),
                Err(e) => Err(e),
            };
            if !joined && let Some(prompt) = self.join(request, have, miss.as_ref().ok().and_then(Option::as_ref)) {
                let shorter = request.prompt.len() - request.branch.unwrap_or(request.prompt.len());
                request.branch = request.branch.map(|_| prompt.len().saturating_sub(shorter));
                (request.prompt, joined) = (prompt, true);
                continue;
            }
            let missed = self.missed(request, have, miss);
            let kept = self.cache.longest(&request.owner, &request.prompt);
            let fate = kept.map_or_else(Arc::default, |kept| Arc::clone(&kept.fate));
            let start = match kept {
                Some(kept) => Resumed { state: self.model.fork(&kept.state)?, logits: kept.logits.clone() },
                None => {
                    let state = with_room(&mut self.cache, &self.keeper, || self.model.new_state())?;
                    Resumed { state, logits: Vec::new() }
                }
            };
            return Ok((running(request, start, fate), missed));
        }
    }

    /// What the store has beyond `have` tokens, as a session, and why it has no more. What it cannot give is computed.
    fn stored(&mut self, request: &Request, have: usize) -> Result<(Option<Resumed<D>>, Option<Miss>), SnapshotError> {
        let (owner, prompt) = (&request.owner, &request.prompt[..]);
        let Some(keeper) = &self.keeper else { return Ok((None, None)) };
        if have + WORTH > prompt.len() {
            return Ok((None, None));
        }
        let resume = with_room(&mut self.cache, &self.keeper, || keeper.resume(owner, prompt, have))?;
        let serves = |resumed: &Resumed<D>| resumed.state.position() < prompt.len() || !resumed.logits.is_empty();
        Ok((resume.resumed.filter(serves), resume.miss))
    }

    /// The prompt in the tokens of a session that has the same text and more of it than `have` tokens.
    fn join(&self, request: &Request, have: usize, miss: Option<&Miss>) -> Option<Vec<u32>> {
        let seam = request.seam.as_ref()?;
        let prompt = &request.prompt;
        let fits = |joined: &Vec<u32>| joined.len() < self.shared.options.context;
        let near = self.cache.near(&request.owner, prompt, have);
        let live = near.into_iter().take(SEAMS).find_map(|(shared, kept)| seam.join(prompt, kept.tokens(), shared));
        live.or_else(|| {
            let Some(&Miss::Differs { snapshot, position }) = miss else { return None };
            let namespace = self.keeper.as_ref()?.namespace(&request.owner).ok()?;
            (position >= have).then_some(())?;
            seam.join(prompt, &namespace.tokens(&snapshot).ok()?, position)
        })
        .filter(fits)
    }
}

/// The next stretch of a prompt: up to where a state is to be kept.
fn stretch(from: usize, request: &Request) -> Range<usize> {
    let total = request.prompt.len();
    let to = total.min((from / INTERVAL + 1) * INTERVAL);
    from..request.branch.filter(|branch| (from + 1..to).contains(branch)).unwrap_or(to)
}

fn running<D: Device>(request: &Request, start: Resumed<D>, fate: Arc<Fate>) -> Running<D> {
    let Resumed { state, logits } = start;
    let kept = state.position();
    let (owner, session) = (request.owner.clone(), request.session.clone());
    Running { owner, session, tokens: request.prompt[..kept].to_vec(), state, logits, kept, fate }
}

/// Failures that more memory for state would mend.
trait Full {
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

/// Does something that takes state, and lets kept states go, into the store where there is one, while there is no room for it.
fn with_room<D: Device, T, E: Full>(
    cache: &mut Cache<D>,
    keeper: &Option<Keeper<D>>,
    mut work: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    loop {
        let failed = match work() {
            Err(e) if e.is_full() => e,
            other => return other,
        };
        let gone = cache.evict();
        if let (Some(kept), Some(keeper)) = (&gone, keeper)
            && kept.is_owed()
        {
            keeper.save(kept, None);
        }
        let was_there = gone.is_some();
        drop(gone);
        // What waits to be written has memory too.
        let relieved = !was_there && keeper.as_ref().is_some_and(Keeper::relieve);
        if !was_there && !relieved {
            return Err(failed);
        }
    }
}
