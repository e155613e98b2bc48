//! What can go wrong while loading or running the model.

/// Errors of the model.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device could not do it.
    #[error(transparent)]
    Device(#[from] fathom_kernels::Error),
    /// A tensor could not be had from the checkpoint.
    #[error(transparent)]
    Weights(#[from] fathom_weights::Error),
    /// A token that the vocabulary does not have.
    #[error(
        "token id {token} at position {position} is outside the vocabulary of {vocab}; is this the model's own tokenizer?"
    )]
    Token {
        /// The id.
        token: u32,
        /// Where it stood in the session.
        position: usize,
        /// `vocab_size`.
        vocab: usize,
    },
    /// The session would outgrow the context.
    #[error("{wanted} tokens do not fit: the model's context is {limit} (max_position_embeddings)")]
    ContextFull {
        /// Tokens the session would have.
        wanted: usize,
        /// `max_position_embeddings`.
        limit: usize,
    },
    /// A pass over this session failed before.
    #[error("the session's state is broken by an earlier error; start it again")]
    Broken,
    /// Bytes of a snapshot that are not of this model.
    #[error("the snapshot at position {position} has not the sizes of this model's state; it is another model's")]
    Snapshot {
        /// The position it is said to be of.
        position: usize,
    },
    /// Logits that are no numbers.
    #[error(
        "the logits after position {position} are not finite: a weight is damaged or not of this model (download the \
         checkpoint again), or a number of config.json is far out of its usual range"
    )]
    NotFinite {
        /// The first such position.
        position: usize,
    },
    /// A hash layer's table points outside the layer's experts.
    #[error(
        "{file}: tensor {tensor} sends token {token} to expert {expert}, but there are {experts}; the checkpoint is damaged"
    )]
    HashTable {
        /// The tensor's name.
        tensor: String,
        /// Where it was found.
        file: String,
        /// The token's row.
        token: usize,
        /// What the row says.
        expert: i64,
        /// `n_routed_experts`.
        experts: usize,
    },
}
