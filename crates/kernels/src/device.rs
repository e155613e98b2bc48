//! The coarse operations that the model is written over.
//!
//! A [`Device`] owns opaque buffers and about twenty operations on rows of activations. The model calls them in the
//! order of the paper's equations and never looks inside a buffer. Every operation treats the rows of a batch
//! independently, so a row's bits depend on that row, the weights and the session state it reads, on nothing else.
//!
//! Shapes: n rows of a batch, D `hidden_size`, hc `hc_mult`, H heads, d `head_dim`, r `qk_rope_head_dim`.

use std::ops::Range;

use bytes::Bytes;

use crate::{Error, Ledger, Share};

/// Rows of f32 activations on a device: `[rows, width]`, dense.
#[derive(Debug)]
pub struct Array<B> {
    /// The values, `rows · width` f32.
    pub data: B,
    /// How many rows.
    pub rows: usize,
    /// Values in a row.
    pub width: usize,
}

/// How the elements of a [`Matrix`] are stored. Names are those of the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// 32-bit floats.
    F32,
    /// bfloat16.
    Bf16,
    /// E4M3 with one UE8M0 scale for each 128×128 block, `[⌈rows/128⌉, ⌈cols/128⌉]`.
    Fp8,
    /// E2M1, two to a byte along the columns (low nibble first), one UE8M0 scale for 32 columns, `[rows, cols/32]`.
    Fp4,
}

impl Format {
    /// Bytes of the elements of `cols` columns of one row.
    pub const fn row_bytes(self, cols: usize) -> usize {
        match self {
            Format::F32 => cols * 4,
            Format::Bf16 => cols * 2,
            Format::Fp8 => cols,
            Format::Fp4 => cols / 2,
        }
    }

    /// Bytes of the scales of a `[rows, cols]` matrix; 0 where the format has none.
    pub const fn scale_bytes(self, rows: usize, cols: usize) -> usize {
        match self {
            Format::F32 | Format::Bf16 => 0,
            Format::Fp8 => rows.div_ceil(128) * cols.div_ceil(128),
            Format::Fp4 => rows * (cols / 32),
        }
    }
}

/// A weight matrix `[rows, cols]` = `[out, in]`, row-major, in its released format. No alignment is promised.
#[derive(Debug, Clone)]
pub struct Matrix<B> {
    /// How elements are stored.
    pub format: Format,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// The elements.
    pub data: B,
    /// The UE8M0 scales, for [`Format::Fp8`] and [`Format::Fp4`].
    pub scale: Option<B>,
}

impl<B> Matrix<B> {
    /// Bytes of elements and scales.
    pub fn bytes(&self) -> usize {
        self.rows * self.format.row_bytes(self.cols) + self.format.scale_bytes(self.rows, self.cols)
    }

    /// The same matrix with its buffers elsewhere.
    pub fn try_map<C, E>(self, mut f: impl FnMut(B) -> Result<C, E>) -> Result<Matrix<C>, E> {
        Ok(Matrix {
            format: self.format,
            rows: self.rows,
            cols: self.cols,
            data: f(self.data)?,
            scale: self.scale.map(f).transpose()?,
        })
    }
}

/// The weights of one mHC connection (`hc_attn_*`, `hc_ffn_*`) or of the head's (`hc_head_*`).
#[derive(Debug)]
pub struct Hyper<B> {
    /// `_fn`: `[(2+hc)·hc, hc·D]`, for the head `[hc, hc·D]`.
    pub mix: Matrix<B>,
    /// `_base`, one for each row of `mix`.
    pub base: Vec<f32>,
    /// `_scale`: three for a connection, one for the head.
    pub scale: Vec<f32>,
}

/// The constants of mHC: `hc_mult`, `hc_sinkhorn_iters`, `hc_eps`, `rms_norm_eps`.
#[derive(Debug, Clone, Copy)]
pub struct HyperShape {
    /// Copies of the residual.
    pub copies: usize,
    /// Sinkhorn iterations.
    pub iterations: usize,
    /// `hc_eps`.
    pub eps: f32,
    /// `rms_norm_eps`.
    pub norm_eps: f32,
}

