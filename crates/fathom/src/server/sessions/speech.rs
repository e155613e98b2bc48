//! A session reads and speaks.

use std::convert::Infallible;
use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};

use axum::Json;
use axum::body::Body;
use axum::response::IntoResponse;
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use deepseek_recipe::stream::{InferenceFinishReason, ParsingOptions, ThinkingInitialStage};
use fathom_engine::{Constraint, Event, Finish, Owner, Request, Sampling, Usage};
use futures_util::stream;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use utoipa::ToSchema;

use super::{Answer, blocking, describe, json_or_nothing};
use crate::chat::constraint::{Form, Said};
use crate::chat::{Effort, Message, Output, Piece, Prompter, Role, explain};
use crate::server::extract::{Caller, Named};
use crate::server::form::{FIELD, structured};
use crate::server::openapi::{OfSessions, Refused, ServerEvent, SpeechReply, WithBody};
use crate::server::reply::KEEP_ALIVE;
use crate::server::{ApiError, Generate, Service};

/// What to read, in one of three forms, and how to go on from it.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default)]
#[schema(as = GenerateBody)]
pub(in crate::server) struct More {
    tokens: Option<Vec<u32>>,
    text: Option<String>,
    messages: Option<Vec<Turn>>,
    /// Whether the answer to messages begins with thinking.
    thinking: Option<bool>,
    max_tokens: Option<usize>,
    stream: bool,
    explain: bool,
    seed: Option<u64>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<usize>,
    min_p: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    structured_outputs: Option<Value>,
}

#[derive(Debug, Deserialize, Serialize, ToSchema)]
#[schema(as = SessionTurn)]
struct Turn {
    role: String,
    content: String,
}

impl More {
    /// The tokens to read after those that a session has.
    fn after(&self, before: &[u32], prompter: &Prompter, thinking: bool) -> Result<Vec<u32>, ApiError> {
        let encoded = |e: crate::Error| ApiError::bad(Some("text"), e.to_string());
        match (&self.tokens, &self.text, &self.messages) {
            (None, None, None) => Ok(Vec::new()),
            (Some(tokens), None, None) => Ok(tokens.clone()),
            (None, Some(text), None) if before.is_empty() => prompter.raw(text).map_err(encoded),
            (None, Some(text), None) => prompter.tokenizer().encode(text).map_err(encoded),
            (None, None, Some(turns)) => {
                let messages = turns.iter().map(Turn::message).collect::<Result<Vec<_>, _>>()?;
                let effort = if self.thinking.unwrap_or(thinking) { Effort::High } else { Effort::None };
                prompter.turn(before, &messages, effort).map_err(|e| ApiError::bad(Some("messages"), e.to_string()))
            }
            _ => Err(ApiError::bad(Some("messages"), "A request has one of 'tokens', 'text' and 'messages'.")),
        }
    }

    /// What the answer is held to.
    fn constraint(&self, prompter: &Prompter, thinks: bool) -> Result<Option<Arc<dyn Constraint>>, ApiError> {
        let asked = json!({FIELD: self.structured_outputs});
        let Some((at, format)) = structured(&asked)? else { return Ok(None) };
        let form = Form { thinks, answer: Said::Like(at, format), calls: None, written: String::new() };
        Ok(prompter.grammars().compile(&form)?)
    }

    fn sampling(&self) -> Sampling {
        let default = Sampling::default();
        Sampling {
            temperature: self.temperature.unwrap_or(default.temperature),
            top_p: self.top_p.unwrap_or(default.top_p),
            top_k: self.top_k.unwrap_or(default.top_k),
            min_p: self.min_p.unwrap_or(default.min_p),
            presence_penalty: self.presence_penalty.unwrap_or(default.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(default.frequency_penalty),
            seed: self.seed,
            ..default
        }
    }
}

impl Turn {
    fn message(&self) -> Result<Message, ApiError> {
        let role = match self.role.as_str() {
            "system" | "developer" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            other => {
                let message = format!("A role is 'system', 'user' or 'assistant', not {other:?}.");
                return Err(ApiError::bad(Some("messages"), message));
            }
        };
        Ok(Message { role, text: self.content.clone() })
    }
}

/// Lets the session read more.
#[utoipa::path(post, path = "/v1/sessions/{name}/append", operation_id = "append", params(("name" = String, Path,)), request_body = More,
    responses((status = 200, body = SpeechReply), Refused, OfSessions, WithBody))]
