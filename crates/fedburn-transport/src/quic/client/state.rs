//! What a node knows, shared between its event loop and those who work.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fedburn_core::{ClientId, RoundIndex, TransportError};
use quinn::Connection;
use tokio::sync::{Notify, Semaphore};

use super::super::QuicError;
use super::super::stream::close;
use super::super::watched::Watched;
use super::answer::Prepared;
use super::connect::Dialer;
use super::download::Downloads;
use super::failure::Failure;
use super::kept::Kept;
use crate::wire::{BlobRef, ClientEntry, CloseCode, Hash, ServerLimits, TaskId, TaskKind, TaskOffer};

/// What a node knows.
pub(super) struct Shared {
    pub(super) dialer: Dialer,
    pub(super) clients: Vec<ClientEntry>,
    /// Fingerprint of the model's schema.
    pub(super) schema: u64,
    pub(super) plan_hash: Hash,
    pub(super) plan: BlobRef,
    /// Bytes of the chunks that the server takes.
    pub(super) chunk_len: u32,
    pub(super) downloads: Arc<Downloads>,
    pub(super) uploads: Semaphore,
    status: Watched<Status>,
    work: Mutex<Work>,
    /// Told when there is something to do, or never will be.
    wake: Notify,
}

/// How the node stands with its server.
#[derive(Clone)]
pub(super) enum Status {
    /// Not connected.
    Down,
    /// Connected.
    Up(Arc<Live>),
    /// It will not be connected again; [`Shared::end`] says why.
    Ended,
}

/// A connection on which both sides have greeted.
pub(super) struct Live {
    pub(super) connection: Connection,
    pub(super) limits: ServerLimits,
}

/// Why there will be nothing more.
#[derive(Clone)]
pub(super) enum End {
    /// The server said goodbye, or the node left.
    Goodbye,
    /// It will never work.
    Failed(Arc<QuicError>),
}

struct Work {
    inbox: VecDeque<TaskOffer>,
    /// What somebody works on.
    open: Vec<TaskOffer>,
    kept: Kept,
    end: Option<End>,
}

/// What the node is, decided before it connects for good.
pub(super) struct Parts {
    pub(super) dialer: Dialer,
    pub(super) clients: Vec<ClientEntry>,
    pub(super) schema: u64,
    pub(super) plan_hash: Hash,
    pub(super) plan: BlobRef,
    pub(super) chunk_len: u32,
}

