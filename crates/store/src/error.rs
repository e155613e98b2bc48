//! What can go wrong with a store.

use std::error::Error as Cause;

use crate::Id;

/// Errors of a store. None of them ends with wrong bytes handed out or with a snapshot listed by half.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder or bucket would not do what was asked: disk full, read-only, no network, no permission.
    #[error("cannot {action} {place}: {cause}")]
    Access {
        /// What was tried, as a verb.
        action: &'static str,
        /// The file or object.
        place: String,
        /// What the system or the server said.
        cause: Box<dyn Cause + Send + Sync>,
    },
    /// A place that is no store, or cannot become one.
    #[error("{place}: {problem}")]
    Location {
        /// The folder or address.
        place: String,
        /// What is wrong, and the way out.
        problem: String,
    },
    /// A key file that is missing, malformed or another than the store's.
    #[error("{place}: {problem}")]
    Key {
        /// The key file, or what it should have opened.
        place: String,
        /// What is wrong, and the way out.
        problem: String,
    },
    /// A file of the store that is not what was written.
    #[error("{place} is damaged ({problem}); it is not used, and saving the session again makes it anew")]
    Damaged {
        /// The file or object.
        place: String,
        /// How one sees it.
        problem: String,
    },
    /// A file that a snapshot names and the store does not have.
    #[error("{place} is missing; saving the session again makes it anew")]
    Missing {
        /// The object.
        place: String,
    },
    /// A file of a later version of the format.
    #[error("{place} has format version {version}, this program reads up to {known}; use a newer fathom")]
    Newer {
        /// The file or object.
        place: String,
        /// Its version.
        version: u16,
        /// The latest that this program knows.
        known: u16,
    },
    /// A snapshot that this process reads just now.
    #[error("snapshot {id} is being read; remove it afterwards")]
    InUse {
        /// Its identity.
        id: Id,
    },
    /// An argument that makes no sense.
    #[error("{problem}")]
    Request {
        /// What is wrong.
        problem: String,
    },
    /// No snapshot of that identity, or not any more.
    #[error("namespace {namespace} has no snapshot {id}; `fathom snapshot ls` shows those it has")]
    NoSnapshot {
        /// Where it was looked for.
        namespace: String,
        /// Its identity.
        id: Id,
    },
    /// The caller did not make the bytes of a page.
    #[error("page {page} could not be made: {cause}")]
    Page {
        /// Which page of the snapshot, from 0.
        page: usize,
        /// What the caller said.
        cause: Box<dyn Cause + Send + Sync>,
    },
    /// The store is full of what may not be evicted.
    #[error(
        "the store holds {used} of {quota} bytes and {needed} more are needed, but what is left is pinned or in use; \
         raise the quota, or unpin or remove snapshots"
    )]
    Quota {
        /// Bytes held.
        used: u64,
        /// Bytes allowed.
        quota: u64,
        /// Bytes that were to be added.
        needed: u64,
    },
    /// The day's writing is used up.
    #[error(
        "{written} of {budget} bytes a day are written and {needed} more are needed; \
         raise the write budget or wait for midnight UTC"
    )]
    Budget {
        /// Bytes written since midnight UTC.
        written: u64,
        /// Bytes allowed a day.
        budget: u64,
        /// Bytes that were to be added.
        needed: u64,
    },
    /// A file to import that is no export, or a damaged one.
    #[error("not an export of a snapshot, or a damaged one ({problem}); export it again")]
    Import {
        /// What is wrong.
        problem: String,
    },
    /// The caller's stream failed while exporting or importing.
    #[error("cannot {action} the exported file: {cause}")]
    Stream {
        /// What was tried, as a verb.
        action: &'static str,
        /// What the system said.
        cause: std::io::Error,
    },
}

impl Error {
    /// Whether the snapshot concerned is worth no second try: an object of it is damaged or gone, so the caller finds
    /// another or computes.
    pub fn is_lost(&self) -> bool {
        matches!(self, Error::Damaged { .. } | Error::Missing { .. } | Error::NoSnapshot { .. })
    }
}
