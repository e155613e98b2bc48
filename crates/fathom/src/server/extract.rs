//! What handlers take from a request, refused in the form of all refusals.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Path, Query};
use axum::http::request::Parts;
use fathom_engine::Owner;
use serde::de::DeserializeOwned;

use super::{ApiError, Generate, Service};

/// The service, and who asks it.
pub(super) struct Caller<G> {
    pub service: Arc<Service<G>>,
    pub owner: Owner,
}

impl<G: Generate> FromRequestParts<Arc<Service<G>>> for Caller<G> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, service: &Arc<Service<G>>) -> Result<Self, ApiError> {
        Ok(Caller { owner: service.keys.owner(&parts.headers)?, service: Arc::clone(service) })
    }
}

/// A name in the path.
pub(super) struct Named(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let named = Path::<String>::from_request_parts(parts, state).await;
        let Path(name) = named.map_err(|error| ApiError::bad(Some("path"), format!("{}.", error.body_text())))?;
        Ok(Named(name))
    }
}

/// What follows the `?`.
pub(super) struct Asking<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asking<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let asked = Query::<T>::from_request_parts(parts, state).await;
        let Query(asked) = asked.map_err(|error| ApiError::bad(Some("query"), format!("{}.", error.body_text())))?;
        Ok(Asking(asked))
    }
}
