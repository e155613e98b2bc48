//! `POST /tokenize` and `/detokenize`: text to token ids and back, as the model sees them.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::Request as HttpRequest;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::read_in_time;
use super::chat::Chat;
use super::dialect::Dialect;
use super::reply::render;
use super::request::{json as parsed, typed};
use super::{ApiError, Generate, Service};

/// A text, or a conversation in the form of `/v1/chat/completions`.
#[derive(Debug, Deserialize)]
struct Text {
    prompt: Option<String>,
    /// Whether a text is to begin with the token that begins every sequence.
    add_special_tokens: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Tokens {
    tokens: Vec<u32>,
}

/// The tokens of a text, or of a conversation's prompt.
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
            None if body["messages"].is_array() => {
                if body["model"].is_null() {
                    body["model"] = service.served.model.clone().into();
                }
                render(service, &Chat::understand(body, &service.served)?)?
            }
            None => return Err(ApiError::bad(Some("prompt"), "Send a text as 'prompt', or 'messages'.")),
        };
        Ok(json!({"count": tokens.len(), "max_model_len": service.served.context, "tokens": tokens}))
    })
    .await
}

/// The text of tokens.
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

async fn with_body<G: Generate>(
    service: Arc<Service<G>>,
    request: HttpRequest<Body>,
    answer: impl FnOnce(&Service<G>, Value) -> Result<Value, ApiError> + Send + 'static,
) -> Result<Response, ApiError> {
    let owner = service.keys.owner(request.headers())?;
    let body = read_in_time(request.into_body(), service.limits.body).await?;
    let _slot = service.take_slot(&owner)?;
    let answered = tokio::task::spawn_blocking(move || answer(&service, parsed(&body)?)).await;
    Ok(Json(answered.map_err(|_| ApiError::internal("Reading the request failed."))??).into_response())
}
