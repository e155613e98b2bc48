//! Answers held to what was asked for, by the embedded model at a temperature at which it says anything.
//!
//! `FATHOM_CONSTRAINED=10000 cargo test --release -p fathom constrained::holds -- --nocapture` tries more, and says how many.

use std::ops::ControlFlow;
use std::sync::mpsc;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use bytes::Bytes;
use deepseek_recipe::stream::InferenceFinishReason;
use fathom_engine::{Engine, EngineOptions, Event, Finish, Request, Sampling};
use fathom_kernels::{Cpu, CpuOptions};
use fathom_model::Model;
use fathom_weights::Checkpoint;
use serde_json::{Map, Value, json};

use super::sessions::{CONFIG, WEIGHTS, call, server};
use super::{Parrot, TOKENIZER, ask, post, read_events, send};
use crate::chat::constraint::{Form, Format, Said};
use crate::chat::{Dialect, Output, Piece, Pieces, Prompter};
use crate::server::{Keys, Served, parse_chat, parse_messages};

static PROMPTER: LazyLock<Prompter> = LazyLock::new(|| Prompter::new(Arc::clone(&TOKENIZER), Dialect::Preview));

fn engine(parallel: usize) -> Engine {
    let shard = ("model-00001.safetensors".to_owned(), Bytes::from_static(WEIGHTS));
    let checkpoint = Checkpoint::from_memory(CONFIG, vec![shard]).unwrap();
    let cpu = Cpu::new(CpuOptions { threads: Some(1), ..CpuOptions::default() }).unwrap();
    let model = Arc::new(Model::load(cpu, &checkpoint).unwrap());
    Engine::start(model, EngineOptions { parallel, queue: 64, context: 4000, ..EngineOptions::default() }, None)
}

/// A small deterministic generator (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// A schema whose values are small. `strict` keeps to what strict schemas may say.
    fn schema(&mut self, depth: u64, strict: bool) -> Value {
        let kinds = if depth == 0 { 8 } else { 11 };
        match self.below(kinds) {
            0 => json!({"type": "boolean"}),
            1 => json!({"type": "integer", "minimum": self.below(20) as i64 - 10, "maximum": 10 + self.below(2000)}),
            2 => json!({"type": "number", "exclusiveMinimum": -1.5, "maximum": self.below(100)}),
            3 => json!({"type": "string", "enum": ["red", "light blue", "\"<né>\"", "{\\n}"]}),
            4 if strict => json!({"type": "string", "pattern": "^[a-z]{1,8}$"}),
            4 => json!({"type": "string", "minLength": self.below(3), "maxLength": 4 + self.below(8)}),
            5 => json!({"type": "string", "pattern": "^(\\d{2}|[A-Z]+[^<>\"]?)$"}),
            6 => json!({"type": ["integer", "null"], "minimum": 0, "maximum": 99}),
            7 => json!({"type": "string", "format": if self.one_in(2) { "ipv4" } else { "uuid" }}),
            8 if !strict => {
                json!({"type": "array", "items": self.schema(depth - 1, strict), "minItems": self.below(2), "maxItems": 3})
            }
            9 if !strict => json!({"anyOf": [self.schema(depth - 1, strict), {"type": "null"}, {"const": "x<y"}]}),
            _ => self.object(depth, strict),
        }
    }

    fn object(&mut self, depth: u64, strict: bool) -> Value {
        let names = ["a", "city", "größe", "x_1", "list-of"];
        let mut properties = Map::new();
        let mut required = Vec::new();
        for name in names.iter().take(1 + self.below(4) as usize) {
            properties.insert((*name).to_owned(), self.schema(depth.saturating_sub(1), strict));
            if strict || !self.one_in(3) {
                required.push(*name);
            }
        }
        json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
    }
}

/// What an answer must be.
enum Want {
    Json(Value),
    Phrase,
    Calls { tools: Vec<(String, Value)>, forced: bool, many: bool },
}

