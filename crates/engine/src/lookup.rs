//! What a store has of a prompt, looked up on a thread of its own: a bucket may take seconds, and others speak meanwhile.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

use fathom_kernels::Device;
use fathom_model::Model;
use fathom_store::{Miss, Namespace, Store, Subject};

use crate::engine::{Asked, Shared};
use crate::missed::{in_words, nothing};
use crate::room::Hold;
use crate::snapshot::{Resumed, SnapshotError, resume};
use crate::worker::Full;
use crate::{Missed, Request, Why};

/// A store, and what a model's states are in it.
pub(crate) struct Lookup<D: Device> {
    pub model: Arc<Model<D>>,
    pub store: Store,
    pub subject: Subject,
}

/// A request, and what the store has of its prompt.
pub(crate) struct Found<D: Device> {
    pub asked: Asked,
    /// Whether its prompt is in the tokens of a session already.
    pub joined: bool,
    pub resumed: Option<Resumed<D>>,
    /// Why it is not longer.
    pub missed: Option<Missed>,
    /// The prompt in the tokens of a stored session that has the same text.
    pub seam: Option<Vec<u32>>,
    /// Whether there was no memory for the state that was found.
    pub full: bool,
}

impl<D: Device> Found<D> {
    pub(crate) fn nothing(asked: Asked, joined: bool) -> Found<D> {
        Found { asked, joined, resumed: None, missed: None, seam: None, full: false }
    }
}

/// A request whose prompt is being looked up.
pub(crate) struct Looking<D: Device> {
    pub hold: Hold,
    /// Nothing comes if the thread panicked: the request is lost, which its receiver sees.
    pub found: Receiver<Found<D>>,
}

/// Wakes the engine's thread when dropped.
struct Wake(Arc<Shared>);

impl Drop for Wake {
    fn drop(&mut self) {
        self.0.wake();
    }
}

impl<D: Device> Lookup<D> {
    /// Looks for more than `have` tokens of a prompt.
    pub(crate) fn start(self, asked: Asked, joined: bool, have: usize, hold: Hold, shared: Arc<Shared>) -> Looking<D> {
        let (send, found) = sync_channel(1);
        // A thread that the system does not give drops the request too.
        let _ = std::thread::Builder::new().name("lookup".into()).spawn(move || {
            let _wake = Wake(shared);
            let send = send;
            let _ = send.send(self.look(asked, joined, have));
        });
        Looking { hold, found }
    }

    fn look(&self, asked: Asked, joined: bool, have: usize) -> Found<D> {
        let mut found = Found::nothing(asked, joined);
        if let Err(e) = self.fill(&mut found, have) {
            found.full = e.is_full();
            found.missed = Some(nothing(Why::Store(e.to_string()), have));
        }
        found
    }

    fn fill(&self, found: &mut Found<D>, have: usize) -> Result<(), SnapshotError> {
        let request = &found.asked.request;
        let namespace = self.store.namespace(&request.owner.0)?;
        let resume = resume(&self.model, &namespace, &self.subject, &request.prompt, have)?;
        found.resumed = resume.resumed;
        if found.resumed.is_none() && !found.joined {
            found.seam = join(&namespace, request, have, resume.miss.as_ref());
        }
        found.missed = resume.miss.and_then(|miss| in_words(&namespace, request, miss));
        Ok(())
    }
}

/// The prompt in the tokens of a stored session that has the same text and more of it than `have` tokens.
fn join(namespace: &Namespace, request: &Request, have: usize, miss: Option<&Miss>) -> Option<Vec<u32>> {
    let seam = request.seam.as_ref()?;
    let Some(&Miss::Differs { snapshot, position }) = miss else { return None };
    (position >= have).then_some(())?;
    seam.join(&request.prompt, &namespace.tokens(&snapshot).ok()?, position)
}
