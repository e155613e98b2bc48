//! Manifold-constrained hyper-connections: hc copies of the residual, mixed into a sublayer and back.

use fathom_kernels::{Array, Device, Hyper, HyperShape};

use crate::Error;

/// One connection: around attention, or around the experts.
#[derive(Debug)]
pub(crate) struct Connection<D: Device> {
    pub hyper: Hyper<D::Buffer>,
    pub shape: HyperShape,
    /// The sublayer's norm (`attn_norm`, `ffn_norm`), f32 `[D]`.
    pub norm: D::Buffer,
}

impl<D: Device> Connection<D> {
    /// `h'ⱼ = postⱼ · sublayer(norm(Σᵢ preᵢ hᵢ)) + Σᵢ comb[i,j] hᵢ`, h `[n, hc·D]` in place.
    pub(crate) fn around(
        &self,
        device: &D,
        h: &mut Array<D::Buffer>,
        sublayer: impl FnOnce(&Array<D::Buffer>) -> Result<Array<D::Buffer>, Error>,
    ) -> Result<(), Error> {
        let mut mixed = device.mhc_mix(h, &self.hyper, self.shape)?;
        mixed.input = device.rms_norm(&mixed.input, &self.norm, self.shape.norm_eps)?; // [n, D]
        let out = sublayer(&mixed.input)?; // [n, D]
        device.mhc_merge(h, &out, &mixed)?;
        Ok(())
    }
}
