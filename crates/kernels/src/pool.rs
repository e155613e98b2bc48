//! Work on several threads, split so that the split never shows in the results.
//!
//! A decode step starts some hundred pieces of work of a few microseconds each, so starting one must cost little: the caller
//! takes part, helpers spin for a while before they sleep, and a helper that comes too late is not waited for.

use std::any::Any;
use std::cell::Cell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr::NonNull;
use std::sync::atomic::Ordering;
use std::sync::{PoisonError, TryLockError};
use std::time::{Duration, Instant};

use crate::Error;
use crate::sync::{
    Arc, AtomicBool, AtomicU64, AtomicUsize, Condvar, Mutex, MutexGuard, UnsafeCell, thread, thread_local,
};

/// How long a helper looks for work before it sleeps: longer than the gaps in a pass over the layers.
const SPIN: Duration = if cfg!(loom) { Duration::ZERO } else { Duration::from_micros(200) };
/// Looks between two glances at the clock, after which the core is offered to others. Under loom a helper looks once
/// and goes to sleep: if it yielded between, loom would first run all others, and so not try every order.
const LOOKS: u32 = if cfg!(loom) { 1 } else { 256 };

/// One helper inside, in the gate's low bits.
const ONE: u64 = 1;
const INSIDE: u64 = (1 << 16) - 1;
/// Set while helpers may join.
const OPEN: u64 = 1 << 16;
/// A piece of work, counted above.
const NEXT: u64 = 1 << 17;

/// A fixed number of threads: whoever calls, and helpers.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    helpers: Vec<thread::JoinHandle<()>>,
}

/// What is being done. Written while the gate is shut and nobody is inside, read by those inside.
#[derive(Clone, Copy)]
struct Job {
    run: NonNull<dyn Fn(usize) + Sync>,
    tasks: usize,
}

struct Shared {
    /// Which piece of work it is, whether one may still join, and how many helpers have.
    gate: AtomicU64,
    job: UnsafeCell<Option<Job>>,
    /// The next task that nobody has taken.
    next: AtomicUsize,
    /// Held by the caller whose work it is.
    caller: Mutex<()>,
    /// What the first task that panicked said.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
    asleep: AtomicU64,
    bed: Mutex<()>,
    alarm: Condvar,
}

// SAFETY: `job` is written by the holder of `caller` while the gate is shut and empty, and read by those who came in by the
// gate; the closure it points to is Sync and outlives them, because the caller waits until the gate is empty.
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

thread_local! {
    /// Whether this thread is in a task: work started there is done in place.
    static INSIDE_TASK: Cell<bool> = const { Cell::new(false) };
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Takes tasks until there are none.
    fn work(&self, job: Job) {
        INSIDE_TASK.with(|inside| inside.set(true));
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let task = self.next.fetch_add(1, Ordering::Relaxed);
                if task >= job.tasks {
                    break;
                }
                // SAFETY: the closure lives until the caller has seen the gate empty, and we are inside.
                unsafe { job.run.as_ref()(task) };
            }
        }));
        INSIDE_TASK.with(|inside| inside.set(false));
        if let Err(panic) = outcome {
            lock(&self.panic).get_or_insert(panic);
        }
    }

    /// Comes in, if the gate is still open for the work it shows.
    fn join(&self) -> bool {
        let mut gate = self.gate.load(Ordering::Acquire);
        while gate & OPEN != 0 {
            match self.gate.compare_exchange_weak(gate, gate + ONE, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(now) => gate = now,
            }
        }
        false
    }

    fn help(&self) {
        let mut seen = 0;
        loop {
            seen = self.wait(seen);
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            if self.join() {
                // SAFETY: inside, see `Sync`.
                if let Some(job) = self.job.with(|job| unsafe { *job }) {
                    self.work(job);
                }
                self.gate.fetch_sub(ONE, Ordering::Release);
            }
        }
    }

    /// Waits for work other than `seen` and returns which it is.
    fn wait(&self, seen: u64) -> u64 {
        let mut start = None;
        loop {
            for _ in 0..LOOKS {
                let now = self.gate.load(Ordering::Acquire) / NEXT;
                if now != seen {
                    return now;
                }
                std::hint::spin_loop();
            }
            if start.get_or_insert_with(Instant::now).elapsed() >= SPIN {
                break;
            }
            thread::yield_now();
        }
        // Counted before the last look, and the caller looks at the count after it has shown its work: one of the two sees
        // the other. The lock is held until we sleep, so that the alarm does not ring between.
        let mut bed = lock(&self.bed);
        self.asleep.fetch_add(1, Ordering::SeqCst);
        let mut now = self.gate.load(Ordering::SeqCst) / NEXT;
        while now == seen {
            bed = self.alarm.wait(bed).unwrap_or_else(PoisonError::into_inner);
            now = self.gate.load(Ordering::SeqCst) / NEXT;
        }
        self.asleep.fetch_sub(1, Ordering::SeqCst);
        now
    }

    fn wake(&self) {
        if self.asleep.load(Ordering::SeqCst) > 0 {
            drop(lock(&self.bed));
            self.alarm.notify_all();
        }
    }
}