/// A random request for something, and how to see that it is that.
fn asked(random: &mut Random) -> (Value, bool, Want) {
    let thinking = json!({"type": if random.one_in(4) { "enabled" } else { "disabled" }});
    let said = json!([{"role": "user", "content": "Say it in json."}]);
    let mut body = json!({"model": "demo", "messages": said, "thinking": thinking, "max_tokens": 160});
    let tools = |random: &mut Random, strict| -> Vec<(String, Value)> {
        let n = 1 + random.below(3) as usize;
        ["weather", "look-up", "say_it"]
            .iter()
            .take(n)
            .map(|name| ((*name).to_owned(), random.object(2, strict)))
            .collect()
    };
    match random.below(7) {
        0 => {
            body["response_format"] = json!({"type": "json_object"});
            (body, false, Want::Json(json!({"type": "object"})))
        }
        1 | 2 => {
            let schema = random.object(3, false);
            body["response_format"] = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
            (body, false, Want::Json(schema))
        }
        3 => {
            body["structured_outputs"] = json!({"regex": r"([0-9]{3}-)+(yes|no|né[^a]{2,5})\."});
            (body, false, Want::Phrase)
        }
        // Strict ones, forced or free, of OpenAI's form.
        4 | 5 => {
            let tools = tools(random, true);
            let declared = tools.iter().map(|(name, schema)| {
                json!({"type": "function", "function": {"name": name, "parameters": schema, "strict": true}})
            });
            body["tools"] = declared.collect();
            let forced = !random.one_in(3);
            let many = random.one_in(2);
            body["tool_choice"] = if forced { json!("required") } else { json!("auto") };
            body["parallel_tool_calls"] = json!(many);
            (body, false, Want::Calls { tools, forced, many })
        }
        // Of Anthropic's: some optional arguments, and some tools that are not strict.
        _ => {
            let tools = tools(random, false);
            let mut wanted = Vec::new();
            let mut declared = Vec::new();
            for (name, schema) in tools {
                let strict = !random.one_in(3);
                declared.push(json!({"name": name, "input_schema": schema, "strict": strict}));
                wanted.push((name, if strict { schema } else { json!(true) }));
            }
            let named = random.one_in(3);
            body["tool_choice"] =
                if named { json!({"type": "tool", "name": wanted[0].0}) } else { json!({"type": "any"}) };
            body["tools"] = Value::Array(declared);
            if named {
                wanted.truncate(1);
            }
            (body, true, Want::Calls { tools: wanted, forced: true, many: true })
        }
    }
}

/// The request to the engine, for a body of one of the dialects.
fn understood(body: &Value, anthropic: bool) -> (Request, crate::server::ChatRequest) {
    let served = Served {
        model: "demo".to_owned(),
        aliases: Vec::new(),
        dialect: Dialect::Preview,
        vocab_size: 2240,
        context: 4000,
        thinking: false,
        tools: true,
    };
    let parse = if anthropic { parse_messages } else { parse_chat };
    let request = parse(body.to_string().as_bytes(), &served).unwrap_or_else(|error| panic!("{body}: {error:?}"));
    let form = request.form.as_ref().unwrap_or_else(|| panic!("{body}: no form"));
    let constraint = PROMPTER.grammars().compile(form).unwrap_or_else(|refused| panic!("{body}: {refused}"));
    let prompt = PROMPTER.conversation(&request.converted.conversation).unwrap();
    let max_tokens = request.converted.inference_options.max_tokens.map(|n| n as usize);
    let sampling = Sampling { temperature: 1.5, ..request.sampling.clone() };
    (Request { prompt, max_tokens, stop_tokens: vec![1], sampling, constraint, ..Request::default() }, request)
}

/// Begins a request; its tokens and its end come.
fn begin(engine: &Engine, request: Request) -> mpsc::Receiver<Event> {
    let (send, receive) = mpsc::channel();
    let sink = move |event| send.send(event).map_or(ControlFlow::Break(()), ControlFlow::Continue);
    engine.submit(request, sink).unwrap();
    receive
}

fn ended(events: mpsc::Receiver<Event>) -> (Vec<u32>, Finish) {
    let mut ids = Vec::new();
    for event in events {
        match event {
            Event::Token { id, .. } => ids.push(id),
            Event::Done { reason, .. } => return (ids, reason),
            Event::Failed(error) => panic!("{error}"),
            _ => {}
        }
    }
    panic!("the engine went away");
}

