//! Whether requests fit into memory together.
//!
//! Each holds state and may come to hold more. They fit if they can end one after another, whatever they come to say: the one
//! that needs least beyond what it has first, the next with what that gave back, and so on. So nobody has to be stopped for
//! another's growth, though not all that might be needed is there at once.

/// Bytes of state that a request holds, and that it may come to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hold {
    pub now: u64,
    pub most: u64,
}

/// Whether they fit into `limit` bytes.
pub(crate) fn fit(limit: u64, holds: &[Hold]) -> bool {
    let held = holds.iter().try_fold(0u64, |sum, hold| sum.checked_add(hold.now));
    let Some(mut free) = held.and_then(|held| limit.checked_sub(held)) else { return false };
    let mut left: Vec<(u64, u64)> = holds.iter().map(|hold| (hold.most.saturating_sub(hold.now), hold.now)).collect();
    left.sort_unstable();
    left.into_iter().all(|(more, now)| {
        let ends = more <= free;
        free += now;
        ends
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(limit: u64, holds: &[(u64, u64)]) -> bool {
        fit(limit, &holds.iter().map(|&(now, most)| Hold { now, most }).collect::<Vec<_>>())
    }

    #[test]
    fn they_can_end_one_after_another() {
        assert!(fits(0, &[]));
        assert!(fits(10, &[(10, 10)]));
        assert!(!fits(10, &[(0, 11)]));
        assert!(!fits(10, &[(6, 6), (5, 5)]), "more than there is");
        assert!(fits(10, &[(1, 10), (1, 2), (7, 8)]), "the second, the third, the first");
        assert!(!fits(10, &[(5, 10), (5, 10)]), "neither can end");
        assert!(fits(12, &[(4, 9), (2, 10), (0, 1)]), "the third can end at once, the first after it");
        assert!(!fits(10, &[(4, 9), (5, 10), (0, 1)]), "only the third can end");
        assert!(fits(u64::MAX, &[(u64::MAX, u64::MAX)]) && !fits(u64::MAX, &[(u64::MAX, u64::MAX), (1, 1)]));
    }

    /// Who has been let in can go on, one of them at least, until all have ended.
    #[test]
    fn nobody_is_stuck() {
        let mut seed = 1u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % below
        };
        for _ in 0..200 {
            let limit = 20 + random(50);
            let mut holds: Vec<Hold> = Vec::new();
            for _ in 0..8 {
                let most = 1 + random(limit);
                let new = Hold { now: 1 + random(most), most };
                if fit(limit, &[&holds[..], &[new]].concat()) {
                    holds.push(new);
                }
            }
            while !holds.is_empty() {
                holds.retain(|hold| hold.now < hold.most);
                let grows = (0..holds.len()).filter(|&i| {
                    let mut grown = holds.clone();
                    grown[i].now += 1;
                    fit(limit, &grown)
                });
                let grows: Vec<usize> = grows.collect();
                assert!(holds.is_empty() || !grows.is_empty());
                if let Some(&i) = grows.get(random(grows.len().max(1) as u64) as usize) {
                    holds[i].now += 1;
                }
            }
        }
    }
}
