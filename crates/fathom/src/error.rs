//! What can go wrong between text and tokens, and between tokens and a socket.

use std::net::SocketAddr;
use std::path::PathBuf;

/// Errors of reading tokenizers, writing prompts and serving.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no tokenizer where the model is.
    #[error("{}: not found; the model's folder must hold its tokenizer (only score does without one)", .0.display())]
    TokenizerMissing(PathBuf),
    /// A tokenizer's file cannot be read.
    #[error("{}: cannot be read: {cause}", path.display())]
    TokenizerRead {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// A tokenizer's file is not what it should be.
    #[error("{}: not a tokenizer this program can use: {cause}", path.display())]
    TokenizerBroken {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// The tokenizer is sound, but not this model's.
    #[error("{}: the tokenizer is of another vocabulary: {cause}; take the one released with the model", path.display())]
    TokenizerForeign {
        /// The file.
        path: PathBuf,
        /// Where it differs from the model's `config.json`.
        cause: String,
    },
    /// Text could not be turned into tokens.
    #[error("cannot encode the prompt: {0}")]
    Encode(String),
    /// Tokens could not be turned into text.
    #[error("cannot decode the answer: {0}")]
    Decode(String),
    /// The file of API keys is not what it should be.
    #[error("{}: {problem}", path.display())]
    Keys {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A certificate or its key is not what it should be.
    #[error("{}: {problem}", path.display())]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Traces cannot be sent there.
    #[error("--otlp {url}: {problem}")]
    Traces {
        /// Where to.
        url: String,
        /// Why not.
        problem: String,
    },
    /// The server's address cannot be had.
    #[error("cannot listen on {address}: {cause}; choose another with --host and --port")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        cause: std::io::Error,
    },
    /// The server stopped for a reason of the system's.
    #[error("the server stopped: {0}")]
    Serve(std::io::Error),
}
