//! Connections with the sockets, settings and certificates of a federation and nothing of it on them: what a
//! measurement holds a federation against. No part of the interface.

use quinn::{Connection, Endpoint};

use super::client::Dialer;
use super::surroundings::Surroundings;
use super::{ClientConfig, JoinString, NodeIdentity, QuicConfig, QuicError, ServerIdentity, server, tuning};

/// Chunks that travel at once on a connection.
pub const CHUNKS_IN_FLIGHT: u32 = crate::wire::limits::CHUNKS_IN_FLIGHT;

/// A server's endpoint, in the event loop that this is called in, and how it is reached.
///
/// # Errors
/// [`QuicError`].
pub fn listen(config: &QuicConfig, identity: &ServerIdentity) -> Result<(Endpoint, JoinString), QuicError> {
    let (endpoint, _) = server::listen(config, identity, &Surroundings::machine())?;
    let address = endpoint.local_addr().map_err(|source| QuicError::Socket { address: config.listen, source })?;
    let (pin, secret) = identity.pin_and_secret()?;
    Ok((endpoint, JoinString::new(address.ip().to_string(), address.port(), pin, secret)))
}

/// Lets the other side send chunks, as a node may that has its turn.
pub fn take_chunks(connection: &Connection) {
    tuning::take_chunks(connection);
}

/// A connection of a node that is enrolled.
///
/// # Errors
/// [`QuicError`].
pub async fn connect(join: &JoinString, node: NodeIdentity, config: ClientConfig) -> Result<Connection, QuicError> {
    let dialer = Dialer::new(join.clone(), node, config, Surroundings::machine());
    let connected = dialer.dial(true).await;
    connected.map_err(|failure| QuicError::Unreachable { server: dialer.server(), reason: format!("{failure:?}") })
}
