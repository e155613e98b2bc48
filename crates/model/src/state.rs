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

/// A layer's rows of one kind in a page.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entries {
    pub offset: usize,
    pub ratio: usize,
    /// Bytes of one.
    pub row: usize,
}

/// A stretch of a tail, and where it belongs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Part {
    pub place: Place,
    pub bytes: Range<usize>,
}

/// A buffer of a session.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Place {
    /// A layer's ring.
    Window(usize),
    /// A layer's frontier.
    Frontier(usize),
    /// A layer's indexer's frontier.
    IndexFrontier(usize),
    /// The page that is not full.
    OpenPage,
}

/// What a page looks like, and what else a session holds.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub layers: Vec<LayerOffsets>,
    /// What those offsets are offsets of, in a page's order.
    pub entries: Vec<Entries>,
    /// Bytes of a page.
    pub page: usize,
    /// `sliding_window`.
    pub window: usize,
    /// For each layer: bytes of the window ring, the frontier and the indexer's frontier.
    pub fixed: Vec<[usize; 3]>,
}

impl Layout {
    pub(crate) fn new(config: &Config) -> Self {
        let row = fathom_kernels::RowShape { width: config.head_dim, rope: config.qk_rope_head_dim }.bytes();
        let index = fathom_kernels::index_row_bytes(config.index_head_dim);
        let (mut layers, mut entries, mut fixed, mut page) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for &ratio in &config.compress_ratios[..config.num_hidden_layers] {
            let mut offsets = LayerOffsets { attention: page, index: 0 };
            // A frontier has (max, sum, accumulator) of each channel, for two sets of channels where ratio is 4.
            let frontier = |sets: usize, width: usize| sets * 3 * width * 4;
            let ring = config.sliding_window * row;
            match ratio {
                0 => fixed.push([ring, 0, 0]),
                4 => {
                    entries.push(Entries { offset: page, ratio, row });
                    page += PAGE / 4 * row;
                    offsets.index = page;
                    entries.push(Entries { offset: page, ratio, row: index });
                    page += PAGE / 4 * index;
                    fixed.push([ring, frontier(2, config.head_dim), frontier(2, config.index_head_dim)]);
                }
                _ => {
                    entries.push(Entries { offset: page, ratio, row });
                    page += PAGE / ratio * row;
                    fixed.push([ring, frontier(1, config.head_dim), 0]);
                }
            }
            layers.push(offsets);
        }
        Layout { layers, entries, page, window: config.sliding_window, fixed }
    }

    /// Entries of a layer with this ratio in a page.
    pub(crate) fn per_page(&self, ratio: usize) -> usize {
        PAGE / ratio
    }

    /// The page of a position.
    pub(crate) fn page_of(&self, position: usize) -> usize {
        position / PAGE
    }

    /// What a session at `position` has beside full pages, in the order in which a tail holds it: for each layer the window's
    /// rows by slot, the frontier and the indexer's; then for each layer the open page's entries and index keys.
    pub(crate) fn tail(&self, position: usize) -> Vec<Part> {
        let mut parts = Vec::new();
        for (layer, &[window, frontier, index]) in self.fixed.iter().enumerate() {
            let rows = window / self.window * position.min(self.window);
            parts.push(Part { place: Place::Window(layer), bytes: 0..rows });
            parts.push(Part { place: Place::Frontier(layer), bytes: 0..frontier });
            parts.push(Part { place: Place::IndexFrontier(layer), bytes: 0..index });
        }
        let open = position % PAGE;
        for &Entries { offset, ratio, row } in &self.entries {
            parts.push(Part { place: Place::OpenPage, bytes: offset..offset + open / ratio * row });
        }
        parts.retain(|part| !part.bytes.is_empty());
        parts
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
    open.map(own).collect()
}

/// What the model remembers of a session's tokens.
#[derive(Debug)]
pub struct State<D: Device> {
    pub(crate) position: usize,
    /// Compressed rows of all layers, each page [`PAGE`] positions. Full pages never change. All may be shared with forks;
    /// who writes to one has copied it before: see [`State::prepare`].
    pub(crate) pages: Vec<Arc<D::Buffer>>,
    pub(crate) layers: Vec<Arc<LayerState<D>>>,
    /// False while a pass is under way, and for good after one that failed.
    pub(crate) whole: bool,
}

impl<D: Device> State<D> {
    pub(crate) fn new(device: &D, layout: &Layout) -> Result<Self, Error> {
        let layers = layout.fixed.iter().map(|&[window, frontier, index_frontier]| {
            Ok(Arc::new(LayerState {
                window: device.alloc(Share::State, window)?,
                frontier: device.alloc(Share::State, frontier)?,
                index_frontier: device.alloc(Share::State, index_frontier)?,
            }))
        });
        Ok(State { position: 0, pages: Vec::new(), layers: layers.collect::<Result<_, Error>>()?, whole: true })
    }

