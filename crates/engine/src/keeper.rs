//! What an engine keeps of its sessions in a store, and the thread that writes it.
//!
//! A session is forked, which costs nothing, and the fork is written while the session goes on.

use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use fathom_kernels::Device;
use fathom_model::{Model, State};
use fathom_store::{Namespace, NewSnapshot, Saved, Subject};

use crate::snapshot::{Resume, SnapshotError, resume, save};

/// Sessions that wait to be written at most. When a store is slower than that, some states are not saved, and later ones are.
const WAITING: usize = 2;

/// Where an engine keeps its sessions.
pub struct Keep {
    /// Where they go.
    pub namespace: Namespace,
    /// What they belong to: see [`subject`](crate::subject).
    pub subject: Subject,
    /// Told of each snapshot that was written, or why it was not; on a thread of the engine's.
    pub told: Box<dyn Fn(Result<Saved, SnapshotError>) + Send>,
}

struct Job<D: Device> {
    state: State<D>,
    tokens: Vec<u32>,
    logits: Vec<f32>,
}

#[derive(Default)]
struct Busy {
    count: Mutex<usize>,
    changed: Condvar,
}

impl Busy {
    fn add(&self) {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    }

    fn done(&self) {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.changed.notify_all();
    }

    fn wait(&self) {
        let count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changed.wait_while(count, |count| *count > 0));
    }
}

/// Counts a session as written when it ends, however it ends.
struct Done<'a>(&'a Busy);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.done();
    }
}

/// The store of an engine.
pub(crate) struct Keeper<D: Device> {
    model: Arc<Model<D>>,
    namespace: Namespace,
    subject: Subject,
    jobs: Option<SyncSender<Job<D>>>,
    /// Sessions that wait or are being written.
    busy: Arc<Busy>,
    thread: Option<JoinHandle<()>>,
}

impl<D: Device> Keeper<D> {
    pub(crate) fn start(model: Arc<Model<D>>, keep: Keep) -> Self {
        let (jobs, queue) = sync_channel::<Job<D>>(WAITING);
        let Keep { namespace, subject, told } = keep;
        let writer = (Arc::clone(&model), namespace.clone(), subject.clone());
        let busy = Arc::new(Busy::default());
        let counted = Arc::clone(&busy);
        let thread = std::thread::spawn(move || {
            let (model, namespace, subject) = writer;
            for job in queue {
                // Dropped last, after the session's memory.
                let _done = Done(&counted);
                let Job { state, tokens, logits } = job;
                let new = NewSnapshot { tokens: &tokens, ..NewSnapshot::default() };
                told(save(&model, &state, &logits, &namespace, &subject, &new));
            }
        });
        Keeper { model, namespace, subject, jobs: Some(jobs), busy, thread: Some(thread) }
    }

    /// Bytes of state that sessions waiting to be written, and one being written, may hold of their own.
    pub(crate) fn state_bytes(model: &Model<D>) -> u64 {
        (WAITING as u64 + 1) * model.state_bytes(1)
    }

    /// Has a session written, and says whether; where too many wait already, that happens only if it may `wait` for one of
    /// them. `logits` follow its last token.
    pub(crate) fn save(&self, state: &State<D>, tokens: &[u32], logits: &[f32], wait: bool) -> bool {
        let (Some(jobs), Ok(state)) = (&self.jobs, self.model.fork(state)) else { return false };
        let job = Job { state, tokens: tokens.to_vec(), logits: logits.to_vec() };
        self.busy.add();
        let sent = if wait { jobs.send(job).is_ok() } else { jobs.try_send(job).is_ok() };
        if !sent {
            self.busy.done();
        }
        sent
    }

    /// Waits until nothing waits: what is written holds the memory of its session.
    pub(crate) fn wait(&self) {
        self.busy.wait();
    }

    /// How long the longest session is that `tokens` begin with.
    pub(crate) fn find(&self, tokens: &[u32]) -> Result<usize, fathom_store::Error> {
        Ok(self.namespace.find(&self.subject, tokens)?.best.map_or(0, |best| best.position))
    }

    /// The longest session that `tokens` begin with.
    pub(crate) fn resume(&self, tokens: &[u32]) -> Result<Resume<D>, SnapshotError> {
        resume(&self.model, &self.namespace, &self.subject, tokens)
    }
}

impl<D: Device> Drop for Keeper<D> {
    /// Waits until all is written.
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed by it.
            let _ = thread.join();
        }
    }
}
