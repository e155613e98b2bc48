//! The transformer: tokens through all layers, to logits.

use std::ops::Range;

use fathom_kernels::{Array, Device, Hyper, HyperShape, Matrix, Span};
use fathom_weights::Config;
use fathom_weights::experts::ExpertCache;

use crate::block::Block;
use crate::rope::frequencies;
use crate::state::Layout;
use crate::{Error, State};

/// Which logits a segment wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogitsWanted {
    /// None: more of the prompt follows.
    None,
    /// Those after its last token.
    Last,
    /// Those after each of its tokens.
    All,
}

/// Tokens to append to one session.
#[derive(Debug)]
pub struct Segment<'a, D: Device> {
    /// The session; `tokens` follow what it has seen.
    pub state: &'a mut State<D>,
    /// At least one.
    pub tokens: &'a [u32],
    /// What comes back.
    pub logits: LogitsWanted,
}

/// A loaded model.
#[derive(Debug)]
pub struct Model<D: Device> {
    pub(crate) device: D,
    pub(crate) config: Config,
    pub(crate) layout: Layout,
    /// The experts that are not in memory.
    pub(crate) cache: Option<ExpertCache<D>>,
    /// `embed.weight` `[vocab, D]`.
    pub(crate) embed: Matrix<D::Buffer>,
    pub(crate) layers: Vec<Block<D>>,
    /// `hc_head_*`.
    pub(crate) head_mix: Hyper<D::Buffer>,
    /// `norm.weight`, f32 `[D]`.
    pub(crate) norm: D::Buffer,
    /// `head.weight` `[vocab, D]`.
    pub(crate) head: Matrix<D::Buffer>,
}

/// The rows of one pass: all segments' tokens, one after another.
pub(crate) struct Batch<'a, 's, D: Device> {
    pub tokens: Vec<u32>,
    /// Each segment's rows.
    pub spans: Vec<Span>,
    pub strips: Vec<Strip<D>>,
    pub segments: &'a mut [Segment<'s, D>],
    pub layout: Layout,
}

impl<D: Device> Batch<'_, '_, D> {
    /// The position in its session of a row of the batch.
    fn position(&self, row: usize) -> usize {
        let span = self.spans.iter().find(|span| span.rows.contains(&row));
        span.map_or(0, |span| span.start + row - span.rows.start)
    }
}

/// Rows of a batch that attention takes at once: its queries and outputs are the widest there are.
pub(crate) struct Strip<D: Device> {
    pub rows: Range<usize>,
    /// Which segments are in it, and their rows, counted from the strip's first.
    pub spans: Vec<(usize, Span)>,
    /// (cos, sin) of every row `[n, r]`: for window layers, and for those with compressed entries.
    pub window_turns: Array<D::Buffer>,
    pub compressed_turns: Array<D::Buffer>,
}

/// The most rows of a strip.
pub(crate) const STRIP: usize = 256;

/// Cuts `rows` into as few strips as there must be, of about one size.
fn strips(rows: usize) -> impl Iterator<Item = Range<usize>> {
    let size = rows.div_ceil(rows.div_ceil(STRIP));
    (0..rows).step_by(size).map(move |from| from..(from + size).min(rows))
}

impl<D: Device> Model<D> {
    /// The device it runs on.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The checkpoint's configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// A session that has seen nothing.
    ///
    /// # Errors
    /// The ledger has no room for it.
    pub fn new_state(&self) -> Result<State<D>, Error> {
        State::new(&self.device, &self.layout)
    }

    /// A second session that has seen what `state` has and goes its own way from here. It shares all that there is, at no
    /// cost; the first pass over one of the two copies the open page and what does not grow with the context.
    ///
    /// # Errors
    /// [`Error::Broken`].
    pub fn fork(&self, state: &State<D>) -> Result<State<D>, Error> {
        state.fork()
    }

    /// Positions of a page: what a session has of them never changes once it is full.
    pub const PAGE: usize = crate::state::PAGE;

    /// Bytes of a session's full page `i`, `i < position / PAGE`: all layers' compressed rows. The same tokens before its end
    /// give the same bytes, in whatever chunks they came.
    ///
    /// # Errors
    /// [`Error::Broken`], and the device could not read it.
    pub fn page(&self, state: &State<D>, i: usize) -> Result<Vec<u8>, Error> {
        state.page(&self.device, &self.layout, i)
    }

