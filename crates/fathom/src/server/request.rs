//! A request's bytes to a conversation and a way to sample.

use std::collections::BTreeMap;

use deepseek_recipe::request::{
    ConversationRequest, ConversionError, ConversionOptions, ProtocolRequest, WebSearchBehavior,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use utoipa::ToSchema;

use super::ApiError;
use crate::chat::Dialect;
use crate::chat::constraint::Form;
use fathom_engine::Sampling;

/// What a request may ask of the served model.
#[derive(Debug, Clone)]
pub struct Served {
    /// The name requests call the model by, and replies.
    pub model: String,
    /// Other names requests may call it by.
    pub aliases: Vec<String>,
    /// How its prompts are written.
    pub dialect: Dialect,
    /// Token ids are below this.
    pub vocab_size: usize,
    /// The most tokens a prompt and its answer may have.
    pub context: usize,
    /// Whether requests that do not say are answered with thinking first.
    pub thinking: bool,
    /// Whether the vocabulary has what tool calls are written with.
    pub tools: bool,
}

/// A request for a conversation's next turn, in whatever dialect it came, understood and checked.
#[derive(Debug)]
pub struct ChatRequest {
    /// The conversation, how to read the answer, and how to send it.
    pub converted: ConversationRequest,
    /// How to choose tokens.
    pub sampling: Sampling,
    /// Whether the reply is to say why no more of the prompt was there already: fathom's own field `explain`.
    pub explain: bool,
    /// How many answers there are to be.
    pub choices: usize,
    /// What they must be like.
    pub form: Option<Form>,
}

/// The parameters DeepSeek's conversion does not know, or overrides where the hosted API would.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(super) struct Sampled {
    #[schema(minimum = 0, maximum = 2)]
    temperature: Option<f32>,
    #[schema(exclusive_minimum = 0, maximum = 1)]
    top_p: Option<f32>,
    top_k: Option<usize>,
    #[schema(minimum = 0, maximum = 1)]
    min_p: Option<f32>,
    #[schema(minimum = -2, maximum = 2)]
    presence_penalty: Option<f32>,
    #[schema(minimum = -2, maximum = 2)]
    frequency_penalty: Option<f32>,
    /// By token id, from -100 to 100.
    logit_bias: Option<BTreeMap<String, f32>>,
    /// Whether the reply is to say why no more of the prompt was there already.
    #[serde(default)]
    explain: bool,
}

/// The body as JSON.
///
/// # Errors
/// 400, naming the parameter where the reason is a number JSON does not have.
pub(super) fn json(body: &[u8]) -> Result<Value, ApiError> {
    serde_json::from_slice(body).map_err(|error| not_json(body, &error))
}

/// What all dialects' requests have in common.
pub(super) fn understand<R: ProtocolRequest + DeserializeOwned>(
    body: &Value,
    served: &Served,
) -> Result<ChatRequest, ApiError> {
    if !body.is_object() {
        return Err(ApiError::wrong_type(None, "The body must be a JSON object."));
    }
    let sampled: Sampled = typed(body)?;
    let request: R = typed(body)?;
    let model = body["model"].as_str().unwrap_or_default();
    served.check_name(model)?;
    let bound = u32::try_from(served.context).unwrap_or(u32::MAX);
    let options = ConversionOptions::new()
        .with_model_versions_by_name([] as [(String, _); 0])
        .with_model_alias(model, served.dialect.model_version())
        .with_default_thinking_mode(served.thinking)
        .with_responses_web_search(WebSearchBehavior::Reject)
        .with_thinking_max_tokens_upper_bound(bound)
        .with_non_thinking_max_tokens_upper_bound(bound);
    let converted = request.convert(options).map_err(|error| match error {
        ConversionError::BadRequest { detail } => ApiError::bad_as_it_says(detail),
        ConversionError::Internal { detail } => ApiError::internal(detail),
    })?;
    let options = &converted.inference_options;
    let logprobs = options.logprobs.then(|| options.top_logprobs.unwrap_or(0).into());
    let sampling = sampled.sampling(options.seed, logprobs, served)?;
    Ok(ChatRequest { converted, sampling, explain: sampled.explain, choices: 1, form: None })
}

/// The same where there may be a format of answers, at the path `format`, beside strict tools: conversion takes one of them only,
/// so it is asked for each.
pub(super) fn understand_with_format<R: ProtocolRequest + DeserializeOwned>(
    body: &mut Value,
    format: &str,
    served: &Served,
) -> Result<ChatRequest, ApiError> {
    let strict = stricts(&body["tools"], "/tools");
    if strict.is_empty() || body.pointer(format).is_none_or(Value::is_null) {
        return understand::<R>(body, served);
    }
    let set = |body: &mut Value, to: bool| {
        strict.iter().filter_map(|at| body.pointer_mut(at).map(|strict| *strict = to.into())).for_each(drop);
    };
    set(body, false);
    let ConversationRequest { conversation, parsing_options, response_options, .. } =
        understand::<R>(body, served)?.converted;
    let (response_format, parse_json_output) = (conversation.response_format, parsing_options.parse_json_output);
    let text = response_options.responses_echo.map(|echo| echo.text);
    set(body, true);
    let (above, key) = format.rsplit_once('/').unwrap_or_default();
    body.pointer_mut(above).and_then(Value::as_object_mut).and_then(|above| above.remove(key));
    let mut request = understand::<R>(body, served)?;
    let converted = &mut request.converted;
    converted.conversation.response_format = response_format;
    converted.parsing_options.parse_json_output = parse_json_output;
    if let (Some(echo), Some(text)) = (&mut converted.response_options.responses_echo, text) {
        echo.text = text;
    }
    Ok(request)
}

