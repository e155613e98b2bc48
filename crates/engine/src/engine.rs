//! The engine: a queue of requests, and the handle to the thread that works on them.

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fathom_kernels::{Device, Holding, Ledger, Share};
use fathom_model::Model;
use fathom_store::ImportLimits;

use crate::keeper::{Desk, Keep, Keeper, Wish};
use crate::snapshot::import_limits;
use crate::worker::{ROWS, Worker};
use crate::{Error, Event, Owner, Request, SnapshotError, Usage};

#[cfg(test)]
mod parallel;
#[cfg(test)]
mod tests;

/// States beside a session of the whole context that there is to be memory for: those that others go on from.
const SPARE: u64 = 4;
/// Where more wait than so many, they are told how many are before them once in so long.
const MANY: usize = 64;
const PAUSE: Duration = Duration::from_millis(250);

/// How to run.
#[derive(Debug, Clone, Copy)]
pub struct EngineOptions {
    /// The most tokens of prompts that are read in one pass.
    pub prefill_chunk: usize,
    /// Requests that run at once.
    pub parallel: usize,
    /// The time from one token to the next of those who speak that prompts read beside them keep to: passes aim at 0.55 of it, and
    /// reading has a fifth of it in any case. How many tokens are read follows from how long that took before.
    pub stall: Duration,
    /// Requests that may wait.
    pub queue: usize,
    /// The most tokens of a session, prompt and answer; at most the model's context.
    pub context: usize,
}

impl Default for EngineOptions {
    /// For one user: as the model holds, one request after another.
    fn default() -> Self {
        let stall = Duration::from_millis(250);
        EngineOptions { prefill_chunk: 512, parallel: 1, stall, queue: 16, context: usize::MAX }
    }
}

/// What an engine has done since it started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests that came to their end.
    pub requests: u64,
    /// Tokens of their prompts, of those that were stopped as many as had been seen.
    pub prompt_tokens: u64,
    /// Of those, the ones that were not read again.
    pub reused_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// The most tokens of one request, prompt and answer.
    pub longest: usize,
    /// The time that reading prompts took, and that answers took, added up over requests.
    pub prefill: Duration,
    /// See `prefill`.
    pub decode: Duration,
    /// Requests whose prompt was not all there that might have been, by [`Why::word`](crate::Why::word).
    pub missed: BTreeMap<&'static str, u64>,
}

pub(crate) type Sink = Box<dyn FnMut(Event) -> ControlFlow<()> + Send>;

/// A request, and who asked.
pub(crate) struct Asked {
    pub request: Request,
    pub sink: Sink,
    pub wish: Option<Wish>,
}

/// What a session was and is not any more.
pub(crate) struct Past {
    pub owner: Owner,
    pub session: String,
    /// Its tokens as they were.
    pub before: Arc<Vec<u32>>,
    /// Those that are left, and those of the owner's other sessions: their beginnings stay.
    pub others: Vec<Arc<Vec<u32>>>,
}

/// What the engine's handles and its thread share.
pub(crate) struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    counts: Mutex<Counts>,
    pub(crate) options: EngineOptions,
    import: ImportLimits,
    vocab: usize,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Asked>,
    /// Sessions' pasts that are to be dropped from memory.
    past: Vec<Past>,
    running: usize,
    /// Whether something happened that the thread has not looked at.
    news: bool,
    closed: bool,
    /// Whether those that run are to end now.
    stopped: bool,
    /// States that are kept, and their tokens.
    kept: (usize, usize),
    /// When those who wait were told last.
    told: Option<Instant>,
}

