//! Prompts that are read on while nobody waits, and what is measured, with the embedded model.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request as HttpRequest, StatusCode};
use fathom_weights::experts::Stats;
use futures_util::StreamExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::sessions::{call, server, service};
use crate::server::experts::experts;
use crate::server::{KeyLimits, Keys, Limits, router};

/// A prompt of some 5,000 tokens.
fn long() -> Value {
    let text: String = (0..270).map(|i| format!("Line {i} says nothing about {}. ", i * i)).collect();
    json!({"model": "demo", "messages": [{"role": "user", "content": text}], "max_tokens": 3, "temperature": 0})
}

/// A value of `/metrics`.
async fn number(router: &Router, name: &str) -> f64 {
    let (_, text) = call(router, "GET", "/metrics", Value::Null).await;
    let text = text.as_str().unwrap().to_owned();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map_or(0.0, |value| value.parse().unwrap())
}

/// The prompts that are being read.
async fn listed(router: &Router) -> Vec<Value> {
    call(router, "GET", "/v1/prefills", Value::Null).await.1["data"].as_array().unwrap().clone()
}

/// Sends a request and leaves once so many tokens of its prompt have been read.
async fn leave_at(router: &Router, body: &Value, tokens: u64) {
    let before = listed(router).await;
    let is_new = |one: &Value| before.iter().all(|other| other["id"] != one["id"]);
    let request = HttpRequest::builder().method("POST").uri("/v1/chat/completions");
    let asked = tokio::spawn(router.clone().oneshot(request.body(Body::from(body.to_string())).unwrap()));
    loop {
        let all = listed(router).await;
        let done = all.iter().filter(|one| is_new(one)).filter_map(|one| one["tokens_done"].as_u64()).max();
        if done.is_some_and(|done| done >= tokens) || asked.is_finished() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    asked.abort();
    let _ = asked.await;
}

/// However often its client leaves and comes back, a prompt is read once.
#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_finds_it_read() {
    let (router, engine) = server(None, Keys::default());
    let whole = call(&server(None, Keys::default()).0, "POST", "/v1/chat/completions", long()).await;
    assert_eq!(whole.0, 200, "{}", whole.1);
    let total = whole.1["usage"]["prompt_tokens"].as_u64().unwrap();
    for tokens in [1, total / 2, total * 99 / 100] {
        leave_at(&router, &long(), tokens).await;
    }
    let (status, reply) = call(&router, "POST", "/v1/chat/completions", long()).await;
    assert_eq!((status, &reply["choices"]), (200, &whole.1["choices"]));
    engine.drain();
    let counts = engine.counts();
    let read = counts.prompt_tokens - counts.reused_tokens;
    assert!(read as f64 <= 1.02 * total as f64 && read >= total, "{read} of {total}");
}

/// A second client that joins sees what the first one sees, is listed, and leaves at once.
#[tokio::test(flavor = "multi_thread")]
async fn who_joins_sees_its_progress() {
    let (router, engine) = server(None, Keys::default());
    let mut body = long();
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let open = async || {
        let request = HttpRequest::builder().method("POST").uri("/v1/chat/completions");
        let response = router.clone().oneshot(request.body(Body::from(body.to_string())).unwrap()).await.unwrap();
        response.into_body().into_data_stream().map(|bytes| String::from_utf8(bytes.unwrap().to_vec()).unwrap())
    };
    let progress = |text: &str| text.strip_prefix(": prefill ")?.split_once('/')?.0.parse::<u64>().ok();
    let mut first = open().await;
    while progress(&first.next().await.unwrap()).is_none_or(|done| done < 100) {}
    let (mut second, mut third) = (open().await, open().await);
    let mut heard = Vec::new();
    while heard.len() < 5 {
        heard.extend(progress(&second.next().await.unwrap()));
    }
    while progress(&third.next().await.unwrap()).is_none() {}
    assert!(heard.is_sorted() && heard[0] >= 100 && heard[4] > heard[0], "{heard:?}");
    let all = listed(&router).await;
    assert!(all.len() == 3 && all.iter().all(|one| one["awaited"] == true), "{all:?}");
    assert!(all.iter().all(|one| one["tokens"] == all[0]["tokens"] && one["tokens_done"].as_u64() >= Some(100)));
    // Another reads it to its end, so there is nothing to go on with for it.
    drop(third);
    while listed(&router).await.len() > 2 {
        let text = first.next().await.unwrap();
        assert!(!text.starts_with("data"), "it was noticed at the end only: {text}");
    }
    let rest: String = second.collect::<Vec<String>>().await.concat();
    let last = rest.lines().filter_map(|line| line.strip_prefix("data: ")).rfind(|data| *data != "[DONE]").unwrap();
    let usage = serde_json::from_str::<Value>(last).unwrap()["usage"].clone();
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], all[0]["tokens"], "{usage}");
    drop(first);
    engine.drain();
}

