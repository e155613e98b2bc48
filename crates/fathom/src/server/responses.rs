//! `POST /v1/responses`: OpenAI's newer form of a conversation. Nothing is stored: each request has all of it.

use axum::response::sse::Event as Sent;
use deepseek_recipe::openai::ResponsesRequest;
use deepseek_recipe::openai::responses::response::ResponsesStreamEvent;
use deepseek_recipe::request::ConversationRequest;
use serde_json::{Value, json};

use super::ApiError;
use super::dialect::{Dialect, Unsupported, never, only_free_text, only_text, refuse};
use super::request::{ChatRequest, Served, json as parsed, understand};

/// What the Responses API has and we have not.
const UNSUPPORTED: [Unsupported; 7] = [
    Unsupported("previous_response_id", never, STORED),
    Unsupported("conversation", never, STORED),
    Unsupported("background", |value| value == false, "ask with 'stream', or wait for the answer"),
    Unsupported("prompt", never, "there are no stored prompts; send the text as 'instructions'"),
    Unsupported("max_tool_calls", never, "the number of calls is not limited; take the first"),
    Unsupported("parallel_tool_calls", |value| value == true, "the number of calls is not limited; take the first"),
    Unsupported("text.verbosity", |value| value == "medium", "ask for it in 'instructions'"),
];
const STORED: &str = "no responses are stored; send the whole conversation as 'input'";

/// OpenAI's responses, as one is written.
pub(super) struct Responses;

/// Reads the body of a request to `/v1/responses`. Fields nobody knows are ignored.
///
/// # Errors
/// As [`parse_chat`](super::parse_chat).
pub fn parse_responses(body: &[u8], served: &Served) -> Result<ChatRequest, ApiError> {
    Responses::understand(parsed(body)?, served)
}

impl Dialect for Responses {
    type Request = ResponsesRequest;
    const ID: &'static str = "resp_";

    fn understand(body: Value, served: &Served) -> Result<ChatRequest, ApiError> {
        refuse(&body, &UNSUPPORTED)?;
        only_free_text("text.format", &body["text"]["format"])?;
        only_text("input", &body["input"])?;
        understand::<ResponsesRequest>(&body, served).map_err(|error| match error.param.as_deref() {
            // So they are called here.
            Some("messages") => ApiError { param: Some("input".into()), ..error },
            Some("max_tokens") => ApiError { param: Some("max_output_tokens".into()), ..error },
            _ => error,
        })
    }

    fn new(_: &ConversationRequest, _: usize) -> Responses {
        Responses
    }

    fn shape(&mut self, _: usize, chunk: ResponsesStreamEvent) -> Vec<ResponsesStreamEvent> {
        vec![chunk]
    }

    fn failure(error: &ApiError) -> Sent {
        let body = json!({
            "type": "error",
            "code": error.code,
            "message": error.message,
            "param": error.param,
            // After all others: a stream has far fewer events.
            "sequence_number": u32::MAX,
        });
        Sent::default().event("error").data(body.to_string())
    }
}
