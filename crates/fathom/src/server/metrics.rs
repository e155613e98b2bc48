//! `/metrics`, in Prometheus' text format. No text of anybody's, and no names.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime};

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use fathom_engine::{Counts, Event, Finish};
use fathom_kernels::Holding;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder, SharedString, Unit};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use super::experts::experts;
use super::openapi::Foreign;
use super::trace::{Phases, Times};
use super::{Generate, Service};
use crate::ui::{anonymous_rss, peak_rss, process_io, rss};

/// Bounds of histograms, in seconds: a token in a millisecond, a prompt in an hour; closer around what limits of the time between
/// tokens are set to, so that it can be seen whether they hold.
const SECONDS: [f64; 26] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0,
    30.0, 60.0, 120.0, 300.0, 900.0, 1800.0, 3600.0,
];
const METADATA: Metadata<'static> = Metadata::new("fathom", Level::INFO, None);

/// What is measured.
pub(super) struct Metrics {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    queue: Histogram,
    first_token: Histogram,
    between_tokens: Histogram,
    request: Histogram,
    pub(super) passed: Arc<Passed>,
}

/// Tokens that have passed since the start, those of requests under way too.
#[derive(Debug, Default)]
pub(super) struct Passed {
    /// Of prompts, without those that were there already.
    pub read: AtomicU64,
    /// Of prompts, those that were there already.
    pub reused: AtomicU64,
    /// Of answers.
    pub generated: AtomicU64,
}

impl Metrics {
    pub(super) fn new() -> Metrics {
        let builder = PrometheusBuilder::new().set_buckets(&SECONDS);
        let recorder = builder.expect("there are bounds").build_recorder();
        let histogram = |name: &'static str, about: &'static str| {
            recorder.describe_histogram(
                KeyName::from_const_str(name),
                Some(Unit::Seconds),
                SharedString::const_str(about),
            );
            recorder.register_histogram(&Key::from_static_name(name), &METADATA)
        };
        let queue = histogram("fathom_queue_seconds", "From a request to the start of its prompt.");
        let first_token = histogram("fathom_time_to_first_token_seconds", "From a request to its first token.");
        let between_tokens = histogram("fathom_inter_token_seconds", "From one token of a request to its next.");
        let request = histogram("fathom_request_seconds", "From a request to its end.");
        let passed = Arc::default();
        Metrics { handle: recorder.handle(), recorder, queue, first_token, between_tokens, request, passed }
    }

    /// For a request that is handed to the engine now.
    pub(super) fn watch(&self, phases: Option<Phases>) -> Watch {
        let (queue, first_token) = (self.queue.clone(), self.first_token.clone());
        let (between_tokens, request) = (self.between_tokens.clone(), self.request.clone());
        let (start, since) = (Instant::now(), SystemTime::now());
        let (began, first, last, read, tokens, whole) = (None, None, None, None, 0, false);
        let passed = Arc::clone(&self.passed);
        Watch {
            start,
            since,
            began,
            first,
            last,
            read,
            tokens,
            whole,
            queue,
            first_token,
            between_tokens,
            request,
            passed,
            phases,
        }
    }

    /// Sums up what was measured; until then each measurement takes memory of its own.
    pub(super) fn upkeep(&self) {
        self.handle.run_upkeep();
    }

    fn gauge(&self, name: &'static str, about: &'static str, labels: Vec<Label>) -> Gauge {
        self.recorder.describe_gauge(KeyName::from_const_str(name), None, SharedString::const_str(about));
        self.recorder.register_gauge(&Key::from_parts(name, labels), &METADATA)
    }

    fn counter(&self, name: &'static str, about: &'static str, labels: Vec<Label>) -> Counter {
        self.recorder.describe_counter(KeyName::from_const_str(name), None, SharedString::const_str(about));
        self.recorder.register_counter(&Key::from_parts(name, labels), &METADATA)
    }

    /// Counts a reply of the server's.
    pub(super) fn replied(&self, route: &str, status: u16) {
        let labels = vec![Label::new("route", route.to_owned()), Label::new("status", status.to_string())];
        self.counter("fathom_http_replies_total", "Replies, by route and status.", labels).increment(1);
    }

    fn count(&self, counts: Counts) {
        let Counts { requests, prompt_tokens, reused_tokens, generated_tokens, missed, .. } = counts;
        for (name, about, n) in [
            ("fathom_requests_total", "Requests that came to their end.", requests),
            ("fathom_prompt_tokens_total", "Tokens of their prompts.", prompt_tokens),
            ("fathom_reused_tokens_total", "Of those, the ones that were not read again.", reused_tokens),
            ("fathom_generated_tokens_total", "Tokens generated.", generated_tokens),
        ] {
            self.counter(name, about, Vec::new()).absolute(n);
        }
        let about = "Requests that might have reused more, by the reason why they did not.";
        for (reason, n) in missed {
            self.counter("fathom_prefix_missed_total", about, vec![Label::from_static_parts("reason", reason)])
                .absolute(n);
        }
    }

    /// What the process had drives do, where the system tells.
    fn drives(&self) {
        let (read, written) = process_io();
        for (name, about, bytes) in [
            ("fathom_drive_read_bytes_total", "Bytes this process had drives read.", read),
            ("fathom_drive_written_bytes_total", "Bytes this process had drives write.", written),
        ] {
            if let Some(bytes) = bytes {
                self.counter(name, about, Vec::new()).absolute(bytes);
            }
        }
    }

