//! What can go wrong in here.

use crate::Share;

/// Errors of a device.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The ledger has no room.
    #[error(
        "out of memory: {share} wants {} more, holds {} of {}; give it more memory, a shorter context or smaller chunks",
        human(*wanted), human(*held), human(*limit)
    )]
    OutOfMemory {
        /// Whose share is used up.
        share: Share,
        /// Bytes asked for.
        wanted: u64,
        /// Bytes held.
        held: u64,
        /// The share's limit in bytes.
        limit: u64,
    },
    /// The instruction set was asked for by name and is not there.
    #[error("this machine cannot run the instruction set '{isa}'; it can run: {available}")]
    NoSuchIsa {
        /// The name given.
        isa: String,
        /// The names that would do.
        available: String,
    },
    /// The system gave no memory.
    #[error("the system has no {} for {share}: {source}; give it less to hold, with --memory or a shorter context", human(*.bytes))]
    Map {
        /// What it was for.
        share: Share,
        /// Bytes asked for.
        bytes: u64,
        /// What the system said.
        source: std::io::Error,
    },
    /// The thread pool could not start.
    #[error("cannot start {threads} threads: {cause}")]
    Threads {
        /// How many were asked for.
        threads: usize,
        /// What the system said.
        cause: String,
    },
}

/// A byte count for people, in binary units: `583 B`, `3.08 GiB`.
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit < UNITS.len() - 1 {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.2} {}", UNITS[unit]) }
}
