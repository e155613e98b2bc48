//! The server: its state, and how it starts and stops.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fathom_engine::{Owner, Sessions};
use fathom_weights::experts::Stats;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::connections::{self, ConnectionLimits};
use super::desk::{BodyLimits, Desk};
use super::guard::Origins;
use super::log::Log;
use super::metrics::{Metrics, Watch};
use super::prefills::Prefills;
use super::rates::{KeyLimits, Rates, Turn};
use super::routes::router;
use super::{ApiError, Generate, Keys, Served, Tls, Traces, signals};
use crate::Error;
use crate::chat::Prompter;
use crate::clock::now;

/// What connections get to end by themselves once the server stops and nothing runs: one may have half a request to send,
/// or answers that nobody reads.
const GRACE: Duration = Duration::from_secs(5);
/// What the rest takes at most once requests had their time: to end those that are left, and to write sessions.
pub const SAVE: Duration = Duration::from_secs(30);
/// Between two times that measurements are summed up: until then each takes memory of its own.
const UPKEEP: Duration = Duration::from_secs(5);

/// How much the server takes on.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Requests that run or wait at once; one more is told to come back later.
    pub requests: usize,
    /// What bodies and prompts may take.
    pub bodies: BodyLimits,
    /// What connections may take.
    pub connections: ConnectionLimits,
    /// How long requests go on once the server was told to stop.
    pub drain: Duration,
    /// How long a prompt is read on whose client has left.
    pub linger: Duration,
    /// What each key may ask for.
    pub each_key: KeyLimits,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            requests: 64,
            bodies: BodyLimits::of_context(1 << 20),
            connections: ConnectionLimits::default(),
            drain: Duration::from_secs(60),
            linger: Duration::from_secs(300),
            each_key: KeyLimits::default(),
        }
    }
}

/// A request's place among those that run or wait, until it is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    turn: Turn,
    _place: OwnedSemaphorePermit,
    prompts: Option<OwnedSemaphorePermit>,
}

impl Slot {
    /// Notes that the client has left, which may come back meanwhile.
    pub(super) fn leave(&self) {
        self.turn.leave();
    }

    /// Whether the request is to end, as its client left and has left others since.
    pub(super) fn is_over(&self) -> bool {
        self.turn.is_over()
    }

    /// Holds room for prompts too.
    pub(super) fn hold(&mut self, prompts: OwnedSemaphorePermit) {
        self.prompts = Some(prompts);
    }
}

/// A model behind the API.
pub struct Service<G> {
    pub(super) engine: G,
    pub(super) prompter: Prompter,
    pub(super) served: Served,
    pub(super) eos: u32,
    pub(super) limits: Limits,
    pub(super) keys: Keys,
    pub(super) sessions: Option<Sessions>,
    pub(super) experts: Option<Box<dyn Fn() -> Stats + Send + Sync>>,
    pub(super) prefills: Arc<Prefills>,
    pub(super) metrics: Metrics,
    pub(super) log: Log,
    pub(super) desk: Desk,
    pub(super) origins: Origins,
    tls: Option<Arc<Tls>>,
    pub(super) traces: Option<Traces>,
    rates: Rates,
    /// Bytes of memory that were planned, if somebody planned.
    pub(super) planned: Option<u64>,
    slots: Arc<Semaphore>,
    /// Held by every request that is encoded, waits for the engine or runs.
    work: Arc<()>,
    pub(super) started: u64,
    since: Instant,
}

impl<G: Generate> Service<G> {
    /// Serves `engine` under the name `model`. `eos` is the token that ends an answer; `thinking` says whether requests
    /// that do not say are answered with thinking first.
    pub fn new(engine: G, prompter: Prompter, model: &str, eos: u32, thinking: bool, limits: Limits) -> Service<G> {
        let served = Served {
            model: model.to_owned(),
            aliases: Vec::new(),
            dialect: prompter.dialect(),
            vocab_size: engine.vocab_size(),
            context: engine.context(),
            thinking,
            tools: prompter.tokenizer().can_call_tools(),
        };
        let slots = Arc::new(Semaphore::new(limits.requests.min(Semaphore::MAX_PERMITS)));
        let prefills = Arc::new(Prefills::new(limits.linger));
        let (keys, sessions, experts, planned) = (Keys::default(), None, None, None);
        let (metrics, log, rates) = (Metrics::new(), Log::None, Rates::new(limits.each_key));
        let (work, started, since) = (Arc::new(()), now(), Instant::now());
        let (desk, origins, tls, traces) = (Desk::new(limits.bodies), Origins::default(), None, None);
        Service {
            engine,
            prompter,
            served,
            eos,
            limits,
            keys,
            sessions,
            experts,
            prefills,
            metrics,
            log,
            desk,
            origins,
            tls,
            traces,
            rates,
            planned,
            slots,
            work,
            started,
            since,
        }
    }

    /// Lets requests call the model by other names too.
    pub fn with_aliases(mut self, aliases: Vec<String>) -> Service<G> {
        self.served.aliases = aliases;
        self
    }

    /// Logs replies.
    pub fn with_log(self, log: Log) -> Service<G> {
        Service { log, ..self }
    }

    /// Shows the memory that was planned beside what is held.
    pub fn with_plan(self, bytes: u64) -> Service<G> {
        Service { planned: Some(bytes), ..self }
    }

    /// Asks for API keys, if there are any.
    pub fn with_keys(self, keys: Keys) -> Service<G> {
        Service { keys, ..self }
    }

