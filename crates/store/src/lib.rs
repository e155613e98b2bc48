//! Snapshots of sessions: content-addressed pages, tails and manifests over a local folder or a bucket.
//!
//! The store keeps bytes and knows nothing of tensors. The state of a session at a position is its full pages before it
//! and a tail; pages are found again by the tokens they follow and shared by all snapshots that begin alike. Every byte
//! is verified when it is read: what comes back is what was saved, or a named error. `docs/snapshot-format.md` has the
//! files, and the reasons why writers, readers and collectors of several processes need no lock.
//!
//! All calls block the calling thread and may come from any thread; an async caller gives them a thread that may block.
//! So may dropping the last handle, for a second at most.
#![deny(unsafe_code)]

mod backend;
mod budget;
mod cache;
mod chain;
mod collect;
mod cursor;
mod error;
mod evict;
mod export;
#[cfg(test)]
mod faults;
mod files;
mod find;
mod free;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod index;
mod key;
mod load;
mod local;
mod manifest;
mod marks;
mod name;
mod namespace;
mod object;
mod refresh;
mod s3;
mod save;
mod sealed;
mod space;
mod store;
mod tokens;
mod usage;
mod verify;
mod writer;

pub use chain::{Match, Subject};
pub use collect::Collected;
pub use error::Error;
pub use export::{ImportLimits, Imported};
pub use find::{Found, Miss};
pub use key::Key;
pub use load::{Loaded, Pages};
pub use name::Id;
pub use namespace::{Namespace, Snapshot};
pub use save::{NewSnapshot, PageSource, Saved};
pub use space::Hold;
pub use store::{Options, Store};
pub use usage::Usage;
pub use verify::Flaw;