    /// What the store of sessions holds, once that was counted.
    fn stored(&self, (held, quota): (Option<u64>, u64)) {
        if let Some(held) = held {
            self.gauge("fathom_store_bytes", "Bytes that the store of sessions holds.", Vec::new()).set(held as f64);
        }
        self.gauge("fathom_store_limit_bytes", "The most that it may hold.", Vec::new()).set(quota as f64);
    }

    /// States in memory that requests go on from.
    fn kept(&self, (states, tokens): (usize, usize)) {
        let about = "States in memory that requests can go on from.";
        self.gauge("fathom_states_kept", about, Vec::new()).set(states as f64);
        let about = "Tokens that those have seen, each counted in every state that has it.";
        self.gauge("fathom_states_kept_tokens", about, Vec::new()).set(tokens as f64);
    }

    fn load(&self, (waiting, running): (usize, usize)) {
        self.gauge("fathom_requests_waiting", "Requests that wait for a place.", Vec::new()).set(waiting as f64);
        self.gauge("fathom_requests_running", "Requests that run.", Vec::new()).set(running as f64);
    }

    fn memory(&self, holdings: &[Holding], planned: Option<u64>) {
        for holding in holdings.iter().filter(|holding| holding.limit < u64::MAX) {
            let of = || vec![Label::new("share", holding.share.to_string())];
            self.gauge("fathom_memory_bytes", "Bytes held, by what they are for.", of()).set(holding.held as f64);
            self.gauge("fathom_memory_peak_bytes", "The most held at once.", of()).set(holding.peak as f64);
            self.gauge("fathom_memory_limit_bytes", "The most that may be held.", of()).set(holding.limit as f64);
        }
        for (name, about, bytes) in [
            ("fathom_rss_bytes", "Memory of the process.", rss()),
            ("fathom_rss_anonymous_bytes", "Memory of the process that is no mapped file's.", anonymous_rss()),
            ("fathom_rss_peak_bytes", "The most memory of the process at once.", peak_rss()),
            ("fathom_rss_planned_bytes", "The memory that was planned before the start.", planned),
        ] {
            if let Some(bytes) = bytes {
                self.gauge(name, about, Vec::new()).set(bytes as f64);
            }
        }
    }
}

/// The times and tokens of one request.
pub(super) struct Watch {
    start: Instant,
    /// The same by the calendar.
    since: SystemTime,
    began: Option<Instant>,
    first: Option<Instant>,
    last: Option<Instant>,
    /// How much of its prompt is known to be read, once that begins.
    read: Option<usize>,
    tokens: u64,
    whole: bool,
    queue: Histogram,
    first_token: Histogram,
    between_tokens: Histogram,
    request: Histogram,
    passed: Arc<Passed>,
    phases: Option<Phases>,
}

impl Watch {
    /// Notes that its prompt is being read.
    fn begin(&mut self) {
        if self.began.is_none() {
            self.began = Some(Instant::now());
            self.queue.record(self.start.elapsed());
        }
    }

    /// Notes an event, and when it came.
    pub(super) fn see(&mut self, event: &Event) {
        match event {
            // Another reads it, and counts what it reads.
            Event::Follows { .. } => self.begin(),
            &Event::Prefill { done, reused, .. } => {
                self.begin();
                // What it goes on from may grow while it waits for another that reads the same.
                let before = self.read.unwrap_or(0).max(reused);
                self.passed.read.fetch_add(done.saturating_sub(before) as u64, Ordering::Relaxed);
                self.read = Some(done.max(before));
            }
            Event::Token { .. } => {
                self.passed.generated.fetch_add(1, Ordering::Relaxed);
                let now = Instant::now();
                self.tokens += 1;
                match self.last.replace(now) {
                    Some(last) => self.between_tokens.record(now - last),
                    None => {
                        self.first = Some(now);
                        self.first_token.record(now - self.start);
                    }
                }
            }
            Event::Done { reason, usage } => {
                self.whole = *reason != Finish::Cancelled;
                self.passed.reused.fetch_add(usage.reused_tokens as u64, Ordering::Relaxed);
                self.request.record(self.start.elapsed());
            }
            Event::Failed(_) => self.request.record(self.start.elapsed()),
            Event::Queued { .. } | Event::Read { .. } => {}
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let Some(phases) = self.phases.take() else { return };
        let at = |instant: Instant| self.since + (instant - self.start);
        phases.tell(Times {
            start: self.since,
            began: self.began.map(at),
            first: self.first.map(at),
            end: at(Instant::now()),
            tokens: self.tokens,
            whole: self.whole,
        });
    }
}

/// Numbers for Prometheus; asks for no key.
#[utoipa::path(get, path = "/metrics", security(()), responses((status = 200, body = String, content_type = "text/plain"), Foreign))]
pub(super) async fn metrics<G: Generate>(State(service): State<Arc<Service<G>>>) -> Response {
    let metrics = &service.metrics;
    metrics.count(service.engine.counts());
    metrics.load(service.engine.load());
    metrics.kept(service.engine.kept());
    metrics.drives();
    if let Some(bytes) = service.sessions.as_ref().and_then(|sessions| sessions.stored_bytes()) {
        metrics.stored(bytes);
    }
    metrics.memory(&service.engine.memory(), service.planned);
    let kind = (header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8");
    let experts = service.experts.as_ref().map_or_else(String::new, |stats| experts(&stats()));
    ([kind], metrics.handle.render() + &experts).into_response()
}
