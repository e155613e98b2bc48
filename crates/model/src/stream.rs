//! Experts that are read as they are needed, seen from a layer: what it asks for, and what it asks for ahead.

use fathom_kernels::{Array, Device, ExpertShape, Routing};
use fathom_weights::Config;
use fathom_weights::experts::{Ahead, ExpertCache, Pass};

use crate::block::Block;
use crate::moe::chosen;
use crate::{Error, Model};

/// How often each expert must be hit on average for a layer to need nearly all of them: then no guess is computed.
const ALL: usize = 4;

/// A layer's part of a pass.
pub(crate) struct Stream<'p, 'c, D: Device> {
    pub pass: &'p mut Pass<'c, D>,
    pub shape: ExpertShape,
    layer: usize,
    /// The layer that comes next, and whether to guess what it needs; after the last the first, where more of a prompt comes.
    next: Option<(usize, &'p Block<D>)>,
    guess: bool,
}

impl<D: Device> Stream<'_, '_, D> {
    /// Asks for the experts of this layer.
    pub(crate) fn demand(&mut self, routing: &Routing, rows: usize) {
        let mut tokens = std::collections::BTreeMap::new();
        for &expert in &routing.experts {
            *tokens.entry(expert).or_insert(0) += 1;
        }
        let wanted: Vec<(u32, usize)> = tokens.into_iter().collect();
        self.pass.demand(self.layer, rows, &wanted);
    }

    /// Asks for what the next layer is likely to need: all but the least used where many rows go through, or what its router
    /// says of the residual h `[n, hc·D]` as it is before this layer has added its part.
    pub(crate) fn look_ahead(&mut self, device: &D, tokens: &[u32], h: &Array<D::Buffer>) -> Result<(), Error> {
        let Some((layer, block)) = self.next.filter(|_| self.guess) else { return Ok(()) };
        let moe = &block.experts;
        if h.rows * moe.slots >= ALL * moe.count {
            self.pass.ahead_by_counts(layer, h.rows * moe.slots);
        } else if layer > self.layer && matches!(moe.gate, fathom_kernels::Gate::Scored { .. }) {
            let x = block.experts_connection.input(device, h)?.input; // [n, D]
            let mut needed = vec![false; moe.count];
            moe.route(device, tokens, &x)?.experts.iter().for_each(|&expert| needed[expert as usize] = true);
            self.pass.ahead(layer, &chosen(&needed), Ahead::Guess);
        }
        Ok(())
    }
}

impl<D: Device> Model<D> {
    /// How experts are read and which are kept, where they are not all in memory.
    pub fn streaming(&self) -> Option<&ExpertCache<D>> {
        self.cache.as_ref()
    }

    /// Begins a pass over the layers: what the tokens alone decide is asked for at once.
    pub(crate) fn begin(&self, tokens: &[u32], decode: bool) -> Result<Option<Pass<'_, D>>, Error> {
        let Some(cache) = &self.cache else { return Ok(None) };
        let mut pass = cache.begin(&self.device, tokens.len(), decode);
        for (layer, block) in self.layers.iter().enumerate() {
            if let Some(known) = block.experts.known(&self.device, tokens)? {
                pass.ahead(layer, &known, Ahead::Known);
            }
        }
        Ok(Some(pass))
    }

    /// What a layer has of a pass. `more` of a prompt follows this pass.
    pub(crate) fn stream_of<'p, 'c>(
        &'p self,
        pass: &'p mut Option<Pass<'c, D>>,
        layer: usize,
        more: bool,
    ) -> Option<Stream<'p, 'c, D>> {
        let (pass, cache) = (pass.as_mut()?, self.cache.as_ref()?);
        let next = if layer + 1 < self.layers.len() { Some(layer + 1) } else { more.then_some(0) };
        let next = next.map(|next| (next, &self.layers[next]));
        Some(Stream { pass, shape: cache.shape(layer), layer, next, guess: cache.guesses() })
    }
}

/// Values that guesses for `rows` rows take: so many rows have them at most.
pub(crate) fn guess_values(c: &Config, rows: usize) -> usize {
    let most = (ALL * c.n_routed_experts).div_ceil(c.num_experts_per_tok);
    rows.min(most) * (2 * c.hidden_size + c.n_routed_experts + 2 * (2 + c.hc_mult) * c.hc_mult)
}
