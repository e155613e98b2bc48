//! The experts: a router, the chosen ones, and the one that all share.

use fathom_kernels::{Array, Device, Expert, Gate, Matrix};

use crate::Error;

/// The feed-forward half of a layer.
#[derive(Debug)]
pub(crate) struct Moe<D: Device> {
    /// `gate.weight` `[E, D]`.
    pub router: Matrix<D::Buffer>,
    pub gate: Gate<D::Buffer>,
    pub experts: Vec<Expert<D::Buffer>>,
    pub shared: Expert<D::Buffer>,
    /// `num_experts_per_tok`.
    pub slots: usize,
    /// `routed_scaling_factor`.
    pub scale: f32,
    /// `swiglu_limit`.
    pub limit: f32,
}

impl<D: Device> Moe<D> {
    /// x `[n, D]` → `[n, D]`.
    pub(crate) fn forward(&self, device: &D, tokens: &[u32], x: &Array<D::Buffer>) -> Result<Array<D::Buffer>, Error> {
        let [scores, gate, up] = device.linears(x, [&self.router, &self.shared.w1, &self.shared.w3])?; // [n, E | inter]
        let routing = device.route(&scores, &self.gate, tokens, self.slots, self.scale)?;
        let mut y = device.linear(&device.swiglu(&gate, &up, self.limit)?, &self.shared.w2)?; // [n, D]
        device.experts(x, &routing, &self.experts, self.limit, &mut y)?;
        Ok(y)
    }
}
