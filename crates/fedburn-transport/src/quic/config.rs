//! Settings of both ends, with the values that were measured to work.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::QuicError;
use crate::wire::limits::{MAX_LABEL, MAX_LABELS};

/// How packets are paced when the path is the bottleneck.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Congestion {
    /// CUBIC (RFC 9438).
    #[default]
    Cubic,
    /// BBR, an experiment of the QUIC library: it can send several times the bytes that CUBIC does.
    Bbr,
}

/// Settings of a server.
///
/// # Examples
///
/// ```
/// use fedburn_transport::quic::QuicConfig;
///
/// let config = QuicConfig { listen: "127.0.0.1:0".parse()?, ..QuicConfig::default() };
/// config.check()?;
/// assert!(QuicConfig { mtu_upper_bound: 9000, ..config }.check().is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QuicConfig {
    /// Address and UDP port to listen at; port 0 for any free one. `0.0.0.0:4843` by default.
    pub listen: SocketAddr,
    /// Name or address by which nodes reach the server, for the join string; the listening address where it is not
    /// said.
    pub public_host: Option<String>,
    /// Connections at once, 10,000 by default.
    pub connections: usize,
    /// Connections of one node at once, 4 by default.
    pub connections_per_node: usize,
    /// Connections without a certificate of one address at once, 64 by default.
    pub strangers_per_address: usize,
    /// Clients that nodes may announce in all, 1,000,000 by default.
    pub clients: usize,
    /// Handshakes at once, 32 by default; others wait.
    pub handshakes: usize,
    /// Seconds for a handshake, 10 by default.
    pub handshake_timeout_secs: u64,
    /// Seconds after the handshake for the first message, 5 by default.
    pub hello_timeout_secs: u64,
    /// Uploads at once, 16 by default; others wait in the order of their asking.
    pub upload_slots: usize,
    /// MiB for updates that are being received, 128 by default. One update is taken however large it is.
    pub upload_memory_mib: u64,
    /// Downloads at once, 32 by default.
    pub download_slots: usize,
    /// Seconds without a byte after which a transfer is given up, 30 by default.
    pub progress_timeout_secs: u64,
    /// Bytes per second below which, on average since it began, an upload is given up, and a download where it is so for
    /// `progress_timeout_secs`; 8,192 by default.
    pub min_rate: u64,
    /// Seconds for which a node may be away without losing its clients, 30 by default.
    pub reconnect_grace_secs: u64,
    /// Seconds for finishing when the server ends, 20 by default.
    pub drain_secs: u64,
    /// Requests per second of one node beyond those that its tasks need, 50 by default.
    pub requests_per_second: u32,
    /// Requests that a node may make at once, 200 by default.
    pub request_burst: u32,
    /// Seconds without a packet after which a connection is dead, 45 by default.
    pub idle_timeout_secs: u64,
    /// Largest UDP payload that is tried, 6,500 bytes by default, at most 6,550.
    pub mtu_upper_bound: u16,
    /// Congestion control.
    pub congestion: Congestion,
}

impl Default for QuicConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, DEFAULT_PORT)),
            public_host: None,
            connections: 10_000,
            connections_per_node: 4,
            strangers_per_address: 64,
            clients: 1_000_000,
            handshakes: 32,
            handshake_timeout_secs: 10,
            hello_timeout_secs: 5,
            upload_slots: 16,
            upload_memory_mib: 128,
            download_slots: 32,
            progress_timeout_secs: 30,
            min_rate: 8 << 10,
            reconnect_grace_secs: 30,
            drain_secs: 20,
            requests_per_second: 50,
            request_burst: 200,
            idle_timeout_secs: 45,
            mtu_upper_bound: DEFAULT_MTU,
            congestion: Congestion::default(),
        }
    }
}

impl QuicConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// [`QuicError::Config`] with the first field that is out of its range.
    pub fn check(&self) -> Result<(), QuicError> {
        at_least_one("connections", self.connections as u64)?;
        at_least_one("connections_per_node", self.connections_per_node as u64)?;
        at_least_one("strangers_per_address", self.strangers_per_address as u64)?;
        at_least_one("clients", self.clients as u64)?;
        at_least_one("handshakes", self.handshakes as u64)?;
        at_least_one("handshake_timeout_secs", self.handshake_timeout_secs)?;
        at_least_one("hello_timeout_secs", self.hello_timeout_secs)?;
        at_least_one("upload_slots", self.upload_slots as u64)?;
        at_least_one("download_slots", self.download_slots as u64)?;
        at_least_one("progress_timeout_secs", self.progress_timeout_secs)?;
        at_least_one("requests_per_second", u64::from(self.requests_per_second))?;
        at_least_one("request_burst", u64::from(self.request_burst))?;
        let memory = self.upload_memory_mib;
        ensure((1..=MAX_MEMORY_MIB).contains(&memory), "upload_memory_mib", memory, "1 to 1,048,576")?;
        check_link(self.idle_timeout_secs, self.mtu_upper_bound)
    }

    pub(crate) fn reconnect_grace(&self) -> Duration {
        Duration::from_secs(self.reconnect_grace_secs)
    }

    pub(crate) fn progress_timeout(&self) -> Duration {
        Duration::from_secs(self.progress_timeout_secs)
    }
}

