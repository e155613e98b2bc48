//! `POST /v1/completions`: texts that are continued as they stand, no template around them.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::Request as HttpRequest;
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use fathom_engine::{Event, Finish, Logprob, Owner, Request};
use futures_util::{Stream, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;
use utoipa::ToSchema;

use super::chat::GUIDED;
use super::dialect::{Unsupported, never, refuse};
use super::events::Events;
use super::form::structured;
use super::openapi::{Asked, CompletionsReply, Refused, ServerEvent, WithBody};
use super::reply::{KEEP_ALIVE, LOWEST_LOGPROB, reply_id};
use super::request::{Sampled, json as parsed, typed};
use super::{ApiError, Generate, Service};
use crate::chat::constraint::{Form, Said};
use crate::chat::{Decoder, Stops, Tokenizer};
use crate::clock::now;

/// The most texts of one request.
const CHOICES: usize = 128;
/// Tokens of an answer, where nobody says.
const MAX_TOKENS: usize = 16;
/// The most stop strings.
const STOPS: usize = 16;

/// What OpenAI's completions have and we have not.
const UNSUPPORTED: [Unsupported; 6] = [
    Unsupported("guided_json", never, GUIDED),
    Unsupported("guided_regex", never, GUIDED),
    Unsupported("guided_choice", never, GUIDED),
    Unsupported("guided_grammar", never, GUIDED),
    Unsupported("suffix", |value| value == "", "texts are continued at their end only"),
    Unsupported("best_of", |value| value == 1, "ask for several with 'n', and take the best"),
];

/// A request, as it is sent.
#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct Wanted {
    #[schema(schema_with = super::openapi::model)]
    model: String,
    prompt: Prompts,
    max_tokens: Option<usize>,
    #[schema(minimum = 1, maximum = 128)]
    n: Option<usize>,
    /// Whether the text is to have the prompt too.
    echo: Option<bool>,
    /// How many alternatives are told of each token; with `echo` of the prompt's too.
    logprobs: Option<usize>,
    seed: Option<u64>,
    stop: Option<Strings>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
}

#[derive(Debug, Deserialize, ToSchema)]
pub(super) struct StreamOptions {
    include_usage: Option<bool>,
}

/// One prompt or several, as text or as tokens.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "a string, a list of strings, a list of token ids, or a list of such lists")]
pub(super) enum Prompts {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    Many(Vec<Vec<u32>>),
}

/// One or several.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "a string or a list of strings")]
pub(super) enum Strings {
    One(String),
    Many(Vec<String>),
}

/// The body: a text's wishes, how its tokens are chosen, and what they are held to.
#[derive(ToSchema)]
#[expect(dead_code, reason = "each part is read by itself")]
pub(super) struct CompletionsBody {
    #[serde(flatten)]
    wanted: Wanted,
    #[serde(flatten)]
    sampled: Sampled,
    /// One of `json`, `json_object`, `regex`, `choice` and `grammar`.
    structured_outputs: Option<Value>,
}

/// Continues texts as they stand.
#[utoipa::path(post, path = "/v1/completions", request_body = CompletionsBody,
    responses((status = 200, content((CompletionsReply = "application/json"), (ServerEvent = "text/event-stream"))), Refused,
        WithBody, Asked))]
pub(super) async fn completions<G: Generate>(
    State(service): State<Arc<Service<G>>>,
    request: HttpRequest<Body>,
) -> Result<Response, ApiError> {
    let owner = service.keys.owner(request.headers())?;
    let body = service.desk.receive(request.into_body()).await?;
    let mut slot = service.take_slot(&owner)?;
    let work = service.work();
    let encoder = Arc::clone(&service);
    let encoded = tokio::task::spawn_blocking(move || encode(&encoder, owner, &body.bytes));
    let Encoded { requests, texts, stream, include_usage, room } =
        encoded.await.map_err(|_| ApiError::internal("Reading the request failed."))??;
    slot.hold(room);
    let mut writing = Writing {
        events: Events::of(&service, requests, slot, &work).map_err(of_prompt)?,
        texts,
        head: json!({
            "id": reply_id("cmpl-"),
            "object": "text_completion",
            "created": now(),
            "model": service.served.model,
        }),
        usage: Usage::default(),
    };
    if stream {
        let events = writing.stream(include_usage);
        return Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response());
    }
    while writing.next().await?.is_some() {}
    let choices: Vec<Value> = writing.texts.iter_mut().enumerate().map(|(i, text)| text.take(i)).collect();
    Ok(Json(writing.with(json!(choices), Some(writing.usage.shown()))).into_response())
}

