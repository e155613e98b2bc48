//! A request's bytes to a conversation and a way to sample.

use std::collections::BTreeMap;

use deepseek_recipe::openai::ChatCompletionRequest;
use deepseek_recipe::request::{ConversationRequest, ConversionError, ConversionOptions, ProtocolRequest};
use deepseek_recipe_core::tools::ToolChoice;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::ApiError;
use crate::chat::Dialect;
use fathom_engine::Sampling;

/// What a request may ask of the served model.
#[derive(Debug, Clone)]
pub struct Served {
    /// The name requests call the model by.
    pub model: String,
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

/// A request to `/v1/chat/completions`, understood and checked.
#[derive(Debug)]
pub struct ChatRequest {
    /// The conversation, how to read the answer, and how to send it.
    pub converted: ConversationRequest,
    /// How to choose tokens.
    pub sampling: Sampling,
    /// Whether the reply is to say why no more of the prompt was there already: fathom's own field `explain`.
    pub explain: bool,
}

/// The parameters DeepSeek's conversion does not know, or overrides where the hosted API would.
#[derive(Debug, Deserialize)]
struct Sampled {
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<usize>,
    min_p: Option<f32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    logit_bias: Option<BTreeMap<String, f32>>,
    #[serde(default)]
    explain: bool,
}

/// Reads the body of a request to `/v1/chat/completions`. Fields nobody knows are ignored.
///
/// # Errors
/// 400 for what is not JSON and for values out of range, 404 for another model's name, 422 for wrong types; each names
/// the parameter.
pub fn parse_chat(body: &[u8], served: &Served) -> Result<ChatRequest, ApiError> {
    let mut body: Value = serde_json::from_slice(body).map_err(|error| not_json(body, &error))?;
    let newer = translate(&mut body)?;
    understand(&body, served).map_err(|error| if newer { as_sent(error) } else { error })
}

/// A refusal of `max_completion_tokens`, which conversion knows as `max_tokens`.
fn as_sent(mut error: ApiError) -> ApiError {
    if error.param.as_deref() == Some("max_tokens") {
        error.message = error.message.replace("max_tokens", "max_completion_tokens");
        error.param = Some("max_completion_tokens".to_owned());
    }
    error
}

fn understand(body: &Value, served: &Served) -> Result<ChatRequest, ApiError> {
    let sampled: Sampled = typed(body)?;
    let request: ChatCompletionRequest = typed(body)?;
    only_text(body)?;
    only_free_text(body)?;
    only_tools_that_are(body)?;
    if request.model != served.model {
        return Err(ApiError::no_such_model(&request.model, &served.model));
    }
    let bound = u32::try_from(served.context).unwrap_or(u32::MAX);
    let options = ConversionOptions::new()
        .with_model_versions_by_name([] as [(String, _); 0])
        .with_model_alias(&served.model, served.dialect.model_version())
        .with_default_thinking_mode(served.thinking)
        .with_thinking_max_tokens_upper_bound(bound)
        .with_non_thinking_max_tokens_upper_bound(bound);
    let converted = request.convert(options).map_err(|error| match error {
        ConversionError::BadRequest { detail } => ApiError::bad_as_it_says(detail),
        ConversionError::Internal { detail } => ApiError::internal(detail),
    })?;
    if converted.conversation.tool_choice == ToolChoice::Required && !served.tools {
        let message = "tool_choice cannot force a call: this model's vocabulary has no token for tool calls.";
        return Err(ApiError::bad(Some("tool_choice"), message));
    }
    let sampling = sampling(&sampled, &converted, served)?;
    Ok(ChatRequest { converted, sampling, explain: sampled.explain })
}

/// Puts newer spellings of OpenAI's into the older ones that DeepSeek's conversion reads. Returns whether `max_tokens` was
/// sent as `max_completion_tokens`.
fn translate(body: &mut Value) -> Result<bool, ApiError> {
    let Some(body) = body.as_object_mut() else {
        return Err(ApiError::wrong_type(None, "The body must be a JSON object."));
    };
    let newer = body.remove("max_completion_tokens").filter(|tokens| !tokens.is_null());
    let is_newer = newer.is_some();
    if let Some(tokens) = newer {
        if !tokens.is_u64() {
            let name = "max_completion_tokens";
            let message = format!("Invalid '{name}': {tokens} is not a whole number from 1.");
            return Err(ApiError::wrong_type(Some(name.to_owned()), message));
        }
        body.insert("max_tokens".to_owned(), tokens);
    }
    for message in body.get_mut("messages").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(role) = message.get_mut("role").filter(|role| *role == "developer") {
            *role = "system".into();
        }
    }
    Ok(is_newer)
}

