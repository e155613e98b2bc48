//! How long to try again.

use std::time::{Duration, Instant};

/// Why a request did not give what it should.
#[derive(Debug)]
pub(super) enum Trouble {
    /// It may be better later, perhaps not before some time.
    Passing(String, Option<Duration>),
    /// The server says what cannot be.
    Wrong(String),
    /// It will not get better.
    Final(String),
    /// The server sends the whole file whatever range is asked for.
    NoRanges,
}

/// How often a server may say what cannot be.
const WRONG: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// What a server may make us wait for.
const LONGEST_ASKED: Duration = Duration::from_secs(120);

pub(super) struct Patience {
    limit: Duration,
    since: Instant,
    failures: u32,
    wrong: u32,
}

impl Patience {
    /// Ends when nothing has come for as long as `limit`.
    pub fn new(limit: Duration) -> Patience {
        Patience { limit, since: Instant::now(), failures: 0, wrong: 0 }
    }

    /// Something came.
    pub fn progress(&mut self) {
        *self = Patience::new(self.limit);
    }

    /// Waits before the next try, or says why there is none.
    pub async fn after(&mut self, trouble: Trouble) -> Result<(), String> {
        let mut pause = match self.failures {
            // A connection that broke after it had brought something is taken up at once.
            0 => Duration::ZERO,
            n => FIRST_PAUSE.saturating_mul(1 << n.min(10)).min(LONGEST_PAUSE),
        };
        match trouble {
            Trouble::Final(problem) => return Err(problem),
            Trouble::NoRanges => return Err("the server sends whole files only".to_owned()),
            Trouble::Wrong(problem) => {
                self.wrong += 1;
                if self.wrong >= WRONG {
                    return Err(format!("{problem}, {WRONG} times; try another mirror"));
                }
            }
            Trouble::Passing(problem, asked) => {
                if self.since.elapsed() >= self.limit {
                    let seconds = self.limit.as_secs();
                    return Err(format!(
                        "{problem}; nothing has come for {seconds} s. What is here is kept: run the command again to go on"
                    ));
                }
                // Not for longer than patience lasts.
                let left = self.limit.saturating_sub(self.since.elapsed());
                pause = pause.max(asked.unwrap_or_default().min(LONGEST_ASKED)).min(left);
            }
        }
        self.failures += 1;
        tokio::time::sleep(pause).await;
        Ok(())
    }
}
