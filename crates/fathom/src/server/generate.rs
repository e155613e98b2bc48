//! What the server asks of an engine.

use std::ops::ControlFlow;

use fathom_engine::{Counts, Engine, Error, Event, Request};
use fathom_kernels::Holding;

/// Where an engine's events go. It is called on the engine's thread, and ends the generation by answering `Break`.
pub type Sink = Box<dyn FnMut(Event) -> ControlFlow<()> + Send>;

/// Something that continues prompts. The engine does; so do the tests' stand-ins.
pub trait Generate: Send + Sync + 'static {
    /// Checks `request` and queues it; what comes of it goes to `sink`.
    ///
    /// # Errors
    /// What is wrong with the request, or that the queue is full.
    fn submit(&self, request: Request, sink: Sink) -> Result<(), Error>;

    /// Ends all requests soon and takes no more.
    fn stop(&self) {}

    /// Whether it takes requests.
    fn is_open(&self) -> bool {
        true
    }

    /// What it has done.
    fn counts(&self) -> Counts {
        Counts::default()
    }

    /// Requests that wait, and that run.
    fn load(&self) -> (usize, usize) {
        (0, 0)
    }

    /// States in memory that requests can go on from, and the tokens that those have seen.
    fn kept(&self) -> (usize, usize) {
        (0, 0)
    }

    /// Who holds how much memory.
    fn memory(&self) -> Vec<Holding> {
        Vec::new()
    }

    /// The size of the vocabulary: token ids are below it.
    fn vocab_size(&self) -> usize;

    /// The most tokens a prompt and its answer may have.
    fn context(&self) -> usize;
}

impl Generate for Engine {
    fn submit(&self, request: Request, sink: Sink) -> Result<(), Error> {
        Engine::submit(self, request, sink)
    }

    fn stop(&self) {
        Engine::stop(self);
    }

    fn is_open(&self) -> bool {
        Engine::is_open(self)
    }

    fn counts(&self) -> Counts {
        Engine::counts(self)
    }

    fn load(&self) -> (usize, usize) {
        Engine::load(self)
    }

    fn kept(&self) -> (usize, usize) {
        Engine::kept(self)
    }

    fn memory(&self) -> Vec<Holding> {
        Engine::memory(self)
    }

    fn vocab_size(&self) -> usize {
        Engine::vocab_size(self)
    }

    fn context(&self) -> usize {
        Engine::context(self)
    }
}
