use proptest::prelude::*;

use super::*;

fn sampling() -> Sampling {
    Sampling { seed: Some(7), ..Sampling::default() }
}

/// The probabilities that the parameters ask for, with sorts and the system's exponential.
fn plain(logits: &[f32], s: &Sampling) -> Vec<f64> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    let mut p: Vec<f64> = logits.iter().map(|&v| (f64::from(v) / f64::from(s.temperature)).exp()).collect();
    if s.top_k > 0 {
        order.iter().skip(s.top_k).for_each(|&i| p[i] = 0.0);
    }
    let best = p[order[0]];
    p.iter_mut().for_each(|v| *v = if *v < best * f64::from(s.min_p) { 0.0 } else { *v });
    let total: f64 = p.iter().sum();
    let mut before = 0.0;
    for &i in &order {
        if before >= total * f64::from(s.top_p) {
            p[i] = 0.0;
        }
        before += p[i];
    }
    let total: f64 = p.iter().sum();
    p.iter().map(|v| v / total).collect()
}

#[test]
fn draws_follow_the_distribution() {
    let logits = [1.0, 2.0, 0.5, -1.0, 2.5, 0.0];
    for s in [
        sampling(),
        Sampling { temperature: 0.5, ..sampling() },
        Sampling { top_k: 3, ..sampling() },
        Sampling { top_p: 0.7, ..sampling() },
        Sampling { min_p: 0.3, ..sampling() },
        Sampling { temperature: 2.0, top_k: 4, top_p: 0.9, min_p: 0.05, ..sampling() },
    ] {
        let want = plain(&logits, &s);
        let mut counts = [0usize; 6];
        let mut sampler = Sampler::new(s.clone());
        for _ in 0..40_000 {
            counts[sampler.pick(&logits, None).unwrap() as usize] += 1;
        }
        for (count, want) in counts.iter().zip(want) {
            assert!((*count as f64 / 40_000.0 - want).abs() < 0.01, "{s:?} {counts:?}");
            assert!(want > 0.0 || *count == 0, "{s:?} {counts:?}");
        }
    }
}

#[test]
fn greedy_takes_the_lowest_of_equals_and_never_nan() {
    let choose = |logits: &[f32]| Sampler::new(Sampling::greedy()).choose(logits, None).unwrap().id;
    assert_eq!(choose(&[0.0, 3.0, 3.0, 1.0]), 1);
    assert_eq!(choose(&[f32::NAN, -5.0, f32::NEG_INFINITY]), 1);
    assert_eq!(choose(&[-0.0, 0.0]), 0);
}

#[test]
fn penalties_and_bias() {
    let logits = [0.0, 1.0, 0.9];
    let s = Sampling { frequency_penalty: 0.3, ..Sampling::greedy() };
    let mut sampler = Sampler::new(s);
    let ids: Vec<u32> = (0..4).map(|_| sampler.choose(&logits, None).unwrap().id).collect();
    assert_eq!(ids, [1, 2, 1, 2]);
    let s = Sampling { logit_bias: vec![(0, 5.0)], ..Sampling::greedy() };
    assert_eq!(Sampler::new(s).choose(&logits, None).unwrap().id, 0);
}

#[test]
fn logprobs_are_the_models_own() {
    let logits = [0.0, 1.0, 2.0];
    let s = Sampling { logprobs: Some(2), temperature: 0.0, logit_bias: vec![(0, 50.0)], ..Sampling::default() };
    let choice = Sampler::new(s).choose(&logits, None).unwrap();
    let total = (1.0f64 + 1f64.exp() + 2f64.exp()).ln();
    assert_eq!(choice.id, 0);
    assert!((f64::from(choice.logprob.unwrap()) + total).abs() < 1e-6);
    assert_eq!(choice.top.iter().map(|t| t.token).collect::<Vec<_>>(), [2, 1]);
    assert!((f64::from(choice.top[0].logprob) - (2.0 - total)).abs() < 1e-6);
}

#[test]
fn parameters_are_checked_by_name() {
    for (s, name) in [
        (Sampling { temperature: f32::NAN, ..sampling() }, "temperature is NaN"),
        (Sampling { temperature: -1.0, ..sampling() }, "temperature is -1"),
        (Sampling { top_p: 1.5, ..sampling() }, "top_p is 1.5"),
        (Sampling { min_p: -0.1, ..sampling() }, "min_p is -0.1"),
        (Sampling { presence_penalty: 3.0, ..sampling() }, "presence_penalty is 3"),
        (Sampling { frequency_penalty: f32::INFINITY, ..sampling() }, "frequency_penalty is inf"),
        (Sampling { logit_bias: vec![(9, 1.0)], ..sampling() }, "logit_bias is for token 9"),
        (Sampling { logit_bias: vec![(1, 1000.0)], ..sampling() }, "logit_bias is 1000"),
        (Sampling { logprobs: Some(500), ..sampling() }, "top_logprobs is 500"),
    ] {
        let message = s.check(9).unwrap_err().to_string();
        assert!(message.contains(name), "{message}");
    }
    sampling().check(9).unwrap();
}

proptest! {
    /// A mask is what logits of nothing would be, to the bit, and what is outside of it never comes.
    #[test]
    fn a_mask_takes_tokens_out(
        logits in prop::collection::vec(-5f32..5.0, 1..80), bits: [u32; 3], last: bool,
        temperature in 0f32..2.0, top_p in 0.1f32..=1.0, top_k in 0usize..9, min_p in 0f32..0.5, seed: u64,
        logit_bias in prop::collection::vec((0u32..80, -5f32..5.0), 0..4), presence_penalty in -1f32..1.0,
    ) {
        let s = Sampling {
            temperature, top_p, top_k, min_p, logit_bias, presence_penalty, seed: Some(seed), ..Sampling::default()
        };
        let mask = if last { &bits[..] } else { &bits[..1] };
        let allows = |token: usize| mask.get(token / 32).is_some_and(|word| word >> (token % 32) & 1 == 1);
        let nothing = |(token, &v): (usize, &f32)| if allows(token) { v } else { f32::NEG_INFINITY };
        let without: Vec<f32> = logits.iter().enumerate().map(nothing).collect();
        let (mut a, mut b) = (Sampler::new(s.clone()), Sampler::new(s));
        for _ in 0..5 {
            let choice = a.choose(&logits, Some(mask));
            prop_assert_eq!(choice.is_none(), without.iter().all(|v| *v == f32::NEG_INFINITY));
            let Some(choice) = choice else { break };
            prop_assert!(allows(choice.id as usize));
            prop_assert_eq!(choice.id, b.choose(&without, None).unwrap().id);
        }
    }

    #[test]
    fn never_panics_and_stays_in_range(
        logits in prop::collection::vec(prop_oneof![any::<f32>(), -5f32..5.0], 1..50),
        temperature in 0f32..3.0, top_p in 0f32..=1.0, top_k in 0usize..60, min_p in 0f32..=1.0, seed: u64,
    ) {
        let s = Sampling { temperature, top_p, top_k, min_p, seed: Some(seed), logprobs: Some(1), ..Sampling::default() };
        let (mut a, mut b) = (Sampler::new(s.clone()), Sampler::new(s));
        for _ in 0..5 {
            let id = a.choose(&logits, None).unwrap().id;
            prop_assert!((id as usize) < logits.len());
            prop_assert_eq!(id, b.choose(&logits, None).unwrap().id);
        }
    }
}
