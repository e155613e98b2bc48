//! `/metrics`, in Prometheus' text format. No text of anybody's, and no names.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use fathom_engine::{Counts, Event};
use fathom_kernels::Holding;
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Level, Metadata, Recorder, SharedString, Unit};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use super::experts::experts;
use super::{Generate, Service};
use crate::ui::{peak_rss, rss};

/// Bounds of histograms, in seconds: a token in a millisecond, a prompt in an hour.
const SECONDS: [f64; 20] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0,
    1800.0, 3600.0,
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
        Metrics { handle: recorder.handle(), recorder, queue, first_token, between_tokens, request }
    }

    /// For a request that is handed to the engine now.
    pub(super) fn watch(&self) -> Watch {
        let now = Instant::now();
        let (queue, first_token) = (self.queue.clone(), self.first_token.clone());
        let (between_tokens, request) = (self.between_tokens.clone(), self.request.clone());
        Watch { start: now, last: None, began: false, queue, first_token, between_tokens, request }
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
            ("fathom_rss_peak_bytes", "The most memory of the process at once.", peak_rss()),
            ("fathom_rss_planned_bytes", "The memory that was planned before the start.", planned),
        ] {
            if let Some(bytes) = bytes {
                self.gauge(name, about, Vec::new()).set(bytes as f64);
            }
        }
    }
}

/// The times of one request.
pub(super) struct Watch {
    start: Instant,
    last: Option<Instant>,
    began: bool,
    queue: Histogram,
    first_token: Histogram,
    between_tokens: Histogram,
    request: Histogram,
}

impl Watch {
    /// Notes when an event came.
    pub(super) fn see(&mut self, event: &Event) {
        match event {
            Event::Prefill { .. } if !self.began => {
                self.began = true;
                self.queue.record(self.start.elapsed());
            }
            Event::Token { .. } => {
                let now = Instant::now();
                match self.last.replace(now) {
                    Some(last) => self.between_tokens.record(now - last),
                    None => self.first_token.record(now - self.start),
                }
            }
            Event::Done { .. } | Event::Failed(_) => self.request.record(self.start.elapsed()),
            _ => {}
        }
    }
}

/// All numbers, as they are now.
pub(super) async fn metrics<G: Generate>(State(service): State<Arc<Service<G>>>) -> Response {
    let metrics = &service.metrics;
    metrics.count(service.engine.counts());
    metrics.load(service.engine.load());
    metrics.memory(&service.engine.memory(), service.planned);
    let kind = (header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8");
    let experts = service.experts.as_ref().map_or_else(String::new, |stats| experts(&stats()));
    ([kind], metrics.handle.render() + &experts).into_response()
}
