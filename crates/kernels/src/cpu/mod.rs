//! The CPU as a device.

mod block;
mod buffer;
mod peaks;
mod scratch;

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

pub use buffer::Buffer;
pub use peaks::Peaks;

use crate::ops::{attend, compress, experts, hyper, index, linear, norm, route, rows};
use crate::pool::{Output, Pool};
use crate::profile::Profile;
use crate::simd::{Isa, Kernel, LANES, Simd};
use crate::*;
use scratch::Scratch;

/// How to set up the CPU.
#[derive(Debug, Clone, Default)]
pub struct CpuOptions {
    /// Threads; one for each core where not said.
    pub threads: Option<usize>,
    /// `plain`, `avx2`, `avx512`, `avx512-bf16` or `neon`; the best this CPU has where not said.
    pub isa: Option<String>,
    /// The numeric recipe.
    pub profile: Profile,
}

/// The CPU as a device.
#[derive(Debug)]
pub struct Cpu {
    isa: Isa,
    pool: Pool,
    profile: Profile,
    ledger: Ledger,
    scratch: Arc<Scratch>,
}

impl Cpu {
    /// Starts the threads.
    ///
    /// # Errors
    /// [`Error::NoSuchIsa`] and [`Error::Threads`].
    pub fn new(options: CpuOptions) -> Result<Self, Error> {
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let ledger = Ledger::default();
        Ok(Cpu {
            isa: Isa::choose(options.isa.as_deref())?,
            pool: Pool::new(options.threads.unwrap_or_else(cores).max(1))?,
            profile: options.profile,
            scratch: Arc::new(Scratch::new(ledger.clone())),
            ledger,
        })
    }

    /// The instruction set in use.
    pub fn isa(&self) -> &'static str {
        self.isa.name()
    }

    /// The instruction sets this CPU has, best first.
    pub fn isas() -> Vec<&'static str> {
        Isa::available().into_iter().map(Isa::name).collect()
    }

    /// How many threads work.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    fn on(&self, limit: f32) -> experts::On<'_> {
        experts::On { isa: self.isa, pool: &self.pool, profile: self.profile, limit }
    }

    fn array(&self, rows: usize, width: usize) -> Result<Array<Buffer>, Error> {
        Ok(Array { data: self.alloc(Share::Scratch, rows * width * 4)?, rows, width })
    }
}

/// Sixteen lanes of one embedding row at a time.
struct Widen<'a> {
    format: Format,
    stored: &'a [u8],
    out: &'a mut [f32],
}

impl Kernel for Widen<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let n = self.out.len();
        let whole = n - n % LANES;
        assert!(self.stored.len() == self.format.row_bytes(n), "embedding row");
        for at in (0..whole).step_by(LANES) {
            // SAFETY: sixteen elements from `at` on are inside both slices.
            unsafe {
                let v = match self.format {
                    Format::Bf16 => s.load_bf16(self.stored.as_ptr().add(2 * at)),
                    _ => s.load(self.stored.as_ptr().add(4 * at).cast()),
                };
                s.store(self.out.as_mut_ptr().add(at), v);
            }
        }
        for at in whole..n {
            self.out[at] = match self.format {
                Format::Bf16 => {
                    let raw = [self.stored[2 * at], self.stored[2 * at + 1]];
                    f32::from_bits(u32::from(u16::from_le_bytes(raw)) << 16)
                }
                _ => f32::from_le_bytes(std::array::from_fn(|i| self.stored[4 * at + i])),
            };
        }
    }
}

impl Device for Cpu {
    type Buffer = Buffer;
    type ExpertsUnderWay = ExpertsUnderWay;

    fn name(&self) -> String {
        format!("cpu ({}, {} threads)", self.isa.name(), self.pool.threads())
    }

    fn profile(&self) -> String {
        format!("{}-{}-cpu", self.profile, crate::profile::REVISION)
    }

    fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    fn scope<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        // The caller takes part in all work: nowhere is nearer.
        f()
    }

    fn upload(&self, bytes: Bytes) -> Result<Buffer, Error> {
        Ok(Buffer::shared(bytes))
    }

    fn alloc(&self, share: Share, bytes: usize) -> Result<Buffer, Error> {
        let reservation = self.ledger.reserve(share, bytes)?;
        match share {
            Share::Scratch => Buffer::scratch(bytes, reservation, &self.scratch),
            _ => Buffer::zeroed(bytes, reservation),
        }
    }

    fn read(&self, buffer: &Buffer, range: Range<usize>) -> Result<Vec<u8>, Error> {
        Ok(buffer.bytes()[range].to_vec())
    }

    fn write(&self, buffer: &mut Buffer, at: usize, bytes: &[u8]) -> Result<(), Error> {
        buffer.bytes_mut()[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn copy(&self, from: &Buffer, range: Range<usize>, to: &mut Buffer, at: usize) -> Result<(), Error> {
        to.bytes_mut()[at..at + range.len()].copy_from_slice(&from.bytes()[range]);
        Ok(())
    }

    fn embed(&self, table: &Matrix<Buffer>, tokens: &[u32], copies: usize) -> Result<Array<Buffer>, Error> {
        assert!(matches!(table.format, Format::Bf16 | Format::F32), "embeddings are BF16 or F32");
        let mut out = self.array(tokens.len(), copies * table.cols)?;
        let bytes = table.format.row_bytes(table.cols);
        for (&token, out) in tokens.iter().zip(out.data.f32_mut().chunks_exact_mut(copies * table.cols)) {
            let stored = &table.data.bytes()[token as usize * bytes..][..bytes];
            let (first, rest) = out.split_at_mut(table.cols);
            self.isa.run(Widen { format: table.format, stored, out: first });
            rest.chunks_exact_mut(table.cols).for_each(|copy| copy.copy_from_slice(first));
        }
        Ok(out)
    }

    fn experts_bytes(&self, rows: usize, slots: usize, width: usize, inter: usize) -> usize {
        rows * slots * inter * 4 + experts::scratch_bytes(&self.pool, rows, slots, width, inter)
    }

    fn index_bytes(&self, shape: IndexShape, rows: usize) -> usize {
        rows * (shape.keep + 1) * 4 + index::scratch_bytes(&self.pool, shape, rows)
    }

    fn attend_bytes(&self, heads: usize, row: RowShape, rows: usize, entries: usize) -> usize {
        attend::scratch_bytes(&self.pool, heads, row.width, rows, entries)
    }

    fn gather(&self, x: &Array<Buffer>, rows: &[usize]) -> Result<Array<Buffer>, Error> {
        let mut out = self.array(rows.len(), x.width)?;
        for (&row, out) in rows.iter().zip(out.data.f32_mut().chunks_exact_mut(x.width)) {
            out.copy_from_slice(&x.data.f32()[row * x.width..][..x.width]);
        }
        Ok(out)
    }

    fn linears<const N: usize>(&self, x: &Array<Buffer>, w: [&Matrix<Buffer>; N]) -> Result<[Array<Buffer>; N], Error> {
        let mut out = Vec::with_capacity(N);
        for w in w {
            assert_eq!(x.width, w.cols, "inputs of a matrix");
            out.push(self.array(x.rows, w.rows)?);
        }
        let mut y: [Array<Buffer>; N] = out.try_into().expect("one for each matrix");
        let mut each = w.iter().zip(&mut y);
        let all: [_; N] = std::array::from_fn(|_| {
            let (w, y) = each.next().expect("one for each matrix");
            linear::Projection { w, groups: 1, y: Output::new(y.data.f32_mut()) }
        });
        linear::linear(self.isa, &self.pool, self.profile, x.data.f32(), x.rows, &all);
        Ok(y)
    }

    fn linear_grouped(&self, x: &Array<Buffer>, w: &Matrix<Buffer>, groups: usize) -> Result<Array<Buffer>, Error> {
        assert_eq!(x.width, groups * w.cols, "inputs of a matrix");
        let mut y = self.array(x.rows, w.rows)?;
        let all = [linear::Projection { w, groups, y: Output::new(y.data.f32_mut()) }];
        linear::linear(self.isa, &self.pool, self.profile, x.data.f32(), x.rows, &all);
        Ok(y)
    }

    fn rms_norm(&self, x: &Array<Buffer>, weight: &Buffer, eps: f32) -> Result<Array<Buffer>, Error> {
        let mut y = self.array(x.rows, x.width)?;
        norm::rms_norm(self.isa, &self.pool, x.data.f32(), weight.f32(), eps, y.data.f32_mut());
        Ok(y)
    }

    fn mhc_mix(&self, h: &Array<Buffer>, hyper: &Hyper<Buffer>, shape: HyperShape) -> Result<Mixed<Buffer>, Error> {
        let m = self.linear(h, &hyper.mix)?;
        let mut input = self.array(h.rows, h.width / shape.copies)?;
        let mut put_back = self.array(h.rows, shape.copies + shape.copies * shape.copies)?;
        let (x, m) = (h.data.f32(), m.data.f32());
        let (y, back) = (input.data.f32_mut(), put_back.data.f32_mut());
        hyper::mix(self.isa, &self.pool, x, m, &hyper.base, &hyper.scale, shape, y, back);
        Ok(Mixed { input, put_back })
    }

    fn mhc_merge(&self, h: &mut Array<Buffer>, out: &Array<Buffer>, mixed: &Mixed<Buffer>) -> Result<(), Error> {
        let copies = h.width / out.width;
        let (h, out, back) = (h.data.f32_mut(), out.data.f32(), mixed.put_back.data.f32());
        hyper::merge(self.isa, &self.pool, h, out, back, copies);
        Ok(())
    }

    fn mhc_head(&self, h: &Array<Buffer>, hyper: &Hyper<Buffer>, shape: HyperShape) -> Result<Array<Buffer>, Error> {
        let m = self.linear(h, &hyper.mix)?;
        let mut y = self.array(h.rows, h.width / shape.copies)?;
        let (x, m, out) = (h.data.f32(), m.data.f32(), y.data.f32_mut());
        hyper::mix(self.isa, &self.pool, x, m, &hyper.base, &hyper.scale, shape, out, &mut []);
        Ok(y)
    }

    fn angles(&self, positions: &[u32], frequencies: &[f32]) -> Result<Array<Buffer>, Error> {
        let mut out = self.array(positions.len(), 2 * frequencies.len())?;
        for (&position, out) in positions.iter().zip(out.data.f32_mut().chunks_exact_mut(2 * frequencies.len())) {
            rows::angles(position, frequencies, out);
        }
        Ok(out)
    }

    fn finish_queries(
        &self,
        q: &mut Array<Buffer>,
        heads: usize,
        eps: f32,
        angles: &Array<Buffer>,
    ) -> Result<(), Error> {
        let (wide, d) = (q.width, q.width / heads);
        let (angles, turn) = (angles.data.f32(), angles.width);
        let out = Output::new(q.data.f32_mut());
        self.pool.ranges(q.rows, 1, 4, |rows| {
            for row in rows {
                // SAFETY: rows are disjoint.
                let row_out = unsafe { out.slice(row * wide..(row + 1) * wide) };
                for x in row_out.chunks_exact_mut(d) {
                    self.isa.run(norm::NormOne { x, weight: None, eps });
                    rows::rotate(x, &angles[row * turn..(row + 1) * turn]);
                }
            }
        });
        Ok(())
    }

    fn window_rows(
        &self,
        kv: &Array<Buffer>,
        norm: &Buffer,
        eps: f32,
        angles: &Array<Buffer>,
        row: RowShape,
    ) -> Result<Buffer, Error> {
        let mut stored = self.alloc(Share::Scratch, kv.rows * row.bytes())?;
        let mut x = self.rms_norm(kv, norm, eps)?;
        let (d, bytes, turn) = (kv.width, row.bytes(), angles.width);
        let (x, out) = (Output::new(x.data.f32_mut()), Output::new(stored.bytes_mut()));
        let angles = angles.data.f32();
        self.pool.ranges(kv.rows, 4, 2, |rows| {
            for i in rows {
                // SAFETY: rows are disjoint.
                let (x, out) = unsafe { (x.slice(i * d..(i + 1) * d), out.slice(i * bytes..(i + 1) * bytes)) };
                rows::rotate(x, &angles[i * turn..(i + 1) * turn]);
                rows::encode_attention(x, row, out);
            }
        });
        Ok(stored)
    }

    fn compress(
        &self,
        compressor: &Compressor<Buffer>,
        kv: &Array<Buffer>,
        score: &Array<Buffer>,
        span: &Span,
        frontier: &mut Buffer,
        out: &mut [&mut Buffer],
        first_page: usize,
        offset: usize,
        per_page: usize,
    ) -> Result<(), Error> {
        let spec = compress::Spec {
            ratio: compressor.ratio,
            width: compressor.width,
            rope: compressor.rope,
            kind: compressor.kind,
            ape: compressor.ape.f32(),
            norm: compressor.norm.f32(),
            eps: compressor.eps,
            frequencies: &compressor.frequencies,
        };
        let end = span.start + span.rows.len();
        let blocks = end / spec.ratio - span.start / spec.ratio;
        let mut raw = self.array(blocks, spec.width)?;
        let rows = span.rows.start * kv.width..span.rows.end * kv.width;
        let bytes = compressor.entry_bytes();
        let pages: Vec<Output<u8>> = out.iter_mut().map(|page| Output::new(page.bytes_mut())).collect();
        compress::compress(
            self.isa,
            &self.pool,
            spec,
            &kv.data.f32()[rows.clone()],
            &score.data.f32()[rows],
            span.start,
            frontier.f32_mut(),
            raw.data.f32_mut(),
            |entry, stored| {
                let at = offset + entry % per_page * bytes;
                // SAFETY: every entry has its own place.
                unsafe { pages[entry / per_page - first_page].slice(at..at + bytes) }.copy_from_slice(stored);
            },
        );
        Ok(())
    }

    fn index_select(
        &self,
        shape: IndexShape,
        q: &Array<Buffer>,
        weights: &Array<Buffer>,
        angles: &Array<Buffer>,
        span: &Span,
        pages: &Pages<'_, Buffer>,
    ) -> Result<Selection<Buffer>, Error> {
        let n = span.rows.len();
        let mut entries = self.alloc(Share::Scratch, n * shape.keep * 4)?;
        let mut counts = self.alloc(Share::Scratch, n * 4)?;
        let _held = self.ledger.reserve(Share::Scratch, index::scratch_bytes(&self.pool, shape, n))?;
        let slices: Vec<&[u8]> = pages.pages.iter().map(|page| page.bytes()).collect();
        let keys = index::Keys { pages: &slices, offset: pages.offset, per_page: pages.per_page };
        let part = |x: &Array<Buffer>| span.rows.start * x.width..span.rows.end * x.width;
        index::select(
            self.isa,
            &self.pool,
            shape,
            &q.data.f32()[part(q)],
            &weights.data.f32()[part(weights)],
            &angles.data.f32()[part(angles)],
            span.start,
            keys,
            entries.u32_mut(),
            counts.u32_mut(),
        );
        Ok(Selection { entries, counts, keep: shape.keep })
    }

    fn attend(
        &self,
        attention: &Attention<Buffer>,
        q: &Array<Buffer>,
        angles: &Array<Buffer>,
        span: &Span,
        rows: &Buffer,
        ring: &Buffer,
        compressed: &Compressed<'_, Buffer>,
        out: &mut Array<Buffer>,
    ) -> Result<(), Error> {
        let slices: Vec<&[u8]> = match compressed {
            Compressed::None => Vec::new(),
            Compressed::All { pages, .. } | Compressed::Selected { pages, .. } => {
                pages.pages.iter().map(|page| page.bytes()).collect()
            }
        };
        let stored = |pages: &Pages<'_, Buffer>| attend::Stored {
            pages: &slices,
            offset: pages.offset,
            per_page: pages.per_page,
        };
        let entries = match compressed {
            Compressed::None => attend::Entries::None,
            Compressed::All { pages, ratio } => attend::Entries::All { stored: stored(pages), ratio: *ratio },
            Compressed::Selected { pages, selection } => attend::Entries::Selected {
                stored: stored(pages),
                entries: selection.entries.u32(),
                counts: selection.counts.u32(),
                keep: selection.keep,
            },
        };
        let segment = attend::Segment {
            heads: attention.heads,
            row: attention.row,
            span: attention.window,
            sink: attention.sink.f32(),
            start: span.start,
            rows: &rows.bytes()[span.rows.start * attention.row.bytes()..span.rows.end * attention.row.bytes()],
            ring: ring.bytes(),
            entries,
        };
        let part = |width: usize| span.rows.start * width..span.rows.end * width;
        let (q, angles) = (&q.data.f32()[part(q.width)], &angles.data.f32()[part(angles.width)]);
        let mut wait = self.alloc(Share::Scratch, 4 * attend::waiting_of(&self.pool, &segment, span.rows.len()))?;
        let wait = wait.f32_mut();
        let written = part(out.width);
        attend::attend(self.isa, &self.pool, self.profile, segment, q, angles, wait, &mut out.data.f32_mut()[written]);
        Ok(())
    }

    fn route(
        &self,
        scores: &Array<Buffer>,
        gate: &Gate<Buffer>,
        tokens: &[u32],
        slots: usize,
        scale: f32,
    ) -> Result<Routing, Error> {
        let mut routing =
            Routing { experts: vec![0; tokens.len() * slots], weights: vec![0.0; tokens.len() * slots], slots };
        let choice = match gate {
            Gate::Scored { bias } => route::Choice::Scored(bias.f32()),
            Gate::Hash { table } => route::Choice::Hash(table.bytes()),
        };
        let (experts, weights) = (&mut routing.experts, &mut routing.weights);
        route::route(&self.pool, scores.data.f32(), &choice, tokens, slots, scale, experts, weights);
        Ok(routing)
    }

    fn swiglu(&self, gate: &Array<Buffer>, up: &Array<Buffer>, limit: f32) -> Result<Array<Buffer>, Error> {
        let mut out = self.array(gate.rows, gate.width)?;
        experts::swiglu(self.isa, &self.pool, gate.data.f32(), up.data.f32(), limit, out.data.f32_mut());
        Ok(out)
    }

    fn experts(
        &self,
        x: &Array<Buffer>,
        routing: &Routing,
        experts: &[Expert<Buffer>],
        limit: f32,
        y: &mut Array<Buffer>,
    ) -> Result<(), Error> {
        let Some(first) = experts.first() else { return Ok(()) };
        let (pairs, inter) = (x.rows * routing.slots, first.w1.rows);
        let mut h = self.array(pairs, inter)?;
        let own = experts::scratch_bytes(&self.pool, x.rows, routing.slots, x.width, inter);
        let _held = self.ledger.reserve(Share::Scratch, own)?;
        let (x, h, y) = (x.data.f32(), h.data.f32_mut(), y.data.f32_mut());
        experts::experts(self.on(limit), x, routing, experts, h, y);
        Ok(())
    }

    fn experts_in_parts_bytes(&self, rows: usize, slots: usize, width: usize, inter: usize) -> usize {
        experts::some_bytes(rows, slots, width, inter, rows)
    }

    fn experts_begin(
        &self,
        x: &Array<Buffer>,
        routing: &Routing,
        shape: ExpertShape,
    ) -> Result<ExpertsUnderWay, Error> {
        let own = experts::some_bytes(x.rows, routing.slots, x.width, 0, 0) - routing.experts.len() * x.width * 4;
        let held = self.ledger.reserve(Share::Scratch, own)?;
        let waiting = self.array(routing.experts.len(), x.width)?;
        let int8 = self.profile == Profile::Native && shape.format == Format::Fp4;
        let rounded = int8.then(|| linear::int8::Quantised::new(self.isa, &self.pool, x.data.f32(), x.width));
        Ok(ExpertsUnderWay { sorted: experts::Sorted::new(routing), rounded, waiting, _held: held })
    }

    fn experts_some(
        &self,
        under_way: &mut ExpertsUnderWay,
        x: &Array<Buffer>,
        routing: &Routing,
        some: &[(u32, &Expert<Buffer>)],
        limit: f32,
    ) -> Result<(), Error> {
        let ExpertsUnderWay { sorted, rounded, waiting, .. } = under_way;
        let mut rest = some;
        while let Some(&(_, first)) = rest.first() {
            // As many as have no more pairs than there are rows, or one.
            let (mut count, mut pairs) = (0, 0);
            while let Some(&(expert, _)) = rest.get(count) {
                let more = sorted.pairs_of(expert);
                if count > 0 && pairs + more > x.rows {
                    break;
                }
                (count, pairs) = (count + 1, pairs + more);
            }
            let (part, later) = rest.split_at(count);
            rest = later;
            let inter = first.w1.rows;
            let mut h = self.array(pairs, inter)?;
            let own = experts::some_bytes(0, 0, 0, inter, pairs) - pairs * inter * 4;
            let _held = self.ledger.reserve(Share::Scratch, own)?;
            let (x, h, waiting) = (x.data.f32(), h.data.f32_mut(), waiting.data.f32_mut());
            experts::some(self.on(limit), x, rounded.as_ref(), routing, sorted, part, h, waiting);
        }
        Ok(())
    }

    fn experts_end(&self, under_way: ExpertsUnderWay, slots: usize, y: &mut Array<Buffer>) -> Result<(), Error> {
        let ExpertsUnderWay { sorted, waiting, .. } = under_way;
        experts::sum(&self.pool, &sorted, waiting.data.f32(), slots, y.width, y.data.f32_mut());
        Ok(())
    }
}

/// Experts of which some have been computed: see [`Device::experts_begin`].
pub struct ExpertsUnderWay {
    sorted: experts::Sorted,
    /// The inputs, where the profile rounds them.
    rounded: Option<linear::int8::Quantised>,
    /// What each pair of row and slot came to, `[n · slots, D]`.
    waiting: Array<Buffer>,
    _held: Reservation,
}
