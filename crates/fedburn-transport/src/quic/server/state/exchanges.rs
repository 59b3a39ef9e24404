//! What a server knows of the exchange that is open: offers, answers, uploads, and the end of it all.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fedburn_core::{ClientFailure, ParamSchema, RoundIndex};

use super::super::super::NodeId;
use super::super::super::blob::Form;
use super::super::super::send::Blob;
use super::super::link::Link;
use super::super::record::Entry;
use super::super::tasks::{Arrived, Exchange};
use super::super::uploads::{Memory, Upload};
use super::{Failure, Shared};
use crate::wire::{
    Cancel, CommitState, Extensions, Hash, Message, RoundClosed, TaskId, TaskKind, TaskOffer, compression_from_wire,
    slice_from_wire,
};

impl Shared {
    /// Opens an exchange. What an earlier one left is over, and so is this one where the server cannot go on.
    pub(in super::super) fn open(&self, exchange: Exchange, blobs: BTreeMap<Hash, Arc<Blob>>) {
        self.finish();
        let mut federation = self.lock();
        // Looked at under the lock: who fails later finds the exchange, and ends it.
        if self.failure().is_some() {
            return;
        }
        (federation.exchange, federation.blobs) = (Some(exchange), blobs);
        Self::links(&federation).for_each(|link| link.wake.notify_one());
    }

    /// Ends the exchange: what was not answered is no longer wanted, unless this is because the server cannot go on. Nodes
    /// are told nothing then, and wait for its return.
    pub(in super::super) fn finish(&self) {
        let mut federation = self.lock();
        federation.blobs.clear();
        let Some(exchange) = federation.exchange.take() else { return };
        for (node, task) in exchange.unanswered().filter(|_| self.failure().is_none()) {
            if let Some(link) = federation.nodes.get(&node).and_then(|node| node.link.as_ref()) {
                let reason = "the exchange is over".to_owned();
                link.push(Message::Cancel(Cancel { task, reason, ext: Extensions::default() }));
            }
        }
        Self::links(&federation).for_each(|link| link.release(|_| false));
        drop(federation);
        self.exchanges.update(|exchanges| *exchanges += 1);
    }

    /// Changes when an exchange ends.
    pub(in super::super) fn exchange_over(&self) -> impl Future<Output = ()> {
        let before = self.exchanges.get();
        async move {
            self.exchanges.wait_for(|now| *now != before).await;
        }
    }

    /// Tells everybody that a round ended.
    pub(in super::super) fn round_closed(&self, round: RoundIndex) {
        let federation = self.lock();
        let message = Message::RoundClosed(RoundClosed { round, ext: Extensions::default() });
        Self::links(&federation).for_each(|link| link.push(message.clone()));
    }

    pub(in super::super) fn offers(&self, node: NodeId, offered: &mut BTreeSet<TaskId>) -> Vec<TaskOffer> {
        self.lock().exchange.as_ref().map_or_else(Vec::new, |exchange| exchange.offers(node, offered))
    }

    pub(in super::super) fn is_open(&self, node: NodeId, task: TaskId) -> bool {
        self.lock().exchange.as_ref().is_some_and(|exchange| exchange.is_open(node, task))
    }

    /// The offer of a task of this node that belongs to the open exchange.
    pub(in super::super) fn offer(&self, node: NodeId, task: TaskId) -> Option<TaskOffer> {
        self.lock().exchange.as_ref()?.offer(node, task).cloned()
    }

    /// What the update in answer to a task of this node looks like: the model, or the part of it that the task is about;
    /// `None` where there is no such task.
    pub(in super::super) fn schema(&self, node: NodeId, task: TaskId) -> Option<Arc<ParamSchema>> {
        // Cannot fail: the offer is our own.
        self.schemas.part(&slice_from_wire(&self.offer(node, task)?.ext).ok()?).ok()
    }

    /// The payload of an update in answer to a task of this node, with so many vectors beside the parameters; `None` where
    /// there is no such task.
    pub(in super::super) fn form(&self, node: NodeId, task: TaskId, sides: usize) -> Option<Form> {
        let offer = self.offer(node, task)?;
        // Cannot fail: the offer is our own.
        let up = compression_from_wire(&offer.ext).unwrap_or_default().up;
        let schema = self.schema(node, task)?;
        let num_values = schema.num_values();
        Some(match up.is_lossless() {
            true => Form::Plain { num_values, num_vectors: 1 + sides },
            false => Form::Encoded { len: up.vector_len(&schema) + 4 * num_values * sides },
        })
    }

