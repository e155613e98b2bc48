use super::*;
use crate::ops::rows::encode_attention;
use crate::simd::Plain;
use crate::simd::tests::Random;

struct Decode<'a>(&'a [u8], RowShape);

impl Kernel for Decode<'_> {
    type Output = Vec<f32>;
    fn run<S: Simd>(self, s: S) -> Vec<f32> {
        let mut out = vec![0.0; self.1.width];
        // SAFETY: lengths are the shape's.
        unsafe { decode_attention(s, self.0.as_ptr(), self.1, out.as_mut_ptr()) };
        out
    }
}

/// V4.md's equations in f64: one row and head over its keys.
fn plain(q: &[f32], keys: &[Vec<f32>], sink: f32, angles: &[f32]) -> Vec<f64> {
    let d = q.len();
    let dot = |k: &[f32]| q.iter().zip(k).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>() / (d as f64).sqrt();
    let weights: Vec<f64> = keys.iter().map(|k| dot(k).exp()).collect();
    let sum: f64 = weights.iter().sum::<f64>() + f64::from(sink).exp();
    let mut o: Vec<f64> =
        (0..d).map(|i| keys.iter().zip(&weights).map(|(k, w)| w * f64::from(k[i])).sum::<f64>() / sum).collect();
    let first = d - angles.len();
    for (i, angle) in angles.chunks(2).enumerate() {
        let (x, y, c, s) = (o[first + 2 * i], o[first + 2 * i + 1], f64::from(angle[0]), f64::from(angle[1]));
        (o[first + 2 * i], o[first + 2 * i + 1]) = (x * c + y * s, y * c - x * s);
    }
    o
}

/// A random timeline, attended to in any cuts.
struct Case {
    heads: usize,
    row: RowShape,
    span: usize,
    /// 0: none, 4: selected, else all.
    ratio: usize,
    total: usize,
    q: Vec<f32>,
    sink: Vec<f32>,
    angles: Vec<f32>,
    rows: Vec<u8>,
    pages: Vec<Vec<u8>>,
    chosen: Vec<u32>,
    counts: Vec<u32>,
}

const PER_PAGE: usize = 24;
const KEEP: usize = 300;

impl Case {
    fn new(random: &mut Random, heads: usize, row: RowShape, span: usize, ratio: usize, total: usize) -> Self {
        let stored = |random: &mut Random| {
            let mut out = vec![0; row.bytes()];
            encode_attention(&random.floats(row.width), row, &mut out);
            out
        };
        let entries = total.checked_div(ratio).unwrap_or(0);
        let mut pages = vec![vec![0; 5 + PER_PAGE * row.bytes()]; entries / PER_PAGE + 1];
        for b in 0..entries {
            let out = stored(random);
            pages[b / PER_PAGE][5 + b % PER_PAGE * row.bytes()..][..row.bytes()].copy_from_slice(&out);
        }
        let (mut chosen, mut counts) = (vec![0; total * KEEP], vec![0; total]);
        for p in 0..total {
            let mut some: Vec<u32> = (0..(p as u32 + 1) / 4).filter(|_| random.byte() < 128).collect();
            some.truncate(KEEP);
            counts[p] = some.len() as u32;
            chosen[p * KEEP..][..some.len()].copy_from_slice(&some);
        }
        Case {
            heads,
            row,
            span,
            ratio,
            total,
            q: random.floats(total * heads * row.width).iter().map(|v| v * 2.0).collect(),
            sink: random.floats(heads),
            angles: (0..total * row.rope / 2).flat_map(|i| [(i as f32).cos(), (i as f32).sin()]).collect(),
            rows: (0..total).flat_map(|_| stored(random)).collect(),
            pages,
            chosen,
            counts,
        }
    }

    fn run(&self, isa: Isa, profile: Profile, threads: usize, cuts: &[usize]) -> Vec<f32> {
        let pool = Pool::new(threads).unwrap();
        let pages: Vec<&[u8]> = self.pages.iter().map(Vec::as_slice).collect();
        let stored = Stored { pages: &pages, offset: 5, per_page: PER_PAGE };
        let wide = self.heads * self.row.width;
        let mut out = vec![0.0; self.total * wide];
        let mut start = 0usize;
        for &len in cuts {
            let bytes = self.row.bytes();
            let mut ring = vec![0; self.span * bytes];
            for p in start.saturating_sub(self.span)..start {
                ring[p % self.span * bytes..][..bytes].copy_from_slice(&self.rows[p * bytes..][..bytes]);
            }
            let segment = Segment {
                heads: self.heads,
                row: self.row,
                span: self.span,
                sink: &self.sink,
                start,
                rows: &self.rows[start * bytes..(start + len) * bytes],
                ring: &ring,
                entries: match self.ratio {
                    0 => Entries::None,
                    4 => Entries::Selected {
                        stored,
                        entries: &self.chosen[start * KEEP..],
                        counts: &self.counts[start..],
                        keep: KEEP,
                    },
                    ratio => Entries::All { stored, ratio },
                },
            };
            let rows = start * wide..(start + len) * wide;
            let angles = &self.angles[start * self.row.rope..(start + len) * self.row.rope];
            let mut wait = vec![f32::NAN; waiting_of(&pool, &segment, len)];
            attend(isa, &pool, profile, segment, &self.q[rows.clone()], angles, &mut wait, &mut out[rows]);
            start += len;
        }
        out
    }