impl Pool {
    pub(crate) fn new(threads: usize) -> Result<Self, Error> {
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            caller: Mutex::new(()),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
            asleep: AtomicU64::new(0),
            bed: Mutex::new(()),
            alarm: Condvar::new(),
        });
        let mut pool = Pool { shared, helpers: Vec::new() };
        for i in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let helper = thread::Builder::new().name(format!("fathom-{i}")).spawn(move || shared.help());
            pool.helpers.push(helper.map_err(|e| Error::Threads { threads, cause: e.to_string() })?);
        }
        Ok(pool)
    }

    pub(crate) fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Runs `f(i)` for every i below `tasks`, on all threads, in any order. A panic in one is passed on when all have ended.
    pub(crate) fn each(&self, tasks: usize, f: impl Fn(usize) + Sync + Send) {
        let shared = &*self.shared;
        // From inside a task, or while others use the threads: in place, with the same results.
        if tasks <= 1 || self.helpers.is_empty() || INSIDE_TASK.with(Cell::get) {
            return (0..tasks).for_each(f);
        }
        let caller = match shared.caller.try_lock() {
            Ok(caller) => caller,
            Err(TryLockError::Poisoned(caller)) => caller.into_inner(),
            Err(TryLockError::WouldBlock) => return (0..tasks).for_each(f),
        };
        let run: &(dyn Fn(usize) + Sync) = &f;
        // SAFETY: only the lifetime changes; `f` outlives all use, because we wait below until no helper is inside.
        let run = NonNull::from(unsafe {
            std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(run)
        });
        let job = Job { run, tasks };
        // SAFETY: the gate is shut and empty: we hold `caller`, and whoever held it before left it so.
        shared.job.with_mut(|shown| unsafe { *shown = Some(job) });
        shared.next.store(0, Ordering::Relaxed);
        shared.gate.fetch_add(NEXT | OPEN, Ordering::SeqCst);
        shared.wake();
        shared.work(job);
        // Who is not in by now is not needed.
        shared.gate.fetch_and(!OPEN, Ordering::AcqRel);
        let mut looks = 0u32;
        while shared.gate.load(Ordering::Acquire) & INSIDE != 0 {
            looks += 1;
            if looks.is_multiple_of(LOOKS) {
                thread::yield_now();
            }
            std::hint::spin_loop();
        }
        let panic = lock(&shared.panic).take();
        drop(caller);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Cuts `0..n` into about `pieces` ranges a thread, each a multiple of `grain` long but the last, and runs `f` on
    /// each.
    pub(crate) fn ranges(&self, n: usize, grain: usize, pieces: usize, f: impl Fn(Range<usize>) + Sync + Send) {
        let size = n.div_ceil(self.threads() * pieces).next_multiple_of(grain).max(grain);
        self.each(n.div_ceil(size), |i| f(i * size..((i + 1) * size).min(n)));
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} threads)", self.threads())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.gate.fetch_add(NEXT, Ordering::SeqCst);
        self.shared.wake();
        for helper in self.helpers.drain(..) {
            // A helper catches the panics of its tasks.
            let _ = helper.join();
        }
    }
}

