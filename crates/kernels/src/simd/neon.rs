//! NEON: four registers of four lanes. Part of every 64-bit Arm CPU.

use std::arch::aarch64::*;

use super::{BF16_LEAST, Int8Block, Kernel, Simd};

/// NEON, which every aarch64 target of ours has.
#[derive(Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    pub(crate) fn new() -> Option<Self> {
        Some(Neon(()))
    }

    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }
}

type F = [float32x4_t; 4];

/// Biased doubled E2M1 values.
const FP4_BIASED: [u8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];

macro_rules! lanes {
    ($($name:ident($($arg:ident),+) = $op:expr;)+) => { $(
        #[inline(always)]
        fn $name(self, $($arg: F),+) -> F {
            // SAFETY: NEON is part of the target.
            unsafe { [$op($($arg[0]),+), $op($($arg[1]),+), $op($($arg[2]),+), $op($($arg[3]),+)] }
        }
    )+ };
}

impl Simd for Neon {
    const WIDE: bool = false;
    type F = F;

    lanes! {
        add(a, b) = vaddq_f32;
        sub(a, b) = vsubq_f32;
        mul(a, b) = vmulq_f32;
        div(a, b) = vdivq_f32;
        fma(a, b, c) = fma4;
        max(a, b) = max4;
        min(a, b) = min4;
        round(a) = vrndnq_f32;
        pow2(n) = pow2_4;
        keep_ge(x, bound, v) = keep_ge4;
        round_bf16(x) = round_bf16_4;
    }

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        // SAFETY: NEON is part of the target.
        unsafe { [vdupq_n_f32(x); 4] }
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> F {
        // SAFETY: the caller gives 16 readable f32; bytes may lie anywhere.
        unsafe { [load4(p), load4(p.add(4)), load4(p.add(8)), load4(p.add(12))] }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: F) {
        // SAFETY: the caller gives 16 writable f32; bytes may lie anywhere.
        unsafe {
            for (i, v) in v.into_iter().enumerate() {
                vst1q_u8(p.add(4 * i).cast(), vreinterpretq_u8_f32(v));
            }
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u8) -> F {
        // SAFETY: the caller gives 32 readable bytes.
        unsafe {
            let (a, b) = (vreinterpretq_u16_u8(vld1q_u8(p)), vreinterpretq_u16_u8(vld1q_u8(p.add(16))));
            [
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(a))),
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_high_u16(a))),
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(b))),
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_high_u16(b))),
            ]
        }
    }
    #[inline(always)]
    unsafe fn load_fp8(self, p: *const u8) -> F {
        // SAFETY: the caller gives 16 readable bytes.
        unsafe {
            let raw = vld1q_u8(p);
            let (low, high) = (vmovl_u8(vget_low_u8(raw)), vmovl_u8(vget_high_u8(raw)));
            [
                fp8_4(vmovl_u16(vget_low_u16(low))),
                fp8_4(vmovl_u16(vget_high_u16(low))),
                fp8_4(vmovl_u16(vget_low_u16(high))),
                fp8_4(vmovl_u16(vget_high_u16(high))),
            ]
        }
    }
    #[inline(always)]
    fn sum(self, v: F) -> f32 {
        // SAFETY: NEON is part of the target.
        unsafe {
            let four = vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3]));
            let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
        }
    }
    #[inline(always)]
    unsafe fn spread_fp4(self, p: *const u8, out: *mut u8) {
        // SAFETY: the caller gives 256 readable and 512 writable bytes.
        unsafe {
            let (table, low) = (vld1q_u8(FP4_BIASED.as_ptr()), vdupq_n_u8(15));
            for quarter in 0..4 {
                // Groups quarter, quarter + 4, … : their first 32 bits, then their next, and so on.
                let mut z = [vdupq_n_u32(0); 4];
                for (i, z) in z.iter_mut().enumerate() {
                    *z = vreinterpretq_u32_u8(vld1q_u8(p.add(64 * i + 16 * quarter)));
                }
                let (a, b) = (vzip1q_u32(z[0], z[2]), vzip2q_u32(z[0], z[2]));
                let (c, d) = (vzip1q_u32(z[1], z[3]), vzip2q_u32(z[1], z[3]));
                let parts = [vzip1q_u32(a, c), vzip2q_u32(a, c), vzip1q_u32(b, d), vzip2q_u32(b, d)];
                for (t, part) in parts.into_iter().enumerate() {
                    let codes = vreinterpretq_u8_u32(part);
                    let at = out.add(128 * t + 16 * quarter);
                    vst1q_u8(at, vqtbl1q_u8(table, vandq_u8(codes, low)));
                    vst1q_u8(at.add(64), vqtbl1q_u8(table, vshrq_n_u8::<4>(codes)));
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
        // SAFETY: the caller gives 512 bytes of weights, 16 exponents and a block.
        unsafe {
            for quarter in 0..4 {
                for a in 0..R {
                    let mut scale = [0f32; 4];
                    for (i, scale) in scale.iter_mut().enumerate() {
                        *scale = f32::from_bits(u32::from(*exponents[a].add(4 * i + quarter)) << 23);
                    }
                    let scale = vld1q_f32(scale.as_ptr());
                    for b in 0..N {
                        let mut dot = load_i32((&raw const (*x[b]).start).cast::<i32>().add(4 * quarter));
                        for steps in [0, 4] {
                            // A product is at most 24·127 = 3,048 and eight are added: no i16 overflows.
                            let (mut low, mut high) = (vdupq_n_s16(0), vdupq_n_s16(0));
                            for step in steps..steps + 4 {
                                let at = 64 * step + 16 * quarter;
                                let w = vreinterpretq_s8_u8(vld1q_u8(w[a].add(at)));
                                let x = vld1q_s8((&raw const (*x[b]).integers).cast::<i8>().add(at));
                                low = vmlal_s8(low, vget_low_s8(w), vget_low_s8(x));
                                high = vmlal_s8(high, vget_high_s8(w), vget_high_s8(x));
                            }
                            dot = vaddq_s32(dot, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
                        }
                        let x_scale = vld1q_f32((&raw const (*x[b]).scales).cast::<f32>().add(4 * quarter));
                        let sum = &mut sums[a][b][quarter];
                        *sum = vfmaq_f32(*sum, vcvtq_f32_s32(dot), vmulq_f32(x_scale, scale));
                    }
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn dot_index(self, keys: *const u8, q: *const i8, bias: i32) -> F {
        // SAFETY: the caller gives 512 readable bytes and 32 readable i8.
        unsafe {
            // A product is at most 24·12 = 288 and eight are added: no i16 overflows.
            let mut sums = [[vdupq_n_s16(0); 2]; 4];
            for step in 0..8 {
                let four = vreinterpretq_s8_s32(vdupq_n_s32(q.add(4 * step).cast::<i32>().read_unaligned()));
                for (i, sum) in sums.iter_mut().enumerate() {
                    let keys = vreinterpretq_s8_u8(vld1q_u8(keys.add(64 * step + 16 * i)));
                    sum[0] = vmlal_s8(sum[0], vget_low_s8(four), vget_low_s8(keys));
                    sum[1] = vmlal_s8(sum[1], vget_high_s8(four), vget_high_s8(keys));
                }
            }
            let mut out = [vdupq_n_f32(0.0); 4];
            for (out, sum) in out.iter_mut().zip(sums) {
                let keys = vpaddq_s32(vpaddlq_s16(sum[0]), vpaddlq_s16(sum[1]));
                *out = vcvtq_f32_s32(vsubq_s32(keys, vdupq_n_s32(bias)));
            }
            out
        }
    }
    #[inline(always)]
    fn ge(self, a: F, b: F) -> u32 {
        let mut bits = 0;
        // SAFETY: NEON is part of the target.
        unsafe {
            const PLACE: [u32; 4] = [1, 2, 4, 8];
            let place = vreinterpretq_u32_u8(vld1q_u8(PLACE.as_ptr().cast()));
            for i in 0..4 {
                bits |= vaddvq_u32(vandq_u32(vcgeq_f32(a[i], b[i]), place)) << (4 * i);
            }
        }
        bits
    }
}

#[inline(always)]
unsafe fn load4(p: *const f32) -> float32x4_t {
    // SAFETY: the caller gives 4 readable f32; loading bytes asks for no alignment.
    unsafe { vreinterpretq_f32_u8(vld1q_u8(p.cast())) }
}

#[inline(always)]
unsafe fn load_i32(p: *const i32) -> int32x4_t {
    // SAFETY: the caller gives 4 readable i32; loading bytes asks for no alignment.
    unsafe { vreinterpretq_s32_u8(vld1q_u8(p.cast())) }
}

/// Four E4M3 codes as value · 2⁻¹²⁰: the seven low bits moved up by 20, subnormals included.
#[inline(always)]
unsafe fn fp8_4(code: uint32x4_t) -> float32x4_t {
    // SAFETY: NEON is part of the target.
    unsafe {
        let sign = vshlq_n_u32::<24>(vandq_u32(code, vdupq_n_u32(0x80)));
        let magnitude = vshlq_n_u32::<20>(vandq_u32(code, vdupq_n_u32(0x7f)));
        vreinterpretq_f32_u32(vorrq_u32(sign, magnitude))
    }
}

#[inline(always)]
unsafe fn fma4(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
    // SAFETY: NEON is part of the target.
    unsafe { vfmaq_f32(c, a, b) }
}

/// Not `vmaxq_f32`: that one treats NaN and −0 in its own way.
#[inline(always)]
unsafe fn max4(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: NEON is part of the target.
    unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }
}

#[inline(always)]
unsafe fn min4(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: NEON is part of the target.
    unsafe { vbslq_f32(vcltq_f32(a, b), a, b) }
}

#[inline(always)]
unsafe fn pow2_4(n: float32x4_t) -> float32x4_t {
    // SAFETY: NEON is part of the target.
    unsafe { vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)))) }
}

#[inline(always)]
unsafe fn keep_ge4(x: float32x4_t, bound: float32x4_t, v: float32x4_t) -> float32x4_t {
    // SAFETY: NEON is part of the target.
    unsafe { vreinterpretq_f32_u32(vandq_u32(vcgeq_f32(x, bound), vreinterpretq_u32_f32(v))) }
}

#[inline(always)]
unsafe fn round_bf16_4(x: float32x4_t) -> float32x4_t {
    // SAFETY: NEON is part of the target.
    unsafe {
        let bits = vreinterpretq_u32_f32(x);
        let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
        let rounded = vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), odd);
        let nan = vorrq_u32(bits, vdupq_n_u32(0x40_0000));
        let r = vandq_u32(vbslq_u32(vceqq_f32(x, x), rounded, nan), vdupq_n_u32(0xffff_0000));
        let small = vcltq_f32(vabsq_f32(vreinterpretq_f32_u32(r)), vdupq_n_f32(BF16_LEAST));
        vreinterpretq_f32_u32(vbicq_u32(r, small))
    }
}
