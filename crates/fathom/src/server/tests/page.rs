//! The page: what is served, how, and to whom.

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request as HttpRequest};
use serde_json::{Value, json};
use tower::ServiceExt;

use super::sessions::{call, server};
use crate::server::Keys;

async fn get(router: &Router, path: &str, known: &str) -> (u16, HeaderMap, String) {
    let request = HttpRequest::get(path).header("if-none-match", known).body(Body::empty()).unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let bytes = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    (status, headers, String::from_utf8(bytes.to_vec()).unwrap())
}

/// What a file of the page's names: `page/…` in the HTML, `./…` in a module.
fn named(text: &str) -> Vec<String> {
    let quoted = text.split('"').filter(|part| !part.contains([' ', '\n']));
    quoted
        .filter_map(|part| part.strip_prefix("page/").or(part.strip_prefix("./")).map(|name| format!("/page/{name}")))
        .collect()
}

#[tokio::test]
async fn every_part_is_served_to_everybody_under_strict_rules() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "one first-key\n").unwrap();
    let (router, _engine) = server(None, Keys::read(file.path()).unwrap());
    let (mut todo, mut seen) = (vec!["/".to_owned()], Vec::new());
    while let Some(path) = todo.pop() {
        if seen.contains(&path) {
            continue;
        }
        let (status, headers, text) = get(&router, &path, "").await;
        assert_eq!(status, 200, "{path}");
        let kind = headers["content-type"].to_str().unwrap();
        let expected = match path.rsplit_once('.').map(|(_, end)| end) {
            None => "text/html; charset=utf-8",
            Some("css") => "text/css; charset=utf-8",
            Some("svg") => "image/svg+xml",
            _ => "text/javascript; charset=utf-8",
        };
        assert_eq!(kind, expected, "{path}");
        let policy = headers["content-security-policy"].to_str().unwrap();
        for rule in ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "require-trusted-types-for"] {
            assert!(policy.contains(rule) && !policy.contains("unsafe"), "{path}: {policy}");
        }
        assert_eq!(headers["x-content-type-options"], "nosniff");
        assert_eq!(headers["referrer-policy"], "no-referrer");
        // Nothing of it lies elsewhere, and no text becomes markup.
        for word in ["https://", "innerHTML", "insertAdjacentHTML", "document.write", "eval(", "<style"] {
            assert!(!text.contains(word), "{path} has {word}");
        }
        let tag = headers["etag"].to_str().unwrap();
        let (status, headers, text) = get(&router, &path, tag).await;
        assert_eq!((status, text.as_str(), headers.contains_key("content-security-policy")), (304, "", true), "{path}");
        todo.extend(if kind.starts_with("text/css") { Vec::new() } else { named(&text_of(&router, &path).await) });
        seen.push(path);
    }
    // All there is was found from `/`.
    let names = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/server/page")).unwrap();
    assert_eq!(seen.len(), names.count(), "{seen:?}");
    for path in ["/page/none.js", "/page/", "/page/..%2Fpage.rs", "/page/index.html"] {
        assert_eq!(get(&router, path, "").await.0, 404, "{path}");
    }
}

async fn text_of(router: &Router, path: &str) -> String {
    get(router, path, "").await.2
}

#[tokio::test]
async fn what_the_page_asks_for_takes_a_key() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "one first-key\n").unwrap();
    let (router, _engine) = server(None, Keys::read(file.path()).unwrap());
    for (method, path) in [
        ("GET", "/v1/status"),
        ("GET", "/v1/prefills"),
        ("GET", "/v1/sessions"),
        ("POST", "/v1/sessions"),
        ("GET", "/v1/sessions/a?turns=true"),
        ("DELETE", "/v1/sessions/a"),
        ("POST", "/v1/sessions/a/generate"),
        ("POST", "/v1/sessions/a/fork"),
        ("POST", "/v1/sessions/a/rewind"),
        ("POST", "/v1/sessions/a/pin"),
        ("POST", "/v1/chat/completions"),
        ("DELETE", "/v1/prefills/1"),
    ] {
        assert_eq!(call(&router, method, path, Value::Null).await.0, 401, "{method} {path}");
    }
}

#[tokio::test]
async fn a_status_counts_what_has_passed() {
    let (router, _engine) = server(None, Keys::default());
    let (status, before) = call(&router, "GET", "/v1/status", Value::Null).await;
    assert_eq!((status, &before["model"], &before["tokens"]["read"]), (200, &json!("demo"), &json!(0)), "{before}");
    assert_eq!((&before["sessions"], &before["prefills"]), (&json!({"stored": false}), &json!([])));
    let state = before["memory"]["shares"].as_array().unwrap().iter().find(|share| share["share"] == "state").unwrap();
    assert!(state["held"].as_u64() <= state["limit"].as_u64(), "{state}");
    let mut messages = vec![json!({"role": "user", "content": "Hello"})];
    let mut usages = Vec::new();
    for _ in 0..2 {
        let body = json!({"model": "demo", "messages": messages, "max_tokens": 4});
        let (_, reply) = call(&router, "POST", "/v1/chat/completions", body).await;
        messages.extend([reply["choices"][0]["message"].clone(), json!({"role": "user", "content": "Again"})]);
        usages.push(reply["usage"].clone());
    }
    call(&router, "POST", "/v1/sessions", json!({"name": "a"})).await;
    let (_, read) = call(&router, "POST", "/v1/sessions/a/append", json!({"text": "What is new?"})).await;
    let (_, after) = call(&router, "GET", "/v1/status", Value::Null).await;
    let sum = |name: &str| usages.iter().map(|usage| usage[name].as_u64().unwrap()).sum::<u64>();
    let (prompts, reused) = (sum("prompt_tokens"), sum("prompt_cache_hit_tokens"));
    assert!(reused > 0 && read["usage"]["reused_tokens"] == 0);
    let appended = read["usage"]["prompt_tokens"].as_u64().unwrap();
    let expected =
        json!({"read": prompts - reused + appended, "reused": reused, "generated": sum("completion_tokens")});
    assert_eq!(after["tokens"], expected);
}

#[tokio::test]
async fn a_session_shows_its_turns() {
    let (router, _engine) = server(None, Keys::default());
    call(&router, "POST", "/v1/sessions", json!({"name": "talk"})).await;
    let turn = |text: &str| json!({"messages": [{"role": "user", "content": text}], "max_tokens": 6, "temperature": 0});
    let (_, first) = call(&router, "POST", "/v1/sessions/talk/generate", turn("Hello")).await;
    call(&router, "POST", "/v1/sessions/talk/generate", turn("Again")).await;
    let (_, shown) = call(&router, "GET", "/v1/sessions/talk?turns=true", Value::Null).await;
    let turns = shown["turns"].as_array().unwrap();
    let roles: Vec<&str> = turns.iter().map(|turn| turn["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["user", "assistant", "user", "assistant"], "{shown}");
    assert_eq!(
        (&turns[0]["text"], &turns[1]["text"], &turns[2]["text"]),
        (&json!("Hello"), &first["text"], &json!("Again"))
    );
    assert_eq!(turns[3]["end"], shown["position"]);
    // Back to before the second question, and asked once more.
    let position = &turns[2]["start"];
    call(&router, "POST", "/v1/sessions/talk/rewind", json!({"position": position})).await;
    call(&router, "POST", "/v1/sessions/talk/generate", turn("Again")).await;
    let (_, again) = call(&router, "GET", "/v1/sessions/talk?turns=true", Value::Null).await;
    assert_eq!(again["turns"], shown["turns"]);
}
