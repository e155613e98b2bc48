//! Where the bytes lie: a local folder or a bucket, asked from plain threads.

use std::future::Future;
use std::io;
use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};
use tokio::runtime::{Builder, Runtime};

use crate::{Error, local};

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Unless it is there.
    Create,
    /// Over what is there.
    Replace,
    /// Over what is there, and lost if the power fails now.
    Quick,
}

/// One file in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listed {
    /// The last part of its path.
    pub(crate) name: String,
    pub(crate) path: String,
    pub(crate) size: u64,
    /// Nanoseconds since 1970.
    pub(crate) modified: u64,
    /// Changes when the file does.
    pub(crate) tag: Option<String>,
}

impl Listed {
    /// Whether it was last changed at least so long ago.
    pub(crate) fn older_than(&self, age: Duration) -> bool {
        self.modified.saturating_add(age.as_nanos() as u64) <= now_nanos()
    }
}

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

/// The part that tasks carry along.
#[derive(Clone)]
pub(crate) struct Files {
    store: Arc<dyn ObjectStore>,
    /// The same without waiting for the disk, for what may be lost when the power fails.
    quick: Arc<dyn ObjectStore>,
    /// The folder, if it is one.
    folder: Option<Arc<PathBuf>>,
    place: Arc<str>,
    #[cfg(test)]
    pub(crate) faults: Arc<crate::faults::Faults>,
}

/// Files, and the threads that wait for them: calls block their own thread only, and may come from anywhere.
pub(crate) struct Backend {
    files: Files,
    runtime: Option<Runtime>,
}

impl Backend {
    /// # Errors
    /// [`Error::Location`] and [`Error::Access`].
    pub(crate) fn open(location: &str) -> Result<Backend, Error> {
        let ([store, quick], folder) = match location.split_once("://") {
            Some(("s3", _)) => {
                let store = s3(location)?;
                ([Arc::clone(&store), store], None)
            }
            Some(("file", path)) => local::open(FilePath::new(path))?,
            Some(_) => {
                let problem = "is no place for a store; give a folder or s3://bucket/prefix".into();
                return Err(Error::Location { place: location.into(), problem });
            }
            None => local::open(FilePath::new(location))?,
        };
        let runtime = Builder::new_multi_thread().worker_threads(2).thread_name("fathom-store").enable_all().build();
        let runtime = runtime.map_err(|cause| Error::Access {
            action: "start threads for",
            place: location.into(),
            cause: Box::new(cause),
        })?;
        let files = Files {
            store,
            quick,
            folder: folder.map(Arc::new),
            place: location.trim_end_matches('/').into(),
            #[cfg(test)]
            faults: Arc::default(),
        };
        Ok(Backend { files, runtime: Some(runtime) })
    }

    pub(crate) fn files(&self) -> &Files {
        &self.files
    }

    /// The store's folder, if it is a local one.
    pub(crate) fn folder(&self) -> Option<&FilePath> {
        self.files.folder.as_deref().map(PathBuf::as_path)
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
        self.run(async move {
            let found = files.store.list_with_delimiter(Some(&Path::from(prefix.as_str()))).await;
            let found = match found {
                Err(object_store::Error::NotFound { .. }) => return Ok(Vec::new()),
                other => other.map_err(|e| files.error("list", &prefix, e))?,
            };
            Ok(found.common_prefixes.iter().filter_map(|path| Some(path.filename()?.to_owned())).collect())
        })
    }

    /// Moves a file for good. Says whether it was there.
    pub(crate) fn publish(&self, from: String, to: String) -> Result<bool, Error> {
        let files = self.files.clone();
        self.run(async move { files.rename(&files.store, &from, &to).await })
    }

    /// Moves a file; if the power fails now, it may be back. Says whether it was there.
    pub(crate) fn set_aside(&self, from: String, to: String) -> Result<bool, Error> {
        let files = self.files.clone();
        self.run(async move { files.set_aside(&from, &to).await })
    }

    /// Deletes a file. Says whether it was there.
    pub(crate) fn delete(&self, path: String) -> Result<bool, Error> {
        let files = self.files.clone();
        self.run(async move {
            files.fault("delete", &path)?;
            match files.store.delete(&Path::from(path.as_str())).await {
                Ok(()) => Ok(true),
                Err(object_store::Error::NotFound { .. }) => Ok(false),
                Err(e) => Err(files.error("delete", &path, e)),
            }
        })
    }

    /// Deletes what writers that were killed left of files they never finished, if older than `age`. Says how many
    /// bytes that were.
    pub(crate) fn sweep(&self, age: Duration) -> Result<u64, Error> {
        self.folder().map_or(Ok(0), |folder| local::sweep(folder, age))
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Does not wait, as a plain drop would, which panics on the threads of another runtime.
            runtime.shutdown_background();
        }
    }
}

