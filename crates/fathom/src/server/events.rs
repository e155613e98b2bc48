//! Requests handed to the engine, and what comes back.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fathom_engine::{Event, Request};
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::{ApiError, Generate, Service};

/// The events of several requests of one client. Dropping it stops them all.
pub(super) struct Events {
    receiver: UnboundedReceiver<(usize, Event)>,
    /// Which of them nobody wants to hear more of.
    enough: Vec<Arc<AtomicBool>>,
    /// The client's place in the queue, given back in the end.
    _slot: OwnedSemaphorePermit,
}

impl Events {
    /// Hands requests to the engine. `work` is held as long as one of them is at work.
    pub(super) fn of<G: Generate>(
        service: &Service<G>,
        requests: impl IntoIterator<Item = Request>,
        slot: OwnedSemaphorePermit,
        work: &Arc<()>,
    ) -> Result<Events, ApiError> {
        let (send, receiver) = unbounded_channel();
        let mut events = Events { receiver, enough: Vec::new(), _slot: slot };
        for (i, request) in requests.into_iter().enumerate() {
            let (send, work, enough) = (send.clone(), Arc::clone(work), Arc::new(AtomicBool::new(false)));
            events.enough.push(Arc::clone(&enough));
            // The engine's thread does nothing but pass events on; nobody there to hear them ends the generation.
            let sink = move |event| {
                let _work = &work;
                match enough.load(Ordering::Relaxed) || send.send((i, event)).is_err() {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            };
            service.engine.submit(request, Box::new(sink)).map_err(|error| ApiError::from_engine(&error))?;
        }
        Ok(events)
    }

    /// The next event and whose it is.
    ///
    /// # Errors
    /// The engine is gone, or a request failed.
    pub(super) async fn next(&mut self) -> Result<(usize, Event), ApiError> {
        let gone = || ApiError::internal("The engine stopped before the answer was complete.");
        match self.receiver.recv().await.ok_or_else(gone)? {
            (_, Event::Failed(error)) => Err(ApiError::from_engine(&error)),
            event => Ok(event),
        }
    }

    /// Stops one of the requests.
    pub(super) fn stop(&self, i: usize) {
        self.enough[i].store(true, Ordering::Relaxed);
    }
}