/// Refuses formats of the answer: nothing here holds the model to one.
fn only_free_text(body: &Value) -> Result<(), ApiError> {
    match body["response_format"]["type"].as_str() {
        None | Some("text") => Ok(()),
        Some(kind) => {
            let message = format!(
                "response_format '{kind}' is not supported: this version cannot guarantee the format of an answer. Use \
                 'text', ask for the format in a message, and check what comes."
            );
            Err(ApiError::bad(Some("response_format"), message))
        }
    }
}

/// Refuses to force a call where there is no tool to call.
fn only_tools_that_are(body: &Value) -> Result<(), ApiError> {
    let choice = &body["tool_choice"];
    let forced = choice == "required" || choice.is_object();
    if forced && body["tools"].as_array().is_none_or(Vec::is_empty) {
        let message = "tool_choice asks for a call, but there are no tools; send them as 'tools'.";
        return Err(ApiError::bad(Some("tool_choice"), message));
    }
    Ok(())
}

/// Refuses images and the like, which the conversion would leave out without a word.
fn only_text(body: &Value) -> Result<(), ApiError> {
    for (i, message) in body["messages"].as_array().into_iter().flatten().enumerate() {
        for (j, part) in message["content"].as_array().into_iter().flatten().enumerate() {
            let kind = part["type"].as_str().unwrap_or("text");
            if !matches!(kind, "text" | "refusal") {
                let param = format!("messages[{i}].content[{j}].type");
                let message = format!("'{param}' is '{kind}'; this model reads text only.");
                return Err(ApiError::bad(Some(&param), message));
            }
        }
    }
    Ok(())
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

fn sampling(sampled: &Sampled, converted: &ConversationRequest, served: &Served) -> Result<Sampling, ApiError> {
    let mut logit_bias = Vec::new();
    for (token, &bias) in sampled.logit_bias.iter().flatten() {
        let at_fault = |message: String| ApiError::bad(Some("logit_bias"), message);
        let id: u32 = token.parse().ok().filter(|&id| (id as usize) < served.vocab_size).ok_or_else(|| {
            at_fault(format!("logit_bias: '{token}' is no token id; they are below {}.", served.vocab_size))
        })?;
        logit_bias.push((id, bias));
    }
    let options = &converted.inference_options;
    let default = Sampling::default();
    // The hosted API overrides temperature and top_p while the model thinks; here what is asked for is done.
    let sampling = Sampling {
        temperature: sampled.temperature.unwrap_or(default.temperature),
        top_p: sampled.top_p.unwrap_or(default.top_p),
        top_k: sampled.top_k.unwrap_or(default.top_k),
        min_p: sampled.min_p.unwrap_or(default.min_p),
        seed: options.seed,
        presence_penalty: sampled.presence_penalty.unwrap_or(default.presence_penalty),
        frequency_penalty: sampled.frequency_penalty.unwrap_or(default.frequency_penalty),
        logit_bias,
        logprobs: options.logprobs.then(|| options.top_logprobs.unwrap_or(0).into()),
    };
    sampling.check(served.vocab_size).map_err(|error| ApiError::from_engine(&error))?;
    Ok(sampling)
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
