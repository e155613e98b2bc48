//! One request, followed on the terminal: progress while the prompt is read, then the answer as it comes.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use deepseek_recipe::stream::{InferenceFinishReason, ParsingOptions};
use fathom_engine::{Engine, Event, Finish, Request, Usage, Why};
use fathom_kernels::{Share, human};
use serde_json::json;

use super::model::Loaded;
use crate::chat::{Decoder, Output, Piece, Tokenizer, explain};
use crate::plan::Forecast;
use crate::ui::{Progress, commas, duration, peak_rss, say};

/// How the tokens of an answer become text.
pub enum Reading {
    /// As a chat's answer, in parts.
    Chat(ParsingOptions),
    /// As they are.
    Raw,
}

/// An answer and what it took.
#[derive(Debug, Clone)]
pub struct Answer {
    /// What the model said.
    pub text: String,
    /// What it thought before.
    pub thinking: String,
    /// Why it ended.
    pub finish: Finish,
    /// What it took.
    pub usage: Usage,
}

impl Answer {
    /// One line of numbers.
    pub fn numbers(&self) -> String {
        let Usage { prompt_tokens, reused_tokens, generated_tokens, prefill, decode, .. } = self.usage;
        let read = prompt_tokens - reused_tokens;
        let speed = |n: usize, t: std::time::Duration| n as f64 / t.as_secs_f64().max(1e-9);
        let reused = if reused_tokens > 0 { format!(" ({} reused)", commas(reused_tokens)) } else { String::new() };
        format!(
            "prompt {} tokens{reused} in {} ({:.0}/s), answer {} tokens in {} ({:.1}/s)",
            commas(prompt_tokens),
            duration(prefill.as_secs_f64()),
            speed(read, prefill),
            commas(generated_tokens),
            duration(decode.as_secs_f64()),
            speed(generated_tokens, decode),
        )
    }

    /// One line: what was expected, and what came of it.
    pub fn against(&self, forecast: &Forecast) -> String {
        let Usage { prompt_tokens, reused_tokens, generated_tokens, prefill, decode, .. } = self.usage;
        let read = (prompt_tokens - reused_tokens) as f64;
        let mut pairs = Vec::new();
        if let Some(expected) = forecast.expect(reused_tokens, prompt_tokens) {
            pairs.push(("prompt", read / expected.prompt_seconds, read / prefill.as_secs_f64()));
            pairs.push(("answer", expected.decode, generated_tokens as f64 / decode.as_secs_f64()));
        }
        forecast.against(&pairs, prompt_tokens + generated_tokens, peak_rss())
    }

    /// Says why the prompt's beginning was read again, where a person would wonder.
    pub fn say_why(&self, tokenizer: &Tokenizer) {
        if let Some(missed) = self.usage.missed.as_ref().filter(|missed| missed.why != Why::Nothing) {
            say!("({})", explain(missed, tokenizer));
        }
    }

    /// All of it for machines.
    pub fn json(&self) -> serde_json::Value {
        json!({
            "answer": self.text,
            "thinking": self.thinking,
            "finish_reason": match self.finish {
                Finish::Stop => "stop",
                Finish::Length => "length",
                Finish::ContextFull => "context_full",
                Finish::Cancelled => "cancelled",
            },
            "prompt_tokens": self.usage.prompt_tokens,
            "reused_tokens": self.usage.reused_tokens,
            "why_not_more": self.usage.missed.as_ref().map(|missed| missed.why.word()),
            "generated_tokens": self.usage.generated_tokens,
            "prefill_seconds": self.usage.prefill.as_secs_f64(),
            "decode_seconds": self.usage.decode.as_secs_f64(),
        })
    }
}

