use super::*;
use crate::ops::rows::encode_index;
use crate::ops::rows::tests_support::decode_index;
use crate::simd::tests::Random;

/// V4.md's equations with a sort.
fn plain(shape: IndexShape, q: &[f32], weights: &[f32], angles: &[f32], keys: &[Vec<f32>], visible: usize) -> Vec<u32> {
    let IndexShape { heads, width, keep } = shape;
    let mut rounded = Vec::new();
    for head in 0..heads {
        let mut x = q[head * width..(head + 1) * width].to_vec();
        rotate(&mut x, angles);
        hadamard(&mut x);
        let mut stored = vec![0; index_row_bytes(width)];
        encode_index(&x, &mut stored);
        rounded.push(decode_index(&stored, width));
    }
    let scale = (1.0 / (width as f32).sqrt()) * (1.0 / (heads as f32).sqrt());
    let score = |b: usize| {
        let mut lanes = [0f32; 16];
        for head in 0..heads {
            let dot = rounded[head].chunks(32).zip(keys[b].chunks(32)).fold(0f32, |sum, (q, k)| {
                sum + q.iter().zip(k).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum::<f64>() as f32
            });
            lanes[head % 16] = (weights[head] * scale).mul_add(dot.max(0.0), lanes[head % 16]);
        }
        for half in [8, 4, 2, 1] {
            (0..half).for_each(|i| lanes[i] += lanes[i + half]);
        }
        lanes[0]
    };
    let scores: Vec<f32> = (0..visible).map(score).collect();
    let mut order: Vec<u32> = (0..visible as u32).collect();
    order.sort_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]).then(a.cmp(&b)));
    order.truncate(keep);
    order.sort_unstable();
    order
}

#[test]
fn is_a_full_sort_everywhere() {
    let mut random = Random(10);
    for (heads, width, keep, start, n) in
        [(8, 128, 16, 300, 5), (64, 128, 20, 0, 150), (2, 32, 3, 70, 40), (20, 64, 5, 900, 3), (3, 256, 4, 9, 9)]
    {
        let shape = IndexShape { heads, width, keep };
        let (q, mut weights) = (random.floats(n * heads * width), random.floats(n * heads));
        weights[0] = 0.0;
        let angles: Vec<f32> = (0..n * 16).flat_map(|i| [(i as f32).cos(), (i as f32).sin()]).collect();
        let row = index_row_bytes(width);
        let per_page = 32;
        let total = (start + n) / 4;
        let mut pages = vec![vec![0; 11 + per_page * row]; total / per_page + 1];
        let mut keys = Vec::new();
        for b in 0..total {
            let x = random.floats(width);
            let x = if b % 5 == 1 { vec![0.0; width] } else { x };
            let stored = &mut pages[b / per_page][11 + b % per_page * row..][..row];
            encode_index(&x, stored);
            keys.push(decode_index(stored, width));
        }
        let pages: Vec<&[u8]> = pages.iter().map(Vec::as_slice).collect();
        for isa in Isa::available() {
            for threads in [1, 3] {
                let (mut entries, mut counts) = (vec![0; n * keep], vec![0; n]);
                let keys_at = Keys { pages: &pages, offset: 11, per_page };
                let pool = Pool::new(threads).unwrap();
                select(isa, &pool, shape, &q, &weights, &angles, start, keys_at, &mut entries, &mut counts);
                for i in 0..n {
                    let visible = (start + i + 1) / 4;
                    let (q, w) = (&q[i * heads * width..][..heads * width], &weights[i * heads..][..heads]);
                    let want = plain(shape, q, w, &angles[i * 32..(i + 1) * 32], &keys, visible);
                    let got = &entries[i * keep..][..counts[i] as usize];
                    assert_eq!(got, want, "{} heads {heads} row {i}", isa.name());
                }
            }
        }
    }
}

/// One row with many entries is shared out over the threads; the choice is the same.
#[test]
fn sharing_out_changes_nothing() {
    let (mut random, shape) = (Random(11), IndexShape { heads: 4, width: 32, keep: 50 });
    let (q, weights) = (random.floats(4 * 32), random.floats(4));
    let (total, row) = (20_000, index_row_bytes(32));
    let mut page = vec![0; total * row];
    page.chunks_mut(row).for_each(|stored| encode_index(&random.floats(32), stored));
    let select = |threads| {
        let (mut entries, mut counts) = (vec![0; 50], vec![0]);
        let keys = Keys { pages: &[&page], offset: 0, per_page: total };
        let (pool, isa) = (Pool::new(threads).unwrap(), Isa::available()[0]);
        select(isa, &pool, shape, &q, &weights, &[1.0, 0.0], total * 4 - 1, keys, &mut entries, &mut counts);
        entries
    };
    let want = select(1);
    assert!(want.windows(2).all(|w| w[0] < w[1]));
    assert_eq!(select(2), want);
    assert_eq!(select(8), want);
}