    /// How many tokens it has seen.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Makes ready for positions up to `end`: makes room, and copies what a pass will write to and a fork has too.
    pub(crate) fn prepare(&mut self, device: &D, layout: &Layout, end: usize) -> Result<(), Error> {
        let copy = |from: &D::Buffer, bytes: usize| {
            let mut to = device.alloc(Share::State, bytes)?;
            device.copy(from, 0..bytes, &mut to, 0)?;
            Ok::<_, Error>(to)
        };
        for (layer, &[window, frontier, index_frontier]) in self.layers.iter_mut().zip(&layout.fixed) {
            if Arc::get_mut(layer).is_none() {
                *layer = Arc::new(LayerState {
                    window: copy(&layer.window, window)?,
                    frontier: copy(&layer.frontier, frontier)?,
                    index_frontier: copy(&layer.index_frontier, index_frontier)?,
                });
            }
        }
        if !self.position.is_multiple_of(PAGE) {
            let open = &mut self.pages[self.position / PAGE];
            if Arc::get_mut(open).is_none() {
                *open = Arc::new(copy(open, layout.page)?);
            }
        }
        self.grow(device, layout, end).inspect_err(|_| self.give_back())
    }

    /// Gives back what a pass that is not to be was made ready for. Pages without positions are nobody's: a fork would share them.
    pub(crate) fn give_back(&mut self) {
        self.pages.truncate(self.position.div_ceil(PAGE));
    }

    fn grow(&mut self, device: &D, layout: &Layout, end: usize) -> Result<(), Error> {
        while self.pages.len() < end.div_ceil(PAGE) {
            self.pages.push(Arc::new(device.alloc(Share::State, layout.page)?));
        }
        Ok(())
    }

    /// Bytes of full page `i`.
    pub(crate) fn page(&self, device: &D, layout: &Layout, i: usize) -> Result<Vec<u8>, Error> {
        if !self.whole {
            return Err(Error::Broken);
        }
        assert!(i < self.position / PAGE, "a full page");
        Ok(device.read(&self.pages[i], 0..layout.page)?)
    }

    /// Bytes of all that full pages do not have: see [`Layout::tail`].
    pub(crate) fn tail(&self, device: &D, layout: &Layout) -> Result<Vec<u8>, Error> {
        if !self.whole {
            return Err(Error::Broken);
        }
        let mut tail = Vec::new();
        for part in layout.tail(self.position) {
            let from = match part.place {
                Place::Window(layer) => &self.layers[layer].window,
                Place::Frontier(layer) => &self.layers[layer].frontier,
                Place::IndexFrontier(layer) => &self.layers[layer].index_frontier,
                Place::OpenPage => &self.pages[self.position / PAGE],
            };
            tail.extend(device.read(from, part.bytes)?);
        }
        Ok(tail)
    }

    /// The state that had these pages and this tail at `position`.
    pub(crate) fn restore<E: From<Error>, P: AsRef<[u8]>>(
        device: &D,
        layout: &Layout,
        position: usize,
        tail: &[u8],
        mut page: impl FnMut(usize) -> Result<P, E>,
    ) -> Result<Self, E> {
        let parts = layout.tail(position);
        if tail.len() != parts.iter().map(|part| part.bytes.len()).sum::<usize>() {
            return Err(Error::Snapshot { position }.into());
        }
        let mut state = State::new(device, layout)?;
        state.grow(device, layout, position)?;
        for (i, to) in state.pages[..position / PAGE].iter_mut().enumerate() {
            let from = page(i)?;
            if from.as_ref().len() != layout.page {
                return Err(Error::Snapshot { position }.into());
            }
            device.write(own(to), 0, from.as_ref()).map_err(Error::from)?;
        }
        let mut tail = tail;
        for part in parts {
            let (bytes, rest) = tail.split_at(part.bytes.len());
            let to = match part.place {
                Place::Window(layer) => &mut own(&mut state.layers[layer]).window,
                Place::Frontier(layer) => &mut own(&mut state.layers[layer]).frontier,
                Place::IndexFrontier(layer) => &mut own(&mut state.layers[layer]).index_frontier,
                Place::OpenPage => own(&mut state.pages[position / PAGE]),
            };
            device.write(to, part.bytes.start, bytes).map_err(Error::from)?;
            tail = rest;
        }
        state.position = position;
        Ok(state)
    }

    /// A session that has seen the same tokens and goes its own way from here. Everything is shared until one of the two goes
    /// on.
    pub(crate) fn fork(&self) -> Result<Self, Error> {
        if !self.whole {
            return Err(Error::Broken);
        }
        Ok(State { position: self.position, pages: self.pages.clone(), layers: self.layers.clone(), whole: true })
    }
}

/// The buffer `at` is for its owner alone, who is about to write to it.
pub(crate) fn own<T>(at: &mut Arc<T>) -> &mut T {
    Arc::get_mut(at).expect("State::prepare has copied what others have too")
}
