//! A server's network as others see it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::super::status::{Declined, NetworkStatus, NodeStatus, Usage, ranges};
use super::counters::wire;
use super::endpoint::Door;

/// Looks at a server's network, from any thread, as often as it likes and also after the server has ended.
#[derive(Clone)]
pub struct NetworkWatch {
    door: Arc<Door>,
    /// Host and port by which nodes reach the server.
    reached: String,
}

impl NetworkWatch {
    pub(super) fn new(door: Arc<Door>, reached: String) -> Self {
        Self { door, reached }
    }

    /// The server is about to end: what is under way may take as long as the configuration says. What is not over by
    /// then is given up, with an error: nothing of it counts, and the next start of the server does it again.
    pub fn drain(&self) {
        let shared = self.door.shared.clone();
        self.door.handle.spawn(async move {
            tokio::time::sleep(Duration::from_secs(shared.config.drain_secs)).await;
            shared.give_up();
        });
    }

    /// Whether something was given up because the server was asked to end.
    pub fn gave_up(&self) -> bool {
        self.door.shared.failure().is_some_and(|failure| failure.wanted)
    }

    /// The network at this moment.
    pub fn status(&self) -> NetworkStatus {
        let shared = &self.door.shared;
        let counters = &shared.counters;
        let mut status = NetworkStatus::default();
        shared.each_node(|node, clients, link| {
            *(if link.is_some() { &mut status.connected } else { &mut status.away }) += 1;
            if status.nodes.len() < NetworkStatus::LISTED {
                let said = link.and_then(|link| link.said.get());
                status.nodes.push(NodeStatus {
                    node,
                    num_clients: clients.len() as u64,
                    clients: ranges(clients),
                    address: link.map(|link| link.connection.remote_address()),
                    labels: said.map(|said| said.labels.clone()).unwrap_or_default(),
                    software: said.map(|said| said.software.clone()).unwrap_or_default(),
                    wire: link.map(|link| wire(&link.connection.stats())).unwrap_or_default(),
                });
            }
        });
        let known = shared.identity.nodes().list();
        let declined = known.into_iter().filter_map(|n| Some(Declined { node: n.node, reason: n.declined? }));
        let (connections, wire) = self.door.traffic();
        let (uploads, upload_memory) = shared.uploads.usage();
        let slots = shared.config.download_slots;
        let (records, record_seconds) = counters.records();
        NetworkStatus {
            address: self.reached.clone(),
            clients: shared.clients().len() as u64,
            declined: declined.take(NetworkStatus::LISTED).collect(),
            connections: connections as u64,
            handshakes: counters.handshakes.load(Ordering::Relaxed),
            handshakes_failed: counters.handshakes_failed.load(Ordering::Relaxed),
            closed: counters.closed(),
            payload: counters.payload(),
            wire,
            uploads,
            downloads: Usage {
                used: (slots - shared.downloads.available_permits().min(slots)) as u64,
                all: slots as u64,
            },
            upload_memory,
            records,
            record_seconds,
            ..status
        }
    }
}
