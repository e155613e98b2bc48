//! The same text in other tokens.
//!
//! What a model generated comes back from a client as text, and is cut into tokens anew, sometimes differently. The session
//! that said it has state for the tokens it said: where the text is the same, those are taken.

use std::sync::Arc;

use fathom_engine::Seam;

use super::Tokenizer;

/// Joins by the text of tokens. A special token is only the same as itself.
#[derive(Debug, Clone)]
pub struct TextSeam(pub Arc<Tokenizer>);

impl Seam for TextSeam {
    fn join(&self, prompt: &[u32], known: &[u32], from: usize) -> Option<Vec<u32>> {
        let mut theirs = Spelled { tokenizer: &self.0, tokens: known, at: from, left: &[] };
        let mut ours = Spelled { tokenizer: &self.0, tokens: prompt, at: from, left: &[] };
        while theirs.next()? {
            if !ours.next()? || !theirs.eat_same(&mut ours) {
                return None;
            }
        }
        let rest = ours.rest()?;
        (!rest.is_empty()).then(|| [known, &rest].concat())
    }
}

/// Tokens, read as text.
struct Spelled<'a> {
    tokenizer: &'a Tokenizer,
    tokens: &'a [u32],
    at: usize,
    /// Bytes of the token before `at` that were not read yet.
    left: &'a [u8],
}

impl<'a> Spelled<'a> {
    /// Whether there is more: after this, either bytes are left or the next token is special. None for a token without bytes,
    /// of which nothing can be said.
    fn next(&mut self) -> Option<bool> {
        if !self.left.is_empty() {
            return Some(true);
        }
        let Some(&token) = self.tokens.get(self.at) else { return Some(false) };
        if self.tokenizer.is_special(token) {
            return Some(true);
        }
        self.left = self.tokenizer.token_bytes(token);
        self.at += 1;
        (!self.left.is_empty()).then_some(true)
    }

    /// Reads what both begin with; false if they begin differently.
    fn eat_same(&mut self, other: &mut Spelled<'_>) -> bool {
        match (self.left.is_empty(), other.left.is_empty()) {
            (true, true) => {
                let same = self.tokens[self.at] == other.tokens[other.at];
                self.at += 1;
                other.at += 1;
                same
            }
            (false, false) => {
                let n = self.left.len().min(other.left.len());
                let same = self.left[..n] == other.left[..n];
                (self.left, other.left) = (&self.left[n..], &other.left[n..]);
                same
            }
            _ => false,
        }
    }

    /// Tokens of all that was not read. Where that begins inside a token, the text up to the next special one is cut anew.
    fn rest(&self) -> Option<Vec<u32>> {
        let tokens = &self.tokens[self.at..];
        if self.left.is_empty() {
            return Some(tokens.to_vec());
        }
        let text = tokens.iter().position(|&token| self.tokenizer.is_special(token)).unwrap_or(tokens.len());
        let mut bytes = self.left.to_vec();
        tokens[..text].iter().for_each(|&token| bytes.extend(self.tokenizer.token_bytes(token)));
        // A token may end inside a character.
        let mut anew = self.tokenizer.encode(&String::from_utf8(bytes).ok()?).ok()?;
        anew.extend(&tokens[text..]);
        Some(anew)
    }
}
