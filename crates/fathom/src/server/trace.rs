//! Spans of requests and of their phases, sent to a collector by OTLP, where the program was built with it. Nothing of what was
//! said is in them.

use std::time::SystemTime;

#[cfg(feature = "otlp")]
pub use with::Traces;
#[cfg(not(feature = "otlp"))]
pub use without::Traces;

#[cfg(feature = "otlp")]
pub(super) use with::Phases;
#[cfg(not(feature = "otlp"))]
pub(super) use without::Phases;

/// When a request came to what.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(feature = "otlp"), expect(dead_code, reason = "there is nobody to tell"))]
pub(super) struct Times {
    pub start: SystemTime,
    /// Its prompt began to be read.
    pub began: Option<SystemTime>,
    /// Its first token came.
    pub first: Option<SystemTime>,
    pub end: SystemTime,
    pub tokens: u64,
    /// Whether it came to its end, and not to a failure or to where its client left.
    pub whole: bool,
}

#[cfg(feature = "otlp")]
mod with {
    use std::fmt::Display;
    use std::time::Duration;

    use axum::http::{HeaderMap, Method};
    use opentelemetry::trace::{
        SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState, Tracer, TracerProvider,
    };
    use opentelemetry::{Context, KeyValue};
    use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
    use opentelemetry_sdk::Resource;
    use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};

    use super::Times;
    use crate::Error;

    /// How long a collector may take for what it is sent.
    const PATIENCE: Duration = Duration::from_secs(10);

    tokio::task_local! {
        /// The span of the request that a task answers.
        static REQUEST: Context;
    }

    /// Where spans go.
    pub struct Traces {
        provider: SdkTracerProvider,
        tracer: SdkTracer,
    }

    impl Traces {
        /// Sends spans to a collector, such as `http://localhost:4318`, from a thread of its own.
        ///
        /// # Errors
        /// [`Error::Traces`]: the address is none, or the system has no thread to give.
        pub fn open(url: &str) -> Result<Traces, Error> {
            let wrong = |e: &dyn Display| Error::Traces { url: url.to_owned(), problem: e.to_string() };
            // Another part of the program may have chosen the same.
            let _ = rustls::crypto::ring::default_provider().install_default();
            let client = reqwest::blocking::Client::builder().timeout(PATIENCE).build().map_err(|e| wrong(&e))?;
            let parsed = reqwest::Url::parse(url).map_err(|e| wrong(&e))?;
            if !matches!(parsed.scheme(), "http" | "https") {
                return Err(wrong(&"it begins with http:// or https://"));
            }
            let address = match parsed.path() {
                "/" | "" => format!("{}/v1/traces", url.trim_end_matches('/')),
                _ => url.to_owned(),
            };
            let exporter = SpanExporter::builder()
                .with_http()
                .with_protocol(Protocol::HttpBinary)
                .with_http_client(client)
                .with_endpoint(address)
                .with_timeout(PATIENCE)
                .build()
                .map_err(|e| wrong(&e))?;
            let resource = Resource::builder().with_service_name("fathom");
            let resource = resource.with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))).build();
            let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
            let tracer = provider.tracer("fathom");
            Ok(Traces { provider, tracer })
        }

        /// The span of a request until its reply begins; part of its client's, if that says so.
        pub(in crate::server) fn begin(&self, method: &Method, route: &str, id: &str, headers: &HeaderMap) -> Reply {
            let parent = headers.get("traceparent").and_then(|value| parent(value.to_str().ok()?));
            let parent = parent.map_or_else(Context::new, |span| Context::new().with_remote_span_context(span));
            let attributes = vec![
                KeyValue::new("http.request.method", method.to_string()),
                KeyValue::new("http.route", route.to_owned()),
                KeyValue::new("fathom.request_id", id.to_owned()),
            ];
            let span = self.tracer.span_builder(format!("{method} {route}")).with_kind(SpanKind::Server);
            let span = self.tracer.build_with_context(span.with_attributes(attributes), &parent);
            Reply(parent.with_span(span))
        }

        /// For the phases of the request that this task answers, if it does.
        pub(in crate::server) fn phases(&self) -> Option<Phases> {
            let request = REQUEST.try_with(Context::clone).ok()?;
            Some(Phases { tracer: self.tracer.clone(), request })
        }

        /// Sends what was not sent yet.
        pub(in crate::server) fn close(&self) {
            // A collector that is not there is no reason not to end.
            let _ = self.provider.shutdown();
        }
    }

    /// The span of a request.
    pub(in crate::server) struct Reply(Context);

    impl Reply {
        /// Answers the request.
        pub(in crate::server) async fn around<T>(&self, answer: impl Future<Output = T>) -> T {
            REQUEST.scope(self.0.clone(), answer).await
        }

        pub(in crate::server) fn end(self, status: u16) {
            let span = self.0.span();
            span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
            if status >= 500 {
                span.set_status(Status::error(""));
            }
            span.end();
        }
    }

    /// What becomes of a request in the engine.
    pub(in crate::server) struct Phases {
        tracer: SdkTracer,
        request: Context,
    }

    impl Phases {
        pub(in crate::server) fn tell(self, times: Times) {
            let Times { start, began, first, end, tokens, whole } = times;
            let phases = [("queue", Some(start), began), ("prefill", began, first), ("decode", first, None)];
            for (name, from, to) in phases {
                let Some(from) = from else { continue };
                let mut span = self.tracer.span_builder(name).with_start_time(from);
                if name == "decode" {
                    span = span.with_attributes(vec![KeyValue::new("fathom.tokens", tokens as i64)]);
                }
                let mut span = self.tracer.build_with_context(span, &self.request);
                if to.is_none() && !whole {
                    opentelemetry::trace::Span::set_status(&mut span, Status::error("it did not come to its end"));
                }
                opentelemetry::trace::Span::end_with_timestamp(&mut span, to.unwrap_or(end));
            }
        }
    }

    /// A `traceparent`: version, trace, span and flags in hex.
    fn parent(text: &str) -> Option<SpanContext> {
        let mut parts = text.split('-');
        let (_version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let flags = TraceFlags::new(u8::from_str_radix(flags, 16).ok()?);
        let (trace, span) = (TraceId::from_hex(trace).ok()?, SpanId::from_hex(span).ok()?);
        let context = SpanContext::new(trace, span, flags, true, TraceState::NONE);
        context.is_valid().then_some(context)
    }
}

