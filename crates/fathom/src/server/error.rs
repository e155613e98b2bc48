//! Refusals and failures, in the shape OpenAI's clients read.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::ui::say;
use fathom_engine::Error as EngineError;

/// An error as a response: a status, and `{"error": {"message", "type", "param", "code"}}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// The HTTP status.
    pub status: StatusCode,
    /// What happened, and what to do about it.
    pub message: String,
    /// The parameter at fault.
    pub param: Option<String>,
    /// A word for programs.
    pub code: &'static str,
    /// After how many seconds to try again, where that is known.
    pub retry_after: Option<u64>,
}

/// The parameters that messages of other crates may name; the first one a message has is at fault.
const PARAMS: [&str; 24] = [
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "top_logprobs",
    "logprobs",
    "max_tokens",
    "max_output_tokens",
    "stop_sequences",
    "stop",
    "stream_options",
    "response_format",
    "tool_choice",
    "tools",
    "tool_calls",
    "reasoning_effort",
    "prefix",
    "messages",
    "thinking",
    "n",
];

/// Words by which such messages mean a parameter.
const MEANT: [(&str, &str); 5] =
    [("message", "messages"), ("Stop", "stop"), ("Tool", "tools"), ("schema", "tools"), ("tool_call", "tool_choice")];

impl ApiError {
    /// 400: a request that is well-formed but cannot be met as it stands; `param` where one is at fault.
    pub fn bad(param: Option<&str>, message: impl Into<String>) -> ApiError {
        let param = param.map(str::to_owned);
        ApiError {
            status: StatusCode::BAD_REQUEST,
            message: message.into(),
            param,
            code: "invalid_request_error",
            retry_after: None,
        }
    }

    /// 400, with the parameter that `message` itself names.
    pub fn bad_as_it_says(message: impl Into<String>) -> ApiError {
        let message = message.into();
        let mut words = message.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let named = PARAMS.into_iter().map(|param| (param, param)).chain(MEANT);
        let param = words.find_map(|word| named.clone().find(|&(known, _)| known == word));
        ApiError::bad(param.map(|(_, param)| param), message)
    }

    /// 400: more tokens than the model's context holds.
    pub fn too_long(message: impl Into<String>) -> ApiError {
        ApiError { code: "context_length_exceeded", ..ApiError::bad(Some("messages"), message) }
    }

    /// 422: JSON, but of the wrong types.
    pub fn wrong_type(param: Option<String>, message: impl Into<String>) -> ApiError {
        ApiError { status: StatusCode::UNPROCESSABLE_ENTITY, param, ..ApiError::bad(None, message) }
    }

    /// 404: a model that is not served here.
    pub fn no_such_model(asked: &str, served: &str) -> ApiError {
        let message = format!("The model '{asked}' is not served here; the one that is: '{served}'.");
        let status = StatusCode::NOT_FOUND;
        ApiError { status, code: "model_not_found", ..ApiError::bad(Some("model"), message) }
    }

    /// 429: too many requests wait already.
    pub fn busy(waiting: usize) -> ApiError {
        let message = format!("The queue is full: {waiting} requests run or wait already. Try again later.");
        ApiError::slow_down("queue_full", message, 5)
    }

    /// 429, with the seconds after which to try again.
    pub fn slow_down(code: &'static str, message: impl Into<String>, seconds: u64) -> ApiError {
        ApiError { retry_after: Some(seconds), ..ApiError::other(StatusCode::TOO_MANY_REQUESTS, code, message) }
    }

    /// 500: a failure that is not the client's.
    pub fn internal(message: impl Into<String>) -> ApiError {
        let message = message.into();
        ApiError {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            message,
            param: None,
            code: "internal_error",
            retry_after: None,
        }
    }

    /// Another status, with a word for programs.
    pub fn other(status: StatusCode, code: &'static str, message: impl Into<String>) -> ApiError {
        ApiError { status, message: message.into(), param: None, code, retry_after: None }
    }

    /// What the engine would not do, or failed to.
    pub fn from_engine(error: &EngineError) -> ApiError {
        let message = error.to_string();
        let unavailable = |code| ApiError::other(StatusCode::SERVICE_UNAVAILABLE, code, &message);
        match error {
            EngineError::Sampling { parameter, .. } => ApiError::bad(Some(parameter), message),
            EngineError::EmptyPrompt | EngineError::Token { .. } => ApiError::bad(Some("messages"), message),
            EngineError::PromptTooLong { .. } => ApiError::too_long(message),
            EngineError::QueueFull { .. } => ApiError::other(StatusCode::TOO_MANY_REQUESTS, "queue_full", message),
            EngineError::ShuttingDown => unavailable("shutting_down"),
            EngineError::Constraint { .. } => ApiError::bad(None, message),
            EngineError::Memory { .. } => ApiError::bad(Some("max_tokens"), message),
            EngineError::NoSession { .. } => ApiError::other(StatusCode::NOT_FOUND, "no_such_session", message),
            EngineError::SessionExists { .. } => ApiError::other(StatusCode::CONFLICT, "session_exists", message),
            EngineError::SessionBusy { .. } => ApiError::other(StatusCode::CONFLICT, "session_busy", message),
            EngineError::SnapshotInUse { .. } => ApiError::other(StatusCode::CONFLICT, "snapshot_in_use", message),
            EngineError::Import { .. } => ApiError::bad(None, message),
            EngineError::EmptySession { .. } => ApiError::other(StatusCode::CONFLICT, "session_empty", message),
            EngineError::NotStored { .. } => ApiError::other(StatusCode::CONFLICT, "session_not_stored", message),
            EngineError::TooManySessions => {
                ApiError::other(StatusCode::INSUFFICIENT_STORAGE, "too_many_sessions", message)
            }
            EngineError::SessionName { .. } => ApiError::bad(Some("name"), message),
            EngineError::Position { .. } => ApiError::bad(Some("position"), message),
            EngineError::NoStore => ApiError::other(StatusCode::CONFLICT, "no_store", message),
            EngineError::NoSnapshot { .. } => ApiError::other(StatusCode::NOT_FOUND, "no_such_snapshot", message),
            EngineError::Store(_) => {
                // With the names of files, which are the operator's.
                say!("the store: {message}");
                let message = "The store could not do this; the server's log says why.";
                ApiError::other(StatusCode::INSUFFICIENT_STORAGE, "store_failed", message)
            }
            EngineError::Model(_) => ApiError::internal(message),
        }
    }

    /// The body.
    pub fn body(&self) -> Value {
        let kind = match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})
    }
}

impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> ApiError {
        ApiError::from_engine(&error)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.body())).into_response();
        if matches!(self.status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(self.retry_after.unwrap_or(5)));
        }
        response
    }
}