/// Text of the answer, or of the thinking before it.
pub enum Shown<'a> {
    /// Of the thinking.
    Thinking(&'a str),
    /// Of the answer.
    Answer(&'a str),
}

/// What reads the answer's tokens.
enum Reader {
    Chat(Box<Output>),
    Raw(Decoder),
}

/// Sends a request and follows it to its end. `cancel` ends it early. `show` gets the text as it comes.
///
/// # Errors
/// What the engine, the parser or `show` says.
pub fn ask(
    loaded: &Loaded,
    engine: &Engine,
    tokenizer: &Arc<Tokenizer>,
    request: Request,
    reading: Reading,
    quiet: bool,
    cancel: &Arc<AtomicBool>,
    mut show: impl FnMut(Shown<'_>) -> Result<(), Box<dyn std::error::Error>>,
) -> Result<Answer, Box<dyn std::error::Error>> {
    let (send, events) = mpsc::channel();
    let mut progress = Progress::new(request.prompt.len(), quiet);
    let (asked_to_stop, enough) = (Arc::clone(cancel), Arc::new(AtomicBool::new(false)));
    let had_enough = Arc::clone(&enough);
    engine.submit(request, move |event| {
        let stop = asked_to_stop.load(Ordering::Relaxed) || had_enough.load(Ordering::Relaxed);
        if send.send(event).is_err() || stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    let mut reader = match reading {
        Reading::Chat(parsing) => Reader::Chat(Box::new(Output::new(Arc::clone(tokenizer), parsing))),
        Reading::Raw => Reader::Raw(Decoder::new(Arc::clone(tokenizer))),
    };
    let mut answer =
        Answer { text: String::new(), thinking: String::new(), finish: Finish::Cancelled, usage: Usage::default() };
    let mut take = |answer: &mut Answer, pieces: Vec<Piece>| -> Result<(), Box<dyn std::error::Error>> {
        for piece in pieces {
            match piece {
                Piece::Thinking(text) => {
                    show(Shown::Thinking(&text))?;
                    answer.thinking += &text;
                }
                Piece::Answer(text) => {
                    show(Shown::Answer(&text))?;
                    answer.text += &text;
                }
                Piece::ToolCall { .. } | Piece::Arguments(_) | Piece::End(_) => {}
            }
        }
        Ok(())
    };
    for event in events {
        match event {
            Event::Queued { .. } | Event::Follows { .. } | Event::Read { .. } => {}
            Event::Prefill { done, .. } => {
                let held = loaded.ledger_held();
                progress.update(done, &held);
            }
            Event::Token { id, .. } => {
                progress.finish();
                let pieces = match &mut reader {
                    Reader::Chat(output) if output.ended() => Vec::new(),
                    Reader::Chat(output) => output.push(id, None)?,
                    Reader::Raw(decoder) => vec![Piece::Answer(decoder.push(id))],
                };
                take(&mut answer, pieces)?;
                if matches!(&reader, Reader::Chat(output) if output.ended()) {
                    // A stop string: what comes after it is not wanted.
                    enough.store(true, Ordering::Relaxed);
                }
            }
            Event::Done { reason, usage } => {
                progress.finish();
                (answer.finish, answer.usage) = (reason, usage);
            }
            Event::Failed(e) => {
                progress.finish();
                return Err(e.into());
            }
        }
    }
    let pieces = match &mut reader {
        Reader::Chat(output) if output.ended() => {
            if enough.load(Ordering::Relaxed) {
                answer.finish = Finish::Stop;
            }
            Vec::new()
        }
        Reader::Chat(output) => output.end(match answer.finish {
            Finish::Stop => InferenceFinishReason::Stop,
            Finish::Length | Finish::ContextFull | Finish::Cancelled => InferenceFinishReason::Length,
        })?,
        Reader::Raw(decoder) => vec![Piece::Answer(decoder.finish())],
    };
    take(&mut answer, pieces)?;
    Ok(answer)
}

impl Loaded {
    /// Memory held against the plan, in a few words.
    fn ledger_held(&self) -> String {
        use fathom_kernels::Device;
        let held = self.model.device().ledger().holding(Share::State).held;
        format!("state {} of {}", human(held), human(self.plan.state))
    }
}
