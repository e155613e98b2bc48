//! One thread that runs the model, and the queue before it.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use fathom_kernels::Device;
use fathom_model::{LogitsWanted, Model, Segment, State};

use crate::keeper::{Keep, Keeper};
use crate::sampler::{Choice, Sampler};
use crate::snapshot::Resumed;
use crate::{Error, Event, Finish, Request, Usage, prefill};

#[cfg(test)]
mod tests;

/// Tokens of a prompt after which its session is saved, if there is a store.
const INTERVAL: usize = 8192;
/// New tokens that make a session worth saving, and old ones worth looking for.
const WORTH: usize = 32;

/// How to run.
#[derive(Debug, Clone, Copy)]
pub struct EngineOptions {
    /// Tokens of a prompt that are read at once.
    pub prefill_chunk: usize,
    /// Requests that may wait.
    pub queue: usize,
    /// The most tokens of a session, prompt and answer; at most the model's context.
    pub context: usize,
}

type Sink = Box<dyn FnMut(Event) -> ControlFlow<()> + Send>;

struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    options: EngineOptions,
    vocab: usize,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<(Request, Sink)>,
    running: bool,
    closed: bool,
}

impl Queue {
    /// Tells those who wait how many are ahead; those who are gone lose their places.
    fn tell_waiting(&mut self) {
        let mut ahead = usize::from(self.running);
        self.waiting.retain_mut(|(_, sink)| {
            let stays = sink(Event::Queued { ahead }).is_continue();
            ahead += usize::from(stays);
            stays
        });
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A handle to the thread that runs the model; clones are the same engine.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl Engine {
    /// Starts the thread. With `keep`, sessions are saved at the end of a request and every 8,192 tokens of a prompt,
    /// and a request goes on from the longest that its prompt begins with. That takes [`Engine::keep_bytes`] of state more.
    pub fn start<D: Device>(model: Arc<Model<D>>, options: EngineOptions, keep: Option<Keep>) -> Engine {
        let config = model.config();
        let context = options.context.min(config.max_position_embeddings);
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            changed: Condvar::new(),
            options: EngineOptions { context, ..options },
            vocab: config.vocab_size,
        });
        let keeper = keep.map(|keep| Keeper::start(Arc::clone(&model), keep));
        let worker = Worker { model, shared: Arc::clone(&shared), kept: None, keeper };
        let closing = CloseOnPanic(Arc::clone(&shared));
        let thread = std::thread::spawn(move || {
            let _closing = closing;
            worker.run();
        });
        Engine { shared, thread: Arc::new(Mutex::new(Some(thread))) }
    }

    /// Bytes of state that an engine with a store may take beside its sessions'.
    pub fn keep_bytes<D: Device>(model: &Model<D>) -> u64 {
        Keeper::state_bytes(model)
    }

    /// Takes a request. `sink` gets its events, on the engine's thread or, while it waits, on those of others who submit: it
    /// must be quick, and must not call the engine. Break cancels.
    ///
    /// # Errors
    /// What is wrong with the request, [`Error::QueueFull`], [`Error::ShuttingDown`].
    pub fn submit(
        &self,
        request: Request,
        mut sink: impl FnMut(Event) -> ControlFlow<()> + Send + 'static,
    ) -> Result<(), Error> {
        self.check(&request)?;
        let mut queue = self.shared.lock();
        if queue.closed {
            return Err(Error::ShuttingDown);
        }
        queue.tell_waiting();
        let ahead = queue.waiting.len() + usize::from(queue.running);
        if queue.waiting.len() >= self.shared.options.queue && queue.running {
            return Err(Error::QueueFull { waiting: queue.waiting.len() });
        }
        if ahead > 0 && sink(Event::Queued { ahead }).is_break() {
            return Ok(());
        }
        queue.waiting.push_back((request, Box::new(sink)));
        self.shared.changed.notify_all();
        Ok(())
    }

    /// What [`Engine::submit`] checks before it queues.
    ///
    /// # Errors
    /// What is wrong with the request.
    pub fn check(&self, request: &Request) -> Result<(), Error> {
        let (vocab, context) = (self.shared.vocab, self.shared.options.context);
        request.sampling.check(vocab)?;
        if request.prompt.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        if request.prompt.len() >= context && request.max_tokens != Some(0) || request.prompt.len() > context {
            return Err(Error::PromptTooLong { tokens: request.prompt.len(), context });
        }
        match request.prompt.iter().position(|&token| token as usize >= vocab) {
            Some(position) => Err(Error::Token { token: request.prompt[position], position, vocab }),
            None => Ok(()),
        }
    }

    /// `vocab_size`.
    pub fn vocab_size(&self) -> usize {
        self.shared.vocab
    }

    /// The most tokens of a session.
    pub fn context(&self) -> usize {
        self.shared.options.context
    }

    /// Requests waiting, and whether one runs.
    pub fn load(&self) -> (usize, bool) {
        let queue = self.shared.lock();
        (queue.waiting.len(), queue.running)
    }

    /// Takes no more requests, finishes those it has, and stops the thread.
    pub fn drain(&self) {
        self.shared.lock().closed = true;
        self.shared.changed.notify_all();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic of the thread has been printed by it.
            let _ = thread.join();
        }
    }
}

/// A bug that panics in the engine's thread must not leave anybody waiting: requests are dropped, which their receivers
/// see, and no more are taken.
struct CloseOnPanic(Arc<Shared>);

impl Drop for CloseOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let mut queue = self.0.lock();
            queue.closed = true;
            queue.waiting.clear();
        }
    }
}

/// A finished session that the next request may go on from.
struct Kept<D: Device> {
    tokens: Vec<u32>,
    state: State<D>,
    /// What follows the last of the tokens, if that is known.
    logits: Vec<f32>,
    /// How many of the tokens the store has.
    saved: usize,
}

