//! Connections at work: each takes the next segment of the first file that has one, and who brings a file's last checks it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::JoinSet;

use super::fetch::{Counters, Download, Fetched};
use super::folder::{Folder, is_last};
use super::{Error, Hub};

/// How often a file is fetched whose content is not what the hub says.
const TRIES: u32 = 2;

/// What is to be fetched, and what of it is being.
pub(super) struct Work {
    pub hub: Hub,
    pub folder: Folder,
    pub counters: Counters,
    queue: Mutex<Vec<Queued>>,
    failed: Mutex<Option<Error>>,
}

struct Queued {
    download: Arc<Download>,
    /// Segments that nobody has taken, the next one last.
    free: Vec<usize>,
    /// How many connections are at it.
    busy: usize,
    /// Whether the server sends it whole only: then one connection does all.
    whole: bool,
    tries: u32,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Fetching,
    /// All is there and not yet checked, or being checked.
    Checking,
    Done,
}

/// What a connection is to do. The number is the file's.
enum Task {
    Segment(usize, Arc<Download>, usize),
    Whole(usize, Arc<Download>),
    Check(usize, Arc<Download>),
}

impl Work {
    pub fn new(hub: Hub, folder: Folder) -> Work {
        let (queue, failed) = (Mutex::default(), Mutex::default());
        Work { hub, folder, counters: Counters::default(), queue, failed }
    }

    fn queue(&self) -> MutexGuard<'_, Vec<Queued>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_failed(&self) -> bool {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Fetches files over some connections.
    pub async fn run(self: &Arc<Self>, files: Vec<Arc<Download>>, connections: usize) -> Result<(), Error> {
        let queued = |download: Arc<Download>| {
            let free = missing(&download);
            Queued { download, free, busy: 0, whole: false, tries: 0, state: State::Fetching }
        };
        *self.queue() = files.into_iter().map(queued).collect();
        let mut all = JoinSet::new();
        for _ in 0..connections {
            let work = Arc::clone(self);
            all.spawn(async move { work.connection().await });
        }
        // A panic is a bug of ours and has been told by then.
        while all.join_next().await.is_some() {
            if self.has_failed() {
                // What the others wait for has lost its point.
                all.abort_all();
            }
        }
        match self.failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(e) => Err(e),
            None => Ok(()),
        }
    }

    async fn connection(self: &Arc<Self>) {
        while let Some(task) = self.take() {
            if let Err(e) = self.perform(task).await {
                self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
            }
        }
    }

    fn take(&self) -> Option<Task> {
        if self.has_failed() {
            return None;
        }
        for (at, file) in self.queue().iter_mut().enumerate() {
            let download = || Arc::clone(&file.download);
            if file.state != State::Fetching {
                continue;
            }
            if file.busy == 0 && (0..file.download.partial.segments()).all(|s| is_done(&file.download, s)) {
                file.state = State::Checking;
                return Some(Task::Check(at, download()));
            }
            if file.whole && file.busy == 0 {
                file.busy = 1;
                return Some(Task::Whole(at, download()));
            }
            if let Some(segment) = file.free.pop().filter(|_| !file.whole) {
                file.busy += 1;
                return Some(Task::Segment(at, download(), segment));
            }
        }
        None
    }

    async fn perform(self: &Arc<Self>, task: Task) -> Result<(), Error> {
        match task {
            Task::Segment(at, download, segment) => {
                let result = download.segment(&self.hub, segment, &self.counters).await;
                let mut queue = self.queue();
                queue[at].busy -= 1;
                queue[at].whole |= matches!(result, Ok(Fetched::NoRanges));
                result.map(|_| ())
            }
            Task::Whole(at, download) => {
                let result = download.whole(&self.hub, &self.counters).await;
                self.queue()[at].busy -= 1;
                result
            }
            Task::Check(at, download) => self.check(at, download).await,
        }
    }

    async fn check(self: &Arc<Self>, at: usize, download: Arc<Download>) -> Result<(), Error> {
        let (work, file) = (Arc::clone(self), Arc::clone(&download));
        let right = move || -> Result<bool, Error> {
            let right = work.folder.is_right(&file.remote, &file.partial)?;
            if right && !is_last(&file.remote) {
                work.folder.finish(&file.remote, &file.partial)?;
            }
            Ok(right)
        };
        let name = &download.remote.name;
        let failed = |problem: &str| Error::Hub { place: name.clone(), problem: problem.to_owned() };
        let right = tokio::task::spawn_blocking(right).await.map_err(|_| failed("could not be checked"))??;
        if !right {
            self.counters.done.fetch_sub(download.remote.size, Ordering::Relaxed);
            download.partial.clear().map_err(|e| Error::file(&download.partial.path, &e))?;
        }
        let mut queue = self.queue();
        let file = &mut queue[at];
        if right {
            file.state = State::Done;
            return Ok(());
        }
        file.tries += 1;
        if file.tries == TRIES {
            return Err(failed("what the server sends is not what the hub's hash says, twice; try another mirror"));
        }
        file.free = missing(&download);
        file.state = State::Fetching;
        Ok(())
    }
}

fn is_done(download: &Download, segment: usize) -> bool {
    download.partial.done(segment) == download.partial.length(segment)
}

/// Segments of which something is to come, the first one last.
fn missing(download: &Download) -> Vec<usize> {
    (0..download.partial.segments()).rev().filter(|&segment| !is_done(download, segment)).collect()
}
