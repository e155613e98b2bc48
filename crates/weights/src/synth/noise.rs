//! A strip of a tensor's rows as bytes, fast: normal noise from a table of quantiles, each format by a table of its own.
//!
//! A number is drawn as 16 random bits, which number a quantile of the normal distribution. What a quantile comes to in a format
//! under a scale is looked up; the largest of a group, which decides its scale, is found among the bits. FP8 and FP4 take
//! twelve of the bits, so that their tables stay in the nearest cache.

use std::collections::HashMap;

use fathom_kernels::formats::{to_bf16, to_e2m1, to_e4m3};
use fathom_kernels::math::ln;

use super::Random;
use super::tensors::{Tensor, Values};

/// Rows of a tensor, and of its scales where it has some.
pub(super) struct Strip {
    pub data: Vec<u8>,
    pub scales: Vec<u8>,
}

/// Makes strips. One for each thread.
pub(super) struct Noise {
    /// Quantile i + ½ of 65,536.
    quantiles: Vec<f32>,
    /// By largest code (448 or 6) and the deviation's bits.
    codes: HashMap<(u32, u32), Codes>,
    drawn: Vec<u16>,
}

/// Codes of the 4,096 quantiles under every scale that a group can have.
struct Codes {
    /// The exponent by the largest of a group, as `distance` has it, in sixteenths of 4,096.
    exponents: Vec<u8>,
    least: u8,
    /// For each exponent from the least on.
    tables: Vec<Box<[u8; 4096]>>,
}

impl Noise {
    pub fn new() -> Noise {
        Noise { quantiles: quantiles(), codes: HashMap::new(), drawn: Vec::new() }
    }

    /// Rows `first` and on of a tensor. They depend on the tensor, the rows and the seed.
    pub fn strip(&mut self, tensor: &Tensor, seed: u64, first: usize) -> Strip {
        let (rows, cols) = tensor.size();
        let rows = tensor.strip_rows().min(rows - first);
        let name = blake3::hash(format!("{seed} {first} {}", tensor.name).as_bytes());
        let mut random = Random::new(u64::from_le_bytes(*name.as_bytes().first_chunk().unwrap_or(&[0; 8])));
        match tensor.values {
            Values::Routes { experts } => plain(routes(rows, cols, experts, &mut random)),
            Values::Fp8 { deviation } => self.fp8(rows, cols, deviation, &mut random),
            Values::Fp4 { deviation } => self.fp4(rows, cols, deviation, &mut random),
            Values::Bf16 { mean, deviation } => {
                let of = |q: f32| to_bf16(mean + q * deviation).to_le_bytes();
                plain(self.draw(rows * cols, &mut random).flat_map(of).collect())
            }
            Values::F32 { deviation } => self.f32(rows * cols, &mut random, |q, _| q * deviation),
            Values::Scales => self.f32(rows * cols, &mut random, |q, _| 0.5 + 0.3 * q.abs()),
            Values::MixBase { hc } => {
                let favoured = |i: usize| i >= 2 * hc && (i - 2 * hc).is_multiple_of(hc + 1);
                self.f32(rows * cols, &mut random, |q, i| 0.3 * q + if favoured(i) { 2.0 } else { 0.0 })
            }
        }
    }

    /// Quantiles drawn.
    fn draw(&mut self, n: usize, random: &mut Random) -> impl Iterator<Item = f32> {
        bits(&mut self.drawn, n, random);
        self.drawn.iter().map(|&i| self.quantiles[usize::from(i)])
    }

    fn f32(&mut self, n: usize, random: &mut Random, of: impl Fn(f32, usize) -> f32) -> Strip {
        plain(self.draw(n, random).enumerate().flat_map(|(i, q)| of(q, i).to_le_bytes()).collect())
    }

    fn fp8(&mut self, rows: usize, cols: usize, deviation: f32, random: &mut Random) -> Strip {
        bits(&mut self.drawn, rows * cols, random);
        let codes = codes(&mut self.codes, &self.quantiles, 448.0, deviation);
        let mut largest = vec![0; cols.div_ceil(128)];
        for row in self.drawn.chunks_exact(cols) {
            for (largest, block) in largest.iter_mut().zip(row.chunks(128)) {
                *largest = block.iter().fold(*largest, |most, &i| most.max(distance(i)));
            }
        }
        let scales: Vec<u8> = largest.iter().map(|&most| codes.exponent(most)).collect();
        let mut data = Vec::with_capacity(rows * cols);
        for row in self.drawn.chunks_exact(cols) {
            for (&scale, block) in scales.iter().zip(row.chunks(128)) {
                let table = codes.table(scale);
                data.extend(block.iter().map(|&i| table[usize::from(i >> 4)]));
            }
        }
        Strip { data, scales }
    }

