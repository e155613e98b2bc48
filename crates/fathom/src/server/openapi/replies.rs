//! What comes back, in the parts that clients can rely on. Replies may have more.

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

/// A list of things.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::server) struct List<T> {
    /// Always `list`.
    object: String,
    data: Vec<T>,
}

/// A name that the model is served by.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::server) struct Card {
    id: String,
    /// Always `model`.
    object: String,
    /// Seconds since 1970.
    created: u64,
    owned_by: String,
    /// The most tokens that prompt and answer may have.
    max_model_len: u64,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::server) struct Health {
    /// Always `ok`.
    status: String,
    model: String,
    /// The most tokens that prompt and answer may have.
    context: u64,
    requests: Requests,
}

#[derive(Debug, Serialize, ToSchema)]
struct Requests {
    /// Those that run or wait.
    active: u64,
    limit: u64,
}

/// One of the events of a stream.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::server) struct ServerEvent {
    /// JSON, or `[DONE]`.
    data: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<String>,
}

/// OpenAI's chat completion. As events: chunks of it, then `[DONE]`; comments tell of the prompt's progress.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::server) struct ChatReply {
    id: String,
    object: String,
    created: u64,
    model: String,
    choices: Vec<ChatChoice>,
    usage: ChatUsage,
    /// What was reused of the prompt and why not more, if the request said `explain`.
    #[serde(skip_serializing_if = "Option::is_none")]
    prefix: Option<Prefix>,
}

#[derive(Debug, Serialize, ToSchema)]
struct ChatChoice {
    index: u32,
    /// Has `role`, `content`, and where there are some `reasoning_content` and `tool_calls`.
    message: Value,
    finish_reason: String,
    /// Whether calls were given as text, because they were none that could be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    malformed_tool_calls: Option<bool>,
}

#[derive(Debug, Serialize, ToSchema)]
struct ChatUsage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    prompt_cache_hit_tokens: Option<u64>,
    prompt_cache_miss_tokens: Option<u64>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Prefix {
    reused_tokens: Option<u64>,
    reason: Option<String>,
    message: Option<String>,
}

/// OpenAI's response. As events: those of the Responses API.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::server) struct ResponsesReply {
    id: String,
    object: String,
    status: String,
    model: String,
    output: Vec<Value>,
    usage: Value,
    /// Whether calls were given as text, because they were none that could be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    malformed_tool_calls: Option<bool>,
}

/// Anthropic's message. As events: those of the Messages API.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::server) struct MessagesReply {
    id: String,
    /// Always `message`.
    r#type: String,
    role: String,
    model: String,
    content: Vec<Value>,
    stop_reason: Option<String>,
    usage: Value,
    /// Whether calls were given as text, because they were none that could be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    malformed_tool_calls: Option<bool>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::server) struct CountReply {
    input_tokens: u64,
}

/// OpenAI's text completion. As events: chunks of it, then `[DONE]`.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::server) struct CompletionsReply {
    id: String,
    object: String,
    created: u64,
    model: String,
    choices: Vec<TextChoice>,
    usage: TextUsage,
}

#[derive(Debug, Serialize, ToSchema)]
struct TextChoice {
    index: u32,
    text: String,
    logprobs: Option<Value>,
    finish_reason: Option<String>,
}

#[derive(Debug, Serialize, ToSchema)]
struct TextUsage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::server) struct TokensReply {
    count: u64,
    max_model_len: u64,
    tokens: Vec<u32>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::server) struct TextReply {
    prompt: String,
}

/// A prompt that is being read.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::server) struct PrefillReply {
    id: String,
    object: String,
    /// Seconds since 1970.
    started: u64,
    tokens: u64,
    tokens_done: u64,
    tokens_reused: u64,
    tokens_per_second: Option<f64>,
    eta_seconds: Option<f64>,
    /// Whether its client is there.
    awaited: bool,
}

/// What the server is doing.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::server) struct StatusReply {
    object: String,
    model: String,
    context: u64,
    /// Whether it thinks where a request does not say.
    thinking: bool,
    /// Those that differ.
    efforts: Vec<String>,
    /// Whether it can call tools.
    tools: bool,
    /// Since the start.
    seconds: f64,
    /// `running` and `waiting` in the engine; `active` of at most `limit` taken on.
    requests: Value,
    /// `read`, `reused` and `generated` since the start.
    tokens: Value,
    /// `shares` of the plan, and the `process`.
    memory: Value,
    /// Null where there are none.
    sessions: Option<Value>,
    prefills: Vec<PrefillReply>,
}

/// That something is no more.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::server) struct Gone {
    id: String,
    object: String,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::server) struct SessionReply {
    id: String,
    object: String,
    /// Tokens that it has.
    position: u64,
    /// Seconds since 1970.
    created: u64,
    used: u64,
    parent: Option<Parent>,
    /// Whether a request is at work on it.
    busy: bool,
    /// Positions of its snapshots.
    snapshots: Vec<u64>,
    pinned: bool,
    /// Only if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<Vec<u32>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    /// Only if asked for: each with `role`, `thinking`, `text`, and the positions `start` and `end`.
    #[serde(skip_serializing_if = "Option::is_none")]
    turns: Option<Vec<Value>>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Parent {
    session: String,
    position: u64,
}

/// What a session said. As events: what is said, and this at the end as the event `done`.
#[derive(Debug, Serialize, ToSchema)]
pub(in crate::server) struct SpeechReply {
    session: SessionReply,
    tokens: Vec<u32>,
    thinking: String,
    text: String,
    finish_reason: String,
    usage: SpeechUsage,
    prefix: Option<Prefix>,
}

#[derive(Debug, Serialize, ToSchema)]
struct SpeechUsage {
    prompt_tokens: u64,
    reused_tokens: u64,
    generated_tokens: u64,
    prefill_seconds: f64,
    decode_seconds: f64,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::server) struct RewindReply {
    session: SessionReply,
    /// The position of the state it was made from.
    from: u64,
    /// Tokens that were read again.
    replayed: u64,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::server) struct SavedReply {
    id: String,
    object: String,
    position: u64,
    new_pages: u64,
    bytes_written: u64,
    pinned: bool,
}

#[derive(Debug, Serialize, ToSchema)]
pub(in crate::server) struct SnapshotReply {
    id: String,
    object: String,
    session: Option<String>,
    position: u64,
    bytes: u64,
    pinned: bool,
    created: u64,
    used: u64,
    expires: Option<u64>,
    profile: String,
}