    /// Bytes of what a session has beside its full pages: windows, frontiers and the open page's rows.
    ///
    /// # Errors
    /// [`Error::Broken`], and the device could not read it.
    pub fn tail(&self, state: &State<D>) -> Result<Vec<u8>, Error> {
        state.tail(&self.device, &self.layout)
    }

    /// The session at `position` whose tail that is and whose full pages `page` gives, as [`Model::tail`] and [`Model::page`]
    /// gave them. What comes out of it then has the bits of the first.
    ///
    /// # Errors
    /// [`Error::Snapshot`] for bytes of other sizes, the ledger has no room for it, and what `page` says.
    pub fn restore<E: From<Error>, P: AsRef<[u8]>>(
        &self,
        position: usize,
        tail: &[u8],
        page: impl FnMut(usize) -> Result<P, E>,
    ) -> Result<State<D>, E> {
        if position > self.config.max_position_embeddings {
            return Err(Error::Snapshot { position }.into());
        }
        State::restore(&self.device, &self.layout, position, tail, page)
    }

    /// Bytes of state that a session of `positions` tokens takes: V4.md's table, rounded up to whole pages.
    pub fn state_bytes(&self, positions: usize) -> u64 {
        self.layout.bytes(positions)
    }

    /// Bytes of device scratch that a pass over `rows` tokens or fewer takes at most, where logits are wanted after `wanted` of them.
    pub fn scratch_bytes(&self, rows: usize, wanted: usize) -> u64 {
        crate::plan::scratch_bytes(&self.device, &self.config, self.cache.is_some(), rows, wanted)
    }

