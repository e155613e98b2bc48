//! What is asked of the engine, and what it tells while it works.

use std::time::Duration;

use crate::{Error, Sampling};

/// A prompt and how to go on from it.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// The most tokens to generate; what the context holds where not said.
    pub max_tokens: Option<usize>,
    /// Tokens that end the answer; they are not part of it.
    pub stop_tokens: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
}

/// A token that might have been, with the natural logarithm of its probability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Logprob {
    /// The token.
    pub token: u32,
    /// ln p under the model's own distribution: temperature 1, nothing cut off, no penalties.
    pub logprob: f32,
}

/// What happens to a request, in this order: queued, prefill, tokens, then done or failed.
#[derive(Debug, Clone)]
pub enum Event {
    /// It waits behind others.
    Queued {
        /// How many.
        ahead: usize,
    },
    /// Part of the prompt has been read.
    Prefill {
        /// Tokens of the prompt that the session has seen.
        done: usize,
        /// Tokens of the prompt.
        total: usize,
        /// Of `done`, those that an earlier request had read.
        reused: usize,
    },
    /// A token of the answer.
    Token {
        /// Its id.
        id: u32,
        /// ln p of it, where asked for.
        logprob: Option<f32>,
        /// The likeliest tokens in its place, where asked for.
        top: Vec<Logprob>,
    },
    /// The end.
    Done {
        /// Why.
        reason: Finish,
        /// What it took.
        usage: Usage,
    },
    /// It could not go on.
    Failed(Error),
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// A stop token came.
    Stop,
    /// `max_tokens` were generated.
    Length,
    /// The context is full.
    ContextFull,
    /// The receiver had enough.
    Cancelled,
}

/// What a request took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of those, the ones that were not read again.
    pub reused_tokens: usize,
    /// Tokens generated, a stop token not counted.
    pub generated_tokens: usize,
    /// Time of the prompt.
    pub prefill: Duration,
    /// Time of the answer.
    pub decode: Duration,
}
