//! Sixteen f32 lanes, on whatever this CPU has.
//!
//! Every kernel is written once over [`Simd`], whose primitives are exact by IEEE 754 (or integers), so each
//! instruction set gives the same bits by construction. The instruction sets are values that exist only where the
//! CPU has them; this is the one place that chooses.
//!
//! The order of every floating sum over k: lane `k mod 16` takes its terms ascending with fused multiply-add, then the
//! lanes fold 16 → 8 → 4 → 2 → 1, each lane with the one half the width above it.

mod plain;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

use std::fmt;

use crate::Error;

pub(crate) use plain::Plain;

/// How many f32 a [`Simd::F`] holds.
pub(crate) const LANES: usize = 16;

/// FP4 weights are fed to integer products as `2·value + FP4_BIAS`, which is never negative.
pub(crate) const FP4_BIAS: i32 = 12;

/// 2⁻⁷⁰, the least that an input rounded to bfloat16 may be. Together with weights whose last bit is 2⁻⁴⁹ or more it keeps products and
/// sums among the normal numbers, where bfloat16 instructions give the bits of f32's.
pub(crate) const BF16_LEAST: f32 = f32::from_bits((127 - 70) << 23);

/// 512 columns of an input rounded to int8 in groups of 32, laid out for [`Simd::dot_fp4`]: a lane has a group, and four
/// of its columns at a time lie in the lane's 32 bits.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Int8Block {
    /// `[2t + odd][4·lane + i]` is column `8t + 2i + odd` of the lane's group: see [`lane_of_group`].
    pub integers: [[i8; 64]; 8],
    /// `−FP4_BIAS · Σ` of each lane.
    pub start: [i32; LANES],
    /// Each lane's scale, halved, because FP4 comes doubled.
    pub scales: [f32; LANES],
}

/// The lane that has group g of a block's sixteen: as four registers' 32-bit parts fall when they are transposed.
pub(crate) const fn lane_of_group(g: usize) -> usize {
    4 * (g % 4) + g / 4
}

/// Sixteen f32 lanes and what can be done with them.
///
/// # Safety
/// Pointers given to the unsafe functions are valid for the bytes they name, at any alignment. All functions must
/// end up inlined in code that has the instruction set's features: see [`Isa::run`].
pub(crate) trait Simd: Copy + Send + Sync + 'static {
    /// Whether there are registers for sixteen sums of sixteen lanes.
    const WIDE: bool;
    /// Whether [`Simd::dot_pair`] is one step of the CPU.
    const PAIRS: bool = false;
    /// Sixteen f32.
    type F: Copy;

    fn splat(self, x: f32) -> Self::F;
    /// Reads 16 f32.
    unsafe fn load(self, p: *const f32) -> Self::F;
    /// Writes 16 f32.
    unsafe fn store(self, p: *mut f32, v: Self::F);
    /// Reads 16 bfloat16.
    unsafe fn load_bf16(self, p: *const u8) -> Self::F;
    /// Reads 16 E4M3 as value · 2⁻¹²⁰: moved into place, the bits are an f32 with that much less exponent, and those
    /// below E4M3's normal numbers are below f32's. The two NaN codes read as ±480.
    unsafe fn load_fp8(self, p: *const u8) -> Self::F;

    /// Asks for the cache line at `p`, which need not be valid, where the CPU can be asked: into the second cache, since the
    /// first waits for fewer lines at once.
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        let _ = p;
    }

    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// a·b + c, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// a where a > b, else b.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// a where a < b, else b.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// To the nearest integer, ties to even.
    fn round(self, a: Self::F) -> Self::F;
    /// 2ⁿ of integers n from −126 to 127.
    fn pow2(self, n: Self::F) -> Self::F;
    /// v where x ≥ bound, else +0.
    fn keep_ge(self, x: Self::F, bound: Self::F, v: Self::F) -> Self::F;
    /// The sum, in the tree of the module's text.
    fn sum(self, v: Self::F) -> f32;
    /// Four sums, each in that tree.
    #[inline(always)]
    fn sum4(self, v: [Self::F; 4]) -> [f32; 4] {
        [self.sum(v[0]), self.sum(v[1]), self.sum(v[2]), self.sum(v[3])]
    }

    /// To bfloat16, nearest even; what comes out below [`BF16_LEAST`] is zero. NaN stays NaN.
    fn round_bf16(self, x: Self::F) -> Self::F;
    /// Each lane's two halves are the upper halves of a's (high) and b's (low): a pair of bfloat16, if a and b are.
    #[inline(always)]
    fn pair(self, a: Self::F, b: Self::F) -> Self::F {
        lanes2(self, a, b, |a, b| f32::from_bits(a.to_bits() & 0xffff_0000 | b.to_bits() >> 16))
    }
    /// The pair of both rounded.
    #[inline(always)]
    fn round_pair(self, a: Self::F, b: Self::F) -> Self::F {
        self.pair(self.round_bf16(a), self.round_bf16(b))
    }
    /// c + the product of the high halves, rounded, + the product of the low halves, rounded: as [`Simd::fma`] twice, if no
    /// half, product or sum is subnormal.
    #[inline(always)]
    fn dot_pair(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        let high = |x| lanes2(self, x, x, |x, _| f32::from_bits(x.to_bits() & 0xffff_0000));
        let low = |x| lanes2(self, x, x, |x, _| f32::from_bits(x.to_bits() << 16));
        self.fma(low(a), low(b), self.fma(high(a), high(b), c))
    }

    /// Reads 512 FP4 weights (256 bytes) and writes them as bytes `2·value + FP4_BIAS`, in the order of
    /// [`Int8Block::integers`].
    unsafe fn spread_fp4(self, p: *const u8, out: *mut u8);
    /// Adds to `sums[a][b]` the products of row a's 512 weights with input b: each lane its group of 32 columns, exact in
    /// integers, times both scales, fused. `w` is what [`Simd::spread_fp4`] wrote, `exponents` the 16 UE8M0 scales.
    unsafe fn dot_fp4<const R: usize, const N: usize>(
        self,
        w: [*const u8; R],
        exponents: [*const u8; R],
        x: [*const Int8Block; N],
        sums: &mut [[Self::F; N]; R],
    );

    /// Integer products of one FP4 index query with sixteen keys, over one group of 32 dims: lane e has
    /// `Σ_k key[e][k]·q[k]`, both as doubled integers, as f32. `keys` is `[8][16 keys][4]`, biased by [`FP4_BIAS`]; `q`
    /// has 32 i8 in the same order of k; `bias` is `FP4_BIAS · Σ_k q[k]`.
    unsafe fn dot_index(self, keys: *const u8, q: *const i8, bias: i32) -> Self::F;
    /// Does integer products of bytes with sums in 32 bits, as many at once as the registers allow, `rounds` times, and
    /// returns how many operations that was: what [`crate::Peaks`] is measured with.
    #[inline(always)]
    fn int8_products(self, rounds: usize) -> usize {
        let (keys, q) = (std::hint::black_box([1u8; 512]), std::hint::black_box([1i8; 32]));
        for _ in 0..rounds / 16 {
            // SAFETY: 512 and 32 bytes are there.
            std::hint::black_box(unsafe { self.dot_index(keys.as_ptr(), q.as_ptr(), 0) });
        }
        rounds / 16 * 1024
    }
    /// Bit i says whether lane i of a is not below lane i of b.
    fn ge(self, a: Self::F, b: Self::F) -> u32;
}

