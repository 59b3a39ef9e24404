//! From an address to a connection that both sides agree on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use quinn::{Connection, Endpoint};
use rustls::pki_types::CertificateDer;
use tokio::time::timeout;

use super::super::config::ClientConfig;
use super::super::identity::SERVER_NAME;
use super::super::identity::enrol::{self, CHANNEL_LABEL, ChannelBinding};
use super::super::stream::ask;
use super::super::surroundings::Surroundings;
use super::super::{JoinString, NodeIdentity, QuicError, tls, tuning};
use super::backoff::Backoff;
use super::failure::{Failure, of_connection};
use crate::wire::limits::{MAX_ANNOUNCED, MINOR};
use crate::wire::{
    Announce, Body, ClientEntry, Der, Enroll, Enrolled, Extensions, Hash, Hello, Message, Renew, Welcome, features,
};

/// Where the server is and how to be sure of it.
pub(in super::super) struct Dialer {
    join: JoinString,
    identity: NodeIdentity,
    config: ClientConfig,
    surroundings: Surroundings,
    /// What the node says that it can.
    features: u64,
    /// One for each version of IP, opened when they are needed.
    endpoints: Mutex<BTreeMap<IpVersion, Endpoint>>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum IpVersion {
    V4,
    V6,
}

impl Dialer {
    pub(in super::super) fn new(
        join: JoinString,
        identity: NodeIdentity,
        config: ClientConfig,
        surroundings: Surroundings,
    ) -> Self {
        Self { join, identity, config, surroundings, features: features::ALL, endpoints: Mutex::default() }
    }

    pub(super) fn config(&self) -> &ClientConfig {
        &self.config
    }

    /// Waits between attempts, as the configuration says.
    pub(super) fn backoff(&self) -> Backoff {
        let (base, cap) = (self.config.backoff_base_ms, self.config.backoff_cap_secs);
        let random = self.surroundings.provider.secure_random;
        Backoff::new(Duration::from_millis(base), Duration::from_secs(cap), random)
    }

    /// The server's name and port.
    pub(in super::super) fn server(&self) -> String {
        format!("{}:{}", self.join.host(), self.join.port())
    }

    /// Connects and greets; enrols first where there is no certificate yet.
    pub(in super::super) async fn connect(&self) -> Result<(Connection, Welcome), Failure> {
        if self.identity.credentials(&self.join.pin()).is_none() {
            self.enrol().await?;
        }
        let connection = self.dial(true).await?;
        let hello = Hello {
            minor: MINOR,
            features: self.features,
            labels: self.config.labels.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect(),
            software: format!("fedburn {}", env!("CARGO_PKG_VERSION")),
            ext: Extensions::default(),
        };
        let welcome: Welcome = match self.expect(&connection, &hello).await {
            Ok(Message::Welcome(welcome)) => welcome,
            Ok(other) => return Err(unexpected(&other)),
            Err(failure) => return Err(failure),
        };
        let clock = Duration::from_millis(welcome.server_time);
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        if now.abs_diff(clock) > CLOCK_TOLERANCE {
            tracing::warn!(ours = ?now, theirs = ?clock, "node.clock_off");
        }
        self.renew_if_due(&connection).await;
        Ok((connection, welcome))
    }

    /// Says which clients this node is.
    pub(super) async fn announce(
        &self,
        connection: &Connection,
        clients: &[ClientEntry],
        schema: u64,
        plan: Hash,
    ) -> Result<(), Failure> {
        let parts = clients.chunks(MAX_ANNOUNCED).count().max(1);
        for part in 0..parts {
            let clients = clients.chunks(MAX_ANNOUNCED).nth(part).unwrap_or_default().to_vec();
            let announce =
                Announce { clients, schema, plan, part: part as u32, parts: parts as u32, ext: Extensions::default() };
            match self.expect(connection, &announce).await? {
                Message::Announced(_) => {}
                other => return Err(unexpected(&other)),
            }
        }
        Ok(())
    }

    /// Asks and waits for the answer as long as the configuration says.
    pub(super) async fn expect<M: Body>(&self, connection: &Connection, question: &M) -> Result<Message, Failure> {
        let patience = Duration::from_secs(self.config.request_timeout_secs);
        match timeout(patience, ask(connection, question)).await {
            Ok(Ok(Message::Refused(refused))) => Err(refused.into()),
            Ok(Ok(message)) => Ok(message),
            Ok(Err(error)) => Err(on(connection, error.into())),
            Err(_) => {
                // Whatever holds the server up may hold for this connection only.
                super::super::stream::close(connection, crate::wire::CloseCode::Slow, "no answer");
                Err(Failure::Passing("the server does not answer".to_owned()))
            }
        }
    }

    /// Gets the first certificate, on a connection for nothing else.
    async fn enrol(&self) -> Result<(), Failure> {
        let secret = self.join.secret().ok_or_else(|| QuicError::Refused {
            reason:
                "the node has no certificate of this server's authority, and the join string no secret to enrol with"
                    .to_owned(),
        })?;
        let connection = self.dial(false).await?;
        let channel = channel(&connection);
        let request = self.identity.request(&channel).map_err(QuicError::from)?;
        let mac = enrol::mac(&secret, &request, &channel);
        let enroll = Enroll { csr: request.into(), mac: Hash(mac), ext: Extensions::default() };
        let answer = self.expect(&connection, &enroll).await;
        super::super::stream::close(&connection, crate::wire::CloseCode::Ok, "enrolled");
        self.keep(answer?)?;
        tracing::info!(node = %self.identity.id(), server = self.server(), "node.enrolled");
        Ok(())
    }