/// What is wrong with an answer that has ended, if anything.
fn problem(want: &Want, request: &crate::server::ChatRequest, ids: &[u32]) -> Option<String> {
    let names = request.converted.conversation.tools.iter().map(|tool| tool.name.clone()).collect();
    let mut output = Output::checked(Arc::clone(&TOKENIZER), request.converted.parsing_options.clone(), Pieces, names);
    let mut pieces = Vec::new();
    ids.iter().for_each(|&id| pieces.extend(output.push(id, None).unwrap()));
    pieces.extend(output.end(InferenceFinishReason::Stop).unwrap());
    let (mut text, mut calls) = (String::new(), Vec::<(String, String)>::new());
    for piece in pieces {
        match piece {
            Piece::Answer(more) => text += &more,
            Piece::ToolCall { name } => calls.push((name, String::new())),
            Piece::Arguments(more) => calls.last_mut().unwrap().1 += &more,
            Piece::Thinking(_) | Piece::End(_) => {}
        }
    }
    let validates = |schema: &Value, json: &str| match serde_json::from_str::<Value>(json) {
        Ok(value) => {
            jsonschema::validator_for(schema).unwrap().validate(&value).err().map(|error| format!("{json}: {error}"))
        }
        Err(error) => Some(format!("{json}: {error}")),
    };
    if output.malformed() {
        return Some(format!("malformed: {text}"));
    }
    match want {
        Want::Json(schema) => validates(schema, &text),
        Want::Phrase => {
            let rest = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '-');
            let fits = rest == "yes." || rest == "no." || rest.starts_with("né") && rest.ends_with('.');
            (!fits || !text.starts_with(|c: char| c.is_ascii_digit())).then_some(text)
        }
        Want::Calls { tools, forced, many } => {
            if *forced && (calls.is_empty() || !text.trim().is_empty()) || !many && calls.len() > 1 {
                return Some(format!("{} calls, {text:?}", calls.len()));
            }
            calls.iter().find_map(|(name, arguments)| match tools.iter().find(|(known, _)| known == name) {
                Some((_, schema)) => validates(schema, arguments),
                None => Some(format!("there is no tool {name}")),
            })
        }
    }
}

/// Of constrained answers that were not cut short, all are what they must be; and what runs beside one changes none.
#[test]
fn holds() {
    let count: u64 = std::env::var("FATHOM_CONSTRAINED").map_or(240, |n| n.parse().expect("a number"));
    let engine = engine(8);
    let dsml = TOKENIZER.dsml().unwrap();
    let opens = TOKENIZER.encode("<").unwrap()[0];
    let (mut finished, mut cut, mut called, mut compiling) = (0, 0, 0, Duration::ZERO);
    let mut random = Random(7);
    let mut again = Vec::new();
    let mut i = 0;
    while i < count {
        let mut batch = Vec::new();
        for _ in 0..8.min(count - i) {
            let (body, anthropic, want) = asked(&mut random);
            let start = Instant::now();
            let (mut request, chat) = understood(&body, anthropic);
            compiling += start.elapsed();
            request.sampling.seed = Some(i);
            if matches!(want, Want::Calls { forced: false, .. }) {
                // So that free text comes to calls at all.
                request.sampling.logit_bias = vec![(dsml, 40.0), (opens, 6.0)];
            }
            batch.push((body, want, chat, request.clone(), begin(&engine, request)));
            i += 1;
        }
        for (body, want, chat, request, events) in batch {
            let (ids, finish) = ended(events);
            if again.len() < 24 {
                again.push((request, ids.clone()));
            }
            if finish != Finish::Stop {
                cut += 1;
                continue;
            }
            finished += 1;
            called += usize::from(ids.contains(&dsml));
            if let Some(problem) = problem(&want, &chat, &ids) {
                panic!("{body}\n{}\n{problem}", TOKENIZER.decode(&ids));
            }
        }
    }
    eprintln!("{count} answers: {finished} finished and as asked for, {called} of them calls, {cut} cut short");
    eprintln!("reading a request and making its grammar took {:?} on average", compiling / count as u32);
    assert!(finished * 2 > count as usize && called > finished / 8, "{finished} finished, {called} called");
    let alone = self::engine(1);
    for (request, ids) in again {
        assert_eq!(ended(begin(&alone, request)).0, ids);
    }
}

