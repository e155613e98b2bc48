//! What a store holds and what was written.

use crate::Error;
use crate::store::{Store, lock};

/// What a store holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of all files of all namespaces, as stored.
    pub bytes: u64,
    /// The most they may be.
    pub quota: u64,
    /// Pages, blocks of tokens and tails.
    pub objects: usize,
    /// Snapshots.
    pub snapshots: usize,
    /// Of these, those that are pinned.
    pub pinned: usize,
    /// Bytes written since midnight UTC, by all processes.
    pub written_today: u64,
    /// The most they may be.
    pub write_budget: Option<u64>,
}

impl Store {
    /// Counts what the store holds. Lists all files.
    ///
    /// # Errors
    /// [`Error::Access`], and [`Error::Key`] if a namespace has another key.
    pub fn usage(&self) -> Result<Usage, Error> {
        let options = &self.shared().options;
        let mut usage = Usage { quota: options.quota, write_budget: options.write_budget, ..Usage::default() };
        for file in self.shared().backend.list("namespaces".into())? {
            usage.bytes += file.size;
            usage.objects += usize::from(file.path.split('/').nth(2) == Some("objects"));
        }
        for space in self.spaces()? {
            space.refresh()?;
            let index = lock(&space.index);
            usage.snapshots += index.entries.len();
            usage.pinned += index.entries.values().filter(|entry| entry.pinned()).count();
        }
        usage.written_today = self.written_today()?;
        Ok(usage)
    }
}
