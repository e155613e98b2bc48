//! One request to a server, and when each piece of the answer came.

use std::time::{Duration, Instant};

use reqwest::header::CONTENT_TYPE;
use serde_json::{Value, json};

use super::stream::{Counted, Events};
use super::target::{refused, said};
use super::{Api, Item, Message, Target};

/// The most bytes of a reply, whatever it has to say: progress is said too.
const LONGEST: usize = 256 << 20;
/// The most bytes of a refusal that are read.
const LONGEST_REFUSAL: usize = 64 << 10;

/// A server that only says that it is there may do so for that many times as long as it may be silent.
const MURMURS: u32 = 100;

/// What a request may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// A server that is silent for this long is given up.
    pub timeout: Duration,
}

/// What came of a request. Times are in seconds after it was sent.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// When pieces of text came.
    pub pieces: Vec<f64>,
    /// When it was over.
    pub seconds: f64,
    /// What the server counted.
    pub counted: Counted,
    /// The answer, without thinking.
    pub answer: String,
    /// What went wrong.
    pub error: Option<String>,
    /// Whether the server was silent for too long.
    pub hangs: bool,
}

impl Asked {
    /// Tokens of the answer, by the server's count, or pieces where it does not count.
    pub fn output(&self) -> u64 {
        self.counted.output.unwrap_or(self.pieces.len() as u64)
    }
}

/// Asks, and listens to the end.
pub async fn ask(target: &Target, item: &Item, limits: Limits) -> Asked {
    let mut asked = Asked::default();
    let start = Instant::now();
    if let Err(problem) = listen(target, item, limits, start, &mut asked).await {
        asked.error = Some(problem);
    }
    asked.seconds = start.elapsed().as_secs_f64();
    asked
}

async fn listen(target: &Target, item: &Item, limits: Limits, start: Instant, asked: &mut Asked) -> Result<(), String> {
    let request = target.post(&body(target, item)).send();
    // The client's own limit is on what it reads; a server may also be silent before that.
    let Ok(response) = tokio::time::timeout(limits.timeout, request).await else {
        asked.hangs = true;
        return Err(silent(limits));
    };
    let mut response = response.map_err(|e| problem(&e, limits, &mut asked.hangs))?;
    let status = response.status();
    if !status.is_success() {
        let mut text = Vec::new();
        let read = async {
            while let Ok(Some(bytes)) = response.chunk().await {
                text.extend_from_slice(&bytes);
                if text.len() > LONGEST_REFUSAL {
                    break;
                }
            }
        };
        // What has come by then will do.
        let _ = tokio::time::timeout(limits.timeout, read).await;
        return Err(refused(status, &String::from_utf8_lossy(&text)));
    }
    let kind = response.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("nothing named");
    if !kind.starts_with("text/event-stream") {
        return Err(format!("answers with {kind} where a stream was asked for"));
    }
    let (mut events, mut bytes_read, mut finished) = (Events::default(), 0, false);
    let (mut lines, mut heard, mut told) = (0, Instant::now(), Instant::now());
    while let Some(bytes) = response.chunk().await.map_err(|e| problem(&e, limits, &mut asked.hangs))? {
        let now = start.elapsed().as_secs_f64();
        bytes_read += bytes.len();
        for piece in events.push(&bytes)? {
            told = Instant::now();
            if !piece.text.is_empty() {
                asked.pieces.push(now);
                asked.answer += &piece.answer;
            }
            asked.counted = piece.usage.unwrap_or(asked.counted);
            finished |= piece.finished;
        }
        // A token may come in a few pieces, but not in many.
        if asked.pieces.len() > 16 * item.max_tokens + 64 || bytes_read > LONGEST {
            return Err("streams far more than was asked for".to_owned());
        }
        if events.done {
            let answered = finished || !asked.pieces.is_empty();
            return if answered { Ok(()) } else { Err("ends its stream without an answer".to_owned()) };
        }
        // Bytes that never come to a line are silence too, and so are, in the end, lines that never come to an event.
        let now = Instant::now();
        if events.lines > lines {
            (lines, heard) = (events.lines, now);
        }
        if now - heard > limits.timeout {
            asked.hangs = true;
            return Err(silent(limits));
        }
        if now - told > MURMURS * limits.timeout {
            asked.hangs = true;
            return Err(format!(
                "says only that it is there, for {} s ({MURMURS} × --timeout)",
                (now - told).as_secs()
            ));
        }
    }
    if finished { Ok(()) } else { Err("ends its stream in the middle of an answer".to_owned()) }
}

fn silent(limits: Limits) -> String {
    format!("says nothing for {} s (--timeout)", limits.timeout.as_secs())
}

fn problem(e: &reqwest::Error, limits: Limits, hangs: &mut bool) -> String {
    *hangs |= e.is_timeout();
    if e.is_timeout() { silent(limits) } else { said(e) }
}

fn body(target: &Target, item: &Item) -> Value {
    let mut body = json!({
        "model": target.model,
        "max_tokens": item.max_tokens,
        "temperature": 0,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    match target.api {
        Api::Chat => {
            let said = |m: &Message| json!({"role": m.role, "content": m.content.as_ref()});
            body["messages"] = item.messages.iter().map(said).collect();
        }
        Api::Completions => {
            let turns: Vec<String> = item.messages.iter().map(|m| format!("{}: {}", m.role, m.content)).collect();
            body["prompt"] = format!("{}\n\nassistant:", turns.join("\n\n")).into();
        }
    }
    body
}
