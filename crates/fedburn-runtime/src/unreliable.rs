//! Simulated unreliability around any sampler and any transport.

use std::sync::Arc;
use std::time::Duration;

use burn::tensor::backend::Backend;
use fedburn_core::{
    ClientFailure, ClientId, ClientInfo, ClientSampler, Outcome, Request, RoundIndex, Seed, ServerTransport,
    TransportError,
};

use crate::Availability;

/// Hides the clients that cannot be reached in a round from a sampler.
pub struct ReachableOnly {
    sampler: Box<dyn ClientSampler>,
    availability: Availability,
    run: Seed,
}

impl ReachableOnly {
    /// `run` is the root of the run's seed tree.
    pub fn new(sampler: Box<dyn ClientSampler>, availability: Availability, run: Seed) -> Self {
        Self { sampler, availability, run }
    }
}

impl ClientSampler for ReachableOnly {
    fn sample(&self, round: RoundIndex, available: &[ClientInfo], seed: Seed) -> Vec<ClientId> {
        self.sampler.sample(round, &self.availability.reachable(self.run, round, available), seed)
    }
}

/// Makes chosen clients disconnect instead of training.
pub struct DroppingOut<T> {
    transport: T,
    availability: Availability,
    run: Seed,
}

impl<T> DroppingOut<T> {
    /// `run` is the root of the run's seed tree.
    pub fn new(transport: T, availability: Availability, run: Seed) -> Self {
        Self { transport, availability, run }
    }
}

impl<B: Backend, T: ServerTransport<B>> ServerTransport<B> for DroppingOut<T> {
    fn clients(&self) -> Arc<[ClientInfo]> {
        self.transport.clients()
    }

    fn wait(&mut self, timeout: Duration) -> Result<(), TransportError> {
        self.transport.wait(timeout)
    }

    fn exchange<'a>(
        &'a mut self,
        requests: Vec<(ClientId, Request<B>)>,
        timeout: Duration,
    ) -> Box<dyn Iterator<Item = Outcome<B>> + 'a> {
        let (dropped, kept): (Vec<_>, Vec<_>) = requests.into_iter().partition(|(client, request)| match request {
            Request::Train(task) => self.availability.drops_out(self.run, task.round, *client),
            Request::Evaluate { .. } => false,
        });
        let failed = |(client, _)| Outcome { client, reply: Err(ClientFailure::Disconnected) };
        Box::new(dropped.into_iter().map(failed).chain(self.transport.exchange(kept, timeout)))
    }

    fn close_round(&mut self, round: RoundIndex, included: &[ClientId]) -> Result<(), TransportError> {
        self.transport.close_round(round, included)
    }

    fn checkpointed(&mut self, round: RoundIndex, oldest: RoundIndex) -> Result<(), TransportError> {
        self.transport.checkpointed(round, oldest)
    }
}
