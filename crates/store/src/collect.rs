//! Collecting: what expired, what nobody names, what the dead left, what is over the quota.

use std::collections::HashSet;
use std::sync::Arc;

use crate::free::Freed;
use crate::marks::ENDINGS;
use crate::name::{Id, Name};
use crate::space::Space;
use crate::store::{Store, lock};
use crate::{Error, backend};

/// What a collection did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    /// Snapshots that were removed: expired, damaged beyond reading, or evicted for the quota.
    pub snapshots: usize,
    /// Objects that were deleted.
    pub objects: usize,
    /// Bytes of them and of unfinished files.
    pub bytes: u64,
    /// Namespaces that were left alone, and why.
    pub skipped: Vec<String>,
}

impl Store {
    /// Frees what may go: expired snapshots, objects that no manifest names and that are older than
    /// [`crate::Options::grace`], what processes that died left behind, and, over the quota, the least recently used
    /// snapshots; never pinned ones, and none that this process uses. Other processes may go on meanwhile.
    ///
    /// # Errors
    /// [`Error::Access`]. A namespace that cannot be collected (it has another key, or files of a later version) is
    /// skipped and named in the result.
    pub fn collect(&self) -> Result<Collected, Error> {
        let mut collected = Collected::default();
        let mut freed = Freed::default();
        for name in self.namespaces()? {
            match self.namespace(&name).and_then(|namespace| namespace.space.collect()) {
                Ok(more) => freed.add(more),
                Err(error @ Error::Access { .. }) => return Err(error),
                Err(error) => collected.skipped.push(format!("{name}: {error}")),
            }
        }
        freed.bytes += self.shared().backend.sweep(self.shared().options.abandoned)?;
        self.forget_counts()?;
        if collected.skipped.is_empty() {
            freed.add(self.evict_to(self.shared().options.quota)?);
        }
        Ok(Collected { snapshots: freed.snapshots, objects: freed.objects, bytes: freed.bytes, ..collected })
    }
}

impl Space {
    fn collect(self: &Arc<Self>) -> Result<Freed, Error> {
        let (backend, options) = (&self.shared.backend, &self.shared.options);
        let mut freed = Freed::default();
        let seen = self.refresh()?;
        for file in seen.unfinished.iter().filter(|file| file.older_than(options.abandoned)) {
            if backend.delete(file.path.clone())? {
                freed.bytes += file.size;
            }
        }
        for file in &seen.orphans {
            backend.delete(file.path.clone())?;
        }
        freed.add(self.drop_unreadable()?);
        let now = backend::now();
        let expired: Vec<Id> = {
            let index = lock(&self.index);
            index.entries.iter().filter(|(_, entry)| entry.expired(now)).map(|(id, _)| *id).collect()
        };
        if !expired.is_empty() {
            freed.add(self.erase(&expired)?);
        }
        let objects = backend.list(self.path("objects"))?;
        let old = objects.into_iter().filter(|file| file.older_than(options.grace));
        let old: HashSet<Name> = old.filter_map(|file| Name::from_hex(&file.name)).collect();
        freed.add(self.free(old)?);
        freed.add(self.settle_abandoned(options.abandoned)?);
        for file in backend.list(self.path("damaged"))? {
            if file.older_than(options.grace) && backend.delete(file.path)? {
                freed.objects += 1;
                freed.bytes += file.size;
            }
        }
        Ok(freed)
    }

    /// Removes manifests that are damaged, having looked again.
    fn drop_unreadable(&self) -> Result<Freed, Error> {
        let damaged: Vec<Id> = {
            let index = lock(&self.index);
            index.unreadable.iter().filter(|(_, (_, foreign))| !foreign).map(|(id, _)| *id).collect()
        };
        let mut freed = Freed::default();
        for id in damaged {
            // Forgotten, so that the next listing reads it again if it is whole after all.
            lock(&self.index).unreadable.remove(&id);
            if self.verify_manifest(id)?.is_none() {
                continue;
            }
            let to = self.path(format_args!("damaged/{id}"));
            if self.shared.backend.set_aside(self.manifest_path(id), to)? {
                freed.snapshots += 1;
            }
            for ending in ENDINGS {
                self.shared.backend.delete(self.mark_path(id, ending))?;
            }
        }
        Ok(freed)
    }
}
