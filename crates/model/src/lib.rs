//! DeepSeek V4, written once over a [`Device`](fathom_kernels::Device).
//!
//! [`Model::forward`] is one path for prefill and decode: any number of segments, each some tokens appended to one
//! session's [`State`]. The names and the order are those of the paper and of the checkpoint.
#![deny(unsafe_code)]

mod attention;
mod block;
mod cost;
mod error;
mod load;
mod mhc;
mod model;
mod moe;
mod plan;
mod rope;
mod state;
mod stream;

pub use cost::{Cost, Formats, Kernel, Piece, Stretch, pieces, touched};
pub use error::Error;
pub use fathom_weights::Config;
pub use model::{LogitsWanted, Model, Segment};
pub use plan::{PAGE, page_bytes, scratch_bytes, state_bytes, tail_bytes};
pub use state::State;
