//! Texts whose perplexity tells a sound model from a broken one.

use fathom_kernels::Cpu;
use fathom_model::{Error, LogitsWanted, Model, Segment};

use crate::Error as TextError;
use crate::chat::{Effort, Message, Prompter, Role};
use crate::demo::document;

/// The most tokens of a pass: their logits are a vocabulary each, and room for so many is planned.
const CHUNK: usize = 32;
/// The embedded model's text, of its own making.
const SEED: u64 = 7;
const TOKENS: usize = 1500;
/// The opening of *Alice's Adventures in Wonderland*, which models of any training have read.
const ALICE: &str = include_str!("../../assets/doctor-text.txt");

/// A text as tokens, and the perplexities that sound models have on it.
#[derive(Debug, Clone, PartialEq)]
pub struct Passage {
    /// What to read.
    pub tokens: Vec<u32>,
    /// How many of them, at the end, answer a question about the text: a sound model has no doubt of those.
    pub answer: usize,
    /// Of a sound model.
    pub sound: std::ops::RangeInclusive<f64>,
    /// At this and above a model is broken, or noise.
    pub broken: f64,
}

/// The text for a model: the embedded one knows nothing but its own.
///
/// # Errors
/// The text cannot be encoded.
pub fn passage(prompter: &Prompter, embedded: bool) -> Result<Passage, TextError> {
    if embedded {
        let tokenizer = prompter.tokenizer();
        let count = |text: &str| tokenizer.encode(text).map_or(0, |ids| ids.len());
        let document = document(SEED, TOKENS, true, count);
        let (mut tokens, _) = prompter.chat(&[Message { role: Role::User, text: document.prompt }], Effort::None)?;
        let answer = tokenizer.encode(&document.expected)?;
        tokens.extend_from_slice(&answer);
        // Measured: 6.72. A text of random words from templates has that much in it that nobody can know.
        return Ok(Passage { tokens, answer: answer.len(), sound: 6.55..=6.9, broken: 15.0 });
    }
    let tokens = prompter.raw(ALICE)?;
    // Large models have 1 to 4 on a text that they know by heart, small ones to 20, a guess among words some thousands.
    Ok(Passage { tokens, answer: 0, sound: 1.0..=12.0, broken: 50.0 })
}

/// What a model thought of a [`Passage`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Heard {
    /// The text's perplexity: e to the mean of −ln p of each token after the first, but the answer's.
    pub perplexity: f64,
    /// The least p of the answer's tokens; 1 where there is none.
    pub answer: f64,
}

/// Reads a text, `chunk` tokens at once at most. `progress` is told tokens read.
///
/// # Errors
/// What the model says.
pub fn hear(
    model: &Model<Cpu>,
    passage: &Passage,
    chunk: usize,
    progress: &mut dyn FnMut(usize),
) -> Result<Heard, Error> {
    let (vocab, tokens) = (model.config().vocab_size, &passage.tokens);
    let mut state = model.new_state()?;
    let (mut surprises, mut done) = (Vec::new(), 0);
    for part in tokens.chunks(chunk.clamp(1, CHUNK)) {
        let segment = Segment { state: &mut state, tokens: part, logits: LogitsWanted::All };
        let logits = model.forward(&mut [segment])?.pop().unwrap_or_default();
        let next = &tokens[done + 1..tokens.len().min(done + part.len() + 1)];
        surprises.extend(logits.chunks_exact(vocab).zip(next).map(|(row, &token)| surprise(row, token as usize)));
        done += part.len();
        progress(done);
    }
    let (text, answer) = surprises.split_at(surprises.len().saturating_sub(passage.answer));
    let mean = text.iter().sum::<f64>() / text.len().max(1) as f64;
    let most = answer.iter().copied().fold(0.0, f64::max);
    Ok(Heard { perplexity: mean.exp(), answer: (-most).exp() })
}

/// −ln p of a token.
fn surprise(logits: &[f32], token: usize) -> f64 {
    let most = logits.iter().fold(f32::NEG_INFINITY, |most, &v| most.max(v));
    let sum: f64 = logits.iter().map(|&v| f64::from(v - most).exp()).sum();
    sum.ln() - f64::from(logits[token] - most)
}

#[cfg(test)]
mod tests {
    use super::surprise;

    #[test]
    fn surprises() {
        assert!((surprise(&[1.0; 8], 3) - 8f64.ln()).abs() < 1e-12);
        assert!(surprise(&[0.0, 100.0], 1) < 1e-12 && (surprise(&[0.0, 100.0], 0) - 100.0).abs() < 1e-6);
        assert!(surprise(&[f32::NAN, 1.0], 1).is_nan());
    }
}
