//! Text to token ids and back: the tokenizer, the prompt's form, the answer's parts.
//!
//! Prompts are rendered and answers parsed by DeepSeek's own crates; what is here ties them to a fast tokenizer.

mod decoder;
mod missed;
mod output;
mod prompt;
mod seam;
mod stops;
#[cfg(test)]
mod tests;
mod tokenizer;
mod turns;

pub use decoder::Decoder;
pub use missed::explain;
pub use output::{Output, Piece, Pieces, Spoken};
pub use prompt::{Dialect, Effort, Message, Prompter, Role};
pub use seam::TextSeam;
pub use stops::Stops;
pub use tokenizer::{Loading, Tokenizer};
pub use turns::Turn;