impl Queue {
    /// Tells those who wait how many are before them; those who are gone lose their places. Where many wait, not each time.
    fn tell_waiting(&mut self) {
        if self.waiting.len() > MANY && self.told.is_some_and(|told| told.elapsed() < PAUSE) {
            return;
        }
        self.told = Some(Instant::now());
        let mut ahead = self.running;
        self.waiting.retain_mut(|asked| {
            let stays = (asked.sink)(Event::Queued { ahead }).is_continue();
            ahead += usize::from(stays);
            stays
        });
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the thread if it waits.
    pub(crate) fn wake(&self) {
        self.lock().news = true;
        self.changed.notify_all();
    }

    /// What is to be forgotten. Waits for something to happen if there is nothing else to do. `kept` is what there is meanwhile.
    pub(crate) fn news(&self, idle: bool, kept: (usize, usize)) -> Vec<Past> {
        let mut queue = self.lock();
        queue.kept = kept;
        if idle {
            queue = self.changed.wait_while(queue, |queue| !queue.news).unwrap_or_else(PoisonError::into_inner);
        }
        queue.news = false;
        std::mem::take(&mut queue.past)
    }

    /// The next request, if `fits` says that it can start.
    pub(crate) fn take(&self, fits: impl FnOnce(&Request) -> bool) -> Option<Asked> {
        let mut queue = self.lock();
        if !queue.waiting.front().is_some_and(|asked| fits(&asked.request)) {
            return None;
        }
        let asked = queue.waiting.pop_front();
        queue.running += 1;
        queue.tell_waiting();
        asked
    }

    /// Notes that a request has come to its end.
    pub(crate) fn ended(&self) {
        self.lock().running -= 1;
    }

    /// Those who wait, if all are to end now.
    pub(crate) fn stopped(&self) -> Option<Vec<Asked>> {
        let mut queue = self.lock();
        queue.stopped.then(|| queue.waiting.drain(..).collect())
    }

    /// Whether no request will come any more.
    pub(crate) fn is_over(&self) -> bool {
        let queue = self.lock();
        queue.closed && queue.waiting.is_empty()
    }

    /// Counts a request that has come to its end, and has seen so many tokens.
    pub(crate) fn count(&self, usage: &Usage, seen: usize) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.requests += 1;
        counts.prompt_tokens += usage.prompt_tokens.min(seen) as u64;
        counts.reused_tokens += usage.reused_tokens as u64;
        counts.generated_tokens += usage.generated_tokens as u64;
        counts.longest = counts.longest.max(usage.prompt_tokens + usage.generated_tokens);
        counts.prefill += usage.prefill;
        counts.decode += usage.decode;
        if let Some(missed) = &usage.missed {
            *counts.missed.entry(missed.why.word()).or_default() += 1;
        }
    }
}

/// A handle to the thread that runs the model; clones are the same engine.
#[derive(Clone)]
pub struct Engine {
    shared: Arc<Shared>,
    thread: Arc<Mutex<Option<JoinHandle<()>>>>,
    ledger: Ledger,
    desk: Option<Arc<dyn Desk>>,
}

