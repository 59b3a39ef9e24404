//! Spans on their way to a collector: OTLP over HTTP, in batches, from a thread of their own.

use std::env;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, Key, KeyValue};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchSpanProcessor, SpanData, SpanProcessor};
use serde_json::Value;

use super::{Span, SpanSink, TraceError};

/// A collector of traces, as the environment describes it. When it is dropped, it sends what is left, for as long as
/// [`PATIENCE`].
#[derive(Debug)]
pub(super) struct Collector {
    batches: BatchSpanProcessor,
    scope: InstrumentationScope,
}

impl Collector {
    /// The one that the environment names, told of spans of `service`; `None` where it names none.
    pub(super) fn from_environment(service: &'static str) -> Result<Option<Self>, TraceError> {
        let is = |name: &str| env::var(name).is_ok_and(|value| !value.is_empty());
        if !(is("OTEL_EXPORTER_OTLP_ENDPOINT") || is("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")) {
            return Ok(None);
        }
        let exporter = SpanExporter::builder().with_http().with_http_client(Client::new()).build();
        let exporter = exporter.map_err(|e| TraceError { reason: e.to_string() })?;
        let mut batches = BatchSpanProcessor::builder(exporter).build();
        batches.set_resource(&resource(service));
        let scope = InstrumentationScope::builder("fedburn").with_version(env!("CARGO_PKG_VERSION")).build();
        Ok(Some(Self { batches, scope }))
    }
}

impl SpanSink for Collector {
    fn take(&self, span: Span) {
        let (trace, id) = (TraceId::from_bytes(span.id.trace), SpanId::from_bytes(span.id.span));
        self.batches.on_end(SpanData {
            span_context: SpanContext::new(trace, id, TraceFlags::SAMPLED, false, TraceState::NONE),
            parent_span_id: span.parent.map_or(SpanId::INVALID, SpanId::from_bytes),
            parent_span_is_remote: span.remote,
            span_kind: SpanKind::Internal,
            name: span.name.into(),
            start_time: span.began,
            end_time: span.ended,
            attributes: span.attributes.into_iter().map(|(name, value)| KeyValue::new(name, of(value))).collect(),
            dropped_attributes_count: 0,
            events: Default::default(),
            links: Default::default(),
            status: span.failure.map_or(Status::Unset, Status::error),
            instrumentation_scope: self.scope.clone(),
        });
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        // The client has told already where the collector is away.
        let _ = self.batches.shutdown_with_timeout(PATIENCE);
    }
}

/// Who tells: as the environment says, else the service.
fn resource(service: &'static str) -> Resource {
    let name = Key::from_static_str("service.name");
    let said = Resource::builder().build();
    let is_said = said.get(&name).is_some_and(|name| !name.as_str().starts_with("unknown_service"));
    let builder = Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    if is_said { builder.build() } else { builder.with_service_name(service).build() }
}

fn of(value: Value) -> opentelemetry::Value {
    match value.as_i64() {
        Some(number) => number.into(),
        None => value.as_str().map_or_else(|| value.to_string(), str::to_owned).into(),
    }
}

/// Sends to the collector, and says when it cannot.
#[derive(Debug)]
struct Client {
    agent: ureq::Agent,
    /// Whether the last batch was not taken: an outage is told once.
    is_away: AtomicBool,
}

impl Client {
    fn new() -> Self {
        let config = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).http_status_as_error(false);
        Self { agent: config.build().into(), is_away: AtomicBool::new(false) }
    }

    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, ureq::Error> {
        let (head, body) = self.agent.run(request.map(|body| body.to_vec()))?.into_parts();
        let body = body.into_with_config().limit(LONGEST_ANSWER).read_to_vec()?;
        Ok(Response::from_parts(head, body.into()))
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let answer = self.send(request);
        let reason = match &answer {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(answer.status().to_string()),
            Err(error) => Some(error.to_string()),
        };
        let was_away = self.is_away.swap(reason.is_some(), Ordering::Relaxed);
        if let (Some(reason), false) = (reason, was_away) {
            tracing::warn!(reason, "trace.unsent");
        }
        Ok(answer?)
    }
}

/// How long a collector may take for a batch, and for what is left at the end.
const PATIENCE: Duration = Duration::from_secs(5);
/// What a collector answers has at most so many bytes.
const LONGEST_ANSWER: u64 = 64 << 10;
