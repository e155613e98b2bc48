//! A conversation's next turn, in whatever dialect it is asked for: the request to the engine, and its events as chunks.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::Request as HttpRequest;
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use deepseek_recipe::request::ProtocolRequest;
use deepseek_recipe::response::{Accumulate, ProtocolResponse};
use deepseek_recipe::stream::InferenceFinishReason;
use futures_util::{Stream, stream};
use serde::Serialize;
use serde_json::{Value, json};

use super::dialect::{Chunk, Dialect, Generator, Reply};
use super::events::Events;
use super::request::{ChatRequest, json};
use super::{ApiError, Generate, Service};
use crate::chat::{Output, TextSeam, Tokenizer, explain};
use crate::clock::now;
use deepseek_recipe::stream::InferenceTokenLogprob;
use fathom_engine::{Constraint, Event, Finish, Logprob, Request};

/// Clients give up on a stream that is silent for a minute or so.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// What OpenAI writes for a log probability of nothing at all; JSON has no infinity.
pub(super) const LOWEST_LOGPROB: f32 = -9999.0;

/// Answers a request of a dialect.
pub(super) async fn reply<G: Generate, D: Dialect>(
    State(service): State<Arc<Service<G>>>,
    request: HttpRequest<Body>,
) -> Response
where
    Chunk<D>: Serialize + Send + 'static,
{
    answer::<G, D>(service, request).await.unwrap_or_else(D::refusal)
}

