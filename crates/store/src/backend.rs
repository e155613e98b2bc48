//! Where the bytes lie: a local folder or a bucket, asked from plain threads.

use std::future::Future;
use std::path::Path;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use tokio::runtime::{Builder, Runtime};

use crate::files::{Files, Listed, Mode};
use crate::store::lock;
use crate::{Error, local, s3};

/// How long a store that is dropped waits for what nobody else waits for, if no read is under way that was given up.
const LAST: Duration = Duration::from_secs(1);

/// Nanoseconds since 1970.
pub(crate) fn now_nanos() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64)
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    now_nanos() / 1_000_000_000
}

/// An answer that is on its way.
pub(crate) struct Pending<T>(Receiver<T>);

impl<T> Pending<Result<T, Error>> {
    pub(crate) fn wait(self) -> Result<T, Error> {
        self.0.recv().unwrap_or_else(|_| {
            Err(Error::Access {
                action: "finish",
                place: "an access to the store".into(),
                cause: "its thread ended early".into(),
            })
        })
    }
}

/// Files, and the threads that wait for them: calls block their own thread only, and may come from anywhere.
pub(crate) struct Backend {
    files: Files,
    runtime: Option<Runtime>,
    /// Tasks that nobody waits for have a clone of it.
    aside: Sender<()>,
    /// Hears when no clone is left.
    over: Mutex<Receiver<()>>,
}

impl Backend {
    /// # Errors
    /// [`Error::Location`] and [`Error::Access`].
    pub(crate) fn open(location: &str) -> Result<Backend, Error> {
        let place = match location.split_once("://") {
            Some(("s3", rest)) => s3::open(location, rest)?,
            Some(("file", path)) => local::open(Path::new(path))?,
            Some(_) => {
                let problem = "is no place for a store; give a folder or s3://bucket/prefix".into();
                return Err(Error::Location { place: location.into(), problem });
            }
            None => local::open(Path::new(location))?,
        };
        let runtime = Builder::new_multi_thread().worker_threads(2).thread_name("fathom-store").enable_all().build();
        let runtime = runtime.map_err(|cause| Error::Access {
            action: "start threads for",
            place: location.into(),
            cause: Box::new(cause),
        })?;
        let (aside, over) = channel();
        Ok(Backend { files: Files::new(place, location), runtime: Some(runtime), aside, over: Mutex::new(over) })
    }

    pub(crate) fn files(&self) -> &Files {
        &self.files
    }

    /// The store's folder, if it is a local one.
    pub(crate) fn folder(&self) -> Option<&Path> {
        self.files.folder()
    }

    /// Starts a task; whoever waits for it blocks a plain thread.
    pub(crate) fn start<T: Send + 'static>(&self, task: impl Future<Output = T> + Send + 'static) -> Pending<T> {
        let (send, receive) = sync_channel(1);
        if let Some(runtime) = &self.runtime {
            runtime.spawn(async move {
                // Nobody waits any more: fine.
                let _ = send.send(task.await);
            });
        }
        Pending(receive)
    }

    /// Starts a task that nobody waits for but a store that is dropped, and that not for long.
    pub(crate) fn start_aside(&self, task: impl Future + Send + 'static) {
        let running = self.aside.clone();
        drop(self.start(async move {
            task.await;
            drop(running);
        }));
    }

    fn run<T: Send + 'static>(
        &self,
        task: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        self.start(task).wait()
    }

    /// Writes a file. Says whether it was written: one that was there stays as it is, unless `mode` replaces it.
    pub(crate) fn put(&self, path: String, parts: [Bytes; 2], mode: Mode) -> Result<bool, Error> {
        let files = self.files.clone();
        self.run(async move { files.put(&path, parts, mode).await })
    }

    /// Reads a file of at most `max` bytes, if it is there.
    pub(crate) fn get(&self, path: String, max: u64) -> Result<Option<Bytes>, Error> {
        let files = self.files.clone();
        self.run(async move { files.get(&path, max).await })
    }

    /// Which of these paths are not there.
    pub(crate) fn absent(&self, paths: Vec<String>) -> Result<Vec<usize>, Error> {
        let files = self.files.clone();
        self.run(async move {
            let checks = paths.into_iter().enumerate().map(|(i, path)| {
                let files = files.clone();
                async move { Ok::<_, Error>((!files.exists(&path).await?).then_some(i)) }
            });
            let absent: Vec<Option<usize>> =
                futures_util::stream::iter(checks).buffer_unordered(16).try_collect().await?;
            Ok(absent.into_iter().flatten().collect())
        })
    }

    /// All files below a prefix, in no order.
    pub(crate) fn list(&self, prefix: String) -> Result<Vec<Listed>, Error> {
        let files = self.files.clone();
        self.run(async move { files.list(&prefix).await })
    }

    /// The folders right below a prefix.
    pub(crate) fn folders(&self, prefix: &str) -> Result<Vec<String>, Error> {
        let (files, prefix) = (self.files.clone(), prefix.to_owned());
        self.run(async move { files.folders(&prefix).await })
    }

    /// Moves a file for good. Says whether it was there.
    pub(crate) fn publish(&self, from: String, to: String) -> Result<bool, Error> {
        let files = self.files.clone();
        self.run(async move { files.publish(&from, &to).await })
    }

    /// Moves a file; if the power fails now, it may be back. Says whether it was there.
    pub(crate) fn set_aside(&self, from: String, to: String) -> Result<bool, Error> {
        let files = self.files.clone();
        self.run(async move { files.set_aside(&from, &to).await })
    }

    /// Deletes a file. Says whether it was there.
    pub(crate) fn delete(&self, path: String) -> Result<bool, Error> {
        let files = self.files.clone();
        self.run(async move { files.delete(&path).await })
    }

    /// Deletes what writers that were killed left of files they never finished, if older than `age`. Says how many
    /// bytes that were.
    pub(crate) fn sweep(&self, age: Duration) -> Result<u64, Error> {
        self.folder().map_or(Ok(0), |folder| local::sweep(folder, age))
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.aside = channel().0;
        // What is left would be lost, or half a file, if the process ends next.
        let _ = lock(&self.over).recv_timeout(LAST);
        if let Some(runtime) = self.runtime.take() {
            // Does not wait, as a plain drop would, which panics on the threads of another runtime.
            runtime.shutdown_background();
        }
    }
}
