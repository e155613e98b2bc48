//! Which experts are kept: those that tokens go to most, by what was seen lately.
//!
//! An expert's score is the number of tokens that went to it, each counted half as much for every [`Policy::half_life`] tokens
//! that came after it. A long prefill adds to the scores what its tokens are routed to, as decode does, and that it passes
//! over all experts adds nothing: it washes out nothing that decode goes on to need.

/// Scores of experts.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Tokens after which one counts half.
    half_life: f64,
    /// What a token counts now: instead of all scores fading, what is new counts more.
    weight: f64,
    scores: Vec<f64>,
}

/// A weight that is scaled down to 1 again with all scores.
const HEAVY: f64 = 1e100;

impl Policy {
    /// Of `experts` that nobody has used.
    pub fn new(experts: usize, half_life: f64) -> Policy {
        Policy { half_life, weight: 1.0, scores: vec![0.0; experts] }
    }

    /// Time goes on by so many tokens.
    pub fn tokens(&mut self, n: usize) {
        self.weight *= (n as f64 / self.half_life).exp2();
        if self.weight >= HEAVY {
            let scale = if self.weight.is_finite() { 1.0 / self.weight } else { 0.0 };
            self.scores.iter_mut().for_each(|score| *score *= scale);
            self.weight = 1.0;
        }
    }

    /// So many tokens go to an expert.
    pub fn used(&mut self, expert: usize, tokens: usize) {
        self.scores[expert] += self.weight * tokens as f64;
    }

    /// The larger, the more it is worth keeping.
    pub fn score(&self, expert: usize) -> f64 {
        self.scores[expert]
    }

    /// Tokens that went to each expert, as they count now.
    pub fn counts(&self) -> impl Iterator<Item = f64> + '_ {
        self.scores.iter().map(|score| score / self.weight)
    }

    /// The sum of some experts' counts.
    pub(crate) fn tokens_in(&self, experts: std::ops::Range<usize>) -> f64 {
        self.scores[experts].iter().sum::<f64>() / self.weight
    }

    /// Takes up counts from an earlier run; they fade like others.
    pub fn restore(&mut self, counts: &[f32]) {
        for (score, &count) in self.scores.iter_mut().zip(counts) {
            *score += self.weight * f64::from(count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_long_ago_counts_less() {
        let mut policy = Policy::new(3, 100.0);
        policy.used(0, 3);
        policy.tokens(100);
        policy.used(1, 2);
        assert!(policy.score(1) > policy.score(0) && policy.score(0) > policy.score(2));
        assert_eq!(policy.counts().collect::<Vec<_>>(), [1.5, 2.0, 0.0]);
        // A million tokens on, numbers are still numbers.
        (0..1000).for_each(|_| policy.tokens(1000));
        policy.used(2, 1);
        assert!(policy.counts().all(f64::is_finite) && policy.score(2) > policy.score(1));
        policy.tokens(usize::MAX);
        assert!(policy.counts().all(f64::is_finite));
    }
}