    fn fp4(&mut self, rows: usize, cols: usize, deviation: f32, random: &mut Random) -> Strip {
        bits(&mut self.drawn, rows * cols, random);
        let codes = codes(&mut self.codes, &self.quantiles, 6.0, deviation);
        let mut strip =
            Strip { data: Vec::with_capacity(rows * cols / 2), scales: Vec::with_capacity(rows * cols / 32) };
        for group in self.drawn.as_chunks::<32>().0 {
            let scale = codes.exponent(group.iter().fold(0, |most, &i| most.max(distance(i))));
            strip.scales.push(scale);
            let table = codes.table(scale);
            let code = |i: u16| table[usize::from(i >> 4)];
            strip.data.extend(group.as_chunks::<2>().0.iter().map(|&[low, high]| code(low) | code(high) << 4));
        }
        strip
    }
}

impl Codes {
    fn new(quantiles: &[f32], most: f32, deviation: f32) -> Codes {
        let upper = |i: usize| quantiles[16 * i + 8] * deviation;
        let value = |i: usize| if i < 2048 { -upper(4095 - i) } else { upper(i) };
        let exponents: Vec<u8> = (0..2048).map(|far| exponent(value(2048 + far).max(1e-6) / most)).collect();
        let (least, greatest) = (exponents[0], exponents[2047]);
        let encode = |x: f32| if most > 6.0 { to_e4m3(x) } else { to_e2m1(x) };
        let table = |e: u8| {
            let mut table = Box::new([0; 4096]);
            // What cannot be under this scale, because the scale would be another, is cut to what can.
            table.iter_mut().enumerate().for_each(|(i, code)| *code = encode((value(i) / power(e)).clamp(-most, most)));
            table
        };
        Codes { least, tables: (least..=greatest).map(table).collect(), exponents }
    }

    fn exponent(&self, largest: u16) -> u8 {
        self.exponents[usize::from(largest >> 4)]
    }

    fn table(&self, exponent: u8) -> &[u8; 4096] {
        &self.tables[usize::from(exponent - self.least)]
    }
}

/// The codes for a format's largest value and a deviation.
fn codes<'a>(known: &'a mut HashMap<(u32, u32), Codes>, quantiles: &[f32], most: f32, deviation: f32) -> &'a Codes {
    known.entry((most.to_bits(), deviation.to_bits())).or_insert_with(|| Codes::new(quantiles, most, deviation))
}

fn plain(data: Vec<u8>) -> Strip {
    Strip { data, scales: Vec::new() }
}

/// How far quantile `i` is from the middle, 0 to 32,767: the order of absolute values.
#[inline(always)]
fn distance(i: u16) -> u16 {
    if i & 0x8000 != 0 { i & 0x7fff } else { !i & 0x7fff }
}

/// `n` times 16 random bits.
fn bits(into: &mut Vec<u16>, n: usize, random: &mut Random) {
    into.resize(n.next_multiple_of(4), 0);
    for four in into.as_chunks_mut::<4>().0 {
        let bits = random.bits();
        *four = [bits as u16, (bits >> 16) as u16, (bits >> 32) as u16, (bits >> 48) as u16];
    }
    into.truncate(n);
}

/// For each row `k` of the experts, no two alike.
fn routes(rows: usize, k: usize, experts: usize, random: &mut Random) -> Vec<u8> {
    let mut order: Vec<usize> = (0..experts).collect();
    let mut table = Vec::with_capacity(8 * rows * k);
    for _ in 0..rows {
        for slot in 0..k {
            order.swap(slot, slot + random.below(experts - slot));
            table.extend((order[slot] as i64).to_le_bytes());
        }
    }
    table
}

/// The normal distribution's quantiles i + ½ of 65,536, symmetric (Acklam's approximation, 1e-9).
fn quantiles() -> Vec<f32> {
    let upper: Vec<f32> =
        (0..32_768).map(|i| -quantile((32_767 - i) as f64 / 65_536.0 + 0.5 / 65_536.0) as f32).collect();
    upper.iter().rev().map(|q| -q).chain(upper.iter().copied()).collect()
}