impl Shared {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { dialer, clients, schema, plan_hash, plan, chunk_len } = parts;
        let kept = Kept::new(dialer.config().kept_mib << 20);
        Self {
            downloads: Arc::default(),
            uploads: Semaphore::new(dialer.config().uploads),
            dialer,
            clients,
            schema,
            plan_hash,
            plan,
            chunk_len,
            status: Watched::new(Status::Down),
            work: Mutex::new(Work { inbox: VecDeque::new(), open: Vec::new(), kept, end: None }),
            wake: Notify::new(),
        }
    }

    // The connection.

    /// Waits for a connection.
    pub(super) async fn live(&self) -> Result<Arc<Live>, Failure> {
        match self.status.wait_for(|status| !matches!(status, Status::Down)).await {
            Status::Up(live) => Ok(live),
            _ => Err(Failure::Passing("the node has left".to_owned())),
        }
    }

    /// Waits until a connection that failed is known to have; it is closed if it is not.
    pub(super) async fn lost(&self, live: &Arc<Live>) {
        close(&live.connection, CloseCode::Slow, "gave up");
        let other = |status: &Status| !matches!(status, Status::Up(current) if Arc::ptr_eq(current, live));
        self.status.wait_for(other).await;
    }

    /// A new connection: what the server still wants it will offer again.
    pub(super) fn connected(&self, live: Arc<Live>) {
        self.lock().inbox.clear();
        self.stands(Status::Up(live));
    }

    pub(super) fn disconnected(&self) {
        self.stands(Status::Down);
    }

    /// How the node stands from now on; its end is the end.
    fn stands(&self, new: Status) {
        self.status.update(|status| {
            if !matches!(status, Status::Ended) {
                *status = new;
            }
        });
    }

    /// There will be nothing more. The first reason stands.
    pub(super) fn finish(&self, end: End) {
        let mut work = self.lock();
        work.inbox.clear();
        work.end.get_or_insert(end);
        drop(work);
        self.stands(Status::Ended);
        self.wake.notify_waiters();
    }

    pub(super) fn end(&self) -> Option<End> {
        self.lock().end.clone()
    }

    /// Follows the connection's state.
    pub(super) fn status(&self) -> &Watched<Status> {
        &self.status
    }

    // Work.

    /// A task was offered. Gives the answer, where it was given before.
    pub(super) fn offered(&self, offer: TaskOffer) -> Option<Arc<Prepared>> {
        let mut work = self.lock();
        if work.open.iter().chain(&work.inbox).any(|known| known.task == offer.task) {
            return None;
        }
        if let Some(kept) = work.kept.find(offer.task) {
            return Some(kept);
        }
        if trains(&offer) {
            work.kept.goes_back(offer.round);
            work.kept.starts_from(offer.client, offer.state_of);
        }
        work.inbox.push_back(offer);
        drop(work);
        self.wake.notify_one();
        None
    }

    pub(super) fn cancelled(&self, task: TaskId) {
        self.lock().inbox.retain(|offer| offer.task != task);
    }

    pub(super) fn round_closed(&self, round: RoundIndex) {
        self.lock().kept.round_closed(round);
    }

    /// Waits for something to do; `None` where there will be nothing more.
    pub(super) async fn next(&self) -> Result<Option<TaskOffer>, TransportError> {
        loop {
            let woken = self.wake.notified();
            if let Some(next) = self.take_next() {
                return next;
            }
            woken.await;
        }
    }

    /// What there is to do, or that there will be nothing more; `None` where neither is known yet.
    fn take_next(&self) -> Option<Result<Option<TaskOffer>, TransportError>> {
        let mut work = self.lock();
        if let Some(offer) = work.inbox.pop_front() {
            work.open.push(offer.clone());
            return Some(Ok(Some(offer)));
        }
        work.end.as_ref().map(|end| match end {
            End::Goodbye => Ok(None),
            End::Failed(error) => Err(TransportError::Closed { reason: error.to_string() }),
        })
    }

    /// The task that is answered: the oldest that the client was given in this round, of the kind that the answer is of
    /// where it tells.
    pub(super) fn given(&self, client: ClientId, round: RoundIndex, trained: Option<bool>) -> Option<TaskOffer> {
        let work = self.lock();
        let fits = |offer: &&TaskOffer| {
            let fits = |trained| trained == trains(offer);
            offer.client == client && offer.round == round && trained.is_none_or(fits)
        };
        work.open.iter().find(fits).cloned()
    }

    /// The server keeps the answer itself.
    pub(super) fn is_durable(&self, task: TaskId) {
        self.lock().kept.forget(task);
    }

    /// Nobody works on the task any more; its answer may be asked for again.
    pub(super) fn done(&self, task: TaskId, answer: Option<Arc<Prepared>>) {
        let mut work = self.lock();
        work.open.retain(|offer| offer.task != task);
        let Some(answer) = answer else { return };
        // As `Kept::goes_back` and `Kept::starts_from` would say of it, had it been kept when these came.
        let over = |o: &TaskOffer| o.round < answer.round || o.client == answer.client && o.state_of < answer.round;
        if !work.open.iter().chain(&work.inbox).any(|offer| trains(offer) && over(offer)) {
            work.kept.add(answer);
        }
    }

    /// Whether some task that waits or is worked on needs the blob.
    pub(super) fn needs(&self, root: Hash) -> bool {
        let work = self.lock();
        work.inbox.iter().chain(&work.open).any(|offer| blobs(offer).any(|blob| blob.root == root))
    }

    fn lock(&self) -> MutexGuard<'_, Work> {
        // Nothing panics while it holds the lock.
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn trains(offer: &TaskOffer) -> bool {
    matches!(offer.kind, TaskKind::Train { .. })
}

/// The blobs that a task needs.
fn blobs(offer: &TaskOffer) -> impl Iterator<Item = BlobRef> + '_ {
    let side = match &offer.kind {
        TaskKind::Train { side_vectors, .. } => side_vectors.as_slice(),
        _ => &[],
    };
    std::iter::once(offer.model).chain(side.iter().map(|named| named.blob))
}
