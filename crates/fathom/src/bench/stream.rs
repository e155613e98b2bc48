//! Server-sent events of OpenAI's streams: bytes in, pieces of an answer out.

use serde_json::Value;

/// The longest line that is read, in bytes.
const LONGEST_LINE: usize = 4 << 20;

/// What an event says.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Piece {
    /// Text of the answer, of its thinking, or arguments of a call.
    pub text: String,
    /// Of that, the answer's.
    pub answer: String,
    /// Whether it says why the answer ended.
    pub finished: bool,
    /// What was counted.
    pub usage: Option<Counted>,
}

/// What a server counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counted {
    /// Tokens of the prompt.
    pub prompt: Option<u64>,
    /// Of those, the ones that it did not read again.
    pub cached: Option<u64>,
    /// Tokens of the answer.
    pub output: Option<u64>,
}

/// Cuts bytes into events.
#[derive(Debug, Default)]
pub struct Events {
    line: Vec<u8>,
    /// Whether `[DONE]` has come.
    pub done: bool,
    /// Whole lines that have come.
    pub lines: usize,
}

impl Events {
    /// Takes bytes, and gives what whole lines of them say.
    ///
    /// # Errors
    /// What is wrong with them, or what the server says is.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<Piece>, String> {
        let mut pieces = Vec::new();
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            self.line.extend_from_slice(&rest[..end]);
            rest = &rest[end + 1..];
            let line = std::mem::take(&mut self.line);
            self.lines += 1;
            pieces.extend(self.read(&line)?);
        }
        self.line.extend_from_slice(rest);
        if self.line.len() > LONGEST_LINE {
            return Err(format!("streams a line of more than {LONGEST_LINE} bytes"));
        }
        Ok(pieces)
    }

    fn read(&mut self, line: &[u8]) -> Result<Option<Piece>, String> {
        let line = std::str::from_utf8(line).map_err(|_| "streams what is no text".to_owned())?.trim_end();
        if let Some(data) = line.strip_prefix("data:") {
            let data = data.trim();
            if data == "[DONE]" {
                self.done = true;
                return Ok(None);
            }
            let event: Value =
                serde_json::from_str(data).map_err(|_| format!("streams what is no event: {}", short(data)))?;
            return piece(&event).map(Some);
        }
        // Comments, names of events, and the empty line after each.
        let known = line.is_empty() || [":", "event:", "id:", "retry:"].iter().any(|start| line.starts_with(start));
        if known { Ok(None) } else { Err(format!("streams what is no event: {}", short(line))) }
    }
}

/// The beginning of a text, for a message.
pub fn short(text: &str) -> String {
    let one_line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(120).collect();
    format!("{one_line:?}")
}

/// What is wrong, if that is what the server says.
pub fn complaint(event: &Value) -> Option<String> {
    let error = event.get("error").filter(|error| !error.is_null())?;
    let text = error.get("message").and_then(Value::as_str).or_else(|| error.as_str());
    Some(short(text.unwrap_or(&error.to_string())))
}

fn piece(event: &Value) -> Result<Piece, String> {
    if let Some(problem) = complaint(event) {
        return Err(format!("says {problem}"));
    }
    let usage = event.get("usage").filter(|usage| usage.is_object()).map(counted);
    let Some(choices) = event.get("choices").and_then(Value::as_array) else {
        // Some servers add events of their own; one without anything known is none of ours.
        return match usage {
            Some(_) => Ok(Piece { usage, ..Piece::default() }),
            None if event.get("object").is_some() || event.get("reused_tokens").is_some() => Ok(Piece::default()),
            None => Err(format!("streams what is no event: {}", short(&event.to_string()))),
        };
    };
    let mut piece = Piece { usage, ..Piece::default() };
    for choice in choices {
        let delta = choice.get("delta").unwrap_or(choice);
        let said = |name: &str| delta.get(name).and_then(Value::as_str).unwrap_or("");
        for name in ["reasoning_content", "reasoning"] {
            piece.text += said(name);
        }
        for name in ["content", "text"] {
            piece.answer += said(name);
        }
        for call in delta.get("tool_calls").and_then(Value::as_array).into_iter().flatten() {
            piece.text += call.pointer("/function/arguments").and_then(Value::as_str).unwrap_or("");
        }
        piece.finished |= choice.get("finish_reason").is_some_and(Value::is_string);
    }
    piece.text += &piece.answer;
    Ok(piece)
}

fn counted(usage: &Value) -> Counted {
    // More than any model holds is no count.
    let number = |path: &str| usage.pointer(path).and_then(Value::as_u64).filter(|&n| n <= u64::from(u32::MAX));
    Counted {
        prompt: number("/prompt_tokens"),
        cached: number("/prompt_tokens_details/cached_tokens").or_else(|| number("/prompt_cache_hit_tokens")),
        output: number("/completion_tokens"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STREAM: &str = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\r\n\r\n: prefill 1/2\n\n\
        data: {\"choices\":[{\"delta\":{\"reasoning_content\":\"hm\"}}]}\n\n\
        event: x\ndata:{\"choices\":[{\"delta\":{\"content\":\"Grüße\"},\"finish_reason\":null}]}\n\n\
        data: {\"choices\":[{\"text\":\"!\",\"finish_reason\":\"stop\"}],\"usage\":null}\n\n\
        data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":2,\
        \"prompt_tokens_details\":{\"cached_tokens\":4}}}\n\ndata: {\"reused_tokens\":4}\n\ndata: [DONE]\n\n";

    #[test]
    fn a_stream_in_any_pieces() {
        for step in [1, 2, 7, 1000] {
            let (mut events, mut pieces) = (Events::default(), Vec::new());
            for bytes in STREAM.as_bytes().chunks(step) {
                pieces.extend(events.push(bytes).unwrap());
            }
            let text: String = pieces.iter().map(|piece| piece.text.as_str()).collect();
            let answer: String = pieces.iter().map(|piece| piece.answer.as_str()).collect();
            assert_eq!((text.as_str(), answer.as_str(), events.done), ("hmGrüße!", "Grüße!", true));
            assert_eq!(pieces.iter().filter(|piece| piece.finished).count(), 1);
            let usage = pieces.iter().find_map(|piece| piece.usage).unwrap();
            assert_eq!(usage, Counted { prompt: Some(9), cached: Some(4), output: Some(2) });
        }
    }

    #[test]
    fn garbage_is_named() {
        for (text, expected) in [
            ("<html>\n", "no event: \"<html>\""),
            ("data: {\n", "no event"),
            ("data: 7\n", "no event"),
            ("data: {\"error\":{\"message\":\"out of\\nmemory\"}}\n", "says \"out of memory\""),
            ("data: {\"error\":\"busy\"}\n", "says \"busy\""),
        ] {
            let message = Events::default().push(text.as_bytes()).unwrap_err();
            assert!(message.contains(expected), "{text}: {message}");
        }
        assert!(Events::default().push(&[0xff, 0xfe, b'\n']).is_err());
        assert!(Events::default().push(&vec![b'a'; LONGEST_LINE + 1]).is_err());
    }

    proptest! {
        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300), json in "data: \\{\"[a-z]{1,8}\":.{0,20}\\}\n") {
            let mut events = Events::default();
            let _ = events.push(&bytes);
            let _ = events.push(json.as_bytes());
        }
    }
}
