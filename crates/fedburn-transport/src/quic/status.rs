//! What a server's network is doing, for whoever looks after it.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use fedburn_core::ClientId;
use serde::{Deserialize, Serialize};

use super::NodeId;

/// A server's network at one moment. Sums count from the start of the server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NetworkStatus {
    /// Host and port by which nodes reach the server.
    pub address: String,
    /// Clients that may be asked.
    pub clients: u64,
    /// Nodes with a live connection that have said which clients they are.
    pub connected: u64,
    /// Nodes that went away less than the grace period ago.
    pub away: u64,
    /// The first of these nodes by identity, at most [`NetworkStatus::LISTED`].
    pub nodes: Vec<NodeStatus>,
    /// Nodes whose owners do not permit the plan, at most [`NetworkStatus::LISTED`].
    pub declined: Vec<Declined>,
    /// Connections that are open, those of strangers who enrol included.
    pub connections: u64,
    /// Handshakes that ended well.
    pub handshakes: u64,
    /// Handshakes that failed: no common version, a certificate that does not hold, or too slow.
    pub handshakes_failed: u64,
    /// Connections that the server closed, by the name of the close code.
    pub closed: BTreeMap<String, u64>,
    /// Bytes of models and updates, without what the network adds; what was sent twice counts twice.
    pub payload: Traffic,
    /// Bytes of UDP packets of nodes, everything included.
    pub wire: Traffic,
    /// Uploads under way, and how many there may be.
    pub uploads: Usage,
    /// Downloads under way, and how many there may be.
    pub downloads: Usage,
    /// Bytes set aside for updates that are being received or wait to be used.
    pub upload_memory: Usage,
    /// How often the record of who took part was written.
    pub records: u64,
    /// Seconds that this took, the disk's confirmation included.
    pub record_seconds: f64,
}

impl NetworkStatus {
    /// Nodes that are listed by name.
    pub const LISTED: usize = 256;
}

/// One node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Who it is.
    pub node: NodeId,
    /// Number of its clients.
    pub num_clients: u64,
    /// Its clients for people: `0-9, 12`; cut after some parts.
    pub clients: String,
    /// Where it connects from; `None` while it is away.
    pub address: Option<SocketAddr>,
    /// What its operator calls it.
    pub labels: Vec<String>,
    /// Name and version of its software, as it says.
    pub software: String,
    /// Bytes of UDP packets of its connection that lives.
    pub wire: Traffic,
}

/// A node that does not take part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Declined {
    /// Who it is.
    pub node: NodeId,
    /// What its owner does not permit, in the node's words.
    pub reason: String,
}

/// Bytes by direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// From nodes to the server.
    pub up: u64,
    /// From the server to nodes.
    pub down: u64,
}

/// How much of something is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// In use.
    pub used: u64,
    /// All that there is.
    pub all: u64,
}

/// Sorted clients in few words: `0-9, 12`.
pub(super) fn ranges(clients: &[ClientId]) -> String {
    let mut parts = Vec::new();
    let mut rest = clients;
    while let Some(first) = rest.first() {
        if parts.len() == MAX_PARTS {
            parts.push("…".to_owned());
            break;
        }
        let run = rest.iter().zip(first.0..=u64::MAX).take_while(|(client, expected)| client.0 == *expected).count();
        parts.push(if run == 1 { first.to_string() } else { format!("{first}-{}", rest[run - 1]) });
        rest = &rest[run..];
    }
    parts.join(", ")
}

/// Parts of a list of clients for people.
const MAX_PARTS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_told_in_few_words() {
        let told = |clients: &[u64]| ranges(&clients.iter().copied().map(ClientId).collect::<Vec<_>>());
        assert_eq!(told(&[]), "");
        assert_eq!(told(&[7]), "7");
        assert_eq!(told(&[0, 1, 2, 5, 8, 9]), "0-2, 5, 8-9");
        assert_eq!(told(&[u64::MAX - 1, u64::MAX]), format!("{}-{}", u64::MAX - 1, u64::MAX));
        let sparse: Vec<u64> = (0..100).map(|i| 2 * i).collect();
        assert_eq!(told(&sparse), "0, 2, 4, 6, 8, 10, 12, 14, …");
    }
}
