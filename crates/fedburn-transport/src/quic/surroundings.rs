//! What an endpoint takes from outside itself: packets, and randomness that decides nothing that a run computes. Its
//! clock is tokio's. Whoever brings other ones has the same server and the same nodes in a world of their own.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::{AsyncUdpSocket, Endpoint, EndpointConfig, Runtime, ServerConfig, TokioRuntime};
use rustls::crypto::CryptoProvider;

use super::{QuicError, tls, tuning};

/// What an endpoint takes from outside itself.
#[derive(Clone)]
pub(crate) struct Surroundings {
    /// Cryptography, and the randomness of keys, connection ids and waits.
    pub(crate) provider: Arc<CryptoProvider>,
    pub(crate) sockets: Arc<dyn Sockets>,
    /// How long work off the event loop takes at least: nothing on a machine. Where time is simulated it stands still
    /// until the work is done; then its end needs a moment of its own for events to have one order.
    pub(crate) work_takes: Duration,
}

/// Where packets go to and come from.
pub(crate) trait Sockets: Send + Sync {
    /// A socket at this local address; must be called inside the event loop.
    fn open(&self, address: SocketAddr) -> Result<Arc<dyn AsyncUdpSocket>, QuicError>;
}

impl Surroundings {
    /// The machine's own.
    pub(crate) fn machine() -> Self {
        Self { provider: tls::provider(), sockets: Arc::new(Udp), work_takes: Duration::ZERO }
    }

    /// An endpoint at this local address; must be called inside the event loop.
    pub(crate) fn endpoint(
        &self,
        address: SocketAddr,
        mut config: EndpointConfig,
        server: Option<ServerConfig>,
    ) -> Result<Endpoint, QuicError> {
        config.rng_seed(Some(self.random()?));
        let made =
            Endpoint::new_with_abstract_socket(config, server, self.sockets.open(address)?, Arc::new(TokioRuntime));
        made.map_err(|source| QuicError::Socket { address, source })
    }

    /// Waits for what is done on another thread.
    pub(crate) async fn elsewhere<T>(&self, work: impl Future<Output = T>) -> T {
        match self.work_takes.is_zero() {
            true => work.await,
            false => tokio::join!(tokio::time::sleep(self.work_takes), work).1,
        }
    }

    /// Random bytes.
    pub(crate) fn random<const N: usize>(&self) -> Result<[u8; N], QuicError> {
        let mut bytes = [0; N];
        let drawn = self.provider.secure_random.fill(&mut bytes);
        drawn.map(|()| bytes).map_err(|_| QuicError::Tls { reason: "no randomness".to_owned() })
    }
}

impl fmt::Debug for Surroundings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Surroundings")
    }
}

/// The system's sockets.
struct Udp;

impl Sockets for Udp {
    fn open(&self, address: SocketAddr) -> Result<Arc<dyn AsyncUdpSocket>, QuicError> {
        let wrapped = TokioRuntime.wrap_udp_socket(tuning::socket(address)?);
        wrapped.map_err(|source| QuicError::Socket { address, source })
    }
}