    /// Gets the next certificate. Where that fails the old one still holds for a third of its time.
    async fn renew(&self, connection: &Connection) {
        let renewed = async {
            let csr = self.identity.request(&channel(connection)).map_err(QuicError::from)?;
            let answer = self.expect(connection, &Renew { csr: csr.into(), ext: Extensions::default() }).await?;
            self.keep(answer)
        };
        match renewed.await {
            Ok(()) => tracing::info!("node.certificate_renewed"),
            Err(failure) => tracing::warn!(?failure, "node.certificate_not_renewed"),
        }
    }

    fn keep(&self, answer: Message) -> Result<(), Failure> {
        let Message::Enrolled(Enrolled { chain, ca, .. }) = answer else { return Err(unexpected(&answer)) };
        let der = |Der(bytes): Der| CertificateDer::from(bytes.to_vec());
        let chain = chain.into_iter().map(der).chain(std::iter::once(der(ca))).collect();
        Ok(self.identity.keep(chain).map_err(QuicError::from)?)
    }

    /// A connection to the server of the join string, and to no other.
    pub(in super::super) async fn dial(&self, authenticated: bool) -> Result<Connection, Failure> {
        let credentials = if authenticated { self.identity.credentials(&self.join.pin()) } else { None };
        let crypto = tls::client(self.join.pin(), credentials, self.surroundings.provider.clone())?;
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(tuning::client_transport(&self.config));
        let passing = |reason: String| Failure::Passing(reason);
        let patience = Duration::from_secs(self.config.connect_timeout_secs);
        let addresses = timeout(patience, tokio::net::lookup_host((self.join.host(), self.join.port()))).await;
        let addresses = addresses.map_err(|_| passing("nobody says what the name's address is".to_owned()))?;
        let mut last = passing("the name has no address".to_owned());
        for address in addresses.map_err(|e| passing(e.to_string()))? {
            let endpoint = match self.endpoint(&address) {
                Ok(endpoint) => endpoint,
                Err(e) => {
                    last = passing(e.to_string());
                    continue;
                }
            };
            let connecting = endpoint.connect_with(config.clone(), address, SERVER_NAME);
            let connecting = connecting.map_err(|e| passing(e.to_string()))?;
            match timeout(patience, connecting).await {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(e)) => last = of_connection(&e),
                Err(_) => last = passing("no answer".to_owned()),
            }
        }
        Err(last)
    }

    /// The socket from which the address is reached; must be called inside the event loop.
    fn endpoint(&self, to: &SocketAddr) -> Result<Endpoint, QuicError> {
        let (version, any) = match to {
            SocketAddr::V4(_) => (IpVersion::V4, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            SocketAddr::V6(_) => (IpVersion::V6, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        };
        let mut endpoints = self.endpoints();
        if let Some(endpoint) = endpoints.get(&version) {
            return Ok(endpoint.clone());
        }
        let address = SocketAddr::from((any, 0));
        let config = tuning::endpoint_config(self.config.mtu_upper_bound)?;
        let endpoint = self.surroundings.endpoint(address, config, None)?;
        endpoints.insert(version, endpoint.clone());
        Ok(endpoint)
    }

    fn endpoints(&self) -> MutexGuard<'_, BTreeMap<IpVersion, Endpoint>> {
        self.endpoints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the last packets of closed connections, for a moment.
    pub(in super::super) async fn hang_up(&self) {
        let endpoints: Vec<Endpoint> = self.endpoints().values().cloned().collect();
        for endpoint in endpoints {
            let _ = timeout(LAST_PACKETS, endpoint.wait_idle()).await;
        }
    }

    /// Asks for another certificate where it is time.
    pub(super) async fn renew_if_due(&self, connection: &Connection) {
        if self.identity.wants_renewal() {
            self.renew(connection).await;
        }
    }
}

#[cfg(test)]
impl Dialer {
    /// Makes the node one of other software.
    pub(in super::super) fn with_features(mut self, features: u64) -> Self {
        self.features = features;
        self
    }
}

/// The failure that ended the connection, if it ended, since that says more than what a stream saw of it.
pub(super) fn on(connection: &Connection, failure: Failure) -> Failure {
    match connection.close_reason() {
        Some(reason) => of_connection(&reason),
        None => failure,
    }
}

pub(super) fn unexpected(message: &Message) -> Failure {
    Failure::Lasting(QuicError::Protocol { reason: format!("the server answers {:?}", message.kind()) })
}

fn channel(connection: &Connection) -> ChannelBinding {
    let mut material = ChannelBinding::default();
    // Fails only before the handshake is complete.
    let _ = connection.export_keying_material(&mut material, CHANNEL_LABEL, &[]);
    material
}

/// How far clocks may differ.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(300);
/// Time for the last packets of closed connections.
const LAST_PACKETS: Duration = Duration::from_secs(1);
