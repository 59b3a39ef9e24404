//! What training held of memory, measured.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use burn::tensor::backend::Backend;
use fedburn_core::ClientId;

use crate::Bytes;
use crate::resident::free_graphs;

/// The most that clients' training held, over all their runs; part by part where a model is trained so.
///
/// It is what [`fedburn_meter`] counts on the thread that trains, the model and what kernels keep from client to client
/// included, the received vector and the client's examples not. Nothing is recorded where
/// [`Counting`](fedburn_meter::Counting) is not the program's allocator. What lies elsewhere, on a GPU, or is taken by
/// libraries in other languages, is not counted: for the backends `flex` and `ndarray`.
#[derive(Debug, Default)]
pub struct MemoryLog {
    readings: Mutex<BTreeMap<(ClientId, usize), MemoryReading>>,
}

/// What one client's training held at most while it trained a part of the model, or all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryReading {
    /// The client.
    pub client: ClientId,
    /// The part, from 0, in the order of training.
    pub part: usize,
    /// What was planned; `None` where nobody said how much there is.
    pub plan: Option<PlannedMemory>,
    /// Steps taken.
    pub steps: usize,
    /// Measured.
    pub held: Bytes,
}

/// What was planned for a part of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedMemory {
    /// What the client has.
    pub budget: Bytes,
    /// What the part was said to take.
    pub bytes: Bytes,
    /// Its blocks, from 0.
    pub blocks: Range<usize>,
}

impl MemoryLog {
    /// With nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a reading; of those of a client's part the largest stays.
    pub fn record(&self, reading: MemoryReading) {
        let mut readings = self.lock();
        let place = readings.entry((reading.client, reading.part)).or_insert_with(|| reading.clone());
        let held = place.held.max(reading.held);
        *place = MemoryReading { held, ..reading };
    }

    /// What was recorded, by client and part.
    pub fn readings(&self) -> Vec<MemoryReading> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(ClientId, usize), MemoryReading>> {
        // Nothing here can be half changed.
        self.readings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The measurement of one local run, on the thread that it runs on.
#[derive(Debug)]
pub struct MemoryMeasurement {
    /// What the thread holds that is none of the run's.
    base: i64,
    parts: RefCell<Vec<(Option<PlannedMemory>, usize, i64)>>,
}

impl MemoryMeasurement {
    /// Begins where `ready` bytes of what the run uses are there already; `None` where nobody counts.
    pub(crate) fn begin<B: Backend>(ready: i64, device: &B::Device) -> Option<Self> {
        if !fedburn_meter::is_counting() {
            return None;
        }
        // What earlier trainings left is not to be freed in the midst of what is measured.
        free_graphs::<B>(device);
        fedburn_meter::restart();
        Some(Self { base: fedburn_meter::held() - ready, parts: RefCell::default() })
    }

    /// Ends a part of the run that took so many steps; the next begins.
    pub fn part(&self, plan: Option<PlannedMemory>, steps: usize) {
        self.parts.borrow_mut().push((plan, steps, fedburn_meter::most()));
        fedburn_meter::restart();
    }

    /// Ends the run and says what it left. What came after the last part counts to it; without any, the run was one part.
    pub(crate) fn finish(self, client: ClientId, steps: usize, log: &MemoryLog) -> i64 {
        let left = fedburn_meter::held() - self.base;
        let (last, mut parts) = (fedburn_meter::most(), self.parts.into_inner());
        match parts.last_mut() {
            Some((_, _, most)) => *most = last.max(*most),
            None => parts.push((None, steps, last)),
        }
        for (part, (plan, steps, most)) in parts.into_iter().enumerate() {
            let held = Bytes(u64::try_from(most - self.base).unwrap_or(0));
            log.record(MemoryReading { client, part, plan, steps, held });
        }
        left
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_reading_of_a_part_stays_with_the_latest_plan() {
        let log = MemoryLog::new();
        let reading = |client: u64, part, held, budget| MemoryReading {
            client: ClientId(client),
            part,
            plan: Some(PlannedMemory { budget: Bytes(budget), bytes: Bytes(budget), blocks: 0..part + 1 }),
            steps: part + 1,
            held: Bytes(held),
        };
        for (client, part, held, budget) in [(3, 0, 7, 10), (1, 1, 5, 10), (1, 0, 9, 10), (3, 0, 8, 10), (1, 1, 4, 6)] {
            log.record(reading(client, part, held, budget));
        }
        assert_eq!(log.readings(), [reading(1, 0, 9, 10), reading(1, 1, 5, 6), reading(3, 0, 8, 10)]);
    }

    #[test]
    fn nothing_is_measured_where_nobody_counts() {
        assert!(MemoryMeasurement::begin::<burn_flex::Flex>(0, &burn_flex::FlexDevice).is_none());
    }
}
