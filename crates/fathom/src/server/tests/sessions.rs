//! Sessions over HTTP, with the embedded model.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Request as HttpRequest, StatusCode};
use bytes::Bytes;
use fathom_engine::{Engine, EngineOptions, Keep, Sessions, subject};
use fathom_kernels::{Cpu, CpuOptions, Device, Share};
use fathom_model::Model;
use fathom_store::{Options, Store};
use fathom_weights::Checkpoint;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::TOKENIZER;
use crate::chat::{Dialect, Prompter};
use crate::server::{Keys, Limits, Service, router};

pub const CONFIG: &[u8] = include_bytes!("../../../assets/demo-model/config.json");
pub const WEIGHTS: &[u8] = include_bytes!("../../../assets/demo-model/model-00001.safetensors");
const CONTEXT: usize = 6000;

/// A server over the embedded model, and the engine to drain.
pub fn server(folder: Option<&tempfile::TempDir>, keys: Keys) -> (Router, Engine) {
    let (service, engine) = service(folder, keys, Limits::default());
    (router(service), engine)
}

/// The same before it has routes.
pub fn service(folder: Option<&tempfile::TempDir>, keys: Keys, limits: Limits) -> (Arc<Service<Engine>>, Engine) {
    let shard = ("model-00001.safetensors".to_owned(), Bytes::from_static(WEIGHTS));
    let checkpoint = Checkpoint::from_memory(CONFIG, vec![shard]).unwrap();
    let cpu = Cpu::new(CpuOptions { threads: Some(1), ..CpuOptions::default() }).unwrap();
    let model = Arc::new(Model::load(cpu, &checkpoint).unwrap());
    model.device().ledger().limit(Share::State, 3 * model.state_bytes(CONTEXT) + Engine::spare_bytes(&*model));
    let stored = folder.map(|folder| {
        let store = Store::open(folder.path().to_str().unwrap(), Options::default()).unwrap();
        (store, subject(&model, [7; 32]))
    });
    let keep = stored.as_ref().map(|(store, subject)| Keep {
        store: store.clone(),
        subject: subject.clone(),
        lasts: None,
        told: Box::new(|_| ()),
    });
    let engine = Engine::start(
        model,
        EngineOptions { prefill_chunk: 64, parallel: 4, context: CONTEXT, ..EngineOptions::default() },
        keep,
    );
    let prompter = Prompter::new(Arc::clone(&TOKENIZER), Dialect::Preview);
    let service = Service::new(engine.clone(), prompter, "demo", checkpoint.config().eos_token_id, false, limits);
    let service = service.with_keys(keys).with_sessions(Sessions::new(engine.clone(), stored));
    (Arc::new(service), engine)
}

async fn bytes(router: &Router, method: &str, path: &str, key: &str, body: impl Into<Body>) -> (StatusCode, Bytes) {
    let request = HttpRequest::builder().method(method).uri(path).header("x-api-key", key).body(body.into()).unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    (response.status(), axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap())
}

pub async fn call(router: &Router, method: &str, path: &str, body: Value) -> (u16, Value) {
    let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
    let (status, bytes) = bytes(router, method, path, "", body).await;
    (status.as_u16(), serde_json::from_slice(&bytes).unwrap_or_else(|_| String::from_utf8_lossy(&bytes).into()))
}

