//! How QUIC is set: windows, streams, packet sizes, timeouts. Each value has a measured reason.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::{BbrConfig, CubicConfig};
use quinn::{Connection, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt};
use socket2::{Domain, Protocol, Socket, Type};

use super::QuicError;
use super::config::{ClientConfig, Congestion, MIN_MTU, QuicConfig};
use crate::wire::limits::{CHUNK_HEADER_LEN, CHUNKS_IN_FLIGHT, MAX_CHUNK_LEN};

/// Requests that a connection may have open at once, the watch stream included.
pub(crate) const REQUESTS_IN_FLIGHT: u32 = 16;
/// What a server takes unread from a node that is not uploading.
const IDLE_RECEIVE_WINDOW: u32 = 256 << 10;
/// What either side takes unread from one that is sending chunks.
const TRANSFER_RECEIVE_WINDOW: u32 = 16 << 20;
/// One chunk and its header, so that a chunk never waits for credit behind those that go before it. QUIC's library closes
/// a connection with more than 1,024 holes in what came, which a window of this size cannot have.
const STREAM_RECEIVE_WINDOW: u32 = MAX_CHUNK_LEN + CHUNK_HEADER_LEN as u32;
/// What may be sent and not acknowledged: a gigabit a second at a round trip of 130 ms.
pub(crate) const SEND_WINDOW: u64 = 16 << 20;
/// The same where what is sent is a copy, which stays in memory until it is acknowledged, and the other end is near.
const NEAR_CUT_WINDOW: u64 = 4 << 20;
/// Round trips below which the other end is near: 4 MiB are 400 MiB a second then.
const NEAR: Duration = Duration::from_millis(10);
/// What may be in flight before anything is known of the path: ten packets of the largest size. The library's own
/// 12,000 bytes are two such packets; with one in flight to find the packet size, a connection that was closed early
/// waited for room that never came, and its end was not told.
const INITIAL_WINDOW: u64 = 64 << 10;
/// A thousand handshakes at once need it.
const SOCKET_BUFFER: usize = 8 << 20;
/// Below this, packets are lost when many nodes come at once.
const SMALL_SOCKET_BUFFER: usize = 2 << 20;

/// Priorities of streams: what steers goes before what fills.
pub(crate) const CONTROL_PRIORITY: i32 = 100;

/// A server's side of each connection.
pub(crate) fn server_transport(config: &QuicConfig) -> Arc<TransportConfig> {
    let mut transport = common(config.congestion, config.mtu_upper_bound, config.idle_timeout_secs);
    // Nobody may send a chunk who holds no slot.
    transport.max_concurrent_uni_streams(VarInt::from_u32(0));
    transport.max_concurrent_bidi_streams(VarInt::from_u32(REQUESTS_IN_FLIGHT));
    transport.receive_window(VarInt::from_u32(IDLE_RECEIVE_WINDOW));
    Arc::new(transport)
}

/// A node's side of its connection.
pub(crate) fn client_transport(config: &ClientConfig) -> Arc<TransportConfig> {
    let mut transport = common(config.congestion, config.mtu_upper_bound, config.idle_timeout_secs);
    transport.max_concurrent_uni_streams(VarInt::from_u32(CHUNKS_IN_FLIGHT));
    transport.max_concurrent_bidi_streams(VarInt::from_u32(0));
    transport.receive_window(VarInt::from_u32(TRANSFER_RECEIVE_WINDOW));
    // Only nodes: a server would wake all of them.
    transport.keep_alive_interval(Some(Duration::from_secs(config.keep_alive_secs)));
    Arc::new(transport)
}

/// Lets the other side send chunks.
pub(crate) fn take_chunks(connection: &Connection) {
    connection.set_max_concurrent_uni_streams(VarInt::from_u32(CHUNKS_IN_FLIGHT));
    // Never taken back: the library counts a window that shrinks and grows as more and more credit. What counts is the
    // number of streams, which does shrink; requests are read as they come and are small.
    connection.set_receive_window(VarInt::from_u32(TRANSFER_RECEIVE_WINDOW));
}

/// What may be sent and not acknowledged of copies, over a path with such a round trip.
pub(crate) fn cut_window(round_trip: Duration) -> u64 {
    if round_trip < NEAR { NEAR_CUT_WINDOW } else { SEND_WINDOW }
}

fn common(congestion: Congestion, mtu_upper_bound: u16, idle_timeout_secs: u64) -> TransportConfig {
    let mut transport = TransportConfig::default();
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(mtu_upper_bound);
    // Checked configurations are far below the protocol's bound of 2^62 milliseconds.
    let idle = IdleTimeout::try_from(Duration::from_secs(idle_timeout_secs)).ok();
    transport
        .stream_receive_window(VarInt::from_u32(STREAM_RECEIVE_WINDOW))
        .send_window(SEND_WINDOW)
        .initial_mtu(MIN_MTU)
        .min_mtu(MIN_MTU)
        .mtu_discovery_config(Some(discovery))
        .max_idle_timeout(idle)
        .datagram_receive_buffer_size(None);
    match congestion {
        Congestion::Cubic => {
            let mut cubic = CubicConfig::default();
            cubic.initial_window(INITIAL_WINDOW);
            transport.congestion_controller_factory(Arc::new(cubic))
        }
        Congestion::Bbr => {
            let mut bbr = BbrConfig::default();
            bbr.initial_window(INITIAL_WINDOW);
            transport.congestion_controller_factory(Arc::new(bbr))
        }
    };
    transport
}

/// What both ends' endpoints have in common.
pub(crate) fn endpoint_config(mtu_upper_bound: u16) -> Result<EndpointConfig, QuicError> {
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(mtu_upper_bound).map_err(|_| QuicError::Config {
        field: "mtu_upper_bound",
        value: mtu_upper_bound.to_string(),
        expected: "at least 1,200",
    })?;
    Ok(config)
}

/// A UDP socket with buffers for bursts.
pub(crate) fn socket(address: SocketAddr) -> Result<UdpSocket, QuicError> {
    let open = || -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        // The system may grant less, or refuse more than its limit: what was granted is read back below.
        let _ = socket.set_recv_buffer_size(SOCKET_BUFFER);
        let _ = socket.set_send_buffer_size(SOCKET_BUFFER);
        socket.bind(&address.into())?;
        Ok(socket)
    };
    let socket = open().map_err(|source| QuicError::Socket { address, source })?;
    let granted = |size: io::Result<usize>| size.unwrap_or(0);
    let (receive, send) = (granted(socket.recv_buffer_size()), granted(socket.send_buffer_size()));
    if receive.min(send) < SMALL_SOCKET_BUFFER {
        tracing::warn!(
            receive,
            send,
            advice = "packets will be lost when many nodes come at once; \
                      raise them with `sysctl -w net.core.rmem_max=8388608 net.core.wmem_max=8388608`",
            "socket.small_buffers"
        );
    }
    Ok(socket.into())
}
