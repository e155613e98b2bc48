//! Token ids in, token ids out: a queue, prefill in chunks, decode, the sampler. Never sees text.
#![deny(unsafe_code)]

mod engine;
mod error;
mod keeper;
mod prefill;
mod request;
mod sampler;
mod snapshot;

pub use engine::{Engine, EngineOptions};
pub use error::Error;
pub use keeper::Keep;
pub use prefill::prefill;
pub use request::{Event, Finish, Logprob, Request, Usage};
pub use sampler::{Sampler, Sampling};
pub use snapshot::{Resume, Resumed, SnapshotError, resume, save, subject};