pub(in crate::server) async fn append<G: Generate>(
    Caller { service, owner }: Caller<G>,
    Named(name): Named,
    body: Body,
) -> Answer {
    let mut more: More = json_or_nothing(&service, body).await?;
    if more.tokens.is_none() && more.text.is_none() && more.messages.is_none() {
        return Err(ApiError::bad(
            Some("messages"),
            "There is nothing to append: send 'tokens', 'text' or 'messages'.",
        ));
    }
    (more.max_tokens, more.stream) = (Some(0), false);
    go_on(service, owner, name, more).await
}

/// Lets the session read more, if there is more, and speak.
#[utoipa::path(post, path = "/v1/sessions/{name}/generate", operation_id = "generate", params(("name" = String, Path,)), request_body = More,
    responses((status = 200, content((SpeechReply = "application/json"), (ServerEvent = "text/event-stream"))), Refused, OfSessions, WithBody))]
pub(in crate::server) async fn generate<G: Generate>(
    Caller { service, owner }: Caller<G>,
    Named(name): Named,
    body: Body,
) -> Answer {
    let more: More = json_or_nothing(&service, body).await?;
    go_on(service, owner, name, more).await
}

/// Lets a session read and speak.
async fn go_on<G: Generate>(service: Arc<Service<G>>, owner: Owner, name: String, more: More) -> Answer {
    let slot = service.take_slot(&owner)?;
    let work = service.work();
    let (send, events) = mpsc::unbounded_channel();
    let (stream, tokenizer) = (more.stream, Arc::clone(service.prompter.tokenizer()));
    let (for_thread, of) = (Arc::clone(&service), (owner.clone(), name.clone()));
    let (place, mut watch) = (service.prefills.place(&owner), service.watch());
    // For the prompt, which is known only once the session is at hand; held as long as the place.
    let room = Arc::new(OnceLock::new());
    let held_room = Arc::clone(&room);
    let thinks = blocking(&service, move |sessions| {
        let (owner, name) = of;
        let mut thinks = false;
        let with = |before: &[u32]| -> Result<_, ApiError> {
            let tokens = more.after(before, &for_thread.prompter, for_thread.served.thinking)?;
            // What is longer than the context is the engine's to refuse.
            let prompt = (before.len() + tokens.len()).min(for_thread.served.context);
            let _ = room.set(for_thread.desk.prompts(prompt)?);
            let last = tokens.last().or(before.last()).copied();
            thinks = last.is_some_and(|last| for_thread.prompter.begins_thinking(last));
            let request = Request {
                max_tokens: more.max_tokens,
                stop_tokens: vec![for_thread.eos],
                sampling: more.sampling(),
                constraint: more.constraint(&for_thread.prompter, thinks)?,
                explain: more.explain,
                ..Request::default()
            };
            Ok((tokens, request))
        };
        sessions.go_on(&owner, &name, with, move |event| {
            let _held = (&slot, &work, &held_room);
            watch.see(&event);
            let goes_on = place.see(&event, true);
            match send.send(event).is_ok() && goes_on {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            }
        })?;
        Ok(thinks)
    })
    .await?;
    let stage = thinks.then_some(ThinkingInitialStage::ReasoningStart);
    let parsing =
        ParsingOptions { parse_tool_calls: false, thinking_initial_stage: stage, ..ParsingOptions::default() };
    let output = Output::new(tokenizer, parsing);
    let mut speech = Speech {
        service,
        owner,
        name,
        events,
        output,
        tokens: Vec::new(),
        said: String::new(),
        thought: String::new(),
        over: false,
    };
    if stream {
        return Ok(Sse::new(speech.stream()).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response());
    }
    loop {
        if let Step::End(end) = speech.next().await? {
            return Ok(Json(end).into_response());
        }
    }
}