/// A format holds the answer that is no call, beside tools that are strict and tools that are not, as far as a call is possible.
#[tokio::test]
async fn formats_beside_tools() {
    let (router, engine) = server(None, Keys::default());
    let object = |name: &str, one: Value| json!({"type": "object", "properties": {name: one}, "required": [name], "additionalProperties": false});
    let answer = object("n", json!({"type": "integer", "minimum": 3, "maximum": 5}));
    let day = object("day", json!({"type": "string", "enum": ["mon", "tue"]}));
    // So that calls come where they can: they begin with two new lines, '<', and the token of theirs.
    let calls: Map<String, Value> =
        TOKENIZER.encode("\n\n<").unwrap().into_iter().map(|id| (id.to_string(), json!(100))).collect();
    let (mut called, mut said) = (0, 0);
    for (format, fits) in [
        (json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": answer}}), "n"),
        (json!({"type": "json_object"}), ""),
        (json!({"type": "text"}), "any"),
    ] {
        for (strict, choice, bias) in [true, false].into_iter().flat_map(|strict| {
            [
                ("auto", json!({})),
                ("auto", Value::Object(calls.clone())),
                ("none", Value::Object(calls.clone())),
                ("required", json!({})),
            ]
            .map(|(choice, bias)| (strict, choice, bias))
        }) {
            let tool = json!({"type": "function", "function": {"name": "plan", "strict": strict, "parameters": day}});
            let body = json!({"model": "demo", "messages": [{"role": "user", "content": "Say it in json."}], "temperature": 0,
                "max_tokens": 200, "response_format": format, "tools": [tool], "tool_choice": choice, "logit_bias": bias});
            let (status, reply) = call(&router, "POST", "/v1/chat/completions", body.clone()).await;
            assert_eq!(status, 200, "{body}\n{reply}");
            let (message, ended) = (&reply["choices"][0]["message"], reply["choices"][0]["finish_reason"].as_str());
            let about = format!("{body}\n{message} {ended:?}");
            if ended == Some("tool_calls") {
                assert_ne!(choice, "none", "{about}");
                called += 1;
                let call = &message["tool_calls"][0]["function"];
                let day: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
                assert!(call["name"] == "plan" && (!strict || day["day"] == "mon" || day["day"] == "tue"), "{about}");
                assert!(
                    fits == "any" || message["content"].as_str().is_none_or(|text| text.trim().is_empty()),
                    "{about}"
                );
            } else {
                assert!(
                    message["tool_calls"].is_null() && (choice != "required" || ended == Some("length")),
                    "{about}"
                );
                if ended == Some("stop") && fits != "any" {
                    said += 1;
                    let said: Value = serde_json::from_str(message["content"].as_str().unwrap())
                        .unwrap_or_else(|_| panic!("{about}"));
                    assert!(
                        said.is_object() && (fits.is_empty() || (3..=5).contains(&said[fits].as_i64().unwrap())),
                        "{about}"
                    );
                }
            }
        }
    }
    assert!(called > 0 && said > 0, "{called} called, {said} said");
    let tool = json!({"type": "function", "name": "plan", "strict": true, "parameters": day});
    let brace = TOKENIZER.encode("{").unwrap()[0].to_string();
    let body = json!({"model": "demo", "input": "Say it.", "temperature": 0, "max_output_tokens": 200, "tools": [tool],
        "logit_bias": {brace: 100},
        "text": {"format": {"type": "json_schema", "name": "x", "schema": answer}}});
    let (status, reply) = call(&router, "POST", "/v1/responses", body).await;
    assert_eq!(status, 200, "{reply}");
    let said = reply["output"][0]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{reply}"));
    assert!((3..=5).contains(&serde_json::from_str::<Value>(said).unwrap()["n"].as_i64().unwrap()), "{said}");
    assert_eq!((&reply["tools"][0]["strict"], &reply["text"]["format"]["type"]), (&json!(true), &json!("json_schema")));
    // What is wrong with either is said as it is alone.
    for (key, value, param) in [
        ("response_format", json!({"type": "json_object"}), "response_format"),
        (
            "tools",
            json!([{"type": "function", "function": {"name": "a b", "strict": true, "parameters": day}}]),
            "tools",
        ),
    ] {
        let mut body =
            ask(json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": answer}},
            "tools": [{"type": "function", "function": {"name": "plan", "strict": true, "parameters": day}}]}));
        body[key] = value;
        let (status, reply) = post(&Parrot::new("x"), body).await;
        assert_eq!((status, &reply["error"]["param"]), (StatusCode::BAD_REQUEST, &json!(param)), "{reply}");
    }
    engine.drain();
}

