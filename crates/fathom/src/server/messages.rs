//! `POST /v1/messages` and `/v1/messages/count_tokens`: Anthropic's form of a conversation.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{Request as HttpRequest, StatusCode};
use axum::response::sse::Event as Sent;
use axum::response::{IntoResponse, Response};
use deepseek_recipe::anthropic::MessagesRequest;
use deepseek_recipe::anthropic::messages::response::MessagesStreamEvent;
use deepseek_recipe::request::ConversationRequest;
use deepseek_recipe_core::conversation::ResponseFormat;
use serde_json::{Value, json};

use super::dialect::{Dialect, MALFORMED, Unsupported, empty, never, only_text, refuse};
use super::form::{Asked, Declared, json_format, one, take_choice};
use super::openapi::{CountBody, CountReply, Foreign, MessagesRefused};
use super::reply::render;
use super::request::{ChatRequest, Served, json as parsed, understand};
use super::{ApiError, Generate, Service};
use crate::chat::constraint::Format;

/// What the Messages API has and we have not.
const UNSUPPORTED: [Unsupported; 4] = [
    Unsupported("mcp_servers", empty, "no servers of tools are called; send their tools as 'tools'"),
    Unsupported("container", never, "no code is run here"),
    Unsupported("output_format", is_schema, FORMAT),
    Unsupported("output_config.format", is_schema, FORMAT),
];
const FORMAT: &str = "a format has the type 'json_schema', and a 'schema'";

fn is_schema(format: &Value) -> bool {
    format["type"] == "json_schema" && format.get("schema").is_some()
}

/// Anthropic's messages, as one is written.
pub(super) struct Messages;

/// Reads the body of a request to `/v1/messages`. Fields nobody knows are ignored.
///
/// # Errors
/// As [`parse_chat`](super::parse_chat).
pub fn parse_messages(body: &[u8], served: &Served) -> Result<ChatRequest, ApiError> {
    Messages::understand(parsed(body)?, served)
}

impl Dialect for Messages {
    type Request = MessagesRequest;
    const ID: &'static str = "msg_";

    fn understand(mut body: Value, served: &Served) -> Result<ChatRequest, ApiError> {
        refuse(&body, &UNSUPPORTED)?;
        only_text("messages", &body["messages"])?;
        let asked = asked(&mut body)?;
        let mut request = understand::<MessagesRequest>(&body, served)?;
        if let Some((_, Format::Schema(schema))) = &asked.format {
            // The prompt tells it, as for the other dialects.
            request.converted.conversation.response_format = ResponseFormat::JsonSchema(schema.clone());
        }
        request.form = asked.form(&mut request.converted, served)?;
        Ok(request)
    }

    fn new(_: &ConversationRequest, _: usize) -> Messages {
        Messages
    }

    fn shape(&mut self, _: usize, chunk: MessagesStreamEvent) -> Vec<MessagesStreamEvent> {
        vec![chunk]
    }

    fn mark(reply: &mut Value, _: &[usize]) {
        if matches!(reply["type"].as_str(), Some("message" | "message_delta")) {
            reply[MALFORMED] = json!(true);
        }
    }

    fn refusal(error: ApiError) -> Response {
        let body = Json(body(&error));
        // Anthropic has no status of its own for wrong types.
        let status = match error.status {
            StatusCode::UNPROCESSABLE_ENTITY => StatusCode::BAD_REQUEST,
            status => status,
        };
        let mut response = error.into_response();
        let headers = std::mem::take(response.headers_mut());
        response = (status, body).into_response();
        headers.get("retry-after").cloned().map(|after| response.headers_mut().insert("retry-after", after));
        response
    }

    fn failure(error: &ApiError) -> Sent {
        Sent::default().event("error").data(body(error).to_string())
    }
}

/// What the body asks of the form of the answer.
fn asked(body: &mut Value) -> Result<Asked, ApiError> {
    fn named(choice: &Value) -> Option<&str> {
        choice["name"].as_str().filter(|_| choice["type"] == "tool")
    }
    let tools = body["tools"].as_array().into_iter().flatten().enumerate();
    let tools = tools.map(|(i, tool)| Declared::new(&format!("tools[{i}]"), tool, "input_schema"));
    let format = |at: &str, format: &Value| json_format(at, format, "schema");
    Ok(Asked {
        many: body["tool_choice"]["disable_parallel_tool_use"] != true,
        format: one(
            format("output_config.format", &body["output_config"]["format"]),
            format("output_format", &body["output_format"]),
        )?,
        tools: tools.collect(),
        choice: take_choice(body, named, json!({"type": "auto"})),
    })
}

/// An error in Anthropic's form.
fn body(error: &ApiError) -> Value {
    let kind = match error.status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
        status if status.is_server_error() => "api_error",
        _ => "invalid_request_error",
    };
    json!({"type": "error", "error": {"type": kind, "message": error.message}})
}

/// How many tokens a conversation's prompt has.
#[utoipa::path(post, path = "/v1/messages/count_tokens", request_body = CountBody,
    responses((status = 200, body = CountReply), Foreign, MessagesRefused))]
pub(super) async fn count_tokens<G: Generate>(
    State(service): State<Arc<Service<G>>>,
    request: HttpRequest<Body>,
) -> Response {
    count(service, request).await.unwrap_or_else(Messages::refusal)
}

async fn count<G: Generate>(service: Arc<Service<G>>, request: HttpRequest<Body>) -> Result<Response, ApiError> {
    let owner = service.keys.owner(request.headers())?;
    let body = service.desk.receive(request.into_body()).await?;
    let _slot = service.take_slot(&owner)?;
    let counted = tokio::task::spawn_blocking(move || {
        let request = parse_messages(&body.bytes, &service.served)?;
        Ok(render(&service, &request)?.len())
    });
    let tokens: Result<usize, ApiError> =
        counted.await.map_err(|_| ApiError::internal("Reading the request failed."))?;
    Ok(Json(json!({"input_tokens": tokens?})).into_response())
}
