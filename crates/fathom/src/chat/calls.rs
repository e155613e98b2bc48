//! Calls of tools in what nothing held to a form: only whole ones are calls.
//!
//! DeepSeek's parser takes whatever follows the opening tag for calls, also where names and arguments make none. So a block of
//! calls is held back until it has ended, and is text unless every call in it can be read and names a tool that there is.

use std::sync::Arc;

use serde_json::Value;

use super::Tokenizer;

/// Stands for the token that tags of calls have, in the bytes of a block; no text has this byte.
const MARK: u8 = 0xFF;
const OPEN: &[u8] = b"tool_calls>";
const CLOSE: &[u8] = b"</\xFFtool_calls>";

/// What becomes of a token.
#[derive(Debug, PartialEq)]
pub(super) enum Passed {
    /// It goes on as it is.
    Through,
    /// It is to wait.
    Held,
    /// These come now, as what they are: the block is whole.
    Calls(Vec<u32>),
    /// These come now, as text, whatever they look like.
    Text(Vec<u32>),
}

/// Watches an answer for blocks of calls.
#[derive(Debug)]
pub(super) struct Gate {
    tokenizer: Arc<Tokenizer>,
    dsml: u32,
    names: Vec<String>,
    /// The tokens of a block, while there is one.
    held: Option<Vec<u32>>,
    bytes: Vec<u8>,
    /// The last byte before a block.
    before: u8,
    /// Whether the prompt opened the block.
    opened: bool,
}

impl Gate {
    /// For answers that may call tools of these names; none if the vocabulary has no calls. With `opened`, the answer begins in a
    /// block.
    pub(super) fn new(tokenizer: &Arc<Tokenizer>, names: Vec<String>, opened: bool) -> Option<Gate> {
        let dsml = tokenizer.dsml()?;
        let (held, bytes) = if opened { (Some(Vec::new()), [OPEN, b"\n"].concat()) } else { (None, Vec::new()) };
        Some(Gate { tokenizer: Arc::clone(tokenizer), dsml, names, held, bytes, before: 0, opened })
    }

    /// Whether the prompt opened the block.
    pub(super) fn opened(&self) -> bool {
        self.opened
    }

    /// Takes a token.
    pub(super) fn push(&mut self, id: u32) -> Passed {
        let known = self.bytes.len();
        if self.held.is_none() {
            if id != self.dsml {
                self.before = self.tokenizer.token_bytes(id).last().copied().unwrap_or(self.before);
                return Passed::Through;
            }
            if std::mem::take(&mut self.before) != b'<' {
                return Passed::Text(vec![id]);
            }
            self.bytes.clear();
        } else if id == self.dsml {
            self.bytes.push(MARK);
        } else {
            self.bytes.extend_from_slice(self.tokenizer.token_bytes(id));
        }
        let held = self.held.get_or_insert_default();
        held.push(id);
        let begun = self.bytes.len().min(OPEN.len());
        if self.bytes[..begun] != OPEN[..begun] {
            return Passed::Text(self.finish());
        }
        // What follows the end in the same token is no part of it, and not held against it.
        let from = known.min(self.bytes.len()).saturating_sub(CLOSE.len());
        let end = self.bytes[from..].windows(CLOSE.len()).position(|bytes| bytes == CLOSE);
        match end.map(|at| from + at) {
            None => Passed::Held,
            Some(at) => {
                let whole = is_whole(&self.bytes[OPEN.len()..at], &self.names);
                if whole { Passed::Calls(self.held.take().unwrap_or_default()) } else { Passed::Text(self.finish()) }
            }
        }
    }

    /// What waits, which is no calls.
    pub(super) fn finish(&mut self) -> Vec<u32> {
        self.opened = false;
        self.held.take().unwrap_or_default()
    }
}

/// Whether these are calls, one at least, of tools of these names, each of which can be read.
fn is_whole(block: &[u8], names: &[String]) -> bool {
    let mut rest = block.trim_ascii_start();
    let mut any = false;
    while !rest.is_empty() {
        match call(rest, names) {
            Some(after) => rest = after.trim_ascii_start(),
            None => return false,
        }
        any = true;
    }
    any
}

/// What follows a call.
fn call<'a>(rest: &'a [u8], names: &[String]) -> Option<&'a [u8]> {
    let (name, rest) = until(rest.strip_prefix(b"<\xFFinvoke name=\"")?, b"\">")?;
    names.iter().find(|known| known.as_bytes() == name)?;
    let mut rest = rest.trim_ascii_start();
    while let Some(argument) = rest.strip_prefix(b"<\xFFparameter name=\"") {
        let (key, after) = until(argument, b"\" string=\"")?;
        let bad = |byte: &u8| matches!(*byte, b'"' | b'\\' | b' ' | MARK) || byte.is_ascii_control();
        if key.is_empty() || key.iter().any(bad) || std::str::from_utf8(key).is_err() {
            return None;
        }
        let (is_text, after) = match after.strip_prefix(b"true\">") {
            Some(after) => (true, after),
            None => (false, after.strip_prefix(b"false\">")?),
        };
        let (value, after) = until(after, b"</\xFFparameter>")?;
        if value.contains(&MARK) || !is_text && serde_json::from_slice::<Value>(value).is_err() {
            return None;
        }
        rest = after.trim_ascii_start();
    }
    rest.strip_prefix(b"</\xFFinvoke>")
}

/// What is before and after the first of these.
fn until<'a>(bytes: &'a [u8], end: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = bytes.windows(end.len()).position(|window| window == end)?;
    Some((&bytes[..at], &bytes[at + end.len()..]))
}
