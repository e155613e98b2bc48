//! `POST /tokenize` and `/detokenize`: text to token ids and back, as the model sees them.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::Request as HttpRequest;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::chat::Chat;
use super::dialect::Dialect;
use super::openapi::{Named404, Refused, TextReply, TokensReply, WithBody};
use super::reply::render;
use super::request::{json as parsed, typed};
use super::{ApiError, Generate, Service};

/// A text, or a conversation in the form of `/v1/chat/completions`.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = TokenizeBody)]
pub(super) struct Text {
    prompt: Option<String>,
    /// Whether a text is to begin with the token that begins every sequence.
    add_special_tokens: Option<bool>,
    /// A conversation, if there is no text.
    #[serde(default)]
    messages: Value,
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = DetokenizeBody)]
pub(super) struct Tokens {
    tokens: Vec<u32>,
}

/// The tokens of a text, or of a conversation's prompt.
#[utoipa::path(post, path = "/tokenize", request_body = Text,
    responses((status = 200, body = TokensReply), Refused, WithBody, Named404))]
pub(super) async fn tokenize<G: Generate>(
    State(service): State<Arc<Service<G>>>,
    request: HttpRequest<Body>,
) -> Result<Response, ApiError> {
    with_body(service, request, |service, mut body| {
        let text: Text = typed(&body)?;
        let encoded = |e: crate::Error| ApiError::bad(Some("prompt"), e.to_string());
        let tokens = match text.prompt {
            Some(prompt) if text.add_special_tokens == Some(false) => {
                service.prompter.tokenizer().encode(&prompt).map_err(encoded)?
            }
            Some(prompt) => service.prompter.raw(&prompt).map_err(encoded)?,
            None if text.messages.is_array() => {
                if body["model"].is_null() {
                    body["model"] = service.served.model.clone().into();
                }
                render(service, &Chat::understand(body, &service.served)?)?
            }
            None => return Err(ApiError::bad(Some("prompt"), "Send a text as 'prompt', or 'messages'.")),
        };
        Ok(Cut { count: tokens.len(), max_model_len: service.served.context, tokens })
    })
    .await
}

/// The text of tokens.
#[utoipa::path(post, path = "/detokenize", request_body = Tokens,
    responses((status = 200, body = TextReply), Refused, WithBody))]
pub(super) async fn detokenize<G: Generate>(
    State(service): State<Arc<Service<G>>>,
    request: HttpRequest<Body>,
) -> Result<Response, ApiError> {
    with_body(service, request, |service, body| {
        let Tokens { tokens } = typed(&body)?;
        Ok(json!({"prompt": service.prompter.tokenizer().decode(&tokens)}))
    })
    .await
}

/// A reply that may have millions of tokens: numbers, not values.
#[derive(Serialize)]
struct Cut {
    count: usize,
    max_model_len: usize,
    tokens: Vec<u32>,
}

async fn with_body<G: Generate, T: Serialize + Send + 'static>(
    service: Arc<Service<G>>,
    request: HttpRequest<Body>,
    answer: impl FnOnce(&Service<G>, Value) -> Result<T, ApiError> + Send + 'static,
) -> Result<Response, ApiError> {
    let owner = service.keys.owner(request.headers())?;
    let body = service.desk.receive(request.into_body()).await?;
    let _slot = service.take_slot(&owner)?;
    let answered = tokio::task::spawn_blocking(move || answer(&service, parsed(&body.bytes)?)).await;
    Ok(Json(answered.map_err(|_| ApiError::internal("Reading the request failed."))??).into_response())
}
