//! Sessions into the store, out of it, and from one server to another.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use fathom_engine::Owner;
use fathom_store::{Id, Snapshot};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::{Answer, Caller, New, blocking, describe, json_body, json_or_nothing};
use crate::server::transfer::{Incoming, outgoing};
use crate::server::{ApiError, Generate, Service};

#[derive(Debug, Default, Deserialize)]
struct Save {
    #[serde(default)]
    pinned: bool,
}

pub(super) async fn snapshot<G: Generate>(
    Caller { service, owner }: Caller<G>,
    Path(name): Path<String>,
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

#[derive(Debug, Deserialize)]
struct Pin {
    pinned: bool,
}

pub(super) async fn pin<G: Generate>(
    Caller { service, owner }: Caller<G>,
    Path(name): Path<String>,
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

pub(super) async fn export<G: Generate>(Caller { service, owner }: Caller<G>, Path(name): Path<String>) -> Answer {
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

pub(super) async fn import<G: Generate>(
    Caller { service, owner }: Caller<G>,
    Query(new): Query<New>,
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

pub(super) async fn snapshots<G: Generate>(Caller { service, owner }: Caller<G>) -> Answer {
    let all = blocking(&service, move |sessions| {
        Ok(sessions.namespace(&owner)?.list().map_err(fathom_engine::Error::from)?)
    });
    let data: Vec<Value> = all.await?.iter().map(stored).collect();
    Ok(Json(json!({"object": "list", "data": data})).into_response())
}

pub(super) async fn remove<G: Generate>(Caller { service, owner }: Caller<G>, Path(id): Path<String>) -> Answer {
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