/// What is wrong with a prompt, which conversations have as messages.
fn of_prompt(error: ApiError) -> ApiError {
    match error.param.as_deref() {
        Some("messages") => ApiError { param: Some("prompt".into()), ..error },
        _ => error,
    }
}

/// A request, ready for the engine.
struct Encoded {
    requests: Vec<Request>,
    texts: Vec<Text>,
    stream: bool,
    include_usage: bool,
    /// For the prompts.
    room: OwnedSemaphorePermit,
}

fn encode<G: Generate>(service: &Service<G>, owner: Owner, body: &[u8]) -> Result<Encoded, ApiError> {
    let body = parsed(body)?;
    let (asked, sampled): (Wanted, Sampled) = (typed(&body)?, typed(&body)?);
    refuse(&body, &UNSUPPORTED)?;
    service.served.check_name(&asked.model)?;
    let tokenizer = service.prompter.tokenizer();
    let encoded = |text: &String| {
        let prompt = service.prompter.raw(text).map_err(|e| ApiError::bad(Some("prompt"), e.to_string()))?;
        Ok((prompt, true))
    };
    // Tokens are taken as they are; before a text comes the token that begins every sequence.
    let prompts: Vec<(Vec<u32>, bool)> = match &asked.prompt {
        Prompts::Text(text) => vec![encoded(text)?],
        Prompts::Texts(texts) => texts.iter().map(encoded).collect::<Result<_, ApiError>>()?,
        Prompts::Tokens(tokens) => vec![(tokens.clone(), false)],
        Prompts::Many(all) => all.iter().map(|tokens| (tokens.clone(), false)).collect(),
    };
    let n = asked.n.unwrap_or(1);
    if prompts.is_empty() {
        return Err(ApiError::bad(Some("prompt"), "'prompt' is empty; it takes a text, or tokens."));
    }
    if n == 0 || n.saturating_mul(prompts.len()) > CHOICES {
        let message = format!("A request has from 1 to {CHOICES} answers: 'n' for each prompt.");
        return Err(ApiError::bad(Some("n"), message));
    }
    let stops = match asked.stop {
        None => Vec::new(),
        Some(Strings::One(stop)) => vec![stop],
        Some(Strings::Many(stops)) => stops,
    };
    if stops.len() > STOPS || stops.iter().any(String::is_empty) {
        return Err(ApiError::bad(Some("stop"), format!("stop takes up to {STOPS} strings that are not empty.")));
    }
    let sampling = sampled.sampling(asked.seed, asked.logprobs, &service.served)?;
    let form = structured(&body)?.map(|(at, format)| {
        let answer = Said::Like(at, format);
        Form { thinks: false, answer, calls: None, written: String::new() }
    });
    let constraint = form.map(|form| service.prompter.grammars().compile(&form)).transpose()?.flatten();
    let echo = asked.echo.unwrap_or(false);
    // Before there are copies of it.
    let room = service.desk.prompts(prompts.iter().map(|(prompt, _)| prompt.len()).sum::<usize>() * n)?;
    let mut encoded = Encoded {
        room,
        requests: Vec::new(),
        texts: Vec::new(),
        stream: asked.stream.unwrap_or(false),
        include_usage: asked.stream_options.and_then(|options| options.include_usage).unwrap_or(false),
    };
    for (prompt, begun) in prompts {
        for i in 0..n {
            let mut text = Text::new(tokenizer, stops.clone(), asked.logprobs.is_some());
            text.skip = usize::from(begun);
            text.echo = echo.then(|| prompt.clone());
            text.counts_prompt = i == 0;
            encoded.texts.push(text);
            let mut sampling = sampling.clone();
            sampling.seed = sampling.seed.map(|seed| seed.wrapping_add(i as u64));
            encoded.requests.push(Request {
                prompt: prompt.clone(),
                max_tokens: Some(asked.max_tokens.unwrap_or(MAX_TOKENS)),
                stop_tokens: vec![service.eos],
                sampling,
                constraint: constraint.clone(),
                owner: owner.clone(),
                prompt_logprobs: asked.logprobs.filter(|_| echo),
                ..Request::default()
            });
        }
    }
    Ok(encoded)
}