    /// One pass over the layers for any number of segments. Returns, for each segment, the logits it wanted,
    /// `[0 | 1 | tokens.len(), vocab]`.
    ///
    /// # Errors
    /// [`Error::Token`], [`Error::ContextFull`], [`Error::Broken`] and no room for more state before anything is touched. Any
    /// other error leaves the segments' sessions broken: drop them.
    pub fn forward(&self, segments: &mut [Segment<'_, D>]) -> Result<Vec<Vec<f32>>, Error> {
        let logits = self.forward_each(segments)?;
        let mut failed = None;
        let logits = logits
            .into_iter()
            .map(|one| {
                one.unwrap_or_else(|e| {
                    failed.get_or_insert(e);
                    Vec::new()
                })
            })
            .collect();
        failed.map_or(Ok(logits), Err)
    }

    /// The same, where [`Error::NotFinite`] is one segment's alone: its session is broken, the others go on.
    ///
    /// # Errors
    /// As [`Model::forward`].
    pub fn forward_each(&self, segments: &mut [Segment<'_, D>]) -> Result<Vec<Result<Vec<f32>, Error>>, Error> {
        self.check(segments)?;
        let mut batch = self.batch(segments)?;
        let device = &self.device;
        let decode = batch.spans.iter().all(|span| span.rows.len() == 1);
        let more = batch.segments.iter().any(|segment| segment.logits == LogitsWanted::None);
        let mut pass = self.begin(&batch.tokens, decode)?;
        let mut h = device.embed(&self.embed, &batch.tokens, self.config.hc_mult)?; // [n, hc·D]
        for (layer, block) in self.layers.iter().enumerate() {
            block.forward(device, layer, &mut batch, &mut h, self.stream_of(&mut pass, layer, more))?;
        }
        let logits = self.logits(&batch, h)?;
        drop(pass);
        for (segment, logits) in batch.segments.iter_mut().zip(&logits) {
            segment.state.position += segment.tokens.len();
            segment.state.whole = logits.is_ok();
        }
        Ok(logits)
    }

    fn check(&self, segments: &[Segment<'_, D>]) -> Result<(), Error> {
        let (vocab, limit) = (self.config.vocab_size, self.config.max_position_embeddings);
        for Segment { state, tokens, .. } in segments {
            assert!(!tokens.is_empty(), "a segment without tokens");
            if !state.whole {
                return Err(Error::Broken);
            }
            if state.position + tokens.len() > limit {
                return Err(Error::ContextFull { wanted: state.position + tokens.len(), limit });
            }
            if let Some(i) = tokens.iter().position(|&token| token as usize >= vocab) {
                return Err(Error::Token { token: tokens[i], position: state.position + i, vocab });
            }
        }
        Ok(())
    }

    fn batch<'a, 's>(&self, segments: &'a mut [Segment<'s, D>]) -> Result<Batch<'a, 's, D>, Error> {
        let (mut tokens, mut spans, mut positions) = (Vec::new(), Vec::new(), Vec::new());
        for at in 0..segments.len() {
            let Segment { state, tokens, .. } = &mut segments[at];
            let end = state.position + tokens.len();
            if let Err(e) = state.prepare(&self.device, &self.layout, end) {
                segments[..at].iter_mut().for_each(|segment| segment.state.give_back());
                return Err(e);
            }
        }
        for segment in segments.iter_mut() {
            let start = segment.state.position;
            let end = start + segment.tokens.len();
            segment.state.whole = false;
            spans.push(Span { rows: tokens.len()..tokens.len() + segment.tokens.len(), start });
            tokens.extend_from_slice(segment.tokens);
            positions.extend(start as u32..end as u32);
        }
        let strips = strips(tokens.len()).map(|rows| self.strip(rows, &spans, &positions));
        Ok(Batch { strips: strips.collect::<Result<_, _>>()?, tokens, spans, segments, layout: self.layout.clone() })
    }

    fn strip(&self, rows: Range<usize>, spans: &[Span], positions: &[u32]) -> Result<Strip<D>, Error> {
        let angles = |compressed| {
            let frequencies = frequencies(&self.config, compressed);
            self.device.angles(&positions[rows.clone()], &frequencies)
        };
        let inside = spans.iter().enumerate().filter_map(|(segment, span)| {
            let (from, to) = (span.rows.start.max(rows.start), span.rows.end.min(rows.end));
            let start = span.start + from.saturating_sub(span.rows.start);
            (from < to).then(|| (segment, Span { rows: from - rows.start..to - rows.start, start }))
        });
        Ok(Strip { spans: inside.collect(), window_turns: angles(false)?, compressed_turns: angles(true)?, rows })
    }

    /// h `[n, hc·D]` → what each segment wanted.
    fn logits(&self, batch: &Batch<'_, '_, D>, h: Array<D::Buffer>) -> Result<Vec<Result<Vec<f32>, Error>>, Error> {
        let wanted: Vec<Range<usize>> = batch
            .segments
            .iter()
            .zip(&batch.spans)
            .map(|(segment, Span { rows, .. })| match segment.logits {
                LogitsWanted::None => rows.end..rows.end,
                LogitsWanted::Last => rows.end - 1..rows.end,
                LogitsWanted::All => rows.clone(),
            })
            .collect();
        let rows: Vec<usize> = wanted.iter().cloned().flatten().collect();
        if rows.is_empty() {
            return Ok(wanted.iter().map(|_| Ok(Vec::new())).collect());
        }
        let device = &self.device;
        let vocab = self.config.vocab_size;
        let last = device.gather(&h, &rows)?; // [m, hc·D]
        drop(h);
        let mixed = device.mhc_head(&last, &self.head_mix, hyper_shape(&self.config))?; // [m, D]
        let x = device.rms_norm(&mixed, &self.norm, self.config.rms_norm_eps)?;
        drop((last, mixed));
        let logits = device.linear(&x, &self.head)?; // [m, vocab]
        let bytes = device.read(&logits.data, 0..rows.len() * vocab * 4)?;
        let values: Vec<f32> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let mut values = values.into_iter();
        let each = wanted.into_iter().map(|rows| {
            let values: Vec<f32> = values.by_ref().take(rows.len() * vocab).collect();
            match values.iter().position(|v| !v.is_finite()) {
                Some(at) => Err(Error::NotFinite { position: batch.position(rows.start + at / vocab) }),
                None => Ok(values),
            }
        });
        Ok(each.collect())
    }
}

/// The constants of mHC.
pub(crate) fn hyper_shape(config: &Config) -> HyperShape {
    HyperShape {
        copies: config.hc_mult,
        iterations: config.hc_sinkhorn_iters,
        eps: config.hc_eps,
        norm_eps: config.rms_norm_eps,
    }
}
