//! The door: who may connect, how many at once, and what is looked after while they are here.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quinn::{Connection, Endpoint, Incoming, ServerConfig, VarInt};
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use super::super::restart;
use super::super::runtime::EndpointThread;
use super::super::surroundings::Surroundings;
use super::super::tls::{self, CurrentLeaf};
use super::super::tuning;
use super::super::{NodeId, QuicConfig, QuicError, ServerIdentity, Traffic};
use super::connection;
use super::counters::add;
use super::link::lock;
use super::state::Shared;
use crate::wire::CloseCode;

/// The open door and the thread that it is looked after on.
pub(super) struct ServerEndpoint {
    opened: Opened,
    thread: EndpointThread,
}

/// An endpoint that lets nodes in.
pub(in super::super) struct Opened {
    pub(in super::super) endpoint: Endpoint,
    pub(in super::super) address: SocketAddr,
    door: Arc<Door>,
}

/// Connections at the door and inside.
pub(in super::super) struct Door {
    pub(super) shared: Arc<Shared>,
    /// The event loop that all this lives in.
    pub(super) handle: Handle,
    handshakes: Semaphore,
    /// Connections that wait for a handshake or are in one.
    pending: AtomicUsize,
    inside: Mutex<Inside>,
    /// Told when the last one leaves.
    empty: Notify,
}

#[derive(Default)]
struct Inside {
    connections: usize,
    of_node: BTreeMap<NodeId, Vec<Connection>>,
    strangers: BTreeMap<IpAddr, usize>,
}

/// A counted connection; its end takes it out of the count.
pub(super) struct Place {
    door: Arc<Door>,
    guest: Guest,
    connection: Connection,
}

/// Who is counted.
#[derive(Clone, Copy)]
pub(super) enum Guest {
    Node(NodeId),
    Stranger(IpAddr),
}

impl ServerEndpoint {
    pub(super) fn start(shared: Arc<Shared>) -> Result<Self, QuicError> {
        let thread = EndpointThread::start("quic-server")?;
        let guard = thread.handle().enter();
        let opened = open(shared)?;
        drop(guard);
        Ok(Self { opened, thread })
    }

    pub(super) fn handle(&self) -> &Handle {
        self.thread.handle()
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.opened.address
    }

    /// Connections that are open or being opened.
    #[cfg(test)]
    pub(super) fn connections(&self) -> usize {
        self.opened.endpoint.open_connections()
    }

    pub(super) fn door(&self) -> &Arc<Door> {
        &self.opened.door
    }

    /// As [`Opened::drain`].
    pub(super) fn drain(&self, patience: Duration) {
        self.thread.handle().block_on(self.opened.drain(patience));
    }
}

impl Drop for ServerEndpoint {
    fn drop(&mut self) {
        // Where nobody said goodbye, nodes come again.
        self.thread.handle().block_on(self.opened.close(CloseCode::Draining, "the server has stopped"));
    }
}

impl Opened {
    /// Waits until everybody has left, at most for `patience`, then closes what is still open.
    pub(in super::super) async fn drain(&self, patience: Duration) {
        // What the library keeps of closed connections for late packets is not waited for: it may be minutes.
        if timeout(patience, self.door.empty()).await.is_err() {
            tracing::warn!(connections = lock(&self.door.inside).connections, "server.nodes_stayed");
        }
        self.close(CloseCode::Ok, "the run has ended").await;
    }

    async fn close(&self, code: CloseCode, reason: &str) {
        self.endpoint.close(VarInt::from_u32(code as u32), reason.as_bytes());
        // Sends the close frames.
        let _ = timeout(LAST_PACKETS, self.endpoint.wait_idle()).await;
    }
}

