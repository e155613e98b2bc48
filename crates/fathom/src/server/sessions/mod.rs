//! `/v1/sessions`: timelines that clients name, let grow, fork, take back, keep and move.

mod keep;
mod speech;

use std::ops::ControlFlow;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{FromRequestParts, Path, Query};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use fathom_engine::{Event, Owner, Session, Sessions};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use self::keep::{export, import, pin, remove, snapshot, snapshot_id, snapshots};
use self::speech::{append, generate};
use super::body::read_in_time;
use super::request::typed;
use super::{ApiError, Generate, Service};
use crate::chat::{Role, Turn};

type Answer = Result<Response, ApiError>;

/// The service, and who asks it.
struct Caller<G> {
    service: Arc<Service<G>>,
    owner: Owner,
}

impl<G: Generate> FromRequestParts<Arc<Service<G>>> for Caller<G> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, service: &Arc<Service<G>>) -> Result<Self, ApiError> {
        Ok(Caller { owner: service.keys.owner(&parts.headers)?, service: Arc::clone(service) })
    }
}

/// The routes of sessions.
pub(super) fn routes<G: Generate>() -> axum::Router<Arc<Service<G>>> {
    axum::Router::new()
        .route("/v1/sessions", get(list::<G>).post(create::<G>))
        .route("/v1/sessions/{name}", get(show::<G>).delete(delete::<G>))
        .route("/v1/sessions/{name}/append", post(append::<G>))
        .route("/v1/sessions/{name}/generate", post(generate::<G>))
        .route("/v1/sessions/{name}/fork", post(fork::<G>))
        .route("/v1/sessions/{name}/rewind", post(rewind::<G>))
        .route("/v1/sessions/{name}/snapshot", post(snapshot::<G>))
        .route("/v1/sessions/{name}/pin", post(pin::<G>))
        .route("/v1/sessions/{name}/export", get(export::<G>))
        .route("/v1/snapshots", get(snapshots::<G>).post(import::<G>))
        .route("/v1/snapshots/{id}", axum::routing::delete(remove::<G>))
}

#[derive(Debug, Default, Deserialize)]
struct New {
    name: Option<String>,
    snapshot: Option<String>,
}

async fn create<G: Generate>(Caller { service, owner }: Caller<G>, body: Body) -> Answer {
    let new: New = json_or_nothing(&service, body).await?;
    let session = blocking(&service, move |sessions| match &new.snapshot {
        Some(id) => sessions.restore(&owner, &snapshot_id(id)?, new.name.as_deref()).map_err(ApiError::from),
        None => Ok(sessions.create(&owner, new.name.as_deref())?),
    })
    .await?;
    Ok((StatusCode::CREATED, Json(describe(&session))).into_response())
}

async fn list<G: Generate>(Caller { service, owner }: Caller<G>) -> Answer {
    let all = blocking(&service, move |sessions| Ok(sessions.list(&owner)?)).await?;
    let data: Vec<Value> = all.iter().map(describe).collect();
    Ok(Json(json!({"object": "list", "data": data})).into_response())
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Show {
    tokens: bool,
    turns: bool,
}

async fn show<G: Generate>(
    Caller { service, owner }: Caller<G>,
    Path(name): Path<String>,
    Query(show): Query<Show>,
) -> Answer {
    let prompter = service.prompter.clone();
    let shown = blocking(&service, move |sessions| {
        let mut shown = describe(&sessions.get(&owner, &name)?);
        if show.tokens {
            let tokens = sessions.tokens(&owner, &name)?;
            shown["text"] = prompter.tokenizer().decode(&tokens).into();
            shown["tokens"] = json!(*tokens);
        }
        if show.turns {
            let turns = prompter.turns(&sessions.tokens(&owner, &name)?);
            let turns = turns.map_err(|error| ApiError::internal(error.to_string()))?;
            shown["turns"] = turns.iter().map(turn).collect();
        }
        Ok(shown)
    })
    .await?;
    Ok(Json(shown).into_response())
}

/// A turn, and between which positions it is.
fn turn(turn: &Turn) -> Value {
    let role = match turn.message.role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
    };
    json!({
        "role": role,
        "thinking": turn.thinking,
        "text": turn.message.text,
        "start": turn.start,
        "end": turn.end,
    })
}

