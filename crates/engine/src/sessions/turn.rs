//! A request at work on a session: what comes of it, and that nobody else works on it meanwhile.

use std::ops::ControlFlow;
use std::sync::Arc;

use super::{Key, Sessions, now};
use crate::{Event, Finish};

/// A request at work on a session.
pub(super) struct Turn {
    pub(super) sessions: Sessions,
    pub(super) key: Key,
    /// The session's tokens.
    pub(super) before: Arc<Vec<u32>>,
    pub(super) over: bool,
}

impl Turn {
    /// Passes the events of a request with this prompt on, and lets the session grow by what comes.
    pub(super) fn follow(
        self,
        prompt: Vec<u32>,
        mut sink: impl FnMut(Event) -> ControlFlow<()> + Send + 'static,
    ) -> impl FnMut(Event) -> ControlFlow<()> + Send + 'static {
        let (mut turn, mut tokens, mut read) = (Some(self), prompt, false);
        move |event| {
            match &event {
                Event::Token { id, .. } => {
                    read = true;
                    tokens.push(*id);
                }
                Event::Done { reason, .. } => read |= *reason != Finish::Cancelled,
                _ => {}
            }
            // Before anybody hears of the end, and may ask for more.
            if matches!(event, Event::Done { .. } | Event::Failed(_))
                && let Some(turn) = turn.take()
                && read
            {
                turn.commit(std::mem::take(&mut tokens));
            }
            sink(event)
        }
    }

    /// Ends it, with the session's new tokens.
    pub(super) fn commit(mut self, tokens: Vec<u32>) {
        self.end(Some(Arc::new(tokens)));
    }

    fn end(&mut self, tokens: Option<Arc<Vec<u32>>>) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        if let Some(entry) = self.sessions.table().get_mut(&self.key) {
            entry.busy = false;
            entry.used = now();
            if let Some(tokens) = tokens {
                entry.tokens = tokens;
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.end(None);
    }
}
