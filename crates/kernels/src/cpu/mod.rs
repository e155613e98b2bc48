//! The CPU as a device.

mod buffer;

pub use buffer::Buffer;
