//! Spans, and where they go.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::SystemTime;

use fedburn::transport::wire::TraceParent;
use serde_json::Value;
use thiserror::Error;

use super::ids::part;

/// Something that took time and is over.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// Its trace, and which span of it.
    pub id: TraceParent,
    /// The span that it is a part of; `None` for a round.
    pub parent: Option<[u8; 8]>,
    /// Whether that is another process's.
    pub remote: bool,
    /// What it is.
    pub name: &'static str,
    /// When it began.
    pub began: SystemTime,
    /// When it was over.
    pub ended: SystemTime,
    /// Numbers and texts that tell more, by name.
    pub attributes: Vec<(&'static str, Value)>,
    /// Why it did not come to what it was for.
    pub failure: Option<String>,
}

impl Span {
    /// A span that is no part of another.
    pub(super) fn new(id: TraceParent, name: &'static str, began: SystemTime, ended: SystemTime) -> Self {
        Self { id, parent: None, remote: false, name, began, ended, attributes: Vec::new(), failure: None }
    }

    /// A part of `parent` that nobody else refers to.
    pub(super) fn part(parent: TraceParent, name: &'static str, began: SystemTime, ended: SystemTime) -> Self {
        Self::new(part(parent, name, began), name, began, ended).within(parent)
    }

    #[must_use]
    pub(super) fn within(self, parent: TraceParent) -> Self {
        Self { parent: Some(parent.span), ..self }
    }

    #[must_use]
    pub(super) fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.attributes.push((name, value.into()));
        self
    }

    #[must_use]
    pub(super) fn failed(self, failure: impl Into<Option<String>>) -> Self {
        Self { failure: failure.into(), ..self }
    }
}

/// Takes spans that are over.
pub trait SpanSink: Debug + Send + Sync {
    /// Takes one. Never waits: what there is no room for is dropped.
    fn take(&self, span: Span);
}

/// Where the spans of a process go. Clones lead to the same place; with the last one, what is left is sent.
#[derive(Clone, Debug)]
pub struct Tracer(Arc<dyn SpanSink>);

/// The collector cannot be sent to.
#[derive(Debug, Error)]
#[error("traces: {reason}; check OTEL_EXPORTER_OTLP_ENDPOINT, or run without it")]
pub struct TraceError {
    /// Why.
    pub reason: String,
}

impl Tracer {
    /// To a place of the caller's own.
    pub fn new(sink: impl SpanSink + 'static) -> Self {
        Self(Arc::new(sink))
    }

    /// To the collector that the environment names (`OTEL_EXPORTER_OTLP_ENDPOINT`), in the name of `service`. `None` where
    /// it names none, and always without the feature `otel`.
    ///
    /// # Errors
    /// [`TraceError`] where a collector is named by what is no address.
    #[cfg_attr(not(feature = "otel"), expect(unused_variables))]
    pub fn from_environment(service: &'static str) -> Result<Option<Self>, TraceError> {
        #[cfg(feature = "otel")]
        let tracer = super::collector::Collector::from_environment(service)?.map(Self::new);
        #[cfg(not(feature = "otel"))]
        let tracer = None;
        Ok(tracer)
    }

    /// Records a span that is over.
    pub fn record(&self, span: Span) {
        self.0.take(span);
    }
}