async fn delete<G: Generate>(Caller { service, owner }: Caller<G>, Path(name): Path<String>) -> Answer {
    let id = name.clone();
    blocking(&service, move |sessions| Ok(sessions.delete(&owner, &name)?)).await?;
    Ok(Json(json!({"id": id, "object": "session.deleted", "deleted": true})).into_response())
}

#[derive(Debug, Default, Deserialize)]
struct Fork {
    name: Option<String>,
    position: Option<usize>,
}

async fn fork<G: Generate>(Caller { service, owner }: Caller<G>, Path(name): Path<String>, body: Body) -> Answer {
    let to: Fork = json_or_nothing(&service, body).await?;
    let forked =
        blocking(&service, move |sessions| Ok(sessions.fork(&owner, &name, to.position, to.name.as_deref())?));
    Ok((StatusCode::CREATED, Json(describe(&forked.await?))).into_response())
}

#[derive(Debug, Deserialize)]
struct Position {
    position: usize,
}

async fn rewind<G: Generate>(Caller { service, owner }: Caller<G>, Path(name): Path<String>, body: Body) -> Answer {
    let Position { position } = json_body(&service, body).await?;
    let (slot, work) = (service.take_slot(&owner)?, service.work());
    let (send, mut events) = mpsc::unbounded_channel();
    let (tell, told) = oneshot::channel();
    let of = (owner.clone(), name.clone());
    blocking(&service, move |sessions| {
        let sink = move |event| {
            let _held = (&slot, &work);
            send.send(event).map_or(ControlFlow::Break(()), ControlFlow::Continue)
        };
        Ok(sessions.rewind(&of.0, &of.1, position, sink, |stored| drop(tell.send(stored)))?)
    })
    .await?;
    let usage = loop {
        match events.recv().await {
            Some(Event::Done { usage, .. }) => break usage,
            Some(Event::Failed(error)) => return Err(ApiError::from_engine(&error)),
            Some(_) => {}
            None => return Err(ApiError::internal("The engine stopped before the session was back.")),
        }
    };
    // The session is back; where it could not be stored so, it would not be after a restart.
    told.await.map_err(|_| ApiError::internal("The engine stopped before the session was stored."))??;
    let session = blocking(&service, move |sessions| Ok(sessions.get(&owner, &name)?)).await?;
    let from = usage.reused_tokens;
    let replayed = usage.prompt_tokens - from;
    Ok(Json(json!({"session": describe(&session), "from": from, "replayed": replayed})).into_response())
}

fn describe(session: &Session) -> Value {
    let parent = session.parent.as_ref().map(|(name, position)| json!({"session": name, "position": position}));
    json!({
        "id": session.name,
        "object": "session",
        "position": session.position,
        "created": session.created,
        "used": session.used,
        "parent": parent,
        "busy": session.busy,
        "snapshots": session.snapshots,
        "pinned": session.pinned,
    })
}

/// Work that reads or writes the store, or waits for locks: not on a thread that answers others.
async fn blocking<G: Generate, T: Send + 'static>(
    service: &Arc<Service<G>>,
    work: impl FnOnce(&Sessions) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let none = || ApiError::other(StatusCode::NOT_IMPLEMENTED, "no_sessions", "This server has no sessions.");
    let sessions = service.sessions.clone().ok_or_else(none)?;
    let done = tokio::task::spawn_blocking(move || work(&sessions)).await;
    done.map_err(|_| ApiError::internal("The work on the session failed."))?
}

async fn json_body<G: Generate, T: DeserializeOwned>(service: &Service<G>, body: Body) -> Result<T, ApiError> {
    let bytes = read_in_time(body, service.limits.body).await?;
    let value: Value = serde_json::from_slice(&bytes)
        .map_err(|error| ApiError::bad(None, format!("The body is not valid JSON: {error}.")))?;
    typed(&value)
}

/// The same where a body may be left out.
async fn json_or_nothing<G: Generate, T: DeserializeOwned + Default>(
    service: &Service<G>,
    body: Body,
) -> Result<T, ApiError> {
    let bytes = read_in_time(body, service.limits.body).await?;
    if bytes.is_empty() {
        return Ok(T::default());
    }
    json_body(service, Body::from(bytes)).await
}
