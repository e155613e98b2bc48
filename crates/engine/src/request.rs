//! What is asked of the engine, and what it tells while it works.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::{Constraint, Error, Sampling};

/// Whose sessions they are: nothing is found, shared or listed across owners. A namespace of the store, where there is one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Owner(pub Arc<str>);

impl Default for Owner {
    /// That of a program which nobody logs in to.
    fn default() -> Owner {
        Owner("default".into())
    }
}

/// Joins text that a client sent again to tokens that are known, where the two were cut into tokens differently.
pub trait Seam: Send + Sync {
    /// The prompt with `known` as its beginning, if it is the same text; `from` tokens are the same.
    fn join(&self, prompt: &[u32], known: &[u32], from: usize) -> Option<Vec<u32>>;
}

/// A prompt and how to go on from it.
#[derive(Clone, Default)]
pub struct Request {
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// The most tokens to generate; what the context holds where not said.
    pub max_tokens: Option<usize>,
    /// Tokens that end the answer; they are not part of it.
    pub stop_tokens: Vec<u32>,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// What the answer must be like.
    pub constraint: Option<Arc<dyn Constraint>>,
    /// Whose it is.
    pub owner: Owner,
    /// The session that it goes on, by name.
    pub session: Option<Arc<str>>,
    /// How many tokens of the prompt another request is sure to share, where that is not all: its state is kept there too.
    pub branch: Option<usize>,
    /// How to tell the same text in other tokens.
    pub seam: Option<Arc<dyn Seam>>,
    /// How many alternatives to report beside each token of the prompt; the prompt is then read from its first token on, whatever
    /// is known of it.
    pub prompt_logprobs: Option<usize>,
    /// Whether [`Missed`] is to have the tokens in question, which may have to be read for it.
    pub explain: bool,
}

impl fmt::Debug for Request {
    /// Without what it says.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (prompt, most) = (self.prompt.len(), self.max_tokens);
        write!(f, "Request({prompt} tokens, {most:?} more, {:?}, {:?})", self.owner, self.session)
    }
}

/// A token that might have been, with the natural logarithm of its probability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Logprob {
    /// The token.
    pub token: u32,
    /// ln p under the model's own distribution: temperature 1, nothing cut off, no penalties.
    pub logprob: f32,
}

/// What happens to a request, in this order: queued, follows, prefill, tokens, then done or failed.
#[derive(Debug, Clone)]
pub enum Event {
    /// It waits behind others.
    Queued {
        /// How many.
        ahead: usize,
    },
    /// Another request reads the same prompt, or its beginning, and this one waits for it, to go on from there.
    Follows {
        /// Tokens of the prompt that the other has seen.
        done: usize,
        /// Tokens of the prompt that it will see.
        shared: usize,
        /// Tokens of the prompt.
        total: usize,
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
    /// A token of the prompt that was read, the first excepted; only if asked for.
    Read {
        /// Its id.
        id: u32,
        /// ln p of it after those before it.
        logprob: Option<f32>,
        /// The likeliest tokens in its place.
        top: Vec<Logprob>,
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
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Of those, the ones that were not read again.
    pub reused_tokens: usize,
    /// Why it were not more, if that is worth a word.
    pub missed: Option<Missed>,
    /// Tokens generated, a stop token not counted.
    pub generated_tokens: usize,
    /// Time of the prompt.
    pub prefill: Duration,
    /// Time of the answer.
    pub decode: Duration,
}

/// Why a prompt's beginning had to be read again.
#[derive(Debug, Clone, PartialEq)]
pub struct Missed {
    /// The reason.
    pub why: Why,
    /// How many tokens of the prompt there were, in the state in question.
    pub matched: usize,
    /// How many tokens that state has seen; only of those that went another way.
    pub of: Option<usize>,
    /// The session in question, by its name or, in the store, by its snapshot.
    pub session: Option<String>,
    /// Its tokens around the first difference, and the prompt's, from the same position; only if asked for.
    pub theirs: Vec<u32>,
    /// The prompt's.
    pub ours: Vec<u32>,
    /// The time that reading those tokens again took which it would have spared.
    pub cost: Duration,
}

/// Reasons why no longer state was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// Nothing begins like this.
    Nothing,
    /// The nearest has another token.
    Differs,
    /// The nearest has all tokens and more, and its state was not kept there.
    NotKept,
    /// There was one, and it had to go.
    Evicted,
    /// What is stored is of another model.
    OtherModel,
    /// What is stored is of another profile of this model.
    OtherProfile(String),
    /// What is stored is damaged.
    Damaged(String),
    /// The store could not be asked.
    Store(String),
}

impl Why {
    /// A word for programs and metrics.
    pub fn word(&self) -> &'static str {
        match self {
            Why::Nothing => "nothing",
            Why::Differs => "differs",
            Why::NotKept => "not_kept",
            Why::Evicted => "evicted",
            Why::OtherModel => "other_model",
            Why::OtherProfile(_) => "other_profile",
            Why::Damaged(_) => "damaged",
            Why::Store(_) => "store",
        }
    }
}
