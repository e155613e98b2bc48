use axum::http::StatusCode;
use serde_json::{Value, json};

use super::{Parrot, ask, post, send, stream};

/// Posts and expects a refusal that names `param`.
async fn refused(body: Value, status: StatusCode, param: Option<&str>) -> String {
    let parrot = Parrot::new("x");
    let (got, reply) = post(&parrot, body.clone()).await;
    assert_eq!(got, status, "{body}: {reply}");
    let error = &reply["error"];
    assert_eq!(error["param"].as_str(), param, "{reply}");
    assert_eq!(error["type"], "invalid_request_error");
    assert!(parrot.seen.requests.lock().unwrap().is_empty());
    error["message"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn values_out_of_range_are_named() {
    for (param, value) in [
        ("temperature", json!(2.5)),
        ("temperature", json!(-0.1)),
        ("temperature", json!(1e39)),
        ("top_p", json!(0)),
        ("top_p", json!(1.01)),
        ("min_p", json!(1.5)),
        ("min_p", json!(-1)),
        ("presence_penalty", json!(3)),
        ("frequency_penalty", json!(-2.01)),
        ("n", json!(0)),
        ("n", json!(17)),
        ("functions", json!([{"name": "x"}])),
        ("function_call", json!({"name": "x"})),
        ("modalities", json!(["text", "audio"])),
        ("audio", json!({"voice": "x"})),
        ("web_search_options", json!({})),
        ("verbosity", json!("low")),
        ("max_tokens", json!(0)),
        ("max_tokens", json!(5000)),
        ("max_completion_tokens", json!(0)),
        ("max_completion_tokens", json!(5000)),
        ("seed", json!(u64::MAX)),
        ("top_logprobs", json!(5)),
        ("logit_bias", json!({"x": 1})),
        ("logit_bias", json!({"2240": 1})),
        ("logit_bias", json!({"-1": 1})),
        ("logit_bias", json!({"5": 101})),
        ("stop", json!("")),
        ("stop", json!([""])),
        ("stop", json!(vec!["x"; 40])),
        ("tool_choice", json!("required")),
        ("tool_choice", json!({"type": "function", "function": {"name": "x"}})),
        ("messages", json!([])),
        ("messages", json!([{"role": "tool", "tool_call_id": "x", "content": "y"}])),
        ("response_format", json!({"type": "json_object"})),
    ] {
        let message = refused(ask(json!({param: value})), StatusCode::BAD_REQUEST, Some(param)).await;
        assert!(!message.is_empty());
        assert!(param != "max_completion_tokens" || message.contains(param), "{message}");
    }
    let tool = |name: &str, parameters: Value| json!({"type": "function", "function": {"name": name, "parameters": parameters}});
    let (good, other) =
        (json!({"type": "object", "properties": {}}), json!({"type": "function", "function": {"name": "x"}}));
    for (param, tools, choice) in [
        ("tools", json!([tool("a", json!(7))]), json!("auto")),
        ("tools", json!([tool("a", good.clone()), tool("a", good.clone())]), json!("auto")),
        ("tool_choice", json!([tool("a", good)]), other),
    ] {
        refused(ask(json!({"tools": tools, "tool_choice": choice})), StatusCode::BAD_REQUEST, Some(param)).await;
    }
    let (status, reply) = post(&Parrot::new("x"), ask(json!({"response_format": {"type": "text"}}))).await;
    assert_eq!(status, StatusCode::OK, "{reply}");
    let picture = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]);
    let param = Some("messages[0].content[0].type");
    refused(ask(json!({"messages": picture})), StatusCode::BAD_REQUEST, param).await;
    refused(ask(json!({"logprobs": true, "top_logprobs": 21})), StatusCode::BAD_REQUEST, Some("top_logprobs")).await;
}

#[tokio::test]
async fn wrong_types_are_named() {
    for (field, value, param) in [
        ("temperature", json!("hot"), "temperature"),
        ("top_k", json!(-1), "top_k"),
        ("top_k", json!(1.5), "top_k"),
        ("min_p", json!([]), "min_p"),
        ("logit_bias", json!([1]), "logit_bias"),
        ("logit_bias", json!({"5": "x"}), "logit_bias.5"),
        ("seed", json!(-1), "seed"),
        ("n", json!("two"), "n"),
        ("stream", json!("yes"), "stream"),
        ("max_completion_tokens", json!("many"), "max_completion_tokens"),
        ("messages", json!("hi"), "messages"),
        ("messages", json!([{"role": "user", "content": 5}]), "messages[0]"),
        ("messages", json!([{"role": "nobody", "content": "x"}]), "messages[0].role"),
        ("stop", json!(5), "stop"),
        ("tools", json!({}), "tools"),
        ("model", json!(3), "model"),
    ] {
        let message = refused(ask(json!({field: value})), StatusCode::UNPROCESSABLE_ENTITY, Some(param)).await;
        assert!(message.contains(param.split('[').next().unwrap()), "{message}");
    }
    refused(json!({"model": "parrot"}), StatusCode::UNPROCESSABLE_ENTITY, Some("messages")).await;
    refused(json!([1]), StatusCode::UNPROCESSABLE_ENTITY, None).await;
}

