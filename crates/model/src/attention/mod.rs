//! Hybrid attention: a sliding window in every layer, and in most of them compressed entries beside it.

mod compressor;
mod indexer;

use fathom_kernels::{Array, Attention, Compressed, Device, Matrix, Pages, Share};

pub(crate) use compressor::LayerCompressor;
pub(crate) use indexer::Indexer;

use crate::Error;
use crate::model::{Batch, Segment, Strip};
use crate::state::{Layout, own};

/// What a layer attends to beside its window, by `compress_ratios`.
#[derive(Debug)]
pub(crate) enum Kind<D: Device> {
    /// 0: nothing.
    Window,
    /// 4, compressed sparse attention: the entries that the indexer keeps.
    Csa { compressor: LayerCompressor<D>, indexer: Box<Indexer<D>> },
    /// 128, heavily compressed attention: all entries.
    Hca { compressor: LayerCompressor<D> },
}

/// The attention half of a layer.
#[derive(Debug)]
pub(crate) struct SelfAttention<D: Device> {
    pub wq_a: Matrix<D::Buffer>,
    /// f32 `[q_lora]`.
    pub q_norm: D::Buffer,
    pub wq_b: Matrix<D::Buffer>,
    pub wkv: Matrix<D::Buffer>,
    /// f32 `[d]`.
    pub kv_norm: D::Buffer,
    pub wo_a: Matrix<D::Buffer>,
    pub wo_b: Matrix<D::Buffer>,
    /// `o_groups`.
    pub groups: usize,
    pub shape: Attention<D::Buffer>,
    /// `rms_norm_eps`.
    pub eps: f32,
    pub kind: Kind<D>,
}

impl<D: Device> SelfAttention<D> {
    /// x `[n, D]` → `[n, D]`; moves the sessions' layer state on. One strip after another: a strip sees those before it
    /// as it would see an earlier pass.
    pub(crate) fn forward(
        &self,
        device: &D,
        layer: usize,
        batch: &mut Batch<'_, '_, D>,
        x: &Array<D::Buffer>,
    ) -> Result<Array<D::Buffer>, Error> {
        let Batch { strips, segments, layout, .. } = batch;
        if let [strip] = &strips[..] {
            return self.strip(device, layer, strip, segments, layout, x);
        }
        let bytes = x.width * 4;
        let mut y = Array { data: device.alloc(Share::Scratch, x.rows * bytes)?, ..*x }; // [n, D]
        for strip in strips {
            let rows: Vec<usize> = strip.rows.clone().collect();
            let part = self.strip(device, layer, strip, segments, layout, &device.gather(x, &rows)?)?;
            device.copy(&part.data, 0..rows.len() * bytes, &mut y.data, strip.rows.start * bytes)?;
        }
        Ok(y)
    }

    fn strip(
        &self,
        device: &D,
        layer: usize,
        strip: &Strip<D>,
        segments: &mut [Segment<'_, D>],
        layout: &Layout,
        x: &Array<D::Buffer>,
    ) -> Result<Array<D::Buffer>, Error> {
        let turns = match self.kind {
            Kind::Window => &strip.window_turns,
            _ => &strip.compressed_turns,
        }; // [n, r]
        let [qa, kv] = device.linears(x, [&self.wq_a, &self.wkv])?; // [n, q_lora], [n, d]
        let qr = device.rms_norm(&qa, &self.q_norm, self.eps)?; // [n, q_lora]
        let mut q = device.linear(&qr, &self.wq_b)?; // [n, H·d]
        device.finish_queries(&mut q, self.shape.heads, self.eps, turns)?;
        let rows = device.window_rows(&kv, &self.kv_norm, self.eps, turns, self.shape.row)?;

        match &self.kind {
            Kind::Window => {}
            Kind::Hca { compressor } => compressor.forward(device, layer, strip, segments, layout, x)?,
            Kind::Csa { compressor, indexer } => {
                compressor.forward(device, layer, strip, segments, layout, x)?;
                indexer.compressor.forward(device, layer, strip, segments, layout, x)?;
            }
        }
        let index = match &self.kind {
            Kind::Csa { indexer, .. } => Some((indexer, indexer.queries(device, &qr, x)?)),
            _ => None,
        };

        let mut o = Array { data: device.alloc(Share::Scratch, q.rows * q.width * 4)?, ..q }; // [n, H·d]
        for (segment, span) in &strip.spans {
            let segment = &mut segments[*segment];
            let pages: Vec<&D::Buffer> = segment.state.pages.iter().map(|page| &**page).collect();
            let entries = |ratio: usize| Pages {
                pages: &pages,
                offset: layout.layers[layer].attention,
                per_page: layout.per_page(ratio),
            };
            let selection = match &index {
                Some((indexer, queries)) => {
                    let keys = Pages { offset: layout.layers[layer].index, ..entries(4) };
                    Some(device.index_select(indexer.shape, &queries.q, &queries.weights, turns, span, &keys)?)
                }
                None => None,
            };
            let compressed = match (&self.kind, &selection) {
                (Kind::Hca { compressor }, _) => {
                    let ratio = compressor.shape.ratio;
                    Compressed::All { pages: entries(ratio), ratio }
                }
                (_, Some(selection)) => Compressed::Selected { pages: entries(4), selection },
                _ => Compressed::None,
            };
            let ring = &segment.state.layers[layer].window;
            device.attend(&self.shape, &q, turns, span, &rows, ring, &compressed, &mut o)?;
            own(&mut segment.state.layers[layer]).remember(device, &rows, span, &self.shape)?;
        }
        let z = device.linear_grouped(&o, &self.wo_a, self.groups)?; // [n, G·o_lora]
        Ok(device.linear(&z, &self.wo_b)?)
    }
}
