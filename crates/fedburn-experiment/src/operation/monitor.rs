//! Watches a run and its network, and tells what they are doing.

use std::collections::VecDeque;
use std::io;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fedburn::core::{ClientFailure, Event, Observer, RoundIndex, StopReason};
use fedburn::runtime::RoundRow;
use fedburn::transport::quic::{NetworkWatch, Traffic};

use super::snapshot::{Cohort, Failure, JobState, Phase, RoundRows, RunFacts, Snapshot};
use super::systemd;
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
    /// Nothing is left to ask of clients.
    is_over: bool,
}

impl Monitor {
    /// Begins to watch a run.
    pub fn new(run: RunFacts) -> Self {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let (snapshot, rows, samples) = (Snapshot::new(run, started), Vec::new(), VecDeque::new());
        let watched = Watched { snapshot, rows, began: Instant::now(), network: None, samples, is_over: false };
        Self(Arc::new(Mutex::new(watched)))
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

    /// Shows systemd from now on that somebody can be told what is known: that the server lives.
    ///
    /// # Errors
    /// That no thread can be had for it.
    pub fn show_life(&self) -> io::Result<()> {
        let watched = self.clone();
        systemd::watchdog(move || drop(watched.snapshot()))
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
        watched.snapshot.durability = format!("A checkpoint after every round, durability {durability}");
        watched.network = Some(network);
        watched.snapshot.wanted = wanted as u64;
        watched.snapshot.phase = Phase::Waiting;
        drop(watched);
        systemd::notify("READY=1");
    }

    /// The user asked for the end: what is under way may still take as long as the network's settings say.
    pub fn draining(&self) {
        systemd::notify("STOPPING=1");
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
        gave_up.then_some(RoundIndex(watched.snapshot.checkpoint.unwrap_or(0)))
    }

    /// Nothing is left to ask of clients.
    pub(crate) fn over(&self) {
        self.lock().is_over = true;
    }

    /// Whether nothing is left to ask of clients: else the run goes on when its server starts again.
    pub(crate) fn is_over(&self) -> bool {
        self.lock().is_over
    }

    /// The run has ended. Of one that was over before anything of it was seen, the folder tells the rounds.
    pub fn ended(&self, state: JobState) {
        let Watched { snapshot, rows, .. } = &mut *self.lock();
        if snapshot.rounds == 0 {
            *rows = RoundRows::read(&snapshot.run);
            snapshot.tell_rounds(rows);
            snapshot.rounds = snapshot.round;
        }
        snapshot.phase = Phase::Ended;
        // Of a run that was over when it was started, nobody has told it yet.
        if state == JobState::Finished {
            systemd::notify("READY=1");
        }
        snapshot.state = state;
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
                (snapshot.round, snapshot.checkpoint) = (round.0, Some(round.0));
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
            Event::Checkpointed { round } => snapshot.checkpoint = Some(round.0),
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
