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
    /// Which of the node's connections it is; none has the number of another.
    pub(super) number: u64,
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
    open: Vec<Open>,
    kept: Kept,
    end: Option<End>,
    /// Connections that there were.
    connections: u64,
}

/// A task that somebody works on.
struct Open {
    offer: TaskOffer,
    /// The connection on which it was offered once more meanwhile.
    again: Option<u64>,
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
            work: Mutex::new(Work::new(kept)),
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

    /// The number of a new connection.
    pub(super) fn next_connection(&self) -> u64 {
        let mut work = self.lock();
        work.connections += 1;
        work.connections
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

    /// A task was offered on the connection of this number. Gives the answer, where it was given before.
    pub(super) fn offered(&self, offer: TaskOffer, connection: u64) -> Option<Arc<Prepared>> {
        let kept = self.lock().offered(offer, connection);
        if kept.is_none() {
            self.wake.notify_one();
        }
        kept
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
            work.open.push(Open { offer: offer.clone(), again: None });
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
        work.open.iter().map(|open| &open.offer).find(fits).cloned()
    }

    /// The server keeps the answer itself.
    pub(super) fn is_durable(&self, task: TaskId) {
        self.lock().kept.forget(task);
    }

    /// Nobody works on the task any more. Its answer, where there is one that the server may ask for again, was taken on the
    /// connection of this number; `false` where the server has asked again on a later one, and nothing has changed then: it was
    /// killed after it took the answer, and waits for it.
    pub(super) fn done(&self, task: TaskId, answer: Option<Arc<Prepared>>, taken: Option<u64>) -> bool {
        let is_done = self.lock().done(task, answer, taken);
        // A task that was given up may wait for somebody again.
        self.wake.notify_one();
        is_done
    }

    /// Whether some task that waits or is worked on needs the blob.
    pub(super) fn needs(&self, root: Hash) -> bool {
        let work = self.lock();
        work.all().any(|offer| blobs(offer).any(|blob| blob.root == root))
    }

    fn lock(&self) -> MutexGuard<'_, Work> {
        // Nothing panics while it holds the lock.
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Work {
    fn new(kept: Kept) -> Self {
        Self { inbox: VecDeque::new(), open: Vec::new(), kept, end: None, connections: 0 }
    }

    /// What waits or is worked on.
    fn all(&self) -> impl Iterator<Item = &TaskOffer> {
        self.inbox.iter().chain(self.open.iter().map(|open| &open.offer))
    }

    fn offered(&mut self, offer: TaskOffer, connection: u64) -> Option<Arc<Prepared>> {
        if let Some(open) = self.open.iter_mut().find(|open| open.offer.task == offer.task) {
            // Whether this connection is the one on which the answer will be taken is known when it is.
            open.again = Some(connection);
            return None;
        }
        if self.inbox.iter().any(|known| known.task == offer.task) {
            return None;
        }
        if let Some(kept) = self.kept.find(offer.task) {
            return Some(kept);
        }
        if trains(&offer) {
            self.kept.goes_back(offer.round);
            self.kept.starts_from(offer.client, offer.state_of);
        }
        self.inbox.push_back(offer);
        None
    }

    fn done(&mut self, task: TaskId, answer: Option<Arc<Prepared>>, taken: Option<u64>) -> bool {
        let place = self.open.iter().position(|open| open.offer.task == task);
        let again = place.and_then(|place| self.open[place].again.take());
        // Connections are numbered in their order, and any is later than none.
        if taken.is_some() && again > taken {
            return false;
        }
        let offer = place.map(|place| self.open.remove(place).offer);
        match (answer, offer) {
            (Some(answer), _) => {
                // As `Kept::goes_back` and `Kept::starts_from` would say of it, had it been kept when these came.
                let over =
                    |o: &TaskOffer| o.round < answer.round || o.client == answer.client && o.state_of < answer.round;
                if !self.all().any(|offer| trains(offer) && over(offer)) {
                    self.kept.add(answer);
                }
            }
            // Given up with the connection that it came on, and offered on the next before that was known.
            (None, Some(offer)) if taken.is_none() && again.is_some_and(|again| again == self.connections) => {
                self.inbox.push_back(offer);
            }
            _ => {}
        }
        true
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

#[cfg(test)]
mod tests {
    use super::super::answer::Content;
    use super::*;
    use crate::wire::{Codec, Extensions};

    const TASK: TaskId = TaskId([7; 16]);

    fn offer() -> TaskOffer {
        TaskOffer {
            task: TASK,
            client: ClientId(1),
            round: RoundIndex(2),
            state_of: RoundIndex(1),
            durable: RoundIndex(1),
            remaining_ms: 1000,
            model: BlobRef { root: Hash([1; 32]), len: 12, codec: Codec::F32 },
            kind: TaskKind::Evaluate,
            ext: Extensions::default(),
        }
    }

    fn answer() -> Arc<Prepared> {
        let content = Content::Declined(fedburn_core::ClientFailure::NoData);
        Arc::new(Prepared { task: TASK, client: ClientId(1), round: RoundIndex(2), content })
    }

    /// At work on a task that was offered on the first connection.
    fn at_work() -> Work {
        let mut work = Work::new(Kept::new(1 << 20));
        work.connections = 1;
        assert!(work.offered(offer(), 1).is_none());
        let taken = work.inbox.pop_front().map(|offer| Open { offer, again: None });
        work.open.extend(taken);
        work
    }

    #[test]
    fn an_answer_that_a_killed_server_took_goes_to_the_one_that_asks_again() {
        let mut work = at_work();
        // Taken on the first connection; before anybody knows here, the server is killed, is back, and asks again.
        assert!(work.offered(offer(), 2).is_none());
        assert!(!work.done(TASK, Some(answer()), Some(1)), "to be sent again");
        assert!(work.done(TASK, Some(answer()), Some(2)));
        assert!(work.open.is_empty() && work.inbox.is_empty());
        assert!(work.offered(offer(), 3).is_some(), "from then on it is kept");
    }

    #[test]
    fn an_answer_that_is_taken_where_it_was_asked_for_again_is_sent_once() {
        let mut work = at_work();
        assert!(work.offered(offer(), 2).is_none());
        assert!(work.done(TASK, Some(answer()), Some(2)));
        let mut undisturbed = at_work();
        assert!(undisturbed.done(TASK, Some(answer()), Some(1)));
    }

    #[test]
    fn a_task_that_was_given_up_and_asked_for_again_waits_once_more() {
        let mut work = at_work();
        work.connections = 2;
        assert!(work.offered(offer(), 2).is_none());
        assert!(work.done(TASK, None, None));
        assert_eq!((work.open.len(), work.inbox.len()), (0, 1));
        let mut over = at_work();
        assert!(over.done(TASK, None, None));
        assert!(over.open.is_empty() && over.inbox.is_empty(), "nobody asked again");
    }
}
