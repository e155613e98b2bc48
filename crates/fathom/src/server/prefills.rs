//! Prompts that are being read: who waits for them, how far they are, and when they stop once nobody does.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Json;
use axum::http::StatusCode;
use fathom_engine::{Event, Owner};
use serde_json::{Value, json};

use super::extract::{Caller, Named};
use super::openapi::{Gone, List, Named404, PrefillReply, Refused};
use super::{ApiError, Generate};
use crate::clock::now;

/// One prompt that is being read.
#[derive(Debug)]
struct Prefill {
    owner: Owner,
    /// Seconds since 1970.
    started: u64,
    /// When it began to be read, by its request or by one that this follows, and how much of it was there already.
    since: Instant,
    reused: usize,
    done: usize,
    total: usize,
    /// When its client left, if it did.
    left: Option<Instant>,
    stopped: bool,
}

/// All of them, by number.
#[derive(Debug, Default)]
pub(super) struct Prefills {
    all: Mutex<BTreeMap<u64, Prefill>>,
    last: AtomicU64,
    /// How long one goes on whose client has left.
    linger: Duration,
    /// Whether the server is about to end, and nobody can come back.
    closing: AtomicBool,
}

impl Prefills {
    pub(super) fn new(linger: Duration) -> Prefills {
        Prefills { linger, ..Prefills::default() }
    }

    /// Lets those go whose clients have left.
    pub(super) fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Prefill>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a request's prompt, which is given back when dropped.
    pub(super) fn place(self: &Arc<Self>, owner: &Owner) -> Place {
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        Place { prefills: Arc::clone(self), owner: owner.clone(), id }
    }

    /// An owner's, the oldest first.
    pub(super) fn of(&self, owner: &Owner) -> Vec<Value> {
        self.lock().iter().filter(|(_, one)| one.owner == *owner).map(|(id, one)| one.shown(*id)).collect()
    }

    /// Stops one of an owner's; says whether there was one.
    fn stop(&self, owner: &Owner, id: u64) -> bool {
        match self.lock().get_mut(&id).filter(|one| one.owner == *owner) {
            Some(one) => {
                one.stopped = true;
                true
            }
            None => false,
        }
    }
}

impl Prefill {
    fn shown(&self, id: u64) -> Value {
        let seconds = self.since.elapsed().as_secs_f64();
        let read = self.done.saturating_sub(self.reused);
        let speed = (read > 0).then(|| read as f64 / seconds.max(1e-9));
        json!({
            "id": id.to_string(),
            "object": "prefill",
            "started": self.started,
            "tokens": self.total,
            "tokens_done": self.done,
            "tokens_reused": self.reused,
            "tokens_per_second": speed,
            "eta_seconds": speed.map(|speed| self.total.saturating_sub(self.done) as f64 / speed),
            "awaited": self.left.is_none(),
        })
    }
}

/// The place of one request's prompt.
pub(super) struct Place {
    prefills: Arc<Prefills>,
    owner: Owner,
    id: u64,
}

impl Place {
    /// Notes what an event says of the prompt, and says whether to go on.
    pub(super) fn see(&self, event: &Event, awaited: bool) -> bool {
        match *event {
            Event::Prefill { done, total, reused } => self.progress(done, total, Some(reused), awaited),
            // What another reads to its end need not wait for a client that may come back.
            Event::Follows { done, shared, total } => {
                self.progress(done, total, None, awaited) && (awaited || shared < total)
            }
            Event::Queued { .. } | Event::Read { .. } => awaited,
            Event::Token { .. } | Event::Done { .. } | Event::Failed(_) => {
                self.over();
                awaited
            }
        }
    }

    /// Notes how far it is and whether its client is still there, and says whether to go on. What was there already is not known
    /// while another reads it: then that is what the other had read.
    fn progress(&self, done: usize, total: usize, reused: Option<usize>, awaited: bool) -> bool {
        let mut all = self.prefills.lock();
        let new = || Prefill {
            owner: self.owner.clone(),
            started: now(),
            since: Instant::now(),
            reused: reused.unwrap_or(done),
            done,
            total,
            left: None,
            stopped: false,
        };
        let one = all.entry(self.id).or_insert_with(new);
        one.done = done;
        if let Some(reused) = reused.filter(|reused| *reused != one.reused) {
            (one.reused, one.since) = (reused, Instant::now());
        }
        if !awaited {
            one.left.get_or_insert_with(Instant::now);
        }
        let lingers = |left: Instant| left.elapsed() < self.prefills.linger;
        !one.stopped && one.left.is_none_or(|left| lingers(left) && !self.prefills.closing.load(Ordering::Relaxed))
    }

    /// Notes that the prompt has been read.
    fn over(&self) {
        self.prefills.lock().remove(&self.id);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.over();
    }
}

/// Prompts that are being read.
#[utoipa::path(get, path = "/v1/prefills", operation_id = "list_prefills",
    responses((status = 200, body = List<PrefillReply>), Refused))]
pub(super) async fn list<G: Generate>(Caller { service, owner }: Caller<G>) -> Result<Json<Value>, ApiError> {
    Ok(Json(json!({"object": "list", "data": service.prefills.of(&owner)})))
}

/// Stops reading a prompt; what was read is kept.
#[utoipa::path(delete, path = "/v1/prefills/{id}", operation_id = "stop_prefill", params(("id" = String, Path,)),
    responses((status = 200, body = Gone), Refused, Named404))]
pub(super) async fn stop<G: Generate>(
    Caller { service, owner }: Caller<G>,
    Named(id): Named,
) -> Result<Json<Value>, ApiError> {
    match id.parse().is_ok_and(|id| service.prefills.stop(&owner, id)) {
        true => Ok(Json(json!({"id": id, "object": "prefill.stopped", "stopped": true}))),
        false => {
            let message =
                format!("No prompt with the number '{id}' is being read; GET /v1/prefills lists those that are.");
            Err(ApiError::other(StatusCode::NOT_FOUND, "no_such_prefill", message))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goes_on_as_long_as_it_may() {
        let owner = Owner::default();
        let prefills = Arc::new(Prefills::new(Duration::from_secs(3600)));
        let (awaited, left, stopped) = (prefills.place(&owner), prefills.place(&owner), prefills.place(&owner));
        assert!(
            awaited.progress(1, 9, Some(0), true)
                && left.progress(1, 9, Some(0), false)
                && stopped.progress(1, 9, Some(0), true)
        );
        assert!(prefills.stop(&owner, stopped.id) && !prefills.stop(&Owner("other".into()), left.id));
        assert!(!stopped.progress(2, 9, Some(0), true));
        prefills.close();
        assert!(awaited.progress(2, 9, Some(0), true) && !left.progress(2, 9, Some(0), false));
        drop((awaited, stopped));
        assert_eq!(prefills.of(&owner).len(), 1);
        let brief = Arc::new(Prefills::new(Duration::ZERO));
        assert!(!brief.place(&owner).progress(1, 9, Some(0), false));
    }
}
