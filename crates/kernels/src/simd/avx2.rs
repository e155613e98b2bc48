//! AVX2 with FMA and F16C: two registers of eight lanes.

use std::arch::x86_64::*;

use super::{BF16_LEAST, Int8Block, Kernel, Simd};

/// Exists only where the CPU has AVX2, FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    pub(crate) fn new() -> Option<Self> {
        let has =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        has.then_some(Avx2(()))
    }

    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn inner<K: Kernel>(s: Avx2, kernel: K) -> K::Output {
            kernel.run(s)
        }
        // SAFETY: `self` proves that the CPU has these features.
        unsafe { inner(self, kernel) }
    }
}

#[derive(Clone, Copy)]
pub(crate) struct F(__m256, __m256);

/// Biased doubled E2M1 values, one copy for each 128-bit half.
const FP4_BIASED: [u8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];

macro_rules! lanes {
    ($($name:ident($($arg:ident),+) = $op:ident;)+) => { $(
        #[inline(always)]
        fn $name(self, $($arg: F),+) -> F {
            // SAFETY: `self` proves that the CPU has AVX2 and FMA.
            unsafe { F($op($($arg.0),+), $op($($arg.1),+)) }
        }
    )+ };
}

impl Simd for Avx2 {
    const WIDE: bool = false;
    type F = F;

