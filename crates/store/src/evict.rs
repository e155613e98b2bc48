//! The quota: snapshots that go when there is no room, the least recently used first.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::free::Freed;
use crate::name::{Id, Name};
use crate::space::Space;
use crate::store::{Store, lock};
use crate::{Error, backend};

/// A quota's part that is freed beyond what is needed, so that a full store is not listed for every page.
const SLACK: u64 = 20;

/// What is weighed when snapshots are to go: a namespace, the sizes of its objects, who names them, who may go.
struct Weighed {
    space: Arc<Space>,
    sizes: HashMap<Name, u64>,
    counts: HashMap<Name, usize>,
    gone: Vec<Id>,
}

impl Store {
    /// Counts `needed` more bytes as held, after evicting what is in their way.
    pub(crate) fn make_room(&self, needed: u64) -> Result<(), Error> {
        let (held, quota) = (&self.shared().held, self.shared().options.quota);
        if quota == u64::MAX {
            return Ok(());
        }
        if held.load(Ordering::Relaxed) == u64::MAX {
            held.store(self.total()?, Ordering::Relaxed);
        }
        let add = |held: u64| held.checked_add(needed).filter(|&sum| sum <= quota);
        if held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok() {
            return Ok(());
        }
        if needed <= quota {
            // The count may be stale: others write and free too.
            self.evict_to(quota.saturating_sub(needed).saturating_sub(quota / SLACK))?;
        }
        let outcome = held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        outcome.map(drop).map_err(|used| Error::Quota { used, quota, needed })
    }

    /// Bytes of all files of all namespaces.
    pub(crate) fn total(&self) -> Result<u64, Error> {
        let files = self.shared().backend.list("namespaces".into())?;
        Ok(files.iter().fold(0, |sum: u64, file| sum.saturating_add(file.size)))
    }

    /// Evicts until at most `target` bytes are held, or nothing is left that may go.
    pub(crate) fn evict_to(&self, target: u64) -> Result<Freed, Error> {
        let mut freed = Freed::default();
        let mut total = self.total()?;
        if total > target {
            for weighed in self.choose(total - target)? {
                freed.add(weighed.space.erase(&weighed.gone)?);
            }
            total = self.total()?;
        }
        self.shared().held.store(total, Ordering::Relaxed);
        Ok(freed)
    }

    /// The snapshots whose going frees at least so many bytes, if there are enough.
    fn choose(&self, excess: u64) -> Result<Vec<Weighed>, Error> {
        let now = backend::now();
        let mut all = Vec::new();
        let mut candidates = Vec::new();
        for space in self.spaces()? {
            let seen = space.refresh()?;
            let sizes = space.shared.backend.list(space.path("objects"))?;
            let sizes = sizes.into_iter().filter_map(|file| Some((Name::from_hex(&file.name)?, file.size))).collect();
            let manifests = space.shared.backend.list(space.path("manifests"))?;
            let manifests: HashMap<Id, u64> =
                manifests.into_iter().filter_map(|file| Some((Id::from_hex(&file.name)?, file.size))).collect();
            let index = lock(&space.index);
            let mut counts = index.references();
            for name in &seen.awaited {
                *counts.entry(*name).or_default() += 1;
            }
            for (id, entry) in &index.entries {
                if !entry.pinned() && !index.in_use.contains_key(id) {
                    let order = (!entry.expired(now), entry.last_use(), *id);
                    let size = manifests.get(id).copied().unwrap_or(0);
                    candidates.push((order, all.len(), size, Arc::clone(&entry.manifest)));
                }
            }
            drop(index);
            all.push(Weighed { space, sizes, counts, gone: Vec::new() });
        }
        candidates.sort_by_key(|(order, ..)| *order);
        let mut freed = 0;
        for ((_, _, id), at, size, manifest) in candidates {
            if freed >= excess {
                break;
            }
            let weighed = &mut all[at];
            weighed.gone.push(id);
            freed += size;
            for name in manifest.objects().map(|object| object.name).collect::<HashSet<_>>() {
                if let Some(count) = weighed.counts.get_mut(&name) {
                    *count -= 1;
                    if *count == 0 {
                        freed += weighed.sizes.get(&name).copied().unwrap_or(0);
                    }
                }
            }
        }
        all.retain(|weighed| !weighed.gone.is_empty());
        Ok(all)
    }
}
