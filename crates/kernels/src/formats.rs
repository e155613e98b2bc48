//! Single values to the checkpoint's number formats.

/// |x| ≤ 448 to E4M3, nearest, ties to even.
pub fn to_e4m3(x: f32) -> u8 {
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    let a = x.abs();
    let code = if a < 1.0 / 64.0 {
        (a * 512.0).round_ties_even() as u32
    } else {
        let bits = a.to_bits();
        (((bits + 0x7_ffff + (bits >> 20 & 1)) >> 20) - (120 << 3)).min(0x7e)
    };
    sign | code as u8
}

/// |x| ≤ 6 to E2M1, nearest, ties to the even code.
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
pub fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() { (bits >> 16) as u16 | 0x40 } else { ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16 }
}
