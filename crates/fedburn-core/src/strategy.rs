//! How the answers of a round become the next global vector.

use std::ops::Range;
use std::{panic, thread};

use burn::tensor::{Tensor, backend::Backend};
use serde::{Deserialize, Serialize};

use crate::{
    AggregateError, ClientId, ClientUpdate, Metrics, MixingWeights, ParamVector, Pictures, Reports, Round, RoundIndex,
    SchemaError, SideInfo, StateDict, StateError,
};

/// How much a client counts in a mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weighting {
    /// By its number of examples, `p_k = n_k / sum n_j`.
    #[default]
    Examples,
    /// Every client alike, `p_k = 1 / m`.
    Uniform,
}

/// The exact weighted mean of a round, all that a [`MeanStrategy`] sees.
#[derive(Clone, Debug)]
pub struct RoundMean<B: Backend> {
    /// Mean of the clients' parameters, each value rounded once.
    pub params: ParamVector<B>,
    /// Mean of the clients' side vectors and scalars, by name; weighted as the parameters.
    pub side: SideInfo<B>,
    /// Sum of the clients' example counts.
    pub num_examples: u64,
    /// Number of updates in the mean.
    pub num_updates: usize,
    /// How many of the updates hold the values of each stretch of the flat axis, in order; `None` where all hold all. The
    /// mean of values that nobody holds is what clients were sent.
    pub holders: Option<Vec<(Range<usize>, u64)>>,
}

/// What a strategy made of a round.
#[derive(Clone, Debug)]
pub struct Aggregate<B: Backend> {
    /// Sent to clients in the next round.
    pub global: ParamVector<B>,
    /// Evaluated and shipped instead of `global`, where they differ (stochastic weight averaging).
    pub deploy: Option<ParamVector<B>>,
    /// The strategy's own figures: norms, losses.
    pub metrics: Metrics,
    /// How much each client counted, where the strategy decides it.
    pub mixing: Option<MixingWeights>,
    /// Examples of what the strategy's generator makes, where it has one and shows them.
    pub pictures: Option<Pictures>,
}

impl<B: Backend> From<ParamVector<B>> for Aggregate<B> {
    fn from(global: ParamVector<B>) -> Self {
        Self { global, deploy: None, metrics: Metrics::new(), mixing: None, pictures: None }
    }
}

/// A rule that needs only the round's weighted mean (FedAvg, server optimisers, SCAFFOLD, FedDyn). Its memory does not
/// depend on the cohort, and it fits secure aggregation.
///
/// # Laws
/// Of both strategy traits, checked by `fedburn_testkit::strategy_laws`: finite in, finite out; the schema is kept;
/// scaling every example count changes nothing; `restore(state())`, then continuing, equals not stopping; permuting
/// updates changes nothing, or the documentation says how. Convex rules besides: equal updates are a fixed point, and
/// a single client's parameters come back unchanged.
pub trait MeanStrategy<B: Backend>: Send {
    /// The name in configs and errors.
    fn name(&self) -> &'static str;

    /// How clients count in the mean.
    fn weighting(&self) -> Weighting {
        Weighting::Examples
    }

    /// Sent to one client in `round` besides the global parameters. Nothing by default.
    fn side_info(&self, _round: RoundIndex, _client: ClientId) -> SideInfo<B> {
        SideInfo::default()
    }

    /// The next global vector.
    ///
    /// # Errors
    /// [`AggregateError`]; the strategy's state is then unchanged.
    fn step(&mut self, round: &Round<'_, B>, mean: &RoundMean<B>) -> Result<Aggregate<B>, AggregateError>;

    /// What must survive a restart: moments, running averages.
    fn state(&self) -> StateDict {
        StateDict::default()
    }

    /// Takes back what [`MeanStrategy::state`] gave. `like` is any vector of the model: its schema and its device.
    ///
    /// # Errors
    /// [`StateError`] where the state is not this strategy's.
    fn restore(&mut self, state: StateDict, _like: &ParamVector<B>) -> Result<(), StateError> {
        state.expect_empty()
    }
}

/// A rule that must see each client's update (EWWA, FedFTG, Krum, median). The laws are those of [`MeanStrategy`].
pub trait PerClientStrategy<B: Backend>: Send {
    /// The name in configs and errors.
    fn name(&self) -> &'static str;

