//! The server: its state, its routes, and how it stops.

use std::future::{Future, IntoFuture};
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{delete, get, post};
use axum::serve::ListenerExt;
use axum::{Json, Router};
use fathom_engine::{Owner, Sessions};
use fathom_weights::experts::Stats;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::chat::Chat;
use super::completions::completions;
use super::log::{Log, log};
use super::messages::{Messages, count_tokens};
use super::metrics::{Metrics, metrics};
use super::page;
use super::prefills::{self, Prefills};
use super::rates::{KeyLimits, Rates, Turn};
use super::reply::{now, reply};
use super::responses::Responses;
use super::sessions;
use super::status::status;
use super::tokens::{detokenize, tokenize};
use super::{ApiError, Generate, Keys, Served};
use crate::Error;
use crate::chat::Prompter;

/// What connections get to end by themselves once the server stops and nothing runs: one may have half a request to send,
/// or answers that nobody reads.
const GRACE: Duration = Duration::from_secs(5);

/// How much the server takes on.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Requests that run or wait at once; one more is told to come back later.
    pub requests: usize,
    /// The largest body, in bytes. A million tokens of English are about 4 MB.
    pub body: usize,
    /// How long a prompt is read on whose client has left.
    pub linger: Duration,
    /// What each key may ask for.
    pub each_key: KeyLimits,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { requests: 64, body: 64 << 20, linger: Duration::from_secs(300), each_key: KeyLimits::default() }
    }
}

/// A request's place among those that run or wait, until it is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    _turn: Turn,
    _place: OwnedSemaphorePermit,
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
    rates: Rates,
    /// Bytes of memory that were planned, if somebody planned.
    pub(super) planned: Option<u64>,
    slots: Arc<Semaphore>,
    /// Held by every request that is encoded, waits for the engine or runs.
    work: Arc<()>,
    started: u64,
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
        Ok(Slot { _turn: turn, _place: place })
    }

    pub(super) fn work(&self) -> Arc<()> {
        Arc::clone(&self.work)
    }

    fn card(&self, id: &str) -> Value {
        let context = self.served.context;
        json!({"id": id, "object": "model", "created": self.started, "owned_by": "deepseek-ai", "max_model_len": context})
    }
}

/// The routes of the API.
pub fn router<G: Generate>(service: Arc<Service<G>>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(reply::<G, Chat>))
        .route("/v1/responses", post(reply::<G, Responses>))
        .route("/v1/messages", post(reply::<G, Messages>))
        .route("/v1/messages/count_tokens", post(count_tokens::<G>))
        .route("/v1/completions", post(completions::<G>))
        .route("/tokenize", post(tokenize::<G>))
        .route("/detokenize", post(detokenize::<G>))
        .route("/v1/models", get(models::<G>))
        .route("/v1/models/{model}", get(model::<G>))
        .route("/v1/prefills", get(prefills::list::<G>))
        .route("/v1/prefills/{id}", delete(prefills::stop::<G>))
        .route("/v1/status", get(status::<G>))
        .route("/health", get(health::<G>))
        .route("/metrics", get(metrics::<G>))
        .merge(sessions::routes())
        .merge(page::routes())
        .fallback(|| async { ApiError::other(StatusCode::NOT_FOUND, "not_found", "There is nothing at this address.") })
        .method_not_allowed_fallback(|| async {
            let message = "This address does not take this method.";
            ApiError::other(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
        })
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&service), log::<G>))
        .with_state(service)
}

async fn models<G: Generate>(
    State(service): State<Arc<Service<G>>>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    service.keys.owner(&headers)?;
    let names = std::iter::once(&service.served.model).chain(&service.served.aliases);
    let data: Vec<Value> = names.map(|name| service.card(name)).collect();
    Ok(Json(json!({"object": "list", "data": data})))
}

async fn model<G: Generate>(
    State(service): State<Arc<Service<G>>>,
    headers: HeaderMap,
    model: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    service.keys.owner(&headers)?;
    let Path(model) = model.map_err(|error| ApiError::bad(Some("model"), format!("{}.", error.body_text())))?;
    service.served.check_name(&model)?;
    Ok(Json(service.card(&model)))
}

async fn health<G: Generate>(State(service): State<Arc<Service<G>>>) -> Json<Value> {
    let (active, limit) = service.places();
    let requests = json!({"active": active, "limit": limit});
    Json(json!({
        "status": "ok",
        "model": service.served.model,
        "context": service.served.context,
        "requests": requests,
    }))
}

/// Listens on `address` and serves until Ctrl-C or SIGTERM; then takes no more connections, finishes what it has, and
/// returns. A second signal ends the process at once. `ready` is told the address, with the port that was got for 0.
///
/// # Errors
/// [`Error::Listen`] if the address cannot be had, [`Error::Serve`] if the system fails later.
pub fn serve<G: Generate>(
    service: Service<G>,
    address: SocketAddr,
    ready: impl FnOnce(SocketAddr),
) -> Result<(), Error> {
    // The model needs the cores; passing tokens on needs little.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(64)
        .enable_all()
        .build()
        .map_err(Error::Serve)?;
    runtime.block_on(async {
        let listener = TcpListener::bind(address).await.map_err(|cause| Error::Listen { address, cause })?;
        ready(listener.local_addr().map_err(Error::Serve)?);
        serve_until(listener, Arc::new(service), stop_signal()).await
    })
}

/// Serves on `listener` until `stop` comes, then finishes what runs. Connections that are open when nothing has run for
/// [`GRACE`] are left to the runtime, which ends them with itself.
///
/// # Errors
/// [`Error::Serve`] if the system fails.
pub async fn serve_until<G: Generate>(
    listener: TcpListener,
    service: Arc<Service<G>>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> Result<(), Error> {
    let (work, prefills) = (service.work(), Arc::clone(&service.prefills));
    let (stopping, stopped) = oneshot::channel();
    // A token goes out when it is there, not when the one before it has been acknowledged: up to 40 ms later.
    let listener = listener.tap_io(|connection| {
        // Where the system refuses, it is only slower.
        let _ = connection.set_nodelay(true);
    });
    let serving = axum::serve(listener, router(service)).with_graceful_shutdown(async move {
        stop.await;
        prefills.close();
        let _ = stopping.send(());
    });
    let idle = async {
        if stopped.await.is_err() {
            std::future::pending::<()>().await;
        }
        nothing_runs(&work).await;
    };
    tokio::select! {
        ended = serving.into_future() => ended.map_err(Error::Serve),
        () = idle => Ok(()),
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

/// Waits for the first signal to stop, and leaves someone behind to wait for the second.
async fn stop_signal() {
    signalled().await;
    // Nobody may be there to read it, which is no reason to end.
    let _ = writeln!(std::io::stderr(), "stopping: requests that run are finished first; Ctrl-C again ends at once");
    tokio::spawn(async {
        signalled().await;
        std::process::exit(130);
    });
}

/// Waits for Ctrl-C or SIGTERM; forever if the system cannot tell.
async fn signalled() {
    let interrupt = async {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    #[cfg(unix)]
    let terminate = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(_) => std::future::pending().await,
        }
    };
    #[cfg(not(unix))]
    let terminate = std::future::pending::<()>();
    tokio::select! {
        () = interrupt => {}
        () = terminate => {}
    }
}
