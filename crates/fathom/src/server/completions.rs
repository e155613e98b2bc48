//! `POST /v1/chat/completions`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::hash::{BuildHasher, RandomState};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{Request as HttpRequest, StatusCode};
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use deepseek_recipe::openai::ChatCompletionRequest;
use deepseek_recipe::openai::chat_completion::response::{ChatCompletionChunk, ChatCompletionResponse};
use deepseek_recipe::request::{ConversationRequest, ProtocolRequest};
use deepseek_recipe::response::{Accumulate, ProtocolResponse};
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::answer::Answer;
use super::request::{ChatRequest, parse_chat};
use super::{ApiError, Generate, Service};
use crate::chat::{Output, TextSeam};
use fathom_engine::{Owner, Request};

/// A body that has not come after this long is given up.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// Clients give up on a stream that is silent for a minute or so.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Answers a conversation.
pub(super) async fn completions<G: Generate>(
    State(service): State<Arc<Service<G>>>,
    request: HttpRequest<Body>,
) -> Result<Response, ApiError> {
    let owner = service.keys.owner(request.headers())?;
    let body = read_in_time(request.into_body(), service.limits.body).await?;
    // Not before: who sends half a request takes nobody's place.
    let slot = service.take_slot()?;
    let work = service.work();
    // A million tokens take a while to encode: not on a thread that answers others.
    let encoder = Arc::clone(&service);
    let (request, prompt) = tokio::task::spawn_blocking(move || encode(&encoder, &body))
        .await
        .map_err(|_| ApiError::internal("Reading the request failed."))??;
    start(&service, owner, request, prompt, slot, work)?.respond().await
}

/// The body's bytes, if they come in time.
pub(super) async fn read_in_time(body: Body, limit: usize) -> Result<Vec<u8>, ApiError> {
    tokio::time::timeout(PATIENCE, read(body, limit))
        .await
        .map_err(|_| ApiError::other(StatusCode::REQUEST_TIMEOUT, "timeout", "The body took too long to arrive."))?
}

/// The body's bytes, at most `limit` of them.
async fn read(body: Body, limit: usize) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    let mut total = 0;
    let mut stream = body.into_data_stream();
    while let Some(part) = stream.next().await {
        let part: Bytes = part.map_err(|error| ApiError::bad(None, format!("The body ended early: {error}.")))?;
        total += part.len();
        if total <= limit {
            bytes.extend_from_slice(&part);
        } else {
            // A client that is still sending does not read the answer yet, so hear it out, within reason.
            bytes = Vec::new();
            if total > limit.saturating_mul(16) {
                break;
            }
        }
    }
    if total > limit {
        let message = format!("The body is larger than {limit} bytes.");
        return Err(ApiError::other(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message));
    }
    Ok(bytes)
}

/// The request and its prompt, if both are in order.
fn encode<G: Generate>(service: &Service<G>, body: &[u8]) -> Result<(ChatRequest, Vec<u32>), ApiError> {
    let mut request = parse_chat(body, &service.served)?;
    let prompt = service
        .prompter
        .conversation(&request.converted.conversation)
        .map_err(|error| ApiError::bad(Some("messages"), error.to_string()))?;
    let context = service.served.context;
    if prompt.len() >= context {
        return Err(ApiError::too_long(format!(
            "This model's maximum context length is {context} tokens, and the prompt has {}: there is no room for an \
             answer. Shorten the messages.",
            prompt.len()
        )));
    }
    let count = |tokens| u32::try_from(tokens).unwrap_or(u32::MAX);
    let max_tokens = request
        .converted
        .resolve_max_tokens(count(prompt.len()), count(context))
        .map_err(|error| ApiError::too_long(error.to_string()))?;
    request.converted.inference_options.max_tokens = Some(max_tokens);
    Ok((request, prompt))
}

