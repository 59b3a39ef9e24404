//! One distributed trace a round, of the server and of the nodes that it asks.
//!
//! Both record spans when they are over: the server as an observer of the run ([`RoundSpans`]), a node as a transport
//! around its own ([`TaskSpans`]). The server names each task's span in its offer, and what the node does becomes part of
//! it. Where spans go ([`Tracer`]) is the only thing that knows OpenTelemetry, and needs the feature `otel`.

mod clock;
#[cfg(feature = "otel")]
mod collector;
mod ids;
mod rounds;
mod span;
mod tasks;

pub use ids::RunTrace;
pub use rounds::RoundSpans;
pub use span::{Span, SpanSink, TraceError, Tracer};
pub use tasks::TaskSpans;
