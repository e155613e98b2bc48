//! FP4 weights times int8 inputs, exact in integers.
//!
//! An input is rounded in groups of 32 columns, `q = round(x · 127/amax)`, scale amax/127. Of 512 columns each of the
//! sixteen lanes takes a group (which: [`lane_of_group`]): its integer sum times both scales is added with fused
//! multiply-add, blocks of 512 ascending; then the lanes fold. Columns after the last are zero.

use std::cell::RefCell;
use std::ops::Range;

use super::Place;
use super::decode::{Row, row};
use super::gemv::ahead;
use crate::formats::ROUND;
use crate::pool::{Output, Pool};
use crate::simd::{FP4_BIAS, Int8Block, Isa, Kernel, LANES, Simd, lane_of_group};
use crate::{Buffer, Matrix};

/// Columns multiplied at once.
const BLOCK: usize = 512;
const GROUP: usize = 32;
/// Bytes of the inputs that some rows are multiplied with before the next rows come: they stay in the second cache.
const TOGETHER: usize = 256 << 10;
/// Groups of a block.
const GROUPS: usize = BLOCK / GROUP;

const ZERO: Int8Block = Int8Block { integers: [[0; 64]; 8], start: [0; LANES], scales: [0.0; LANES] };

/// Rounded inputs.
pub(crate) struct Quantised {
    /// Blocks of an input.
    width: usize,
    /// `[n, width]`.
    blocks: Vec<Int8Block>,
}

impl Quantised {
    /// Rounds every row of x `[n, cols]`.
    pub(crate) fn new(isa: Isa, pool: &Pool, x: &[f32], cols: usize) -> Self {
        let (n, width) = (x.len() / cols, cols.div_ceil(BLOCK));
        let mut blocks = vec![ZERO; n * width];
        let out = Output::new(&mut blocks);
        pool.ranges(n, 8, 2, |rows| {
            for i in rows {
                // SAFETY: rows are disjoint.
                let out = unsafe { out.slice(i * width..(i + 1) * width) };
                isa.run(Round { x: &x[i * cols..(i + 1) * cols], out });
            }
        });
        Quantised { width, blocks }
    }

    /// Whether the inputs have that many columns, as far as blocks tell.
    pub(super) fn fits(&self, cols: usize) -> bool {
        self.width == cols.div_ceil(BLOCK)
    }

    /// Bytes that [`Quantised::new`] takes for `n` inputs.
    pub(crate) const fn bytes(n: usize, cols: usize) -> usize {
        n * cols.div_ceil(BLOCK) * size_of::<Int8Block>()
    }
}

/// Rounds one input.
struct Round<'a> {
    x: &'a [f32],
    out: &'a mut [Int8Block],
}

impl Kernel for Round<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (i, x) in self.x.chunks(GROUP).enumerate() {
            let (block, lane) = (&mut self.out[i / GROUPS], lane_of_group(i % GROUPS));
            let mut padded = [0.0; GROUP];
            padded[..x.len()].copy_from_slice(x);
            let mut rounded = [0.0f32; GROUP];
            // SAFETY: two times sixteen values in, and out.
            unsafe {
                let x = [s.load(padded.as_ptr()), s.load(padded.as_ptr().add(LANES))];
                let zero = s.splat(0.0);
                let mut sizes = [0.0f32; LANES];
                let size = s.max(s.max(x[0], s.sub(zero, x[0])), zero);
                s.store(sizes.as_mut_ptr(), s.max(s.max(x[1], s.sub(zero, x[1])), size));
                let largest = sizes.iter().fold(0.0f32, |a, &v| if v > a { v } else { a });
                block.scales[lane] = largest / 127.0 * 0.5;
                let factor = s.splat(if largest > 0.0 { 127.0 / largest } else { 0.0 });
                // The integer stands in the low bits.
                let magic = s.splat(ROUND);
                s.store(rounded.as_mut_ptr(), s.add(s.mul(x[0], factor), magic));
                s.store(rounded.as_mut_ptr().add(LANES), s.add(s.mul(x[1], factor), magic));
            }
            let mut sum = 0;
            for (step, x) in rounded.chunks_exact(8).enumerate() {
                for (k, x) in x.iter().enumerate() {
                    let q = x.to_bits() as i8;
                    block.integers[2 * step + k % 2][4 * lane + k / 2] = q;
                    sum += i32::from(q);
                }
            }
            block.start[lane] = -FP4_BIAS * sum;
        }
    }
}

/// Rows `rows` · inputs `picks`.
pub(super) struct Product<'a> {
    pub w: &'a Matrix<Buffer>,
    pub rows: Range<usize>,
    pub x: &'a Quantised,
    pub picks: &'a [u32],
    pub out: Place<'a>,
}

/// A block of a row's weights, as [`Simd::spread_fp4`] writes them.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Spread([u8; BLOCK]);

thread_local! {
    /// Some rows' weights, spread out.
    static SPREAD: RefCell<Vec<Spread>> = const { RefCell::new(Vec::new()) };
}

impl Kernel for Product<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        if self.picks.len() == 1 {
            return self.one(s);
        }
        // Taken out, not borrowed: a closure would not have the instruction set's features.
        let mut spread = SPREAD.take();
        let together = (TOGETHER / size_of::<Int8Block>() / self.x.width).max(16) / 4 * 4;
        for (i, picks) in self.picks.chunks(together).enumerate() {
            let out = Place { start: self.out.start + i * together * self.out.stride, ..self.out };
            let some = Product { rows: self.rows.clone(), picks, out, ..self };
            if S::WIDE { some.all::<S, 4, 4>(s, &mut spread) } else { some.all::<S, 2, 3>(s, &mut spread) }
        }
        SPREAD.set(spread);
    }
}

