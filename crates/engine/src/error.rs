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
    /// The request may need more state than there is memory for.
    #[error(
        "{tokens} tokens of prompt and answer take {needed} of state, but there is memory for {limit}; ask for fewer tokens, \
         or give the program more memory"
    )]
    Memory {
        /// Tokens of prompt and answer.
        tokens: usize,
        /// What they take, for people.
        needed: String,
        /// What there is.
        limit: String,
    },
    /// No session of that name.
    #[error("there is no session {name:?}")]
    NoSession {
        /// The name.
        name: String,
    },
    /// A session of that name is there already.
    #[error("there is a session {name:?} already; delete it, or take another name")]
    SessionExists {
        /// The name.
        name: String,
    },
    /// Another request is at work on the session.
    #[error("session {name:?} is at work on another request; wait for its end, or fork it")]
    SessionBusy {
        /// The name.
        name: String,
    },
    /// There is nothing to keep of a session.
    #[error("session {name:?} has no tokens yet, and nothing to save; append something first")]
    EmptySession {
        /// The name.
        name: String,
    },
    /// A session that is in no store yet.
    #[error("session {name:?} has no snapshot to pin yet; save one first")]
    NotStored {
        /// The name.
        name: String,
    },
    /// More sessions than can be held, and none that is stored and could make way.
    #[error("there are too many sessions that are not stored; delete some")]
    TooManySessions,
    /// A name that no session can have.
    #[error("{name:?} is no name for a session: it takes 1 to 64 letters, digits, dots, dashes and underscores")]
    SessionName {
        /// The name.
        name: String,
    },
    /// Somebody reads a snapshot that was to go.
    #[error("snapshot {id} is being read; try again when that is over")]
    SnapshotInUse {
        /// Its identity.
        id: String,
    },
    /// A file that cannot be taken in.
    #[error("the file was not imported: {problem}")]
    Import {
        /// What is wrong with it.
        problem: String,
    },
    /// No snapshot of that identity.
    #[error("there is no snapshot {id}")]
    NoSnapshot {
        /// Its identity.
        id: String,
    },
    /// A position that the session does not have.
    #[error("position {position} is beyond the session's {tokens} tokens")]
    Position {
        /// The position.
        position: usize,
        /// How many tokens it has.
        tokens: usize,
    },
    /// Which tokens may come next could not be told.
    #[error("the answer cannot be held to what was asked for: {problem}; ask for something simpler")]
    Constraint {
        /// What went wrong.
        problem: String,
    },
    /// What was asked for takes a store.
    #[error("there is no store to keep it in; start with --store DIR")]
    NoStore,
    /// The store failed.
    #[error("{0}")]
    Store(String),
    /// The model or the device failed.
    #[error("{0}")]
    Model(String),
}

impl From<fathom_store::Error> for Error {
    fn from(e: fathom_store::Error) -> Self {
        match e {
            fathom_store::Error::NoSnapshot { id, .. } => Error::NoSnapshot { id: id.to_string() },
            fathom_store::Error::InUse { id } => Error::SnapshotInUse { id: id.to_string() },
            fathom_store::Error::Import { problem } => Error::Import { problem },
            e @ (fathom_store::Error::Stream { .. } | fathom_store::Error::Newer { .. }) => {
                Error::Import { problem: e.to_string() }
            }
            e => Error::Store(e.to_string()),
        }
    }
}

impl From<crate::SnapshotError> for Error {
    fn from(e: crate::SnapshotError) -> Self {
        match e {
            crate::SnapshotError::Store(e) => e.into(),
            e => Error::Store(e.to_string()),
        }
    }
}

impl From<fathom_model::Error> for Error {
    fn from(e: fathom_model::Error) -> Self {
        Error::Model(e.to_string())
    }
}