/// A pointer into an output that tasks write disjoint parts of.
pub(crate) struct Output<T> {
    start: *mut T,
    len: usize,
}

// SAFETY: `slice` asks its callers to keep to disjoint ranges.
unsafe impl<T: Send> Send for Output<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Output<T> {}

impl<T> Output<T> {
    pub(crate) fn new(all: &mut [T]) -> Self {
        Output { start: all.as_mut_ptr(), len: all.len() }
    }

    /// How many values there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Part of the output.
    ///
    /// # Safety
    /// No two live slices overlap, and the borrow given to `new` is still held by the code that started the tasks.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn slice(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len, "output range");
        // SAFETY: in bounds by the assertion, disjoint by the caller's word.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

/// `RUSTFLAGS="--cfg loom" cargo test --release -p fathom-kernels --lib pool::loom`
#[cfg(all(test, loom))]
mod loom {
    use super::*;

    /// Runs a model in every order of its threads' steps that stops a running thread at most three times.
    fn check(model: impl Fn() + Sync + Send + 'static) {
        let mut builder = ::loom::model::Builder::new();
        builder.preemption_bound = Some(3);
        builder.check(model);
    }

    /// Each of two tasks counts itself: a count is 1 only if the task ran once and the caller sees what it wrote.
    fn every_task_once(pool: &Pool) {
        let counts = [AtomicUsize::new(0), AtomicUsize::new(0)];
        pool.each(2, |i| {
            counts[i].fetch_add(1, Ordering::Relaxed);
        });
        assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
    }

    #[test]
    fn every_task_once_and_seen() {
        check(|| {
            let pool = Pool::new(2).unwrap();
            every_task_once(&pool);
            every_task_once(&pool);
        });
    }

    #[test]
    fn two_callers() {
        check(|| {
            let pool = Arc::new(Pool::new(2).unwrap());
            let other = Arc::clone(&pool);
            let other = thread::spawn(move || every_task_once(&other));
            every_task_once(&pool);
            other.join().unwrap();
        });
    }

    #[test]
    fn a_helper_going_to_sleep_is_woken() {
        check(|| {
            let pool = Pool::new(2).unwrap();
            for _ in 0..2 {
                let (here, change) = (Mutex::new(0), Condvar::new());
                // Neither task ends without the other: a helper that sleeps on is a deadlock.
                pool.each(2, |_| {
                    let mut here = lock(&here);
                    *here += 1;
                    change.notify_all();
                    while *here < 2 {
                        here = change.wait(here).unwrap();
                    }
                });
            }
        });
    }

    #[test]
    fn helpers_end_with_the_pool() {
        check(|| {
            let pool = Pool::new(3).unwrap();
            let shared = Arc::clone(&pool.shared);
            drop(pool);
            assert_eq!(Arc::strong_count(&shared), 1);
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn every_task_once() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads).unwrap();
            for round in 0..2000 {
                let tasks = round % 37;
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.each(tasks, |i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(
                    counts.iter().all(|count| count.load(Ordering::Relaxed) == 1),
                    "{threads} threads, {tasks} tasks"
                );
                if round % 500 == 0 {
                    // Long enough for the helpers to fall asleep.
                    std::thread::sleep(2 * SPIN);
                }
            }
        }
    }

    #[test]
    fn nested_and_from_many_callers() {
        let pool = Pool::new(3).unwrap();
        let sum = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pool.each(5, |i| {
                            pool.each(7, |j| {
                                sum.fetch_add(i * j, Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 4 * 200 * 10 * 21);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
        let pool = Pool::new(2).unwrap();
        for _ in 0..50 {
            let outcome = catch_unwind(AssertUnwindSafe(|| pool.each(8, |i| assert!(i != 5, "task five"))));
            let said = outcome.unwrap_err();
            assert_eq!(said.downcast_ref::<&str>(), Some(&"task five"));
            let done = AtomicUsize::new(0);
            pool.each(8, |_| {
                done.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(done.into_inner(), 8);
        }
    }
}
