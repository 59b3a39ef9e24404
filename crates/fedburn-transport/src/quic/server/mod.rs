//! The server's end: a [`ServerTransport`] over QUIC.

mod connection;
mod counters;
mod downloads;
mod endpoint;
mod exchange;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod link;
mod participation;
mod record;
mod requests;
mod rounds;
mod run_files;
mod spool;
mod state;
mod tasks;
mod uploads;
mod view;
mod watch;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use burn::tensor::backend::Backend;
use fedburn_core::{ClientId, ClientInfo, Outcome, Request, RoundIndex, Schemas, ServerTransport, TransportError};
use tokio::time::Instant;

use super::config::QuicConfig;
use super::plan::Plan;
use super::surroundings::Surroundings;
use super::{JoinString, NodeRegistry, QuicError, ServerIdentity};
use crate::wire::{ServerLimits, TraceParent};
#[cfg(test)]
pub(super) use endpoint::Opened;
use endpoint::ServerEndpoint;
pub(super) use endpoint::listen;
pub(super) use rounds::{Rounds, Setup};
pub use run_files::RunFiles;

pub use view::NetworkWatch;

/// The server's end of a federation over the network.
///
/// Nodes connect, say which clients they are, and are asked as the rounds want it; what was asked of a node that went
/// away is asked again when it is back. All that the outside needs is here; what happens on the wire, happens on a
/// thread of its own.
///
/// # Examples
///
/// ```
/// use std::sync::Arc;
/// use burn_flex::{Flex, FlexDevice};
/// use fedburn_core::{ClientInfo, ClientId, RoundIndex, ServerTransport};
/// use fedburn_transport::quic::{self, ClientConfig, NodeIdentity, Plan, QuicConfig, QuicServer, RunFiles, ServerIdentity};
///
/// let dir = tempfile::tempdir()?;
/// let (config, schema) = (QuicConfig { listen: "127.0.0.1:0".parse()?, ..Default::default() }, fedburn_testkit::schema(&[3]));
/// let plan = Plan { name: "demo".into(), text: String::new(), seed: 1, backend: "flex".into(), hash: [0; 32] };
/// let identity = ServerIdentity::open(&dir.path().join("server"))?;
/// let files = RunFiles::new(dir.path(), RoundIndex(0));
/// let server = QuicServer::<Flex>::start(config, identity, plan.clone(), schema.clone(), FlexDevice, files)?;
///
/// // On another machine:
/// let node = NodeIdentity::open(&dir.path().join("node"))?;
/// let joined = quic::join(&server.join_string(), node, ClientConfig::default())?;
/// assert_eq!(*joined.plan(), plan);
/// let client = joined.start::<Flex>(&[ClientInfo { id: ClientId(0), num_examples: 10 }], schema, FlexDevice)?;
///
/// assert_eq!(server.clients().len(), 1);
/// server.close();
/// # drop(client);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct QuicServer<B: Backend> {
    rounds: Rounds<B>,
    endpoint: ServerEndpoint,
    join: JoinString,
}

impl<B: Backend> QuicServer<B> {
    /// Listens for nodes.
    ///
    /// `schemas` are the model's and, where the plan has others, those of side vectors; updates come to `device`. `files` say what the server keeps, and after which round the
    /// run goes on.
    ///
    /// # Errors
    /// [`QuicError`]: a setting out of its range, an address that cannot be had, an unusable identity or file.
    pub fn start(
        config: QuicConfig,
        identity: ServerIdentity,
        plan: Plan,
        schemas: impl Into<Schemas>,
        device: B::Device,
        files: RunFiles,
    ) -> Result<Self, QuicError> {
        Self::with_limits(config, identity, plan, schemas.into(), device, files, ServerLimits::default())
    }

    /// As [`QuicServer::start`], within other limits than the protocol's.
    pub(super) fn with_limits(
        config: QuicConfig,
        identity: ServerIdentity,
        plan: Plan,
        schemas: Schemas,
        device: B::Device,
        files: RunFiles,
        limits: ServerLimits,
    ) -> Result<Self, QuicError> {
        let (pin, secret) = identity.pin_and_secret()?;
        let surroundings = Surroundings::machine();
        let epoch = u64::from_le_bytes(surroundings.random()?);
        let setup = Setup { config, identity, surroundings, plan, files, epoch, limits };
        let rounds = Rounds::new(setup, schemas, device)?;
        let shared = rounds.shared();
        let endpoint = ServerEndpoint::start(shared.clone())?;
        let address = endpoint.address();
        let join = JoinString::new(public_host(&shared.config, address), address.port(), pin, secret);
        tracing::info!(%address, "server.listening");
        Ok(Self { rounds, endpoint, join })
    }