/// Hands the request to the engine.
fn start<G: Generate>(
    service: &Service<G>,
    owner: Owner,
    request: ChatRequest,
    prompt: Vec<u32>,
    slot: OwnedSemaphorePermit,
    work: Arc<()>,
) -> Result<Started, ApiError> {
    let ChatRequest { mut converted, sampling, explain } = request;
    let id = response_id();
    let tokenizer = service.prompter.tokenizer();
    // The answer is accumulated from chunks, which then all have to carry what it needs.
    let generator = ChatCompletionRequest::chunk_generator(&converted, id.clone(), service.served.model.clone());
    let parsing = std::mem::take(&mut converted.parsing_options);
    let output = Output::with_generator(Arc::clone(tokenizer), parsing, generator);

    let max_tokens = converted.inference_options.max_tokens.map(|tokens| tokens as usize);
    let stop_tokens = vec![service.eos];
    let engine_request = Request {
        branch: service.prompter.branch(&prompt),
        prompt,
        max_tokens,
        stop_tokens: stop_tokens.clone(),
        sampling,
        owner,
        seam: Some(Arc::new(TextSeam(Arc::clone(tokenizer)))),
        explain,
        ..Request::default()
    };
    let (send, events) = mpsc::unbounded_channel();
    // The engine's thread does nothing but pass events on; nobody there to hear them ends the generation.
    let sink = move |event| {
        let _work = &work;
        match send.send(event) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    };
    service.engine.submit(engine_request, Box::new(sink)).map_err(|error| ApiError::from_engine(&error))?;
    let explained_with = explain.then(|| Arc::clone(tokenizer));
    let answer = Answer::new(events, output, stop_tokens, explained_with, slot);
    Ok(Started { answer, converted, id, model: service.served.model.clone() })
}

/// An answer under way and how to send it.
struct Started {
    answer: Answer,
    converted: ConversationRequest,
    id: String,
    model: String,
}

impl Started {
    async fn respond(mut self) -> Result<Response, ApiError> {
        if self.converted.stream {
            let include_usage = self.converted.response_options.include_usage;
            let keep_alive = KeepAlive::new().interval(KEEP_ALIVE);
            return Ok(Sse::new(events(self.answer, include_usage)).keep_alive(keep_alive).into_response());
        }
        let mut response = ChatCompletionResponse::new(self.id, self.model, now(), 0, 0);
        while let Some(step) = self.answer.next().await {
            for chunk in step?.chunks {
                response.accumulate(chunk);
            }
        }
        let prefix = self.answer.prefix();
        match (serde_json::to_value(&response), prefix) {
            (Ok(mut response), Some(prefix)) => {
                response["prefix"] = prefix.clone();
                Ok(Json(response).into_response())
            }
            _ => Ok(Json(response).into_response()),
        }
    }
}

/// The server-sent events of an answer: chunks, and progress as comments, which keep clients from timing out.
fn events(answer: Answer, include_usage: bool) -> impl Stream<Item = Result<Sent, Infallible>> {
    struct Sending {
        answer: Answer,
        ready: VecDeque<Sent>,
        done: bool,
    }
    let sending = Sending { answer, ready: VecDeque::new(), done: false };
    stream::unfold(sending, move |mut sending| async move {
        loop {
            if let Some(event) = sending.ready.pop_front() {
                return Some((Ok(event), sending));
            }
            if sending.done {
                return None;
            }
            match sending.answer.next().await {
                Some(Ok(step)) => {
                    sending.ready.extend(step.progress.map(|progress| Sent::default().comment(progress)));
                    for chunk in step.chunks {
                        sending.ready.extend(with_usage_apart(chunk, include_usage).iter().map(data));
                    }
                }
                Some(Err(error)) => {
                    // The status is out already; clients look for an error in the data.
                    sending.ready.push_back(Sent::default().data(error.body().to_string()));
                    sending.done = true;
                }
                None => {
                    let prefix =
                        sending.answer.prefix().map(|prefix| Sent::default().event("prefix").data(prefix.to_string()));
                    sending.ready.extend(prefix);
                    sending.ready.push_back(Sent::default().data("[DONE]"));
                    sending.done = true;
                }
            }
        }
    })
}

fn data(chunk: &ChatCompletionChunk) -> Sent {
    match serde_json::to_string(chunk) {
        Ok(json) => Sent::default().data(json),
        Err(error) => Sent::default().data(ApiError::internal(error.to_string()).body().to_string()),
    }
}

/// OpenAI sends the usage in a chunk of its own, without choices, and only if asked; DeepSeek in the last one.
fn with_usage_apart(mut chunk: ChatCompletionChunk, include_usage: bool) -> Vec<ChatCompletionChunk> {
    let Some(Some(usage)) = chunk.usage.take() else {
        chunk.usage = include_usage.then_some(None);
        return vec![chunk];
    };
    if !include_usage {
        return vec![chunk];
    }
    chunk.usage = Some(None);
    let last = ChatCompletionChunk {
        id: chunk.id.clone(),
        object: chunk.object,
        created: chunk.created,
        model: chunk.model.clone(),
        system_fingerprint: chunk.system_fingerprint.clone(),
        choices: Vec::new(),
        usage: Some(Some(usage)),
    };
    vec![chunk, last]
}

fn response_id() -> String {
    // Each RandomState has keys of its own, from the system's randomness at first.
    format!("chatcmpl-{:016x}{:016x}", RandomState::new().hash_one(0), RandomState::new().hash_one(1))
}

pub(super) fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
