//! What requests of the dialects have, as far as it does something here. Fields beside these are ignored, unless they would change
//! the answer: those are refused by name.

#![expect(dead_code, reason = "the conversions of the dialects have types of their own; these describe them")]

use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::server::completions::{StreamOptions, Strings};
use crate::server::request::Sampled;

#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::server) struct ChatBody {
    #[schema(schema_with = super::model)]
    model: String,
    #[schema(min_items = 1)]
    messages: Vec<ChatMessage>,
    #[schema(minimum = 1)]
    max_tokens: Option<u32>,
    /// A newer name for `max_tokens`.
    #[schema(minimum = 1)]
    max_completion_tokens: Option<u32>,
    #[schema(minimum = 1, maximum = 16)]
    n: Option<u32>,
    /// Below 2^63.
    seed: Option<i64>,
    stop: Option<Strings>,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    logprobs: Option<bool>,
    #[schema(maximum = 20)]
    top_logprobs: Option<u32>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    /// Of the type `text`, `json_object`, `json_schema` or `regex`.
    response_format: Option<Value>,
    /// One of `json`, `json_object`, `regex`, `choice` and `grammar`.
    structured_outputs: Option<Value>,
    thinking: Option<Thinking>,
    reasoning_effort: Option<String>,
    #[serde(flatten)]
    sampling: Sampled,
}

#[derive(Debug, Deserialize, ToSchema)]
struct ChatMessage {
    role: Role,
    /// A text, or parts of it.
    content: Option<Value>,
    reasoning_content: Option<String>,
    tool_calls: Option<Vec<Value>>,
    tool_call_id: Option<String>,
    name: Option<String>,
    /// Whether the answer goes on from this last message of the assistant.
    prefix: Option<bool>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Role {
    System,
    Developer,
    User,
    Assistant,
    Tool,
}

#[derive(Debug, Deserialize, ToSchema)]
struct Thinking {
    /// `enabled` or `disabled`, in Anthropic's form also with `budget_tokens`.
    r#type: String,
}

#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::server) struct ResponsesBody {
    #[schema(schema_with = super::model)]
    model: String,
    /// A text, or the conversation's items.
    input: Value,
    instructions: Option<String>,
    #[schema(minimum = 1)]
    max_output_tokens: Option<u32>,
    stream: Option<bool>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    reasoning: Option<Value>,
    /// Has the answer's `format`.
    text: Option<Value>,
    #[serde(flatten)]
    sampling: Sampled,
}

#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::server) struct MessagesBody {
    #[schema(schema_with = super::model)]
    model: String,
    #[schema(min_items = 1)]
    messages: Vec<AnthropicMessage>,
    /// A text, or blocks of it.
    system: Option<Value>,
    #[schema(minimum = 1)]
    max_tokens: u32,
    stop_sequences: Option<Vec<String>>,
    stream: Option<bool>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    thinking: Option<Thinking>,
    /// Has the answer's `format`.
    output_config: Option<Value>,
    /// The same, by an older name.
    output_format: Option<Value>,
    #[serde(flatten)]
    sampling: Sampled,
}

/// The same without what is for the answer.
#[derive(Debug, Deserialize, ToSchema)]
pub(in crate::server) struct CountBody {
    #[schema(schema_with = super::model)]
    model: String,
    #[schema(min_items = 1)]
    messages: Vec<AnthropicMessage>,
    system: Option<Value>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    thinking: Option<Thinking>,
}

#[derive(Debug, Deserialize, ToSchema)]
struct AnthropicMessage {
    role: Turn,
    /// A text, or blocks.
    content: Value,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Turn {
    User,
    Assistant,
}
