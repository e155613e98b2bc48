//! One answer on its way: free while it thinks and speaks, held to a grammar where there is one.

use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use fathom_engine::{Constraint, Mask};
use llguidance::Matcher;
use llguidance::toktrie::SimpleVob;

use super::exponent::Exponents;
use super::trie::Ready;
use super::watch::Watched;
use super::{Form, Format, Refused, Said, at, told};

/// The time of a processor that an answer's masks may take, and what each adds to it: far more than they do take.
/// Grammars have limits in steps, but not all steps are the same.
const TIME: Duration = Duration::from_secs(1);
const TIME_EACH: Duration = Duration::from_millis(20);
/// The most that an answer's copy of a grammar may take to make: the others' next tokens wait for it.
const TIME_COPY: Duration = Duration::from_millis(20);
const TOO_LONG: &str = "telling what may come next takes too long";

/// A form, ready for any number of answers.
pub(super) struct Compiled {
    ready: Arc<Ready>,
    phase: Phase,
    /// What the answer is held to after the free part, if it is at all.
    next: Next,
    /// The grammar in its first state: answers take copies, which share nothing, so that none sees what others did.
    matcher: Mutex<Matcher>,
    exponents: Exponents,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    /// Anything until the token that ends thinking; `idle` if the answer may also end before.
    Thinking { idle: bool },
    /// Anything until the token that begins a call, which comes after '<' only.
    Text { opening: bool },
    /// What the grammar has.
    Held,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Next {
    Text,
    Held,
}

impl Compiled {
    /// # Errors
    /// Nothing fits the form, its first mask takes too long, or what was said of the answer already is no beginning of one.
    pub(super) fn new(ready: Arc<Ready>, form: &Form, mut matcher: Matcher) -> Result<Compiled, Refused> {
        // The first mask is the dearest, and shows whether there is anything to say at all.
        let start = time_run();
        if matcher.compute_mask_or_eos().is_err() || time_run().saturating_sub(start) > TIME {
            return Err(Refused::new(at(form), "there is nothing that fits it, or it is too much to tell"));
        }
        // A processor that is shared with other machines may be slow once or twice.
        let copies = |_| {
            let start = time_run();
            drop(matcher.deep_clone());
            time_run().saturating_sub(start) <= TIME_COPY
        };
        if !(0..3).any(copies) {
            return Err(Refused::new(at(form), "its grammar is too large; ask for something simpler"));
        }
        let next = if form.answer == Said::Anything { Next::Text } else { Next::Held };
        let phase = match (form.thinks, next) {
            (true, next) => Phase::Thinking { idle: next == Next::Text },
            (false, Next::Text) => Phase::Text { opening: form.written.ends_with('<') },
            (false, Next::Held) => Phase::Held,
        };
        let mut exponents = match &form.answer {
            Said::Like(_, Format::Object | Format::Schema(_)) => Exponents::in_json(),
            Said::Like(..) => Exponents::nowhere(),
            Said::Anything | Said::Nothing => Exponents::in_calls(),
        };
        if next == Next::Held && !form.written.is_empty() {
            let encoded = ready.tokenizer.encode(&form.written);
            let tokens = encoded.map_err(|error| Refused::library(at(form), error))?;
            let taken = matcher.try_consume_tokens(&tokens).map_err(|error| Refused::library(at(form), error))?;
            if taken < tokens.len() {
                return Err(Refused::new(
                    at(form),
                    "the beginning of the answer, which the last message has, does not fit it",
                ));
            }
            exponents.read(form.written.as_bytes());
        }
        Ok(Compiled { ready, phase, next, matcher: Mutex::new(matcher), exponents })
    }
}

impl Constraint for Compiled {
    fn begin(&self) -> Box<dyn Mask> {
        let matcher = self.matcher.lock().unwrap_or_else(PoisonError::into_inner).deep_clone();
        let watched = Watched::new(matcher.cancellation_handle().unwrap_or_default());
        Box::new(Guide {
            ready: Arc::clone(&self.ready),
            phase: self.phase,
            next: self.next,
            matcher,
            exponents: self.exponents.clone(),
            mask: SimpleVob::new(),
            watched,
            left: TIME,
        })
    }
}

/// How long this thread has run: a machine that is busy with something else is no reason to end an answer.
fn time_run() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// One answer.
struct Guide {
    ready: Arc<Ready>,
    phase: Phase,
    next: Next,
    matcher: Matcher,
    exponents: Exponents,
    mask: SimpleVob,
    watched: Watched,
    /// Time that masks may still take.
    left: Duration,
}

impl Guide {
    /// Why the library gave up.
    fn problem(&self, error: impl Display) -> String {
        if self.matcher.is_cancelled() { TOO_LONG.to_owned() } else { told(error) }
    }
}

impl Mask for Guide {
    fn allowed(&mut self) -> Result<&[u32], String> {
        let free = &self.ready.free;
        Ok(match self.phase {
            Phase::Thinking { idle: false } => &free.thinking,
            Phase::Thinking { idle: true } => &free.idle,
            Phase::Text { opening: false } => &free.text,
            Phase::Text { opening: true } => &free.opening,
            Phase::Held => {
                let start = time_run();
                let mask = self.watched.during(|| self.matcher.compute_mask_or_eos());
                self.mask = mask.map_err(|error| self.problem(error))?;
                let left = (self.left + TIME_EACH).checked_sub(time_run().saturating_sub(start));
                self.left = left.ok_or(TOO_LONG)?;
                self.exponents.limit(&mut self.mask, &self.ready.tokenizer, &self.ready.long);
                self.mask.as_slice()
            }
        })
    }

    fn accept(&mut self, token: u32) -> Result<(), String> {
        let is_dsml = Some(token) == self.ready.dsml;
        match self.phase {
            Phase::Thinking { .. } if token == self.ready.thought => {
                self.phase = match self.next {
                    Next::Text => Phase::Text { opening: false },
                    Next::Held => Phase::Held,
                };
            }
            Phase::Thinking { .. } => {}
            Phase::Text { .. } if is_dsml => self.phase = Phase::Held,
            Phase::Text { .. } => {
                self.phase = Phase::Text { opening: self.ready.tokenizer.token_bytes(token).ends_with(b"<") };
            }
            Phase::Held => {
                let taken = self.watched.during(|| self.matcher.consume_token(token));
                taken.map_err(|error| self.problem(error))?;
                match is_dsml {
                    true => self.exponents.leave(),
                    false => self.exponents.read(self.ready.tokenizer.token_bytes(token)),
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_that_of_the_thread() {
        let start = time_run();
        std::thread::sleep(Duration::from_millis(200));
        assert!(time_run() - start < Duration::from_millis(100));
        while time_run() - start < Duration::from_millis(100) {}
    }
}
