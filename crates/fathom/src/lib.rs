//! DeepSeek V4 on machines people own: what the `fathom` program is made of.
#![deny(unsafe_code)]

pub mod chat;
mod error;
pub mod server;

pub use error::Error;
