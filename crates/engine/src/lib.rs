//! Token ids in, token ids out: a queue, prefill in chunks, decode, the sampler. Never sees text.
#![deny(unsafe_code)]

mod engine;
mod error;
mod prefill;
mod request;
mod sampler;

pub use engine::{Engine, EngineOptions};
pub use error::Error;
pub use prefill::prefill;
pub use request::{Event, Finish, Logprob, Request, Usage};
pub use sampler::{Sampler, Sampling};
