//! One connection of a node that has greeted.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use quinn::{Connection, VarInt};
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::Instant;

use super::super::NodeId;
use super::super::tuning;
use super::counters::Counters;
use super::state::Shared;
use super::uploads::Upload;
use crate::wire::{ClientEntry, CloseCode, Message, TaskId, features};

/// One connection of a node that has greeted.
pub(super) struct Link {
    pub(super) node: NodeId,
    pub(super) connection: Connection,
    /// What both ends can do besides version 1.0, known when they have greeted.
    features: AtomicU64,
    pub(super) counters: Arc<Counters>,
    /// What it said of itself.
    pub(super) said: OnceLock<Said>,
    /// Tasks whose uploads wait for their beginning.
    beginning: Mutex<BTreeSet<TaskId>>,
    /// Told when there may be something to say on the watch stream.
    pub(super) wake: Notify,
    /// Clients of the announcement's parts that have come.
    pub(super) announcing: Mutex<Announcing>,
    /// What is to be said on the watch stream besides offers, in order.
    pushes: Mutex<VecDeque<Message>>,
    /// The uploads that may send.
    held: Mutex<BTreeMap<TaskId, Arc<Upload>>>,
    allowance: Mutex<Allowance>,
}

/// What a node says of itself as it greets, for people.
pub(super) struct Said {
    pub(super) labels: Vec<String>,
    pub(super) software: String,
}

/// The parts of an announcement that have come.
#[derive(Default)]
pub(super) struct Announcing {
    pub(super) clients: Vec<ClientEntry>,
    pub(super) next_part: u32,
}

/// How many requests a node may make: so many a second, and some for each task that it is offered.
struct Allowance {
    requests: f64,
    most: f64,
    per_second: f64,
    since: Instant,
}

impl Link {
    pub(super) fn new(node: NodeId, connection: Connection, shared: &Shared) -> Self {
        let most = f64::from(shared.config.request_burst);
        Self {
            node,
            connection,
            features: AtomicU64::new(0),
            counters: shared.counters.clone(),
            said: OnceLock::new(),
            beginning: Mutex::default(),
            wake: Notify::new(),
            announcing: Mutex::default(),
            pushes: Mutex::default(),
            held: Mutex::default(),
            allowance: Mutex::new(Allowance {
                requests: most,
                most,
                per_second: f64::from(shared.config.requests_per_second),
                since: Instant::now(),
            }),
        }
    }

    /// The other end has greeted: the connection has those features of its own and of ours.
    pub(super) fn agree(&self, theirs: u64) -> u64 {
        self.features.store(theirs & features::ALL, Ordering::Relaxed);
        theirs & features::ALL
    }

    pub(super) fn features(&self) -> u64 {
        self.features.load(Ordering::Relaxed)
    }

    /// Whether the connection has a feature.
    pub(super) fn has(&self, feature: u64) -> bool {
        self.features() & feature != 0
    }

    pub(super) fn close(&self, code: CloseCode, reason: &str) {
        self.counters.close(&self.connection, code, reason);
    }

    /// Says something on the watch stream. A node that does not listen is cut off.
    pub(super) fn push(&self, message: Message) {
        let mut pushes = lock(&self.pushes);
        if pushes.len() == MAX_PUSHES {
            drop(pushes);
            return self.close(CloseCode::Slow, "does not read what the server says");
        }
        pushes.push_back(message);
        drop(pushes);
        self.wake.notify_one();
    }

    pub(super) fn take_pushes(&self) -> VecDeque<Message> {
        std::mem::take(&mut lock(&self.pushes))
    }

    /// The right to wait for the beginning of a task's upload; `None` where that is being waited for.
    pub(super) fn begin(&self, task: TaskId) -> Option<Beginning<'_>> {
        let first = lock(&self.beginning).insert(task);
        first.then(|| Beginning { link: self, task })
    }

    /// Gives an upload the right to send chunks.
    pub(super) fn hold(&self, upload: Arc<Upload>) {
        lock(&self.held).insert(upload.task, upload);
        tuning::take_chunks(&self.connection);
    }

    /// Gives an upload that may send a slot; where it no longer may, others have it.
    pub(super) fn give_slot(&self, upload: &Arc<Upload>, slot: OwnedSemaphorePermit) -> bool {
        // What takes slots back does so under the same lock.
        let held = lock(&self.held);
        let holds = held.get(&upload.task).is_some_and(|held| Arc::ptr_eq(held, upload));
        if holds {
            upload.take_slot(slot);
        }
        holds
    }

    pub(super) fn held(&self, task: TaskId) -> Option<Arc<Upload>> {
        lock(&self.held).get(&task).cloned()
    }

    /// Uploads that may send.
    #[cfg(test)]
    pub(super) fn num_held(&self) -> usize {
        lock(&self.held).len()
    }

    /// Takes the right to send chunks back from every upload that is not `wanted`.
    pub(super) fn release(&self, mut wanted: impl FnMut(TaskId) -> bool) {
        let mut held = lock(&self.held);
        held.retain(|task, upload| {
            let keep = wanted(*task);
            if !keep {
                upload.release_slot();
            }
            keep
        });
        if held.is_empty() {
            self.connection.set_max_concurrent_uni_streams(VarInt::from_u32(0));
        }
    }

    /// Lets the node make the requests that so many tasks need.
    pub(super) fn allow_for_tasks(&self, tasks: usize) {
        let (mut allowance, more) = (lock(&self.allowance), REQUESTS_PER_TASK * tasks as f64);
        // What one batch of tasks did not use is not saved up for the next.
        allowance.requests = (allowance.requests + more).min(allowance.most + more);
    }

    /// How long a request has to wait for its turn.
    pub(super) fn turn(&self) -> Duration {
        let mut allowance = lock(&self.allowance);
        let now = Instant::now();
        let earned = now.duration_since(allowance.since).as_secs_f64() * allowance.per_second;
        allowance.since = now;
        if allowance.requests < allowance.most {
            allowance.requests = (allowance.requests + earned).min(allowance.most);
        }
        allowance.requests -= 1.0;
        Duration::from_secs_f64((-allowance.requests).max(0.0) / allowance.per_second)
    }
}

/// A task's upload waits for its beginning.
pub(super) struct Beginning<'a> {
    link: &'a Link,
    task: TaskId,
}

impl Drop for Beginning<'_> {
    fn drop(&mut self) {
        lock(&self.link.beginning).remove(&self.task);
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds one of these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Messages that may wait for a node to read them.
const MAX_PUSHES: usize = 1 << 16;
/// Requests that a node needs for a task, reconnections included.
const REQUESTS_PER_TASK: f64 = 16.0;
