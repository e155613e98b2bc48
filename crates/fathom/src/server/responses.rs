//! `POST /v1/responses`: OpenAI's newer form of a conversation. Nothing is stored: each request has all of it.

use axum::response::sse::Event as Sent;
use deepseek_recipe::openai::ResponsesRequest;
use deepseek_recipe::openai::responses::response::ResponsesStreamEvent;
use deepseek_recipe::request::ConversationRequest;
use serde_json::{Value, json};

use super::ApiError;
use super::dialect::{Dialect, MALFORMED, Unsupported, never, only_text, refuse};
use super::form::{Asked, Declared, json_format, take_choice};
use super::request::{ChatRequest, Served, json as parsed, understand_with_format};

/// What the Responses API has and we have not.
const UNSUPPORTED: [Unsupported; 6] = [
    Unsupported("previous_response_id", never, STORED),
    Unsupported("conversation", never, STORED),
    Unsupported("background", |value| value == false, "ask with 'stream', or wait for the answer"),
    Unsupported("prompt", never, "there are no stored prompts; send the text as 'instructions'"),
    Unsupported(
        "max_tool_calls",
        never,
        "the number of calls is not counted; send 'parallel_tool_calls' false for one",
    ),
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

    fn understand(mut body: Value, served: &Served) -> Result<ChatRequest, ApiError> {
        refuse(&body, &UNSUPPORTED)?;
        only_text("input", &body["input"])?;
        let choice = body["tool_choice"].clone();
        let asked = asked(&mut body);
        let understood = understand_with_format::<ResponsesRequest>(&mut body, "/text/format", served);
        let mut request = understood.map_err(|error| match error.param.as_deref() {
            // So they are called here.
            Some("messages") => ApiError { param: Some("input".into()), ..error },
            Some("max_tokens") => ApiError { param: Some("max_output_tokens".into()), ..error },
            _ => error,
        })?;
        // A response has what was asked for.
        if let (Some(echo), Ok(choice)) =
            (&mut request.converted.response_options.responses_echo, serde_json::from_value(choice))
        {
            echo.tool_choice = choice;
        }
        request.form = asked.form(&mut request.converted, served)?;
        Ok(request)
    }

    fn new(_: &ConversationRequest, _: usize) -> Responses {
        Responses
    }

    fn shape(&mut self, _: usize, chunk: ResponsesStreamEvent) -> Vec<ResponsesStreamEvent> {
        vec![chunk]
    }

    fn mark(reply: &mut Value, _: &[usize]) {
        let ends = matches!(reply["type"].as_str(), Some("response.completed" | "response.incomplete"));
        let response = if ends { &mut reply["response"] } else { reply };
        if response["object"] == "response" {
            response[MALFORMED] = json!(true);
        }
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

/// What the body asks of the form of the answer.
fn asked(body: &mut Value) -> Asked {
    fn named(choice: &Value) -> Option<&str> {
        choice["name"].as_str().filter(|_| matches!(choice["type"].as_str(), Some("function" | "custom")))
    }
    let mut tools = Vec::new();
    for (i, tool) in body["tools"].as_array().into_iter().flatten().enumerate() {
        let at = format!("tools[{i}]");
        match tool["type"].as_str() {
            Some("function" | "custom") => tools.push(Declared::new(&at, tool, "parameters")),
            Some("namespace") => {
                let inner = tool["tools"].as_array().into_iter().flatten().enumerate();
                tools.extend(inner.map(|(j, tool)| Declared::new(&format!("{at}.tools[{j}]"), tool, "parameters")));
            }
            // Conversion takes no others to the model.
            _ => {}
        }
    }
    Asked {
        many: body["parallel_tool_calls"] != false,
        format: json_format("text.format", &body["text"]["format"], "schema"),
        tools,
        choice: take_choice(body, named, "auto".into()),
    }
}
