//! What can go wrong with a download.

use std::path::PathBuf;

use fathom_kernels::human;

use super::folder::SPARE;

/// Errors of pulling a repository.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What was asked for cannot be.
    #[error("{0}")]
    Request(String),
    /// The hub does not give what it should.
    #[error("{place}: {problem}")]
    Hub {
        /// The address, or the repository's file.
        place: String,
        /// What is wrong, and what may help.
        problem: String,
    },
    /// A file on this machine.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// There is no room.
    #[error(
        "{}: {free} are free, but {needed} are still to come, and {} are left to others: {missing} are missing; make room or name a \
         folder on another drive",
        folder.display(), human(SPARE)
    )]
    Space {
        /// The folder that was to hold the files.
        folder: PathBuf,
        /// Room on its file system, for people.
        free: String,
        /// Bytes to come, for people.
        needed: String,
        /// Bytes that there should be more, with some for others, for people.
        missing: String,
    },
}

impl Error {
    /// The system would not let us do something with a file.
    pub(super) fn file(path: impl Into<PathBuf>, cause: &std::io::Error) -> Error {
        Error::File { path: path.into(), problem: cause.to_string() }
    }
}
