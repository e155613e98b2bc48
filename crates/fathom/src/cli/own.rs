//! fathom's own server on a port of this machine, for what measures servers.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use fathom_engine::{Engine, EngineOptions};
use fathom_kernels::{Device, Ledger};
use fathom_store::Subject;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::model::{Files, load_for};
use super::store::subject;
use super::targets::Asking;
use crate::server::{Limits, Service, serve_until};

/// Requests that run at once, as `fathom serve` has it.
const PARALLEL: usize = 8;

/// A server that runs until it is ended.
pub struct Own {
    /// Where it listens.
    pub address: SocketAddr,
    /// Who holds how much of its memory.
    pub ledger: Ledger,
    /// What it runs, in a line.
    pub about: String,
    /// What tells its weights and arithmetic from others, if that was asked for.
    pub weights: Option<String>,
    engine: Engine,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Own {
    /// Serves a model, with room for prompts of about so many tokens.
    ///
    /// # Errors
    /// What `fathom serve` would say.
    pub fn start(runtime: &Runtime, files: Files, asking: &Asking<'_>) -> Result<Own, Box<dyn std::error::Error>> {
        let Asking { options, store, context, identify, .. } = *asking;
        let config = files.checkpoint.config();
        let (limit, eos) = (config.max_position_embeddings, config.eos_token_id);
        let limits = Limits::default();
        let loaded = load_for(&files, options, Some(context.min(limit)), PARALLEL, limits.bodies.memory(), false)?;
        let about = format!("{}; {}", loaded.describe(&files.name, files.checkpoint.release()), loaded.plan);
        let keep = store.keep_if_named(&files, &loaded.model)?;
        let weights = if identify { Some(identity(&subject(&files, &loaded.model)?)) } else { None };
        let name = files.name.clone();
        let prompter = files.prompter()?;
        let engine = loaded.engine(EngineOptions { queue: 128 * limits.requests, ..EngineOptions::default() }, keep);
        let service = Arc::new(Service::new(engine.clone(), prompter, &name, eos, false, limits));
        let (stop, stopped) = oneshot::channel::<()>();
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
        let address = listener.local_addr()?;
        let ledger = loaded.model.device().ledger().clone();
        let task = runtime.spawn(serve_until(listener, service, async {
            // That nobody can stop it any more is a reason to stop.
            let _ = stopped.await;
        }));
        Ok(Own { address, ledger, about, weights, engine, stop, task })
    }

    /// Stops it: what runs is cut off.
    pub fn end(self) {
        drop(self.stop);
        self.task.abort();
        self.engine.drain();
    }
}

/// The first half of the weights' fingerprint, and the profile.
fn identity(subject: &Subject) -> String {
    format!("{} {}", &subject.fingerprint()[..32], subject.profile)
}
