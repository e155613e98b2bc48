//! Decode with experts in files, without the files: what is demanded, replayed against a cache, a policy and drives.
//!
//! What a run demanded can be recorded (`--trace`), or is drawn at random with a given skew. The replay keeps the cache by the
//! rules of `fathom_weights::experts`, and time by a few numbers of a machine: see [`Machine`].

mod replay;
mod trace;

pub use replay::{Keep, Machine, Outcome, replay};
pub use trace::{About, Demand, Synthetic, Trace};