    /// Lets pages of these origins ask.
    pub fn with_origins(self, origins: Origins) -> Service<G> {
        Service { origins, ..self }
    }

    /// Takes connections over TLS alone.
    pub fn with_tls(self, tls: Tls) -> Service<G> {
        Service { tls: Some(Arc::new(tls)), ..self }
    }

    /// Sends traces of requests.
    pub fn with_traces(self, traces: Traces) -> Service<G> {
        Service { traces: Some(traces), ..self }
    }

    /// Serves sessions too.
    pub fn with_sessions(self, sessions: Sessions) -> Service<G> {
        Service { sessions: Some(sessions), ..self }
    }

    /// Shows in the metrics what experts that are read as they are needed come to.
    pub fn with_experts(self, experts: impl Fn() -> Stats + Send + Sync + 'static) -> Service<G> {
        Service { experts: Some(Box::new(experts)), ..self }
    }

    /// Requests that have a place, of how many there are.
    pub(super) fn places(&self) -> (usize, usize) {
        let places = self.limits.requests;
        (places.saturating_sub(self.slots.available_permits()), places)
    }

    /// Since when it is there.
    pub(super) fn since(&self) -> Instant {
        self.since
    }

    /// A place for a request of somebody's.
    ///
    /// # Errors
    /// 429, if there is none, or none for him.
    pub(super) fn take_slot(&self, owner: &Owner) -> Result<Slot, ApiError> {
        let turn = self.rates.take(owner)?;
        let place = Arc::clone(&self.slots).try_acquire_owned().map_err(|_| ApiError::busy(self.limits.requests))?;
        Ok(Slot { turn, _place: place, prompts: None })
    }

    /// What measures a request that is handed to the engine now.
    pub(super) fn watch(&self) -> Watch {
        self.metrics.watch(self.traces.as_ref().and_then(Traces::phases))
    }

    pub(super) fn work(&self) -> Arc<()> {
        Arc::clone(&self.work)
    }

    /// Reads keys and certificates again, and says in the log what came of it.
    fn reload(&self) {
        match self.keys.reload() {
            Ok(0) => {}
            Ok(n) => self.log.note(&format!("{n} API keys were read again")),
            Err(e) => self.log.note(&format!("the API keys stay as they were: {e}")),
        }
        match self.tls.as_ref().map(|tls| tls.reload()) {
            None => {}
            Some(Ok(())) => self.log.note("the certificate was read again"),
            Some(Err(e)) => self.log.note(&format!("the certificate stays as it was: {e}")),
        }
    }
}

/// Listens on `address` and serves until Ctrl-C or SIGTERM; then takes no more connections, lets requests that run go on for
/// [`Limits::drain`], ends those that are left, and returns. A second signal ends the process at once, and so does the time that
/// the rest of it may take at most. SIGHUP reads keys and certificates again. `ready` is told the address, with the port that was
/// got for 0.
///
/// # Errors
/// [`Error::Listen`] if the address cannot be had, [`Error::Serve`] if the system fails.
pub fn serve<G: Generate>(
    service: Service<G>,
    address: SocketAddr,
    ready: impl FnOnce(SocketAddr),
) -> Result<(), Error> {
    let service = Arc::new(service);
    // The model needs the cores; passing tokens on needs little.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(64)
        .enable_all()
        .build()
        .map_err(Error::Serve)?;
    let (reloaded, served) = (Arc::clone(&service), Arc::clone(&service));
    let stop = signals::hear(service.limits.drain + SAVE, move || reloaded.reload()).map_err(Error::Serve)?;
    runtime.block_on(async {
        let listener = TcpListener::bind(address).await.map_err(|cause| Error::Listen { address, cause })?;
        ready(listener.local_addr().map_err(Error::Serve)?);
        serve_until(listener, service, stop).await;
        Ok(())
    })?;
    // A client's file may be on its way on a thread that waits.
    runtime.shutdown_background();
    if let Some(traces) = &served.traces {
        traces.close();
    }
    Ok(())
}

/// Serves on `listener` until `stop` comes, then finishes what runs as far as there is time. Connections that are open when
/// nothing has run for a moment are left to the runtime, which ends them with itself.
pub async fn serve_until<G: Generate>(
    listener: TcpListener,
    service: Arc<Service<G>>,
    stop: impl Future<Output = ()> + Send + 'static,
) {
    let (work, limits) = (service.work(), service.limits);
    let (stopping, stopped) = oneshot::channel();
    let (prefills, tls) = (Arc::clone(&service.prefills), service.tls.clone());
    let stop = async move {
        stop.await;
        prefills.close();
        let _ = stopping.send(());
    };
    let serving = connections::serve(listener, tls, router(Arc::clone(&service)), limits.connections, stop);
    let idle = async {
        if stopped.await.is_err() {
            std::future::pending::<()>().await;
        }
        let late = async {
            tokio::time::sleep(limits.drain).await;
            service.log.note("requests that still run are ended now");
            service.engine.stop();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = late => {}
            () = nothing_runs(&work) => {}
        }
    };
    let upkeep = async {
        loop {
            tokio::time::sleep(UPKEEP).await;
            service.metrics.upkeep();
        }
    };
    tokio::select! {
        () = serving => {}
        () = idle => {}
        () = upkeep => {}
    }
}

/// Waits until there has been no work for [`GRACE`].
async fn nothing_runs(work: &Arc<()>) {
    let mut since = Instant::now();
    while since.elapsed() < GRACE {
        // The service has one, and this function the other.
        if Arc::strong_count(work) > 2 {
            since = Instant::now();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