/// What all texts took.
#[derive(Debug, Clone, Copy, Default)]
struct Usage {
    prompt: usize,
    reused: usize,
    generated: usize,
}

impl Usage {
    fn shown(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.generated,
            "total_tokens": self.prompt + self.generated,
            "prompt_tokens_details": {"cached_tokens": self.reused},
        })
    }
}

/// Texts under way. Dropping it stops them.
struct Writing {
    events: Events,
    texts: Vec<Text>,
    /// What every chunk has.
    head: Value,
    usage: Usage,
}

impl Writing {
    /// Takes an event, and says whose it was and what progress it told; none after the last.
    async fn next(&mut self) -> Result<Option<(usize, Option<String>)>, ApiError> {
        if self.texts.iter().all(|text| text.finish.is_some()) {
            return Ok(None);
        }
        let (i, event) = self.events.next().await?;
        let text = &mut self.texts[i];
        let mut progress = None;
        match event {
            Event::Queued { ahead } => progress = Some(format!("queued, {ahead} ahead")),
            Event::Follows { done, total, .. } => progress = Some(format!("prefill {done}/{total}")),
            Event::Prefill { done, total, reused } => {
                (text.prompt_tokens, text.reused) = (total, reused);
                progress = Some(format!("prefill {done}/{total}"));
            }
            Event::Failed(_) => {}
            Event::Read { id, logprob, top } => text.read(id, logprob, &top),
            // What comes until the engine hears that it is enough.
            Event::Token { .. } if text.finish.is_some() => {}
            Event::Token { id, logprob, top } => {
                self.usage.generated += 1;
                text.push(id, logprob, &top);
                if text.finish.is_some() {
                    self.events.stop(i);
                    // Its end will not come.
                    if text.counts_prompt {
                        self.usage.prompt += text.prompt_tokens;
                        self.usage.reused += text.reused;
                    }
                }
            }
            Event::Done { reason, usage } if text.finish.is_none() => {
                text.end(reason);
                if text.counts_prompt {
                    self.usage.prompt += usage.prompt_tokens;
                    self.usage.reused += usage.reused_tokens;
                }
            }
            Event::Done { .. } => {}
        }
        Ok(Some((i, progress)))
    }

    fn with(&self, choices: Value, usage: Option<Value>) -> Value {
        let mut reply = self.head.clone();
        reply["choices"] = choices;
        if let Some(usage) = usage {
            reply["usage"] = usage;
        }
        reply
    }

    fn stream(self, include_usage: bool) -> impl Stream<Item = Result<Sent, Infallible>> {
        struct Sending {
            writing: Writing,
            ready: VecDeque<Sent>,
            done: bool,
        }
        let sending = Sending { writing: self, ready: VecDeque::new(), done: false };
        stream::unfold(sending, move |mut sending| async move {
            loop {
                if let Some(event) = sending.ready.pop_front() {
                    return Some((Ok(event), sending));
                }
                if sending.done {
                    return None;
                }
                let writing = &mut sending.writing;
                match writing.next().await {
                    Ok(Some((i, progress))) => {
                        sending.ready.extend(progress.map(|progress| Sent::default().comment(progress)));
                        if writing.texts[i].has_news() {
                            let choice = writing.texts[i].take(i);
                            let usage = include_usage.then_some(Value::Null);
                            sending.ready.push_back(data(&writing.with(json!([choice]), usage)));
                        }
                    }
                    Ok(None) => {
                        let usage = writing.usage.shown();
                        let last = include_usage.then(|| data(&writing.with(json!([]), Some(usage))));
                        sending.ready.extend(last);
                        sending.ready.push_back(Sent::default().data("[DONE]"));
                        sending.done = true;
                    }
                    Err(error) => {
                        sending.ready.push_back(data(&error.body()));
                        sending.done = true;
                    }
                }
            }
        })
    }
}

fn data(value: &Value) -> Sent {
    Sent::default().data(value.to_string())
}

/// One text: what was written of it and not taken yet.
struct Text {
    tokenizer: Arc<Tokenizer>,
    decoder: Decoder,
    stops: Stops,
    /// The prompt, if it is to be part of the text.
    echo: Option<Vec<u32>>,
    /// Tokens of the prompt that are no part of it.
    skip: usize,
    /// Whether its prompt counts: those of a prompt's other texts are the same.
    counts_prompt: bool,
    prompt_tokens: usize,
    /// Of those, the ones that were not read again.
    reused: usize,
    new: String,
    logprobs: Option<Logprobs>,
    finish: Option<&'static str>,
    told: bool,
}

