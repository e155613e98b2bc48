//! Freeing objects that no snapshot names, while others may just be about to name them.
//!
//! An object is first moved aside. From then on a writer that looks whether its objects are there makes it anew. Then
//! the manifests are listed again, unfinished ones included: a writer that looked before the move has announced its
//! manifest before that, so it is in this listing, and the object is moved back. Only what is still unnamed is deleted.
//! Everybody deletes only what he moved aside himself, or what a process that is long dead did.

use std::collections::HashSet;
use std::time::Duration;

use crate::files::Listed;
use crate::marks::ENDINGS;
use crate::name::{Id, Name};
use crate::refresh::Seen;
use crate::space::Space;
use crate::store::lock;
use crate::{Error, backend, key};

/// What was freed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Freed {
    pub(crate) snapshots: usize,
    pub(crate) objects: usize,
    pub(crate) bytes: u64,
}

impl Freed {
    pub(crate) fn add(&mut self, other: Freed) {
        self.snapshots += other.snapshots;
        self.objects += other.objects;
        self.bytes += other.bytes;
    }
}

impl Space {
    /// Removes snapshots that this process does not use, and frees what only they named.
    pub(crate) fn erase(&self, ids: &[Id]) -> Result<Freed, Error> {
        let mut freed = Freed::default();
        let mut objects = HashSet::new();
        {
            let _one = lock(&self.refreshing);
            for &id in ids {
                let manifest = {
                    let mut index = lock(&self.index);
                    if index.in_use.contains_key(&id) {
                        continue;
                    }
                    index.remove(id)
                };
                let Some(manifest) = manifest else { continue };
                self.shared.backend.delete(self.manifest_path(id))?;
                self.shared.cache.update(&[], &[self.manifest_path(id)]);
                for ending in ENDINGS {
                    self.shared.backend.delete(self.mark_path(id, ending))?;
                }
                freed.snapshots += 1;
                objects.extend(manifest.objects().map(|object| object.name));
            }
        }
        freed.add(self.free(objects)?);
        Ok(freed)
    }

    /// Frees those of some objects that nobody names.
    pub(crate) fn free(&self, mut objects: HashSet<Name>) -> Result<Freed, Error> {
        let named = self.named(&self.refresh()?)?;
        objects.retain(|name| !named.contains(name));
        if objects.is_empty() {
            return Ok(Freed::default());
        }
        let run = format!("{}-{:016x}", backend::now(), u64::from_le_bytes(key::random()?));
        let aside = self.path(format_args!("condemned/{run}"));
        for name in objects {
            self.shared.backend.set_aside(self.object_path(&name), format!("{aside}/{name}"))?;
        }
        let condemned = self.shared.backend.list(aside)?;
        self.settle(condemned)
    }

    /// Deletes what was moved aside and is still unnamed, and moves the rest back.
    fn settle(&self, condemned: Vec<Listed>) -> Result<Freed, Error> {
        let mut freed = Freed::default();
        if condemned.is_empty() {
            return Ok(freed);
        }
        let named = self.named(&self.refresh()?)?;
        for file in condemned {
            match Name::from_hex(&file.name) {
                Some(name) if named.contains(&name) => {
                    self.shared.backend.set_aside(file.path, self.object_path(&name))?;
                }
                _ if self.shared.backend.delete(file.path)? => {
                    freed.objects += 1;
                    freed.bytes += file.size;
                }
                _ => {}
            }
        }
        Ok(freed)
    }

    /// Settles what collectors left that died long ago.
    pub(crate) fn settle_abandoned(&self, age: Duration) -> Result<Freed, Error> {
        let limit = backend::now().saturating_sub(age.as_secs());
        let mut condemned = self.shared.backend.list(self.path("condemned"))?;
        condemned.retain(|file| {
            let run = file.path.rsplit('/').nth(1).and_then(|run| run.split_once('-')?.0.parse::<u64>().ok());
            run.is_none_or(|began| began <= limit)
        });
        self.settle(condemned)
    }

    /// All objects that a snapshot names, a finished one or not.
    pub(crate) fn named(&self, seen: &Seen) -> Result<HashSet<Name>, Error> {
        if let Some(why) = &seen.foreign {
            // What it names is not known, so nothing may go.
            return Err(Error::Location {
                place: self.place(&self.path("")),
                problem: format!("nothing is freed here, because a manifest cannot be read: {why}"),
            });
        }
        let mut named: HashSet<Name> = lock(&self.index).references().into_keys().collect();
        named.extend(&seen.awaited);
        Ok(named)
    }
}