async fn answer<G: Generate, D: Dialect>(
    service: Arc<Service<G>>,
    request: HttpRequest<Body>,
) -> Result<Response, ApiError>
where
    Chunk<D>: Serialize + Send + 'static,
{
    let owner = service.keys.owner(request.headers())?;
    let body = service.desk.receive(request.into_body()).await?;
    // Not before: who sends half a request takes nobody's place.
    let mut slot = service.take_slot(&owner)?;
    let work = service.work();
    // A million tokens take a while to encode: not on a thread that answers others.
    let encoder = Arc::clone(&service);
    let (request, prompt, constraint) = tokio::task::spawn_blocking(move || encode::<G, D>(&encoder, &body.bytes))
        .await
        .map_err(|_| ApiError::internal("Reading the request failed."))??;

    let ChatRequest { mut converted, sampling, explain, choices, form } = request;
    slot.hold(service.desk.prompts(prompt.len() * choices)?);
    let held = form.is_some_and(|form| form.calls.is_some());
    let tokenizer = service.prompter.tokenizer();
    let (id, model) = (reply_id(D::ID), service.served.model.clone());
    let parsing = std::mem::take(&mut converted.parsing_options);
    let outputs = (0..choices).map(|_| {
        let generator = D::Request::chunk_generator(&converted, id.clone(), model.clone());
        // Calls that are held to their form stream as they come; in one piece, a call that was cut short is none.
        if held && converted.stream {
            return Output::with_generator(Arc::clone(tokenizer), parsing.clone(), generator);
        }
        let names = converted.conversation.tools.iter().map(|tool| tool.name.clone()).collect();
        Output::checked(Arc::clone(tokenizer), parsing.clone(), generator, names)
    });
    let request = Request {
        branch: service.prompter.branch(&prompt),
        prompt,
        max_tokens: converted.inference_options.max_tokens.map(|tokens| tokens as usize),
        stop_tokens: vec![service.eos],
        sampling,
        constraint,
        owner,
        seam: Some(Arc::new(TextSeam(Arc::clone(tokenizer)))),
        explain,
        ..Request::default()
    };
    let requests = (0..choices).map(|i| {
        let mut request = request.clone();
        // Choices of one seed are to differ.
        request.sampling.seed = request.sampling.seed.map(|seed| seed.wrapping_add(i as u64));
        request
    });
    let answer = Answer::<D> {
        events: Events::of(&service, requests, slot, &work)?,
        outputs: outputs.collect(),
        begun: vec![false; choices],
        dialect: D::new(&converted, choices),
        explained_with: explain.then(|| Arc::clone(tokenizer)),
        prefix: None,
    };
    if converted.stream {
        return Ok(Sse::new(events(answer)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response());
    }
    whole(answer, Reply::<D>::new(id, model, now(), 0, 0)).await
}

/// The request, its prompt, and what its answers are held to, if all are in order.
#[allow(clippy::type_complexity)]
fn encode<G: Generate, D: Dialect>(
    service: &Service<G>,
    body: &[u8],
) -> Result<(ChatRequest, Vec<u32>, Option<Arc<dyn Constraint>>), ApiError> {
    let mut request = D::understand(json(body)?, &service.served)?;
    let prompt = render(service, &request)?;
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
    let constraint = request.form.as_ref().map(|form| service.prompter.grammars().compile(form)).transpose()?;
    Ok((request, prompt, constraint.flatten()))
}

/// A conversation's prompt.
pub(super) fn render<G: Generate>(service: &Service<G>, request: &ChatRequest) -> Result<Vec<u32>, ApiError> {
    let prompt = service.prompter.conversation(&request.converted.conversation);
    prompt.map_err(|error| ApiError::bad(Some("messages"), error.to_string()))
}

/// A reply under way. Dropping it stops the generation.
struct Answer<D: Dialect> {
    events: Events,
    /// Of each choice.
    outputs: Vec<Output<Generator<D>>>,
    begun: Vec<bool>,
    dialect: D,
    explained_with: Option<Arc<Tokenizer>>,
    /// What was reused of the prompt and why not more, once that is known, if it was asked for.
    prefix: Option<Value>,
}

/// What one event of the engine's gives.
struct Step<D: Dialect> {
    /// Chunks for the client.
    chunks: Vec<Chunk<D>>,
    /// How far the engine is, while there is nothing else to say.
    progress: Option<String>,
    /// The choice that ends with something in it that looked like calls and is none.
    malformed: Option<usize>,
}

impl<D: Dialect> Answer<D>
where
    Chunk<D>: Send + 'static,
{
    /// The next step; `None` after the last.
    async fn next(&mut self) -> Option<Result<Step<D>, ApiError>> {
        if self.outputs.iter().all(Output::ended) {
            return None;
        }
        let (choice, event) = match self.events.next().await {
            Ok(event) => event,
            Err(error) => return Some(Err(error)),
        };
        Some(self.step(choice, event).map_err(|error| ApiError::internal(error.to_string())))
    }

    fn step(&mut self, choice: usize, event: Event) -> Result<Step<D>, crate::Error> {
        let (mut chunks, mut progress) = (Vec::new(), None);
        let output = &self.outputs[choice];
        let was_over = output.ended();
        match event {
            Event::Queued { ahead } => progress = Some(format!("queued, {ahead} ahead")),
            // How much of it is reused is known only once it goes on itself.
            Event::Follows { done, total, .. } => progress = Some(format!("prefill {done}/{total}")),
            Event::Prefill { done, total, reused } => {
                chunks = self.begin(choice, total, reused)?;
                progress = Some(format!("prefill {done}/{total}"));
            }
            // Only those get it who ask how likely their prompt is.
            Event::Read { .. } | Event::Failed(_) => {}
            Event::Token { id, logprob, top } => {
                chunks = self.begin(choice, 0, 0)?;
                let logprob = logprob.map(|logprob| token_logprob(logprob, &top));
                chunks.extend(self.outputs[choice].push(id, logprob)?);
                if self.outputs[choice].ended() || self.outputs[choice].called() {
                    self.events.stop(choice);
                }
            }
            Event::Done { reason, usage } => {
                chunks = self.begin(choice, usage.prompt_tokens, usage.reused_tokens)?;
                self.prefix = self.explained_with.as_ref().map(|tokenizer| {
                    let missed = usage.missed.as_ref();
                    json!({
                        "reused_tokens": usage.reused_tokens,
                        "reason": missed.map(|missed| missed.why.word()),
                        "message": missed.map(|missed| explain(missed, tokenizer)),
                    })
                });
                let reason = match reason {
                    Finish::Stop => InferenceFinishReason::Stop,
                    Finish::Length | Finish::ContextFull | Finish::Cancelled => InferenceFinishReason::Length,
                };
                chunks.extend(self.outputs[choice].end(reason)?);
            }
        }
        let (dialect, output) = (&mut self.dialect, &self.outputs[choice]);
        let malformed = (output.ended() && !was_over && output.malformed()).then_some(choice);
        let chunks = chunks.into_iter().flat_map(|chunk| dialect.shape(choice, chunk)).collect();
        Ok(Step { chunks, progress, malformed })
    }

    /// The first chunk, which has the role, as soon as it is known how much of the prompt was there already.
    fn begin(&mut self, choice: usize, tokens: usize, reused: usize) -> Result<Vec<Chunk<D>>, crate::Error> {
        match std::mem::replace(&mut self.begun[choice], true) {
            true => Ok(Vec::new()),
            false => self.outputs[choice].begin(tokens, reused),
        }
    }
}

/// The reply in one piece.
async fn whole<D: Dialect>(mut answer: Answer<D>, mut reply: Reply<D>) -> Result<Response, ApiError>
where
    Chunk<D>: Send + 'static,
{
    let mut malformed = Vec::new();
    while let Some(step) = answer.next().await {
        let step = step?;
        malformed.extend(step.malformed);
        step.chunks.into_iter().for_each(|chunk| reply.accumulate(chunk));
    }
    let Ok(mut value) = serde_json::to_value(&reply) else { return Ok(Json(reply).into_response()) };
    if let Some(prefix) = answer.prefix {
        value["prefix"] = prefix;
    }
    if !malformed.is_empty() {
        D::mark(&mut value, &malformed);
    }
    Ok(Json(value).into_response())
}

/// The server-sent events of a reply: chunks, and progress as comments, which keep clients from timing out.
fn events<D: Dialect>(answer: Answer<D>) -> impl Stream<Item = Result<Sent, Infallible>> + use<D>
where
    Chunk<D>: Serialize + Send + 'static,
{
    struct Sending<D: Dialect> {
        answer: Answer<D>,
        ready: VecDeque<Sent>,
        done: bool,
    }
    let sending = Sending { answer, ready: VecDeque::new(), done: false };
    stream::unfold(sending, |mut sending| async move {
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
                    sending.ready.extend(step.chunks.iter().map(|chunk| data::<D>(chunk, step.malformed)));
                }
                Some(Err(error)) => {
                    sending.ready.push_back(D::failure(&error));
                    sending.done = true;
                }
                None => {
                    let prefix = sending
                        .answer
                        .prefix
                        .take()
                        .map(|prefix| Sent::default().event("prefix").data(prefix.to_string()));
                    sending.ready.extend(prefix);
                    sending.ready.extend(Reply::<D>::sse_done_data().map(|data| Sent::default().data(data)));
                    sending.done = true;
                }
            }
        }
    })
}

fn data<D: Dialect>(chunk: &Chunk<D>, malformed: Option<usize>) -> Sent
where
    Chunk<D>: Serialize,
{
    let json = match malformed {
        None => serde_json::to_string(chunk),
        Some(choice) => serde_json::to_value(chunk).map(|mut value| {
            D::mark(&mut value, &[choice]);
            value.to_string()
        }),
    };
    let sent = match json {
        Ok(json) => Sent::default().data(json),
        Err(error) => return D::failure(&ApiError::internal(error.to_string())),
    };
    match Reply::<D>::sse_event_name(chunk) {
        Some(name) => sent.event(name),
        None => sent,
    }
}

fn token_logprob(logprob: f32, top: &[Logprob]) -> InferenceTokenLogprob {
    InferenceTokenLogprob {
        logprob: logprob.max(LOWEST_LOGPROB),
        top_logprobs: top.iter().map(|other| (other.token, other.logprob.max(LOWEST_LOGPROB))).collect(),
    }
}

/// A new id for a reply.
pub(super) fn reply_id(kind: &str) -> String {
    // Each RandomState has keys of its own, from the system's randomness at first.
    format!("{kind}{:016x}{:016x}", RandomState::new().hash_one(0), RandomState::new().hash_one(1))
}
