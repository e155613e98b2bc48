//! `POST /v1/chat/completions`: OpenAI's chat.

use axum::response::sse::Event as Sent;
use deepseek_recipe::openai::ChatCompletionRequest;
use deepseek_recipe::openai::chat_completion::response::{ChatCompletionChunk, ChatCompletionUsage};
use deepseek_recipe::request::ConversationRequest;
use serde_json::Value;

use super::ApiError;
use super::dialect::{Dialect, Unsupported, empty, never, only_free_text, only_text, refuse};
use super::request::{ChatRequest, Served, json, understand};

/// The most choices of one request.
const CHOICES: u64 = 16;

/// What OpenAI's chat has and we have not.
const UNSUPPORTED: [Unsupported; 8] = [
    Unsupported("functions", empty, "send them as 'tools'"),
    Unsupported("function_call", |value| value == "none" || value == "auto", "use 'tool_choice'"),
    Unsupported("parallel_tool_calls", |value| value == true, "the number of calls is not limited; take the first"),
    Unsupported("modalities", |value| value.as_array().is_some_and(|all| all.iter().all(|one| one == "text")), TEXT),
    Unsupported("audio", never, TEXT),
    Unsupported("web_search_options", never, "nothing is looked up; send a tool that searches"),
    Unsupported("verbosity", |value| value == "medium", "ask for it in a message"),
    Unsupported("moderation", never, "nothing is moderated"),
];
const TEXT: &str = "this model reads and writes text only";

/// OpenAI's chat, as one reply is written in it.
pub(super) struct Chat {
    stream: bool,
    include_usage: bool,
    /// Choices that have not ended.
    open: usize,
    /// What those that have ended took.
    usage: Option<ChatCompletionUsage>,
}

/// Reads the body of a request to `/v1/chat/completions`. Fields nobody knows are ignored.
///
/// # Errors
/// 400 for what is not JSON, for values out of range and for what is not supported, 404 for another model's name, 422 for wrong
/// types; each names the parameter.
pub fn parse_chat(body: &[u8], served: &Served) -> Result<ChatRequest, ApiError> {
    Chat::understand(json(body)?, served)
}

impl Dialect for Chat {
    type Request = ChatCompletionRequest;
    const ID: &'static str = "chatcmpl-";

    fn understand(mut body: Value, served: &Served) -> Result<ChatRequest, ApiError> {
        let (newer, choices) = translate(&mut body)?;
        let checked = refuse(&body, &UNSUPPORTED)
            .and_then(|()| only_free_text("response_format", &body["response_format"]))
            .and_then(|()| only_text("messages", &body["messages"]))
            .and_then(|()| only_tools_that_are(&body))
            .and_then(|()| understand::<ChatCompletionRequest>(&body, served));
        let request = checked.map_err(|error| if newer { as_sent(error) } else { error })?;
        Ok(ChatRequest { choices, ..request })
    }

    fn new(request: &ConversationRequest, choices: usize) -> Chat {
        let include_usage = request.response_options.include_usage;
        Chat { stream: request.stream, include_usage, open: choices, usage: None }
    }

    /// The usage of all choices comes with the last. OpenAI streams it in a chunk of its own, without choices, and only if asked.
    fn shape(&mut self, choice: usize, mut chunk: ChatCompletionChunk) -> Vec<ChatCompletionChunk> {
        chunk.choices.iter_mut().for_each(|one| one.index = choice as u32);
        if let Some(Some(usage)) = chunk.usage.take() {
            self.open -= 1;
            self.usage = Some(match self.usage.take() {
                Some(before) => sum(before, usage),
                None => usage,
            });
        }
        let total = if self.open == 0 { self.usage.take() } else { None };
        if !self.stream {
            chunk.usage = total.map(Some);
            return vec![chunk];
        }
        if !self.include_usage {
            return vec![chunk];
        }
        chunk.usage = Some(None);
        let last = total.map(|usage| ChatCompletionChunk {
            id: chunk.id.clone(),
            object: chunk.object,
            created: chunk.created,
            model: chunk.model.clone(),
            system_fingerprint: chunk.system_fingerprint.clone(),
            choices: Vec::new(),
            usage: Some(Some(usage)),
        });
        [Some(chunk), last].into_iter().flatten().collect()
    }

    /// Clients look for an error in the data.
    fn failure(error: &ApiError) -> Sent {
        Sent::default().data(error.body().to_string())
    }
}

/// What two choices of one prompt took.
fn sum(mut a: ChatCompletionUsage, b: ChatCompletionUsage) -> ChatCompletionUsage {
    a.completion_tokens += b.completion_tokens;
    a.total_tokens += b.completion_tokens;
    if let (Some(a), Some(b)) = (&mut a.completion_tokens_details, b.completion_tokens_details) {
        a.reasoning_tokens += b.reasoning_tokens;
    }
    a
}

/// A refusal of `max_completion_tokens`, which conversion knows as `max_tokens`.
fn as_sent(mut error: ApiError) -> ApiError {
    if error.param.as_deref() == Some("max_tokens") {
        error.message = error.message.replace("max_tokens", "max_completion_tokens");
        error.param = Some("max_completion_tokens".to_owned());
    }
    error
}

/// Puts newer spellings of OpenAI's into the older ones that DeepSeek's conversion reads. Returns whether `max_tokens` was
/// sent as `max_completion_tokens`, and how many choices there are to be, which it does not know.
fn translate(body: &mut Value) -> Result<(bool, usize), ApiError> {
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
    let choices = match body.remove("n").filter(|n| !n.is_null()) {
        None => 1,
        Some(n) => match n.as_u64() {
            Some(n @ 1..=CHOICES) => n as usize,
            Some(n) => return Err(ApiError::bad(Some("n"), format!("n is {n}; it must be from 1 to {CHOICES}."))),
            None => {
                return Err(ApiError::wrong_type(Some("n".into()), format!("Invalid 'n': {n} is no whole number.")));
            }
        },
    };
    Ok((is_newer, choices))
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