struct Worker<D: Device> {
    model: Arc<Model<D>>,
    shared: Arc<Shared>,
    kept: Option<Kept<D>>,
    keeper: Option<Keeper<D>>,
}

impl<D: Device> Worker<D> {
    fn run(mut self) {
        let mut queue = self.shared.lock();
        loop {
            if let Some((request, sink)) = queue.waiting.pop_front() {
                queue.running = true;
                queue.tell_waiting();
                drop(queue);
                let model = Arc::clone(&self.model);
                model.device().scope(|| self.serve(request, sink));
                queue = self.shared.lock();
                queue.running = false;
            } else if queue.closed {
                return;
            } else {
                // The borrow of `self.shared` ends with the guard, which `wait` gives back.
                let shared = Arc::clone(&self.shared);
                drop(queue);
                drop(shared.changed.wait_while(shared.lock(), |q| q.waiting.is_empty() && !q.closed));
                queue = self.shared.lock();
            }
        }
    }

    fn serve(&mut self, request: Request, mut sink: Sink) {
        let last = match self.answer(&request, &mut sink) {
            Ok((reason, usage)) => Event::Done { reason, usage },
            Err(e) => Event::Failed(e),
        };
        // Nobody left to tell is no error.
        let _ = sink(last);
        drop(sink);
        // After the answer: nobody waits for it but the next.
        if let Some(mut kept) = self.kept.take() {
            self.save(&mut kept, true);
            self.kept = Some(kept);
        }
    }

    fn answer(&mut self, request: &Request, sink: &mut Sink) -> Result<(Finish, Usage), Error> {
        let model = Arc::clone(&self.model);
        let total = request.prompt.len();
        let mut usage = Usage { prompt_tokens: total, ..Usage::default() };
        let mut session = self.session(&request.prompt)?;
        let reused = session.tokens.len();
        usage.reused_tokens = reused;
        if sink(Event::Prefill { done: reused, total, reused }).is_break() {
            self.kept = (reused > 0).then_some(session);
            return Ok((Finish::Cancelled, usage));
        }

        let start = Instant::now();
        while session.tokens.len() < total {
            let from = session.tokens.len();
            let stretch = &request.prompt[from..total.min(from + INTERVAL)];
            let mut read = from;
            let logits =
                prefill(&model, &mut session.state, stretch, self.shared.options.prefill_chunk, &mut |done| {
                    read = from + done;
                    sink(Event::Prefill { done: read, total, reused })
                })?;
            session.tokens.extend_from_slice(&request.prompt[from..read]);
            session.logits = logits.unwrap_or_default();
            if session.logits.is_empty() {
                self.kept = Some(session);
                return Ok((Finish::Cancelled, usage));
            }
            self.save(&mut session, false);
        }
        usage.prefill = start.elapsed();

        let start = Instant::now();
        let mut sampler = Sampler::new(request.sampling.clone());
        let reason = loop {
            if request.max_tokens.is_some_and(|most| usage.generated_tokens >= most) {
                break Finish::Length;
            }
            if session.tokens.len() >= self.shared.options.context {
                break Finish::ContextFull;
            }
            let Choice { id, logprob, top } = sampler.choose(&session.logits);
            if request.stop_tokens.contains(&id) {
                break Finish::Stop;
            }
            usage.generated_tokens += 1;
            if sink(Event::Token { id, logprob, top }).is_break() {
                break Finish::Cancelled;
            }
            let wanted = LogitsWanted::Last;
            let state = &mut session.state;
            let out = model.forward(&mut [Segment { state, tokens: &[id], logits: wanted }])?;
            session.logits = out.into_iter().next().unwrap_or_default();
            session.tokens.push(id);
        };
        usage.decode = start.elapsed();
        self.kept = Some(session);
        Ok((reason, usage))
    }

    /// Has the session saved, if there is enough new in it; where too many wait already, only if it may `wait` for them.
    fn save(&self, session: &mut Kept<D>, wait: bool) {
        if let Some(keeper) = &self.keeper
            && session.tokens.len() >= session.saved + WORTH
            && keeper.save(&session.state, &session.tokens, &session.logits, wait)
        {
            session.saved = session.tokens.len();
        }
    }

    /// The longest session that the prompt goes on from: the kept one, one from the store, or a new one. One that has the whole
    /// prompt must have its logits.
    fn session(&mut self, prompt: &[u32]) -> Result<Kept<D>, Error> {
        let fits = |kept: &Kept<D>| {
            prompt.starts_with(&kept.tokens) && (kept.tokens.len() < prompt.len() || !kept.logits.is_empty())
        };
        let mut best = self.kept.take().filter(fits);
        if let (None, Some(keeper)) = (&best, &self.keeper) {
            // There is memory for one session, and another begins.
            keeper.wait();
        }
        let have = best.as_ref().map_or(0, |kept| kept.tokens.len());
        if let Some(keeper) = &self.keeper
            && have + WORTH <= prompt.len()
            // Before its state is read, the memory of the one that did not fit is free. What a store cannot give is computed.
            && let Ok(found) = keeper.find(prompt)
            && found > have
        {
            drop(best.take());
            keeper.wait();
            // Failed or gone meanwhile, it is as if there were none.
            let resumed = keeper.resume(prompt).ok().and_then(|resume| resume.resumed);
            best = resumed
                .map(|Resumed { state, logits }| {
                    let tokens = prompt[..state.position()].to_vec();
                    Kept { saved: tokens.len(), tokens, state, logits }
                })
                .filter(fits);
        }
        match best {
            Some(kept) => Ok(kept),
            None => Ok(Kept { tokens: Vec::new(), state: self.model.new_state()?, logits: Vec::new(), saved: 0 }),
        }
    }
}
