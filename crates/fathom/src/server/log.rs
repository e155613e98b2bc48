//! A line for each reply, and the id by which client and operator speak of it.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::extract::{MatchedPath, State};
use axum::http::{HeaderValue, Request as HttpRequest};
use axum::middleware::Next;
use axum::response::Response;
use serde_json::json;

use super::reply::reply_id;
use super::{Generate, Service};
use crate::ui::say;

/// How replies are logged, on standard error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Log {
    /// Not at all.
    #[default]
    None,
    /// A line for people.
    Text,
    /// A line of JSON.
    Json,
}

impl Log {
    /// Says something that happened to the server, in the form of the other lines.
    pub(super) fn note(self, message: &str) {
        match self {
            Log::None | Log::Text => say!("{message}"),
            Log::Json => {
                let line = json!({"time": seconds_now(), "level": "info", "event": "note", "message": message});
                say!("{line}");
            }
        }
    }
}

fn seconds_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// The longest id that is taken from a client.
const LONGEST: usize = 128;

/// Gives each request an id, or takes its client's, counts its reply, and logs it. Nothing of what was said is logged.
pub(super) async fn log<G: Generate>(
    State(service): State<Arc<Service<G>>>,
    request: HttpRequest<Body>,
    next: Next,
) -> Response {
    let start = Instant::now();
    let plain = |id: &&str| {
        (1..=LONGEST).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:".contains(&b))
    };
    let given = request.headers().get("x-request-id").and_then(|id| id.to_str().ok()).filter(plain);
    let id = given.map_or_else(|| reply_id("req_"), str::to_owned);
    let method = request.method().clone();
    // The route, not the address: there may be names in that.
    let route = request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str).to_owned();
    let trace = service.traces.as_ref().map(|traces| traces.begin(&method, &route, &id, request.headers()));
    let mut response = match &trace {
        Some(trace) => trace.around(next.run(request)).await,
        None => next.run(request).await,
    };
    if let Ok(value) = HeaderValue::from_str(&id) {
        // OpenAI's clients read the one, Anthropic's the other.
        response.headers_mut().insert("x-request-id", value.clone());
        response.headers_mut().insert("request-id", value);
    }
    let (status, seconds) = (response.status().as_u16(), start.elapsed().as_secs_f64());
    service.metrics.replied(&route, status);
    if let Some(trace) = trace {
        trace.end(status);
    }
    let line = match service.log {
        Log::None => return response,
        Log::Text => format!("{method} {route} {status} in {seconds:.3} s ({id})"),
        Log::Json => {
            let level = if status >= 500 { "error" } else { "info" };
            json!({
                "time": seconds_now(),
                "level": level,
                "event": "reply",
                "request_id": id,
                "method": method.as_str(),
                "route": route,
                "status": status,
                "seconds": seconds,
            })
            .to_string()
        }
    };
    say!("{line}");
    response
}