    /// Why there is no room for an update with so many vectors beside the parameters. One that is larger than all the
    /// memory for uploads is taken alone, but only for what the task needs: the model, and another vector for each that
    /// came with it, or a first.
    pub(in super::super) fn beyond_memory(&self, node: NodeId, task: TaskId, sides: usize) -> Option<String> {
        let sent = match self.offer(node, task)?.kind {
            TaskKind::Train { side_vectors, .. } => side_vectors.len(),
            TaskKind::Evaluate => 0,
        };
        let (len, (_, memory)) = (self.form(node, task, sides)?.len(), self.uploads.usage());
        (sides > sent.max(1) && len > memory.all).then(|| {
            format!("{sides} vectors beside the model, {len} bytes in all, where the server takes {}", memory.all)
        })
    }

    /// What became of an answered task; `None` while it is open.
    pub(in super::super) fn answered(&self, task: TaskId, digest: Option<Hash>) -> Option<CommitState> {
        self.lock().exchange.as_ref()?.answered(task, digest)
    }

    /// Takes the answer to a task of `link`'s node; where answers are kept, it is on disk when this returns. `None`
    /// where the server cannot keep it, and is about to end.
    pub(in super::super) async fn answer(
        &self,
        link: &Link,
        task: TaskId,
        digest: Hash,
        reply: Result<Arrived, ClientFailure>,
        memory: Option<Memory>,
    ) -> Option<CommitState> {
        if self.failure().is_some() {
            return None;
        }
        let taken = self.lock().exchange.as_mut().map(|exchange| exchange.take(task, digest));
        link.release(|held| held != task);
        let client = match taken {
            Some(Ok(client)) => self.client(client),
            Some(Err(state)) => return Some(state),
            None => return Some(CommitState::Superseded),
        };
        let entry = Entry { task, client, digest, reply };
        let entry = match self.keeps_answers {
            true => match self.surroundings.elsewhere(self.spool.keep(entry)).await {
                Ok(entry) => entry,
                Err(error) => {
                    self.fail(&format!("an answer could not be kept: {error}"));
                    return None;
                }
            },
            false => entry,
        };
        let mut federation = self.lock();
        let Some(exchange) = &mut federation.exchange else { return Some(CommitState::Superseded) };
        Some(exchange.deliver(task, entry.reply, memory, self.keeps_answers))
    }

    /// Answers cannot be kept, or not be found again. What a disk holds after an error is unknown: the exchange ends,
    /// the run with it, and nothing is tried again.
    pub(in super::super) fn fail(&self, reason: &str) {
        tracing::error!(reason, "disk.failed");
        let reason = format!("{reason}; make room or mend the disk, then start again to go on");
        self.end(Failure { reason, wanted: false });
    }

    /// The server was asked to end and has waited for long enough: what is under way is not finished.
    pub(in super::super) fn give_up(&self) {
        tracing::warn!("server.gave_up");
        let reason = "the server was asked to end before this was finished; start it again to go on".to_owned();
        self.end(Failure { reason, wanted: true });
    }

    fn end(&self, failure: Failure) {
        self.failure.get_or_init(|| failure);
        self.finish();
        self.changed.notify_waiters();
    }

    /// Why the server cannot go on.
    pub(in super::super) fn failure(&self) -> Option<&Failure> {
        self.failure.get()
    }

    pub(in super::super) fn upload_of(&self, task: TaskId) -> Option<Arc<Upload>> {
        self.lock().exchange.as_ref()?.upload(task)
    }

    pub(in super::super) fn keep_upload(&self, task: TaskId, upload: Arc<Upload>) -> bool {
        self.lock().exchange.as_mut().is_some_and(|exchange| exchange.keep_upload(task, upload))
    }

    pub(in super::super) fn forget_parked_uploads(&self) {
        if let Some(exchange) = &mut self.lock().exchange {
            exchange.forget_parked_uploads();
        }
    }

    /// A blob that nodes may fetch now.
    pub(in super::super) fn blob(&self, root: Hash) -> Option<Arc<Blob>> {
        if self.plan.name().root == root {
            return Some(self.plan.clone());
        }
        self.lock().blobs.get(&root).cloned()
    }
}
