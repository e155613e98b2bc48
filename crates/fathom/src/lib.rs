//! DeepSeek V4 on machines people own: what the `fathom` program is made of.
#![deny(unsafe_code)]

pub mod bench;
pub mod chat;
pub mod cli;
mod clock;
pub mod demo;
pub mod doctor;
pub mod drive;
mod error;
pub mod needle;
pub mod plan;
pub mod pull;
pub mod server;
pub mod simulate;
pub mod ui;

pub use error::Error;
