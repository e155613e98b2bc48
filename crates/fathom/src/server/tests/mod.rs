//! The API over an engine that says what it is told to.

mod attacks;
mod bodies;
mod clients;
mod constrained;
mod dialects;
mod errors;
mod lifetime;
mod openapi;
mod page;
mod prefills;
mod replies;
mod sessions;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request as HttpRequest, StatusCode, header};
use deepseek_recipe_encoding::TokenizerEncoder;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::generate::Sink;
use super::{BodyLimits, Generate, Limits, Service, router};
use crate::chat::{Dialect, Prompter, Tokenizer};
use fathom_engine::{Error, Event, Finish, Logprob, Request, Usage};

static TOKENIZER: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
    let json = include_str!("../../../assets/demo-model/tokenizer.json");
    Arc::new(Tokenizer::from_bytes("tokenizer.json", json.as_bytes()).unwrap())
});

/// What became of the engine's work.
#[derive(Debug, Default)]
struct Seen {
    requests: Mutex<Vec<Request>>,
    tokens: AtomicUsize,
    cancelled: AtomicBool,
}

/// Says `reply`, one token each `pause`, whatever it is asked.
#[derive(Clone)]
struct Parrot {
    reply: String,
    /// What to say to a prompt instead of `reply`.
    reply_to: Option<fn(&str) -> String>,
    pause: Duration,
    finish: Finish,
    fail: bool,
    full: bool,
    context: usize,
    seen: Arc<Seen>,
}

impl Parrot {
    fn new(reply: &str) -> Parrot {
        Parrot {
            reply: reply.to_owned(),
            reply_to: None,
            pause: Duration::ZERO,
            finish: Finish::Stop,
            fail: false,
            full: false,
            context: 4096,
            seen: Arc::default(),
        }
    }

    fn service(&self, limits: Limits) -> Arc<Service<Parrot>> {
        let prompter = Prompter::new(Arc::clone(&TOKENIZER), Dialect::Preview);
        Arc::new(Service::new(self.clone(), prompter, "parrot", 1, false, limits))
    }

    fn small_service(&self) -> Arc<Service<Parrot>> {
        self.service(small(2))
    }

    fn router(&self) -> Router {
        router(self.small_service())
    }

    fn speak(self, request: Request, mut sink: Sink) {
        let total = request.prompt.len();
        let mut say = |event| {
            let go_on = sink(event).is_continue();
            self.seen.cancelled.fetch_or(!go_on, Ordering::SeqCst);
            go_on
        };
        if !(say(Event::Queued { ahead: 1 }) && say(Event::Prefill { done: 2, total, reused: 2 })) {
            return;
        }
        if self.fail {
            say(Event::Failed(Error::Model("the disk is gone".to_owned())));
            return;
        }
        let reply = match self.reply_to {
            Some(reply_to) => ids(&reply_to(&TOKENIZER.decode(&request.prompt))),
            None => ids(&self.reply),
        };
        let most = request.max_tokens.unwrap_or(usize::MAX);
        let finish = if reply.len() > most { Finish::Length } else { self.finish };
        for id in reply.into_iter().take(most) {
            std::thread::sleep(self.pause);
            let logprob = request.sampling.logprobs.map(|_| -0.5);
            let alternatives = request.sampling.logprobs.unwrap_or(0);
            let top = (0..alternatives as u32).map(|token| Logprob { token, logprob: f32::NEG_INFINITY }).collect();
            self.seen.tokens.fetch_add(1, Ordering::SeqCst);
            if !say(Event::Token { id, logprob, top }) {
                say(Event::Done { reason: Finish::Cancelled, usage: Usage::default() });
                return;
            }
        }
        say(Event::Done { reason: finish, usage: Usage::default() });
    }
}

impl Generate for Parrot {
    fn submit(&self, request: Request, sink: Sink) -> Result<(), Error> {
        if self.full {
            return Err(Error::QueueFull { waiting: 1 });
        }
        self.seen.requests.lock().unwrap().push(request.clone());
        let parrot = self.clone();
        std::thread::spawn(move || parrot.speak(request, sink));
        Ok(())
    }

    fn vocab_size(&self) -> usize {
        2240
    }

    fn context(&self) -> usize {
        self.context
    }
}

/// Room for so many requests, and for bodies of 100,000 bytes.
fn small(requests: usize) -> Limits {
    let bodies = BodyLimits { bytes: 100_000, ..BodyLimits::of_context(1 << 20) };
    Limits { requests, bodies, ..Limits::default() }
}

/// The token ids of `text`, with every special token that is spelled in it.
fn ids(text: &str) -> Vec<u32> {
    let mut ranges = Vec::new();
    for spelling in ["<think>", "</think>", "｜DSML｜"] {
        ranges.extend(text.match_indices(spelling).map(|(at, _)| at..at + spelling.len()));
    }
    ranges.sort_by_key(|range| range.start);
    TOKENIZER.encode_ids(text, &ranges).unwrap()
}

fn ask(more: Value) -> Value {
    let mut body = json!({"model": "parrot", "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

async fn send(router: Router, method: &str, path: &str, body: impl Into<Body>) -> (StatusCode, String) {
    let request = HttpRequest::builder().method(method).uri(path).header(header::CONTENT_TYPE, "application/json");
    let response = router.oneshot(request.body(body.into()).unwrap()).await.unwrap();
    let status = response.status();
    let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    (status, String::from_utf8(bytes.to_vec()).unwrap())
}

async fn post(parrot: &Parrot, body: Value) -> (StatusCode, Value) {
    let (status, text) = send(parrot.router(), "POST", "/v1/chat/completions", body.to_string()).await;
    (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("{status}: {text}")))
}

/// The data and the comments of a stream.
async fn stream(parrot: &Parrot, body: Value) -> (Vec<Value>, Vec<String>) {
    let (status, text) = send(parrot.router(), "POST", "/v1/chat/completions", body.to_string()).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    read_events(&text)
}

fn read_events(text: &str) -> (Vec<Value>, Vec<String>) {
    let (mut data, mut comments) = (Vec::new(), Vec::new());
    for line in text.lines() {
        if let Some(json) = line.strip_prefix("data: ") {
            data.push(if json == "[DONE]" { json!("[DONE]") } else { serde_json::from_str(json).unwrap() });
        } else if let Some(comment) = line.strip_prefix(": ") {
            comments.push(comment.to_owned());
        } else {
            assert_eq!(line, "");
        }
    }
    (data, comments)
}
