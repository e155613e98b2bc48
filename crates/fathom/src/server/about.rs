//! What is served, and whether it is well.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::extract::{Caller, Named};
use super::openapi::{Card, ErrorBody, Health, List, Named404, Refused};
use super::{ApiError, Generate, Service};

impl<G: Generate> Service<G> {
    fn card(&self, id: &str) -> Value {
        let context = self.served.context;
        json!({"id": id, "object": "model", "created": self.started, "owned_by": "deepseek-ai", "max_model_len": context})
    }
}

/// The names of the model.
#[utoipa::path(get, path = "/v1/models", responses((status = 200, body = List<Card>), Refused))]
pub(super) async fn models<G: Generate>(Caller { service, .. }: Caller<G>) -> Json<Value> {
    let names = std::iter::once(&service.served.model).chain(&service.served.aliases);
    let data: Vec<Value> = names.map(|name| service.card(name)).collect();
    Json(json!({"object": "list", "data": data}))
}

/// The model, by one of its names.
#[utoipa::path(get, path = "/v1/models/{model}", params(("model" = String, Path,)),
    responses((status = 200, body = Card), Refused, Named404))]
pub(super) async fn model<G: Generate>(
    Caller { service, .. }: Caller<G>,
    Named(model): Named,
) -> Result<Json<Value>, ApiError> {
    service.served.check_name(&model)?;
    Ok(Json(service.card(&model)))
}

/// Whether the server is there and takes requests; asks for no key.
#[utoipa::path(get, path = "/health", security(()), responses((status = 200, body = Health), (status = 403, body = ErrorBody),
    (status = 503, body = ErrorBody)))]
pub(super) async fn health<G: Generate>(State(service): State<Arc<Service<G>>>) -> Result<Json<Value>, ApiError> {
    if !service.engine.is_open() {
        let message = "The engine has stopped; the log says why.";
        return Err(ApiError::other(StatusCode::SERVICE_UNAVAILABLE, "stopped", message));
    }
    let (active, limit) = service.places();
    let requests = json!({"active": active, "limit": limit});
    Ok(Json(json!({
        "status": "ok",
        "model": service.served.model,
        "context": service.served.context,
        "requests": requests,
    })))
}

/// The API's description, this document.
#[utoipa::path(get, path = "/openapi.json", security(()), responses((status = 200, body = serde_json::Value),
    (status = 403, body = ErrorBody)))]
pub(super) async fn openapi<G: Generate>(State(service): State<Arc<Service<G>>>) -> Json<Value> {
    let names = std::iter::once(&service.served.model).chain(&service.served.aliases);
    Json(super::openapi::document(&names.cloned().collect::<Vec<_>>()))
}
