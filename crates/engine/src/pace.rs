//! How many tokens of prompts are read beside those who speak.

use std::time::Duration;

/// As few as are read at once: less would not be worth a pass.
const LEAST: f64 = 16.0;
/// What is tried first.
const FIRST: f64 = 64.0;
/// The share of the limit that a pass is to take: some take longer than the last one told, and the limit is for nearly all of them.
const GOAL: f64 = 0.55;
/// The share of the limit that reading has in any case: where speaking alone takes as long as the limit, prompts are read nonetheless.
const SHARE: f64 = 0.2;

/// Measures passes, and says how many tokens can be read in them so that those who speak wait no longer than a limit from one token
/// to the next. Results do not depend on how prompts are cut, so this may look at clocks.
#[derive(Debug)]
pub(crate) struct Pace {
    limit: Duration,
    tokens: f64,
    /// What the last pass took in which nothing was read.
    alone: Duration,
}

impl Pace {
    pub(crate) fn new(limit: Duration) -> Pace {
        Pace { limit, tokens: FIRST, alone: Duration::ZERO }
    }

    /// Tokens to read beside those who speak.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens as usize
    }

    /// Learns from a pass in which `read` tokens were read and `spoken` requests got their next token.
    pub(crate) fn took(&mut self, read: usize, spoken: usize, time: Duration) {
        let (limit, read) = (self.limit.as_secs_f64(), read as f64);
        match (read > 0.0, spoken > 0) {
            (true, true) => {
                let added = time.saturating_sub(self.alone).as_secs_f64().max(1e-6);
                let goal = (GOAL * limit - self.alone.as_secs_f64()).max(SHARE * limit);
                let fits = read * (goal / added).clamp(0.5, 2.0);
                // A short part says that it was quick, not how long more would take.
                self.tokens = if fits < read { fits } else { fits.max(self.tokens) };
            }
            (false, true) => self.alone = time,
            // Large chunks are quicker for each token than small ones.
            (true, false) => self.tokens = 0.5 * read * limit / time.as_secs_f64().max(1e-6),
            (false, false) => {}
        }
        self.tokens = self.tokens.clamp(LEAST, 1e6);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A machine that takes 20 ms for a step, and 2 ms for each token read beside it.
    fn settle(pace: &mut Pace, each: Duration) -> usize {
        for _ in 0..20 {
            let read = pace.tokens();
            pace.took(read, 3, 20 * MS + each * read as u32);
        }
        pace.tokens()
    }

    #[test]
    fn finds_what_fits() {
        let mut pace = Pace::new(200 * MS);
        pace.took(0, 3, 20 * MS);
        assert!((43..=45).contains(&settle(&mut pace, 2 * MS)));
        // Further on in a context each token takes longer.
        assert!((16..=18).contains(&settle(&mut pace, 5 * MS)));
        assert!((85..=90).contains(&settle(&mut pace, MS)));
        // However slow it is, it goes on.
        assert_eq!(settle(&mut pace, 1000 * MS), LEAST as usize);
        // Where speaking alone takes too long, a fifth of the limit is still read in.
        pace.took(0, 3, 300 * MS);
        for _ in 0..20 {
            let read = pace.tokens();
            pace.took(read, 3, 300 * MS + MS * read as u32);
        }
        assert!((38..=40).contains(&pace.tokens()), "{}", pace.tokens());
    }

    #[test]
    fn short_parts_and_passes_of_readers_alone() {
        let mut pace = Pace::new(200 * MS);
        pace.took(5, 1, MS);
        assert_eq!(pace.tokens(), FIRST as usize);
        pace.took(512, 0, 512 * MS);
        assert_eq!(pace.tokens(), 100);
        pace.took(0, 0, MS);
        pace.took(1, 1, Duration::ZERO);
        assert_eq!(pace.tokens(), 100);
    }
}
