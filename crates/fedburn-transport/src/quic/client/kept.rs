//! Answers that were given, kept for a server that has to ask again.

use std::collections::VecDeque;
use std::sync::Arc;

use fedburn_core::{ClientId, RoundIndex};

use super::answer::{Content, Prepared};
use crate::wire::TaskId;

/// Answers that the server does not keep, of rounds that have not ended. A server that was killed after it acknowledged
/// an answer asks for it again under the same number; then nobody has to train again.
pub(super) struct Kept {
    answers: VecDeque<Arc<Prepared>>,
    bytes: u64,
    most: u64,
    /// Updates of rounds up to here are not asked for again.
    closed: RoundIndex,
}

impl Kept {
    pub(super) fn new(most: u64) -> Self {
        Self { answers: VecDeque::new(), bytes: 0, most, closed: RoundIndex(0) }
    }

    /// Keeps an answer, at the cost of the oldest ones where there is no room.
    pub(super) fn add(&mut self, answer: Arc<Prepared>) {
        if matches!(answer.content, Content::Update(_)) && answer.round <= self.closed {
            return;
        }
        self.remove(|kept| kept.task == answer.task);
        self.bytes += answer.len();
        self.answers.push_back(answer);
        while self.bytes > self.most
            && let Some(oldest) = self.answers.pop_front()
        {
            self.bytes -= oldest.len();
        }
    }

    pub(super) fn find(&self, task: TaskId) -> Option<Arc<Prepared>> {
        self.answers.iter().find(|kept| kept.task == task).cloned()
    }

    /// The server keeps the answer itself.
    pub(super) fn forget(&mut self, task: TaskId) {
        self.remove(|kept| kept.task == task);
    }

    /// The round ended: nobody asks for its answers again.
    pub(super) fn round_closed(&mut self, round: RoundIndex) {
        self.remove(|kept| kept.round <= round);
        self.closed = self.closed.max(round);
    }

    /// A client is asked to train in this round: a server that went back will ask for later rounds anew, and the client
    /// needs the states that training in them leaves.
    pub(super) fn goes_back(&mut self, to: RoundIndex) {
        self.remove(|kept| kept.round > to);
        self.closed = self.closed.min(RoundIndex(to.0.saturating_sub(1)));
    }

    /// A client is asked to train from its state of the round `state_of`: later states are dropped for that, and an answer
    /// must not count whose state is not there any more.
    pub(super) fn starts_from(&mut self, client: ClientId, state_of: RoundIndex) {
        self.remove(|kept| kept.client == client && kept.round > state_of);
    }

    fn remove(&mut self, mut over: impl FnMut(&Prepared) -> bool) {
        self.answers.retain(|kept| !over(kept));
        self.bytes = self.answers.iter().map(|kept| kept.len()).sum();
    }
}

#[cfg(test)]
mod tests {
    use fedburn_core::{ClientFailure, Metrics};

    use super::*;

    fn answer(task: u8, round: u64) -> Arc<Prepared> {
        let content = match task {
            0 => Content::Declined(ClientFailure::NoData),
            _ => Content::Measured(Metrics::new()),
        };
        Arc::new(Prepared {
            task: TaskId([task; 16]),
            client: ClientId(u64::from(task)),
            round: RoundIndex(round),
            content,
        })
    }

    #[test]
    fn answers_leave_with_their_round_or_for_lack_of_room() {
        let one = answer(1, 1).len();
        let mut kept = Kept::new(2 * one);
        kept.add(answer(1, 1));
        kept.add(answer(2, 2));
        kept.add(answer(2, 2));
        assert!(kept.find(TaskId([1; 16])).is_some(), "a repetition takes no room");
        kept.add(answer(3, 2));
        assert!(kept.find(TaskId([1; 16])).is_none(), "the oldest makes room");
        kept.round_closed(RoundIndex(1));
        assert!(kept.find(TaskId([3; 16])).is_some());
        kept.goes_back(RoundIndex(2));
        assert!(kept.find(TaskId([3; 16])).is_some());
        kept.round_closed(RoundIndex(2));
        assert!(kept.find(TaskId([3; 16])).is_none());
        kept.add(answer(1, 5));
        kept.goes_back(RoundIndex(4));
        assert!(kept.find(TaskId([1; 16])).is_none(), "round 5 will be trained in again");
        kept.add(answer(1, 5));
        kept.add(answer(2, 5));
        kept.starts_from(ClientId(1), RoundIndex(4));
        assert!(kept.find(TaskId([1; 16])).is_none(), "round 6 starts before round 5, whose state is dropped");
        assert!(kept.find(TaskId([2; 16])).is_some(), "another client's");
    }
}