    fn plain(&self, p: usize, head: usize) -> Vec<f64> {
        let decode = |stored: &[u8]| Isa::Plain(Plain).run(Decode(stored, self.row));
        let bytes = self.row.bytes();
        let mut keys: Vec<Vec<f32>> =
            ((p + 1).saturating_sub(self.span)..=p).map(|t| decode(&self.rows[t * bytes..(t + 1) * bytes])).collect();
        let entry = |b: usize| decode(&self.pages[b / PER_PAGE][5 + b % PER_PAGE * bytes..][..bytes]);
        match self.ratio {
            0 => {}
            4 => keys.extend(self.chosen[p * KEEP..][..self.counts[p] as usize].iter().map(|&b| entry(b as usize))),
            ratio => keys.extend((0..(p + 1) / ratio).map(entry)),
        }
        let d = self.row.width;
        let angles = &self.angles[p * self.row.rope..(p + 1) * self.row.rope];
        plain(&self.q[(p * self.heads + head) * d..][..d], &keys, self.sink[head], angles)
    }
}

#[test]
fn is_the_formula_for_every_cut_and_everywhere() {
    let mut random = Random(12);
    for (heads, width, rope, span, ratio, total) in [
        (4, 192, 64, 32, 0, 100),
        (3, 80, 16, 8, 4, 300),
        (4, 128, 64, 32, 128, 700),
        (16, 512, 64, 128, 4, 200),
        (1, 64, 64, 128, 2, 150),
        // More than two parts, and a last one that some rows do not reach.
        (3, 128, 64, 16, 2, 1100),
        (2, 128, 64, 16, 4, 2300),
    ] {
        let case = Case::new(&mut random, heads, RowShape { width, rope }, span, ratio, total);
        for (profile, tolerance) in [(Profile::Exact, 3e-6), (Profile::Native, 0.01)] {
            let want = case.run(Isa::Plain(Plain), profile, 1, &[total]);
            for p in (0..total).step_by(7 + total / 40) {
                for head in 0..heads {
                    for (i, exact) in case.plain(p, head).into_iter().enumerate() {
                        let got = f64::from(want[(p * heads + head) * width + i]);
                        assert!((got - exact).abs() < tolerance, "position {p} head {head} dim {i}: {got} {exact}");
                    }
                }
            }
            for isa in Isa::available() {
                for (threads, cut) in [(1, 1), (2, 7), (3, 64), (8, total)] {
                    let mut cuts = vec![cut; total / cut];
                    cuts.push(total % cut);
                    cuts.retain(|&n| n > 0);
                    let got = case.run(isa, profile, threads, &cuts);
                    assert!(got == want, "{} {profile} ratio {ratio} cut {cut}", isa.name());
                }
            }
        }
    }
}

/// A key that is no number reaches the rows that see it and no others, whichever rows share a task with them.
#[test]
fn nan_reaches_only_those_who_see_it() {
    let row = RowShape { width: 128, rope: 64 };
    for bad in [20, 21] {
        let mut case = Case::new(&mut Random(13), 2, row, 16, 0, 40);
        let rope = bad * row.bytes() + row.bytes() - 128;
        case.rows[rope..rope + 2].copy_from_slice(&0x7fc0u16.to_le_bytes());
        for isa in Isa::available() {
            for cuts in [&[40][..], &[1; 40], &[22, 18]] {
                let out = case.run(isa, Profile::Native, 2, cuts);
                let nan = |row: usize| out[row * 256..(row + 1) * 256].iter().any(|v| v.is_nan());
                let rows: Vec<usize> = (0..40).filter(|&row| nan(row)).collect();
                assert_eq!(rows, (bad..bad + 16).collect::<Vec<_>>(), "{} {bad}", isa.name());
            }
        }
    }
}
