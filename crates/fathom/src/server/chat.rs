//! `POST /v1/chat/completions`: OpenAI's chat.

use axum::response::sse::Event as Sent;
use deepseek_recipe::openai::ChatCompletionRequest;
use deepseek_recipe::openai::chat_completion::response::{ChatCompletionChunk, ChatCompletionUsage};
use deepseek_recipe::request::ConversationRequest;
use serde_json::{Value, json};

use super::ApiError;
use super::dialect::{Dialect, MALFORMED, Unsupported, empty, never, only_text, refuse};
use super::form::{Asked, Declared, json_format, one, structured, take_choice};
use super::request::{ChatRequest, Served, json, understand_with_format};

/// The most choices of one request.
const CHOICES: u64 = 16;

/// What OpenAI's chat has and we have not.
const UNSUPPORTED: [Unsupported; 11] = [
    Unsupported("functions", empty, "send them as 'tools'"),
    Unsupported("function_call", |value| value == "none" || value == "auto", "use 'tool_choice'"),
    Unsupported("guided_json", never, GUIDED),
    Unsupported("guided_regex", never, GUIDED),
    Unsupported("guided_choice", never, GUIDED),
    Unsupported("guided_grammar", never, GUIDED),
    Unsupported("modalities", |value| value.as_array().is_some_and(|all| all.iter().all(|one| one == "text")), TEXT),
    Unsupported("audio", never, TEXT),
    Unsupported("web_search_options", never, "nothing is looked up; send a tool that searches"),
    Unsupported("verbosity", |value| value == "medium", "ask for it in a message"),
    Unsupported("moderation", never, "nothing is moderated"),
];
pub(super) const GUIDED: &str = "use 'structured_outputs'";
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
            .and_then(|()| only_text("messages", &body["messages"]))
            .and_then(|()| asked(&mut body))
            .and_then(|asked| {
                Ok((asked, understand_with_format::<ChatCompletionRequest>(&mut body, "/response_format", served)?))
            });
        let (asked, mut request) = checked.map_err(|error| if newer { as_sent(error) } else { error })?;
        let form = asked.form(&mut request.converted, served)?;
        Ok(ChatRequest { choices, form, ..request })
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

    fn mark(reply: &mut Value, choices: &[usize]) {
        for choice in reply["choices"].as_array_mut().into_iter().flatten() {
            let is_marked = choice["index"].as_u64().is_some_and(|index| choices.contains(&(index as usize)));
            if is_marked && !choice["finish_reason"].is_null() {
                choice[MALFORMED] = json!(true);
            }
        }
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

/// What the body asks of the form of the answer.
fn asked(body: &mut Value) -> Result<Asked, ApiError> {
    fn named(choice: &Value) -> Option<&str> {
        choice["function"]["name"].as_str().filter(|_| choice["type"] == "function")
    }
    let tools = body["tools"].as_array().into_iter().flatten().enumerate();
    let tools = tools.map(|(i, tool)| Declared::new(&format!("tools[{i}].function"), &tool["function"], "parameters"));
    Ok(Asked {
        many: body["parallel_tool_calls"] != false,
        format: one(json_format("response_format", &body["response_format"], "json_schema.schema"), structured(body)?)?,
        tools: tools.collect(),
        choice: take_choice(body, named, "auto".into()),
    })
}
