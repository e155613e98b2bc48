//! The experts: a router, the chosen ones, and the one that all share.

use fathom_kernels::{Array, Device, Expert, Gate, Matrix, Routing};

use crate::Error;
use crate::stream::Stream;

/// Where the routed experts are.
#[derive(Debug)]
pub(crate) enum Experts<D: Device> {
    /// In memory, or mapped as if they were.
    Here(Vec<Expert<D::Buffer>>),
    /// In files, read as they are needed.
    Streamed,
}

/// The feed-forward half of a layer.
#[derive(Debug)]
pub(crate) struct Moe<D: Device> {
    /// `gate.weight` `[E, D]`.
    pub router: Matrix<D::Buffer>,
    pub gate: Gate<D::Buffer>,
    pub experts: Experts<D>,
    /// `n_routed_experts`.
    pub count: usize,
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
        let Experts::Here(experts) = &self.experts else { panic!("streamed experts come from a stream") };
        let [scores, gate, up] = device.linears(x, [&self.router, &self.shared.w1, &self.shared.w3])?; // [n, E | inter]
        let routing = device.route(&scores, &self.gate, tokens, self.slots, self.scale)?;
        let mut y = device.linear(&device.swiglu(&gate, &up, self.limit)?, &self.shared.w2)?; // [n, D]
        device.experts(x, &routing, experts, self.limit, &mut y)?;
        Ok(y)
    }

    /// [`Moe::forward`] with experts that are read: first they are asked for, then all is computed that needs none of them or
    /// has them, then they are taken as they come. h `[n, hc·D]` is the residual.
    pub(crate) fn streamed(
        &self,
        device: &D,
        tokens: &[u32],
        x: &Array<D::Buffer>,
        h: &Array<D::Buffer>,
        mut stream: Stream<'_, '_, D>,
    ) -> Result<Array<D::Buffer>, Error> {
        let routing = self.route(device, tokens, x)?;
        stream.demand(&routing, x.rows);
        stream.look_ahead(device, tokens, h)?;
        let [gate, up] = device.linears(x, [&self.shared.w1, &self.shared.w3])?; // [n, inter]
        let mut y = device.linear(&device.swiglu(&gate, &up, self.limit)?, &self.shared.w2)?; // [n, D]
        drop((gate, up));
        let mut under_way = device.experts_begin(x, &routing, stream.shape)?;
        while let Some(some) = stream.pass.take()? {
            let some: Vec<(u32, &Expert<D::Buffer>)> =
                some.iter().map(|(number, expert)| (*number, &**expert)).collect();
            device.experts_some(&mut under_way, x, &routing, &some, self.limit)?;
        }
        device.experts_end(under_way, self.slots, &mut y)?;
        Ok(y)
    }

    /// Where the rows of x `[n, D]` go.
    pub(crate) fn route(&self, device: &D, tokens: &[u32], x: &Array<D::Buffer>) -> Result<Routing, Error> {
        let scores = device.linear(x, &self.router)?; // [n, E]
        Ok(device.route(&scores, &self.gate, tokens, self.slots, self.scale)?)
    }

    /// The experts that tokens go to, where the tokens alone decide it: each once, in order.
    pub(crate) fn known(&self, device: &D, tokens: &[u32]) -> Result<Option<Vec<u32>>, Error> {
        let Gate::Hash { table } = &self.gate else { return Ok(None) };
        let row = self.slots * 8;
        let mut needed = vec![false; self.count];
        for &token in tokens {
            let at = token as usize * row;
            for raw in device.read(table, at..at + row)?.chunks_exact(8) {
                // The loader has checked that the table stays inside the layer's experts.
                needed[u64::from_le_bytes(std::array::from_fn(|i| raw[i])) as usize] = true;
            }
        }
        Ok(Some(chosen(&needed)))
    }
}

/// The numbers of those that are.
pub(crate) fn chosen(needed: &[bool]) -> Vec<u32> {
    (0..needed.len() as u32).filter(|&expert| needed[expert as usize]).collect()
}