impl Engine {
    /// Starts the thread. A request goes on from the longest state that its prompt begins with. States are kept at the end of
    /// a prompt and of an answer, where a prompt parts from an earlier one, and at every 8,192nd token of a prompt, in memory as
    /// long as the ledger has room, and with `keep` in a store.
    pub fn start<D: Device>(model: Arc<Model<D>>, options: EngineOptions, keep: Option<Keep>) -> Engine {
        let config = model.config();
        let context = options.context.min(config.max_position_embeddings);
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            changed: Condvar::new(),
            counts: Mutex::default(),
            options: EngineOptions { context, parallel: options.parallel.max(1), ..options },
            import: import_limits(&model, context),
            vocab: config.vocab_size,
        });
        let keeper = keep.map(|keep| Keeper::start(Arc::clone(&model), keep));
        let desk = keeper.as_ref().map(Keeper::desk);
        let ledger = model.device().ledger().clone();
        let worker = Worker::new(model, Arc::clone(&shared), keeper);
        let closing = CloseOnPanic(Arc::clone(&shared));
        let thread = std::thread::spawn(move || {
            let _closing = closing;
            worker.run();
        });
        Engine { shared, thread: Arc::new(Mutex::new(Some(thread))), ledger, desk }
    }

    /// States of a token or of a page that an engine can use beside a session of the whole context: for those that others go on
    /// from, and those that are being written.
    pub const SPARE_STATES: u64 = SPARE + crate::keeper::STATES;

    /// Bytes of [`Engine::SPARE_STATES`].
    pub fn spare_bytes<D: Device>(model: &Model<D>) -> u64 {
        Engine::SPARE_STATES * model.state_bytes(1)
    }

    /// Rows of logits that a pass may want at most, with `parallel` requests at once.
    pub fn logits_rows(parallel: usize) -> usize {
        parallel + ROWS
    }

    /// Takes a request. `sink` gets its events, on the engine's thread or, while it waits, on those of others who submit: it
    /// must be quick, and must not call the engine. Break cancels.
    ///
    /// # Errors
    /// What is wrong with the request, [`Error::QueueFull`], [`Error::ShuttingDown`].
    pub fn submit(
        &self,
        request: Request,
        sink: impl FnMut(Event) -> ControlFlow<()> + Send + 'static,
    ) -> Result<(), Error> {
        self.enqueue(request, Box::new(sink), None)
    }

    /// The same, and saves the state at the end, whatever there is to save; `told` hears of it on a thread of the engine's, or is
    /// dropped if it does not come to that.
    ///
    /// # Errors
    /// As [`Engine::submit`].
    pub fn submit_and_save(
        &self,
        request: Request,
        sink: impl FnMut(Event) -> ControlFlow<()> + Send + 'static,
        pinned: bool,
        told: impl FnOnce(Result<fathom_store::Saved, SnapshotError>) + Send + 'static,
    ) -> Result<(), Error> {
        self.enqueue(request, Box::new(sink), Some(Wish { pinned, told: Box::new(told) }))
    }

    fn enqueue(&self, request: Request, mut sink: Sink, wish: Option<Wish>) -> Result<(), Error> {
        self.check(&request)?;
        let mut queue = self.shared.lock();
        if queue.closed {
            return Err(Error::ShuttingDown);
        }
        queue.tell_waiting();
        let (waiting, running) = (queue.waiting.len(), queue.running);
        let free = self.shared.options.parallel.saturating_sub(running);
        if waiting >= free + self.shared.options.queue {
            return Err(Error::QueueFull { waiting });
        }
        if waiting >= free && sink(Event::Queued { ahead: waiting + running }).is_break() {
            return Ok(());
        }
        queue.waiting.push_back(Asked { request, sink, wish });
        drop(queue);
        self.shared.wake();
        Ok(())
    }

    /// Makes sure that nothing of a session beyond a position is written any more, so that its snapshots there can be removed,
    /// and waits until the rest of it is.
    pub(crate) fn settle(&self, owner: &Owner, session: &str, position: usize) {
        if let Some(desk) = &self.desk {
            desk.settle(owner, session, position);
        }
    }

    /// Has what is stored of some tokens stored under a session's name too, soon.
    pub(crate) fn copy(&self, owner: &Owner, session: &str, tokens: Arc<Vec<u32>>) {
        if let Some(desk) = &self.desk {
            desk.copy(owner, session, tokens);
        }
    }

    /// Drops from memory what only a session's past had.
    pub(crate) fn forget(&self, past: Past) {
        self.shared.lock().past.push(past);
        self.shared.wake();
    }

    /// What it has done.
    pub fn counts(&self) -> Counts {
        self.shared.counts.lock().unwrap_or_else(PoisonError::into_inner).clone()
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

    /// What a file may hold to be a session of this model's.
    pub(crate) fn import_limits(&self) -> ImportLimits {
        self.shared.import
    }

    /// `vocab_size`.
    pub fn vocab_size(&self) -> usize {
        self.shared.vocab
    }

    /// The most tokens of a session.
    pub fn context(&self) -> usize {
        self.shared.options.context
    }

    /// Requests that wait, and that run.
    pub fn load(&self) -> (usize, usize) {
        let queue = self.shared.lock();
        (queue.waiting.len(), queue.running)
    }

    /// States in memory that requests can go on from, and the tokens that those have seen.
    pub fn kept(&self) -> (usize, usize) {
        self.shared.lock().kept
    }

    /// Who holds how much of the device's memory.
    pub fn memory(&self) -> Vec<Holding> {
        Share::ALL.map(|share| self.ledger.holding(share)).to_vec()
    }

    /// Takes no more requests, and ends those it has once the pass under way is over, each with [`Error::ShuttingDown`]; what they
    /// have read is kept.
    pub fn stop(&self) {
        let mut queue = self.shared.lock();
        (queue.closed, queue.stopped) = (true, true);
        drop(queue);
        self.shared.wake();
    }

    /// Whether it takes requests: not once it was stopped, or its thread has ended by a bug.
    pub fn is_open(&self) -> bool {
        !self.shared.lock().closed
    }

    /// Takes no more requests, finishes those it has, and stops the thread.
    pub fn drain(&self) {
        self.shared.lock().closed = true;
        self.shared.wake();
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
