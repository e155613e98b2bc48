//! `/v1/sessions`: timelines that clients name, let grow, fork, take back, keep and move.

pub(super) mod keep;
pub(super) mod speech;

use std::ops::ControlFlow;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use fathom_engine::{Event, Session, Sessions};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use utoipa::ToSchema;

use self::keep::snapshot_id;
use super::extract::{Asking, Caller, Named};
use super::openapi::{Gone, List, OfSessions, Refused, RewindReply, SessionReply, WithBody};
use super::request::{json as parsed, typed};
use super::routes::Routes;
use super::{ApiError, Generate, Service};
use crate::chat::{Role, Turn};

type Answer = Result<Response, ApiError>;

/// The routes of sessions.
pub(super) fn routes<G: Generate>(routes: Routes<G>) -> Routes<G> {
    routes
        .add(__path_list, list::<G>)
        .add(__path_create, create::<G>)
        .add(__path_show, show::<G>)
        .add(__path_delete, delete::<G>)
        .add(speech::__path_append, speech::append::<G>)
        .add(speech::__path_generate, speech::generate::<G>)
        .add(__path_fork, fork::<G>)
        .add(__path_rewind, rewind::<G>)
        .add(keep::__path_snapshot, keep::snapshot::<G>)
        .add(keep::__path_pin, keep::pin::<G>)
        .add(keep::__path_export, keep::export::<G>)
        .add(keep::__path_snapshots, keep::snapshots::<G>)
        .add(keep::__path_import, keep::import::<G>)
        .add(keep::__path_remove, keep::remove::<G>)
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(as = CreateBody)]
pub(super) struct New {
    /// Letters, digits, `_`, `-` and `.`; one is made up where there is none.
    name: Option<String>,
    /// The id of one that it begins with.
    snapshot: Option<String>,
}

/// Makes a session, new or from a snapshot.
#[utoipa::path(post, path = "/v1/sessions", operation_id = "create_session", request_body = New,
    responses((status = 201, body = SessionReply), Refused, OfSessions, WithBody))]
async fn create<G: Generate>(Caller { service, owner }: Caller<G>, body: Body) -> Answer {
    let new: New = json_or_nothing(&service, body).await?;
    let session = blocking(&service, move |sessions| match &new.snapshot {
        Some(id) => sessions.restore(&owner, &snapshot_id(id)?, new.name.as_deref()).map_err(ApiError::from),
        None => Ok(sessions.create(&owner, new.name.as_deref())?),
    })
    .await?;
    Ok((StatusCode::CREATED, Json(describe(&session))).into_response())
}

/// All sessions.
#[utoipa::path(get, path = "/v1/sessions", operation_id = "list_sessions",
    responses((status = 200, body = List<SessionReply>), Refused, OfSessions))]
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

/// One session.
#[utoipa::path(get, path = "/v1/sessions/{name}", operation_id = "show_session", params(("name" = String, Path,),
    ("tokens" = Option<bool>, Query, description = "Whether to show its tokens and text."),
    ("turns" = Option<bool>, Query, description = "Whether to show what was said, by whom and where.")),
    responses((status = 200, body = SessionReply), Refused, OfSessions))]
async fn show<G: Generate>(
    Caller { service, owner }: Caller<G>,
    Named(name): Named,
    Asking(show): Asking<Show>,
) -> Answer {
    let prompter = service.prompter.clone();
    // All tokens and their text may be many megabytes.
    let slot = if show.tokens || show.turns { Some(service.take_slot(&owner)?) } else { None };
    let shown = blocking(&service, move |sessions| {
        let _slot = slot;
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

/// Deletes a session and its snapshots.
#[utoipa::path(delete, path = "/v1/sessions/{name}", operation_id = "delete_session", params(("name" = String, Path,)),
    responses((status = 200, body = Gone), Refused, OfSessions))]
async fn delete<G: Generate>(Caller { service, owner }: Caller<G>, Named(name): Named) -> Answer {
    let id = name.clone();
    blocking(&service, move |sessions| Ok(sessions.delete(&owner, &name)?)).await?;
    Ok(Json(json!({"id": id, "object": "session.deleted", "deleted": true})).into_response())
}

#[derive(Debug, Default, Deserialize, ToSchema)]
#[schema(as = ForkBody)]
pub(super) struct Fork {
    name: Option<String>,
    position: Option<usize>,
}

/// Makes another session that begins like this one.
#[utoipa::path(post, path = "/v1/sessions/{name}/fork", operation_id = "fork_session", params(("name" = String, Path,)), request_body = Fork,
    responses((status = 201, body = SessionReply), Refused, OfSessions, WithBody))]
async fn fork<G: Generate>(Caller { service, owner }: Caller<G>, Named(name): Named, body: Body) -> Answer {
    let to: Fork = json_or_nothing(&service, body).await?;
    let forked =
        blocking(&service, move |sessions| Ok(sessions.fork(&owner, &name, to.position, to.name.as_deref())?));
    Ok((StatusCode::CREATED, Json(describe(&forked.await?))).into_response())
}

#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = RewindBody)]
pub(super) struct Position {
    position: usize,
}

/// Goes back to a position.
#[utoipa::path(post, path = "/v1/sessions/{name}/rewind", operation_id = "rewind_session", params(("name" = String, Path,)), request_body = Position,
    responses((status = 200, body = RewindReply), Refused, OfSessions, WithBody))]
async fn rewind<G: Generate>(Caller { service, owner }: Caller<G>, Named(name): Named, body: Body) -> Answer {
    let Position { position } = json_body(&service, body).await?;
    let (mut slot, work) = (service.take_slot(&owner)?, service.work());
    slot.hold(service.desk.prompts(position.min(service.served.context))?);
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
    let received = service.desk.receive(body).await?;
    typed(&parsed(&received.bytes)?)
}

/// The same where a body may be left out.
async fn json_or_nothing<G: Generate, T: DeserializeOwned + Default>(
    service: &Service<G>,
    body: Body,
) -> Result<T, ApiError> {
    let received = service.desk.receive(body).await?;
    match received.bytes.is_empty() {
        true => Ok(T::default()),
        false => typed(&parsed(&received.bytes)?),
    }
}