/// What a connection computed for a sublayer: its input, and how its output goes back.
#[derive(Debug)]
pub struct Mixed<B> {
    /// The sublayer's input before its norm, `[n, D]`.
    pub input: Array<B>,
    /// `[n, hc + hc·hc]`: `post`, then `comb` row-major.
    pub put_back: Array<B>,
}

/// Where a session's compressed rows are: all layers' pages, oldest first, and where in each page this layer's lie.
#[derive(Debug)]
pub struct Pages<'a, B> {
    /// The session's pages; page i holds entries `[i · per_page, (i+1) · per_page)`.
    pub pages: &'a [&'a B],
    /// Byte offset of this layer's rows in every page.
    pub offset: usize,
    /// Entries of this layer in a page.
    pub per_page: usize,
}

/// How the rows of the attention cache are stored: `d − r` E4M3 under a UE8M0 scale for each 64, then r BF16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowShape {
    /// d, `head_dim`.
    pub width: usize,
    /// r, `qk_rope_head_dim`.
    pub rope: usize,
}

impl RowShape {
    /// Bytes of a row: 583 in the released models. Elements first, then scales, then the rope dims.
    pub const fn bytes(self) -> usize {
        let nope = self.width - self.rope;
        nope + nope / 64 + self.rope * 2
    }
}

/// Bytes of an index row of `width` dims: E2M1 elements, then one UE8M0 scale for each 32; 68 in the released models.
pub const fn index_row_bytes(width: usize) -> usize {
    width / 2 + width / 32
}

/// Which kind of row a compressor makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// Keys of the attention, stored as [`RowShape`] says.
    Attention,
    /// Keys of the indexer: Hadamard, then FP4.
    Index,
}

/// A compressor's weights and constants.
#[derive(Debug)]
pub struct Compressor<B> {
    /// m: 4 (blocks overlap) or 128.
    pub ratio: usize,
    /// w: `head_dim` or `index_head_dim`.
    pub width: usize,
    /// r: how many of the last dims are rotated.
    pub rope: usize,
    /// What is stored.
    pub kind: EntryKind,
    /// `ape`, f32 `[m, c·w]`.
    pub ape: B,
    /// `norm.weight`, f32 `[w]`.
    pub norm: B,
    /// `rms_norm_eps`.
    pub eps: f32,
    /// Rotation frequencies, `[r/2]`.
    pub frequencies: Vec<f32>,
}

impl<B> Compressor<B> {
    /// c: how many sets of channels a position has.
    pub const fn sets(&self) -> usize {
        if self.ratio == 4 { 2 } else { 1 }
    }

    /// Bytes of the frontier: running (max, sum, accumulator) per channel, for each set.
    pub const fn frontier_bytes(&self) -> usize {
        self.sets() * 3 * self.width * 4
    }

    /// Bytes of one stored entry.
    pub const fn entry_bytes(&self) -> usize {
        match self.kind {
            EntryKind::Attention => RowShape { width: self.width, rope: self.rope }.bytes(),
            EntryKind::Index => index_row_bytes(self.width),
        }
    }
}

/// Entries kept by the indexer for the rows of one segment.
#[derive(Debug)]
pub struct Selection<B> {
    /// u32 `[n, keep]`: entry numbers, ascending; only the first [`Selection::counts`] of a row count.
    pub entries: B,
    /// u32 `[n]`.
    pub counts: B,
    /// `index_topk`.
    pub keep: usize,
}

/// Which compressed entries the rows of a segment attend to.
#[derive(Debug)]
pub enum Compressed<'a, B> {
    /// None: a sliding-window layer.
    None,
    /// Every entry that is visible (HCA); entry b of ratio m is visible to position p when (b+1)·m ≤ p+1.
    All {
        /// The entries.
        pages: Pages<'a, B>,
        /// m.
        ratio: usize,
    },
    /// Those the indexer kept (CSA).
    Selected {
        /// The entries.
        pages: Pages<'a, B>,
        /// Which of them.
        selection: &'a Selection<B>,
    },
}