#[tokio::test]
async fn every_dialect_holds_formats() {
    let (router, engine) = server(None, Keys::default());
    let schema = json!({"type": "object", "properties": {"n": {"type": "integer", "minimum": 3, "maximum": 5}},
        "required": ["n"], "additionalProperties": false});
    let fits = |text: &Value| {
        let n = serde_json::from_str::<Value>(text.as_str().unwrap()).unwrap()["n"].as_i64().unwrap();
        assert!((3..=5).contains(&n), "{text}");
    };
    let said = json!([{"role": "user", "content": "hi"}]);
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": true}});
    let body = json!({"model": "demo", "messages": said, "response_format": format, "n": 3, "seed": 1});
    let (status, reply) = call(&router, "POST", "/v1/chat/completions", body).await;
    assert_eq!(status, 200, "{reply}");
    reply["choices"].as_array().unwrap().iter().for_each(|choice| fits(&choice["message"]["content"]));

    let format = json!({"format": {"type": "json_schema", "name": "x", "schema": schema}});
    let body = json!({"model": "demo", "input": "hi", "text": format});
    let (status, reply) = call(&router, "POST", "/v1/responses", body).await;
    assert_eq!(status, 200, "{reply}");
    fits(&reply["output"][0]["content"][0]["text"]);

    for (i, at) in ["output_config", "output_format"].into_iter().enumerate() {
        let format = json!({"type": "json_schema", "schema": schema});
        let format = if i == 0 { json!({"format": format}) } else { format };
        let body = json!({"model": "demo", "messages": said, "max_tokens": 400, at: format});
        let (status, reply) = call(&router, "POST", "/v1/messages", body).await;
        assert_eq!(status, 200, "{reply}");
        fits(&reply["content"][0]["text"]);
    }

    let body = json!({"model": "demo", "prompt": "hi", "max_tokens": 400, "structured_outputs": {"json": schema}});
    let (status, reply) = call(&router, "POST", "/v1/completions", body).await;
    assert_eq!(status, 200, "{reply}");
    fits(&reply["choices"][0]["text"]);
    for (asked, says) in [
        (json!({"choice": ["\"né\"\n", "no"]}), ["\"né\"\n", "no"]),
        (json!({"grammar": "start: \"y\" \"es\" | \"no\""}), ["yes", "no"]),
        (json!({"regex": "a|bc"}), ["a", "bc"]),
    ] {
        let body = json!({"model": "demo", "prompt": "hi", "structured_outputs": asked});
        let (_, reply) = call(&router, "POST", "/v1/completions", body).await;
        assert!(says.contains(&reply["choices"][0]["text"].as_str().unwrap_or_else(|| panic!("{reply}"))), "{reply}");
    }

    // A conversation that ends in an answer's beginning is gone on with.
    let begun = json!([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "{\"n\":", "prefix": true}]);
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    let body = json!({"model": "demo", "messages": begun, "response_format": format});
    let (status, reply) = call(&router, "POST", "/v1/chat/completions", body.clone()).await;
    assert_eq!(status, 200, "{reply}");
    let text = format!("{{\"n\":{}", reply["choices"][0]["message"]["content"].as_str().unwrap());
    fits(&json!(text));
    let mut other = body;
    other["messages"][1]["content"] = json!("{\"m\":");
    let (status, reply) = call(&router, "POST", "/v1/chat/completions", other).await;
    assert_eq!((status, &reply["error"]["param"]), (400, &json!("response_format.json_schema.schema")), "{reply}");

    // A session too.
    call(&router, "POST", "/v1/sessions", json!({"name": "s"})).await;
    let body = json!({"text": "The number is ", "structured_outputs": {"regex": "[0-9]{3}"}});
    let (status, reply) = call(&router, "POST", "/v1/sessions/s/generate", body).await;
    assert_eq!(status, 200, "{reply}");
    assert!(reply["text"].as_str().unwrap().parse::<u16>().is_ok() && reply["finish_reason"] == "stop", "{reply}");
    engine.drain();
}

