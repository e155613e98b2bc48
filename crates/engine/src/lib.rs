//! Token ids in, token ids out: a queue, prefill and decode of many requests in passes, the sampler. Never sees text.
#![deny(unsafe_code)]

mod engine;
mod error;
mod keeper;
mod kept;
mod lookup;
mod mask;
mod missed;
mod names;
mod pace;
mod prefill;
mod request;
mod room;
mod running;
mod sampler;
mod sessions;
mod snapshot;
mod worker;

pub use engine::{Counts, Engine, EngineOptions};
pub use error::Error;
pub use keeper::{Keep, Told};
pub use mask::{Constraint, Mask};
pub use prefill::prefill;
pub use request::{Event, Finish, Logprob, Missed, Owner, Request, Seam, Usage, Why};
pub use sampler::{Sampler, Sampling};
pub use sessions::{Session, Sessions};
pub use snapshot::{Resume, Resumed, SnapshotBytes, SnapshotError, resume, save, subject};
