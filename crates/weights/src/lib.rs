//! Checkpoint bytes to named tensors: config, safetensors, layout checks, and a generator of random checkpoints.
//!
//! Opening reads `config.json` and the headers of the shards and checks everything that can be checked without
//! touching a weight; the weights themselves are mapped and handed out as views.
#![deny(unsafe_code)]

mod checkpoint;
mod config;
mod error;
pub mod experts;
mod fingerprint;
mod layout;
mod mapping;
mod names;
mod pack;
mod shard;
mod sizes;
pub mod synth;

pub use checkpoint::{Checkpoint, Release};
pub use config::{Config, Yarn};
pub use error::Error;
pub use pack::Packed;
pub use shard::check_header;
pub use sizes::Sizes;
