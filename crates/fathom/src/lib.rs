//! DeepSeek V4 on machines people own: what the `fathom` program is made of.
#![deny(unsafe_code)]

pub mod chat;
pub mod cli;
pub mod demo;
mod error;
pub mod plan;
pub mod server;
pub mod simulate;
pub mod ui;

pub use error::Error;