impl Files {
    /// A path as messages show it.
    pub(crate) fn place(&self, path: &str) -> String {
        format!("{}/{path}", self.place)
    }

    fn error(&self, action: &'static str, path: &str, cause: object_store::Error) -> Error {
        Error::Access { action, place: self.place(path), cause: Box::new(cause) }
    }

    #[cfg(test)]
    fn fault(&self, action: &'static str, path: &str) -> Result<(), Error> {
        self.faults.check(action, path).map_err(|cause| Error::Access {
            action,
            place: self.place(path),
            cause: Box::new(cause),
        })
    }

    #[cfg(not(test))]
    fn fault(&self, _action: &'static str, _path: &str) -> Result<(), Error> {
        Ok(())
    }

    pub(crate) async fn put(&self, path: &str, parts: [Bytes; 2], mode: Mode) -> Result<bool, Error> {
        self.fault("write", path)?;
        let at = Path::from(path);
        let store = if mode == Mode::Quick { &self.quick } else { &self.store };
        let mode = if mode == Mode::Create { PutMode::Create } else { PutMode::Overwrite };
        let options = PutOptions { mode, ..PutOptions::default() };
        match store.put_opts(&at, PutPayload::from_iter(parts), options).await {
            Ok(_) => {}
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                return Ok(false);
            }
            Err(e) => return Err(self.error("write", path, e)),
        }
        if let Some(folder) = &self.folder {
            // The folder is ours alone already; this is for copies of it.
            local::close(&folder.join(path)).or_else(|e| match e.kind() {
                io::ErrorKind::NotFound => Ok(()),
                _ => Err(Error::Access { action: "set the mode of", place: self.place(path), cause: Box::new(e) }),
            })?;
        }
        Ok(true)
    }

    pub(crate) async fn get(&self, path: &str, max: u64) -> Result<Option<Bytes>, Error> {
        self.fault("read", path)?;
        let found = match self.store.get(&Path::from(path)).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(e) => return Err(self.error("read", path, e)),
        };
        if found.meta.size > max {
            let problem = format!("it has {} bytes, at most {max} are possible", found.meta.size);
            return Err(Error::Damaged { place: self.place(path), problem });
        }
        match found.bytes().await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(self.error("read", path, e)),
        }
    }

    pub(crate) async fn exists(&self, path: &str) -> Result<bool, Error> {
        match self.store.head(&Path::from(path)).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(e) => Err(self.error("look for", path, e)),
        }
    }

    pub(crate) async fn set_aside(&self, from: &str, to: &str) -> Result<bool, Error> {
        self.rename(&self.quick, from, to).await
    }

    async fn rename(&self, store: &Arc<dyn ObjectStore>, from: &str, to: &str) -> Result<bool, Error> {
        self.fault("move", from)?;
        match store.rename(&Path::from(from), &Path::from(to)).await {
            Ok(()) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(e) => Err(self.error("move", from, e)),
        }
    }

    pub(crate) async fn list(&self, prefix: &str) -> Result<Vec<Listed>, Error> {
        self.fault("list", prefix)?;
        let at = Path::from(prefix);
        let mut found = self.store.list(Some(&at));
        let mut all = Vec::new();
        while let Some(meta) = found.next().await {
            let meta = meta.map_err(|e| self.error("list", prefix, e))?;
            all.push(Listed {
                name: meta.location.filename().unwrap_or_default().to_owned(),
                path: meta.location.to_string(),
                size: meta.size,
                modified: meta.last_modified.timestamp_nanos_opt().and_then(|n| n.try_into().ok()).unwrap_or(0),
                tag: meta.e_tag,
            });
        }
        Ok(all)
    }
}

#[cfg(feature = "s3")]
fn s3(location: &str) -> Result<Arc<dyn ObjectStore>, Error> {
    use object_store::RetryConfig;
    use object_store::aws::AmazonS3Builder;
    use object_store::prefix::PrefixStore;

    let wrong = |problem: String| Error::Location { place: location.into(), problem };
    let rest = location.strip_prefix("s3://").unwrap_or(location).trim_end_matches('/');
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return Err(wrong("has no bucket; give s3://bucket/prefix".into()));
    }
    // A prefix is found by computing the tokens again sooner than by waiting minutes for a server.
    let retry = RetryConfig { max_retries: 5, retry_timeout: Duration::from_secs(30), ..RetryConfig::default() };
    let store = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(retry).build();
    let store = store.map_err(|e| wrong(format!("{e}; set AWS_ACCESS_KEY_ID and the other AWS_* variables")))?;
    Ok(if prefix.is_empty() { Arc::new(store) } else { Arc::new(PrefixStore::new(store, prefix)) })
}

#[cfg(not(feature = "s3"))]
fn s3(location: &str) -> Result<Arc<dyn ObjectStore>, Error> {
    let problem = "this program was built without buckets; build it with `--features s3`, or give a folder".into();
    Err(Error::Location { place: location.into(), problem })
}