#[tokio::test]
async fn a_forced_call_streams_after_thinking() {
    let (router, engine) = server(None, Keys::default());
    let schema = json!({"type": "object", "properties": {"day": {"enum": ["mon", "tue"]}}, "required": ["day"]});
    let body = json!({
        "model": "demo", "messages": [{"role": "user", "content": "hi"}], "stream": true, "max_tokens": 2000,
        "thinking": {"type": "enabled"}, "logit_bias": {"2199": 12}, "temperature": 1.5, "seed": 2,
        "tools": [{"name": "plan", "input_schema": schema, "strict": true}],
        "tool_choice": {"type": "tool", "name": "plan", "disable_parallel_tool_use": true},
    });
    let (status, text) = send(router, "POST", "/v1/messages", body.to_string()).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    let data: Vec<Value> =
        text.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok()).collect();
    let arguments: String = data.iter().filter_map(|event| event["delta"]["partial_json"].as_str()).collect();
    let day = serde_json::from_str::<Value>(&arguments).unwrap_or_else(|_| panic!("{text}"))["day"].clone();
    assert!(day == "mon" || day == "tue", "{text}");
    assert!(data.iter().any(|event| event["delta"]["stop_reason"] == "tool_use"), "{text}");
    engine.drain();
}

/// What cannot be enforced is refused by its name, and nothing is generated.
#[tokio::test]
async fn what_cannot_hold_is_refused() {
    let parrot = Parrot::new("x");
    let schema = |schema: Value| json!({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}});
    let tool = |parameters: Value| json!({"tools": [{"type": "function", "function": {"name": "a", "strict": true, "parameters": parameters}}]});
    let at = "response_format.json_schema.schema";
    let strict = "tools[0].function.parameters";
    let object = |properties: Value| {
        let required: Vec<String> = properties.as_object().unwrap().keys().cloned().collect();
        json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
    };
    for (param, word, body) in [
        (at, "\"not\"", schema(json!({"not": {"type": "null"}}))),
        (at, "uniqueItems", schema(json!({"type": "array", "uniqueItems": true}))),
        (at, "format: nonsense", schema(json!({"type": "string", "format": "nonsense"}))),
        (at, "oneOf", schema(json!({"oneOf": [{"minimum": 3}, {"maximum": 5}]}))),
        (at, "nothing", schema(json!({"$ref": "#"}))),
        (at, "minProperties", schema(json!({"type": "object", "minProperties": 3}))),
        (strict, "a space", tool(object(json!({"two words": {"type": "string"}})))),
        (
            "tools[0].function.parameters.properties.a",
            "uniqueItems",
            tool(object(json!({"a": {"type": "array", "items": {"type": "string"}, "uniqueItems": true}}))),
        ),
        ("structured_outputs.regex", "at most", json!({"structured_outputs": {"regex": "a".repeat(20_000)}})),
        ("structured_outputs.regex", "", json!({"structured_outputs": {"regex": "(a"}})),
        ("structured_outputs.grammar", "start", json!({"structured_outputs": {"grammar": "x: \"a\""}})),
        ("structured_outputs.choice", "choose", json!({"structured_outputs": {"choice": []}})),
        ("structured_outputs.structural_tag", "not supported", json!({"structured_outputs": {"structural_tag": "x"}})),
        ("structured_outputs", "one of", json!({"structured_outputs": {"regex": "a", "json": {}}})),
        (
            "structured_outputs.regex",
            "one format",
            json!({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}}),
        ),
        ("guided_json", "structured_outputs", json!({"guided_json": {}})),
    ] {
        let mut body = ask(body);
        body["messages"][0]["content"] = json!("json");
        let (status, reply) = post(&parrot, body).await;
        let error = &reply["error"];
        assert_eq!((status, error["param"].as_str()), (StatusCode::BAD_REQUEST, Some(param)), "{reply}");
        assert!(error["message"].as_str().unwrap().contains(word), "{word}: {reply}");
    }
    assert!(parrot.seen.requests.lock().unwrap().is_empty());
}

