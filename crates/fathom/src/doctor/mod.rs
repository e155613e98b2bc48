//! What this machine can do, what is wrong with it or with a model, what that costs, and the command that mends it.
//!
//! What the system tells is read from `/proc` and `/sys`, so most of it is Linux's; what cannot be found out is left out.

mod drive;
mod finding;
mod gpu;
mod memory;
mod model;
mod mounts;
mod processor;
mod system;
mod text;

use std::fs::File;
use std::io::Read;
use std::path::Path;

pub use drive::{Pace, drive, pace};
pub use finding::{Finding, Verdict};
pub use gpu::gpu;
pub use memory::{memory, usable};
pub use model::{hashes, prompts, shard_files};
pub use processor::{processor, processor_name};
pub use system::system;
pub use text::{Heard, Passage, hear, passage};

/// The longest file of the system's that is read, in bytes.
const MAX: u64 = 1 << 20;

/// What a file of the system's says, without the line's end.
fn says(path: impl AsRef<Path>) -> Option<String> {
    let mut text = String::new();
    File::open(path).ok()?.take(MAX).read_to_string(&mut text).ok()?;
    Some(text.trim().to_owned())
}

/// The number a file of the system's says.
fn number(path: impl AsRef<Path>) -> Option<u64> {
    says(path)?.parse().ok()
}
