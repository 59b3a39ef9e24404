//! What training held of memory on disk: `memory.csv`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use fedburn::core::ClientId;
use fedburn::train::{Bytes, MemoryLog, MemoryReading, PlannedMemory};
use serde::{Deserialize, Serialize};

use crate::files::{ResultsError, read_csv, write_csv};

/// The file's name.
pub(crate) const MEMORY: &str = "memory.csv";

/// One line of `memory.csv`: what one client's training held at most, over all its rounds, while it trained one part of
/// the model. Measured on the backends `flex` and `ndarray`; like seconds it may differ between two runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryRow {
    /// The client.
    pub client: u64,
    /// The part in the order of training, from 1; there is one where the model is trained as a whole.
    pub part: u64,
    /// The part's first block, from 1; `None` as in `planned`.
    pub first_block: Option<u64>,
    /// Its last block.
    pub last_block: Option<u64>,
    /// Steps that a run took.
    pub steps: u64,
    /// Bytes that the client has; `None` as in `planned`.
    pub budget: Option<u64>,
    /// Bytes that the part was said to take; `None` where the rule counts no memory.
    pub planned: Option<u64>,
    /// Bytes that it took.
    pub held: u64,
}

impl MemoryRow {
    fn of(reading: &MemoryReading) -> Self {
        let plan = reading.plan.as_ref();
        Self {
            client: reading.client.0,
            part: reading.part as u64 + 1,
            first_block: plan.map(|plan| plan.blocks.start as u64 + 1),
            last_block: plan.map(|plan| plan.blocks.end as u64),
            steps: reading.steps as u64,
            budget: plan.map(|plan| plan.budget.0),
            planned: plan.map(|plan| plan.bytes.0),
            held: reading.held.0,
        }
    }

    fn reading(&self) -> Option<MemoryReading> {
        let number = |number: u64| usize::try_from(number).ok();
        let plan = match (self.budget, self.planned, self.first_block, self.last_block) {
            (Some(budget), Some(bytes), Some(first), Some(last)) => Some(PlannedMemory {
                budget: Bytes(budget),
                bytes: Bytes(bytes),
                blocks: number(first.checked_sub(1)?)?..number(last)?,
            }),
            _ => None,
        };
        let (part, steps) = (number(self.part.checked_sub(1)?)?, number(self.steps)?);
        Some(MemoryReading { client: ClientId(self.client), part, plan, steps, held: Bytes(self.held) })
    }
}

/// A log that goes on from the file in `dir`, where there is one that can be read; what cannot is measured anew.
pub(crate) fn resume(dir: &Path) -> Arc<MemoryLog> {
    let log = MemoryLog::new();
    let rows: Vec<MemoryRow> = read_csv(dir, MEMORY, &mut Vec::new());
    rows.iter().filter_map(MemoryRow::reading).for_each(|reading| log.record(reading));
    Arc::new(log)
}

/// Writes the file into `dir`, where anything was measured.
pub(crate) fn write(dir: &Path, log: &MemoryLog) -> Result<(), ResultsError> {
    let rows: Vec<_> = log.readings().iter().map(MemoryRow::of).collect();
    if rows.is_empty() { Ok(()) } else { write_csv(&dir.join(MEMORY), &rows) }
}

/// By client: the most that its training held, over all parts.
pub(crate) fn by_client(rows: &[MemoryRow]) -> BTreeMap<u64, u64> {
    let mut most = BTreeMap::new();
    for row in rows {
        let place = most.entry(row.client).or_insert(0);
        *place = row.held.max(*place);
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_goes_on_from_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let log = resume(dir.path());
        write(dir.path(), &log).unwrap();
        assert!(!dir.path().join(MEMORY).exists(), "nothing was measured");
        let plan = PlannedMemory { budget: Bytes(9), bytes: Bytes(8), blocks: 2..4 };
        let planned = MemoryReading { client: ClientId(1), part: 1, plan: Some(plan), steps: 3, held: Bytes(7) };
        let unplanned = MemoryReading { client: ClientId(0), part: 0, plan: None, steps: 5, held: Bytes(6) };
        [&planned, &unplanned].into_iter().for_each(|reading| log.record(reading.clone()));
        write(dir.path(), &log).unwrap();
        let text = std::fs::read_to_string(dir.path().join(MEMORY)).unwrap();
        let expected = "client,part,first_block,last_block,steps,budget,planned,held\n0,1,,,5,,,6\n1,2,3,4,3,9,8,7\n";
        assert_eq!(text, expected);
        assert_eq!(resume(dir.path()).readings(), [unplanned, planned]);
        let rows: Vec<MemoryRow> = read_csv(dir.path(), MEMORY, &mut Vec::new());
        assert_eq!(by_client(&rows), BTreeMap::from([(0, 6), (1, 7)]));
    }
}
