//! A session's state.

use fathom_kernels::Device;

/// What the model remembers of a session's tokens.
#[derive(Debug)]
pub struct State<D: Device> {
    position: usize,
    _device: std::marker::PhantomData<D>,
}

impl<D: Device> State<D> {
    /// How many tokens it has seen.
    pub fn position(&self) -> usize {
        self.position
    }
}
