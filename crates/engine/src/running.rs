//! A request that runs.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use fathom_kernels::Device;
use fathom_model::{LogitsWanted, Segment, State};

use crate::engine::Asked;
use crate::keeper::Fate;
use crate::room::Hold;
use crate::sampler::Sampler;
use crate::{Event, Mask, Usage};

/// Positions of a prompt at whose multiples its state is kept.
const INTERVAL: usize = 8192;

/// A request, its session, and how far it is.
pub(crate) struct Running<D: Device> {
    /// Another for each.
    pub id: u64,
    pub asked: Asked,
    /// What the state has seen.
    pub tokens: Vec<u32>,
    pub state: State<D>,
    /// What follows the last of the tokens, if that is known.
    pub logits: Vec<f32>,
    /// How many of the tokens the last state that was kept of it has.
    pub kept: usize,
    pub fate: Arc<Fate>,
    /// Places of the prompt where others go on from its state, or may.
    pub marks: BTreeSet<usize>,
    pub usage: Usage,
    /// When it began to do what it does.
    pub since: Instant,
    /// Bytes of its state at the longest that it may become.
    pub most: u64,
    pub phase: Phase,
}

/// What a running request does.
pub(crate) enum Phase {
    /// It waits for another that reads the same, up to a place, and was told last that this had come so far.
    Following { leader: u64, mark: usize, told: usize },
    /// It reads its prompt.
    Reading,
    /// It speaks: `next` is its next token, which it has told and has not read, and `heard` whether anybody listened.
    Speaking { sampler: Box<Sampler>, mask: Option<Box<dyn Mask>>, next: u32, heard: bool },
}

/// What a request does in a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    /// Which of those that run.
    pub at: usize,
    /// Tokens that it reads, its own included.
    pub tokens: usize,
}

impl<D: Device> Running<D> {
    pub(crate) fn is_reading(&self) -> bool {
        matches!(self.phase, Phase::Reading)
    }

    pub(crate) fn is_speaking(&self) -> bool {
        matches!(self.phase, Phase::Speaking { .. })
    }

    /// Tokens of the prompt that are still to be read.
    pub(crate) fn left(&self) -> usize {
        self.asked.request.prompt.len() - self.tokens.len()
    }

    /// The next stretch of the prompt: up to where a state is to be kept.
    pub(crate) fn stretch(&self) -> Range<usize> {
        let (from, total) = (self.tokens.len(), self.asked.request.prompt.len());
        let to = total.min((from / INTERVAL + 1) * INTERVAL);
        let mark = self.marks.range(from + 1..).next().copied();
        from..mark
            .into_iter()
            .chain(self.asked.request.branch)
            .filter(|place| (from + 1..to).contains(place))
            .min()
            .unwrap_or(to)
    }

    /// Bytes of its state once it has seen so many tokens, of which it always has room for the prompt's.
    pub(crate) fn hold(&self, tokens: usize, bytes: impl Fn(usize) -> u64) -> Hold {
        Hold { now: bytes(tokens.max(self.asked.request.prompt.len())), most: self.most }
    }

    /// Its part of a pass, in the model's terms.
    pub(crate) fn segment(&mut self, tokens: usize) -> Segment<'_, D> {
        let stretch = self.stretch();
        match &self.phase {
            Phase::Speaking { next, .. } => {
                Segment { state: &mut self.state, tokens: std::slice::from_ref(next), logits: LogitsWanted::Last }
            }
            _ => {
                let to = stretch.start + tokens;
                let logits = match self.asked.request.prompt_logprobs {
                    Some(_) => LogitsWanted::All,
                    None if to == stretch.end => LogitsWanted::Last,
                    None => LogitsWanted::None,
                };
                Segment { state: &mut self.state, tokens: &self.asked.request.prompt[stretch.start..to], logits }
            }
        }
    }

    /// Says how much of the prompt another that it follows has read, if that is news; false if the receiver had enough.
    pub(crate) fn tell_following(&mut self, done: usize) -> bool {
        let Phase::Following { mark, told, .. } = &mut self.phase else { return true };
        if *told == done {
            return true;
        }
        *told = done;
        let (shared, total) = (*mark, self.asked.request.prompt.len());
        (self.asked.sink)(Event::Follows { done, shared, total }).is_continue()
    }

    /// Says how much of the prompt has been read; false if the receiver had enough.
    pub(crate) fn tell_progress(&mut self) -> bool {
        let (done, total, reused) = (self.tokens.len(), self.asked.request.prompt.len(), self.usage.reused_tokens);
        (self.asked.sink)(Event::Prefill { done, total, reused }).is_continue()
    }
}
