//! Every primitive of every instruction set this CPU has, against the plain one.

use super::*;

/// A small deterministic generator for tests.
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    /// Roughly normal.
    pub(crate) fn normal(&mut self) -> f32 {
        (0..6).map(|_| (self.next() >> 40) as f32 / (1 << 24) as f32 - 0.5).sum::<f32>() * 1.4
    }
    pub(crate) fn byte(&mut self) -> u8 {
        self.next() as u8
    }
    pub(crate) fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.normal()).collect()
    }
    pub(crate) fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.byte()).collect()
    }
}

/// The results of all primitives on one set of inputs, as bits.
struct All<'a> {
    a: &'a [f32],
    b: &'a [f32],
    c: &'a [f32],
    bytes: &'a [u8],
    q: &'a [i8],
    bias: i32,
    codes: &'a [u8],
    exponents: &'a [u8],
    blocks: &'a [Int8Block; 3],
}

impl Kernel for All<'_> {
    type Output = Vec<u32>;
    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<u32> {
        let mut out = Vec::new();
        let mut put = |v: S::F| {
            let mut lanes = [0.0; LANES];
            // SAFETY: 16 writable f32.
            unsafe { s.store(lanes.as_mut_ptr(), v) };
            out.extend(lanes.map(f32::to_bits));
        };
        // SAFETY: the slices are as long as the primitives need (see `primitives_match_plain`).
        unsafe {
            let (a, b, c) = (s.load(self.a.as_ptr()), s.load(self.b.as_ptr()), s.load(self.c.as_ptr()));
            put(s.splat(self.a[3]));
            put(s.add(a, b));
            put(s.sub(a, b));
            put(s.mul(a, b));
            put(s.div(a, b));
            put(s.fma(a, b, c));
            put(s.max(a, b));
            put(s.min(a, b));
            put(s.round(s.mul(a, s.splat(8.0))));
            put(s.pow2(s.round(s.mul(a, s.splat(20.0)))));
            put(s.keep_ge(a, b, c));
            put(s.round_bf16(a));
            put(s.round_pair(a, b));
            put(s.dot_pair(s.round_pair(a, b), s.round_pair(b, c), a));
            put(s.splat(s.sum(a)));
            s.sum4([a, b, c, s.add(a, b)]).into_iter().for_each(|sum| put(s.splat(sum)));
            [a, b, c, s.add(a, b)].into_iter().for_each(|v| put(s.splat(s.sum(v))));
            put(s.load_bf16(self.bytes.as_ptr().add(1)));
            put(s.load_fp8(self.bytes.as_ptr().add(3)));
            let mut weights = [[0; 512]; 2];
            s.spread_fp4(self.codes.as_ptr().add(1), weights[0].as_mut_ptr());
            s.spread_fp4(self.codes.as_ptr().add(2), weights[1].as_mut_ptr());
            let mut sums = [[a, b, c], [c, b, a]];
            let w = [weights[0].as_ptr(), weights[1].as_ptr()];
            let e = [self.exponents.as_ptr(), self.exponents.as_ptr().add(1)];
            s.dot_fp4(
                w,
                e,
                [&raw const self.blocks[0], &raw const self.blocks[1], &raw const self.blocks[2]],
                &mut sums,
            );
            sums.into_iter().flatten().for_each(&mut put);
            put(s.dot_index(self.bytes.as_ptr().add(96), self.q.as_ptr().add(1), self.bias));
            put(s.splat(s.ge(a, b) as f32));
        }
        out
    }
}

