//! What a namespace holds, in memory: built from its manifests, which are the truth.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use crate::Snapshot;
use crate::manifest::{Manifest, Object};
use crate::marks::Marks;
use crate::name::{Chain, Id, Name};

/// How many snapshots that went are remembered, to say that they were there.
const GONE: usize = 4096;

/// A snapshot that is listed.
pub(crate) struct Entry {
    pub(crate) manifest: Arc<Manifest>,
    /// The key before its first page.
    pub(crate) root: Chain,
    pub(crate) marks: Marks,
    /// The last use that this process saw, in nanoseconds since 1970.
    pub(crate) used: u64,
    /// When this process last wrote down that it was used.
    pub(crate) touched: Option<Instant>,
}

impl Entry {
    pub(crate) fn pinned(&self) -> bool {
        self.marks.pinned.unwrap_or(self.manifest.pinned)
    }

    pub(crate) fn expires(&self) -> Option<u64> {
        self.marks.expires.unwrap_or(self.manifest.expires)
    }

    pub(crate) fn name(&self) -> Option<&str> {
        self.marks.name.as_ref().unwrap_or(&self.manifest.name).as_deref()
    }

    /// A pin outlasts a time limit.
    pub(crate) fn expired(&self, now: u64) -> bool {
        !self.pinned() && self.expires().is_some_and(|at| at <= now)
    }

    /// In nanoseconds since 1970.
    pub(crate) fn last_use(&self) -> u64 {
        self.used.max(self.marks.used).max(self.manifest.created.saturating_mul(1_000_000_000))
    }

    pub(crate) fn snapshot(&self, id: Id) -> Snapshot {
        Snapshot {
            id,
            subject: self.manifest.subject.clone(),
            position: self.manifest.position,
            pages: self.manifest.pages.len(),
            bytes: self.manifest.objects().fold(0, |sum: u64, object| sum.saturating_add(object.length)),
            name: self.name().map(str::to_owned),
            created: self.manifest.created,
            used: self.last_use() / 1_000_000_000,
            expires: self.expires(),
            pinned: self.pinned(),
            parent: self.manifest.parent,
        }
    }
}

#[derive(Default)]
pub(crate) struct Index {
    pub(crate) entries: HashMap<Id, Entry>,
    /// Snapshots by the key at their last page border.
    full: HashMap<Chain, Vec<Id>>,
    /// Snapshots by the keys at all their page borders, the one before the first page included.
    through: HashMap<Chain, Vec<Id>>,
    /// Objects that are damaged or missing.
    pub(crate) broken: HashSet<Name>,
    /// Manifests that cannot be used, and why; true if only this program cannot use them.
    pub(crate) unreadable: HashMap<Id, (String, bool)>,
    /// Positions and keys of snapshots that went, by the key at their last page border.
    gone: HashMap<Chain, Vec<(usize, Chain)>>,
    /// The same keys, the oldest first.
    gone_order: VecDeque<Chain>,
    pub(crate) in_use: HashMap<Id, usize>,
    /// Which marks were read, as they were then.
    pub(crate) marks_read: HashMap<String, (u64, Option<String>)>,
    /// When the files were last listed.
    pub(crate) listed: Option<Instant>,
}

impl Index {
    pub(crate) fn insert(&mut self, id: Id, manifest: Arc<Manifest>, root: Chain, used: u64) {
        if self.entries.contains_key(&id) {
            return;
        }
        self.full.entry(manifest.full(root)).or_default().push(id);
        for chain in manifest.pages.iter().map(|page| page.chain).chain([root]) {
            self.through.entry(chain).or_default().push(id);
        }
        let entry = Entry { manifest, root, marks: Marks::default(), used, touched: None };
        self.entries.insert(id, entry);
    }

    /// Forgets a snapshot but that it was there.
    pub(crate) fn remove(&mut self, id: Id) -> Option<Arc<Manifest>> {
        let entry = self.entries.remove(&id)?;
        let full = entry.manifest.full(entry.root);
        drop_id(&mut self.full, &full, id);
        for chain in entry.manifest.pages.iter().map(|page| page.chain).chain([entry.root]) {
            drop_id(&mut self.through, &chain, id);
        }
        if self.gone_order.len() == GONE
            && let Some(oldest) = self.gone_order.pop_front()
            && let Some(there) = self.gone.get_mut(&oldest)
        {
            there.remove(0);
            if there.is_empty() {
                self.gone.remove(&oldest);
            }
        }
        self.gone.entry(full).or_default().push((entry.manifest.position, entry.manifest.key));
        self.gone_order.push_back(full);
        Some(entry.manifest)
    }

    pub(crate) fn at_full(&self, chain: &Chain) -> &[Id] {
        self.full.get(chain).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn through(&self, chain: &Chain) -> &[Id] {
        self.through.get(chain).map_or(&[], Vec::as_slice)
    }

    /// Positions and keys of snapshots that were at this page border.
    pub(crate) fn gone(&self, chain: &Chain) -> &[(usize, Chain)] {
        self.gone.get(chain).map_or(&[], Vec::as_slice)
    }

    /// The page that ends with this key, the `page`-th of its snapshots, if it is whole as far as is known.
    pub(crate) fn page(&self, chain: &Chain, page: usize) -> Option<Object> {
        // Looked up with care: a forged manifest may have the key of a page at another place.
        let at = |id: &Id| self.entries.get(id)?.manifest.pages.get(page).filter(|page| page.chain == *chain);
        self.whole(self.through(chain).iter().filter_map(at).map(|page| page.object))
    }

    /// The block of tokens that ends with this key, that of the `page`-th page, if it is whole as far as is known.
    pub(crate) fn block(&self, chain: &Chain, page: usize, block: usize) -> Option<Object> {
        let at = |id: &Id| {
            let manifest = &self.entries.get(id)?.manifest;
            manifest.pages.get(page).filter(|page| page.chain == *chain)?;
            manifest.blocks.get(block).copied()
        };
        self.whole(self.through(chain).iter().filter_map(at))
    }

    fn whole(&self, mut objects: impl Iterator<Item = Object>) -> Option<Object> {
        objects.find(|object| !self.broken.contains(&object.name))
    }

    /// The first object of a snapshot that is known to be damaged or missing.
    pub(crate) fn flaw(&self, manifest: &Manifest) -> Option<Name> {
        if self.broken.is_empty() {
            return None;
        }
        manifest.objects().map(|object| object.name).find(|name| self.broken.contains(name))
    }

    /// How many snapshots name each object.
    pub(crate) fn references(&self) -> HashMap<Name, usize> {
        let mut counts = HashMap::new();
        for entry in self.entries.values() {
            for name in entry.manifest.objects().map(|object| object.name).collect::<HashSet<_>>() {
                *counts.entry(name).or_default() += 1;
            }
        }
        counts
    }
}

fn drop_id(map: &mut HashMap<Chain, Vec<Id>>, chain: &Chain, id: Id) {
    if let Some(ids) = map.get_mut(chain) {
        ids.retain(|other| *other != id);
        if ids.is_empty() {
            map.remove(chain);
        }
    }
}
