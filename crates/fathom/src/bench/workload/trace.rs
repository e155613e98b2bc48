//! Recorded work: a line of JSON for each request, `{"at_ms": 1250, "messages": [{"role": "user", "content": "…"}],
//! "max_tokens": 64}`, or `"prompt_tokens": 3000` where the text is not known. `lane` says whose it is: a lane's requests wait
//! for those before them. Without it nobody waits.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;

use super::{Item, Random, Words, Writer, filler, message};
use crate::demo::estimate;
use crate::ui::commas;

/// The most bytes of a line and of all, requests, tokens of a prompt, and of all prompts that are made up.
const LONGEST_LINE: u64 = 64 << 20;
const LONGEST_FILE: u64 = 1 << 30;
pub(super) const MOST: usize = 100_000;
const MOST_TOKENS: usize = 1 << 21;
const MOST_MADE_UP: usize = 1 << 28;
/// The most tokens of an answer.
pub const MOST_OUTPUT: usize = 1 << 20;
const LONGEST_WAIT_MS: f64 = 30.0 * 86_400_000.0;

#[derive(Deserialize)]
struct Line {
    at_ms: f64,
    messages: Option<Vec<Said>>,
    prompt_tokens: Option<usize>,
    max_tokens: usize,
    lane: Option<usize>,
}

#[derive(Deserialize)]
struct Said {
    role: String,
    content: String,
}

/// A trace, read and checked.
#[derive(Debug)]
pub struct Trace {
    lines: Vec<(Item, Option<usize>)>,
}

impl Trace {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read; a line is none of a trace, which is named.
    pub fn read(path: &Path) -> Result<Trace, String> {
        let name = path.display();
        let file = File::open(path).map_err(|e| format!("cannot read {name}: {e}"))?;
        parse(BufReader::new(file.take(LONGEST_FILE))).map_err(|problem| format!("{name}: {problem}"))
    }

    /// The requests, with texts of a seed where the trace has only lengths.
    pub fn items(&self, seed: u64) -> Vec<Item> {
        let mut writer = Writer { words: Words::embedded(), random: Random::new(seed) };
        let made = |(item, tokens): &(Item, Option<usize>)| match tokens {
            Some(tokens) => Item { messages: filler(&mut writer, *tokens), ..item.clone() },
            None => item.clone(),
        };
        self.lines.iter().map(made).collect()
    }

    /// About how many tokens its longest prompt has.
    pub fn longest(&self) -> usize {
        self.lines.iter().map(|(item, tokens)| tokens.unwrap_or_else(|| item.tokens())).max().unwrap_or(0)
    }

    /// Whether all texts are the trace's own: then they are the same in every round.
    pub fn has_texts(&self) -> bool {
        self.lines.iter().all(|(_, tokens)| tokens.is_none())
    }
}

fn parse(mut from: impl BufRead) -> Result<Trace, String> {
    let (mut lines, mut number) = (Vec::new(), 0);
    loop {
        number += 1;
        let mut bytes = Vec::new();
        let read = from.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut bytes);
        if read.map_err(|e| format!("line {number}: {e}"))? == 0 {
            break;
        }
        if bytes.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let line: Line = serde_json::from_slice(&bytes).map_err(|e| format!("line {number}: {e}"))?;
        if lines.len() == MOST {
            return Err(format!("more than {MOST} requests"));
        }
        let parsed = item(line, lines.len()).map_err(|problem| format!("line {number}: {problem}"))?;
        lines.push(parsed);
    }
    if lines.is_empty() {
        return Err("no request in it".to_owned());
    }
    let made_up: usize = lines.iter().filter_map(|(_, tokens)| *tokens).sum();
    if made_up > MOST_MADE_UP {
        let (made_up, most) = (commas(made_up), commas(MOST_MADE_UP));
        return Err(format!("its prompts have {made_up} tokens together, but {most} are the most that are made up"));
    }
    lines.sort_by_key(|(item, _)| item.at);
    Ok(Trace { lines })
}

fn item(line: Line, index: usize) -> Result<(Item, Option<usize>), String> {
    if !(0.0..=LONGEST_WAIT_MS).contains(&line.at_ms) {
        return Err(format!("at_ms is {}; it must be from 0 to {LONGEST_WAIT_MS:.0}", line.at_ms));
    }
    if !(1..=MOST_OUTPUT).contains(&line.max_tokens) {
        return Err(format!("max_tokens is {}; it must be from 1 to {MOST_OUTPUT}", line.max_tokens));
    }
    let (messages, tokens) = match (line.messages, line.prompt_tokens) {
        (Some(messages), _) if !messages.is_empty() => (messages, None),
        (_, Some(tokens)) if (1..=MOST_TOKENS).contains(&tokens) => (Vec::new(), Some(tokens)),
        (_, Some(tokens)) => return Err(format!("prompt_tokens is {tokens}; it must be from 1 to {MOST_TOKENS}")),
        (_, None) => return Err("it needs messages or prompt_tokens".to_owned()),
    };
    // Lanes that are named are even, those that are not odd: nobody shares one by chance.
    let lane = match line.lane {
        Some(lane) if lane < MOST => 2 * lane,
        Some(lane) => return Err(format!("lane is {lane}; it must be less than {MOST}")),
        None => 2 * index + 1,
    };
    let messages = messages.into_iter().map(|said| message(&said.role, said.content)).collect();
    let at = Duration::from_secs_f64(line.at_ms / 1000.0);
    Ok((Item { lane, at, messages, max_tokens: line.max_tokens }, tokens))
}

