//! Sessions into the store, out of it, and from one server to another.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use fathom_engine::Owner;
use fathom_store::{Id, Snapshot};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use utoipa::ToSchema;

use super::{Answer, New, blocking, describe, json_body, json_or_nothing};
use crate::server::extract::{Asking, Caller, Named};
use crate::server::openapi::{Gone, List, OfSessions, Refused, SavedReply, SessionReply, SnapshotReply, WithBody};
use crate::server::transfer::{Incoming, outgoing};
use crate::server::{ApiError, Generate, Service};

#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(as = SnapshotBody)]
pub(in crate::server) struct Save {
    #[serde(default)]
    pinned: bool,
}

/// Has the session's state stored.
#[utoipa::path(post, path = "/v1/sessions/{name}/snapshot", operation_id = "snapshot_session", params(("name" = String, Path,)), request_body = Save,
    responses((status = 201, body = SavedReply), Refused, OfSessions, WithBody))]
pub(in crate::server) async fn snapshot<G: Generate>(
    Caller { service, owner }: Caller<G>,
    Named(name): Named,
    body: Body,
) -> Answer {
    let Save { pinned } = json_or_nothing(&service, body).await?;
    let saved = save(&service, owner, name, pinned).await?;
    let written = json!({
        "id": saved.id.to_string(),
        "object": "snapshot",
        "position": saved.position,
        "new_pages": saved.new_pages,
        "bytes_written": saved.bytes_written,
        "pinned": pinned,
    });
    Ok((StatusCode::CREATED, Json(written)).into_response())
}

async fn save<G: Generate>(
    service: &Arc<Service<G>>,
    owner: Owner,
    name: String,
    pinned: bool,
) -> Result<fathom_store::Saved, ApiError> {
    let (slot, work) = (service.take_slot(&owner)?, service.work());
    let (send, told) = oneshot::channel();
    blocking(service, move |sessions| {
        Ok(sessions.snapshot(&owner, &name, pinned, move |saved| {
            drop((slot, work));
            let _ = send.send(saved);
        })?)
    })
    .await?;
    let saved = told.await.map_err(|_| ApiError::internal("The state could not be made; the session is as it was."))?;
    Ok(saved?)
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = PinBody)]
pub(in crate::server) struct Pin {
    pinned: bool,
}

/// Keeps the session's snapshot whatever room there is, or not any more.
#[utoipa::path(post, path = "/v1/sessions/{name}/pin", operation_id = "pin_session", params(("name" = String, Path,)), request_body = Pin,
    responses((status = 200, body = SessionReply), Refused, OfSessions, WithBody))]
pub(in crate::server) async fn pin<G: Generate>(
    Caller { service, owner }: Caller<G>,
    Named(name): Named,
    body: Body,
) -> Answer {
    let Pin { pinned } = json_body(&service, body).await?;
    let (of, named) = (owner.clone(), name.clone());
    let is_stored = blocking(&service, move |sessions| Ok(!sessions.get(&of, &named)?.snapshots.is_empty())).await?;
    if pinned && !is_stored {
        save(&service, owner.clone(), name.clone(), true).await?;
    }
    let session = blocking(&service, move |sessions| {
        sessions.pin(&owner, &name, pinned)?;
        Ok(sessions.get(&owner, &name)?)
    });
    Ok(Json(describe(&session.await?)).into_response())
}

/// The session as a file.
#[utoipa::path(get, path = "/v1/sessions/{name}/export", operation_id = "export_session", params(("name" = String, Path,)),
    responses((status = 200, body = Vec<u8>, content_type = "application/octet-stream"), Refused, OfSessions))]
pub(in crate::server) async fn export<G: Generate>(Caller { service, owner }: Caller<G>, Named(name): Named) -> Answer {
    let saved = save(&service, owner.clone(), name.clone(), false).await?;
    let work = service.work();
    // Held from before the headers go out: then it is there to its end.
    let (namespace, hold) = blocking(&service, move |sessions| {
        let namespace = sessions.namespace(&owner)?;
        let hold = namespace.hold(&saved.id).map_err(fathom_engine::Error::from)?;
        Ok((namespace, hold))
    })
    .await?;
    let body = outgoing(move |to| {
        let _work = work;
        namespace.export(&hold.id(), to).map(drop)
    });
    let disposition = format!("attachment; filename=\"{name}.fathom\"");
    let headers =
        [(header::CONTENT_TYPE, "application/octet-stream".to_owned()), (header::CONTENT_DISPOSITION, disposition)];
    Ok((headers, body).into_response())
}

/// Takes a session in from such a file.
#[utoipa::path(post, path = "/v1/snapshots", operation_id = "import_session", params(("name" = Option<String>, Query,)), request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 201, body = SessionReply), Refused, OfSessions, WithBody))]
pub(in crate::server) async fn import<G: Generate>(
    Caller { service, owner }: Caller<G>,
    Asking(new): Asking<New>,
    body: Body,
) -> Answer {
    let (slot, work) = (service.take_slot(&owner)?, service.work());
    let mut incoming = Incoming::new(body);
    let session = blocking(&service, move |sessions| {
        let _held = (slot, work);
        Ok(sessions.import(&owner, new.name.as_deref(), &mut incoming)?)
    });
    Ok((StatusCode::CREATED, Json(describe(&session.await?))).into_response())
}

/// All snapshots.
#[utoipa::path(get, path = "/v1/snapshots", operation_id = "list_snapshots",
    responses((status = 200, body = List<SnapshotReply>), Refused, OfSessions))]
pub(in crate::server) async fn snapshots<G: Generate>(Caller { service, owner }: Caller<G>) -> Answer {
    let all = blocking(&service, move |sessions| {
        Ok(sessions.namespace(&owner)?.list().map_err(fathom_engine::Error::from)?)
    });
    let data: Vec<Value> = all.await?.iter().map(stored).collect();
    Ok(Json(json!({"object": "list", "data": data})).into_response())
}

/// Removes a snapshot.
#[utoipa::path(delete, path = "/v1/snapshots/{id}", operation_id = "remove_snapshot", params(("id" = String, Path,)),
    responses((status = 200, body = Gone), Refused, OfSessions))]
pub(in crate::server) async fn remove<G: Generate>(Caller { service, owner }: Caller<G>, Named(id): Named) -> Answer {
    let shown = id.clone();
    blocking(&service, move |sessions| {
        let id = snapshot_id(&id)?;
        Ok(sessions.namespace(&owner)?.remove(&id).map_err(fathom_engine::Error::from)?)
    })
    .await?;
    Ok(Json(json!({"id": shown, "object": "snapshot.deleted", "deleted": true})).into_response())
}

fn stored(snapshot: &Snapshot) -> Value {
    json!({
        "id": snapshot.id.to_string(),
        "object": "snapshot",
        "session": snapshot.name,
        "position": snapshot.position,
        "bytes": snapshot.bytes,
        "pinned": snapshot.pinned,
        "created": snapshot.created,
        "used": snapshot.used,
        "expires": snapshot.expires,
        "profile": snapshot.subject.profile,
    })
}

pub(super) fn snapshot_id(text: &str) -> Result<Id, ApiError> {
    text.parse()
        .map_err(|_| ApiError::bad(Some("snapshot"), "A snapshot's id is 32 hex digits, as /v1/snapshots lists them."))
}
