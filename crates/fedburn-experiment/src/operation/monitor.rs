//! Watches a run and its network, and tells what they are doing.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fedburn::core::{ClientFailure, Event, Observer, RoundIndex, StopReason};
use fedburn::runtime::RoundRow;
use fedburn::transport::quic::{NetworkStatus, NetworkWatch, Traffic};

use super::snapshot::{Cohort, Failure, JobState, Phase, RoundRows, RunFacts, Snapshot};
use crate::federation::Durability;

/// Knows what a served run is doing. Clones know the same.
#[derive(Clone)]
pub struct Monitor(Arc<Mutex<Watched>>);

struct Watched {
    snapshot: Snapshot,
    rows: Vec<RoundRow>,
    began: Instant,
    network: Option<NetworkWatch>,
    /// When so many bytes had come and gone, the oldest first.
    samples: VecDeque<(Instant, Traffic)>,
}

impl Monitor {
    /// Begins to watch a run.
    pub fn new(run: RunFacts, durability: String) -> Self {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let snapshot = Snapshot {
            run,
            state: JobState::Running,
            phase: Phase::Starting,
            started,
            uptime_secs: 0.0,
            round: 0,
            rounds: 0,
            parameters: 0,
            wanted: 0,
            cohort: Cohort::default(),
            last: None,
            checkpoint: 0,
            durability,
            totals: Default::default(),
            round_seconds: Default::default(),
            failures: Vec::new(),
            rate: Traffic::default(),
            network: NetworkStatus::default(),
        };
        let (began, rows, samples) = (Instant::now(), Vec::new(), VecDeque::new());
        Self(Arc::new(Mutex::new(Watched { snapshot, rows, began, network: None, samples })))
    }

    /// What is known now.
    pub fn snapshot(&self) -> Snapshot {
        let watched = self.lock();
        let mut snapshot = watched.snapshot.clone();
        snapshot.uptime_secs = watched.began.elapsed().as_secs_f64();
        snapshot.network = watched.network.as_ref().map(NetworkWatch::status).unwrap_or_default();
        if let Some((since, before)) = watched.samples.front() {
            let (seconds, now) = (since.elapsed().as_secs_f64().max(1e-3), snapshot.network.payload);
            let rate = |now: u64, before: u64| (now.saturating_sub(before) as f64 / seconds) as u64;
            snapshot.rate = Traffic { up: rate(now.up, before.up), down: rate(now.down, before.down) };
        }
        snapshot
    }

    /// The rounds of the whole run, in their order.
    pub fn rounds(&self) -> Vec<RoundRow> {
        self.lock().rows.clone()
    }

    /// Remembers how much has travelled so far; to be called once a second.
    pub fn sample(&self) {
        let mut watched = self.lock();
        let Some(payload) = watched.network.as_ref().map(|network| network.status().payload) else { return };
        watched.samples.push_back((Instant::now(), payload));
        while watched.samples.front().is_some_and(|(since, _)| since.elapsed() > RATE_OVER) {
            watched.samples.pop_front();
        }
    }

    /// The server waits for so many clients; of a round that is not over it keeps so much on disk.
    pub(crate) fn waiting(&self, network: NetworkWatch, wanted: usize, durability: Durability) {
        let mut watched = self.lock();
        watched.snapshot.durability.push_str(&format!(", durability {durability}"));
        watched.network = Some(network);
        watched.snapshot.wanted = wanted as u64;
        watched.snapshot.phase = Phase::Waiting;
    }

    /// The user asked for the end: what is under way may still take as long as the network's settings say.
    pub fn draining(&self) {
        let mut watched = self.lock();
        watched.snapshot.phase = Phase::Draining;
        if let Some(network) = &watched.network {
            network.drain();
        }
    }

    /// The round after which a run goes on that the user ended, where something was given up for that.
    pub(crate) fn gave_up(&self) -> Option<RoundIndex> {
        let watched = self.lock();
        let gave_up = watched.network.as_ref().is_some_and(NetworkWatch::gave_up);
        gave_up.then_some(RoundIndex(watched.snapshot.checkpoint))
    }

    /// The run has ended.
    pub fn ended(&self, state: JobState) {
        let mut watched = self.lock();
        watched.snapshot.phase = Phase::Ended;
        watched.snapshot.state = state;
    }

    fn lock(&self) -> MutexGuard<'_, Watched> {
        // Nothing panics while it holds the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Monitor {
    fn on_event(&mut self, event: &Event) -> ControlFlow<StopReason> {
        let mut watched = self.lock();
        let Watched { snapshot, rows, .. } = &mut *watched;
        if let Some(row) = RoundRow::after(rows.last(), event) {
            rows.truncate(rows.partition_point(|known| known.round < row.round));
            snapshot.last = Some(row.clone());
            rows.push(row);
        }
        match event {
            Event::RunStarted { round, rounds, parameters, .. } => {
                *rows = RoundRows::read(&snapshot.run);
                rows.retain(|row| row.round <= *round);
                snapshot.last = rows.last().cloned();
                (snapshot.round, snapshot.checkpoint) = (round.0, round.0);
                (snapshot.rounds, snapshot.parameters) = (*rounds, *parameters);
                snapshot.enter(Phase::Evaluating);
            }
            Event::RoundStarted { round, cohort, .. } => {
                snapshot.round = round.0;
                snapshot.cohort = Cohort { asked: cohort.len() as u64, ..Cohort::default() };
                snapshot.enter(Phase::Training);
            }
            Event::ClientTrained { .. } => {
                snapshot.cohort.answered += 1;
                snapshot.totals.updates += 1;
                snapshot.all_answered();
            }
            Event::ClientFailed { round, client, failure } => {
                snapshot.cohort.failed += 1;
                *snapshot.totals.failures.entry(kind(failure).to_owned()).or_default() += 1;
                if snapshot.failures.len() == Snapshot::FAILURES {
                    snapshot.failures.remove(0);
                }
                let reason = failure.to_string();
                snapshot.failures.push(Failure { round: round.0, client: client.0, reason });
                snapshot.all_answered();
            }
            Event::RoundCommitted { seconds, .. } => {
                snapshot.totals.rounds_committed += 1;
                snapshot.round_seconds.observe(*seconds);
                snapshot.enter(Phase::Evaluating);
            }
            Event::RoundAbandoned { .. } => {
                snapshot.totals.rounds_abandoned += 1;
                snapshot.enter(Phase::Evaluating);
            }
            Event::Checkpointed { round } => snapshot.checkpoint = round.0,
            Event::RunEnded { .. } => snapshot.enter(Phase::Finishing),
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

impl Snapshot {
    /// A server that was asked to end is ending, whatever it does meanwhile.
    fn enter(&mut self, phase: Phase) {
        if self.phase != Phase::Draining {
            self.phase = phase;
        }
    }

    fn all_answered(&mut self) {
        if self.cohort.answered + self.cohort.failed == self.cohort.asked {
            self.enter(Phase::Aggregating);
        }
    }
}

/// The kind of a failure, as `events.jsonl` names it.
fn kind(failure: &ClientFailure) -> &'static str {
    match failure {
        ClientFailure::TimedOut => "timed_out",
        ClientFailure::Disconnected => "disconnected",
        ClientFailure::NoData => "no_data",
        ClientFailure::Refused { .. } => "refused",
        ClientFailure::Malformed { .. } => "malformed",
        ClientFailure::Failed { .. } => "failed",
        _ => "other",
    }
}

/// Rates are taken over so long.
const RATE_OVER: Duration = Duration::from_secs(5);
