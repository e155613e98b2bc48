//! What can be wrong with a checkpoint.

use std::path::PathBuf;

/// Errors of opening and reading a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system would not let us read.
    #[error("cannot read {path}: {cause}")]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The system would not let us write.
    #[error("cannot write {path}: {cause}")]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// Something in `config.json`.
    #[error("config.json: {field} {problem}")]
    Config {
        /// The field.
        field: String,
        /// What is wrong with its value.
        problem: String,
    },
    /// A file that is not what it should be.
    #[error("{path}: {problem}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Part of a shard could not be read.
    #[error("cannot read {path} at byte {offset}: {cause}")]
    ReadAt {
        /// The shard.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What the system said, or what was missing, and what becomes of it.
        cause: String,
    },
    /// A shard is not what it was when it was opened.
    #[error(
        "{path} changed while it was in use, found when its byte {offset} was read: {problem}; put it back and start fathom again"
    )]
    Changed {
        /// The shard.
        path: PathBuf,
        /// What was to be read.
        offset: u64,
        /// What is different.
        problem: String,
    },
    /// A thread that reads experts could not be had.
    #[error("cannot start a thread to read experts: {cause}; allow this user or container more threads")]
    Thread {
        /// What the system said.
        cause: std::io::Error,
    },
    /// Memory for experts could not be had.
    #[error(transparent)]
    Memory(#[from] fathom_kernels::Error),
    /// A tensor that the model needs.
    #[error("{file}: tensor {tensor} {problem}{}", others(*others_too))]
    Tensor {
        /// The tensor's official name.
        tensor: String,
        /// Where it was found or looked for.
        file: String,
        /// What is wrong.
        problem: String,
        /// How many more tensors have something wrong.
        others_too: usize,
    },
}

fn others(count: usize) -> String {
    if count == 0 { String::new() } else { format!(" (and {count} more tensors are missing or wrong)") }
}
