use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::{Parrot, TOKENIZER};
use crate::chat::{Dialect, Prompter};
use crate::server::{Limits, parse_chat, parse_messages, parse_responses};

const FIELDS: [&str; 24] = [
    "model",
    "messages",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "stream",
    "stream_options",
    "tools",
    "tool_choice",
    "response_format",
    "logprobs",
    "top_logprobs",
    "logit_bias",
    "max_tokens",
    "max_completion_tokens",
    "n",
    "thinking",
    "reasoning_effort",
    "presence_penalty",
    "role",
    "content",
];

/// Any JSON, with words of the API in it.
fn any_json() -> impl Strategy<Value = Value> {
    let words = prop_oneof![
        Just("parrot"),
        Just("system"),
        Just("user"),
        Just("assistant"),
        Just("tool"),
        Just("function"),
        Just("object"),
        Just("text"),
        Just("json_object"),
        Just("json_schema"),
        Just("required"),
        Just("auto"),
        Just("enabled"),
        Just("http://x"),
        Just("<｜User｜>"),
        Just("json"),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-3i64..30).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        words.prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        let keys = prop_oneof![
            proptest::sample::select(&FIELDS[..]),
            Just("type"),
            Just("function"),
            Just("name"),
            Just("parameters"),
            Just("tool_calls"),
            Just("tool_call_id"),
            Just("arguments"),
            Just("id"),
            Just("schema"),
            Just("text"),
            Just("properties"),
            Just("$ref"),
            Just("image_url"),
            Just("url"),
            Just("prefix"),
            Just("strict"),
            Just("5"),
        ];
        let object = proptest::collection::vec((keys, inner.clone()), 0..6);
        prop_oneof![
            proptest::collection::vec(inner, 0..4).prop_map(Value::from),
            object.prop_map(|pairs| Value::Object(pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_json_is_understood_or_refused(
        fields in proptest::collection::vec((proptest::sample::select(&FIELDS[2..]), any_json()), 0..4),
        messages in proptest::option::of(any_json()),
    ) {
        let service = Parrot::new("").service(Limits::default());
        let mut body: Map<String, Value> = fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
        body.insert("model".to_owned(), json!("parrot"));
        let said = messages.unwrap_or_else(|| json!([{"role": "user", "content": "json"}]));
        body.insert("messages".to_owned(), said.clone());
        body.insert("input".to_owned(), said);
        for parse in [parse_chat, parse_messages, parse_responses] {
            match parse(Value::Object(body.clone()).to_string().as_bytes(), &service.served) {
                Ok(request) => {
                    let prompter = Prompter::new(TOKENIZER.clone(), Dialect::Current);
                    let prompt = prompter.conversation(&request.converted.conversation).unwrap();
                    prop_assert!(!prompt.is_empty());
                }
                Err(refusal) => {
                    prop_assert!(!refusal.message.is_empty());
                    prop_assert!(!refusal.status.is_server_error(), "{:?}", refusal);
                }
            }
        }
    }

    #[test]
    fn any_bytes_are_understood_or_refused(
        mut bytes in Just(super::ask(json!({"stop": ["x"], "logit_bias": {"5": 1}})).to_string().into_bytes()),
        edits in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 0..6),
    ) {
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let service = Parrot::new("").service(Limits::default());
        for parse in [parse_chat, parse_messages, parse_responses] {
            if let Err(refusal) = parse(&bytes, &service.served) {
                prop_assert!(refusal.status.is_client_error(), "{:?}", refusal);
            }
        }
    }
}
