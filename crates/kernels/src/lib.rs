//! Numbers only: the [`Device`] trait and its opaque buffers, the memory ledger, and the CPU's kernels.

mod device;
mod error;
mod ledger;

pub use device::*;
pub use error::{Error, human};
pub use ledger::{Holding, Ledger, Reservation, Share};
