//! What a server does round by round, whoever waits for it and on whatever thread.

use std::sync::Arc;
use std::time::Duration;

use burn::tensor::backend::Backend;
use fedburn_core::{ClientId, ClientInfo, Request, RoundIndex, Schemas, StateError, TransportError};
use tokio::time::Instant;

use super::super::surroundings::Surroundings;
use super::super::{Plan, QuicConfig, QuicError, ServerIdentity};
use super::exchange::Outcomes;
use super::participation::Participation;
use super::spool::Spool;
use super::state::{Parts, Shared};
use super::{RunFiles, TaskSpans};
use crate::wire::{Hash, ServerLimits, VectorPayload};

/// A server's rounds: what it asks, and what counted.
pub(in super::super) struct Rounds<B: Backend> {
    shared: Arc<Shared>,
    schemas: Schemas,
    device: B::Device,
    participation: Participation,
    spans: Option<Box<TaskSpans>>,
}

/// What a server is started with.
pub(in super::super) struct Setup {
    pub(in super::super) config: QuicConfig,
    pub(in super::super) identity: ServerIdentity,
    pub(in super::super) surroundings: Surroundings,
    pub(in super::super) plan: Plan,
    pub(in super::super) files: RunFiles,
    /// Another number than at the last start.
    pub(in super::super) epoch: u64,
    pub(in super::super) limits: ServerLimits,
}

impl<B: Backend> Rounds<B> {
    pub(in super::super) fn new(setup: Setup, schemas: Schemas, device: B::Device) -> Result<Self, QuicError> {
        let Setup { config, identity, surroundings, plan, files, epoch, limits } = setup;
        config.check()?;
        VectorPayload::new(schemas.model().num_values(), 1, limits.chunk_len)
            .map_err(|e| QuicError::Unusable { what: "model", reason: e.to_string() })?;
        let plan_hash = Hash(plan.hash);
        let mark = surroundings.random()?;
        let participation = Participation::open(files.participation, plan_hash, files.resumed)?;
        let shared = Arc::new(Shared::new(Parts {
            plan: Arc::new(plan.encode()?),
            plan_hash,
            schemas: schemas.clone(),
            epoch,
            limits,
            config,
            identity,
            surroundings,
            spool: Spool::open(files.answers, plan_hash, mark)?,
            keeps_answers: files.keep_answers,
        }));
        Ok(Self { shared, schemas, device, participation, spans: None })
    }

    /// Says with each training task which span it is.
    pub(super) fn trace(&mut self, spans: Box<TaskSpans>) {
        self.spans = Some(spans);
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Every client that may be asked, sorted.
    pub(in super::super) fn clients(&self) -> Arc<[ClientInfo]> {
        self.shared.clients()
    }

    /// Waits until there are so many clients; tells their number at once and whenever it changes. `false` where they
    /// did not come before the deadline.
    pub(in super::super) async fn wait_for(
        &self,
        clients: usize,
        deadline: Option<Instant>,
        seen: impl FnMut(usize),
    ) -> bool {
        self.shared.wait_for(clients, deadline, seen).await
    }

    /// Waits until the clients that may be asked are `enough`, at most so long.
    pub(in super::super) async fn wait_until(
        &self,
        enough: impl Fn(&[ClientInfo]) -> bool,
        timeout: Duration,
    ) -> Result<(), TransportError> {
        self.shared.wait_until(enough, Instant::now().checked_add(timeout)).await;
        self.check()
    }

    /// Says goodbye to every node, also to those who come later. Nothing is said, and `false` given, where the server could
    /// not keep an answer: nodes wait for its return.
    pub(in super::super) fn say_goodbye(&self) -> bool {
        self.shared.finish();
        let well = self.shared.failure().is_none_or(|failure| failure.wanted);
        if well {
            self.shared.say_goodbye("the run has ended");
        }
        well
    }

    /// Offers the requests to the nodes of their clients. What an earlier exchange left is over.
    pub(in super::super) fn exchange(
        &mut self,
        requests: Vec<(ClientId, Request<B>)>,
        timeout: Duration,
    ) -> Outcomes<'_, B> {
        let Self { shared, schemas, device, participation, spans } = self;
        Outcomes::begin(shared, schemas, device, participation, spans.as_deref(), requests, timeout)
    }

    /// Keeps whose updates counted.
    pub(in super::super) fn close_round(
        &mut self,
        round: RoundIndex,
        included: &[ClientId],
    ) -> Result<(), TransportError> {
        self.check()?;
        let began = Instant::now();
        self.participation.closed(round, included).map_err(|e| state_error(e.to_string()))?;
        self.shared.counters.recorded(began.elapsed());
        Ok(())
    }

    /// Whether the server can go on.
    fn check(&self) -> Result<(), TransportError> {
        self.shared.failure().map_or(Ok(()), |failure| {
            Err(match failure.wanted {
                true => TransportError::Closed { reason: failure.reason.clone() },
                false => state_error(failure.reason.clone()),
            })
        })
    }

    /// Nobody will be asked for `round` again; the run never goes back before `oldest`. Tells the nodes.
    pub(in super::super) fn checkpointed(
        &mut self,
        round: RoundIndex,
        oldest: RoundIndex,
    ) -> Result<(), TransportError> {
        self.participation.checkpointed(oldest);
        self.shared.spool.clear().map_err(|e| state_error(e.to_string()))?;
        self.shared.round_closed(round);
        Ok(())
    }
}

fn state_error(reason: String) -> TransportError {
    TransportError::State { source: StateError::Store { place: "the server's own".to_owned(), reason } }
}

#[cfg(test)]
impl<B: Backend> Rounds<B> {
    /// Lets nodes in, in the event loop that this is called in.
    pub(in super::super) fn open(&self) -> Result<super::endpoint::Opened, QuicError> {
        super::endpoint::open(self.shared.clone())
    }

    /// Dead once nothing of the server is left.
    pub(in super::super) fn life(&self) -> std::sync::Weak<dyn std::any::Any + Send + Sync> {
        let life: std::sync::Weak<Shared> = Arc::downgrade(&self.shared);
        life
    }

    /// What is kept and held of nodes' answers, in words; `None` where there is nothing.
    pub(in super::super) fn held(&self) -> Option<String> {
        self.shared.held()
    }
}