/// What a session says, as it comes.
struct Speech<G> {
    service: Arc<Service<G>>,
    owner: Owner,
    name: String,
    events: UnboundedReceiver<Event>,
    output: Output,
    tokens: Vec<u32>,
    said: String,
    thought: String,
    over: bool,
}

enum Step {
    Progress(String),
    Said(Value),
    End(Value),
}

impl<G: Generate> Speech<G> {
    async fn next(&mut self) -> Result<Step, ApiError> {
        let gone = || ApiError::internal("The engine stopped before the answer was complete.");
        match self.events.recv().await.ok_or_else(gone)? {
            // Only those get it who ask how likely their prompt is.
            Event::Read { .. } => Ok(Step::Progress(String::new())),
            Event::Queued { ahead } => Ok(Step::Progress(format!("queued, {ahead} ahead"))),
            Event::Follows { done, total, .. } | Event::Prefill { done, total, .. } => {
                Ok(Step::Progress(format!("prefill {done}/{total}")))
            }
            Event::Token { id, .. } => {
                self.tokens.push(id);
                let pieces = self.output.push(id, None).map_err(|e| ApiError::internal(e.to_string()))?;
                let (thought, said) = self.take(pieces);
                Ok(Step::Said(json!({"tokens": [id], "thinking": thought, "text": said})))
            }
            Event::Done { reason, usage } => self.end(reason, &usage).await.map(Step::End),
            Event::Failed(error) => Err(ApiError::from_engine(&error)),
        }
    }

    fn take(&mut self, pieces: Vec<Piece>) -> (String, String) {
        let (mut thought, mut said) = (String::new(), String::new());
        for piece in pieces {
            match piece {
                Piece::Thinking(text) => thought += &text,
                Piece::Answer(text) => said += &text,
                Piece::ToolCall { .. } | Piece::Arguments(_) | Piece::End(_) => {}
            }
        }
        self.thought += &thought;
        self.said += &said;
        (thought, said)
    }

    async fn end(&mut self, reason: Finish, usage: &Usage) -> Result<Value, ApiError> {
        let (ended, word) = match reason {
            Finish::Stop => (InferenceFinishReason::Stop, "stop"),
            Finish::Length => (InferenceFinishReason::Length, "length"),
            Finish::ContextFull => (InferenceFinishReason::Length, "context_full"),
            Finish::Cancelled => (InferenceFinishReason::Length, "cancelled"),
        };
        let pieces = self.output.end(ended).map_err(|e| ApiError::internal(e.to_string()))?;
        self.take(pieces);
        let (owner, name) = (self.owner.clone(), self.name.clone());
        let session = blocking(&self.service, move |sessions| Ok(sessions.get(&owner, &name)?)).await?;
        let missed = usage.missed.as_ref();
        let tokenizer = self.service.prompter.tokenizer();
        Ok(json!({
            "session": describe(&session),
            "tokens": self.tokens,
            "thinking": self.thought,
            "text": self.said,
            "finish_reason": word,
            "usage": numbers(usage),
            "prefix": missed.map(|missed| json!({"reason": missed.why.word(), "message": explain(missed, tokenizer)})),
        }))
    }

    /// The same as server-sent events: what is said, the end, and progress as comments, which keep clients from timing out.
    fn stream(self) -> impl stream::Stream<Item = Result<Sent, Infallible>> {
        stream::unfold(self, |mut speech| async move {
            if speech.over {
                return None;
            }
            let sent = match speech.next().await {
                Ok(Step::Progress(text)) => Sent::default().comment(text),
                Ok(Step::Said(said)) => Sent::default().data(said.to_string()),
                Ok(Step::End(end)) => {
                    speech.over = true;
                    Sent::default().event("done").data(end.to_string())
                }
                Err(error) => {
                    speech.over = true;
                    Sent::default().event("error").data(error.body().to_string())
                }
            };
            Some((Ok(sent), speech))
        })
    }
}

fn numbers(usage: &Usage) -> Value {
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "reused_tokens": usage.reused_tokens,
        "generated_tokens": usage.generated_tokens,
        "prefill_seconds": usage.prefill.as_secs_f64(),
        "decode_seconds": usage.decode.as_secs_f64(),
    })
}