/// Requests as a trace.
///
/// # Errors
/// It would be too long to be read again.
pub fn export(items: &[Item]) -> Result<String, String> {
    let said = |item: &Item| item.messages.iter().map(|m| m.content.len() as u64).sum::<u64>();
    let bytes: u64 = items.iter().map(said).sum();
    if bytes > LONGEST_FILE {
        return Err(format!("{bytes} bytes of text are more than the {LONGEST_FILE} that a trace may have"));
    }
    let mut text = String::new();
    for item in items {
        let messages: Vec<_> =
            item.messages.iter().map(|m| json!({"role": m.role, "content": m.content.as_ref()})).collect();
        let tokens: usize = item.messages.iter().map(|m| estimate(&m.content)).sum();
        let line = json!({
            "at_ms": item.at.as_secs_f64() * 1000.0,
            "lane": item.lane,
            "max_tokens": item.max_tokens,
            "about_tokens": tokens,
            "messages": messages,
        });
        // A string takes it.
        let _ = writeln!(text, "{line}");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::super::{Message, Size, Workload};
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_exported_is_read_again() {
        for workload in [Workload::Agent, Workload::Mixed] {
            let items = workload.items(1, Size { context: 500, scale: 0.5, rate: 2.0 });
            let trace = parse(export(&items).unwrap().as_bytes()).unwrap();
            let again = trace.items(9);
            assert!(trace.has_texts());
            for (a, b) in items.iter().zip(&again) {
                assert_eq!((&a.messages, a.max_tokens), (&b.messages, b.max_tokens));
                assert!(a.at.abs_diff(b.at) < Duration::from_micros(2));
            }
            let waits = |items: &[Item]| items.windows(2).filter(|w| w[0].lane == w[1].lane).count();
            assert_eq!((items.len(), waits(&items)), (again.len(), waits(&again)));
        }
    }

    #[test]
    fn lengths_become_texts() {
        let text = r#"{"at_ms": 20, "prompt_tokens": 300, "max_tokens": 5}

            {"at_ms": 10, "prompt_tokens": 100, "max_tokens": 6, "other": 1}"#;
        let text = text.replace("            ", "");
        let trace = parse(text.as_bytes()).unwrap();
        assert_eq!((trace.has_texts(), trace.longest()), (false, 300));
        let items = trace.items(1);
        assert_eq!(items[0].max_tokens, 6);
        assert!((60..=104).contains(&items[0].tokens()) && (270..=304).contains(&items[1].tokens()));
        assert_ne!(items[0].lane, items[1].lane);
        assert_ne!(items, trace.items(2));
    }

    #[test]
    fn too_much_is_refused_before_it_is_made() {
        let line = r#"{"at_ms": 0, "prompt_tokens": 2097152, "max_tokens": 5}"#;
        let message = parse(vec![line; 129].join("\n").as_bytes()).unwrap_err();
        assert!(message.contains("270,532,608 tokens together"), "{message}");
        assert!(parse(vec![line; 128].join("\n").as_bytes()).is_ok());
        let text: std::sync::Arc<str> = "x".repeat(1 << 20).into();
        let said = Message { role: "user".to_owned(), content: text };
        let item = Item { lane: 0, at: Duration::ZERO, messages: vec![said], max_tokens: 1 };
        assert!(export(&vec![item; 1025]).unwrap_err().contains("1074790400 bytes"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, expected) in [
            ("", "no request"),
            ("{}\n", "line 1: missing field"),
            ("\n[1\n", "line 2"),
            (r#"{"at_ms": -1, "prompt_tokens": 5, "max_tokens": 5}"#, "at_ms is -1"),
            (r#"{"at_ms": 1e300, "prompt_tokens": 5, "max_tokens": 5}"#, "at_ms"),
            (r#"{"at_ms": 0, "prompt_tokens": 0, "max_tokens": 5}"#, "prompt_tokens is 0"),
            (r#"{"at_ms": 0, "prompt_tokens": 99999999, "max_tokens": 5}"#, "prompt_tokens is 99999999"),
            (r#"{"at_ms": 0, "messages": [], "max_tokens": 5}"#, "messages or prompt_tokens"),
            (r#"{"at_ms": 0, "prompt_tokens": 5, "max_tokens": 0}"#, "max_tokens is 0"),
            (r#"{"at_ms": 0, "prompt_tokens": 5, "max_tokens": 5, "lane": 99999999}"#, "lane is 99999999"),
        ] {
            let message = parse(text.as_bytes()).unwrap_err();
            assert!(message.contains(expected), "{text}: {message}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,80}") {
            let _ = parse(text.as_bytes());
        }
    }
}
