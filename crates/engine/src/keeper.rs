//! What an engine keeps of its sessions in a store, and the thread that writes it.
//!
//! A session is forked, which costs nothing, and the fork is written while the session goes on.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fathom_kernels::Device;
use fathom_model::{Model, State};
use fathom_store::{NewSnapshot, Saved, Store, Subject};

use crate::kept::Kept;
use crate::lookup::Lookup;
use crate::snapshot::{SnapshotError, save};
use crate::{Owner, names};

/// States that wait to be written at most. When a store is slower than that, one of them is not written: see [`least`].
const WAITING: usize = 2;

/// Where an engine keeps its sessions.
pub struct Keep {
    /// Where they go, each owner's into a namespace of that name.
    pub store: Store,
    /// What they belong to: see [`subject`](crate::subject).
    pub subject: Subject,
    /// How long they stay after they were last written; as long as the quota allows where not said.
    pub lasts: Option<Duration>,
    /// Told of each snapshot that was written, or why it was not; on a thread of the engine's.
    pub told: Told,
}

/// Who hears what became of a snapshot.
pub type Told = Box<dyn Fn(&Result<Saved, SnapshotError>) + Send>;

/// What became of a state in the store.
#[derive(Default)]
pub(crate) struct Fate(AtomicU8);

impl Fate {
    const NEW: u8 = 0;
    const WAITS: u8 = 1;
    const SAVED: u8 = 2;

    /// Of a state that came from the store.
    pub(crate) fn saved() -> Arc<Fate> {
        Arc::new(Fate(AtomicU8::new(Fate::SAVED)))
    }

    /// Whether nobody has written it, or is going to.
    pub(crate) fn is_new(&self) -> bool {
        self.0.load(Ordering::Relaxed) == Fate::NEW
    }

    fn set(&self, to: u8) {
        self.0.store(to, Ordering::Relaxed);
    }
}

/// A snapshot that somebody asked for.
pub(crate) struct Wish {
    pub pinned: bool,
    pub told: Box<dyn FnOnce(Result<Saved, SnapshotError>) + Send>,
}

/// See [`Keeper::settle`].
pub(crate) type Settle = Arc<dyn Fn(&Owner, &str) + Send + Sync>;

struct Job<D: Device> {
    owner: Owner,
    session: Option<Arc<str>>,
    state: State<D>,
    timeline: Arc<Vec<u32>>,
    logits: Vec<f32>,
    end: bool,
    fate: Arc<Fate>,
    wish: Option<Wish>,
}

struct Jobs<D: Device> {
    waiting: VecDeque<Job<D>>,
    /// Whose state is being written, of which session.
    writing: Option<(Owner, Option<Arc<str>>)>,
    closed: bool,
}

struct Queue<D: Device> {
    jobs: Mutex<Jobs<D>>,
    changed: Condvar,
}

impl<D: Device> Queue<D> {
    fn lock(&self) -> MutexGuard<'_, Jobs<D>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_while(&self, condition: impl Fn(&Jobs<D>) -> bool) -> MutexGuard<'_, Jobs<D>> {
        self.changed.wait_while(self.lock(), |jobs| condition(jobs)).unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts a state as written when it ends, however it ends.
struct Done<'a, D: Device>(&'a Queue<D>);

impl<D: Device> Drop for Done<'_, D> {
    fn drop(&mut self) {
        let mut jobs = self.0.lock();
        jobs.writing = None;
        // Were the thread to end by a panic, nobody would write what comes.
        jobs.closed |= std::thread::panicking();
        self.0.changed.notify_all();
    }
}

/// The store of an engine.
pub(crate) struct Keeper<D: Device> {
    model: Arc<Model<D>>,
    store: Store,
    subject: Subject,
    queue: Arc<Queue<D>>,
    thread: Option<JoinHandle<()>>,
}

impl<D: Device> Keeper<D> {
    pub(crate) fn start(model: Arc<Model<D>>, keep: Keep) -> Self {
        let jobs = Jobs { waiting: VecDeque::new(), writing: None, closed: false };
        let queue = Arc::new(Queue { jobs: Mutex::new(jobs), changed: Condvar::new() });
        let (store, subject) = (keep.store.clone(), keep.subject.clone());
        let writer = (Arc::clone(&model), Arc::clone(&queue));
        let thread = std::thread::spawn(move || {
            let (model, queue) = writer;
            while let Some(job) = next(&queue) {
                // Dropped last, after the state's memory.
                let _done = Done(&queue);
                write(&model, &keep, job);
            }
        });
        Keeper { model, store, subject, queue, thread: Some(thread) }
    }

