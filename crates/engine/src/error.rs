//! What can go wrong with a request.

/// Errors of the engine.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A sampling parameter outside its range.
    #[error("{parameter} is {value}; it must be {range}")]
    Sampling {
        /// Its name, as in the API.
        parameter: &'static str,
        /// Its value.
        value: String,
        /// What would do.
        range: String,
    },
    /// Nothing to read.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// A token id that the vocabulary does not have.
    #[error("token id {token} at position {position} is outside the vocabulary of {vocab}")]
    Token {
        /// The id.
        token: u32,
        /// Where it stands in the prompt.
        position: usize,
        /// `vocab_size`.
        vocab: usize,
    },
    /// The prompt leaves no room for an answer.
    #[error("the prompt has {tokens} tokens, but the context holds {context}; shorten it or raise --context")]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// The context's limit.
        context: usize,
    },
    /// Too many requests wait.
    #[error("{waiting} requests are waiting already; try again later")]
    QueueFull {
        /// How many.
        waiting: usize,
    },
    /// The engine is shutting down.
    #[error("the engine is shutting down")]
    ShuttingDown,
    /// The model or the device failed.
    #[error("{0}")]
    Model(String),
}

impl From<fathom_model::Error> for Error {
    fn from(e: fathom_model::Error) -> Self {
        Error::Model(e.to_string())
    }
}
