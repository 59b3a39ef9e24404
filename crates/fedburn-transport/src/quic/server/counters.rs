//! What a server counts, for whoever looks after it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quinn::{Connection, ConnectionStats};

use super::super::status::Traffic;
use super::super::stream;
use super::link::lock;
use crate::wire::CloseCode;

/// Sums since the server started. Relaxed: each stands for itself.
#[derive(Default)]
pub(super) struct Counters {
    pub(super) handshakes: AtomicU64,
    pub(super) handshakes_failed: AtomicU64,
    pub(super) payload_up: AtomicU64,
    pub(super) payload_down: Arc<AtomicU64>,
    /// UDP bytes of connections that ended.
    ended: Mutex<Traffic>,
    closed: Mutex<BTreeMap<CloseCode, u64>>,
    records: Mutex<(u64, Duration)>,
}

impl Counters {
    /// Closes a connection and counts it, unless it is closed already.
    pub(super) fn close(&self, connection: &Connection, code: CloseCode, reason: &str) {
        if connection.close_reason().is_none() {
            *lock(&self.closed).entry(code).or_default() += 1;
            stream::close(connection, code, reason);
        }
    }

    /// Connections that were closed, by code.
    pub(super) fn closed(&self) -> BTreeMap<String, u64> {
        lock(&self.closed).iter().map(|(code, count)| (code.name().to_owned(), *count)).collect()
    }

    /// Counts the bytes of a connection that ended.
    pub(super) fn ended(&self, connection: &Connection) {
        let (mut ended, wire) = (lock(&self.ended), wire(&connection.stats()));
        (ended.up, ended.down) = (ended.up + wire.up, ended.down + wire.down);
    }

    /// UDP bytes of all connections, of which `live` are open.
    pub(super) fn wire<'a>(&self, live: impl Iterator<Item = &'a Connection>) -> Traffic {
        live.map(|connection| wire(&connection.stats())).fold(*lock(&self.ended), |sum, connection| Traffic {
            up: sum.up + connection.up,
            down: sum.down + connection.down,
        })
    }

    /// Counts a record that was written.
    pub(super) fn recorded(&self, took: Duration) {
        let mut records = lock(&self.records);
        (records.0, records.1) = (records.0 + 1, records.1 + took);
    }

    /// Records that were written, and seconds that it took.
    pub(super) fn records(&self) -> (u64, f64) {
        let (count, took) = *lock(&self.records);
        (count, took.as_secs_f64())
    }

    pub(super) fn payload(&self) -> Traffic {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Traffic { up: load(&self.payload_up), down: load(&self.payload_down) }
    }
}

/// Counts something that came or went.
pub(super) fn add(counter: &AtomicU64, count: usize) {
    counter.fetch_add(count as u64, Ordering::Relaxed);
}

/// UDP bytes of a connection, as the server sees up and down.
pub(super) fn wire(stats: &ConnectionStats) -> Traffic {
    Traffic { up: stats.udp_rx.bytes, down: stats.udp_tx.bytes }
}