/// The value below which the share `p` of a normal distribution lies, for p ≤ ½.
fn quantile(p: f64) -> f64 {
    let horner = |at: f64, from: &[f64]| from.iter().fold(0.0, |sum, c| sum * at + c);
    if p < 0.024_25 {
        let q = (-2.0 * ln(p)).sqrt();
        let top = [
            -7.784_894_002_430_293e-3,
            -3.223_964_580_411_365e-1,
            -2.400_758_277_161_838,
            -2.549_732_539_343_734,
            4.374_664_141_464_968,
            2.938_163_982_698_783,
        ];
        let bottom =
            [7.784_695_709_041_462e-3, 3.224_671_290_700_398e-1, 2.445_134_137_142_996, 3.754_408_661_907_416, 1.0];
        return horner(q, &top) / horner(q, &bottom);
    }
    let q = p - 0.5;
    let r = q * q;
    let top = [
        -3.969_683_028_665_376e1,
        2.209_460_984_245_205e2,
        -2.759_285_104_469_687e2,
        1.383_577_518_672_69e2,
        -3.066_479_806_614_716e1,
        2.506_628_277_459_239,
    ];
    let bottom = [
        -5.447_609_879_822_406e1,
        1.615_858_368_580_409e2,
        -1.556_989_798_598_866e2,
        6.680_131_188_771_972e1,
        -1.328_068_155_288_572e1,
        1.0,
    ];
    horner(r, &top) * q / horner(r, &bottom)
}

/// The UE8M0 byte of the smallest power of two that is not below x.
fn exponent(x: f32) -> u8 {
    let bits = x.to_bits();
    ((bits >> 23) + u32::from(bits & 0x7f_ffff > 0)).clamp(1, 254) as u8
}

fn power(e: u8) -> f32 {
    f32::from_bits(u32::from(e) << 23)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synth::tensors::Tensor;

    #[test]
    fn quantiles_are_those_of_the_normal_distribution() {
        let q = quantiles();
        assert_eq!(q.len(), 65_536);
        assert!(q.windows(2).all(|w| w[0] < w[1]) && (0..65_536).all(|i| q[i] == -q[65_535 - i]));
        let square = q.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>() / 65_536.0;
        assert!((square - 1.0).abs() < 1e-3, "{square}");
        // Half of them within 0.67449, 95 % within 1.95996.
        assert!((q[49_152] - 0.674_49).abs() < 1e-4 && (q[63_897] - 1.959_96).abs() < 1e-3);
    }

    /// A group's scale is the least that holds its largest value, and a code is what its value comes to under it.
    #[test]
    fn scales_fit_their_groups() {
        let mut noise = Noise::new();
        let values = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        let tensor = Tensor { name: "w".into(), shape: vec![64, 64], values: Values::Fp4 { deviation: 0.125 } };
        let strip = noise.strip(&tensor, 1, 0);
        assert_eq!((strip.data.len(), strip.scales.len()), (64 * 32, 128));
        let mut squares = 0.0;
        for (group, &scale) in strip.data.chunks(16).zip(&strip.scales) {
            let codes: Vec<u8> = group.iter().flat_map(|b| [b & 15, b >> 4]).collect();
            let largest = codes.iter().map(|c| c & 7).max().unwrap_or(0);
            // With a scale of half the size the largest would not fit: it is more than 3, rounded.
            assert!(largest >= 5, "{largest}");
            let value = |c: &u8| f64::from(values[usize::from(c & 7)] * power(scale));
            squares += codes.iter().map(|c| value(c).powi(2)).sum::<f64>();
        }
        let deviation = (squares / 4096.0).sqrt();
        assert!((deviation / 0.125 - 1.0).abs() < 0.1, "{deviation}");

        let tensor = Tensor { name: "w".into(), shape: vec![200, 300], values: Values::Fp8 { deviation: 0.125 } };
        let (first, second) = (noise.strip(&tensor, 1, 0), noise.strip(&tensor, 1, 128));
        assert_eq!((first.data.len(), first.scales.len()), (128 * 300, 3));
        assert_eq!((second.data.len(), second.scales.len()), (72 * 300, 3));
        assert!(first.data.iter().all(|c| c & 0x7f != 0x7f), "no NaN");
    }
}
