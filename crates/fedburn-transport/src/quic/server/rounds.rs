//! What a server does round by round, whoever waits for it and on whatever thread.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use burn::tensor::backend::Backend;
use fedburn_core::{ClientId, ParamSchema, Request, RoundIndex, StateError, TransportError};

use super::super::{Plan, QuicConfig, QuicError, ServerIdentity};
use super::exchange::Outcomes;
use super::participation::Participation;
use super::state::{Parts, Shared};
use crate::wire::{Hash, ServerLimits, VectorPayload};

/// A server's rounds: what it asks, and what counted.
pub(in super::super) struct Rounds<B: Backend> {
    shared: Arc<Shared>,
    schema: Arc<ParamSchema>,
    device: B::Device,
    participation: Participation,
}

/// What a server is started with.
pub(in super::super) struct Setup {
    pub(in super::super) config: QuicConfig,
    pub(in super::super) identity: ServerIdentity,
    pub(in super::super) plan: Plan,
    /// The file in which the server keeps what its clients took part in.
    pub(in super::super) participation: PathBuf,
    /// The round after which the run goes on.
    pub(in super::super) resumed: RoundIndex,
    /// Another number than at the last start.
    pub(in super::super) epoch: u64,
    pub(in super::super) limits: ServerLimits,
}

impl<B: Backend> Rounds<B> {
    pub(in super::super) fn new(setup: Setup, schema: Arc<ParamSchema>, device: B::Device) -> Result<Self, QuicError> {
        let Setup { config, identity, plan, participation, resumed, epoch, limits } = setup;
        config.check()?;
        VectorPayload::new(schema.num_values(), 1, limits.chunk_len)
            .map_err(|e| QuicError::Unusable { what: "model", reason: e.to_string() })?;
        let plan_hash = Hash(plan.hash);
        let participation = Participation::open(participation, plan_hash, resumed)?;
        let shared = Arc::new(Shared::new(Parts {
            plan: plan.encode()?,
            plan_hash,
            schema: schema.fingerprint(),
            num_values: schema.num_values(),
            epoch,
            limits,
            config,
            identity,
        }));
        Ok(Self { shared, schema, device, participation })
    }

    pub(in super::super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Offers the requests to the nodes of their clients. What an earlier exchange left is over.
    pub(in super::super) fn exchange(
        &mut self,
        requests: Vec<(ClientId, Request<B>)>,
        timeout: Duration,
    ) -> Outcomes<'_, B> {
        Outcomes::begin(&self.shared, &self.schema, &self.device, &self.participation, requests, timeout)
    }

    /// Keeps whose updates counted, then tells the nodes.
    pub(in super::super) fn close_round(
        &mut self,
        round: RoundIndex,
        included: &[ClientId],
    ) -> Result<(), TransportError> {
        self.participation.closed(round, included).map_err(state_error)?;
        self.shared.round_closed(round);
        Ok(())
    }

    /// The run never goes back before `round`.
    pub(in super::super) fn checkpointed(&mut self, round: RoundIndex) -> Result<(), TransportError> {
        self.participation.checkpointed(round).map_err(state_error)
    }
}

fn state_error(error: QuicError) -> TransportError {
    let place = "record of participations".to_owned();
    TransportError::State { source: StateError::Store { place, reason: error.to_string() } }
}