/// Tokens and how likely they were, as OpenAI's completions have it.
#[derive(Debug, Default)]
struct Logprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<BTreeMap<String, f32>>>,
    text_offset: Vec<usize>,
    /// Characters of all tokens so far.
    characters: usize,
}

impl Text {
    fn new(tokenizer: &Arc<Tokenizer>, stops: Vec<String>, logprobs: bool) -> Text {
        Text {
            tokenizer: Arc::clone(tokenizer),
            decoder: Decoder::new(Arc::clone(tokenizer)),
            stops: Stops::new(stops),
            echo: None,
            skip: 0,
            counts_prompt: true,
            prompt_tokens: 0,
            reused: 0,
            new: String::new(),
            logprobs: logprobs.then(Logprobs::default),
            finish: None,
            told: false,
        }
    }

    /// The prompt comes first, if it is to come at all, and its first token could not have been foretold.
    fn begin(&mut self) {
        let Some(prompt) = self.echo.take() else { return };
        self.new += &self.tokenizer.decode(&prompt[self.skip..]);
        if self.skip == 0
            && let (Some(logprobs), Some(&first)) = (&mut self.logprobs, prompt.first())
        {
            logprobs.add(&self.tokenizer, first, None, &[]);
        }
    }

    /// How likely a token of the prompt was.
    fn read(&mut self, id: u32, logprob: Option<f32>, top: &[Logprob]) {
        self.begin();
        if let Some(logprobs) = &mut self.logprobs {
            logprobs.add(&self.tokenizer, id, logprob, top);
        }
    }

    fn push(&mut self, id: u32, logprob: Option<f32>, top: &[Logprob]) {
        self.begin();
        if let Some(logprobs) = &mut self.logprobs {
            logprobs.add(&self.tokenizer, id, logprob, top);
        }
        let (text, found) = self.stops.push(&self.decoder.push(id));
        self.new += &text;
        if found {
            self.finish = Some("stop");
        }
    }

    fn end(&mut self, reason: Finish) {
        self.begin();
        let (text, found) = self.stops.push(&self.decoder.finish());
        self.new += &text;
        self.new += &self.stops.finish();
        self.finish = Some(match reason {
            _ if found => "stop",
            Finish::Stop => "stop",
            Finish::Length | Finish::ContextFull | Finish::Cancelled => "length",
        });
    }

    /// Whether there is something that was not taken.
    fn has_news(&self) -> bool {
        !self.new.is_empty() || self.finish.is_some() && !self.told
    }

    /// What is new, as a choice.
    fn take(&mut self, index: usize) -> Value {
        self.told = self.finish.is_some();
        json!({
            "index": index,
            "text": std::mem::take(&mut self.new),
            "logprobs": self.logprobs.as_mut().map(Logprobs::take),
            "finish_reason": self.finish,
        })
    }
}

impl Logprobs {
    fn add(&mut self, tokenizer: &Tokenizer, id: u32, logprob: Option<f32>, top: &[Logprob]) {
        let token = spelled(tokenizer, id);
        self.text_offset.push(self.characters);
        self.characters += tokenizer.decode(&[id]).chars().count();
        let others = top.iter().map(|other| (spelled(tokenizer, other.token), other.logprob.max(LOWEST_LOGPROB)));
        let own = logprob.map(|logprob| (token.clone(), logprob.max(LOWEST_LOGPROB)));
        // The token itself is always among them.
        self.top_logprobs.push(logprob.map(|_| others.chain(own).collect()));
        self.token_logprobs.push(logprob.map(|logprob| logprob.max(LOWEST_LOGPROB)));
        self.tokens.push(token);
    }

    fn take(&mut self) -> Value {
        json!({
            "tokens": std::mem::take(&mut self.tokens),
            "token_logprobs": std::mem::take(&mut self.token_logprobs),
            "top_logprobs": std::mem::take(&mut self.top_logprobs),
            "text_offset": std::mem::take(&mut self.text_offset),
        })
    }
}

/// A token's text; one that is part of a character only as `bytes:` and its bytes, so that no two are the same.
fn spelled(tokenizer: &Tokenizer, id: u32) -> String {
    let bytes = tokenizer.token_bytes(id);
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |text, byte| text + &format!("\\x{byte:02x}")),
    }
}
