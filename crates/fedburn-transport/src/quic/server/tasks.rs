//! The requests of one exchange, from the offer to the one answer that counts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use fedburn_core::{ClientFailure, ClientId, ClientReport, Metrics};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

use super::super::NodeId;
use super::super::blob::Values;
use super::uploads::{Memory, Upload};
use crate::wire::{CommitState, Hash, NamedValue, TaskId, TaskOffer};

/// One answer on its way to whoever runs the round.
pub(super) struct Answer {
    pub(super) client: ClientId,
    pub(super) reply: Result<Arrived, ClientFailure>,
    /// Given back when the answer is taken, so that answers that wait are bounded.
    pub(super) memory: Option<Memory>,
}

/// What a node answered, on the host.
pub(super) enum Arrived {
    Trained(Box<ArrivedUpdate>),
    Evaluated(Metrics),
}

/// An update whose bytes are verified.
pub(super) struct ArrivedUpdate {
    /// The parameters, then the vectors that `names` names.
    pub(super) values: Values,
    pub(super) names: Vec<String>,
    pub(super) num_examples: u64,
    pub(super) scalars: Vec<NamedValue>,
    pub(super) report: ClientReport,
    pub(super) metrics: Metrics,
}

/// The requests of one exchange.
pub(super) struct Exchange {
    answers: UnboundedSender<Answer>,
    deadline: Option<Instant>,
    tasks: BTreeMap<TaskId, Task>,
    of_node: BTreeMap<NodeId, Vec<TaskId>>,
}

struct Task {
    offer: TaskOffer,
    node: NodeId,
    /// What was answered, once that counts.
    answered: Option<Answered>,
    upload: Option<Arc<Upload>>,
}

#[derive(Clone, Copy)]
struct Answered {
    /// What tells a repetition from another answer.
    digest: Hash,
    /// Whether it survives a crash.
    durable: bool,
}

impl Answered {
    fn state(self) -> CommitState {
        if self.durable { CommitState::Durable } else { CommitState::Committed }
    }
}

impl Exchange {
    /// An exchange of nothing yet; answers go to `answers`.
    pub(super) fn new(answers: UnboundedSender<Answer>, deadline: Option<Instant>) -> Self {
        Self { answers, deadline, tasks: BTreeMap::new(), of_node: BTreeMap::new() }
    }

    /// Adds a request to a client of `node`; nobody is asked where it was answered before a crash and that is kept.
    pub(super) fn ask(&mut self, node: NodeId, offer: TaskOffer, answered: Option<Hash>) {
        self.of_node.entry(node).or_default().push(offer.task);
        let answered = answered.map(|digest| Answered { digest, durable: true });
        self.tasks.insert(offer.task, Task { offer, node, answered, upload: None });
    }

    /// The open tasks of a node that are not in `offered`, which they are added to.
    pub(super) fn offers(&self, node: NodeId, offered: &mut BTreeSet<TaskId>) -> Vec<TaskOffer> {
        let ids = self.of_node.get(&node).map(Vec::as_slice).unwrap_or_default();
        let new = ids.iter().filter_map(|id| self.tasks.get(id)).filter(|task| task.answered.is_none());
        let remaining = self.deadline.map_or(Duration::MAX, |d| d.saturating_duration_since(Instant::now()));
        let remaining_ms = u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX);
        new.filter(|task| offered.insert(task.offer.task))
            .map(|task| TaskOffer { remaining_ms, ..task.offer.clone() })
            .collect()
    }

    /// Whether the node was asked this and has not answered.
    pub(super) fn is_open(&self, node: NodeId, task: TaskId) -> bool {
        self.tasks.get(&task).is_some_and(|t| t.node == node && t.answered.is_none())
    }

    /// The offer of a task of this node, answered or not.
    pub(super) fn offer(&self, node: NodeId, task: TaskId) -> Option<&TaskOffer> {
        self.tasks.get(&task).filter(|t| t.node == node).map(|t| &t.offer)
    }

    /// What became of a task of this node, where it was answered as `digest` says or otherwise.
    pub(super) fn answered(&self, task: TaskId, digest: Option<Hash>) -> Option<CommitState> {
        let answered = self.tasks.get(&task)?.answered?;
        let same = digest.is_none_or(|digest| digest == answered.digest);
        let reason = || "the task was answered before, and not like this".to_owned();
        Some(if same { answered.state() } else { CommitState::Rejected { reason: reason() } })
    }

    /// Takes the first answer to a task, by a client that this gives: it is to be delivered, and no other is taken any
    /// more. A repetition is told what became of the first.
    pub(super) fn take(&mut self, task: TaskId, digest: Hash) -> Result<ClientId, CommitState> {
        if let Some(state) = self.answered(task, Some(digest)) {
            return Err(state);
        }
        let known = self.tasks.get_mut(&task).ok_or(CommitState::Superseded)?;
        known.answered = Some(Answered { digest, durable: false });
        known.upload = None;
        Ok(known.offer.client)
    }

    /// Delivers the answer that was taken, and says what became of it.
    pub(super) fn deliver(
        &mut self,
        task: TaskId,
        reply: Result<Arrived, ClientFailure>,
        memory: Option<Memory>,
        durable: bool,
    ) -> CommitState {
        let Some((client, answered)) =
            self.tasks.get_mut(&task).and_then(|t| Some((t.offer.client, t.answered.as_mut()?)))
        else {
            return CommitState::Superseded;
        };
        answered.durable = durable;
        // Nobody listens where the exchange was just given up.
        let _ = self.answers.send(Answer { client, reply, memory });
        answered.state()
    }

    /// Gives up on the open tasks of a node whose clients are no longer there.
    pub(super) fn fail_node(&mut self, node: NodeId) {
        for task in self.of_node.get(&node).cloned().unwrap_or_default() {
            if self.take(task, Hash::default()).is_ok() {
                self.deliver(task, Err(ClientFailure::Disconnected), None, false);
            }
        }
    }

    /// The tasks that nobody answered, with their nodes.
    pub(super) fn unanswered(&self) -> impl Iterator<Item = (NodeId, TaskId)> + '_ {
        self.tasks.iter().filter(|(_, task)| task.answered.is_none()).map(|(id, task)| (task.node, *id))
    }

    pub(super) fn upload(&self, task: TaskId) -> Option<Arc<Upload>> {
        self.tasks.get(&task)?.upload.clone()
    }

    /// Keeps an update that is being received, so that it survives its connection; `false` where the task is over.
    pub(super) fn keep_upload(&mut self, task: TaskId, upload: Arc<Upload>) -> bool {
        match self.tasks.get_mut(&task).filter(|t| t.answered.is_none()) {
            Some(task) => {
                task.upload = Some(upload);
                true
            }
            None => false,
        }
    }

    /// Forgets what came of updates whose nodes are away, which nobody else holds: they will send it again.
    pub(super) fn forget_parked_uploads(&mut self) {
        for task in self.tasks.values_mut() {
            task.upload.take_if(|upload| Arc::strong_count(upload) == 1);
        }
    }
}
