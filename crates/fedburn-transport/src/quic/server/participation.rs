//! Which rounds each client took part in: what its next task starts from, and what a restarted server must still know.

use std::collections::BTreeMap;
use std::path::PathBuf;

use fedburn_core::{ClientId, RoundIndex};
use fedburn_durable::{self as durable, Access};
use serde::{Deserialize, Serialize};

use super::super::QuicError;
use crate::wire::Hash;

/// A file with the rounds that counted, of each client, since the oldest checkpoint that the run may go back to.
///
/// It is written when a round ends, before the round's checkpoint. A server that dies in between goes on from an older
/// checkpoint and drops what it wrote for later rounds.
pub(super) struct Participation {
    path: PathBuf,
    record: Record,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// The plan that the rounds are of.
    plan: String,
    /// The run never goes back before this round.
    durable: RoundIndex,
    /// For each client the rounds that counted, rising: the newest at or before `durable`, and all after it.
    rounds: BTreeMap<ClientId, Vec<RoundIndex>>,
}

impl Participation {
    /// Opens the record of a run of `plan` that goes on after the round `resumed`, 0 for one that begins.
    pub(super) fn open(path: PathBuf, plan: Hash, resumed: RoundIndex) -> Result<Self, QuicError> {
        let plan = plan.to_string();
        let unusable = |reason: String| QuicError::Unusable {
            what: "record of participations",
            reason: format!("{}: {reason}", path.display()),
        };
        let directory = durable::directory_of(&path);
        durable::remove_unfinished(directory).map_err(|e| unusable(e.to_string()))?;
        let bytes = durable::unless_missing(std::fs::read(&path)).map_err(|e| unusable(e.to_string()))?;
        let mut record = Record { plan, durable: RoundIndex(0), rounds: BTreeMap::new() };
        if resumed > RoundIndex(0) && !bytes.is_empty() {
            let found: Record = serde_json::from_slice(&bytes).map_err(|e| unusable(e.to_string()))?;
            if found.plan != record.plan {
                return Err(unusable("is of another plan".to_owned()));
            }
            record = found;
        }
        record.durable = record.durable.min(resumed);
        record.rounds.retain(|_, rounds| {
            rounds.retain(|round| *round <= resumed);
            !rounds.is_empty()
        });
        let participation = Self { path, record };
        participation.write()?;
        Ok(participation)
    }

    /// The client's last round before `round` that counted; 0 for none.
    pub(super) fn last_before(&self, client: ClientId, round: RoundIndex) -> RoundIndex {
        let rounds = self.record.rounds.get(&client);
        rounds.and_then(|rounds| rounds.iter().rev().find(|r| **r < round)).copied().unwrap_or_default()
    }

    pub(super) fn durable(&self) -> RoundIndex {
        self.record.durable
    }

    /// The round ended with the updates of these clients.
    pub(super) fn closed(&mut self, round: RoundIndex, included: &[ClientId]) -> Result<(), QuicError> {
        for client in included {
            let rounds = self.record.rounds.entry(*client).or_default();
            // A round is closed once; were it closed again, it would count once.
            rounds.retain(|r| *r < round);
            rounds.push(round);
        }
        self.write()
    }

    /// The run never goes back before `round`. What may be forgotten now is forgotten on disk when the next round ends:
    /// to know too much for a while does no harm.
    pub(super) fn checkpointed(&mut self, round: RoundIndex) {
        self.record.durable = self.record.durable.max(round);
        for rounds in self.record.rounds.values_mut() {
            let needed = rounds.iter().rposition(|r| *r <= round).unwrap_or(0);
            rounds.drain(..needed);
        }
    }

    fn write(&self) -> Result<(), QuicError> {
        let unusable = |reason: String| QuicError::Unusable {
            what: "record of participations",
            reason: format!("{}: {reason}", self.path.display()),
        };
        let text = serde_json::to_vec(&self.record).map_err(|e| unusable(e.to_string()))?;
        durable::replace(&self.path, &text, Access::Owner).map_err(|e| unusable(e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: ClientId = ClientId(1);
    const B: ClientId = ClientId(2);

    fn open(dir: &tempfile::TempDir, resumed: u64) -> Participation {
        Participation::open(dir.path().join("participation.json"), Hash([1; 32]), RoundIndex(resumed)).unwrap()
    }

    #[test]
    fn a_client_starts_from_its_last_round_that_counted() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = open(&dir, 0);
        record.closed(RoundIndex(1), &[A, B]).unwrap();
        record.closed(RoundIndex(2), &[A]).unwrap();
        assert_eq!(record.last_before(A, RoundIndex(3)), RoundIndex(2));
        assert_eq!(record.last_before(A, RoundIndex(2)), RoundIndex(1));
        assert_eq!(record.last_before(B, RoundIndex(3)), RoundIndex(1));
        assert_eq!(record.last_before(ClientId(9), RoundIndex(3)), RoundIndex(0));
    }

    #[test]
    fn a_run_that_goes_back_forgets_what_came_after() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = open(&dir, 0);
        for round in 1..=5 {
            record.closed(RoundIndex(round), if round % 2 == 1 { &[A] } else { &[A, B] }).unwrap();
            if round == 4 {
                record.checkpointed(RoundIndex(2));
            }
        }
        drop(record);

        let record = open(&dir, 3);
        assert_eq!(record.last_before(A, RoundIndex(9)), RoundIndex(3));
        assert_eq!(record.last_before(B, RoundIndex(9)), RoundIndex(2), "the newest at the checkpoint is kept");
        assert_eq!(record.durable(), RoundIndex(2));
        drop(record);
        assert_eq!(open(&dir, 0).last_before(A, RoundIndex(9)), RoundIndex(0), "a run that begins anew knows nothing");
    }

    #[test]
    fn only_what_can_still_be_asked_for_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = open(&dir, 0);
        for round in 1..=100 {
            record.closed(RoundIndex(round), &[A]).unwrap();
            record.checkpointed(RoundIndex(round.saturating_sub(1)));
        }
        assert_eq!(record.record.rounds[&A], [RoundIndex(99), RoundIndex(100)]);
    }

    #[test]
    fn another_plan_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        open(&dir, 0).closed(RoundIndex(1), &[A]).unwrap();
        let other = Participation::open(dir.path().join("participation.json"), Hash([2; 32]), RoundIndex(1));
        assert!(matches!(other, Err(QuicError::Unusable { .. })));
    }
}
