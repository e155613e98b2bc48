//! Numbers only: the [`Device`] trait and its opaque buffers, the memory ledger, and the CPU's kernels.

// Register tiles are indexed by row and input, as the equations are.
#![allow(clippy::needless_range_loop)]

mod cpu;
mod device;
mod error;
pub mod formats;
mod frames;
mod heap;
mod ledger;
pub mod math;
mod ops;
mod pool;
mod profile;
mod simd;
mod sync;

pub use cpu::{Buffer, Cpu, CpuOptions, ExpertsUnderWay, Peaks};
pub use device::*;
pub use error::{Error, human};
pub use frames::{FRAME_ALIGN, Frame, Frames};
pub use heap::give_memory_back;
pub use ledger::{Holding, Ledger, Reservation, Share};
pub use profile::Profile;
