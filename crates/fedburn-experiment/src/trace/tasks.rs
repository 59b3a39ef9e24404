//! A node's part of a round's trace: what it does for each task.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use burn::tensor::backend::Backend;
use fedburn::core::{Asked, ClientFailure, ClientId, ClientTransport, Reply, RoundIndex, TransportError};
use fedburn::transport::quic::{NodeId, QuicClient, Taken};
use fedburn::transport::wire::TraceParent;

use super::clock::Clock;
use super::{Span, Tracer};

/// A node's transport that records the parts of each task that the server traces: `download` of what it needs, `train`
/// until there is an answer, `upload` until the server has it.
pub struct TaskSpans<B: Backend> {
    transport: QuicClient<B>,
    tracer: Option<Tracer>,
    node: NodeId,
    /// The tasks that are worked on, and since when.
    training: Mutex<BTreeMap<(ClientId, RoundIndex), (TraceParent, Clock)>>,
}

impl<B: Backend> TaskSpans<B> {
    /// Records what `node` does; nothing without a tracer.
    pub fn new(transport: QuicClient<B>, node: NodeId, tracer: Option<Tracer>) -> Self {
        Self { transport, tracer, node, training: Mutex::default() }
    }

    fn span(&self, task: TraceParent, name: &'static str, began: SystemTime, ended: SystemTime) -> Span {
        let span = Span::part(task, name, began, ended).with("fedburn.node", self.node.to_string());
        Span { remote: true, ..span }
    }

    fn training(&self) -> MutexGuard<'_, BTreeMap<(ClientId, RoundIndex), (TraceParent, Clock)>> {
        // Nothing panics while it holds the lock.
        self.training.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B: Backend> ClientTransport<B> for TaskSpans<B> {
    fn next(&self) -> Result<Option<Asked<B>>, TransportError> {
        let Some(Taken { asked, span, fetching }) = self.transport.take()? else { return Ok(None) };
        if let (Some(tracer), Some(task)) = (&self.tracer, span) {
            let clock = Clock::set();
            let taken = clock.began();
            tracer.record(self.span(task, "download", taken.checked_sub(fetching).unwrap_or(taken), taken));
            self.training().insert((asked.client, asked.request.round()), (task, clock));
        }
        Ok(Some(asked))
    }

    fn reply(
        &self,
        client: ClientId,
        round: RoundIndex,
        reply: Result<Reply<B>, ClientFailure>,
    ) -> Result<(), TransportError> {
        let task = match &reply {
            Ok(Reply::Evaluated(_)) => None,
            _ => self.training().remove(&(client, round)),
        };
        let (Some(tracer), Some((task, clock))) = (&self.tracer, task) else {
            return self.transport.reply(client, round, reply);
        };
        let (failure, answered) = (reply.as_ref().err().map(ClientFailure::to_string), clock.now());
        tracer.record(self.span(task, "train", clock.began(), answered).failed(failure));
        let sent = self.transport.reply(client, round, reply);
        let failure = sent.as_ref().err().map(TransportError::to_string);
        tracer.record(self.span(task, "upload", answered, clock.now()).failed(failure));
        sent
    }
}
