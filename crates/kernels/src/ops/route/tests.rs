use super::*;
use crate::simd::tests::Random;

#[test]
fn takes_the_best_and_normalises() {
    let (mut random, n, count, slots) = (Random(8), 7, 12, 4);
    let (logits, bias) = (random.floats(n * count), random.floats(count));
    let (mut experts, mut weights) = (vec![0; n * slots], vec![0.0; n * slots]);
    let pool = Pool::new(2).unwrap();
    route(&pool, &logits, &Choice::Scored(&bias), &[0; 7], slots, 1.5, &mut experts, &mut weights);
    for row in 0..n {
        let score: Vec<f64> =
            logits[row * count..][..count].iter().map(|&x| f64::from(x).exp().ln_1p().sqrt()).collect();
        let mut order: Vec<usize> = (0..count).collect();
        order.sort_by(|&a, &b| (score[b] + f64::from(bias[b])).total_cmp(&(score[a] + f64::from(bias[a]))));
        let sum: f64 = order[..slots].iter().map(|&e| score[e]).sum();
        for slot in 0..slots {
            assert_eq!(experts[row * slots + slot] as usize, order[slot]);
            assert!((f64::from(weights[row * slots + slot]) - score[order[slot]] / sum * 1.5).abs() < 1e-6);
        }
    }
}

#[test]
fn equal_scores_go_to_the_lower_expert_and_hash_layers_to_the_table() {
    let pool = Pool::new(1).unwrap();
    let (mut experts, mut weights) = (vec![0; 2], vec![0.0; 2]);
    route(&pool, &[1.0; 6], &Choice::Scored(&[0.0; 6]), &[0], 2, 1.0, &mut experts, &mut weights);
    assert_eq!((experts.as_slice(), weights.as_slice()), ([0, 1].as_slice(), [0.5, 0.5].as_slice()));
    let table: Vec<u8> = [3i64, 5, 4, 1].into_iter().flat_map(i64::to_le_bytes).collect();
    route(&pool, &[1.0; 6], &Choice::Hash(&table), &[1], 2, 1.0, &mut experts, &mut weights);
    assert_eq!(experts, [4, 1]);
}