    /// What clients must report besides parameters. Nothing by default: this is the privacy surface.
    fn reports(&self) -> Reports {
        Reports::default()
    }

    /// Whether the strategy keeps something of single clients in [`Round::memory`]. A server that resumes such a run
    /// needs a store that outlives the process.
    fn remembers_clients(&self) -> bool {
        false
    }

    /// Sent to one client in `round` besides the global parameters. Nothing by default.
    fn side_info(&self, _round: RoundIndex, _client: ClientId) -> SideInfo<B> {
        SideInfo::default()
    }

    /// The next global vector. `updates` is in cohort order and never empty.
    ///
    /// # Errors
    /// [`AggregateError`]; the strategy's state is then unchanged.
    fn aggregate(&mut self, round: &Round<'_, B>, updates: &UpdateSet<B>) -> Result<Aggregate<B>, AggregateError>;

    /// What must survive a restart.
    fn state(&self) -> StateDict {
        StateDict::default()
    }

    /// Takes back what [`PerClientStrategy::state`] gave. `like` is any vector of the model: its schema and its device.
    ///
    /// # Errors
    /// [`StateError`] where the state is not this strategy's.
    fn restore(&mut self, state: StateDict, _like: &ParamVector<B>) -> Result<(), StateError> {
        state.expect_empty()
    }
}

/// Either kind of strategy. The type says what an algorithm may see.
pub enum Strategy<B: Backend> {
    /// Sees the round's mean.
    Mean(Box<dyn MeanStrategy<B>>),
    /// Sees every update.
    PerClient(Box<dyn PerClientStrategy<B>>),
}

impl<B: Backend> Strategy<B> {
    /// The strategy's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Mean(s) => s.name(),
            Self::PerClient(s) => s.name(),
        }
    }

    /// How clients count in the mean; per-client rules weigh as they like.
    pub fn weighting(&self) -> Weighting {
        match self {
            Self::Mean(s) => s.weighting(),
            Self::PerClient(_) => Weighting::Examples,
        }
    }

    /// What clients must report.
    pub fn reports(&self) -> Reports {
        match self {
            Self::Mean(_) => Reports::default(),
            Self::PerClient(s) => s.reports(),
        }
    }

    /// Whether something of single clients is kept in [`Round::memory`].
    pub fn remembers_clients(&self) -> bool {
        match self {
            Self::Mean(_) => false,
            Self::PerClient(s) => s.remembers_clients(),
        }
    }

    /// Sent to one client in `round` besides the global parameters.
    pub fn side_info(&self, round: RoundIndex, client: ClientId) -> SideInfo<B> {
        match self {
            Self::Mean(s) => s.side_info(round, client),
            Self::PerClient(s) => s.side_info(round, client),
        }
    }

    /// The next global vector from updates that a wrapper holds: a rule that sees the mean alone gets
    /// [`UpdateSet::mean`].
    ///
    /// # Errors
    /// [`AggregateError`]; the strategy's state is then unchanged.
    pub fn aggregate(&mut self, round: &Round<'_, B>, updates: &UpdateSet<B>) -> Result<Aggregate<B>, AggregateError> {
        match self {
            Self::Mean(s) => {
                let unusable = |reason| AggregateError::Unusable { round: round.index, strategy: s.name(), reason };
                let mean = updates.mean(s.weighting()).map_err(unusable)?;
                s.step(round, &mean)
            }
            Self::PerClient(s) => s.aggregate(round, updates),
        }
    }