#[test]
fn primitives_match_plain() {
    let mut random = Random(1);
    for isa in Isa::available() {
        println!("simd: {} run", isa.name());
    }
    for missing in Isa::missing() {
        println!("simd: {missing} skipped, this CPU lacks it");
    }
    for round in 0..300 {
        let (a, mut b, c) = (random.floats(16), random.floats(16), random.floats(16));
        b[0] = a[0];
        let mut bytes = random.bytes(64 + 16);
        bytes[1..33].iter_mut().skip(1).step_by(2).for_each(|high| *high &= 0xBF); // no infinities
        bytes.resize(96, 0);
        bytes.extend(
            (0..512).map(|_| [12, 13, 14, 15, 16, 18, 20, 24, 11, 10, 9, 8, 6, 4, 0][random.byte() as usize % 15]),
        );
        let q: Vec<i8> = (0..33).map(|_| (i32::from(random.byte()) % 25 - 12) as i8).collect();
        let bias = i32::from(random.byte()) * 37 - 4000;
        let blocks: [Int8Block; 3] = std::array::from_fn(|_| Int8Block {
            // The largest of all, in one round: nothing inside may overflow.
            integers: std::array::from_fn(|_| {
                std::array::from_fn(|_| if round == 0 { 127 } else { (random.byte() as i8).max(-127) })
            }),
            start: std::array::from_fn(|_| i32::from(random.byte()) * 37 - 4000),
            scales: random.floats(LANES).try_into().expect("sixteen"),
        });
        let codes = if round == 0 { vec![0x77; 258] } else { random.bytes(258) };
        let exponents: Vec<u8> = (0..17).map(|_| 100 + random.byte() % 50).collect();
        let (bytes, q, codes, exponents) = (&bytes, &q, &codes, &exponents);
        let run = |isa: Isa| isa.run(All { a: &a, b: &b, c: &c, bytes, q, bias, codes, exponents, blocks: &blocks });
        let want = run(Isa::Plain(Plain));
        for isa in Isa::available() {
            assert_eq!(run(isa), want, "{} in round {round}", isa.name());
        }
    }
}

/// Every E4M3 and E2M1 code against its definition.
#[test]
fn codes_are_what_the_formats_say() {
    for code in 0..=255u8 {
        // SAFETY: 16 readable bytes.
        let got = unsafe { Plain.load_fp8([code; 16].as_ptr()) }[0] * (-120f32).exp2().recip();
        let (e, m) = (i32::from(code >> 3 & 15), f32::from(code & 7));
        let value = if e == 0 { m / 512.0 } else { (1.0 + m / 8.0) * (e as f32 - 7.0).exp2() };
        assert_eq!(got, if code & 0x80 == 0 { value } else { -value }, "E4M3 {code:#x}");
    }
    let e2m1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    for code in 0..16u8 {
        let mut w = [0; 512];
        // SAFETY: 256 readable and 512 writable bytes.
        unsafe { Plain.spread_fp4([code; 256].as_ptr(), w.as_mut_ptr()) };
        let value = f32::from(i16::from(w[0]) - 12) / 2.0;
        assert_eq!(value, if code & 8 == 0 { e2m1[code as usize] } else { -e2m1[code as usize & 7] });
    }
}

/// Rounding to bfloat16 at its edges: ties, zero, what is too small, the largest numbers, infinity, NaN.
#[test]
fn rounds_to_bf16() {
    struct Round(f32);
    impl Kernel for Round {
        type Output = [f32; LANES];
        #[inline(always)]
        fn run<S: Simd>(self, s: S) -> [f32; LANES] {
            let mut out = [0.0; LANES];
            // SAFETY: sixteen f32.
            unsafe { s.store(out.as_mut_ptr(), s.round_bf16(s.splat(self.0))) };
            out
        }
    }
    let eps = 2f32.powi(-8);
    for (x, want) in [
        (1.0 + eps, 1.0),
        (1.0 + 3.0 * eps, 1.0 + 4.0 * eps),
        (1.0 + eps + f32::EPSILON, 1.0 + 2.0 * eps),
        (0.0, 0.0),
        (2f32.powi(-70), 2f32.powi(-70)),
        (2f32.powi(-70) * (1.0 - f32::EPSILON), 2f32.powi(-70)),
        (2f32.powi(-70) * 0.996, 0.0),
        (f32::MIN_POSITIVE / 4.0, 0.0),
        (f32::MAX, f32::INFINITY),
        (f32::INFINITY, f32::INFINITY),
        (f32::NAN, f32::NAN),
        (f32::from_bits(0x7fff_ffff), f32::NAN),
        (f32::from_bits(0x7f80_0001), f32::NAN),
    ] {
        for isa in Isa::available() {
            for (x, want) in [(x, want), (-x, -want)] {
                let got = isa.run(Round(x))[5];
                assert!(got == want || (got.is_nan() && want.is_nan()), "{} {x:e} {got:e} {want:e}", isa.name());
            }
        }
    }
}
