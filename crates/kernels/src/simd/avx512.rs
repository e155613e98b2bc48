//! AVX-512 F, BW, VL with VNNI, and with BF16 where the CPU has it: one register of sixteen lanes.

use std::arch::x86_64::*;

use super::avx2::sum4;
use super::{BF16_LEAST, Int8Block, Kernel, Simd};

/// Exists only where the CPU has AVX-512 F, BW, VL and VNNI; with `BF16` also that, as [`bf16_is_two_fmas`] says.
#[derive(Clone, Copy)]
pub(crate) struct Avx512<const BF16: bool>(());

impl<const BF16: bool> Avx512<BF16> {
    pub(crate) fn new() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        // SAFETY: asked only where the CPU has BF16.
        let bf16 = || is_x86_feature_detected!("avx512bf16") && unsafe { bf16_is_two_fmas() };
        (has && (!BF16 || bf16())).then_some(Avx512(()))
    }

    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
        fn inner<const BF16: bool, K: Kernel>(s: Avx512<BF16>, kernel: K) -> K::Output {
            kernel.run(s)
        }
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c")]
        fn inner_bf16<const BF16: bool, K: Kernel>(s: Avx512<BF16>, kernel: K) -> K::Output {
            kernel.run(s)
        }
        // SAFETY: `self` proves that the CPU has these features.
        unsafe { if BF16 { inner_bf16(self, kernel) } else { inner(self, kernel) } }
    }
}

/// Whether `VDPBF16PS` adds the product of the high halves and then that of the low halves, each exact and each sum rounded
/// to nearest even, as Intel's manual has it: other orders, or one rounding of both, come out otherwise here.
#[target_feature(enable = "avx512f,avx512bf16")]
fn bf16_is_two_fmas() -> bool {
    let (tiny, one) = (2f32.powi(-24), 1f32);
    let next = one + f32::EPSILON;
    let (large, half) = (2f32.powi(64), 2f32.powi(127));
    // c, the high halves, the low half of one (the other's is 1) → what two sums give.
    let cases = [
        (one, [tiny, one], tiny, one),
        (next, [tiny, one], -one, 2.0 * f32::EPSILON),
        (-one, [one, one], tiny, tiny),
        (one, [tiny, one], -one, 0.0),
        (tiny, [one, one], -one, 0.0),
        // A product that is larger than any f32, and a sum that is not.
        (-half, [large, large], 0.0, half),
    ];
    cases.iter().all(|&(c, high, low, want)| {
        let pair = |high: f32, low: f32| (high.to_bits() & 0xffff_0000 | low.to_bits() >> 16) as i32;
        let (a, b) = (_mm512_set1_epi32(pair(high[0], low)), _mm512_set1_epi32(pair(high[1], one)));
        let got = _mm512_dpbf16_ps(_mm512_set1_ps(c), pairs(a), pairs(b));
        _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(got, _mm512_set1_ps(want)) == u16::MAX
    })
}

/// The same bits as the type that `VDPBF16PS` takes.
#[inline(always)]
fn pairs(bits: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes in which everything is a value.
    unsafe { std::mem::transmute(bits) }
}

/// Biased doubled E2M1 values.
const FP4_BIASED: [u8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];

macro_rules! lanes {
    ($($name:ident($($arg:ident),+) = $op:ident;)+) => { $(
        #[inline(always)]
        fn $name(self, $($arg: __m512),+) -> __m512 {
            // SAFETY: `self` proves that the CPU has AVX-512 F.
            unsafe { $op($($arg),+) }
        }
    )+ };
}

impl<const BF16: bool> Simd for Avx512<BF16> {
    const WIDE: bool = true;
    const PAIRS: bool = BF16;
    type F = __m512;

