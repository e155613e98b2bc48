//! A namespace: snapshots that are found, shared and listed among themselves only.

use std::sync::Arc;

use crate::index::Entry;
use crate::load::read_tokens;
use crate::marks::Mark;
use crate::save::check_name;
use crate::space::{Hold, Space};
use crate::store::{Store, lock};
use crate::{Error, Id, Subject};

/// A namespace of a store. Cheap to clone.
#[derive(Clone)]
pub struct Namespace {
    pub(crate) store: Store,
    pub(crate) space: Arc<Space>,
}

/// What is known of a snapshot without reading its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its identity.
    pub id: Id,
    /// What its state belongs to.
    pub subject: Subject,
    /// How many tokens its state follows.
    pub position: usize,
    /// How many full pages it has.
    pub pages: usize,
    /// Bytes of its pages, tokens and tail before packing, those that it shares included.
    pub bytes: u64,
    /// The session's name.
    pub name: Option<String>,
    /// When it was made, in seconds since 1970.
    pub created: u64,
    /// When it was last made, loaded or matched, in seconds since 1970 and to about a minute.
    pub used: u64,
    /// When it may go, in seconds since 1970.
    pub expires: Option<u64>,
    /// Whether it is kept whatever the quota and its time limit.
    pub pinned: bool,
    /// The snapshot that its session went on from.
    pub parent: Option<Id>,
}

impl Namespace {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.space.name
    }

    /// Its store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Looks at what other processes did since the last look. [`Namespace::find`], [`Namespace::save`] and
    /// [`Namespace::list`] do so by themselves when the last look is older than [`crate::Options::refresh`].
    ///
    /// # Errors
    /// [`Error::Access`].
    pub fn refresh(&self) -> Result<(), Error> {
        self.space.refresh().map(drop)
    }

    /// All snapshots that have not expired, the last used first.
    ///
    /// # Errors
    /// [`Error::Access`].
    pub fn list(&self) -> Result<Vec<Snapshot>, Error> {
        self.list_named(|_| true)
    }

    /// Those of them whose name, if they have one, is asked for.
    ///
    /// # Errors
    /// [`Error::Access`].
    pub fn list_named(&self, wanted: impl Fn(Option<&str>) -> bool) -> Result<Vec<Snapshot>, Error> {
        self.space.refresh_if_stale()?;
        let now = crate::backend::now();
        let index = lock(&self.space.index);
        let of = |entry: &Entry| !entry.expired(now) && wanted(entry.name());
        let mut all: Vec<_> = index.entries.iter().filter(|(_, entry)| of(entry)).collect();
        all.sort_by_key(|(id, entry)| (std::cmp::Reverse(entry.last_use()), **id));
        Ok(all.into_iter().map(|(id, entry)| entry.snapshot(*id)).collect())
    }

    /// Whether there is a snapshot of such a name, as of the last look.
    ///
    /// # Errors
    /// [`Error::Access`], if this is the first.
    pub fn has_named(&self, wanted: impl Fn(&str) -> bool) -> Result<bool, Error> {
        if lock(&self.space.index).listed.is_none() {
            self.space.refresh()?;
        }
        Ok(lock(&self.space.index).entries.values().any(|entry| entry.name().is_some_and(&wanted)))
    }

    /// One snapshot.
    ///
    /// # Errors
    /// [`Error::NoSnapshot`] and [`Error::Access`].
    pub fn show(&self, id: &Id) -> Result<Snapshot, Error> {
        self.known(id)?;
        self.space.snapshot(*id)
    }

    /// The tokens of a snapshot, from its start.
    ///
    /// # Errors
    /// [`Error::NoSnapshot`], [`Error::Damaged`] and [`Error::Missing`] where they are lost, and [`Error::Access`].
    pub fn tokens(&self, id: &Id) -> Result<Vec<u32>, Error> {
        self.known(id)?;
        let manifest = lock(&self.space.index).entries.get(id).map(|entry| Arc::clone(&entry.manifest));
        let manifest = manifest.ok_or_else(|| self.space.no_snapshot(*id))?;
        read_tokens(&self.space, &manifest)
    }

    /// Keeps a snapshot from being evicted by this process, and from being removed by it, while the result lives.
    ///
    /// # Errors
    /// [`Error::NoSnapshot`] and [`Error::Access`].
    pub fn hold(&self, id: &Id) -> Result<Hold, Error> {
        self.known(id)?;
        self.space.hold(*id)
    }

    /// Keeps a snapshot whatever the quota and its time limit, or no longer.
    ///
    /// # Errors
    /// [`Error::NoSnapshot`] and [`Error::Access`].
    pub fn pin(&self, id: &Id, pinned: bool) -> Result<(), Error> {
        self.known(id)?;
        self.space.set_mark(*id, Mark::Pinned(pinned))
    }

    /// Gives a snapshot's session another name, or none.
    ///
    /// # Errors
    /// [`Error::NoSnapshot`], [`Error::Request`] for a name that is too long, and [`Error::Access`].
    pub fn rename(&self, id: &Id, name: Option<&str>) -> Result<(), Error> {
        check_name(name)?;
        self.known(id)?;
        self.space.set_mark(*id, Mark::Name(name.map(str::to_owned)))
    }

    /// Lets a snapshot go at a time, in seconds since 1970, or not by time.
    ///
    /// # Errors
    /// [`Error::NoSnapshot`] and [`Error::Access`].
    pub fn expire(&self, id: &Id, at: Option<u64>) -> Result<(), Error> {
        self.known(id)?;
        self.space.set_mark(*id, Mark::Expires(at))
    }

    /// Removes a snapshot, and erases what nothing else uses of it.
    ///
    /// # Errors
    /// [`Error::NoSnapshot`], [`Error::InUse`] while this process reads it, and [`Error::Access`].
    pub fn remove(&self, id: &Id) -> Result<(), Error> {
        self.known(id)?;
        self.space.snapshot(*id)?;
        if lock(&self.space.index).in_use.contains_key(id) {
            return Err(Error::InUse { id: *id });
        }
        let freed = self.space.erase(&[*id])?;
        self.store.shared().freed(freed.bytes);
        Ok(())
    }

    /// Another process may have made it just now.
    pub(crate) fn known(&self, id: &Id) -> Result<(), Error> {
        if !lock(&self.space.index).entries.contains_key(id) {
            self.space.refresh()?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Namespace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Namespace({})", self.space.name)
    }
}
