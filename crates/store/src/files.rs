//! Files of a store, as `object_store` gives them and tasks ask for them.

use std::io;
use std::path::{self, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload};

use crate::backend::now_nanos;
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

/// A folder or a bucket.
pub(crate) struct Place {
    pub(crate) store: Arc<dyn ObjectStore>,
    /// The same without waiting for the disk, for what may be lost when the power fails.
    pub(crate) quick: Arc<dyn ObjectStore>,
    /// The folder, if it is one.
    pub(crate) folder: Option<PathBuf>,
}

/// The files at a place. Tasks carry a clone along.
#[derive(Clone)]
pub(crate) struct Files {
    at: Arc<Place>,
    name: Arc<str>,
    #[cfg(test)]
    pub(crate) faults: Arc<crate::faults::Faults>,
}

impl Files {
    /// Messages call the place `name`.
    pub(crate) fn new(place: Place, name: &str) -> Files {
        Files {
            at: Arc::new(place),
            name: name.trim_end_matches('/').into(),
            #[cfg(test)]
            faults: Arc::default(),
        }
    }

    pub(crate) fn folder(&self) -> Option<&path::Path> {
        self.at.folder.as_deref()
    }

    /// A path as messages show it.
    pub(crate) fn place(&self, path: &str) -> String {
        format!("{}/{path}", self.name)
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
        let store = if mode == Mode::Quick { &self.at.quick } else { &self.at.store };
        let mode = if mode == Mode::Create { PutMode::Create } else { PutMode::Overwrite };
        let options = PutOptions { mode, ..PutOptions::default() };
        match store.put_opts(&at, PutPayload::from_iter(parts), options).await {
            Ok(_) => {}
            Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                return Ok(false);
            }
            Err(e) => return Err(self.error("write", path, e)),
        }
        if let Some(folder) = &self.at.folder {
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
        if let Some(folder) = &self.at.folder {
            return self.get_local(folder.join(path), path, max).await;
        }
        let found = match self.at.store.get(&Path::from(path)).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(e) => return Err(self.error("read", path, e)),
        };
        if found.meta.size > max {
            return Err(self.too_long(path, found.meta.size, max));
        }
        match found.bytes().await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(self.error("read", path, e)),
        }
    }

    /// As [`Files::get`]. `object_store` would fill the memory with zeros first, which a long restore feels.
    async fn get_local(&self, at: PathBuf, path: &str, max: u64) -> Result<Option<Bytes>, Error> {
        let read = tokio::task::spawn_blocking(move || local::read(&at, max)).await;
        match read.unwrap_or_else(|stopped| Err(io::Error::other(stopped))) {
            Ok(Ok(bytes)) => Ok(Some(bytes.into())),
            Ok(Err(size)) => Err(self.too_long(path, size, max)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::Access { action: "read", place: self.place(path), cause: Box::new(e) }),
        }
    }

    fn too_long(&self, path: &str, size: u64, max: u64) -> Error {
        Error::Damaged { place: self.place(path), problem: format!("it has {size} bytes, at most {max} are possible") }
    }

    pub(crate) async fn delete(&self, path: &str) -> Result<bool, Error> {
        self.fault("delete", path)?;
        match self.at.store.delete(&Path::from(path)).await {
            Ok(()) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(e) => Err(self.error("delete", path, e)),
        }
    }

    pub(crate) async fn exists(&self, path: &str) -> Result<bool, Error> {
        match self.at.store.head(&Path::from(path)).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(e) => Err(self.error("look for", path, e)),
        }
    }

    pub(crate) async fn publish(&self, from: &str, to: &str) -> Result<bool, Error> {
        self.rename(&self.at.store, from, to).await
    }

    pub(crate) async fn set_aside(&self, from: &str, to: &str) -> Result<bool, Error> {
        self.rename(&self.at.quick, from, to).await
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
        let mut found = self.at.store.list(Some(&at));
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

    /// The folders right below a prefix.
    pub(crate) async fn folders(&self, prefix: &str) -> Result<Vec<String>, Error> {
        match self.at.store.list_with_delimiter(Some(&Path::from(prefix))).await {
            Err(object_store::Error::NotFound { .. }) => Ok(Vec::new()),
            Err(e) => Err(self.error("list", prefix, e)),
            Ok(found) => {
                Ok(found.common_prefixes.iter().filter_map(|path| Some(path.filename()?.to_owned())).collect())
            }
        }
    }
}