    /// The address that the server listens at, with the port that it was given where none was asked for.
    pub fn address(&self) -> SocketAddr {
        self.endpoint.address()
    }

    /// What a new node needs to join.
    pub fn join_string(&self) -> JoinString {
        let identity = &self.rounds.shared().identity;
        // Could be read when the server started, so that it can be now.
        let known = identity.pin_and_secret().ok();
        known.map_or_else(
            || self.join.clone(),
            |(pin, secret)| JoinString::new(self.join.host().to_owned(), self.join.port(), pin, secret),
        )
    }

    /// Waits until there are `clients` clients; tells `seen` their number at once and whenever it changes.
    ///
    /// # Errors
    /// [`QuicError::TimedOut`].
    pub fn wait_for(&self, clients: usize, timeout: Duration, seen: &mut dyn FnMut(usize)) -> Result<(), QuicError> {
        let deadline = Instant::now().checked_add(timeout);
        match self.endpoint.handle().block_on(self.rounds.wait_for(clients, deadline, seen)) {
            true => Ok(()),
            false => Err(QuicError::TimedOut { what: format!("{clients} clients"), seconds: timeout.as_secs() }),
        }
    }

    /// Waits until the clients that may be asked are `enough`, for at most `timeout`.
    ///
    /// # Errors
    /// [`TransportError`] where the server was asked to end or its disk failed.
    pub fn wait_until(&self, enough: impl Fn(&[ClientInfo]) -> bool, timeout: Duration) -> Result<(), TransportError> {
        self.endpoint.handle().block_on(self.rounds.wait_until(enough, timeout))
    }

    /// Says with each training task from now on which span of a distributed trace it is, by round and client, for its node
    /// to continue. Nothing else changes, neither results nor the tasks' numbers.
    pub fn trace(&mut self, spans: impl Fn(RoundIndex, ClientId) -> TraceParent + Send + Sync + 'static) {
        self.rounds.trace(Box::new(spans));
    }

    /// Connections that are open or being opened.
    #[cfg(test)]
    pub(super) fn connections(&self) -> usize {
        self.endpoint.connections()
    }

    /// The nodes that may take part.
    pub fn nodes(&self) -> NodeRegistry {
        self.rounds.shared().identity.nodes().clone()
    }

    /// What the network is doing, to be looked at from other threads.
    pub fn watch(&self) -> NetworkWatch {
        let reached = format!("{}:{}", self.join.host(), self.join.port());
        NetworkWatch::new(self.endpoint.door().clone(), reached)
    }

    /// Says goodbye to every node and waits until they have left, for as long as the configuration allows and not for
    /// those that were killed. A server that could not keep an answer says nothing: nodes wait for its return.
    pub fn close(self) {
        if self.rounds.say_goodbye() {
            self.endpoint.drain(Duration::from_secs(self.rounds.shared().config.drain_secs));
        }
    }
}

impl<B: Backend> ServerTransport<B> for QuicServer<B> {
    fn clients(&self) -> Arc<[ClientInfo]> {
        self.rounds.clients()
    }

    fn wait(&mut self, timeout: Duration) -> Result<(), TransportError> {
        self.wait_until(|clients| !clients.is_empty(), timeout)
    }

    fn exchange<'a>(
        &'a mut self,
        requests: Vec<(ClientId, Request<B>)>,
        timeout: Duration,
    ) -> Box<dyn Iterator<Item = Outcome<B>> + 'a> {
        let mut outcomes = self.rounds.exchange(requests, timeout);
        let handle = self.endpoint.handle();
        Box::new(std::iter::from_fn(move || handle.block_on(outcomes.receive())))
    }

    fn close_round(&mut self, round: RoundIndex, included: &[ClientId]) -> Result<(), TransportError> {
        self.rounds.close_round(round, included)
    }

    fn checkpointed(&mut self, round: RoundIndex, oldest: RoundIndex) -> Result<(), TransportError> {
        self.rounds.checkpointed(round, oldest)
    }
}

/// Which span of a trace the task of a client in a round is.
type TaskSpans = dyn Fn(RoundIndex, ClientId) -> TraceParent + Send + Sync;

/// Where nodes find the server.
fn public_host(config: &QuicConfig, address: SocketAddr) -> String {
    if let Some(host) = &config.public_host {
        return host.clone();
    }
    if !address.ip().is_unspecified() {
        return address.ip().to_string();
    }
    let advice = "set `public_host` to the name by which nodes reach the server";
    tracing::warn!(advice, "server.join_string_local");
    "127.0.0.1".to_owned()
}
