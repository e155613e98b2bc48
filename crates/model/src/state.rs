//! A session's state: pages of compressed rows, and for each layer a window ring and the compressors' frontiers.

use std::ops::Range;
use std::sync::Arc;

use fathom_kernels::{Attention, Device, Share, Span};
use fathom_weights::Config;

use crate::Error;

/// Positions whose compressed rows share a page: a multiple of every ratio.
pub(crate) const PAGE: usize = 1024;

/// Where a layer's rows lie in a page, in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct LayerOffsets {
    /// Attention entries.
    pub attention: usize,
    /// Index keys (CSA).
    pub index: usize,
}

/// What a page looks like, and what else a session holds.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub layers: Vec<LayerOffsets>,
    /// Bytes of a page.
    pub page: usize,
    /// For each layer: bytes of the window ring, the frontier and the indexer's frontier.
    pub fixed: Vec<[usize; 3]>,
}

impl Layout {
    pub(crate) fn new(config: &Config) -> Self {
        let row = fathom_kernels::RowShape { width: config.head_dim, rope: config.qk_rope_head_dim }.bytes();
        let index = fathom_kernels::index_row_bytes(config.index_head_dim);
        let (mut layers, mut fixed, mut page) = (Vec::new(), Vec::new(), 0);
        for &ratio in &config.compress_ratios[..config.num_hidden_layers] {
            let mut offsets = LayerOffsets { attention: page, index: 0 };
            // A frontier has (max, sum, accumulator) of each channel, for two sets of channels where ratio is 4.
            let frontier = |sets: usize, width: usize| sets * 3 * width * 4;
            let ring = config.sliding_window * row;
            match ratio {
                0 => fixed.push([ring, 0, 0]),
                4 => {
                    page += PAGE / 4 * row;
                    offsets.index = page;
                    page += PAGE / 4 * index;
                    fixed.push([ring, frontier(2, config.head_dim), frontier(2, config.index_head_dim)]);
                }
                _ => {
                    page += PAGE / ratio * row;
                    fixed.push([ring, frontier(1, config.head_dim), 0]);
                }
            }
            layers.push(offsets);
        }
        Layout { layers, page, fixed }
    }

    /// Entries of a layer with this ratio in a page.
    pub(crate) fn per_page(&self, ratio: usize) -> usize {
        PAGE / ratio
    }

    /// The page of a position.
    pub(crate) fn page_of(&self, position: usize) -> usize {
        position / PAGE
    }

    /// Bytes of a session of that many positions.
    pub(crate) fn bytes(&self, positions: usize) -> u64 {
        let fixed: usize = self.fixed.iter().flatten().sum();
        (positions.div_ceil(PAGE) * self.page + fixed) as u64
    }
}

/// One layer's share of what does not grow.
#[derive(Debug)]
pub(crate) struct LayerState<D: Device> {
    /// The last `sliding_window` rows: position p at row `p mod sliding_window`.
    pub window: D::Buffer,
    pub frontier: D::Buffer,
    pub index_frontier: D::Buffer,
}

impl<D: Device> LayerState<D> {
    /// Puts the last of a segment's stored rows into the ring.
    pub(crate) fn remember(
        &mut self,
        device: &D,
        rows: &D::Buffer,
        span: &Span,
        shape: &Attention<D::Buffer>,
    ) -> Result<(), Error> {
        let (bytes, capacity) = (shape.row.bytes(), shape.window);
        let mut from = span.rows.start + span.rows.len().saturating_sub(capacity);
        while from < span.rows.end {
            let slot = (span.start + from - span.rows.start) % capacity;
            let count = (capacity - slot).min(span.rows.end - from);
            device.copy(rows, from * bytes..(from + count) * bytes, &mut self.window, slot * bytes)?;
            from += count;
        }
        Ok(())
    }
}

/// Those of a session's `pages` that a pass over `positions` writes to.
pub(crate) fn open_pages<B>(pages: &mut [Arc<B>], positions: Range<usize>) -> Vec<&mut B> {
    let open = pages[positions.start / PAGE..positions.end.div_ceil(PAGE)].iter_mut();
    open.map(|page| Arc::get_mut(page).expect("only full pages are shared")).collect()
}

/// What the model remembers of a session's tokens.
#[derive(Debug)]
pub struct State<D: Device> {
    pub(crate) position: usize,
    /// Compressed rows of all layers, each page [`PAGE`] positions. Full pages never change and may be shared with forks;
    /// the open one has one owner.
    pub(crate) pages: Vec<Arc<D::Buffer>>,
    pub(crate) layers: Vec<LayerState<D>>,
    /// False while a pass is under way, and for good after one that failed.
    pub(crate) whole: bool,
}

impl<D: Device> State<D> {
    pub(crate) fn new(device: &D, layout: &Layout) -> Result<Self, Error> {
        let layers = layout.fixed.iter().map(|&[window, frontier, index_frontier]| {
            Ok(LayerState {
                window: device.alloc(Share::State, window)?,
                frontier: device.alloc(Share::State, frontier)?,
                index_frontier: device.alloc(Share::State, index_frontier)?,
            })
        });
        Ok(State { position: 0, pages: Vec::new(), layers: layers.collect::<Result<_, Error>>()?, whole: true })
    }

    /// How many tokens it has seen.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Makes room for positions up to `end`.
    pub(crate) fn grow(&mut self, device: &D, layout: &Layout, end: usize) -> Result<(), Error> {
        while self.pages.len() < end.div_ceil(PAGE) {
            self.pages.push(Arc::new(device.alloc(Share::State, layout.page)?));
        }
        Ok(())
    }

    /// A session that has seen the same tokens and goes its own way from here: full pages are shared, the rest is copied.
    pub(crate) fn fork(&self, device: &D, layout: &Layout) -> Result<Self, Error> {
        if !self.whole {
            return Err(Error::Broken);
        }
        let mut fork = State::new(device, layout)?;
        for ((from, to), &[window, frontier, index_frontier]) in
            self.layers.iter().zip(&mut fork.layers).zip(&layout.fixed)
        {
            device.copy(&from.window, 0..window, &mut to.window, 0)?;
            device.copy(&from.frontier, 0..frontier, &mut to.frontier, 0)?;
            device.copy(&from.index_frontier, 0..index_frontier, &mut to.index_frontier, 0)?;
        }
        let full = self.position / PAGE;
        fork.pages.extend(self.pages[..full].iter().cloned());
        if !self.position.is_multiple_of(PAGE) {
            let mut open = device.alloc(Share::State, layout.page)?;
            device.copy(&self.pages[full], 0..layout.page, &mut open, 0)?;
            fork.pages.push(Arc::new(open));
        }
        fork.position = self.position;
        Ok(fork)
    }
}