/// Lane by lane, slowly.
#[inline(always)]
fn lanes2<S: Simd>(s: S, a: S::F, b: S::F, f: impl Fn(f32, f32) -> f32) -> S::F {
    let (mut x, mut y) = ([0.0; LANES], [0.0; LANES]);
    // SAFETY: room for sixteen.
    unsafe {
        s.store(x.as_mut_ptr(), a);
        s.store(y.as_mut_ptr(), b);
        x.iter_mut().zip(y).for_each(|(x, y)| *x = f(*x, y));
        s.load(x.as_ptr())
    }
}

/// Reads the first `n ≤ 16` f32 and zeros after them.
///
/// # Safety
/// `p` is valid for `n` f32.
#[inline(always)]
pub(crate) unsafe fn load_part<S: Simd>(s: S, p: *const f32, n: usize) -> S::F {
    if n >= LANES {
        // SAFETY: 16 readable f32.
        return unsafe { s.load(p) };
    }
    let mut padded = [0.0; LANES];
    // SAFETY: n readable f32 into room for 16.
    unsafe {
        std::ptr::copy_nonoverlapping(p, padded.as_mut_ptr(), n);
        s.load(padded.as_ptr())
    }
}

/// Writes the first `n ≤ 16` of the lanes.
///
/// # Safety
/// `p` is valid for `n` f32.
#[inline(always)]
pub(crate) unsafe fn store_part<S: Simd>(s: S, p: *mut f32, n: usize, v: S::F) {
    if n >= LANES {
        // SAFETY: 16 writable f32.
        return unsafe { s.store(p, v) };
    }
    let mut padded = [0.0; LANES];
    // SAFETY: room for 16, of which n are copied to n writable f32.
    unsafe {
        s.store(padded.as_mut_ptr(), v);
        std::ptr::copy_nonoverlapping(padded.as_ptr(), p, n);
    }
}

/// Something to run with some instruction set.
pub(crate) trait Kernel {
    type Output;
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// An instruction set that this CPU has.
#[derive(Clone, Copy)]
pub(crate) enum Isa {
    Plain(Plain),
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512<false>),
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(avx512::Avx512<true>),
    #[cfg(target_arch = "aarch64")]
    Neon(neon::Neon),
}

impl Isa {
    /// Every instruction set this CPU has, best first; the plain code is always last.
    pub(crate) fn available() -> Vec<Isa> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(avx512::Avx512::new().map(Isa::Avx512Bf16));
            all.extend(avx512::Avx512::new().map(Isa::Avx512));
            all.extend(avx2::Avx2::new().map(Isa::Avx2));
        }
        #[cfg(target_arch = "aarch64")]
        all.extend(neon::Neon::new().map(Isa::Neon));
        all.push(Isa::Plain(Plain));
        all
    }

    /// The names of those that fathom knows and this CPU lacks.
    #[cfg(test)]
    pub(crate) fn missing() -> Vec<&'static str> {
        let have: Vec<_> = Isa::available().into_iter().map(Isa::name).collect();
        ["avx512-bf16", "avx512", "avx2", "neon"].into_iter().filter(|name| !have.contains(name)).collect()
    }

    /// The one of that name, or the best there is.
    pub(crate) fn choose(name: Option<&str>) -> Result<Isa, Error> {
        let all = Isa::available();
        let Some(name) = name else { return Ok(all[0]) };
        all.iter().copied().find(|isa| isa.name() == name).ok_or_else(|| Error::NoSuchIsa {
            isa: name.to_owned(),
            available: all.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", "),
        })
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Isa::Plain(_) => "plain",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16(_) => "avx512-bf16",
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(_) => "neon",
        }
    }

    /// Runs a kernel compiled for this instruction set.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Isa::Plain(s) => kernel.run(s),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(s) => s.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(s) => s.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16(s) => s.run(kernel),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(s) => s.run(kernel),
        }
    }
}

impl fmt::Debug for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
pub(crate) mod tests;
