//! DeepSeek V4, written once over a [`Device`](fathom_kernels::Device).

mod error;
mod model;
mod state;

pub use error::Error;
pub use model::{LogitsWanted, Model, Segment};
pub use state::State;