impl Door {
    /// Counts a connection in; `None` where there are too many of its kind.
    pub(super) fn enter(self: &Arc<Self>, guest: Guest, connection: &Connection) -> Option<Place> {
        let config = &self.shared.config;
        let mut inside = lock(&self.inside);
        if inside.connections >= config.connections {
            return None;
        }
        match guest {
            Guest::Node(node) => {
                let connections = inside.of_node.entry(node).or_default();
                if connections.len() >= config.connections_per_node {
                    return None;
                }
                connections.push(connection.clone());
            }
            Guest::Stranger(address) => {
                let count = inside.strangers.entry(address).or_default();
                if *count >= config.strangers_per_address {
                    return None;
                }
                *count += 1;
            }
        }
        inside.connections += 1;
        Some(Place { door: self.clone(), guest, connection: connection.clone() })
    }

    /// Connections that are open, and the bytes of all that ever were.
    pub(super) fn traffic(&self) -> (usize, Traffic) {
        let inside = lock(&self.inside);
        (inside.connections, self.shared.counters.wire(inside.of_node.values().flatten()))
    }

    /// Waits until nobody is inside.
    async fn empty(&self) {
        loop {
            let left = self.empty.notified();
            if lock(&self.inside).connections == 0 {
                return;
            }
            left.await;
        }
    }

    /// Closes the connections of nodes that may no longer take part.
    fn shut_out(&self) {
        for (node, connections) in &lock(&self.inside).of_node {
            if !self.shared.identity.admits(*node) {
                tracing::info!(%node, "node.revoked");
                let close = |c| self.shared.counters.close(c, CloseCode::Revoked, "the node was revoked");
                connections.iter().for_each(close);
            }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inside = lock(&self.door.inside);
        inside.connections -= 1;
        if inside.connections == 0 {
            self.door.empty.notify_waiters();
        }
        match self.guest {
            Guest::Node(node) => {
                self.door.shared.counters.ended(&self.connection);
                if let Some(connections) = inside.of_node.get_mut(&node) {
                    connections.retain(|connection| connection.stable_id() != self.connection.stable_id());
                    if connections.is_empty() {
                        inside.of_node.remove(&node);
                    }
                }
            }
            Guest::Stranger(address) => {
                if let Some(count) = inside.strangers.get_mut(&address) {
                    *count -= 1;
                    if *count == 0 {
                        inside.strangers.remove(&address);
                    }
                }
            }
        }
    }
}

/// Opens the door, in the event loop that this is called in.
pub(super) fn open(shared: Arc<Shared>) -> Result<Opened, QuicError> {
    let (config, provider) = (&shared.config, shared.surroundings.provider.clone());
    let (endpoint, leaf) = listen(config, &shared.identity, &shared.surroundings)?;
    let address = endpoint.local_addr().map_err(|source| QuicError::Socket { address: config.listen, source })?;
    let door = Arc::new(Door {
        handshakes: Semaphore::new(config.handshakes),
        pending: AtomicUsize::new(0),
        inside: Mutex::default(),
        empty: Notify::new(),
        shared,
        handle: Handle::current(),
    });
    let (accepting, looking) = (accept(endpoint.clone(), door.clone()), look_after(door.clone(), leaf, provider));
    tokio::spawn(async move {
        tokio::select! {
            biased;
            // Ends with the endpoint.
            () = accepting => {}
            () = looking => {}
        }
    });
    Ok(Opened { endpoint, address, door })
}

/// A server's endpoint, in the event loop that this is called in, and the certificate that it shows.
pub(in super::super) fn listen(
    config: &QuicConfig,
    identity: &ServerIdentity,
    surroundings: &Surroundings,
) -> Result<(Endpoint, Arc<CurrentLeaf>), QuicError> {
    let provider = &surroundings.provider;
    let leaf = Arc::new(CurrentLeaf::new(identity.certified_key(provider)?));
    let crypto = tls::server(identity, leaf.clone(), provider.clone())?;
    let mut server = ServerConfig::with_crypto(Arc::new(crypto));
    server
        .transport_config(tuning::server_transport(config))
        .migration(true)
        .max_incoming(MAX_INCOMING)
        .incoming_buffer_size(INCOMING_BUFFER)
        .incoming_buffer_size_total(INCOMING_BUFFERS);
    let mut endpoint_config = tuning::endpoint_config(config.mtu_upper_bound)?;
    restart::resets(&mut endpoint_config, identity.secret_key(), provider.secure_random);
    Ok((surroundings.endpoint(config.listen, endpoint_config, Some(server))?, leaf))
}

async fn accept(endpoint: Endpoint, door: Arc<Door>) {
    while let Some(incoming) = endpoint.accept().await {
        let pending = door.pending.load(Ordering::Relaxed);
        if pending >= MAX_INCOMING || endpoint.open_connections() >= door.shared.config.connections + MAX_INCOMING {
            incoming.refuse();
        } else if pending > MANY_PENDING && incoming.may_retry() && !incoming.remote_address_validated() {
            // Under load, an address must show that it receives before it costs anything.
            let _ = incoming.retry();
        } else {
            door.pending.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(greet(incoming, door.clone()));
        }
    }
}

async fn greet(incoming: Incoming, door: Arc<Door>) {
    let address = incoming.remote_address();
    let shaken = handshake(incoming, &door).await;
    door.pending.fetch_sub(1, Ordering::Relaxed);
    match shaken {
        Ok(connection) => {
            add(&door.shared.counters.handshakes, 1);
            connection::serve(connection, door.shared.clone(), door).await
        }
        Err(reason) => {
            add(&door.shared.counters.handshakes_failed, 1);
            tracing::info!(%address, reason, "connection.handshake_failed")
        }
    }
}

async fn handshake(incoming: Incoming, door: &Door) -> Result<Connection, String> {
    let _permit = door.handshakes.acquire().await.map_err(|e| e.to_string())?;
    let patience = Duration::from_secs(door.shared.config.handshake_timeout_secs);
    let accepting = incoming.accept().map_err(|e| e.to_string())?;
    match timeout(patience, accepting).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(tls::explained(&error)),
        Err(_) => Err("too slow".to_owned()),
    }
}

