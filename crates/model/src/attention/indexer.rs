//! The lightning indexer: which compressed entries a position attends to.

use fathom_kernels::{Array, Device, IndexShape, Matrix};

use crate::Error;
use crate::attention::LayerCompressor;

/// A CSA layer's indexer.
#[derive(Debug)]
pub(crate) struct Indexer<D: Device> {
    /// `[Hi·di, q_lora]`.
    pub wq_b: Matrix<D::Buffer>,
    /// `[Hi, D]`.
    pub weights_proj: Matrix<D::Buffer>,
    /// Makes the keys.
    pub compressor: LayerCompressor<D>,
    pub shape: IndexShape,
}

/// What the indexer asks with.
#[derive(Debug)]
pub(crate) struct IndexQueries<D: Device> {
    /// `[n, Hi·di]`, before rotation.
    pub q: Array<D::Buffer>,
    /// `[n, Hi]`.
    pub weights: Array<D::Buffer>,
}

impl<D: Device> Indexer<D> {
    /// qr `[n, q_lora]` and x `[n, D]` → queries and head weights.
    pub(crate) fn queries(
        &self,
        device: &D,
        qr: &Array<D::Buffer>,
        x: &Array<D::Buffer>,
    ) -> Result<IndexQueries<D>, Error> {
        Ok(IndexQueries { q: device.linear(qr, &self.wq_b)?, weights: device.linear(x, &self.weights_proj)? })
    }
}