    /// Bytes of state that those waiting to be written, and one being written, may hold of their own.
    pub(crate) fn state_bytes(model: &Model<D>) -> u64 {
        (WAITING as u64 + 1) * model.state_bytes(1)
    }

    /// Has a state written. Where too many wait already, one of them is not; one that somebody asked for is waited for.
    pub(crate) fn save(&self, kept: &Kept<D>, wish: Option<Wish>) {
        let Ok(state) = self.model.fork(&kept.state) else { return };
        let job = Job {
            owner: kept.owner.clone(),
            session: kept.session.clone(),
            state,
            timeline: Arc::clone(&kept.timeline),
            logits: kept.logits.clone(),
            end: kept.end,
            fate: Arc::clone(&kept.fate),
            wish,
        };
        let crowded =
            |jobs: &Jobs<D>| jobs.waiting.len() >= WAITING && jobs.waiting.iter().all(|job| job.wish.is_some());
        let mut jobs = self.queue.wait_while(|jobs| crowded(jobs) && !jobs.closed);
        if jobs.closed {
            return;
        }
        if jobs.waiting.len() >= WAITING
            && let Some(at) = least(&jobs.waiting)
            && let Some(oldest) = jobs.waiting.remove(at)
        {
            oldest.fate.set(Fate::NEW);
        }
        job.fate.set(Fate::WAITS);
        jobs.waiting.push_back(job);
        self.queue.changed.notify_all();
    }

    /// Waits until nothing waits, and says whether there was something: what is written holds the memory of its session.
    pub(crate) fn wait(&self) -> bool {
        let busy = |jobs: &Jobs<D>| (jobs.writing.is_some() || !jobs.waiting.is_empty()) && !jobs.closed;
        let was_busy = busy(&self.queue.lock());
        drop(self.queue.wait_while(busy));
        was_busy
    }

    /// What makes sure that nothing more of a session is written: what waits is not, and what is being written is waited for.
    pub(crate) fn settle(&self) -> Settle {
        let queue = Arc::clone(&self.queue);
        Arc::new(move |owner, name| {
            let of = |whose: &Owner, session: &Option<Arc<str>>| whose == owner && session.as_deref() == Some(name);
            queue.lock().waiting.retain(|job| !of(&job.owner, &job.session) || job.wish.is_some());
            let at_work = |jobs: &Jobs<D>| {
                jobs.writing.as_ref().is_some_and(|(owner, session)| of(owner, session))
                    || jobs.waiting.iter().any(|job| of(&job.owner, &job.session))
            };
            drop(queue.wait_while(|jobs| at_work(jobs) && !jobs.closed));
        })
    }

    /// What looks into the store.
    pub(crate) fn lookup(&self) -> Lookup<D> {
        Lookup { model: Arc::clone(&self.model), store: self.store.clone(), subject: self.subject.clone() }
    }
}

/// Which of those that wait is missed least: one that is only on the way, or else the oldest; none that was asked for.
fn least<D: Device>(waiting: &VecDeque<Job<D>>) -> Option<usize> {
    let on_the_way = waiting.iter().position(|job| job.wish.is_none() && !job.end);
    on_the_way.or_else(|| waiting.iter().position(|job| job.wish.is_none()))
}

/// The next that waits; none once the keeper is gone and all is written.
fn next<D: Device>(queue: &Queue<D>) -> Option<Job<D>> {
    let mut jobs = queue.wait_while(|jobs| jobs.waiting.is_empty() && !jobs.closed);
    let job = jobs.waiting.pop_front();
    jobs.writing = job.as_ref().map(|job| (job.owner.clone(), job.session.clone()));
    queue.changed.notify_all();
    job
}

fn write<D: Device>(model: &Model<D>, keep: &Keep, job: Job<D>) {
    let Job { owner, session, state, timeline, logits, end, fate, wish } = job;
    let name = session.map(|session| names::stored(&session, end));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let new = NewSnapshot {
        tokens: &timeline[..state.position()],
        name: name.as_deref(),
        pinned: wish.as_ref().is_some_and(|wish| wish.pinned),
        expires: keep.lasts.map(|lasts| (now + lasts).as_secs()),
        parent: None,
    };
    let saved = keep.store.namespace(&owner.0).map_err(SnapshotError::from);
    let saved = saved.and_then(|namespace| save(model, &state, &logits, &namespace, &keep.subject, &new));
    fate.set(if saved.is_ok() { Fate::SAVED } else { Fate::NEW });
    drop(state);
    (keep.told)(&saved);
    if let Some(wish) = wish {
        (wish.told)(saved);
    }
}

impl<D: Device> Drop for Keeper<D> {
    /// Waits until all is written.
    fn drop(&mut self) {
        self.queue.lock().closed = true;
        self.queue.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed by it.
            let _ = thread.join();
        }
    }
}