fn greedy(more: Value) -> Value {
    let mut body = json!({"temperature": 0, "max_tokens": 12});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn long_text() -> String {
    (0..150).map(|i| format!("Line {i} says nothing new about {}. ", i * i)).collect()
}

#[tokio::test]
async fn a_session_from_birth_to_death() {
    let folder = tempfile::tempdir().unwrap();
    let (router, engine) = server(Some(&folder), Keys::default());
    let (status, session) = call(&router, "POST", "/v1/sessions", json!({"name": "a"})).await;
    assert_eq!((status, &session["id"], &session["position"]), (201, &json!("a"), &json!(0)));
    let (status, read) = call(&router, "POST", "/v1/sessions/a/append", json!({"text": long_text()})).await;
    assert_eq!(status, 200, "{read}");
    let n = read["session"]["position"].as_u64().unwrap();
    assert!(n > 1100 && read["usage"]["prompt_tokens"] == n && read["usage"]["generated_tokens"] == 0);
    let (status, said) = call(&router, "POST", "/v1/sessions/a/generate", greedy(json!({}))).await;
    assert_eq!((status, &said["usage"]["reused_tokens"]), (200, &json!(n)), "{said}");
    let tokens = said["tokens"].as_array().unwrap().len() as u64;

    // A fork goes its own way; the other one comes to the same words once more.
    let (status, forked) = call(&router, "POST", "/v1/sessions/a/fork", json!({"name": "b", "position": n})).await;
    assert_eq!((status, &forked["parent"]), (201, &json!({"session": "a", "position": n})));
    let (_, other) = call(&router, "POST", "/v1/sessions/b/generate", greedy(json!({"text": "And so"}))).await;
    assert_eq!(other["usage"]["reused_tokens"], n);
    let (status, back) = call(&router, "POST", "/v1/sessions/a/rewind", json!({"position": n})).await;
    assert_eq!((status, &back["from"], &back["replayed"]), (200, &json!(n), &json!(0)));
    let (_, back) = call(&router, "POST", "/v1/sessions/b/rewind", json!({"position": n + 1})).await;
    assert_eq!((&back["from"], &back["replayed"]), (&json!(n), &json!(1)));
    let (_, again) = call(&router, "POST", "/v1/sessions/a/generate", greedy(json!({}))).await;
    assert_eq!(again["tokens"], said["tokens"]);

    // Kept, taken elsewhere, and gone.
    let (status, kept) = call(&router, "POST", "/v1/sessions/a/snapshot", json!({"pinned": true})).await;
    assert_eq!((status, &kept["position"]), (201, &json!(n + tokens)));
    let (_, file) = bytes(&router, "GET", "/v1/sessions/a/export", "", Body::empty()).await;
    let elsewhere = tempfile::tempdir().unwrap();
    let (second, _) = server(Some(&elsewhere), Keys::default());
    let (status, imported) = bytes(&second, "POST", "/v1/snapshots?name=moved", "", file.clone()).await;
    assert_eq!(status, StatusCode::CREATED, "{imported:?}");
    let (_, here) = call(&router, "POST", "/v1/sessions/a/generate", greedy(json!({}))).await;
    let (_, there) = call(&second, "POST", "/v1/sessions/moved/generate", greedy(json!({}))).await;
    assert_eq!((&here["tokens"], &there["usage"]["reused_tokens"]), (&there["tokens"], &json!(n + tokens)));
    // What cannot be taken in leaves alone what is there.
    for name in ["a", "b%2Fb"] {
        assert!(
            bytes(&router, "POST", &format!("/v1/snapshots?name={name}"), "", file.clone()).await.0.is_client_error()
        );
    }
    let (_, kept_still) = call(&router, "GET", "/v1/sessions/a", Value::Null).await;
    assert!(kept_still["snapshots"].as_array().unwrap().contains(&json!(n + tokens)), "{kept_still}");
    let half = file.slice(..file.len() / 2);
    assert_eq!(bytes(&second, "POST", "/v1/snapshots", "", half).await.0, StatusCode::BAD_REQUEST);

    engine.drain();
    let (third, _) = server(Some(&folder), Keys::default());
    let (_, all) = call(&third, "GET", "/v1/sessions", Value::Null).await;
    let mut names: Vec<&str> = all["data"].as_array().unwrap().iter().map(|s| s["id"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["a", "b"]);
    let (_, shown) = call(&third, "GET", "/v1/sessions/a?tokens=true", Value::Null).await;
    assert!(shown["text"].as_str().unwrap().contains("Line 149 says") && shown["pinned"] == true);
    let path = format!("/v1/snapshots/{}", kept["id"].as_str().unwrap());
    for (method, path) in [("DELETE", "/v1/sessions/a"), ("DELETE", "/v1/sessions/b")] {
        assert_eq!(call(&third, method, path, Value::Null).await.0, 200);
    }
    assert_eq!(call(&third, "DELETE", &path, Value::Null).await.0, 404);
    let (_, left) = call(&third, "GET", "/v1/snapshots", Value::Null).await;
    assert_eq!(left["data"], json!([]));
}

#[tokio::test]
async fn conversations_in_turns() {
    let (router, _engine) = server(None, Keys::default());
    let asked = "The code of Anna is 4711. What is the code of Anna?";
    let turn = |text: &str| greedy(json!({"messages": [{"role": "user", "content": text}]}));
    call(&router, "POST", "/v1/sessions", json!({"name": "talk"})).await;
    let (_, first) = call(&router, "POST", "/v1/sessions/talk/generate", turn(asked)).await;
    let (_, second) = call(&router, "POST", "/v1/sessions/talk/generate", turn("And once more?")).await;
    assert!(second["usage"]["reused_tokens"] == first["session"]["position"], "{second}");
    let (_, shown) = call(&router, "GET", "/v1/sessions/talk?tokens=true", Value::Null).await;
    let text = shown["text"].as_str().unwrap();
    let expected =
        format!("{asked}<｜Assistant｜></think>{}<｜end▁of▁sentence｜><｜User｜>And", first["text"].as_str().unwrap());
    assert!(text.contains(&expected), "{text}");
    // The same conversation from a client that sends all of it again, in whatever tokens.
    let body = json!({
        "model": "demo",
        "messages": [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": first["text"]},
            {"role": "user", "content": "And once more?"},
        ],
        "max_tokens": 4,
        "explain": true,
    });
    let (status, reply) = call(&router, "POST", "/v1/chat/completions", body).await;
    assert_eq!(status, 200, "{reply}");
    let usage = &reply["usage"];
    assert_eq!(usage["prompt_cache_hit_tokens"], first["session"]["position"], "{reply}");
    assert_eq!(reply["prefix"]["reused_tokens"], first["session"]["position"]);
    // As it comes.
    let body = greedy(json!({"text": " more", "stream": true})).to_string();
    let (_, events) = bytes(&router, "POST", "/v1/sessions/talk/generate", "", body).await;
    let events = String::from_utf8_lossy(&events);
    assert!(events.contains(": prefill ") && events.contains("\nevent: done\ndata: {"), "{events}");
    let (_, metrics) = bytes(&router, "GET", "/metrics", "", Body::empty()).await;
    assert!(String::from_utf8_lossy(&metrics).contains("fathom_requests_total 4\n"), "{metrics:?}");
}

#[tokio::test]
async fn what_cannot_be_is_refused() {
    let (router, _engine) = server(None, Keys::default());
    call(&router, "POST", "/v1/sessions", json!({"name": "a"})).await;
    for (method, path, body, status, word) in [
        ("POST", "/v1/sessions", json!({"name": "a"}), 409, "already"),
        ("POST", "/v1/sessions", json!({"name": "../a"}), 400, "letters"),
        ("POST", "/v1/sessions", json!({"name": 7}), 422, "name"),
        ("POST", "/v1/sessions", json!({"snapshot": "xyz"}), 400, "32 hex digits"),
        ("GET", "/v1/sessions/none", Value::Null, 404, "no session"),
        ("POST", "/v1/sessions/none/generate", json!({}), 404, "no session"),
        ("POST", "/v1/sessions/a/append", json!({}), 400, "nothing to append"),
        ("POST", "/v1/sessions/a/append", json!({"tokens": [99999]}), 400, "99999"),
        ("POST", "/v1/sessions/a/append", json!({"tokens": [-1]}), 422, "tokens"),
        ("POST", "/v1/sessions/a/append", json!({"text": "x", "tokens": [1]}), 400, "one of"),
        ("POST", "/v1/sessions/a/append", json!({"messages": [{"role": "tool", "content": ""}]}), 400, "role"),
        ("POST", "/v1/sessions/a/generate", json!({"max_tokens": 1}), 400, "empty"),
        ("POST", "/v1/sessions/a/generate", json!({"text": "x", "temperature": -1}), 400, "temperature"),
        ("POST", "/v1/sessions/a/rewind", json!({"position": 5}), 400, "beyond"),
        ("POST", "/v1/sessions/a/rewind", Value::Null, 400, "JSON"),
        ("POST", "/v1/sessions/a/snapshot", Value::Null, 409, "--store"),
        ("GET", "/v1/sessions/a/export", Value::Null, 409, "--store"),
        ("GET", "/v1/snapshots", Value::Null, 409, "--store"),
        ("PUT", "/v1/sessions/a", Value::Null, 405, "method"),
    ] {
        let (got, reply) = call(&router, method, path, body.clone()).await;
        assert_eq!(got, status, "{method} {path} {body}: {reply}");
        assert!(reply["error"]["message"].as_str().unwrap().contains(word), "{path} {body}: {reply}");
    }
    assert_eq!(call(&router, "GET", "/v1/sessions/a", Value::Null).await.1["position"], 0);
}

#[tokio::test]
async fn namespaces_are_apart() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "one first-key\ntwo second-key\n").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (router, _engine) = server(Some(&folder), Keys::read(file.path()).unwrap());
    let ask = |key: &'static str, path: &'static str, body: Value| {
        let router = router.clone();
        async move {
            let method = if body.is_null() { "GET" } else { "POST" };
            let (status, bytes) = bytes(&router, method, path, key, body.to_string()).await;
            (status.as_u16(), serde_json::from_slice::<Value>(&bytes).unwrap())
        }
    };
    assert_eq!(ask("wrong", "/v1/sessions", Value::Null).await.0, 401);
    assert_eq!(ask("wrong", "/v1/models", Value::Null).await.0, 401);
    assert_eq!(ask("first-key", "/v1/sessions", json!({"name": "a"})).await.0, 201);
    let text = json!({"text": long_text(), "explain": true});
    assert_eq!(ask("first-key", "/v1/sessions/a/append", text.clone()).await.0, 200);
    assert_eq!(ask("second-key", "/v1/sessions/a", Value::Null).await.0, 404);
    assert_eq!(ask("second-key", "/v1/sessions", Value::Null).await.1["data"], json!([]));
    assert_eq!(ask("second-key", "/v1/sessions", json!({"name": "a"})).await.0, 201);
    let (_, read) = ask("second-key", "/v1/sessions/a/append", text).await;
    assert_eq!((&read["usage"]["reused_tokens"], &read["prefix"]["reason"]), (&json!(0), &json!("nothing")));
}
