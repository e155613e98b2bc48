//! One layer.

use fathom_kernels::{Array, Device};

use crate::Error;
use crate::attention::SelfAttention;
use crate::mhc::Connection;
use crate::model::Batch;
use crate::moe::Moe;
use crate::stream::Stream;

/// A layer: attention and experts, each inside its connection.
#[derive(Debug)]
pub(crate) struct Block<D: Device> {
    pub attention_connection: Connection<D>,
    pub attention: SelfAttention<D>,
    pub experts_connection: Connection<D>,
    pub experts: Moe<D>,
}

impl<D: Device> Block<D> {
    /// h `[n, hc·D]` in place; `layer` says which of the sessions' layer states it is. `stream` gives the experts where they
    /// are not in memory.
    pub(crate) fn forward(
        &self,
        device: &D,
        layer: usize,
        batch: &mut Batch<'_, '_, D>,
        h: &mut Array<D::Buffer>,
        stream: Option<Stream<'_, '_, D>>,
    ) -> Result<(), Error> {
        self.attention_connection.around(device, h, |x, _| self.attention.forward(device, layer, batch, x))?;
        self.experts_connection.around(device, h, |x, h| match stream {
            None => self.experts.forward(device, &batch.tokens, x),
            Some(stream) => self.experts.streamed(device, &batch.tokens, x, h, stream),
        })
    }
}
