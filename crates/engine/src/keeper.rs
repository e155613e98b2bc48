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
use fathom_store::{Id, Namespace, NewSnapshot, Saved, Store, Subject};

use crate::kept::Kept;
use crate::lookup::Lookup;
use crate::snapshot::{SnapshotError, save};
use crate::{Owner, Session, names};

/// States on the way through a prompt that wait to be written at most: when a store is slower than that, the oldest is not
/// written. Those at an end all are, while there is memory for them.
const WAITING: usize = 2;
/// States that those waiting to be written, and one being written, may hold of their own.
pub(crate) const STATES: u64 = WAITING as u64 + 1;

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

/// What those who have no model ask of a keeper.
pub(crate) trait Desk: Send + Sync {
    /// Makes sure that nothing of a session beyond a position is written any more, and waits until the rest of it is, and all
    /// copies of the owner's: then snapshots can be removed.
    fn settle(&self, owner: &Owner, session: &str, position: usize);

    /// Has what is stored of some tokens, if it is stored, stored as a session of another name too.
    fn copy(&self, owner: &Owner, session: &str, tokens: Arc<Vec<u32>>);
}

struct Job<D: Device> {
    owner: Owner,
    session: Option<Arc<str>>,
    timeline: Arc<Vec<u32>>,
    what: What<D>,
}

/// What is to be written.
enum What<D: Device> {
    /// A state that has seen the first of the timeline's tokens.
    State { state: State<D>, logits: Vec<f32>, end: bool, fate: Arc<Fate>, wish: Option<Wish> },
    /// What is stored of the timeline already, under the session's name.
    Copy,
}

impl<D: Device> Job<D> {
    fn is_of(&self, owner: &Owner, session: &str) -> bool {
        self.owner == *owner && self.session.as_deref() == Some(session)
    }

    /// How many tokens it has.
    fn position(&self) -> usize {
        match &self.what {
            What::State { state, .. } => state.position(),
            What::Copy => self.timeline.len(),
        }
    }

    /// Whether somebody waits for it.
    fn is_wished(&self) -> bool {
        matches!(self.what, What::State { wish: Some(_), .. })
    }

    fn is_on_the_way(&self) -> bool {
        matches!(self.what, What::State { end: false, wish: None, .. })
    }

    fn is_copy(&self) -> bool {
        matches!(self.what, What::Copy)
    }
}

struct Jobs<D: Device> {
    waiting: VecDeque<Job<D>>,
    /// Whose state is being written, of which session, and whether it is copied.
    writing: Option<(Owner, Option<Arc<str>>, bool)>,
    /// How many were written.
    written: u64,
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

impl<D: Device> Desk for Queue<D> {
    fn settle(&self, owner: &Owner, session: &str, position: usize) {
        let past = |job: &Job<D>| job.is_of(owner, session) && job.position() > position && !job.is_wished();
        self.lock().waiting.retain(|job| !past(job));
        let concerns = |job: &Job<D>| job.is_of(owner, session) || job.is_copy() && job.owner == *owner;
        let at_work = |jobs: &Jobs<D>| {
            let written = jobs.writing.as_ref();
            written.is_some_and(|(of, name, is_copy)| of == owner && (*is_copy || name.as_deref() == Some(session)))
                || jobs.waiting.iter().any(concerns)
        };
        drop(self.wait_while(|jobs| at_work(jobs) && !jobs.closed));
    }

    fn copy(&self, owner: &Owner, session: &str, tokens: Arc<Vec<u32>>) {
        let job = Job { owner: owner.clone(), session: Some(session.into()), timeline: tokens, what: What::Copy };
        self.lock().waiting.push_back(job);
        self.changed.notify_all();
    }
}

/// Counts a state as written when it ends, however it ends.
struct Done<'a, D: Device>(&'a Queue<D>);

impl<D: Device> Drop for Done<'_, D> {
    fn drop(&mut self) {
        let mut jobs = self.0.lock();
        jobs.writing = None;
        jobs.written += 1;
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
        let jobs = Jobs { waiting: VecDeque::new(), writing: None, written: 0, closed: false };
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

    /// Has a state written.
    pub(crate) fn save(&self, kept: &Kept<D>, wish: Option<Wish>) {
        let Ok(state) = self.model.fork(&kept.state) else { return };
        let (owner, session, fate) = (kept.owner.clone(), kept.session.clone(), Arc::clone(&kept.fate));
        // Of a session that has gone on, it is a state on the way.
        let end = kept.head || kept.session.is_none() && kept.end;
        let what = What::State { state, logits: kept.logits.clone(), end, fate: Arc::clone(&fate), wish };
        let job = Job { owner, session, timeline: Arc::clone(&kept.timeline), what };
        let mut jobs = self.queue.lock();
        if jobs.closed {
            return;
        }
        let on_the_way: Vec<usize> = (0..jobs.waiting.len()).filter(|&at| jobs.waiting[at].is_on_the_way()).collect();
        if job.is_on_the_way() && on_the_way.len() >= WAITING {
            jobs.waiting.remove(on_the_way[0]);
        }
        fate.set(Fate::WAITS);
        jobs.waiting.push_back(job);
        self.queue.changed.notify_all();
    }

    /// Gives back memory that waits to be written: drops what is missed least, or waits for one to be written. Says whether there
    /// was something.
    pub(crate) fn relieve(&self) -> bool {
        let mut jobs = self.queue.lock();
        if let Some(at) = least(&jobs.waiting) {
            jobs.waiting.remove(at);
            return true;
        }
        let (busy, written) = (jobs.writing.is_some() || !jobs.waiting.is_empty(), jobs.written);
        drop(jobs);
        drop(self.queue.wait_while(|jobs| busy && jobs.written == written && !jobs.closed));
        busy
    }

    /// For those who have no model.
    pub(crate) fn desk(&self) -> Arc<dyn Desk> {
        Arc::clone(&self.queue) as Arc<dyn Desk>
    }

    /// What looks into the store.
    pub(crate) fn lookup(&self) -> Lookup<D> {
        Lookup { model: Arc::clone(&self.model), store: self.store.clone(), subject: self.subject.clone() }
    }
}