/// Some rows of a matrix, and those of their columns that fill no block, filled up with zeros under scales of one.
struct Rows<'a, const R: usize> {
    rows: [Row<'a>; R],
    whole: usize,
    codes: [[u8; BLOCK / 2]; R],
    exponents: [[u8; GROUPS]; R],
}

impl<'a, const R: usize> Rows<'a, R> {
    #[inline(always)]
    fn new(w: &'a Matrix<Buffer>, from: usize) -> Self {
        let mut rows = [row(w, from); R];
        let (mut codes, mut exponents) = ([[0; BLOCK / 2]; R], [[127; GROUPS]; R]);
        let whole = w.cols / BLOCK;
        for a in 0..R {
            rows[a] = row(w, from + a);
            if !w.cols.is_multiple_of(BLOCK) {
                let (data, scales) = (&rows[a].data[whole * BLOCK / 2..], &rows[a].scales[whole * GROUPS..]);
                codes[a][..data.len()].copy_from_slice(data);
                exponents[a][..scales.len()].copy_from_slice(scales);
            }
        }
        Rows { rows, whole, codes, exponents }
    }

    /// Row a's weights in a block, spread out.
    #[inline(always)]
    fn spread<S: Simd>(&self, s: S, a: usize, block: usize, out: &mut Spread) {
        let codes =
            if block < self.whole { &self.rows[a].data[block * BLOCK / 2..][..BLOCK / 2] } else { &self.codes[a] };
        // SAFETY: 256 bytes, and room for 512.
        unsafe { s.spread_fp4(codes.as_ptr(), out.0.as_mut_ptr()) }
    }

    /// Row a's scales in a block.
    #[inline(always)]
    fn exponents(&self, a: usize, block: usize) -> &[u8] {
        if block < self.whole { &self.rows[a].scales[block * GROUPS..][..GROUPS] } else { &self.exponents[a] }
    }
}

impl Product<'_> {
    /// All rows, R at once, times all inputs, N at once.
    #[inline(always)]
    fn all<S: Simd, const R: usize, const N: usize>(&self, s: S, spread: &mut Vec<Spread>) {
        let mut j = 0;
        while j < self.rows.len() {
            if j + R <= self.rows.len() {
                self.some::<S, R, N>(s, j, spread);
                j += R;
            } else {
                self.some::<S, 1, N>(s, j, spread);
                j += 1;
            }
        }
    }

    /// R rows from j on times all inputs.
    #[inline(always)]
    fn some<S: Simd, const R: usize, const N: usize>(&self, s: S, j: usize, spread: &mut Vec<Spread>) {
        let rows = Rows::<R>::new(self.w, self.rows.start + j);
        spread.resize(R * self.x.width, Spread([0; BLOCK]));
        for block in 0..self.x.width {
            for a in 0..R {
                rows.spread(s, a, block, &mut spread[block * R + a]);
            }
        }
        let mut i = 0;
        while i < self.picks.len() {
            if i + N <= self.picks.len() {
                self.tile::<S, R, N>(s, j, i, &rows, spread);
                i += N;
            } else {
                self.tile::<S, R, 1>(s, j, i, &rows, spread);
                i += 1;
            }
        }
    }

    /// All rows times one input: no weights are kept.
    #[inline(always)]
    fn one<S: Simd>(&self, s: S) {
        let blocks = self.x.width;
        let input = &self.x.blocks[self.picks[0] as usize * blocks..][..blocks];
        let mut spread = Spread([0; BLOCK]);
        for j in 0..self.rows.len() {
            let row = Rows::<1>::new(self.w, self.rows.start + j);
            let mut sum = [[s.splat(0.0)]];
            for (block, x) in input.iter().enumerate() {
                ahead(s, row.rows[0].data, block * BLOCK / 2, BLOCK / 2);
                row.spread(s, 0, block, &mut spread);
                // SAFETY: 512 weights, 16 exponents and a block.
                unsafe {
                    s.dot_fp4([spread.0.as_ptr()], [row.exponents(0, block).as_ptr()], [&raw const *x], &mut sum)
                };
            }
            // SAFETY: it lives for this line.
            let out = unsafe { self.out.of(0, j..j + 1) };
            out[0] = s.sum(sum[0][0]);
        }
    }

    /// R rows from j on times N inputs from pick i on.
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const N: usize>(
        &self,
        s: S,
        j: usize,
        i: usize,
        rows: &Rows<'_, R>,
        spread: &[Spread],
    ) {
        let Quantised { width: blocks, blocks: inputs } = self.x;
        let mut from = [&inputs[..0]; N];
        for b in 0..N {
            from[b] = &inputs[self.picks[i + b] as usize * blocks..][..*blocks];
        }
        let mut sums = [[s.splat(0.0); N]; R];
        for block in 0..*blocks {
            let (mut w, mut e, mut x) = ([std::ptr::null(); R], [std::ptr::null(); R], [std::ptr::null(); N]);
            for b in 0..N {
                x[b] = &raw const from[b][block];
            }
            for a in 0..R {
                (w[a], e[a]) = (spread[block * R + a].0.as_ptr(), rows.exponents(a, block).as_ptr());
            }
            // SAFETY: 512 weights and 16 exponents of each row, and a block of each input.
            unsafe { s.dot_fp4(w, e, x, &mut sums) };
        }
        for b in 0..N {
            let mut four = [s.splat(0.0); 4];
            for a in 0..R {
                four[a] = sums[a][b];
            }
            // SAFETY: it lives for this line.
            unsafe { self.out.of(i + b, j..j + R) }.copy_from_slice(&s.sum4(four)[..R]);
        }
    }
}