    lanes! {
        add(a, b) = _mm512_add_ps;
        sub(a, b) = _mm512_sub_ps;
        mul(a, b) = _mm512_mul_ps;
        div(a, b) = _mm512_div_ps;
        fma(a, b, c) = _mm512_fmadd_ps;
        max(a, b) = _mm512_max_ps;
        min(a, b) = _mm512_min_ps;
    }

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> __m512 {
        // SAFETY: the caller gives 16 readable f32.
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: __m512) {
        // SAFETY: the caller gives 16 writable f32.
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u8) -> __m512 {
        // SAFETY: the caller gives 32 readable bytes; `self` proves AVX-512 F.
        unsafe {
            let raw = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(raw))
        }
    }
    #[inline(always)]
    unsafe fn load_fp8(self, p: *const u8) -> __m512 {
        // SAFETY: the caller gives 16 readable bytes; `self` proves AVX-512 F. As in `avx2::fp8_8`.
        unsafe {
            let wide = _mm512_slli_epi32::<20>(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())));
            _mm512_castsi512_ps(_mm512_and_si512(wide, _mm512_set1_epi32(0x87f0_0000_u32 as i32)))
        }
    }
    #[inline(always)]
    fn round(self, a: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    fn pow2(self, n: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
        }
    }
    #[inline(always)]
    fn keep_ge(self, x: __m512, bound: __m512, v: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_GE_OQ>(x, bound), v) }
    }
    #[inline(always)]
    fn sum(self, v: __m512) -> f32 {
        // SAFETY: `self` proves AVX-512 F and AVX.
        unsafe {
            let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(v)));
            let eight = _mm256_add_ps(_mm512_castps512_ps256(v), high);
            sum4(_mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight)))
        }
    }
    #[inline(always)]
    fn sum4(self, v: [__m512; 4]) -> [f32; 4] {
        // SAFETY: `self` proves AVX-512 F.
        unsafe {
            let a = fold8(v[0], v[1]);
            let b = fold8(v[2], v[3]);
            let four = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xDD>(a, b));
            let two = _mm512_add_ps(four, _mm512_shuffle_ps::<0x4E>(four, four));
            let one = _mm512_add_ps(two, _mm512_shuffle_ps::<0xB1>(two, two));
            let mut out = [0.0; 4];
            let first = _mm512_maskz_compress_ps(0x1111, one);
            _mm_storeu_ps(out.as_mut_ptr(), _mm512_castps512_ps128(first));
            out
        }
    }
    #[inline(always)]
    fn round_bf16(self, x: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe {
            let bits = _mm512_castps_si512(x);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
            let r = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x40_0000));
            let r = _mm512_castsi512_ps(_mm512_and_si512(r, _mm512_set1_epi32(0xffff_0000_u32 as i32)));
            let keep = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(_mm512_abs_ps(r), _mm512_set1_ps(BF16_LEAST));
            _mm512_maskz_mov_ps(keep, r)
        }
    }
    #[inline(always)]
    fn pair(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512 F and BW.
        unsafe {
            let low = _mm512_srli_epi32::<16>(_mm512_castps_si512(b));
            _mm512_castsi512_ps(_mm512_mask_blend_epi16(0xaaaa_aaaa, low, _mm512_castps_si512(a)))
        }
    }
    #[inline(always)]
    fn round_pair(self, a: __m512, b: __m512) -> __m512 {
        if !BF16 {
            return self.pair(self.round_bf16(a), self.round_bf16(b));
        }
        // SAFETY: `self` proves AVX-512 F, BW and BF16.
        unsafe {
            let order = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            // Words i and 16 + i beside each other: low halves come first.
            let order = _mm512_or_si512(order, _mm512_slli_epi32::<16>(_mm512_add_epi32(order, _mm512_set1_epi32(16))));
            let words: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(a, b));
            let words = _mm512_permutexvar_epi16(order, words);
            let size = _mm512_and_si512(words, _mm512_set1_epi16(0x7fff));
            let least = _mm512_set1_epi16((BF16_LEAST.to_bits() >> 16) as i16);
            _mm512_castsi512_ps(_mm512_maskz_mov_epi16(_mm512_cmpge_epi16_mask(size, least), words))
        }
    }
    #[inline(always)]
    fn dot_pair(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512 F, and BF16 where that is used.
        unsafe {
            let (a, b) = (_mm512_castps_si512(a), _mm512_castps_si512(b));
            if BF16 {
                return _mm512_dpbf16_ps(c, pairs(a), pairs(b));
            }
            let high = |x| _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(0xffff_0000_u32 as i32)));
            let low = |x| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(x));
            _mm512_fmadd_ps(low(a), low(b), _mm512_fmadd_ps(high(a), high(b), c))
        }
    }
    #[inline(always)]
    unsafe fn spread_fp4(self, p: *const u8, out: *mut u8) {
        // SAFETY: the caller gives 256 readable and 512 writable bytes; `self` proves AVX-512 BW.
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(FP4_BIASED.as_ptr().cast()));
            let low = _mm512_set1_epi8(15);
            let mut z = [_mm512_setzero_si512(); 4];
            for i in 0..4 {
                z[i] = _mm512_loadu_si512(p.add(64 * i).cast());
            }
            let (a, b) = (_mm512_unpacklo_epi32(z[0], z[1]), _mm512_unpackhi_epi32(z[0], z[1]));
            let (c, d) = (_mm512_unpacklo_epi32(z[2], z[3]), _mm512_unpackhi_epi32(z[2], z[3]));
            let quarters = [
                _mm512_unpacklo_epi64(a, c),
                _mm512_unpackhi_epi64(a, c),
                _mm512_unpacklo_epi64(b, d),
                _mm512_unpackhi_epi64(b, d),
            ];
            for t in 0..4 {
                let even = _mm512_shuffle_epi8(table, _mm512_and_si512(quarters[t], low));
                let odd = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16::<4>(quarters[t]), low));
                _mm512_storeu_si512(out.add(128 * t).cast(), even);
                _mm512_storeu_si512(out.add(128 * t + 64).cast(), odd);
            }
        }
    }
    #[inline(always)]
    unsafe fn dot_fp4<const R: usize, const N: usize>(
        self,
        w: [*const u8; R],
        exponents: [*const u8; R],
        x: [*const Int8Block; N],
        sums: &mut [[__m512; N]; R],
    ) {
        // SAFETY: the caller gives 512 bytes of weights, 16 exponents and a block; `self` proves VNNI.
        unsafe {
            let mut dots = [[_mm512_setzero_si512(); N]; R];
            for b in 0..N {
                let start = _mm512_loadu_si512((&raw const (*x[b]).start).cast());
                for a in 0..R {
                    dots[a][b] = start;
                }
            }
            for step in 0..8 {
                let mut weights = [_mm512_setzero_si512(); R];
                for a in 0..R {
                    weights[a] = _mm512_loadu_si512(w[a].add(64 * step).cast());
                }
                for b in 0..N {
                    let x = _mm512_loadu_si512((&raw const (*x[b]).integers).cast::<u8>().add(64 * step).cast());
                    for a in 0..R {
                        dots[a][b] = _mm512_dpbusd_epi32(dots[a][b], weights[a], x);
                    }
                }
            }
            let order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            for a in 0..R {
                let e = _mm_shuffle_epi8(_mm_loadu_si128(exponents[a].cast()), order);
                let scale = _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_cvtepu8_epi32(e)));
                for b in 0..N {
                    let scale = _mm512_mul_ps(_mm512_loadu_ps((&raw const (*x[b]).scales).cast()), scale);
                    sums[a][b] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[a][b]), scale, sums[a][b]);
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn dot_index(self, keys: *const u8, q: *const i8, bias: i32) -> __m512 {
        // SAFETY: the caller gives 512 readable bytes and 32 readable i8; `self` proves VNNI.
        unsafe {
            let (mut even, mut odd) = (_mm512_set1_epi32(-bias), _mm512_setzero_si512());
            for step in 0..4 {
                let (keys, q) = (keys.add(128 * step), q.add(8 * step).cast::<i32>());
                let (first, second) = (q.read_unaligned(), q.add(1).read_unaligned());
                even = _mm512_dpbusd_epi32(even, _mm512_loadu_si512(keys.cast()), _mm512_set1_epi32(first));
                odd = _mm512_dpbusd_epi32(odd, _mm512_loadu_si512(keys.add(64).cast()), _mm512_set1_epi32(second));
            }
            _mm512_cvtepi32_ps(_mm512_add_epi32(even, odd))
        }
    }
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        // SAFETY: a hint, which reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    fn int8_products(self, rounds: usize) -> usize {
        const SUMS: usize = 12;
        let seeds: [i8; SUMS] = std::hint::black_box([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        // SAFETY: `self` proves VNNI.
        unsafe {
            let b = seeds.map(|seed| _mm512_set1_epi8(seed));
            let mut sums = [_mm512_setzero_si512(); SUMS];
            for _ in 0..rounds {
                for i in 0..SUMS {
                    sums[i] = _mm512_dpbusd_epi32(sums[i], b[0], b[i]);
                }
            }
            std::hint::black_box(sums.map(|sum| _mm512_reduce_add_epi32(sum)));
        }
        rounds * SUMS * 128
    }
    #[inline(always)]
    fn ge(self, a: __m512, b: __m512) -> u32 {
        // SAFETY: `self` proves AVX-512 F.
        unsafe { u32::from(_mm512_cmp_ps_mask::<_CMP_GE_OQ>(a, b)) }
    }
}

/// 16 → 8 of two vectors: a's eight, then b's.
#[inline(always)]
unsafe fn fold8(a: __m512, b: __m512) -> __m512 {
    // SAFETY: called from `Avx512`'s methods only.
    unsafe { _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xEE>(a, b)) }
}