/// Which of those that wait is missed least: the oldest on the way through a prompt, or else the oldest end that its session has
/// gone on from. Nobody else's end is dropped, and nothing that was asked for.
fn least<D: Device>(waiting: &VecDeque<Job<D>>) -> Option<usize> {
    let on_the_way = waiting.iter().position(Job::is_on_the_way);
    let overtaken = |(at, job): (usize, &Job<D>)| {
        let later = |other: &Job<D>| job.session.as_deref().is_some_and(|session| other.is_of(&job.owner, session));
        !job.is_wished() && !job.is_copy() && waiting.iter().skip(at + 1).any(later)
    };
    on_the_way.or_else(|| waiting.iter().enumerate().position(overtaken))
}

/// The next that waits; none once the keeper is gone and all is written.
fn next<D: Device>(queue: &Queue<D>) -> Option<Job<D>> {
    let mut jobs = queue.wait_while(|jobs| jobs.waiting.is_empty() && !jobs.closed);
    let job = jobs.waiting.pop_front();
    jobs.writing = job.as_ref().map(|job| (job.owner.clone(), job.session.clone(), job.is_copy()));
    queue.changed.notify_all();
    job
}

fn write<D: Device>(model: &Model<D>, keep: &Keep, job: Job<D>) {
    let Job { owner, session, timeline, what } = job;
    let namespace = keep.store.namespace(&owner.0).map_err(SnapshotError::from);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let new = NewSnapshot { expires: keep.lasts.map(|lasts| (now + lasts).as_secs()), ..NewSnapshot::default() };
    match what {
        What::State { state, logits, end, fate, wish } => {
            let name = session.as_deref().map(|session| names::stored(session, end));
            let pinned = wish.as_ref().is_some_and(|wish| wish.pinned);
            let new = NewSnapshot { tokens: &timeline[..state.position()], name: name.as_deref(), pinned, ..new };
            let saved = namespace.and_then(|namespace| {
                let pins = session.filter(|_| end).map_or(Ok(Vec::new()), |session| pins(&namespace, &session))?;
                let new = NewSnapshot { pinned: new.pinned || !pins.is_empty(), ..new };
                let saved = save(model, &state, &logits, &namespace, &keep.subject, &new)?;
                // The pin is where the session is.
                for id in pins.into_iter().filter(|id| *id != saved.id) {
                    namespace.pin(&id, false).or_else(is_gone)?;
                }
                Ok(saved)
            });
            fate.set(if saved.is_ok() { Fate::SAVED } else { Fate::NEW });
            drop(state);
            (keep.told)(&saved);
            if let Some(wish) = wish {
                (wish.told)(saved);
            }
        }
        What::Copy => {
            let new = NewSnapshot { tokens: &timeline, name: session.as_deref(), ..new };
            let saved = namespace.and_then(|namespace| copy(&namespace, &keep.subject, new));
            // What is not stored is with the session's first request.
            if let Some(saved) = saved.transpose() {
                (keep.told)(&saved);
            }
        }
    }
}

/// The pinned snapshots of a session.
fn pins(namespace: &Namespace, session: &str) -> Result<Vec<Id>, fathom_store::Error> {
    let its = |name: Option<&str>| name.is_some_and(|name| Session::of_stored(name).0 == session);
    Ok(namespace.list_named(its)?.into_iter().filter(|snapshot| snapshot.pinned).map(|snapshot| snapshot.id).collect())
}

/// Another process may remove it at any time.
pub(crate) fn is_gone(error: fathom_store::Error) -> Result<(), fathom_store::Error> {
    match error {
        fathom_store::Error::NoSnapshot { .. } => Ok(()),
        e => Err(e),
    }
}

/// Stores what is stored of some tokens once more, as the new snapshot says.
fn copy(namespace: &Namespace, subject: &Subject, new: NewSnapshot<'_>) -> Result<Option<Saved>, SnapshotError> {
    let best = namespace.find(subject, new.tokens)?.best;
    let Some(best) = best.filter(|best| best.position == new.tokens.len()) else { return Ok(None) };
    let (tail, _hold) = namespace.tail(&best.id)?;
    let new = NewSnapshot { parent: Some(best.id), ..new };
    Ok(Some(namespace.save(subject, &new, &mut |_| Err("it was there just now".into()), &tail)?))
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
