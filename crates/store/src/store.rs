//! A store: where it is, how it is written, and its namespaces.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use crate::backend::Backend;
use crate::budget::Written;
use crate::cache::Cache;
use crate::files::Mode;
use crate::namespace::Namespace;
use crate::sealed::Sealer;
use crate::space::Space;
use crate::{Error, Key};

/// The file that says what a folder is.
pub(crate) const MARKER: &str = "fathom-store";
/// What it holds: the version of the layout.
const LAYOUT: &[u8] = b"fathom store 1\n";

/// How to use a store. Several processes may use one with different options, but with one key.
#[derive(Debug, Clone)]
pub struct Options {
    /// The most bytes that the store may hold, all namespaces together.
    pub quota: u64,
    /// Compress with zstd at this level (-7 to 22); nothing is compressed if not given. Either way both are read.
    pub compress: Option<i32>,
    /// Encrypt everything with this key.
    pub key: Option<Key>,
    /// The most bytes that may be written from one midnight (UTC) to the next, by all processes together.
    pub write_budget: Option<u64>,
    /// How long an object may lie unnamed by any manifest before [`Store::collect`] takes it for garbage. A writer that
    /// takes longer stays correct, but writes some pages twice.
    pub grace: Duration,
    /// After how long an unfinished snapshot or an unfinished collection counts as abandoned, its process as dead. A
    /// writer that takes longer than this to name all its objects fails.
    pub abandoned: Duration,
    /// How long a listing is good for before the store is asked what other processes did.
    pub refresh: Duration,
    /// Where to keep the cache of manifests. If not given, a local store keeps it in its folder and a bucket does
    /// without. It can be deleted at any time.
    pub cache: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            quota: 64 << 30,
            compress: None,
            key: None,
            write_budget: None,
            grace: Duration::from_secs(3600),
            abandoned: Duration::from_secs(24 * 3600),
            refresh: Duration::from_secs(2),
            cache: None,
        }
    }
}

/// What all parts of a store share.
pub(crate) struct Shared {
    pub(crate) backend: Backend,
    pub(crate) options: Options,
    pub(crate) sealer: Sealer,
    pub(crate) cache: Cache,
    pub(crate) written: Mutex<Written>,
    /// Bytes held, as far as this process knows; `u64::MAX` before the first count.
    pub(crate) held: AtomicU64,
}

struct Inner {
    shared: Arc<Shared>,
    spaces: Mutex<HashMap<String, Arc<Space>>>,
}

/// A place where snapshots are kept. Cheap to clone; all clones are one store.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

/// A lock that a panic elsewhere does not take from us: what it guards is whole between any two statements.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    /// Opens a store, or makes it: a folder, or `s3://bucket/prefix` if built with feature `s3`. Buckets take
    /// their endpoint, region and credentials from the usual `AWS_*` variables.
    ///
    /// # Errors
    /// [`Error::Location`] for a folder that holds something else, [`Error::Access`] where the system refuses,
    /// [`Error::Newer`] for a store of a later layout.
    pub fn open(location: &str, options: Options) -> Result<Store, Error> {
        let backend = Backend::open(location)?;
        mark(&backend)?;
        let path = options.cache.clone().or_else(|| Some(backend.folder()?.join("cache.redb")));
        let shared = Shared {
            sealer: Sealer::new(options.compress, options.key.as_ref()),
            cache: Cache::open(path.as_deref()),
            written: Mutex::new(Written::new()?),
            held: AtomicU64::new(u64::MAX),
            backend,
            options,
        };
        Ok(Store(Arc::new(Inner { shared: Arc::new(shared), spaces: Mutex::default() })))
    }

    /// Bytes held by all namespaces, as far as this process knows, and the most they may be. They are counted when something is first
    /// written; this asks nobody.
    pub fn bytes(&self) -> (Option<u64>, u64) {
        let held = self.0.shared.held.load(Ordering::Relaxed);
        ((held != u64::MAX).then_some(held), self.0.shared.options.quota)
    }

    /// Opens a namespace, or makes it. Nothing is found, shared or listed across namespaces.
    ///
    /// # Errors
    /// [`Error::Request`] for a name that is not 1 to 64 of `a-z`, `0-9`, `_` and `-`; [`Error::Key`] if it was
    /// written with another key, or with none; [`Error::Access`].
    pub fn namespace(&self, name: &str) -> Result<Namespace, Error> {
        let mut spaces = lock(&self.0.spaces);
        let space = match spaces.get(name) {
            Some(space) => Arc::clone(space),
            None => {
                let space = Arc::new(Space::open(&self.0.shared, name, true)?);
                spaces.insert(name.to_owned(), Arc::clone(&space));
                space
            }
        };
        Ok(Namespace { store: self.clone(), space })
    }

    /// The names of all namespaces, sorted.
    ///
    /// # Errors
    /// [`Error::Access`].
    pub fn namespaces(&self) -> Result<Vec<String>, Error> {
        let mut names = self.0.shared.backend.folders("namespaces")?;
        names.sort();
        Ok(names)
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.0.shared
    }

    /// All namespaces that are there, opened.
    pub(crate) fn spaces(&self) -> Result<Vec<Arc<Space>>, Error> {
        self.namespaces()?.iter().map(|name| Ok(self.namespace(name)?.space)).collect()
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({})", self.0.shared.backend.files().place(""))
    }
}

/// Reads the marker, or writes it.
fn mark(backend: &Backend) -> Result<(), Error> {
    let place = backend.files().place(MARKER);
    let wrong = || Error::Location {
        place: place.clone(),
        problem: format!("should hold {:?}; restore it if this is a store", String::from_utf8_lossy(LAYOUT)),
    };
    let read = || match backend.get(MARKER.into(), 64) {
        Err(Error::Damaged { .. }) => Err(wrong()),
        other => other,
    };
    let mut found = read()?;
    if found.is_none() {
        backend.put(MARKER.into(), [Bytes::from_static(LAYOUT), Bytes::new()], Mode::Create)?;
        found = read()?;
    }
    let found = found.unwrap_or_default();
    if found == LAYOUT {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&found);
    match text.strip_prefix("fathom store ").and_then(|n| n.trim_end().parse().ok()) {
        Some(version) if version > 1 => Err(Error::Newer { place, version, known: 1 }),
        _ => Err(wrong()),
    }
}
