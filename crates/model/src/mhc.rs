//! Manifold-constrained hyper-connections: hc copies of the residual, mixed into a sublayer and back.

use fathom_kernels::{Array, Device, Hyper, HyperShape, Mixed};

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
    /// `h'ⱼ = postⱼ · sublayer(norm(Σᵢ preᵢ hᵢ)) + Σᵢ comb[i,j] hᵢ`, h `[n, hc·D]` in place. The sublayer may look at h too.
    pub(crate) fn around(
        &self,
        device: &D,
        h: &mut Array<D::Buffer>,
        sublayer: impl FnOnce(&Array<D::Buffer>, &Array<D::Buffer>) -> Result<Array<D::Buffer>, Error>,
    ) -> Result<(), Error> {
        let mixed = self.input(device, h)?;
        let out = sublayer(&mixed.input, h)?; // [n, D]
        device.mhc_merge(h, &out, &mixed)?;
        Ok(())
    }

    /// The sublayer's normed input `[n, D]`, and what puts its output back.
    pub(crate) fn input(&self, device: &D, h: &Array<D::Buffer>) -> Result<Mixed<D::Buffer>, Error> {
        let mut mixed = device.mhc_mix(h, &self.hyper, self.shape)?;
        mixed.input = device.rms_norm(&mixed.input, &self.norm, self.shape.norm_eps)?; // [n, D]
        Ok(mixed)
    }
}
