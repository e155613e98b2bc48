//! Plain Rust: what every machine can run, and what the other instruction sets must match.

use super::{FP4_BIAS, LANES, Simd};

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
    type W = [u8; 128];

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
    unsafe fn load_fp4(self, p: *const u8) -> [u8; 128] {
        // SAFETY: the caller gives 64 readable bytes.
        let raw = unsafe { p.cast::<[u8; 64]>().read() };
        let mut w = [0; 128];
        for (i, byte) in raw.into_iter().enumerate() {
            w[i] = (i32::from(FP4_DOUBLED[usize::from(byte & 15)]) + FP4_BIAS) as u8;
            w[64 + i] = (i32::from(FP4_DOUBLED[usize::from(byte >> 4)]) + FP4_BIAS) as u8;
        }
        w
    }
    #[inline(always)]
    unsafe fn dot_fp4(self, w: [u8; 128], x: *const i8, start: *const i32) -> F {
        // SAFETY: the caller gives 128 readable i8 and 16 readable i32.
        let (x, start) =
            unsafe { (x.cast::<[i8; 128]>().read_unaligned(), start.cast::<[i32; LANES]>().read_unaligned()) };
        std::array::from_fn(|lane| {
            let octet = (4 * lane..4 * lane + 4).chain(64 + 4 * lane..64 + 4 * lane + 4);
            (octet.map(|i| i32::from(w[i]) * i32::from(x[i])).sum::<i32>() + start[lane]) as f32
        })
    }
    #[inline(always)]
    unsafe fn scale_fp4(self, e: *const u8) -> F {
        // SAFETY: the caller gives 4 readable bytes.
        let e = unsafe { e.cast::<[u8; 4]>().read() };
        std::array::from_fn(|lane| f32::from_bits(u32::from(e[lane / 4]) << 23))
    }
    #[inline(always)]
    unsafe fn store_fp4(self, p: *mut u8, w: [u8; 128]) {
        // SAFETY: the caller gives 128 writable bytes.
        unsafe { p.cast::<[u8; 128]>().write(w) }
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
