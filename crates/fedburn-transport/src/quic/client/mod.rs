//! A node's end: a [`ClientTransport`] over QUIC.

mod answer;
mod backoff;
mod connect;
mod download;
mod failure;
mod kept;
mod link;
mod models;
mod node;
mod state;

use std::sync::Arc;

use burn::tensor::backend::Backend;
use fedburn_core::{
    Asked, ClientFailure, ClientId, ClientInfo, ClientTransport, Reply, RoundIndex, Schemas, TransportError,
};

use super::config::ClientConfig;
use super::plan::Plan;
use super::runtime::EndpointThread;
use super::surroundings::Surroundings;
use super::{JoinString, NodeIdentity, QuicError};
pub(super) use connect::Dialer;
#[cfg(test)]
pub(super) use download::Downloads;
pub use node::Taken;
pub(super) use node::{Invited, Node};
use state::End;

/// Joins a federation: enrols the node where it has no certificate yet, and fetches the plan. A server that is not there
/// yet is waited for as long as the configuration says.
///
/// # Errors
/// [`QuicError`]: a setting out of its range, a server that cannot be reached or refuses the node.
pub fn join(join: &JoinString, identity: NodeIdentity, config: ClientConfig) -> Result<Joined, QuicError> {
    NodeThread::start()?.join(join, identity, config)
}

/// The thread on which a node sends and receives; several nodes of one process may share it.
#[derive(Clone)]
pub struct NodeThread(Arc<EndpointThread>);

impl NodeThread {
    /// Starts a thread.
    ///
    /// # Errors
    /// Where the system gives none.
    pub fn start() -> Result<Self, QuicError> {
        Ok(Self(Arc::new(EndpointThread::start("quic-node")?)))
    }

    /// As [`join()`], on this thread.
    ///
    /// # Errors
    /// As [`join()`].
    pub fn join(&self, join: &JoinString, identity: NodeIdentity, config: ClientConfig) -> Result<Joined, QuicError> {
        config.check()?;
        let dialer = Dialer::new(join.clone(), identity, config, Surroundings::machine());
        let invited = self.0.handle().block_on(Invited::by(dialer))?;
        Ok(Joined { thread: self.0.clone(), invited })
    }
}

/// A node that knows what is to be trained.
pub struct Joined {
    thread: Arc<EndpointThread>,
    invited: Invited,
}

impl Joined {
    /// What is to be trained.
    pub fn plan(&self) -> &Plan {
        &self.invited.plan
    }

    /// Leaves, and tells the server why: the data's owner does not permit the plan.
    ///
    /// # Errors
    /// [`QuicError`]: the server could not be told.
    pub fn decline(self, reason: &str) -> Result<(), QuicError> {
        self.thread.handle().block_on(self.invited.decline(reason))
    }

    /// Tells the server which clients the node is, sorted by id, and how many examples each has. `schemas` are as
    /// for the server; models come to `device`.
    ///
    /// # Errors
    /// [`QuicError::Refused`] where another node is one of the clients, or the model has another schema.
    pub fn start<B: Backend>(
        self,
        clients: &[ClientInfo],
        schemas: impl Into<Schemas>,
        device: B::Device,
    ) -> Result<QuicClient<B>, QuicError> {
        let node = self.thread.handle().block_on(self.invited.start(clients, schemas.into(), device))?;
        Ok(QuicClient { node, thread: self.thread })
    }
}

/// A node's end of a federation over the network. Several threads may work with it at once.
///
/// It connects again by itself whenever the connection is lost, and sends an answer until the server has it; a server
/// that refuses the node for good, or stays away for longer than the configuration allows, is the error of every call.
pub struct QuicClient<B: Backend> {
    node: Node<B>,
    thread: Arc<EndpointThread>,
}

impl<B: Backend> QuicClient<B> {
    /// As [`ClientTransport::next`], with what is known of how the request came.
    ///
    /// # Errors
    /// As [`ClientTransport::next`].
    pub fn take(&self) -> Result<Option<Taken<B>>, TransportError> {
        self.thread.handle().block_on(self.node.next())
    }

    /// Leaves the federation: whoever waits in [`ClientTransport::next`] gets `None`.
    pub fn leave(&self) {
        self.node.shared.finish(End::Goodbye);
    }
}

impl<B: Backend> ClientTransport<B> for QuicClient<B> {
    fn next(&self) -> Result<Option<Asked<B>>, TransportError> {
        Ok(self.take()?.map(|taken| taken.asked))
    }

    fn reply(
        &self,
        client: ClientId,
        round: RoundIndex,
        reply: Result<Reply<B>, ClientFailure>,
    ) -> Result<(), TransportError> {
        self.thread.handle().block_on(self.node.reply(client, round, reply))
    }
}

impl<B: Backend> Drop for QuicClient<B> {
    fn drop(&mut self) {
        self.thread.handle().block_on(self.node.hang_up());
    }
}

#[cfg(test)]
impl Joined {
    /// Makes the node work by another plan.
    pub(super) fn change_plan_hash(&mut self) {
        self.invited.plan.hash[0] ^= 1;
    }
}

#[cfg(test)]
impl<B: Backend> QuicClient<B> {
    /// Bytes in UDP packets sent on the connection that lives.
    pub(super) fn bytes_sent(&self) -> u64 {
        self.node.live().map_or(0, |live| live.connection.stats().udp_tx.bytes)
    }
}
