//! Token ids to text, one at a time.

use std::sync::Arc;

use super::Tokenizer;

/// Turns a stream of token ids into text that never ends inside a UTF-8 character: bytes are held back until their
/// character is complete.
#[derive(Debug, Clone)]
pub struct Decoder {
    tokenizer: Arc<Tokenizer>,
    held: Vec<u8>,
}

impl Decoder {
    /// A decoder at the start of a text.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Decoder {
        Decoder { tokenizer, held: Vec::new() }
    }

    /// The text that `id` completes; may be empty. Bytes that cannot be UTF-8 whatever follows become U+FFFD. Special
    /// tokens give their spelling, ids outside the vocabulary nothing.
    pub fn push(&mut self, id: u32) -> String {
        self.held.extend_from_slice(self.tokenizer.token_bytes(id));
        let mut text = String::new();
        let mut rest = self.held.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    rest = after;
                    let Some(wrong) = error.error_len() else { break };
                    text.push('\u{FFFD}');
                    rest = &rest[wrong..];
                }
            }
        }
        let kept = rest.len();
        self.held.drain(..self.held.len() - kept);
        text
    }

    /// What is left at the end: U+FFFD where a character stayed incomplete, else nothing.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.held)).into_owned()
    }
}