/// The rows of one segment in a batch: batch rows `rows` are the positions from `start` on.
#[derive(Debug, Clone)]
pub struct Span {
    /// Rows of the batch.
    pub rows: Range<usize>,
    /// Position of the first.
    pub start: usize,
}

/// The constants of attention.
#[derive(Debug)]
pub struct Attention<B> {
    /// H.
    pub heads: usize,
    /// d and r.
    pub row: RowShape,
    /// `sliding_window`.
    pub window: usize,
    /// `attn_sink`, f32 `[H]`.
    pub sink: B,
}

/// The indexer's constants.
#[derive(Debug, Clone, Copy)]
pub struct IndexShape {
    /// `index_n_heads`.
    pub heads: usize,
    /// `index_head_dim`.
    pub width: usize,
    /// `index_topk`.
    pub keep: usize,
}

/// The router's weights.
#[derive(Debug)]
pub enum Gate<B> {
    /// The top-k of score + bias; f32 `[E]`.
    Scored {
        /// `gate.bias`.
        bias: B,
    },
    /// Given by the token: `tid2eid`, I64 `[vocab, top-k]`.
    Hash {
        /// `gate.tid2eid`.
        table: B,
    },
}

/// Where each row of a batch goes: experts and their weights, on the host, because what is fetched depends on it.
#[derive(Debug, Clone, PartialEq)]
pub struct Routing {
    /// `[n, slots]` expert numbers.
    pub experts: Vec<u32>,
    /// `[n, slots]`.
    pub weights: Vec<f32>,
    /// `num_experts_per_tok`.
    pub slots: usize,
}

/// One expert's matrices.
#[derive(Debug)]
pub struct Expert<B> {
    /// `w1`, the gate: `[inter, D]`.
    pub w1: Matrix<B>,
    /// `w2`, down: `[D, inter]`.
    pub w2: Matrix<B>,
    /// `w3`, up: `[inter, D]`.
    pub w3: Matrix<B>,
}

/// What all experts of a layer have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertShape {
    /// How their matrices are stored.
    pub format: Format,
    /// `moe_intermediate_size`.
    pub inter: usize,
}

