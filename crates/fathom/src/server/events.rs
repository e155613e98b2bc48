//! Requests handed to the engine, and what comes back.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use axum::http::StatusCode;
use fathom_engine::{Event, Finish, Request};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::serve::Slot;
use super::{ApiError, Generate, Service};

/// The events of several requests of one client. Dropping it stops them: those that speak at once, those that read after a
/// while, so that a client that comes back finds what was read.
pub(super) struct Events {
    receiver: UnboundedReceiver<(usize, Event)>,
    /// Which of them nobody wants to hear more of.
    enough: Vec<Arc<AtomicBool>>,
    /// The client's place, as long as one of them is at work.
    slot: Weak<Slot>,
}

impl Drop for Events {
    /// The client has left, or has all.
    fn drop(&mut self) {
        if let Some(slot) = self.slot.upgrade() {
            slot.leave();
        }
    }
}

impl Events {
    /// Hands requests to the engine. The client's place among the server's requests and `work` are held as long as one of them
    /// is at work; among those of its key it is held as long as the client is there.
    pub(super) fn of<G: Generate>(
        service: &Service<G>,
        requests: impl IntoIterator<Item = Request>,
        slot: Slot,
        work: &Arc<()>,
    ) -> Result<Events, ApiError> {
        let (send, receiver) = unbounded_channel();
        let slot = Arc::new(slot);
        let mut events = Events { receiver, enough: Vec::new(), slot: Arc::downgrade(&slot) };
        for (i, request) in requests.into_iter().enumerate() {
            let (send, enough) = (send.clone(), Arc::new(AtomicBool::new(false)));
            let held = (Arc::clone(&slot), Arc::clone(work));
            let (place, mut watch) = (service.prefills.place(&request.owner), service.watch());
            events.enough.push(Arc::clone(&enough));
            // The engine's thread does nothing but note times and pass events on.
            let sink = move |event: Event| {
                let (slot, _work) = &held;
                watch.see(&event);
                let goes_on = place.see(&event, !send.is_closed()) && !slot.is_over();
                // The client may have left.
                let _ = send.send((i, event));
                if goes_on && !enough.load(Ordering::Relaxed) {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            };
            service.engine.submit(request, Box::new(sink)).map_err(|error| ApiError::from_engine(&error))?;
        }
        Ok(events)
    }

    /// The next event and whose it is.
    ///
    /// # Errors
    /// The engine is gone, a request failed, or somebody stopped its prompt.
    pub(super) async fn next(&mut self) -> Result<(usize, Event), ApiError> {
        let gone = || ApiError::internal("The engine stopped before the answer was complete.");
        match self.receiver.recv().await.ok_or_else(gone)? {
            (_, Event::Failed(error)) => Err(ApiError::from_engine(&error)),
            (i, Event::Done { reason: Finish::Cancelled, .. }) if !self.enough[i].load(Ordering::Relaxed) => {
                let message = "Reading the prompt was stopped; what had been read is kept for the next request.";
                Err(ApiError::other(StatusCode::CONFLICT, "prefill_stopped", message))
            }
            event => Ok(event),
        }
    }

    /// Stops one of the requests.
    pub(super) fn stop(&self, i: usize) {
        self.enough[i].store(true, Ordering::Relaxed);
    }
}
