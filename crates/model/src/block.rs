//! One layer.

use fathom_kernels::{Array, Device};

use crate::Error;
use crate::attention::SelfAttention;
use crate::mhc::Connection;
use crate::model::Batch;
use crate::moe::Moe;

/// A layer: attention and experts, each inside its connection.
#[derive(Debug)]
pub(crate) struct Block<D: Device> {
    pub attention_connection: Connection<D>,
    pub attention: SelfAttention<D>,
    pub experts_connection: Connection<D>,
    pub experts: Moe<D>,
}

impl<D: Device> Block<D> {
    /// h `[n, hc·D]` in place; `layer` says which of the sessions' layer states it is.
    pub(crate) fn forward(
        &self,
        device: &D,
        layer: usize,
        batch: &mut Batch<'_, '_, D>,
        h: &mut Array<D::Buffer>,
    ) -> Result<(), Error> {
        self.attention_connection.around(device, h, |x| self.attention.forward(device, layer, batch, x))?;
        self.experts_connection.around(device, h, |x| self.experts.forward(device, &batch.tokens, x))
    }
}
