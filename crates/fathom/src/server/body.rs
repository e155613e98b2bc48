//! The bytes of a request.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::StatusCode;
use futures_util::StreamExt;

use super::ApiError;

/// A body that has not come after this long is given up.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// The body's bytes, if they come in time.
pub(super) async fn read_in_time(body: Body, limit: usize) -> Result<Vec<u8>, ApiError> {
    tokio::time::timeout(PATIENCE, read(body, limit))
        .await
        .map_err(|_| ApiError::other(StatusCode::REQUEST_TIMEOUT, "timeout", "The body took too long to arrive."))?
}

/// The body's bytes, at most `limit` of them.
async fn read(body: Body, limit: usize) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    let mut total = 0;
    let mut stream = body.into_data_stream();
    while let Some(part) = stream.next().await {
        let part: Bytes = part.map_err(|error| ApiError::bad(None, format!("The body ended early: {error}.")))?;
        total += part.len();
        if total <= limit {
            bytes.extend_from_slice(&part);
        } else {
            // A client that is still sending does not read the answer yet, so hear it out, within reason.
            bytes = Vec::new();
            if total > limit.saturating_mul(16) {
                break;
            }
        }
    }
    if total > limit {
        let message = format!("The body is larger than {limit} bytes.");
        return Err(ApiError::other(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", message));
    }
    Ok(bytes)
}