/// Where among tools, and tools in those, one says that it is strict.
fn stricts(tools: &Value, at: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (i, tool) in tools.as_array().into_iter().flatten().enumerate() {
        for inside in ["", "/function"] {
            if tool.pointer(&format!("{inside}/strict")) == Some(&Value::Bool(true)) {
                found.push(format!("{at}/{i}{inside}/strict"));
            }
        }
        found.extend(stricts(&tool["tools"], &format!("{at}/{i}/tools")));
    }
    found
}

/// A value as a `T`, or the path to what does not fit.
pub(super) fn typed<T: DeserializeOwned>(value: &Value) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let cause = error.into_inner().to_string();
        // At the top, only the cause says which field: "missing field `model`".
        let param = if path == "." { cause.split('`').nth(1).map(str::to_owned) } else { Some(path) };
        let message = match &param {
            Some(param) => format!("Invalid '{param}': {cause}."),
            None => format!("Invalid request: {cause}."),
        };
        ApiError::wrong_type(param, message)
    })
}

impl Sampled {
    /// How to choose tokens. The hosted API overrides temperature and top_p while the model thinks; here what is asked for is
    /// done.
    ///
    /// # Errors
    /// What is out of range.
    pub(super) fn sampling(
        &self,
        seed: Option<u64>,
        logprobs: Option<usize>,
        served: &Served,
    ) -> Result<Sampling, ApiError> {
        let mut logit_bias = Vec::new();
        for (token, &bias) in self.logit_bias.iter().flatten() {
            let at_fault = |message: String| ApiError::bad(Some("logit_bias"), message);
            let id: u32 = token.parse().ok().filter(|&id| (id as usize) < served.vocab_size).ok_or_else(|| {
                at_fault(format!("logit_bias: '{token}' is no token id; they are below {}.", served.vocab_size))
            })?;
            logit_bias.push((id, bias));
        }
        let default = Sampling::default();
        let sampling = Sampling {
            temperature: self.temperature.unwrap_or(default.temperature),
            top_p: self.top_p.unwrap_or(default.top_p),
            top_k: self.top_k.unwrap_or(default.top_k),
            min_p: self.min_p.unwrap_or(default.min_p),
            seed,
            presence_penalty: self.presence_penalty.unwrap_or(default.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(default.frequency_penalty),
            logit_bias,
            logprobs,
        };
        sampling.check(served.vocab_size).map_err(|error| ApiError::from_engine(&error))?;
        Ok(sampling)
    }
}

impl Served {
    /// Checks that a model of that name is served.
    ///
    /// # Errors
    /// 404.
    pub fn check_name(&self, name: &str) -> Result<(), ApiError> {
        match name == self.model || self.aliases.iter().any(|alias| alias == name) {
            true => Ok(()),
            false => Err(ApiError::no_such_model(name, &self.model)),
        }
    }
}

/// 400 for what is not JSON, naming the parameter where the reason is a number JSON does not have.
fn not_json(body: &[u8], error: &serde_json::Error) -> ApiError {
    // Such a number ends where the error is.
    let large = error.to_string().starts_with("number out of range").then(|| {
        let lines = body.split_inclusive(|&byte| byte == b'\n');
        lines.take(error.line().saturating_sub(1)).map(<[u8]>::len).sum::<usize>() + error.column()
    });
    match not_a_number(body, large) {
        Some((key, word)) => ApiError::bad(Some(&key), format!("'{key}' must be a finite number, not {word}.")),
        None => ApiError::bad(None, format!("The body is not valid JSON: {error}.")),
    }
}

/// The body's key before the first `NaN` or `Infinity` outside of strings, as some clients write them, or before the number
/// that ends at byte `large`.
fn not_a_number(body: &[u8], large: Option<usize>) -> Option<(String, &'static str)> {
    let text = std::str::from_utf8(body).ok()?;
    let (mut key, mut depth) = ("", 0i64);
    let mut at = 0;
    while at < text.len() {
        let rest = &text.as_bytes()[at..];
        if rest[0] == b'"' {
            let mut escaped = false;
            let end = rest[1..].iter().position(|&byte| {
                let closes = byte == b'"' && !escaped;
                escaped = byte == b'\\' && !escaped;
                closes
            })?;
            if depth == 1 {
                key = &text[at + 1..at + 1 + end];
            }
            at += end + 2;
            continue;
        }
        for word in ["NaN", "Infinity"] {
            if rest.starts_with(word.as_bytes()) {
                return Some((key.to_owned(), word));
            }
        }
        if large.is_some_and(|end| at + 1 >= end) {
            return Some((key.to_owned(), "one so large"));
        }
        match rest[0] {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        at += 1;
    }
    None
}
