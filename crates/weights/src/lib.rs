//! Checkpoint bytes to named tensors.
#![allow(missing_docs)]
#[derive(Debug)]
pub struct Config;
#[derive(Debug)]
pub struct Checkpoint;
#[derive(Debug, thiserror::Error)]
#[error("stub")]
pub struct Error;