#[tokio::test]
async fn what_is_not_json_is_refused() {
    let parrot = Parrot::new("x");
    for body in ["", "{", "nonsense", "{\"model\": \"parrot\", \"messages\": [}", "\u{1}"] {
        let (status, text) = send(parrot.router(), "POST", "/v1/chat/completions", body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{text}");
        assert!(text.contains("not valid JSON"), "{text}");
    }
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let wrong: Vec<u8> = vec![b'"', 0xFF, b'"'];
    assert_eq!(send(parrot.router(), "POST", "/v1/chat/completions", deep).await.0, StatusCode::BAD_REQUEST);
    assert_eq!(send(parrot.router(), "POST", "/v1/chat/completions", wrong).await.0, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn numbers_json_does_not_have_are_named() {
    let parrot = Parrot::new("x");
    for (value, param) in [
        ("NaN", "temperature"),
        ("Infinity", "top_p"),
        ("-Infinity", "min_p"),
        (r#"{"5": NaN}"#, "logit_bias"),
        ("1e400", "temperature"),
    ] {
        let body = format!(r#"{{"model": "a \" NaN", "messages": [], "{param}": {value}}}"#);
        let (status, text) = send(parrot.router(), "POST", "/v1/chat/completions", body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        let reply: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(reply["error"]["param"], param, "{text}");
    }
}

#[tokio::test]
async fn unknown_models_and_addresses() {
    let message = refused(ask(json!({"model": "gpt-7"})), StatusCode::NOT_FOUND, Some("model")).await;
    assert!(message.contains("gpt-7") && message.contains("parrot"), "{message}");
    let parrot = Parrot::new("x");
    for (method, path, status) in [
        ("GET", "/nowhere", StatusCode::NOT_FOUND),
        ("POST", "/v1/embeddings", StatusCode::NOT_FOUND),
        ("GET", "/v1/chat/completions", StatusCode::METHOD_NOT_ALLOWED),
        ("POST", "/health", StatusCode::METHOD_NOT_ALLOWED),
        ("GET", "/v1/models/%ff", StatusCode::BAD_REQUEST),
    ] {
        let (got, text) = send(parrot.router(), method, path, "").await;
        assert_eq!(got, status, "{method} {path}");
        assert!(serde_json::from_str::<Value>(&text).unwrap()["error"]["message"].is_string());
    }
}

#[tokio::test]
async fn what_is_too_long_is_refused() {
    let long = "word ".repeat(5000);
    let parrot = Parrot::new("x");
    let (status, reply) = post(&parrot, ask(json!({"messages": [{"role": "user", "content": long}]}))).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(reply["error"]["code"], "context_length_exceeded");
    let long = "word ".repeat(2000);
    let body = json!({"messages": [{"role": "user", "content": long}], "max_tokens": 4000});
    let (status, reply) = post(&parrot, ask(body)).await;
    assert_eq!((status, &reply["error"]["code"]), (StatusCode::BAD_REQUEST, &json!("context_length_exceeded")));

    let huge = "x".repeat(100_001);
    let (status, text) = send(parrot.router(), "POST", "/v1/chat/completions", huge).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(text.contains("100000"), "{text}");
}

#[tokio::test]
async fn the_engines_failures_are_passed_on() {
    let mut parrot = Parrot::new("x");
    parrot.full = true;
    let (status, reply) = post(&parrot, ask(json!({}))).await;
    assert_eq!(status, StatusCode::TOO_MANY_REQUESTS, "{reply}");
    assert_eq!(reply["error"]["type"], "rate_limit_error");
    parrot.full = false;
    parrot.fail = true;
    let (status, reply) = post(&parrot, ask(json!({}))).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(reply["error"]["message"].as_str().unwrap().contains("disk"), "{reply}");
    let (data, _) = stream(&parrot, ask(json!({"stream": true}))).await;
    assert!(data.last().unwrap()["error"]["message"].as_str().unwrap().contains("disk"));
}