/// Grammars from outside end in a grammar or a refusal, whatever they are.
#[test]
fn absurd_grammars_end() {
    let chain = |n: usize| {
        let defs: Map<String, Value> =
            (0..n).map(|i| (format!("d{i}"), json!({"$ref": format!("#/$defs/d{}", i + 1)}))).collect();
        let mut defs = Value::Object(defs);
        defs[format!("d{n}")] = json!({"type": "null"});
        json!({"$ref": "#/$defs/d0", "$defs": defs})
    };
    let mut nested = json!({"type": "null"});
    (0..55).for_each(|_| nested = json!({"type": "array", "items": nested.take()}));
    let many: Vec<Value> = (0..2000).map(|i| json!({"const": i})).collect();
    let wide: Vec<Value> = (0..8).map(|_| json!({"anyOf": many[..150]})).collect();
    let properties: Map<String, Value> = (0..1500).map(|i| (format!("p{i}"), json!({"type": "string"}))).collect();
    let rules: String = (0..900).map(|i| format!("r{i}: r{}\n", i + 1)).collect();
    for (name, format) in [
        ("references", Format::Schema(chain(3000))),
        ("nested", Format::Schema(nested)),
        ("enum", Format::Schema(json!({"enum": (0..5000).collect::<Vec<_>>()}))),
        ("all of any of", Format::Schema(json!({"allOf": wide}))),
        ("properties", Format::Schema(json!({"type": "object", "properties": properties}))),
        ("lengths", Format::Schema(json!({"type": "string", "minLength": 1_000_000, "maxLength": 2_000_000}))),
        ("items", Format::Schema(json!({"type": "array", "items": {"type": "null"}, "minItems": u32::MAX}))),
        ("itself", Format::Schema(json!({"$ref": "#"}))),
        ("regex", Format::Regex("((a{1000}){1000}){1000}".to_owned())),
        ("regex groups", Format::Regex("(".repeat(5000) + "a" + &")".repeat(5000))),
        ("grammar groups", Format::Grammar(format!("start: {}\"a\"{}", "(".repeat(7000), ")".repeat(7000)))),
        ("grammar rules", Format::Grammar(format!("start: r0\n{rules}r900: \"a\""))),
        ("left recursion", Format::Grammar("start: start start | \"a\"".to_owned())),
    ] {
        let start = Instant::now();
        let form = Form { thinks: false, answer: Said::Like("at".into(), format), calls: None, written: String::new() };
        let compiled = PROMPTER.grammars().compile(&form);
        let made = start.elapsed();
        let outcome = match compiled {
            Err(refused) => refused.to_string(),
            Ok(compiled) => {
                let compiled = compiled.unwrap();
                // In the engine's thread, where others wait for it.
                let begun = Instant::now();
                let mut mask = compiled.begin();
                let allowed = mask.allowed().map(<[u32]>::to_vec);
                assert!(begun.elapsed() < Duration::from_secs(1), "{name}: {:?}", begun.elapsed());
                match allowed {
                    Ok(words) => {
                        format!("{} tokens may begin", words.iter().map(|word| word.count_ones()).sum::<u32>())
                    }
                    Err(problem) => problem,
                }
            }
        };
        eprintln!(
            "{name}: {made:?}, then {:?}: {}",
            start.elapsed() - made,
            outcome.chars().take(160).collect::<String>()
        );
        assert!(start.elapsed() < Duration::from_secs(60), "{name}");
    }
}

