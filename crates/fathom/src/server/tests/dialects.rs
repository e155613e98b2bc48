//! What each dialect makes of the same answers.

use axum::http::StatusCode;
use serde_json::{Value, json};

use super::replies::CALL;
use super::{Parrot, TOKENIZER, ask, ids, post, read_events, send, stream};

async fn to(parrot: &Parrot, path: &str, body: Value) -> (StatusCode, Value) {
    let (status, text) = send(parrot.router(), "POST", path, body.to_string()).await;
    (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("{status}: {text}")))
}

/// The names and the data of a stream's events.
async fn events(parrot: &Parrot, path: &str, body: Value) -> Vec<(String, Value)> {
    let (status, text) = send(parrot.router(), "POST", path, body.to_string()).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    let mut events = Vec::new();
    for event in text.split("\n\n") {
        let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        if let Some(data) = field("data: ") {
            events.push((field("event: ").unwrap_or_default(), serde_json::from_str(&data).unwrap()));
        }
    }
    events
}

fn response(more: Value) -> Value {
    let mut body = json!({"model": "parrot", "input": "hi"});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn message(more: Value) -> Value {
    let mut body = json!({"model": "parrot", "max_tokens": 500, "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn schema() -> Value {
    json!({"type": "object", "properties": {"city": {"type": "string"}}})
}

#[tokio::test]
async fn responses_whole_and_streamed() {
    let parrot = Parrot::new("I wonder</think>Yes. 🤭");
    let body =
        json!({"reasoning": {"effort": "high"}, "instructions": "Be brief.", "store": false, "include": [], "x": 1});
    let (status, reply) = to(&parrot, "/v1/responses", response(body.clone())).await;
    assert_eq!(status, StatusCode::OK, "{reply}");
    assert_eq!((&reply["object"], &reply["status"]), (&json!("response"), &json!("completed")));
    let output = &reply["output"];
    assert_eq!((&output[0]["type"], &output[0]["content"][0]["text"]), (&json!("reasoning"), &json!("I wonder")));
    assert_eq!((&output[1]["type"], &output[1]["content"][0]["text"]), (&json!("message"), &json!("Yes. 🤭")));
    let usage = &reply["usage"];
    assert_eq!(usage["output_tokens"], ids(&parrot.reply).len());
    assert_eq!(usage["input_tokens_details"]["cached_tokens"], 2);
    assert_eq!(usage["output_tokens_details"]["reasoning_tokens"], ids("I wonder").len());
    let prompt = TOKENIZER.decode(&parrot.seen.requests.lock().unwrap()[0].prompt);
    assert!(prompt.contains("Be brief.<｜User｜>hi"), "{prompt}");

    let mut body = response(body);
    body["stream"] = json!(true);
    let events = events(&parrot, "/v1/responses", body).await;
    assert!(events.iter().all(|(name, data)| data["type"] == name.as_str()));
    assert!(events.iter().enumerate().all(|(i, (_, data))| data["sequence_number"] == i));
    assert_eq!((events[0].0.as_str(), events.last().unwrap().0.as_str()), ("response.created", "response.completed"));
    let text: String = events
        .iter()
        .filter(|(name, _)| name == "response.output_text.delta")
        .map(|(_, data)| data["delta"].as_str().unwrap())
        .collect();
    assert_eq!(text, "Yes. 🤭");
}

#[tokio::test]
async fn responses_call_tools_and_take_results() {
    let parrot = Parrot::new(CALL);
    let tools = json!([{"type": "function", "name": "weather", "description": "Says it", "parameters": schema()}]);
    let (status, reply) = to(&parrot, "/v1/responses", response(json!({"tools": tools}))).await;
    assert_eq!(status, StatusCode::OK, "{reply}");
    let call = reply["output"].as_array().unwrap().last().unwrap();
    assert_eq!((&call["type"], &call["name"]), (&json!("function_call"), &json!("weather")));
    assert_eq!(call["arguments"], r#"{"city": "Bern"}"#);
    let input = json!([
        {"role": "user", "content": "hi"},
        call,
        {"type": "function_call_output", "call_id": call["call_id"], "output": "sunny"},
    ]);
    let (status, reply) = to(&parrot, "/v1/responses", response(json!({"tools": tools, "input": input}))).await;
    assert_eq!(status, StatusCode::OK, "{reply}");
    let prompt = TOKENIZER.decode(&parrot.seen.requests.lock().unwrap()[1].prompt);
    assert!(prompt.contains("sunny"), "{prompt}");
}

#[tokio::test]
async fn responses_refuse_by_name() {
    let parrot = Parrot::new("x");
    for (param, body) in [
        ("previous_response_id", json!({"previous_response_id": "resp_1"})),
        ("conversation", json!({"conversation": {"id": "c"}})),
        ("background", json!({"background": true})),
        ("prompt", json!({"prompt": {"id": "p"}})),
        ("max_tool_calls", json!({"max_tool_calls": 1})),
        ("text.verbosity", json!({"text": {"verbosity": "low"}})),
        (
            "text.format.schema",
            json!({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"not": {}}}}}),
        ),
        ("input[0].content[0].type", json!({"input": [{"role": "user", "content": [{"type": "input_image"}]}]})),
        ("tools", json!({"tools": [{"type": "web_search"}]})),
    ] {
        let (status, reply) = to(&parrot, "/v1/responses", response(body)).await;
        assert_eq!((status, reply["error"]["param"].as_str()), (StatusCode::BAD_REQUEST, Some(param)), "{reply}");
    }
    assert!(parrot.seen.requests.lock().unwrap().is_empty());
}

#[tokio::test]
async fn messages_whole_and_streamed() {
    let parrot = Parrot::new("I wonder</think>Yes. 🤭");
    let body = json!({
        "thinking": {"type": "enabled", "budget_tokens": 2000}, "system": [{"type": "text", "text": "Be brief."}],
        "temperature": 0.5, "top_k": 7, "metadata": {"user_id": "x"}, "unknown": true,
    });
    let (status, reply) = to(&parrot, "/v1/messages", message(body.clone())).await;
    assert_eq!(status, StatusCode::OK, "{reply}");
    assert_eq!(
        (&reply["type"], &reply["role"], &reply["model"]),
        (&json!("message"), &json!("assistant"), &json!("parrot"))
    );
    let content = &reply["content"];
    assert_eq!((&content[0]["type"], &content[0]["thinking"]), (&json!("thinking"), &json!("I wonder")));
    assert_eq!((&content[1]["type"], &content[1]["text"]), (&json!("text"), &json!("Yes. 🤭")));
    assert_eq!(reply["stop_reason"], "end_turn");
    let (usage, seen) = (&reply["usage"], parrot.seen.requests.lock().unwrap()[0].clone());
    assert_eq!(usage["output_tokens"], ids(&parrot.reply).len());
    assert_eq!((&usage["cache_read_input_tokens"], &usage["input_tokens"]), (&json!(2), &json!(seen.prompt.len() - 2)));
    assert_eq!((seen.sampling.temperature, seen.sampling.top_k, seen.max_tokens), (0.5, 7, Some(500)));

    let mut body = message(body);
    body["stream"] = json!(true);
    let events = events(&parrot, "/v1/messages", body).await;
    assert!(events.iter().all(|(name, data)| data["type"] == name.as_str()));
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!((names[0], names[1]), ("message_start", "content_block_start"));
    assert_eq!(names[names.len() - 2..], ["message_delta", "message_stop"]);
    assert_eq!(events[0].1["message"]["usage"]["cache_read_input_tokens"], 2);
    let text: String = events.iter().filter_map(|(_, data)| data["delta"]["text"].as_str()).collect();
    assert_eq!(text, "Yes. 🤭");
}

#[tokio::test]
async fn messages_call_tools_and_count_tokens() {
    let parrot = Parrot::new(CALL);
    let tools = json!([{"name": "weather", "description": "Says it", "input_schema": schema()}]);
    let (status, reply) = to(&parrot, "/v1/messages", message(json!({"tools": tools}))).await;
    assert_eq!(status, StatusCode::OK, "{reply}");
    assert_eq!(reply["stop_reason"], "tool_use");
    let call = &reply["content"][1];
    assert_eq!((&call["name"], &call["input"]), (&json!("weather"), &json!({"city": "Bern"})));
    let messages = json!([
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": reply["content"]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call["id"], "content": "sunny"}]},
    ]);
    let body = message(json!({"tools": tools, "messages": messages}));
    let (status, reply) = to(&parrot, "/v1/messages", body.clone()).await;
    assert_eq!(status, StatusCode::OK, "{reply}");
    let prompt = parrot.seen.requests.lock().unwrap()[1].prompt.clone();
    assert!(TOKENIZER.decode(&prompt).contains("sunny"));
    let (status, counted) = to(&parrot, "/v1/messages/count_tokens", body).await;
    assert_eq!((status, counted), (StatusCode::OK, json!({"input_tokens": prompt.len()})));
}

/// A choice of `any` holds: the answer begins inside a call.
#[tokio::test]
async fn messages_with_any_tool() {
    let (_, calls) = CALL.split_at(CALL.find("<｜DSML｜invoke").unwrap());
    let parrot = Parrot::new(calls);
    let tools = json!([{"name": "weather", "input_schema": schema()}]);
    let body = json!({"tools": tools, "tool_choice": {"type": "any"}});
    let (status, reply) = to(&parrot, "/v1/messages", message(body.clone())).await;
    assert_eq!(status, StatusCode::OK, "{reply}");
    assert_eq!(reply["content"][0]["name"], "weather", "{reply}");
    let prompt = TOKENIZER.decode(&parrot.seen.requests.lock().unwrap()[0].prompt);
    assert!(prompt.ends_with("tool_calls>\n"), "{prompt}");
    let mut body = message(body);
    // Who thinks first comes to the call by itself, held to it.
    body["thinking"] = json!({"type": "enabled"});
    assert_eq!(to(&parrot, "/v1/messages", body).await.0, StatusCode::OK);
    let seen = parrot.seen.requests.lock().unwrap();
    assert!(TOKENIZER.decode(&seen[1].prompt).ends_with("<think>") && seen[1].constraint.is_some());
}

#[tokio::test]
async fn messages_refuse_in_their_own_form() {
    let parrot = Parrot::new("x");
    let image = json!([{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x", "content": [{"type": "image"}]}]}]);
    for (status, kind, word, body) in [
        (400, "invalid_request_error", "mcp_servers", json!({"mcp_servers": [{"name": "x"}]})),
        (400, "invalid_request_error", "output_format", json!({"output_format": {"type": "json_schema"}})),
        (
            400,
            "invalid_request_error",
            "there are no tools",
            json!({"tool_choice": {"type": "any", "disable_parallel_tool_use": true}}),
        ),
        (400, "invalid_request_error", "messages[0].content[0].content[0]", json!({"messages": image})),
        (400, "invalid_request_error", "temperature", json!({"temperature": "hot"})),
        (404, "not_found_error", "claude", json!({"model": "claude"})),
    ] {
        let (got, reply) = to(&parrot, "/v1/messages", message(body)).await;
        assert_eq!(
            (got.as_u16(), &reply["type"], &reply["error"]["type"]),
            (status, &json!("error"), &json!(kind)),
            "{reply}"
        );
        assert!(reply["error"]["message"].as_str().unwrap().contains(word), "{reply}");
    }
    let mut failing = Parrot::new("x");
    failing.fail = true;
    let last = events(&failing, "/v1/messages", message(json!({"stream": true}))).await.pop().unwrap();
    assert_eq!((last.0.as_str(), &last.1["error"]["type"]), ("error", &json!("api_error")));
    failing.full = true;
    let (status, reply) = to(&failing, "/v1/messages", message(json!({}))).await;
    assert_eq!((status.as_u16(), &reply["error"]["type"]), (429, &json!("rate_limit_error")));
}

#[tokio::test]
async fn several_choices() {
    let parrot = Parrot::new("yes");
    let said = ids("yes").len();
    let (status, reply) = post(&parrot, ask(json!({"n": 3, "seed": 5}))).await;
    assert_eq!(status, StatusCode::OK, "{reply}");
    let choices = reply["choices"].as_array().unwrap();
    let mut indices: Vec<u64> = choices.iter().map(|choice| choice["index"].as_u64().unwrap()).collect();
    indices.sort_unstable();
    assert_eq!(indices, [0, 1, 2]);
    assert!(choices.iter().all(|choice| choice["message"]["content"] == "yes" && choice["finish_reason"] == "stop"));
    assert_eq!(reply["usage"]["completion_tokens"], 3 * said);
    let seeds: Vec<_> = parrot.seen.requests.lock().unwrap().iter().map(|request| request.sampling.seed).collect();
    assert_eq!(seeds, [Some(5), Some(6), Some(7)]);

    for include in [false, true] {
        let body = json!({"n": 2, "stream": true, "stream_options": {"include_usage": include}});
        let (data, _) = stream(&parrot, ask(body)).await;
        let chunks = &data[..data.len() - 1];
        let usages: Vec<&Value> = chunks.iter().filter(|chunk| chunk["usage"].is_object()).collect();
        assert_eq!(usages.len(), usize::from(include));
        assert!(usages.iter().all(|chunk| chunk["usage"]["completion_tokens"] == 2 * said));
        assert_eq!(chunks.last().unwrap()["choices"].as_array().unwrap().is_empty(), include);
        let ends = chunks.iter().filter(|chunk| chunk["choices"][0]["finish_reason"] == "stop").count();
        assert_eq!(ends, 2);
    }
}

#[tokio::test]
async fn texts_are_continued() {
    let parrot = Parrot::new("one two three");
    let body =
        json!({"model": "parrot", "prompt": ["a", "b"], "n": 2, "max_tokens": 100, "stop": ["thr"], "echo": true});
    let (status, reply) = to(&parrot, "/v1/completions", body.clone()).await;
    assert_eq!(status, StatusCode::OK, "{reply}");
    assert_eq!(reply["object"], "text_completion");
    let texts: Vec<&str> = reply["choices"].as_array().unwrap().iter().map(|c| c["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["aone two ", "aone two ", "bone two ", "bone two "]);
    assert_eq!(
        reply["choices"][3],
        json!({"index": 3, "text": "bone two ", "logprobs": null, "finish_reason": "stop"})
    );
    assert_eq!(reply["usage"]["prompt_tokens"], 2 * (1 + ids("a").len()));
    assert_eq!(reply["usage"]["prompt_tokens_details"]["cached_tokens"], 2 * 2);

    let mut body = body;
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let (_, text) = send(parrot.router(), "POST", "/v1/completions", body.to_string()).await;
    let (data, _) = read_events(&text);
    let of = |i: u64| -> String {
        let mine = data.iter().filter_map(|chunk| chunk.get("choices")?.get(0)).filter(|choice| choice["index"] == i);
        mine.map(|choice| choice["text"].as_str().unwrap()).collect()
    };
    assert_eq!((of(0), of(3)), ("aone two ".to_owned(), "bone two ".to_owned()));
    assert_eq!(data.last().unwrap(), "[DONE]");
    assert!(data[data.len() - 2]["usage"].is_object());

    for (param, change) in [
        ("suffix", json!({"suffix": "x"})),
        ("best_of", json!({"best_of": 3})),
        ("n", json!({"n": 1000})),
        ("stop", json!({"stop": [""]})),
        ("temperature", json!({"temperature": 3})),
    ] {
        let mut body = json!({"model": "parrot", "prompt": "a"});
        body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let (status, reply) = to(&parrot, "/v1/completions", body).await;
        assert_eq!((status, reply["error"]["param"].as_str()), (StatusCode::BAD_REQUEST, Some(param)), "{reply}");
    }
    let (status, reply) = to(&parrot, "/v1/completions", json!({"model": "parrot", "prompt": 7})).await;
    assert_eq!((status, reply["error"]["param"].as_str()), (StatusCode::UNPROCESSABLE_ENTITY, Some("prompt")));
}

#[tokio::test]
async fn text_to_tokens_and_back() {
    let parrot = Parrot::new("x");
    let text = "The code 🤭";
    let (status, reply) = to(&parrot, "/tokenize", json!({"prompt": text, "add_special_tokens": false})).await;
    assert_eq!((status, &reply["tokens"]), (StatusCode::OK, &json!(ids(text))));
    let (_, reply) = to(&parrot, "/tokenize", json!({"prompt": text})).await;
    assert_eq!((&reply["count"], &reply["max_model_len"]), (&json!(ids(text).len() + 1), &json!(4096)));
    let (_, reply) = to(&parrot, "/detokenize", json!({"tokens": ids(text)})).await;
    assert_eq!(reply, json!({"prompt": text}));
    let (_, reply) = to(&parrot, "/tokenize", ask(json!({}))).await;
    post(&parrot, ask(json!({}))).await;
    assert_eq!(reply["tokens"], json!(parrot.seen.requests.lock().unwrap()[0].prompt));
    assert_eq!(to(&parrot, "/tokenize", json!({})).await.0, StatusCode::BAD_REQUEST);
}