    lanes! {
        add(a, b) = _mm256_add_ps;
        sub(a, b) = _mm256_sub_ps;
        mul(a, b) = _mm256_mul_ps;
        div(a, b) = _mm256_div_ps;
        fma(a, b, c) = _mm256_fmadd_ps;
        max(a, b) = _mm256_max_ps;
        min(a, b) = _mm256_min_ps;
        round(a) = round8;
        pow2(n) = pow2_8;
        keep_ge(x, bound, v) = keep_ge8;
        round_bf16(x) = round_bf16_8;
    }

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        // SAFETY: `self` proves AVX.
        unsafe { F(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> F {
        // SAFETY: the caller gives 16 readable f32.
        unsafe { F(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: F) {
        // SAFETY: the caller gives 16 writable f32.
        unsafe {
            _mm256_storeu_ps(p, v.0);
            _mm256_storeu_ps(p.add(8), v.1);
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u8) -> F {
        // SAFETY: the caller gives 32 readable bytes; `self` proves AVX2.
        unsafe { F(bf16_8(p), bf16_8(p.add(16))) }
    }
    #[inline(always)]
    unsafe fn load_fp8(self, p: *const u8) -> F {
        // SAFETY: the caller gives 16 readable bytes.
        unsafe { F(fp8_8(p), fp8_8(p.add(8))) }
    }
    #[inline(always)]
    fn sum(self, v: F) -> f32 {
        // SAFETY: `self` proves AVX.
        unsafe {
            let eight = _mm256_add_ps(v.0, v.1);
            sum4(_mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight)))
        }
    }
    #[inline(always)]
    fn sum4(self, v: [F; 4]) -> [f32; 4] {
        // SAFETY: `self` proves AVX.
        unsafe {
            let mut eight = [_mm256_setzero_ps(); 4];
            for i in 0..4 {
                eight[i] = _mm256_add_ps(v[i].0, v[i].1);
            }
            // Two vectors' low halves side by side, and their high halves.
            let a = fold4(eight[0], eight[1]);
            let b = fold4(eight[2], eight[3]);
            let two = _mm256_add_ps(_mm256_shuffle_ps::<0x44>(a, b), _mm256_shuffle_ps::<0xEE>(a, b));
            let one = _mm256_add_ps(two, _mm256_shuffle_ps::<0xB1>(two, two));
            // Of v[0], v[0], v[2], v[2], v[1], v[1], v[3], v[3].
            let (low, high) = (_mm256_castps256_ps128(one), _mm256_extractf128_ps::<1>(one));
            let mut out = [0.0; 4];
            let pairs = _mm_shuffle_ps::<0x88>(low, high); // 0, 2, 1, 3
            _mm_storeu_ps(out.as_mut_ptr(), _mm_shuffle_ps::<0xD8>(pairs, pairs));
            out
        }
    }
    #[inline(always)]
    unsafe fn spread_fp4(self, p: *const u8, out: *mut u8) {
        // SAFETY: the caller gives 256 readable and 512 writable bytes; `self` proves AVX2.
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(FP4_BIASED.as_ptr().cast()));
            let low = _mm256_set1_epi8(15);
            for half in 0..2 {
                let mut z = [_mm256_setzero_si256(); 4];
                for i in 0..4 {
                    z[i] = _mm256_loadu_si256(p.add(64 * i + 32 * half).cast());
                }
                let (a, b) = (_mm256_unpacklo_epi32(z[0], z[1]), _mm256_unpackhi_epi32(z[0], z[1]));
                let (c, d) = (_mm256_unpacklo_epi32(z[2], z[3]), _mm256_unpackhi_epi32(z[2], z[3]));
                let quarters = [
                    _mm256_unpacklo_epi64(a, c),
                    _mm256_unpackhi_epi64(a, c),
                    _mm256_unpacklo_epi64(b, d),
                    _mm256_unpackhi_epi64(b, d),
                ];
                for t in 0..4 {
                    let even = _mm256_shuffle_epi8(table, _mm256_and_si256(quarters[t], low));
                    let odd = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16::<4>(quarters[t]), low));
                    _mm256_storeu_si256(out.add(128 * t + 32 * half).cast(), even);
                    _mm256_storeu_si256(out.add(128 * t + 64 + 32 * half).cast(), odd);
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn dot_fp4<const R: usize, const N: usize>(
        self,
        w: [*const u8; R],
        exponents: [*const u8; R],
        x: [*const Int8Block; N],
        sums: &mut [[F; N]; R],
    ) {
        // SAFETY: the caller gives 512 bytes of weights, 16 exponents and a block; `self` proves AVX2 and FMA.
        unsafe {
            let one = _mm256_set1_epi16(1);
            let order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            for half in 0..2 {
                let mut dots = [[_mm256_setzero_si256(); N]; R];
                for quarter in 0..2 {
                    // A pair is at most 2·24·127 = 6,096 and four are added: no i16 overflows.
                    let mut pairs = [[_mm256_setzero_si256(); N]; R];
                    for step in 4 * quarter..4 * quarter + 4 {
                        let at = 64 * step + 32 * half;
                        for b in 0..N {
                            let x = _mm256_loadu_si256((&raw const (*x[b]).integers).cast::<u8>().add(at).cast());
                            for a in 0..R {
                                let w = _mm256_loadu_si256(w[a].add(at).cast());
                                pairs[a][b] = _mm256_add_epi16(pairs[a][b], _mm256_maddubs_epi16(w, x));
                            }
                        }
                    }
                    for a in 0..R {
                        for b in 0..N {
                            dots[a][b] = _mm256_add_epi32(dots[a][b], _mm256_madd_epi16(pairs[a][b], one));
                        }
                    }
                }
                for a in 0..R {
                    let e = _mm_shuffle_epi8(_mm_loadu_si128(exponents[a].cast()), order);
                    let e = if half == 0 { e } else { _mm_srli_si128::<8>(e) };
                    let scale = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_cvtepu8_epi32(e)));
                    for b in 0..N {
                        let start = (&raw const (*x[b]).start).cast::<i32>().add(8 * half);
                        let dot = _mm256_cvtepi32_ps(_mm256_add_epi32(dots[a][b], _mm256_loadu_si256(start.cast())));
                        let x_scale = _mm256_loadu_ps((&raw const (*x[b]).scales).cast::<f32>().add(8 * half));
                        let sum = if half == 0 { &mut sums[a][b].0 } else { &mut sums[a][b].1 };
                        *sum = _mm256_fmadd_ps(dot, _mm256_mul_ps(x_scale, scale), *sum);
                    }
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn dot_index(self, keys: *const u8, q: *const i8, bias: i32) -> F {
        // SAFETY: the caller gives 512 readable bytes and 32 readable i8; `self` proves AVX2.
        unsafe {
            let mut sums = [_mm256_setzero_si256(); 2];
            // A pair is at most 2·24·12 = 576 and eight are added: no i16 overflows.
            for step in 0..8 {
                let four = _mm256_set1_epi32(q.add(4 * step).cast::<i32>().read_unaligned());
                for (half, sum) in sums.iter_mut().enumerate() {
                    let keys = _mm256_loadu_si256(keys.add(64 * step + 32 * half).cast());
                    *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(keys, four));
                }
            }
            let (one, bias) = (_mm256_set1_epi16(1), _mm256_set1_epi32(bias));
            F(
                _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_madd_epi16(sums[0], one), bias)),
                _mm256_cvtepi32_ps(_mm256_sub_epi32(_mm256_madd_epi16(sums[1], one), bias)),
            )
        }
    }
    #[inline(always)]
    fn prefetch(self, p: *const u8) {
        // SAFETY: a hint, which reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
    #[inline(always)]
    fn int8_products(self, rounds: usize) -> usize {
        const SUMS: usize = 6;
        let seeds: [i8; SUMS] = std::hint::black_box([1, 2, 3, 4, 5, 6]);
        // SAFETY: `self` proves AVX2.
        unsafe {
            let one = _mm256_set1_epi16(1);
            let b = seeds.map(|seed| _mm256_set1_epi8(seed));
            let (mut a, mut sums) = (b[0], [_mm256_setzero_si256(); SUMS]);
            for _ in 0..rounds {
                // Or the compiler would take the products, always the same, out of the loop.
                a = _mm256_add_epi8(a, b[1]);
                for i in 0..SUMS {
                    sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(_mm256_maddubs_epi16(a, b[i]), one));
                }
            }
            let mut all = [0i32; 8];
            for sum in sums {
                _mm256_storeu_si256(all.as_mut_ptr().cast(), sum);
                std::hint::black_box(all);
            }
        }
        rounds * SUMS * 64
    }
    #[inline(always)]
    fn ge(self, a: F, b: F) -> u32 {
        // SAFETY: `self` proves AVX.
        unsafe {
            let low = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(a.0, b.0)) as u32;
            low | (_mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(a.1, b.1)) as u32) << 8
        }
    }
}