#[cfg(not(feature = "otlp"))]
mod without {
    use axum::http::{HeaderMap, Method};

    use super::Times;
    use crate::Error;

    /// None: this program was built without them.
    pub enum Traces {}

    impl Traces {
        /// Says so.
        ///
        /// # Errors
        /// [`Error::Traces`], always.
        pub fn open(url: &str) -> Result<Traces, Error> {
            let problem = "this program was built without traces; build it with --features otlp".to_owned();
            Err(Error::Traces { url: url.to_owned(), problem })
        }

        pub(in crate::server) fn begin(&self, _: &Method, _: &str, _: &str, _: &HeaderMap) -> Reply {
            match *self {}
        }

        pub(in crate::server) fn phases(&self) -> Option<Phases> {
            match *self {}
        }

        pub(in crate::server) fn close(&self) {
            match *self {}
        }
    }

    pub(in crate::server) enum Reply {}

    impl Reply {
        pub(in crate::server) async fn around<T>(&self, _: impl Future<Output = T>) -> T {
            match *self {}
        }

        pub(in crate::server) fn end(self, _: u16) {
            match self {}
        }
    }

    pub(in crate::server) enum Phases {}

    impl Phases {
        pub(in crate::server) fn tell(self, _: Times) {
            match self {}
        }
    }
}
