use axum::http::StatusCode;
use serde_json::{Value, json};

use super::{Parrot, ask, ids, post, send, stream};
use fathom_engine::Finish;

pub const CALL: &str = "One moment.\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"weather\">\n<｜DSML｜parameter \
                    name=\"city\" string=\"true\">Bern</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>";

fn weather() -> Value {
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}}});
    json!([{"type": "function", "function": {"name": "weather", "description": "Says it", "parameters": parameters}}])
}

#[tokio::test]
async fn a_plain_answer() {
    let parrot = Parrot::new("The code is 12345 🤭.");
    let (status, reply) = post(&parrot, ask(json!({"unknown_field": [1, 2], "seed": 7, "temperature": 0.5}))).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(reply["object"], "chat.completion");
    assert_eq!(reply["model"], "parrot");
    let choice = &reply["choices"][0];
    assert_eq!(choice["message"]["role"], "assistant");
    assert_eq!(choice["message"]["content"], "The code is 12345 🤭.");
    assert_eq!(choice["finish_reason"], "stop");
    let (asked, said) = (ids("hi").len() + 4, ids(&parrot.reply).len());
    let usage = &reply["usage"];
    assert_eq!(usage["prompt_tokens"], asked);
    assert_eq!(usage["completion_tokens"], said);
    assert_eq!(usage["total_tokens"], asked + said);
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 2);

    let seen = parrot.seen.requests.lock().unwrap();
    assert_eq!((seen[0].sampling.seed, seen[0].sampling.temperature), (Some(7), 0.5));
    assert_eq!(seen[0].stop_tokens, [1]);
    assert_eq!(seen[0].prompt.len(), asked);
}

#[tokio::test]
async fn every_way_to_sample_arrives() {
    let parrot = Parrot::new("x");
    let body = json!({
        "temperature": 0, "top_p": 0.5, "top_k": 7, "min_p": 0.125, "presence_penalty": 1.5, "frequency_penalty": -2,
        "logit_bias": {"5": -100, "9": 2.5}, "seed": 3, "max_completion_tokens": 11, "logprobs": true, "top_logprobs": 2,
        "thinking": {"type": "enabled"}, "n": 1, "stop": null,
    });
    let (status, reply) = post(&parrot, ask(body)).await;
    assert_eq!(status, StatusCode::OK, "{reply}");
    let seen = parrot.seen.requests.lock().unwrap();
    let sampling = &seen[0].sampling;
    assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p), (0.0, 0.5, 7, 0.125));
    assert_eq!((sampling.presence_penalty, sampling.frequency_penalty), (1.5, -2.0));
    assert_eq!((sampling.seed, sampling.logprobs), (Some(3), Some(2)));
    assert_eq!(sampling.logit_bias, [(5, -100.0), (9, 2.5)]);
    assert_eq!(seen[0].max_tokens, Some(11));
}