/// A place that computes. See the module's text.
///
/// Errors of every operation: [`Error::OutOfMemory`] when the ledger has no room for the result or the scratch.
/// Shapes that do not fit are bugs of the caller and panic.
pub trait Device: Send + Sync + Sized + 'static {
    /// Memory of this device.
    type Buffer: Send + Sync + std::fmt::Debug + 'static;
    /// Routed experts of which some have been computed.
    type ExpertsUnderWay;

    /// Device class and instruction set, for people.
    fn name(&self) -> String;

    /// The name of the numeric recipe that fixes the bits: recipe, revision, device class. No instruction set.
    fn profile(&self) -> String;

    /// Who holds how much of this device's memory.
    fn ledger(&self) -> &Ledger;

    /// Runs `f` where operations start quickest (inside the thread pool, on a CPU).
    fn scope<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R;

    /// Host bytes as a read-only buffer. A CPU keeps them where they are.
    fn upload(&self, bytes: Bytes) -> Result<Self::Buffer, Error>;

    /// Memory charged to `share`: zeroed, but for scratch, which holds anything.
    fn alloc(&self, share: Share, bytes: usize) -> Result<Self::Buffer, Error>;

    /// Bytes `range` of a buffer, to the host.
    fn read(&self, buffer: &Self::Buffer, range: Range<usize>) -> Result<Vec<u8>, Error>;

    /// Host bytes into a buffer at `at`.
    fn write(&self, buffer: &mut Self::Buffer, at: usize, bytes: &[u8]) -> Result<(), Error>;

    /// Bytes `range` of one buffer into another at `at`.
    fn copy(&self, from: &Self::Buffer, range: Range<usize>, to: &mut Self::Buffer, at: usize) -> Result<(), Error>;

    /// Rows of the embedding, each repeated `copies` times: `[n, copies·D]`. Tokens are below the vocabulary's size.
    fn embed(&self, table: &Matrix<Self::Buffer>, tokens: &[u32], copies: usize) -> Result<Array<Self::Buffer>, Error>;

    /// Bytes of scratch that [`Device::experts`] takes for `rows` rows.
    fn experts_bytes(&self, rows: usize, slots: usize, width: usize, inter: usize) -> usize;

    /// Bytes of scratch that [`Device::index_select`] takes for `rows` rows.
    fn index_bytes(&self, shape: IndexShape, rows: usize) -> usize;

    /// Bytes of scratch that [`Device::attend`] takes for up to `rows` rows that see up to `entries` compressed entries.
    fn attend_bytes(&self, heads: usize, row: RowShape, rows: usize, entries: usize) -> usize;

    /// The rows with the given numbers.
    fn gather(&self, x: &Array<Self::Buffer>, rows: &[usize]) -> Result<Array<Self::Buffer>, Error>;

    /// `y = x · wᵀ`: `[n, in]` → `[n, out]`.
    fn linear(&self, x: &Array<Self::Buffer>, w: &Matrix<Self::Buffer>) -> Result<Array<Self::Buffer>, Error> {
        let [y] = self.linears(x, [w])?;
        Ok(y)
    }

    /// [`Device::linear`] with several matrices.
    fn linears<const N: usize>(
        &self,
        x: &Array<Self::Buffer>,
        w: [&Matrix<Self::Buffer>; N],
    ) -> Result<[Array<Self::Buffer>; N], Error>;

    /// Block-diagonal `linear`: x is `[n, G·in]`, w `[G·out, in]`, y `[n, G·out]`.
    fn linear_grouped(
        &self,
        x: &Array<Self::Buffer>,
        w: &Matrix<Self::Buffer>,
        groups: usize,
    ) -> Result<Array<Self::Buffer>, Error>;

    /// `x · rsqrt(mean(x²) + eps) · weight`, weight f32 `[width]`.
    fn rms_norm(&self, x: &Array<Self::Buffer>, weight: &Self::Buffer, eps: f32) -> Result<Array<Self::Buffer>, Error>;

    /// mHC before a sublayer: h `[n, hc·D]` → the sublayer's input and what puts its output back.
    fn mhc_mix(
        &self,
        h: &Array<Self::Buffer>,
        hyper: &Hyper<Self::Buffer>,
        shape: HyperShape,
    ) -> Result<Mixed<Self::Buffer>, Error>;

    /// mHC after a sublayer, in place: `h'ⱼ = postⱼ · out + Σᵢ comb[i,j] hᵢ`.
    fn mhc_merge(
        &self,
        h: &mut Array<Self::Buffer>,
        out: &Array<Self::Buffer>,
        mixed: &Mixed<Self::Buffer>,
    ) -> Result<(), Error>;

    /// mHC before the head: h `[n, hc·D]` → `[n, D]`.
    fn mhc_head(
        &self,
        h: &Array<Self::Buffer>,
        hyper: &Hyper<Self::Buffer>,
        shape: HyperShape,
    ) -> Result<Array<Self::Buffer>, Error>;

    /// Cosine and sine of `position · frequency`: `[n, 2·frequencies]`, as (cos, sin) pairs. The product is f32.
    fn angles(&self, positions: &[u32], frequencies: &[f32]) -> Result<Array<Self::Buffer>, Error>;

    /// Each head of q `[n, H·d]` divided by its RMS, its last r dims rotated, in place.
    fn finish_queries(
        &self,
        q: &mut Array<Self::Buffer>,
        heads: usize,
        eps: f32,
        angles: &Array<Self::Buffer>,
    ) -> Result<(), Error>;

    /// kv `[n, d]` → norm, rotation, rounding → stored rows, `n · row.bytes()`.
    fn window_rows(
        &self,
        kv: &Array<Self::Buffer>,
        norm: &Self::Buffer,
        eps: f32,
        angles: &Array<Self::Buffer>,
        row: RowShape,
    ) -> Result<Self::Buffer, Error>;

    /// Folds the positions of `span` (their `kv` and `score`, `[n, c·w]`) into the frontier and writes every block
    /// they complete. `out[i]` takes entries of page `first_page + i`, which holds `per_page` of them from `offset`.
    #[allow(clippy::too_many_arguments)]
    fn compress(
        &self,
        compressor: &Compressor<Self::Buffer>,
        kv: &Array<Self::Buffer>,
        score: &Array<Self::Buffer>,
        span: &Span,
        frontier: &mut Self::Buffer,
        out: &mut [&mut Self::Buffer],
        first_page: usize,
        offset: usize,
        per_page: usize,
    ) -> Result<(), Error>;

    /// The indexer's choice for the rows of `span`: q `[n, Hi·di]` (rotated, transformed and rounded here), weights
    /// `[n, Hi]` (scaled here by `di^-½ · Hi^-½`), keys from `pages`. Ties go to the lower entry.
    fn index_select(
        &self,
        shape: IndexShape,
        q: &Array<Self::Buffer>,
        weights: &Array<Self::Buffer>,
        angles: &Array<Self::Buffer>,
        span: &Span,
        pages: &Pages<'_, Self::Buffer>,
    ) -> Result<Selection<Self::Buffer>, Error>;

    /// Attention of the rows of `span` over window rows and compressed entries, with the sink, then the inverse
    /// rotation; writes batch rows `span.rows` of `out` `[n, H·d]`. `rows` holds the stored rows of the batch, `ring`
    /// those of earlier positions, p at row `p mod window`.
    #[allow(clippy::too_many_arguments)]
    fn attend(
        &self,
        attention: &Attention<Self::Buffer>,
        q: &Array<Self::Buffer>,
        angles: &Array<Self::Buffer>,
        span: &Span,
        rows: &Self::Buffer,
        ring: &Self::Buffer,
        compressed: &Compressed<'_, Self::Buffer>,
        out: &mut Array<Self::Buffer>,
    ) -> Result<(), Error>;

    /// The router: scores `[n, E]` = gate · x → the experts of each row. `scale` is `routed_scaling_factor`.
    fn route(
        &self,
        scores: &Array<Self::Buffer>,
        gate: &Gate<Self::Buffer>,
        tokens: &[u32],
        slots: usize,
        scale: f32,
    ) -> Result<Routing, Error>;

    /// `silu(min(gate, limit)) · clamp(up, ±limit)`.
    fn swiglu(
        &self,
        gate: &Array<Self::Buffer>,
        up: &Array<Self::Buffer>,
        limit: f32,
    ) -> Result<Array<Self::Buffer>, Error>;

    /// The routed experts, added to `y` `[n, D]`: `y += Σ_slot w2(weight · swiglu(w1 x, w3 x))`, the sum over slots
    /// made first, in slot order.
    fn experts(
        &self,
        x: &Array<Self::Buffer>,
        routing: &Routing,
        experts: &[Expert<Self::Buffer>],
        limit: f32,
        y: &mut Array<Self::Buffer>,
    ) -> Result<(), Error>;

    /// Bytes of scratch that [`Device::experts_begin`] and [`Device::experts_some`] take for `rows` rows.
    fn experts_in_parts_bytes(&self, rows: usize, slots: usize, width: usize, inter: usize) -> usize;

    /// [`Device::experts`] with the experts a few at a time, in any order, as they come: begins.
    fn experts_begin(
        &self,
        x: &Array<Self::Buffer>,
        routing: &Routing,
        shape: ExpertShape,
    ) -> Result<Self::ExpertsUnderWay, Error>;

    /// Computes some of the experts, by number, for the rows that go to them: each expert of the routing once in all.
    fn experts_some(
        &self,
        under_way: &mut Self::ExpertsUnderWay,
        x: &Array<Self::Buffer>,
        routing: &Routing,
        some: &[(u32, &Expert<Self::Buffer>)],
        limit: f32,
    ) -> Result<(), Error>;

    /// Sums up, in slot order, and adds to `y` `[n, D]`: with the bits of [`Device::experts`].
    fn experts_end(
        &self,
        under_way: Self::ExpertsUnderWay,
        slots: usize,
        y: &mut Array<Self::Buffer>,
    ) -> Result<(), Error>;
}
