//! `GET /v1/status`: what the server is doing now, for the page and for who likes JSON better than Prometheus' text.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use fathom_engine::Sessions;
use serde_json::{Value, json};

use super::{ApiError, Generate, Service};
use crate::ui::{peak_rss, rss};

/// Numbers of the whole server, and the prompts of who asks.
pub(super) async fn status<G: Generate>(
    State(service): State<Arc<Service<G>>>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    let owner = service.keys.owner(&headers)?;
    let (waiting, running) = service.engine.load();
    let (active, limit) = service.places();
    let passed = &service.metrics.passed;
    let memory = service.engine.memory();
    // Weights that are mapped have no limit, and are the system's to drop.
    let shares = memory.iter().filter(|holding| holding.limit < u64::MAX).map(|holding| {
        json!({
            "share": holding.share.to_string(),
            "held": holding.held,
            "peak": holding.peak,
            "limit": holding.limit,
        })
    });
    Ok(Json(json!({
        "object": "status",
        "model": service.served.model,
        "context": service.served.context,
        "thinking": service.served.thinking,
        "efforts": service.served.dialect.efforts(),
        "tools": service.served.tools,
        "seconds": service.since().elapsed().as_secs_f64(),
        "requests": {"running": running, "waiting": waiting, "active": active, "limit": limit},
        "tokens": {
            "read": passed.read.load(Ordering::Relaxed),
            "reused": passed.reused.load(Ordering::Relaxed),
            "generated": passed.generated.load(Ordering::Relaxed),
        },
        "memory": {
            "shares": shares.collect::<Vec<Value>>(),
            "process": {"held": rss(), "peak": peak_rss(), "planned": service.planned},
        },
        "sessions": service.sessions.as_ref().map(|sessions| json!({"stored": Sessions::are_stored(sessions)})),
        "prefills": service.prefills.of(&owner),
    })))
}