#[tokio::test]
async fn a_stream_as_openai_sends_it() {
    let parrot = Parrot::new("The code is 🤭.");
    let (data, comments) = stream(&parrot, ask(json!({"stream": true}))).await;
    assert_eq!(data.last().unwrap(), "[DONE]");
    let chunks = &data[..data.len() - 1];
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(chunks[0]["object"], "chat.completion.chunk");
    let text: String = chunks.iter().filter_map(|c| c["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, "The code is 🤭.");
    let finish: Vec<&Value> = chunks.iter().map(|c| &c["choices"][0]["finish_reason"]).collect();
    assert!(finish[..finish.len() - 1].iter().all(|f| f.is_null()));
    assert_eq!(*finish[finish.len() - 1], "stop");
    assert!(chunks.iter().all(|c| c.get("usage").is_none() && c["id"] == chunks[0]["id"]));
    assert_eq!(comments, ["queued, 1 ahead".to_owned(), format!("prefill 2/{}", ids("hi").len() + 4)]);
}

#[tokio::test]
async fn usage_comes_last_and_alone_when_asked_for() {
    let parrot = Parrot::new("hm</think>yes");
    let body = ask(json!({
        "stream": true, "stream_options": {"include_usage": true}, "reasoning_effort": "high"
    }));
    let (data, _) = stream(&parrot, body).await;
    let chunks = &data[..data.len() - 1];
    let (last, others) = chunks.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], ids(&parrot.reply).len());
    assert_eq!(last["usage"]["completion_tokens_details"]["reasoning_tokens"], ids("hm").len());
    assert_eq!(last["usage"]["prompt_tokens_details"]["cached_tokens"], 2);
    assert!(others.iter().all(|c| c["usage"].is_null() && c.as_object().unwrap().contains_key("usage")));
    assert_eq!(others.last().unwrap()["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn thinking_comes_apart() {
    let parrot = Parrot::new("I wonder</think>Yes.");
    let body = json!({"thinking": {"type": "enabled"}});
    let (_, reply) = post(&parrot, ask(body.clone())).await;
    let message = &reply["choices"][0]["message"];
    assert_eq!((&message["reasoning_content"], &message["content"]), (&json!("I wonder"), &json!("Yes.")));
    let mut body = ask(body);
    body["stream"] = json!(true);
    let (data, _) = stream(&parrot, body).await;
    let all =
        |field: &str| -> String { data.iter().filter_map(|c| c.get("choices")?[0]["delta"][field].as_str()).collect() };
    assert_eq!((all("reasoning_content"), all("content")), ("I wonder".to_owned(), "Yes.".to_owned()));
}

#[tokio::test]
async fn tools_go_in_and_calls_come_out() {
    let parrot = Parrot::new(CALL);
    let (status, reply) = post(&parrot, ask(json!({"tools": weather()}))).await;
    assert_eq!(status, StatusCode::OK, "{reply}");
    let choice = &reply["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(choice["message"]["content"], "One moment.");
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!((&call["type"], &call["function"]["name"]), (&json!("function"), &json!("weather")));
    assert_eq!(call["function"]["arguments"], r#"{"city": "Bern"}"#);
    let prompt = super::TOKENIZER.decode(&parrot.seen.requests.lock().unwrap()[0].prompt);
    assert!(prompt.contains("### Available Tool Schemas") && prompt.contains("\"weather\""), "{prompt}");

    // The call and its result go back in.
    let id = call["id"].clone();
    let mut body = ask(json!({"tools": weather()}));
    let messages = body["messages"].as_array_mut().unwrap();
    messages.push(json!({"role": "assistant", "content": "One moment.", "tool_calls": [call]}));
    messages.push(json!({"role": "tool", "tool_call_id": id, "content": "sunny"}));
    let (status, reply) = post(&parrot, body).await;
    assert_eq!(status, StatusCode::OK, "{reply}");
    let prompt = super::TOKENIZER.decode(&parrot.seen.requests.lock().unwrap()[1].prompt);
    assert!(prompt.contains("<tool_result>sunny</tool_result>"), "{prompt}");
}

#[tokio::test]
async fn calls_stream_with_an_index() {
    let parrot = Parrot::new(CALL);
    let (data, _) = stream(&parrot, ask(json!({"tools": weather(), "stream": true}))).await;
    let deltas: Vec<&Value> =
        data.iter().filter_map(|c| c.get("choices")?[0]["delta"].get("tool_calls")).map(|calls| &calls[0]).collect();
    assert_eq!((&deltas[0]["index"], &deltas[0]["function"]["name"]), (&json!(0), &json!("weather")));
    let arguments: String = deltas.iter().filter_map(|delta| delta["function"]["arguments"].as_str()).collect();
    assert_eq!(arguments, r#"{"city": "Bern"}"#);
    assert_eq!(data[data.len() - 2]["choices"][0]["finish_reason"], "tool_calls");
}

#[tokio::test]
async fn log_probabilities_have_no_infinities() {
    let parrot = Parrot::new("ab 🤭");
    let (_, reply) = post(&parrot, ask(json!({"logprobs": true, "top_logprobs": 3}))).await;
    let content = reply["choices"][0]["logprobs"]["content"].as_array().unwrap();
    let bytes: Vec<u8> =
        content.iter().flat_map(|t| t["bytes"].as_array().unwrap()).map(|b| b.as_u64().unwrap() as u8).collect();
    assert_eq!(bytes, "ab 🤭".as_bytes());
    assert!(content.iter().all(|token| token["logprob"] == -0.5));
    assert!(content.iter().all(|token| token["top_logprobs"].as_array().unwrap().len() == 3));
    assert_eq!(content[0]["top_logprobs"][0]["logprob"], -9999.0);
}

#[tokio::test]
async fn a_stop_string_ends_the_answer_and_the_work() {
    let mut parrot = Parrot::new(&format!("one two STOP {}", "more ".repeat(500)));
    parrot.pause = std::time::Duration::from_millis(1);
    let (_, reply) = post(&parrot, ask(json!({"stop": ["STOP"]}))).await;
    assert_eq!(reply["choices"][0]["message"]["content"], "one two ");
    assert_eq!(reply["choices"][0]["finish_reason"], "stop");
    super::lifetime::until(async || parrot.seen.cancelled.load(std::sync::atomic::Ordering::SeqCst)).await;
    assert!(parrot.seen.tokens.load(std::sync::atomic::Ordering::SeqCst) < 400);
}

#[tokio::test]
async fn a_cut_answer_says_so() {
    let mut parrot = Parrot::new("one two");
    for finish in [Finish::Length, Finish::ContextFull] {
        parrot.finish = finish;
        let (_, reply) = post(&parrot, ask(json!({"max_tokens": 2}))).await;
        assert_eq!(reply["choices"][0]["finish_reason"], "length");
    }
}

#[tokio::test]
async fn developers_are_the_system() {
    let parrot = Parrot::new("x");
    let messages = json!([{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "hi"}]);
    assert_eq!(post(&parrot, ask(json!({"messages": messages}))).await.0, StatusCode::OK);
    let prompt = super::TOKENIZER.decode(&parrot.seen.requests.lock().unwrap()[0].prompt);
    assert!(prompt.starts_with("<｜begin▁of▁sentence｜>Be brief.<｜User｜>hi"), "{prompt}");
}

#[tokio::test]
async fn models_and_health() {
    let parrot = Parrot::new("x");
    let (status, text) = send(parrot.router(), "GET", "/v1/models", "").await;
    assert_eq!(status, StatusCode::OK);
    let list: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&list["object"], &list["data"][0]["id"]), (&json!("list"), &json!("parrot")));
    assert_eq!(send(parrot.router(), "GET", "/v1/models/parrot", "").await.0, StatusCode::OK);
    assert_eq!(send(parrot.router(), "GET", "/v1/models/other", "").await.0, StatusCode::NOT_FOUND);
    let (status, text) = send(parrot.router(), "GET", "/health", "").await;
    assert_eq!(status, StatusCode::OK);
    let health: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&health["status"], &health["requests"]["active"]), (&json!("ok"), &json!(0)));
}