/// What is read on for a client that left is none of its key's requests; the resend is let in, and what was left before ends.
#[tokio::test(flavor = "multi_thread")]
async fn who_left_does_not_stand_in_its_own_way() {
    let each_key = KeyLimits { at_once: Some(1), ..KeyLimits::default() };
    let (service, engine) = service(None, Keys::default(), Limits { each_key, ..Limits::default() });
    let router = router(service);
    let mut other = long();
    other["messages"][0]["content"] = json!(format!("Another. {}", other["messages"][0]["content"]));
    leave_at(&router, &other, 1).await;
    leave_at(&router, &long(), 0).await;
    let (status, reply) = call(&router, "POST", "/v1/chat/completions", long()).await;
    assert_eq!(status, 200, "{reply}");
    engine.drain();
    // All of the one and little of the other.
    let (counts, total) = (engine.counts(), reply["usage"]["prompt_tokens"].as_u64().unwrap());
    let read = counts.prompt_tokens - counts.reused_tokens;
    assert!((total..total + total / 2).contains(&read), "{read} of {total}");
}

/// It can be seen while it is read, by its owner alone, and stopped.
#[tokio::test(flavor = "multi_thread")]
async fn it_can_be_seen_and_stopped() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "a key-a\nb key-b\n").unwrap();
    let (router, _engine) = server(None, Keys::read(file.path()).unwrap());
    let ask = |method: &str, path: &str, key: &str, body: Body| {
        let request = HttpRequest::builder().method(method).uri(path).header("x-api-key", key).body(body).unwrap();
        let router = router.clone();
        async move {
            let response = router.oneshot(request).await.unwrap();
            let status = response.status();
            let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
            (status, serde_json::from_slice::<Value>(&bytes).unwrap())
        }
    };
    let reads = tokio::spawn(ask("POST", "/v1/chat/completions", "key-a", Body::from(long().to_string())));
    let shown = loop {
        let (_, all) = ask("GET", "/v1/prefills", "key-a", Body::empty()).await;
        match all["data"].get(0).filter(|one| one["tokens_done"].as_u64() > Some(0)) {
            Some(one) => break one.clone(),
            None => tokio::time::sleep(Duration::from_millis(1)).await,
        }
        assert!(!reads.is_finished());
    };
    assert!(shown["tokens"].as_u64() > Some(3000) && shown["awaited"] == true, "{shown}");
    assert!(shown["tokens_per_second"].as_f64() > Some(0.0) && shown["eta_seconds"].as_f64() > Some(0.0), "{shown}");
    let path = format!("/v1/prefills/{}", shown["id"].as_str().unwrap());
    assert_eq!(ask("GET", "/v1/prefills", "key-b", Body::empty()).await.1["data"], json!([]));
    assert_eq!(ask("DELETE", &path, "key-b", Body::empty()).await.0, StatusCode::NOT_FOUND);
    assert_eq!(ask("DELETE", &path, "key-a", Body::empty()).await.0, StatusCode::OK);
    let (status, reply) = reads.await.unwrap();
    assert_eq!((status, &reply["error"]["code"]), (StatusCode::CONFLICT, &json!("prefill_stopped")), "{reply}");
    assert_eq!(ask("GET", "/v1/prefills", "key-a", Body::empty()).await.1["data"], json!([]));
    assert_eq!(ask("DELETE", "/v1/prefills/x", "key-a", Body::empty()).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn numbers_for_operators() {
    let (router, _engine) = server(None, Keys::default());
    let body = json!({"model": "demo", "messages": [{"role": "user", "content": "Hello, you. ".repeat(30)}], "max_tokens": 4, "temperature": 0});
    call(&router, "POST", "/v1/chat/completions", body).await;
    call(&router, "POST", "/v1/chat/completions", json!({"model": "other", "messages": []})).await;
    assert_eq!(number(&router, "fathom_requests_total").await, 1.0);
    assert_eq!(number(&router, "fathom_time_to_first_token_seconds_count").await, 1.0);
    assert!(number(&router, "fathom_inter_token_seconds_count").await >= 1.0);
    assert_eq!(number(&router, "fathom_queue_seconds_bucket{le=\"3600\"}").await, 1.0);
    assert_eq!(number(&router, "fathom_requests_running").await, 0.0);
    assert!(number(&router, "fathom_memory_bytes{share=\"state\"}").await > 0.0);
    let replies = "fathom_http_replies_total{route=\"/v1/chat/completions\",status=\"404\"}";
    assert_eq!(number(&router, replies).await, 1.0);
    assert_eq!(number(&router, "fathom_prefix_missed_total{reason=\"nothing\"}").await, 1.0);
}

/// What the dashboard and the alerts ask for is measured.
#[tokio::test]
async fn dashboards_ask_for_what_there_is() {
    let folder = tempfile::tempdir().unwrap();
    let (service, engine) = service(Some(&folder), Keys::default(), Limits::default());
    let router = router(Arc::new(Arc::into_inner(service).unwrap().with_plan(1 << 30)));
    let mut body = long();
    body["messages"][0]["content"] = json!("Hello, you. ".repeat(30));
    call(&router, "POST", "/v1/chat/completions", body).await;
    engine.drain();
    let (_, text) = call(&router, "GET", "/metrics", Value::Null).await;
    let text = text.as_str().unwrap().to_owned() + &experts(&Stats::default());
    assert!(number(&router, "fathom_store_bytes").await > 0.0);
    let measured =
        |name: &str| text.lines().any(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
    let asked =
        concat!(include_str!("../../../../../deploy/grafana.json"), include_str!("../../../../../deploy/alerts.yaml"));
    let names = asked.match_indices("fathom_").map(|(at, _)| {
        let end = asked[at..].find(|c: char| !c.is_ascii_lowercase() && c != '_').unwrap();
        &asked[at..at + end]
    });
    let (there, missing): (Vec<&str>, Vec<&str>) = names.partition(|name| measured(name));
    assert!(there.len() > 40 && missing.is_empty(), "{missing:?}");
    // A limit of 250 ms can be seen to hold.
    for bound in ["0.25", "0.3", "0.35", "0.4"] {
        assert!(measured(&format!("fathom_inter_token_seconds_bucket{{le=\"{bound}\"}}")), "{bound}");
    }
}

/// How likely a prompt is, as evaluations ask it.
#[tokio::test]
async fn prompts_with_their_logprobs() {
    let (router, _engine) = server(None, Keys::default());
    let prompt = "The code of Anna is 48213. The code of Anna is 48213.";
    let body =
        json!({"model": "demo", "prompt": prompt, "max_tokens": 1, "temperature": 0, "echo": true, "logprobs": 2});
    let (status, reply) = call(&router, "POST", "/v1/completions", body).await;
    assert_eq!(status, 200, "{reply}");
    let (text, logprobs) = (reply["choices"][0]["text"].as_str().unwrap(), &reply["choices"][0]["logprobs"]);
    assert!(text.starts_with(prompt), "{text}");
    let list = |name: &str| logprobs[name].as_array().unwrap().clone();
    let (tokens, offsets) = (list("tokens"), list("text_offset"));
    assert_eq!(tokens.iter().map(|token| token.as_str().unwrap()).collect::<String>(), text);
    assert!([list("token_logprobs").len(), list("top_logprobs").len(), offsets.len()] == [tokens.len(); 3]);
    for (token, offset) in tokens.iter().zip(&offsets) {
        let rest: String = text.chars().skip(offset.as_u64().unwrap() as usize).collect();
        assert!(rest.starts_with(token.as_str().unwrap()));
    }
    // The same from its tokens, whose first could not be foretold.
    let (_, cut) = call(&router, "POST", "/tokenize", json!({"prompt": prompt})).await;
    let body = json!({"model": "demo", "prompt": cut["tokens"], "max_tokens": 0, "echo": true, "logprobs": 2});
    let (_, reply) = call(&router, "POST", "/v1/completions", body).await;
    let told = reply["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap();
    assert_eq!((told.len(), &told[0]), (cut["tokens"].as_array().unwrap().len(), &Value::Null));
    assert_eq!(told[1..], list("token_logprobs")[..told.len() - 1]);
}
