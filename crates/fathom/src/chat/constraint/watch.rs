//! Ends what takes too long: everybody who speaks waits while the mask of one is made, and some grammars have dear ones.
//!
//! The library's own limits count steps, not all of which are the same. So a thread looks on while masks are made, and cancels one
//! that has taken too much of a processor; a machine that is busy with something else is no reason to.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use llguidance::CancellationHandle;

/// The time of a processor that one piece of work may take, beside that until it is first looked at.
const MOST: Duration = Duration::from_millis(40);
/// The same by the clock, where the system does not tell a thread's own time.
const MOST_BY_CLOCK: Duration = Duration::from_millis(250);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(10);

/// What is looked at, while there is something; then there is a thread that does.
static ALL: Mutex<Vec<Weak<Work>>> = Mutex::new(Vec::new());

thread_local! {
    /// Where the system tells how long this thread has run.
    static TIME: Option<Arc<str>> = {
        let link = std::fs::read_link("/proc/thread-self").ok();
        link.and_then(|link| Some(format!("/proc/{}/schedstat", link.to_str()?).into()))
    };
}

/// Work that is cancelled once it takes too long.
pub(super) struct Watched(Arc<Work>);

struct Work {
    handle: CancellationHandle,
    now: Mutex<Now>,
}

#[derive(Default)]
struct Now {
    /// Pieces of work so far.
    number: u64,
    busy: bool,
    /// Where to ask for the time of the thread that works.
    time: Option<Arc<str>>,
    seen: Option<Seen>,
}

/// When a piece of work was first seen.
struct Seen {
    number: u64,
    since: Instant,
    spent: Option<Duration>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watched {
    /// Work that this handle cancels.
    pub(super) fn new(handle: CancellationHandle) -> Watched {
        let work = Arc::new(Work { handle, now: Mutex::default() });
        let mut all = lock(&ALL);
        all.push(Arc::downgrade(&work));
        // Where there is no thread to be had, the limits in steps hold alone.
        if all.len() == 1 && thread::Builder::new().name("masks".to_owned()).spawn(look_on).is_err() {
            all.clear();
        }
        Watched(work)
    }

    /// Does a piece of it.
    pub(super) fn during<T>(&self, work: impl FnOnce() -> T) -> T {
        {
            let mut now = lock(&self.0.now);
            (now.number, now.busy, now.time) = (now.number + 1, true, TIME.with(Option::clone));
        }
        let done = work();
        lock(&self.0.now).busy = false;
        done
    }
}

fn look_on() {
    loop {
        thread::sleep(LOOK);
        let mut all = lock(&ALL);
        all.retain(|work| work.strong_count() > 0);
        if all.is_empty() {
            return;
        }
        all.iter().filter_map(Weak::upgrade).for_each(|work| work.look());
    }
}

impl Work {
    fn look(&self) {
        let mut now = lock(&self.now);
        if !now.busy {
            return;
        }
        let spent = now.time.as_deref().and_then(spent);
        match &now.seen {
            Some(seen) if seen.number == now.number => {
                let too_long = match (spent, seen.spent) {
                    (Some(spent), Some(before)) => spent.saturating_sub(before) >= MOST,
                    _ => seen.since.elapsed() >= MOST_BY_CLOCK,
                };
                if too_long {
                    self.handle.cancel();
                }
            }
            _ => now.seen = Some(Seen { number: now.number, since: Instant::now(), spent }),
        }
    }
}

/// How long a thread has run on a processor, as Linux tells.
fn spent(file: &str) -> Option<Duration> {
    let text = std::fs::read_to_string(file).ok()?;
    text.split_whitespace().next()?.parse().ok().map(Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_too_long_is_cancelled() {
        let (dear, cheap) = (CancellationHandle::default(), CancellationHandle::default());
        let (watched, other) = (Watched::new(dear.clone()), Watched::new(cheap.clone()));
        // Many pieces, none of them long, and one that waits for something else than a processor.
        for _ in 0..200 {
            let start = Instant::now();
            other.during(|| while start.elapsed() < Duration::from_millis(1) {});
        }
        if spent("/proc/self/schedstat").is_some() {
            other.during(|| thread::sleep(2 * MOST_BY_CLOCK));
        }
        let start = Instant::now();
        watched.during(|| while !dear.is_cancelled() && start.elapsed() < Duration::from_secs(60) {});
        assert!(dear.is_cancelled() && !cheap.is_cancelled());
        let again = CancellationHandle::default();
        drop((watched, other));
        // The thread may have ended meanwhile.
        thread::sleep(3 * LOOK);
        let (watched, start) = (Watched::new(again.clone()), Instant::now());
        watched.during(|| while !again.is_cancelled() && start.elapsed() < Duration::from_secs(60) {});
        assert!(again.is_cancelled());
    }
}