/// Without a constraint, what only looks like calls is text, and the reply says so.
#[tokio::test]
async fn what_looks_like_calls_is_text() {
    let block = |call: &str| format!("So:\n\n<｜DSML｜tool_calls>\n{call}</｜DSML｜tool_calls>");
    let invoke = |name: &str, inner: &str| format!("<｜DSML｜invoke name=\"{name}\">\n{inner}</｜DSML｜invoke>\n");
    let argument = "<｜DSML｜parameter name=\"city\" string=\"false\">{\"a\": [1]}</｜DSML｜parameter>\n";
    let tools = json!([{"name": "weather", "input_schema": {"type": "object"}}]);
    let tools = &tools;
    let whole = |text: String| async move {
        let parrot = Parrot::new(&text);
        let body = json!({"model": "parrot", "max_tokens": 500, "tools": tools, "messages": [{"role": "user", "content": "hi"}]});
        let (_, reply) = send(parrot.router(), "POST", "/v1/messages", body.to_string()).await;
        let mut streamed = body;
        streamed["stream"] = json!(true);
        let (_, events) = send(parrot.router(), "POST", "/v1/messages", streamed.to_string()).await;
        let events: Vec<Value> =
            events.lines().filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok()).collect();
        (serde_json::from_str::<Value>(&reply).unwrap(), events)
    };
    for text in [
        block(&invoke("nobody", "")),
        block(&(invoke("weather", argument) + &invoke("nobody", ""))),
        block(&invoke("weather", &argument.replace("[1]", "[1"))),
        block(&invoke("weather", &argument.replace("city", "two words"))),
        block("nothing"),
        block(""),
        block(&invoke("weather", argument)).replace("</｜DSML｜tool_calls>", ""),
        "So <｜DSML｜invoke name=\"weather\">".to_owned(),
        "So ｜DSML｜ it is".to_owned(),
    ] {
        let (reply, events) = whole(text.clone()).await;
        assert_eq!(reply["content"], json!([{"type": "text", "text": text}]), "{reply}");
        assert_eq!(
            (&reply["malformed_tool_calls"], &reply["stop_reason"]),
            (&json!(true), &json!("end_turn")),
            "{reply}"
        );
        let said: String = events.iter().filter_map(|event| event["delta"]["text"].as_str()).collect();
        assert_eq!(said, text);
        assert!(events.iter().all(|event| event["content_block"]["type"] != "tool_use"));
        let end = events.iter().find(|event| event["type"] == "message_delta").unwrap();
        assert_eq!((&end["malformed_tool_calls"], &end["delta"]["stop_reason"]), (&json!(true), &json!("end_turn")));
    }
    // Calls are calls, and end the answer, whatever the model goes on to say.
    let good = block(&(invoke("weather", argument) + &invoke("weather", "")));
    let (reply, events) = whole(format!("{good} and then {good}")).await;
    assert!(reply.get("malformed_tool_calls").is_none(), "{reply}");
    assert_eq!(
        (&reply["stop_reason"], &reply["content"][1]["input"]),
        (&json!("tool_use"), &json!({"city": {"a": [1]}}))
    );
    assert_eq!(reply["content"].as_array().unwrap().len(), 3);
    assert_eq!(events.iter().filter(|event| event["content_block"]["type"] == "tool_use").count(), 2);

    let text = block(&invoke("nobody", ""));
    let parrot = Parrot::new(&text);
    let tools = json!([{"type": "function", "function": {"name": "weather"}}]);
    let (_, reply) = post(&parrot, ask(json!({"tools": tools, "n": 2}))).await;
    for choice in reply["choices"].as_array().unwrap() {
        assert_eq!((&choice["malformed_tool_calls"], &choice["message"]["content"]), (&json!(true), &json!(text)));
    }
    let body = ask(json!({"tools": tools, "stream": true})).to_string();
    let (_, sent) = send(parrot.router(), "POST", "/v1/chat/completions", body).await;
    let (data, _) = read_events(&sent);
    assert_eq!(data[data.len() - 2]["choices"][0]["malformed_tool_calls"], true, "{sent}");
    assert!(data[..data.len() - 2].iter().all(|chunk| chunk["choices"][0].get("malformed_tool_calls").is_none()));
    let body = json!({"model": "parrot", "input": "hi", "tools": [{"type": "function", "name": "weather"}]});
    let (_, reply) = send(parrot.router(), "POST", "/v1/responses", body.to_string()).await;
    assert_eq!(serde_json::from_str::<Value>(&reply).unwrap()["malformed_tool_calls"], true, "{reply}");
}
