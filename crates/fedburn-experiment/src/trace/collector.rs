//! Spans on their way to a collector: OTLP over HTTP, in batches, from a thread of their own.

use std::env;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, Key, KeyValue};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{
    OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_EXPORTER_OTLP_TIMEOUT, OTEL_EXPORTER_OTLP_TRACES_ENDPOINT,
    OTEL_EXPORTER_OTLP_TRACES_TIMEOUT, RetryPolicy, SpanExporter, WithHttpConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchSpanProcessor, SpanData, SpanProcessor};
use serde_json::Value;

use super::{Span, SpanSink, TraceError};

/// A collector of traces, as the environment describes it. When it is dropped, it sends what is left.
#[derive(Debug)]
pub(super) struct Collector {
    batches: BatchSpanProcessor,
    /// How long the last spans may take.
    at_the_end: Duration,
    scope: InstrumentationScope,
}

impl Collector {
    /// The one that the environment names, told of spans of `service`; `None` where it names none.
    pub(super) fn from_environment(service: &'static str) -> Result<Option<Self>, TraceError> {
        let said = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        if said(OTEL_EXPORTER_OTLP_TRACES_ENDPOINT).or_else(|| said(OTEL_EXPORTER_OTLP_ENDPOINT)).is_none() {
            return Ok(None);
        }
        let patience = said(OTEL_EXPORTER_OTLP_TRACES_TIMEOUT).or_else(|| said(OTEL_EXPORTER_OTLP_TIMEOUT));
        let patience = patience.and_then(|millis| millis.parse().ok()).map_or(PATIENCE, Duration::from_millis);
        let exporter = SpanExporter::builder().with_http().with_http_client(Client::new(patience));
        // A collector that took a batch and was too slow to say so would get it twice.
        let exporter = exporter.with_retry_policy(RetryPolicy::disabled()).build();
        let exporter = exporter.map_err(|e| TraceError { reason: e.to_string() })?;
        let mut batches = BatchSpanProcessor::builder(exporter).build();
        batches.set_resource(&resource(service));
        let scope = InstrumentationScope::builder("fedburn").with_version(env!("CARGO_PKG_VERSION")).build();
        // The batch that may be under way, and what is left.
        Ok(Some(Self { batches, at_the_end: 2 * patience, scope }))
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
        // What the client could not send, it has told.
        if let Err(error) = self.batches.shutdown_with_timeout(self.at_the_end) {
            tracing::warn!(reason = error.to_string(), "trace.unsent");
        }
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
    fn new(patience: Duration) -> Self {
        let config = ureq::Agent::config_builder().timeout_global(Some(patience)).http_status_as_error(false);
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

/// How long a collector may take for a batch where the environment says nothing.
const PATIENCE: Duration = Duration::from_secs(5);
/// What a collector answers has at most so many bytes.
const LONGEST_ANSWER: u64 = 64 << 10;