/// Follows the registry of nodes, gives up on those that are away, renews the certificate.
async fn look_after(door: Arc<Door>, leaf: Arc<CurrentLeaf>, provider: Arc<rustls::crypto::CryptoProvider>) {
    let shared = &door.shared;
    let mut ticks = interval(LOOK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut certified = Instant::now();
    loop {
        ticks.tick().await;
        if let Err(e) = shared.identity.nodes().refresh() {
            tracing::error!(error = %e, "registry.unreadable");
        }
        door.shut_out();
        shared.tidy();
        let renewed = shared.identity.refresh().unwrap_or_else(|error| {
            tracing::error!(%error, "identity.unreadable");
            false
        });
        if renewed {
            tracing::info!("server.identity_renewed");
        }
        if renewed || certified.elapsed() > CERTIFICATE_LOOK {
            certified = Instant::now();
            match shared.identity.certified_key(&provider) {
                Ok(key) => leaf.set(key),
                Err(e) => tracing::error!(error = %e, "server.certificate_not_renewed"),
            }
        }
    }
}

/// Connections that may wait at the door.
const MAX_INCOMING: usize = 4_096;
/// Bytes that one of them may have sent, and all together.
const INCOMING_BUFFER: u64 = 64 << 10;
const INCOMING_BUFFERS: u64 = 16 << 20;
/// From so many waiting on, addresses have to be confirmed.
const MANY_PENDING: usize = 64;
/// How often the registry is looked at: revoking must work within a second.
const LOOK: Duration = Duration::from_millis(250);
const CERTIFICATE_LOOK: Duration = Duration::from_secs(3600);
/// Time for the last packets of closed connections.
const LAST_PACKETS: Duration = Duration::from_secs(1);
