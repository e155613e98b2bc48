//! The best of a stream of scores.

/// Keeps the `keep` best of the entries pushed; equal scores go to the lower entry.
pub(super) struct Top {
    keep: usize,
    /// Nothing at or below this can be among the best any more.
    threshold: u64,
    /// The score in `threshold`.
    least: f32,
    /// Score and entry as one number: larger is better. At most twice `keep`.
    candidates: Vec<u64>,
}

/// Larger for larger scores (−0 counts as 0, NaN as worse than everything), then for lower entries; never 0.
fn key(score: f32, entry: u32) -> u64 {
    let bits = if score.is_nan() { u32::MAX } else { (score + 0.0).to_bits() };
    let ordered = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    u64::from(ordered) << 32 | u64::from(!entry)
}

/// The score of a key; of NaN's, minus infinity.
fn score(key: u64) -> f32 {
    let ordered = (key >> 32) as u32;
    let value = f32::from_bits(if ordered >> 31 == 1 { ordered ^ 1 << 31 } else { !ordered });
    if value.is_nan() { f32::NEG_INFINITY } else { value }
}

impl Top {
    pub(super) fn new(keep: usize) -> Self {
        Top { keep, threshold: 0, least: f32::NEG_INFINITY, candidates: Vec::new() }
    }

    #[inline(always)]
    pub(super) fn push(&mut self, score: f32, entry: u32) {
        self.push_key(key(score, entry));
    }

    #[inline(always)]
    fn push_key(&mut self, key: u64) {
        if key > self.threshold {
            self.candidates.push(key);
            if self.candidates.len() >= 2 * self.keep {
                self.shrink();
            }
        }
    }

    #[cold]
    fn shrink(&mut self) {
        if self.candidates.len() > self.keep {
            let (_, worst, _) = self.candidates.select_nth_unstable_by(self.keep - 1, |a, b| b.cmp(a));
            self.threshold = *worst;
            self.least = score(*worst);
            self.candidates.truncate(self.keep);
        }
    }

    /// Scores below this cannot be among the best any more.
    pub(super) fn least(&self) -> f32 {
        self.least
    }

    /// Nothing at or below this can be among the best any more.
    pub(super) fn threshold(&self) -> u64 {
        self.threshold
    }

    /// What another part of the same stream found, its [`Top::threshold`]. Merge both into a new one: the threshold itself is
    /// the other's.
    pub(super) fn raise(&mut self, threshold: u64) {
        if threshold > self.threshold {
            self.threshold = threshold;
            self.least = score(threshold);
        }
    }

    pub(super) fn merge(&mut self, other: &Top) {
        other.candidates.iter().for_each(|&key| self.push_key(key));
    }

    /// The best, ascending by entry.
    pub(super) fn entries(mut self) -> Vec<u32> {
        self.shrink();
        let mut entries: Vec<u32> = self.candidates.iter().map(|&key| !(key as u32)).collect();
        entries.sort_unstable();
        entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn is_a_stable_sort(
            scores in prop::collection::vec(prop_oneof![Just(0.0f32), Just(-0.0), -2.0f32..2.0, Just(f32::NAN)], 0..200),
            keep in 1usize..40,
            cut in 0usize..200,
        ) {
            let cut = cut.min(scores.len());
            let mut halves = [Top::new(keep), Top::new(keep)];
            for (i, &score) in scores.iter().enumerate() {
                halves[usize::from(i >= cut)].push(score, i as u32);
                // Parts of a stream may tell each other.
                if i % 3 == 0 {
                    let known = halves[0].threshold().max(halves[1].threshold());
                    halves.iter_mut().for_each(|half| half.raise(known));
                }
            }
            let mut all = Top::new(keep);
            halves.iter().for_each(|half| all.merge(half));
            let mut want: Vec<u32> = (0..scores.len() as u32).collect();
            let value = |i: u32| if scores[i as usize].is_nan() { f32::NEG_INFINITY } else { scores[i as usize] };
            want.sort_by(|&a, &b| value(b).partial_cmp(&value(a)).unwrap());
            want.truncate(keep);
            want.sort_unstable();
            prop_assert_eq!(all.entries(), want);
        }
    }
}
