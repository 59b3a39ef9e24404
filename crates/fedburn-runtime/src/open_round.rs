//! A round that is not over: who was asked, what came, and what of it can be used.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use burn::tensor::backend::Backend;
use fedburn_core::{ClientFailure, ClientId, Event, LocalUpdate, Metrics, ParamVector, Reports, RoundIndex};

use crate::gather::{Gathered, Sums};
use crate::held::Held;
use crate::open_round_file::{Begun, Folded, Found, fingerprint};
use crate::running_mean::RunningMeanError;

/// A round that is not over.
pub(crate) struct OpenRound<B: Backend> {
    pub(crate) index: RoundIndex,
    /// Number of clients that could be reached when the round began.
    pub(crate) available: u64,
    pub(crate) cohort: BTreeSet<ClientId>,
    /// Number of clients known when the round began, `N`.
    pub(crate) population: u64,
    pub(crate) began: Duration,
    /// The global vector as clients and strategy have it: what of it gets through the codec.
    pub(crate) sent: ParamVector<B>,
    /// What of it each client was sent.
    pub(crate) held: Held<B>,
    pub(crate) waiting: BTreeSet<ClientId>,
    pub(crate) gathered: Gathered<B>,
    pub(crate) accepted: BTreeMap<ClientId, Accepted>,
    pub(crate) failures: u64,
    pub(crate) bytes_down: u64,
    pub(crate) bytes_up: u64,
}

/// An update that counts, beside what is gathered of it.
pub(crate) struct Accepted {
    pub(crate) metrics: Metrics,
    pub(crate) bytes_up: u64,
}

impl<B: Backend> OpenRound<B> {
    /// Takes up what another process left, and tells of its clients as if they had just answered.
    pub(crate) fn go_on(&mut self, found: Found) -> Vec<Event> {
        let Found { begun, params, side } = found;
        let Some(sums) = self.gathered.sums() else { return Vec::new() };
        let (mut clients, mut events) = (BTreeMap::new(), Vec::new());
        for (client, Folded { sent, metrics, bytes_up }) in begun.folded {
            self.waiting.remove(&client);
            self.bytes_up += bytes_up;
            let num_examples = sent.num_examples();
            events.push(Event::ClientTrained { round: self.index, client, num_examples, metrics: metrics.clone() });
            self.accepted.insert(client, Accepted { metrics, bytes_up });
            clients.insert(client, sent);
        }
        sums.go_on(params, side, clients);
        events
    }

    /// What is written of it, and its sums; `None` where updates are kept whole. `global` is what it began from.
    ///
    /// # Errors
    /// [`RunningMeanError`] where nothing was folded, or what waits in a file cannot be read.
    pub(crate) fn begun(&mut self, global: &ParamVector<B>) -> Result<Option<(Begun, Sums<'_>)>, RunningMeanError> {
        let Some(sums) = self.gathered.sums() else { return Ok(None) };
        let folded = sums.folded().iter().filter_map(|(client, sent)| {
            let Accepted { metrics, bytes_up } = self.accepted.get(client)?;
            Some((*client, Folded { sent: sent.clone(), metrics: metrics.clone(), bytes_up: *bytes_up }))
        });
        let begun = Begun {
            round: self.index,
            model: fingerprint(global),
            available: self.available,
            population: self.population,
            cohort: self.cohort.clone(),
            folded: folded.collect(),
        };
        Ok(Some((begun, sums.by_name()?)))
    }
}

/// Whether an update can be aggregated whose client was sent `global`, all of the model or a part of it; decided before any
/// state is touched. `params` finiteness is checked where the values are read anyway, in [`Gathered::add`].
pub(crate) fn check<B: Backend>(
    update: &LocalUpdate<B>,
    global: &ParamVector<B>,
    asked: &Reports,
) -> Result<(), ClientFailure> {
    let malformed = |reason: String| ClientFailure::Malformed { reason };
    if update.num_examples == 0 {
        return Err(ClientFailure::NoData);
    }
    global.schema().ensure_same(update.params.schema()).map_err(|e| malformed(e.to_string()))?;
    for (name, vector) in &update.side.vectors {
        global.schema().ensure_same(vector.schema()).map_err(|e| malformed(format!("side vector `{name}`: {e}")))?;
    }
    let report = &update.report;
    if let Some(counts) = &report.class_counts {
        let (sum, all) = (counts.iter().fold(0, |sum: u64, count| sum.saturating_add(*count)), update.num_examples);
        if sum != all {
            return Err(malformed(format!("reports {sum} examples by class, {all} in all")));
        }
    }
    // A client may keep its class counts to itself: a strategy that asks for them does without.
    for (asked, reported, name) in [
        (asked.accumulation, report.accumulation.is_some(), "accumulation"),
        (asked.steps, report.steps.is_some(), "number of steps"),
    ] {
        if asked && !reported {
            return Err(malformed(format!("did not report its {name}")));
        }
    }
    if let Some(a) = report.accumulation.filter(|a| !(*a >= 0.0 && a.is_finite())) {
        return Err(malformed(format!("reports the accumulation {a}, expected a number from 0")));
    }
    match update.side.scalars.iter().find(|(_, v)| !v.is_finite()) {
        Some((name, value)) => Err(malformed(format!("side scalar `{name}` is {value}"))),
        None => Ok(()),
    }
}