/// Settings of a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClientConfig {
    /// What the node's operator calls it: at most 64 labels of at most 128 bytes.
    pub labels: Vec<String>,
    /// Seconds for one attempt to connect, 10 by default.
    pub connect_timeout_secs: u64,
    /// Seconds after which a server that cannot be reached is given up, 600 by default.
    pub server_away_secs: u64,
    /// The first wait between attempts is up to so many milliseconds, 500 by default; it doubles with each.
    pub backoff_base_ms: u64,
    /// The longest wait between attempts in seconds, 60 by default.
    pub backoff_cap_secs: u64,
    /// Seconds for the answer to an ordinary request, 30 by default.
    pub request_timeout_secs: u64,
    /// Seconds without a byte after which a transfer is begun again, 30 by default.
    pub progress_timeout_secs: u64,
    /// Updates that are on their way at once, 4 by default.
    pub uploads: usize,
    /// MiB of updates that are kept until their round ends, in case that the server has to ask again, 256 by default.
    pub kept_mib: u64,
    /// Seconds without a packet after which the connection is dead, 45 by default.
    pub idle_timeout_secs: u64,
    /// Seconds of silence after which the node shows that it is alive, 10 by default.
    pub keep_alive_secs: u64,
    /// Largest UDP payload that is tried, 6,500 bytes by default, at most 6,550.
    pub mtu_upper_bound: u16,
    /// Congestion control.
    pub congestion: Congestion,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            labels: Vec::new(),
            connect_timeout_secs: 10,
            server_away_secs: 600,
            backoff_base_ms: 500,
            backoff_cap_secs: 60,
            request_timeout_secs: 30,
            progress_timeout_secs: 30,
            uploads: 4,
            kept_mib: 256,
            idle_timeout_secs: 45,
            keep_alive_secs: 10,
            mtu_upper_bound: DEFAULT_MTU,
            congestion: Congestion::default(),
        }
    }
}

impl ClientConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// [`QuicError::Config`] with the first field that is out of its range.
    pub fn check(&self) -> Result<(), QuicError> {
        let fit = self.labels.len() <= MAX_LABELS && self.labels.iter().all(|label| label.len() <= MAX_LABEL);
        ensure(fit, "labels", format!("{:?}", self.labels), "at most 64 labels of at most 128 bytes")?;
        at_least_one("connect_timeout_secs", self.connect_timeout_secs)?;
        at_least_one("backoff_base_ms", self.backoff_base_ms)?;
        at_least_one("backoff_cap_secs", self.backoff_cap_secs)?;
        at_least_one("request_timeout_secs", self.request_timeout_secs)?;
        at_least_one("progress_timeout_secs", self.progress_timeout_secs)?;
        ensure((1..=MAX_UPLOADS).contains(&self.uploads), "uploads", self.uploads, "1 to 8")?;
        ensure(self.kept_mib <= MAX_MEMORY_MIB, "kept_mib", self.kept_mib, "at most 1,048,576")?;
        at_least_one("keep_alive_secs", self.keep_alive_secs)?;
        let alive = self.keep_alive_secs < self.idle_timeout_secs;
        ensure(alive, "keep_alive_secs", self.keep_alive_secs, "less than `idle_timeout_secs`")?;
        check_link(self.idle_timeout_secs, self.mtu_upper_bound)
    }
}

fn check_link(idle_timeout_secs: u64, mtu_upper_bound: u16) -> Result<(), QuicError> {
    ensure((1..=86_400).contains(&idle_timeout_secs), "idle_timeout_secs", idle_timeout_secs, "1 to 86,400")?;
    let usable = (MIN_MTU..=MAX_MTU).contains(&mtu_upper_bound);
    ensure(usable, "mtu_upper_bound", mtu_upper_bound, "1,200 to 6,550: ten packets of it must fit one system call")
}

fn at_least_one(field: &'static str, value: u64) -> Result<(), QuicError> {
    ensure(value > 0, field, value, "at least 1")
}

fn ensure(ok: bool, field: &'static str, value: impl ToString, expected: &'static str) -> Result<(), QuicError> {
    if ok { Ok(()) } else { Err(QuicError::Config { field, value: value.to_string(), expected }) }
}

/// The UDP port where nothing else is said.
const DEFAULT_PORT: u16 = 4843;
/// On loopback and jumbo frames twice as fast as Ethernet's size, and not much slower where it does not fit.
const DEFAULT_MTU: u16 = 6_500;
/// QUIC guarantees so much on every path.
pub(crate) const MIN_MTU: u16 = 1_200;
/// The library sends ten packets a system call, together at most 65,507 bytes; with more it hangs or falls back.
const MAX_MTU: u16 = 6_550;
const MAX_MEMORY_MIB: u64 = 1 << 20;
/// An upload needs two streams besides those that wait; a connection has sixteen.
const MAX_UPLOADS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_hold_and_each_limit_is_named() {
        QuicConfig::default().check().unwrap();
        ClientConfig::default().check().unwrap();
        let refused = |config: QuicConfig, field: &str| match config.check() {
            Err(QuicError::Config { field: found, .. }) => assert_eq!(found, field),
            other => panic!("{field}: {other:?}"),
        };
        refused(QuicConfig { mtu_upper_bound: 6_551, ..Default::default() }, "mtu_upper_bound");
        refused(QuicConfig { mtu_upper_bound: 1_199, ..Default::default() }, "mtu_upper_bound");
        refused(QuicConfig { upload_slots: 0, ..Default::default() }, "upload_slots");
        refused(QuicConfig { upload_memory_mib: 0, ..Default::default() }, "upload_memory_mib");
        let config = ClientConfig { keep_alive_secs: 45, ..Default::default() };
        assert!(config.check().unwrap_err().to_string().contains("keep_alive_secs"));
    }

    #[test]
    fn unknown_fields_are_refused() {
        assert!(serde_json::from_str::<QuicConfig>(r#"{"mtu": 1200}"#).is_err());
        let config: QuicConfig = serde_json::from_str(r#"{"upload_slots": 3}"#).unwrap();
        assert_eq!(config, QuicConfig { upload_slots: 3, ..Default::default() });
    }
}
