//! Plain Rust: what every machine can run, and what the other instruction sets must match.

use super::{BF16_LEAST, FP4_BIAS, Int8Block, LANES, Simd, lane_of_group};
use crate::formats::to_bf16;

/// No instruction set in particular.
#[derive(Clone, Copy)]
pub(crate) struct Plain;

type F = [f32; LANES];

/// E2M1 codes as doubled integers.
const FP4_DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

#[inline(always)]
fn zip(a: F, b: F, f: impl Fn(f32, f32) -> f32) -> F {
    std::array::from_fn(|i| f(a[i], b[i]))
}

/// An E4M3 byte as value · 2⁻¹²⁰.
#[inline(always)]
fn fp8(byte: u8) -> f32 {
    f32::from_bits(u32::from(byte & 0x80) << 24 | u32::from(byte & 0x7f) << 20)
}

impl Simd for Plain {
    const WIDE: bool = false;
    type F = F;

    #[inline(always)]
    fn splat(self, x: f32) -> F {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(self, p: *const f32) -> F {
        // SAFETY: the caller gives 16 readable f32 at any alignment.
        unsafe { p.cast::<F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32, v: F) {
        // SAFETY: the caller gives 16 writable f32 at any alignment.
        unsafe { p.cast::<F>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(self, p: *const u8) -> F {
        // SAFETY: the caller gives 32 readable bytes.
        let raw = unsafe { p.cast::<[[u8; 2]; LANES]>().read() };
        raw.map(|b| f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16))
    }
    #[inline(always)]
    unsafe fn load_fp8(self, p: *const u8) -> F {
        // SAFETY: the caller gives 16 readable bytes.
        unsafe { p.cast::<[u8; LANES]>().read() }.map(fp8)
    }
    #[inline(always)]
    fn add(self, a: F, b: F) -> F {
        zip(a, b, |x, y| x + y)
    }
    #[inline(always)]
    fn sub(self, a: F, b: F) -> F {
        zip(a, b, |x, y| x - y)
    }
    #[inline(always)]
    fn mul(self, a: F, b: F) -> F {
        zip(a, b, |x, y| x * y)
    }
    #[inline(always)]
    fn div(self, a: F, b: F) -> F {
        zip(a, b, |x, y| x / y)
    }
    #[inline(always)]
    fn fma(self, a: F, b: F, c: F) -> F {
        std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn max(self, a: F, b: F) -> F {
        zip(a, b, |x, y| if x > y { x } else { y })
    }
    #[inline(always)]
    fn min(self, a: F, b: F) -> F {
        zip(a, b, |x, y| if x < y { x } else { y })
    }
    #[inline(always)]
    fn round(self, a: F) -> F {
        a.map(f32::round_ties_even)
    }
    #[inline(always)]
    fn pow2(self, n: F) -> F {
        n.map(|n| f32::from_bits(((n as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    fn keep_ge(self, x: F, bound: F, v: F) -> F {
        std::array::from_fn(|i| if x[i] >= bound[i] { v[i] } else { 0.0 })
    }
    #[inline(always)]
    fn sum(self, v: F) -> f32 {
        let mut v = v;
        for width in [8, 4, 2, 1] {
            for i in 0..width {
                v[i] += v[i + width];
            }
        }
        v[0]
    }
    #[inline(always)]
    fn round_bf16(self, x: F) -> F {
        x.map(|x| {
            let rounded = f32::from_bits(u32::from(to_bf16(x)) << 16);
            if rounded.abs() < BF16_LEAST { 0.0 } else { rounded }
        })
    }
    #[inline(always)]
    unsafe fn spread_fp4(self, p: *const u8, out: *mut u8) {
        // SAFETY: the caller gives 256 readable and 512 writable bytes.
        let (codes, out) = unsafe { (&*p.cast::<[[u8; 16]; LANES]>(), &mut *out.cast::<[[u8; 64]; 8]>()) };
        for (group, codes) in codes.iter().enumerate() {
            for k in 0..32 {
                let code = codes[k / 2] >> (4 * (k % 2)) & 15;
                let at = 4 * lane_of_group(group) + k % 8 / 2;
                out[k / 8 * 2 + k % 2][at] = (i32::from(FP4_DOUBLED[usize::from(code)]) + FP4_BIAS) as u8;
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
        for a in 0..R {
            // SAFETY: the caller gives 512 bytes of weights, 16 exponents and a block.
            let (w, e) = unsafe { (&*w[a].cast::<[[u8; 64]; 8]>(), &*exponents[a].cast::<[u8; LANES]>()) };
            for b in 0..N {
                // SAFETY: as above.
                let x = unsafe { &*x[b] };
                for group in 0..LANES {
                    let lane = lane_of_group(group);
                    let dot: i32 = (0..32)
                        .map(|k| (k / 4, 4 * lane + k % 4))
                        .map(|(step, i)| i32::from(w[step][i]) * i32::from(x.integers[step][i]))
                        .sum();
                    let scale = x.scales[lane] * f32::from_bits(u32::from(e[group]) << 23);
                    sums[a][b][lane] = ((dot + x.start[lane]) as f32).mul_add(scale, sums[a][b][lane]);
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn dot_index(self, keys: *const u8, q: *const i8, bias: i32) -> F {
        // SAFETY: the caller gives 512 readable bytes and 32 readable i8.
        let (keys, q) = unsafe { (&*keys.cast::<[[[u8; 4]; LANES]; 8]>(), &*q.cast::<[i8; 32]>()) };
        std::array::from_fn(|e| {
            let dot: i32 = (0..32).map(|k| i32::from(keys[k / 4][e][k % 4]) * i32::from(q[k])).sum();
            (dot - bias) as f32
        })
    }
    #[inline(always)]
    fn ge(self, a: F, b: F) -> u32 {
        (0..LANES).map(|i| u32::from(a[i] >= b[i]) << i).sum()
    }
}