    /// What must survive a restart.
    pub fn state(&self) -> StateDict {
        match self {
            Self::Mean(s) => s.state(),
            Self::PerClient(s) => s.state(),
        }
    }

    /// Takes back what [`Strategy::state`] gave. `like` is any vector of the model: its schema and its device.
    ///
    /// # Errors
    /// [`StateError`] where the state is not this strategy's.
    pub fn restore(&mut self, state: StateDict, like: &ParamVector<B>) -> Result<(), StateError> {
        match self {
            Self::Mean(s) => s.restore(state, like),
            Self::PerClient(s) => s.restore(state, like),
        }
    }
}

/// The updates of a round in cohort order, readable whole or chunk by chunk along the flat axis, so that an
/// element-wise rule needs `cohort x chunk` values of memory, which stay in the processor's cache.
#[derive(Clone, Debug)]
pub struct UpdateSet<B: Backend> {
    updates: Vec<ClientUpdate<B>>,
    threads: usize,
}

impl<B: Backend> UpdateSet<B> {
    /// Sorts the updates by client. `None` where there are none.
    pub fn new(mut updates: Vec<ClientUpdate<B>>) -> Option<Self> {
        updates.sort_by_key(|u| u.client);
        (!updates.is_empty()).then_some(Self { updates, threads: 1 })
    }

