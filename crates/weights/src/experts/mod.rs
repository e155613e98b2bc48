//! Experts that do not fit into memory: where each lies in the files, how it is read, which ones are kept.
//!
//! A pass over the layers [asks](Pass::demand) for the experts it needs and gets them as they come, those in memory first;
//! what it is going to need it may ask for [ahead](Pass::ahead). Nothing here knows what an expert computes, and nothing
//! that is read ahead, rightly or not, can change a result.

mod cache;
mod file;
mod history;
mod place;
mod policy;
mod reader;
mod stats;
mod trace;

pub use cache::{Ahead, ExpertCache, Given, Pass, StreamOptions, Tell, kept};
pub use place::Places;
pub use policy::Policy;
pub use reader::{Fault, Faults, ReaderKind};
pub use stats::{Phase, Stats};