/// Eight E4M3 as value · 2⁻¹²⁰.
#[inline(always)]
unsafe fn fp8_8(p: *const u8) -> __m256 {
    // SAFETY: called from `Avx2`'s methods only, with 8 readable bytes.
    unsafe {
        // s eeee mmm, sign-extended, shifted to where an f32 has them; of the sign's copies one stays.
        let wide = _mm256_slli_epi32::<20>(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p.cast())));
        _mm256_castsi256_ps(_mm256_and_si256(wide, _mm256_set1_epi32(0x87f0_0000_u32 as i32)))
    }
}

/// Eight bfloat16.
#[inline(always)]
unsafe fn bf16_8(p: *const u8) -> __m256 {
    // SAFETY: called from `Avx2`'s methods only, with 16 readable bytes.
    unsafe {
        let raw = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(raw))
    }
}

#[inline(always)]
unsafe fn round8(a: __m256) -> __m256 {
    // SAFETY: called from `Avx2`'s methods only.
    unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
}

#[inline(always)]
unsafe fn pow2_8(n: __m256) -> __m256 {
    // SAFETY: called from `Avx2`'s methods only.
    unsafe {
        let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
    }
}

#[inline(always)]
unsafe fn keep_ge8(x: __m256, bound: __m256, v: __m256) -> __m256 {
    // SAFETY: called from `Avx2`'s methods only.
    unsafe { _mm256_and_ps(_mm256_cmp_ps::<_CMP_GE_OQ>(x, bound), v) }
}

#[inline(always)]
unsafe fn round_bf16_8(x: __m256) -> __m256 {
    // SAFETY: called from `Avx2`'s methods only.
    unsafe {
        let (bits, upper) = (_mm256_castps_si256(x), _mm256_set1_epi32(0xffff_0000_u32 as i32));
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
        let nan = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
        let is_nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
        let r = _mm256_castsi256_ps(_mm256_and_si256(_mm256_blendv_epi8(rounded, nan, is_nan), upper));
        let size = _mm256_andnot_ps(_mm256_set1_ps(-0.0), r);
        _mm256_and_ps(_mm256_cmp_ps::<_CMP_NLT_UQ>(size, _mm256_set1_ps(BF16_LEAST)), r)
    }
}

/// 8 → 4 of two vectors: a's four, then b's.
#[inline(always)]
unsafe fn fold4(a: __m256, b: __m256) -> __m256 {
    // SAFETY: called from `Avx2`'s methods only.
    unsafe { _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b)) }
}

/// 4 → 2 → 1.
#[inline(always)]
pub(super) unsafe fn sum4(four: __m128) -> f32 {
    // SAFETY: SSE is part of x86-64.
    unsafe {
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}
