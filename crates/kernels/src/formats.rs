//! Single values to the checkpoint's number formats.

/// Added to |x| ≤ 2²², this leaves the nearest integer, ties to even, in the low bits as two's complement.
pub(crate) const ROUND: f32 = 12_582_912.0;

/// |x| ≤ 448 to E4M3, nearest, ties to even.
#[inline(always)]
pub fn to_e4m3(x: f32) -> u8 {
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    let a = x.abs();
    let bits = a.to_bits();
    // Both ways are computed and one is kept, so that compilers can do many at once.
    let small = (a * 512.0 + ROUND).to_bits();
    let normal = ((bits.wrapping_add(0x7_ffff + (bits >> 20 & 1))) >> 20).wrapping_sub(120 << 3).min(0x7e);
    sign | if a < 1.0 / 64.0 { small as u8 } else { normal as u8 }
}

/// |x| ≤ 6 to E2M1, nearest, ties to the even code.
#[inline(always)]
pub fn to_e2m1(x: f32) -> u8 {
    let a = x.abs();
    let code = u8::from(a > 0.25)
        + u8::from(a >= 0.75)
        + u8::from(a > 1.25)
        + u8::from(a >= 1.75)
        + u8::from(a > 2.5)
        + u8::from(a >= 3.5)
        + u8::from(a > 5.0);
    code | if x.is_sign_negative() { 8 } else { 0 }
}

/// To bfloat16, nearest even; NaN stays NaN.
#[inline(always)]
pub fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() { (bits >> 16) as u16 | 0x40 } else { ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16 }
}