    /// Lets [`UpdateSet::map_chunks`] use up to so many threads, at least 1. Changes no bit of any result.
    #[must_use]
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// How many threads [`UpdateSet::map_chunks`] may use; a wrapper hands it on to the set that it makes.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Number of updates, at least one.
    #[expect(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.updates.len()
    }

    /// The updates in cohort order.
    pub fn iter(&self) -> std::slice::Iter<'_, ClientUpdate<B>> {
        self.updates.iter()
    }

    /// `p_k` of each update in cohort order; they sum to one.
    pub fn weights(&self, weighting: Weighting) -> Vec<f64> {
        let weight = |u: &ClientUpdate<B>| match weighting {
            Weighting::Examples => u.local.num_examples as f64,
            Weighting::Uniform => 1.0,
        };
        let total: f64 = self.updates.iter().map(weight).sum();
        self.updates.iter().map(|u| weight(u) / total).collect()
    }

    /// An element-wise rule as the next vector: `rule` gets a piece of the flat axis of every update,
    /// `[clients, range.len()]`, and where it lies, and gives the new values of that piece, `[range.len()]`.
    ///
    /// Pieces are small enough for the cache and are spread over threads. The rule must treat each element alike
    /// wherever the pieces begin; then neither their size nor the number of threads shows in the result.
    ///
    /// # Errors
    /// [`SchemaError::Length`] where the rule gave too few or too many values.
    pub fn combine_chunks(
        &self,
        rule: impl Fn(Tensor<B, 2>, Range<usize>) -> Tensor<B, 1> + Sync,
    ) -> Result<ParamVector<B>, SchemaError> {
        let params = &self.updates[0].local.params;
        let pieces = self.map_chunks(rule);
        let values = if pieces.is_empty() { params.values().clone() } else { Tensor::cat(pieces, 0) };
        params.with_values(values)
    }

    /// As [`UpdateSet::combine_chunks`] for rules that give something else, such as new state besides the new values:
    /// what `rule` made of each piece, in order along the flat axis. Empty for a model without values.
    pub fn map_chunks<T: Send>(&self, rule: impl Fn(Tensor<B, 2>, Range<usize>) -> T + Sync) -> Vec<T> {
        let ranges: Vec<_> = self.chunks((CHUNK_VALUES / self.len()).max(1)).collect();
        self.spread(&ranges, |range| rule(self.chunk(range.clone()), range.clone()))
    }

    /// What `rule` makes of each update, in cohort order, on as many threads as [`UpdateSet::map_chunks`] uses: for
    /// rules that keep something of each client and need no more than one client at a time.
    pub fn map_updates<T: Send>(&self, rule: impl Fn(&ClientUpdate<B>) -> T + Sync) -> Vec<T> {
        self.spread(&self.updates, rule)
    }

    /// Results in the items' order, whatever the number of threads.
    fn spread<I: Sync, T: Send>(&self, items: &[I], apply: impl Fn(&I) -> T + Sync) -> Vec<T> {
        let threads = self.threads.min(items.len()).max(1);
        let (own, others) = items.split_at(items.len().div_ceil(threads));
        thread::scope(|scope| {
            let apply = &apply;
            let parts = others.chunks(own.len().max(1));
            let workers: Vec<_> =
                parts.map(|part| scope.spawn(move || part.iter().map(apply).collect::<Vec<T>>())).collect();
            let mut results: Vec<T> = own.iter().map(apply).collect();
            for worker in workers {
                results.extend(worker.join().unwrap_or_else(|cause| panic::resume_unwind(cause)));
            }
            results
        })
    }

    /// The weighted mean of parameters, side vectors and scalars, for a wrapper that changes updates on their way to a
    /// rule that sees the mean alone. Summed in `f64` in cohort order and rounded once.
    ///
    /// # Errors
    /// The reason, where clients sent different pieces of side information.
    pub fn mean(&self, weighting: Weighting) -> Result<RoundMean<B>, String> {
        let weights = self.weights(weighting);
        let first = &self.updates[0].local;
        let of = |vectors: Vec<&ParamVector<B>>| {
            let mut sums = vec![0.0; first.params.num_values()];
            for (vector, weight) in vectors.into_iter().zip(&weights) {
                sums.iter_mut().zip(vector.to_host()).for_each(|(sum, v)| *sum += weight * f64::from(v));
            }
            let values = sums.into_iter().map(|v| v as f32).collect();
            ParamVector::from_host(values, first.params.schema().clone(), &first.params.device())
                .map_err(|e| e.to_string())
        };
        let mut side = SideInfo::default();
        for name in first.side.vectors.keys() {
            let vectors: Option<Vec<_>> = self.updates.iter().map(|u| u.local.side.vectors.get(name)).collect();
            let vectors = vectors.ok_or_else(|| format!("some clients did not send the side vector `{name}`"))?;
            side.vectors.insert(name.clone(), of(vectors)?);
        }
        for name in first.side.scalars.keys() {
            let scalars: Option<Vec<_>> = self.updates.iter().map(|u| u.local.side.scalars.get(name)).collect();
            let scalars = scalars.ok_or_else(|| format!("some clients did not send the side scalar `{name}`"))?;
            side.scalars.insert(name.clone(), scalars.into_iter().zip(&weights).map(|(v, w)| v * w).sum());
        }
        Ok(RoundMean {
            params: of(self.updates.iter().map(|u| &u.local.params).collect())?,
            side,
            num_examples: self.updates.iter().map(|u| u.local.num_examples).sum(),
            num_updates: self.updates.len(),
            holders: None,
        })
    }

    /// A piece of the flat axis of every update, `[clients, range.len()]`.
    pub fn chunk(&self, range: Range<usize>) -> Tensor<B, 2> {
        let rows = self.updates.iter().map(|u| u.local.params.values().clone().slice([range.clone()]));
        Tensor::stack(rows.collect(), 0)
    }

    /// Ranges that cover the flat axis, each at most `size` values long.
    pub fn chunks(&self, size: usize) -> impl Iterator<Item = Range<usize>> + use<B> {
        let len = self.updates[0].local.params.num_values();
        (0..len).step_by(size.max(1)).map(move |start| start..len.min(start + size.max(1)))
    }
}

/// Values of a piece over all clients: 256 KiB, so that a rule's temporaries stay in a core's own cache.
const CHUNK_VALUES: usize = 1 << 16;
