//! The compressor: every 4 or 128 positions become one entry.

use fathom_kernels::{Array, Compressor, Device, EntryKind, Matrix};

use crate::Error;
use crate::model::{Segment, Strip};
use crate::state::{Layout, open_pages, own};

/// A layer's compressor, or its indexer's.
#[derive(Debug)]
pub(crate) struct LayerCompressor<D: Device> {
    /// `[c·w, D]`.
    pub wkv: Matrix<D::Buffer>,
    /// `[c·w, D]`.
    pub wgate: Matrix<D::Buffer>,
    pub shape: Compressor<D::Buffer>,
}

impl<D: Device> LayerCompressor<D> {
    /// Folds the strip's positions, x `[n, D]`, into the sessions' frontiers and writes the entries they complete.
    pub(crate) fn forward(
        &self,
        device: &D,
        layer: usize,
        strip: &Strip<D>,
        segments: &mut [Segment<'_, D>],
        layout: &Layout,
        x: &Array<D::Buffer>,
    ) -> Result<(), Error> {
        let [kv, score] = device.linears(x, [&self.wkv, &self.wgate])?; // [n, c·w] each
        for (segment, span) in &strip.spans {
            let state = &mut *segments[*segment].state;
            let first = layout.page_of(span.start);
            let mut open = open_pages(&mut state.pages, span.start..span.start + span.rows.len());
            let (offsets, own) = (layout.layers[layer], own(&mut state.layers[layer]));
            let (frontier, offset) = match self.shape.kind {
                EntryKind::Attention => (&mut own.frontier, offsets.attention),
                EntryKind::Index => (&mut own.index_frontier, offsets.index),
            };
            let per_page = layout.per_page(self.shape.ratio);
            device.compress(&self.shape, &kv, &score, span, frontier, &mut open, first, offset, per_page)?;
        }
        Ok(())
    }
}
