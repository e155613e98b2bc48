//! Weights of all tokens of a vocabulary, by id: what is kept of them, and a draw.

/// Weights whose sums are taken together.
const BLOCK: usize = 512;
/// Bits of a weight that do not say which bucket it goes to: the exponent and three bits more do.
const BELOW: u32 = 20;

/// The largest of some values; −∞ if there are none.
pub(super) fn largest(values: &[f32]) -> f32 {
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    // Sixteen by sixteen, which the compiler makes vectors of.
    let (blocks, rest) = values.as_chunks::<16>();
    let mut best = [f32::NEG_INFINITY; 16];
    blocks.iter().for_each(|block| best.iter_mut().zip(block).for_each(|(best, &v)| *best = larger(*best, v)));
    best.into_iter().chain(rest.iter().copied()).fold(f32::NEG_INFINITY, larger)
}

/// Leaves the `n` largest values, of equal ones the first, and makes the others −∞.
pub(super) fn keep_largest(values: &mut [f32], n: usize) {
    if n >= values.len() {
        return;
    }
    let mut all = values.to_vec();
    let (above, &mut least, _) = all.select_nth_unstable_by(n.max(1) - 1, |a, b| b.total_cmp(a));
    let mut equals = n - above.iter().filter(|&&v| v > least).count();
    for v in values {
        let stays = *v > least || *v == least && equals > 0;
        equals -= usize::from(stays && *v == least);
        *v = if stays { *v } else { f32::NEG_INFINITY };
    }
}

/// Leaves the largest weights, as few as have `part` of all together, of equal ones the first, and makes the others 0. A weight is
/// at most 1.
pub(super) fn keep_likeliest(weights: &mut [f32], part: f64) {
    let bucket = |w: f32| (w.to_bits() >> BELOW) as usize;
    let mut sums = vec![0.0f64; bucket(1.0) + 1];
    weights.iter().for_each(|&w| sums[bucket(w)] += f64::from(w));
    let target = sums.iter().sum::<f64>() * part;
    // The bucket in which the target is reached, and what is above it.
    let (mut last, mut above) = (sums.len() - 1, 0.0);
    while last > 0 && above + sums[last] < target {
        above += sums[last];
        last -= 1;
    }
    let mut inside: Vec<usize> = (0..weights.len()).filter(|&id| bucket(weights[id]) == last).collect();
    inside.sort_unstable_by(|&a, &b| weights[b].total_cmp(&weights[a]).then(a.cmp(&b)));
    let enough = inside.iter().position(|&id| {
        above += f64::from(weights[id]);
        above >= target
    });
    let gone: Vec<usize> = inside.split_off(enough.map_or(inside.len(), |at| at + 1));
    gone.into_iter().for_each(|id| weights[id] = 0.0);
    weights.iter_mut().filter(|w| bucket(**w) < last).for_each(|w| *w = 0.0);
}

/// Their sum, and the sums of blocks of them.
pub(super) fn sum(weights: &[f32], blocks: &mut Vec<f64>) -> f64 {
    blocks.clear();
    blocks.extend(weights.chunks(BLOCK).map(|block| {
        let (eights, rest) = block.as_chunks::<8>();
        let mut sums = [0.0f64; 8];
        eights.iter().for_each(|eight| sums.iter_mut().zip(eight).for_each(|(sum, &w)| *sum += f64::from(w)));
        sums.into_iter().chain(rest.iter().map(|&w| f64::from(w))).sum::<f64>()
    }));
    blocks.iter().sum()
}

/// The token at which the weights up to it exceed `at`; `blocks` are the sums of [`sum`]. None where no weight is above 0.
pub(super) fn draw(weights: &[f32], blocks: &[f64], at: f64) -> Option<usize> {
    let mut left = at;
    let mut last = None;
    for (block, &total) in weights.chunks(BLOCK).enumerate().map(|(i, block)| ((i * BLOCK, block), &blocks[i])) {
        if total == 0.0 {
            continue;
        }
        // Rounding may leave nothing after the last: then it is the last that has a weight.
        last = Some(block);
        if left < total {
            break;
        }
        left -= total;
    }
    let (first, block) = last?;
    let mut chosen = None;
    for (i, &w) in block.iter().enumerate().filter(|(_, w)| **w > 0.0) {
        chosen = Some(first + i);
        left -= f64::from(w);
        if left < 0.0 {
            break;
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_kept_is_what_sorting_keeps(
            values in prop::collection::vec((-30i8..30).prop_map(|v| f32::from(v) * 0.25), 1..700), n in 0usize..800, part in 0.0..=1.0,
        ) {
            let mut order: Vec<usize> = (0..values.len()).collect();
            order.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
            prop_assert_eq!(largest(&values), values[order[0]]);
            let mut kept = values.clone();
            keep_largest(&mut kept, n);
            for (rank, &id) in order.iter().enumerate() {
                prop_assert_eq!(kept[id], if rank < n { values[id] } else { f32::NEG_INFINITY });
            }

            // Powers of two, whose sums are exact in whatever order.
            let weights: Vec<f32> = values.iter().map(|v| f32::powi(2.0, (v - largest(&values)) as i32)).collect();
            order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]).then(a.cmp(&b)));
            let target = weights.iter().map(|&w| f64::from(w)).sum::<f64>() * part;
            let (mut kept, mut before) = (weights.clone(), 0.0);
            keep_likeliest(&mut kept, part);
            for (rank, &id) in order.iter().enumerate() {
                prop_assert_eq!(kept[id], if rank == 0 || before < target { weights[id] } else { 0.0 });
                before += f64::from(weights[id]);
            }
        }

        #[test]
        fn draws_are_where_the_sum_says(weights in prop::collection::vec(prop_oneof![Just(0.0f32), 0f32..=1.0], 0..1500), at in 0f64..1.0) {
            let mut blocks = Vec::new();
            let total = sum(&weights, &mut blocks);
            let plain: f64 = weights.iter().map(|&w| f64::from(w)).sum();
            prop_assert!((total - plain).abs() <= 1e-9 * plain);
            match draw(&weights, &blocks, at * total) {
                None => prop_assert!(weights.iter().all(|w| *w == 0.0)),
                Some(id) => {
                    let before: f64 = weights[..id].iter().map(|&w| f64::from(w)).sum();
                    prop_assert!(weights[id] > 0.0);
                    prop_assert!(before <= at * total + 1e-9 && at * total <= before + f64::from(weights[id]) + 1e-9);
                }
            }
        }
    }
}
