//! SWA: a running average of the global models of a run's last part, around any strategy.
//!
//! P. Izmailov, D. Podoprikhin, T. Garipov, D. Vetrov, A. G. Wilson: "Averaging Weights Leads to Wider Optima and
//! Better Generalization", UAI 2018, arXiv 1803.05407; on the server of a federation: D. Caldarola, B. Caputo,
//! M. Ciccone: "Improving Generalization in Federated Learning by Seeking Flat Minima", ECCV 2022, arXiv 2203.11834.
//!
//! ```text
//! from round i0 on, with j = i - i0 the place of round i:
//! rate of clients    (1 - tau) eta_1 + tau eta_2        tau = ((j mod c) + 1) / c        (c = 1: eta_1)
//! at the end of round i, where it collects:   swa <- swa (1 - 1 / (n + 1)) + x_{i+1} / (n + 1);   n <- n + 1
//! cycle_end collects where (j + 1) mod c = 0;   cycle_start where j mod c = 0 and j > 0
//! ```
//!
//! | symbol | meaning | here |
//! |---|---|---|
//! | `x_i` | the global vector, from the wrapped strategy; training goes on from it | `base` |
//! | `swa` | the average, evaluated and shipped from round `i0` on; first `x_{i0}`, with `n = 0` | `Aggregate::deploy` |
//! | `i0`, `c` | first round of the averaging, length of a cycle in rounds | [`SwaConfig::start`], [`SwaConfig::cycle`] |
//! | `eta_1`, `eta_2` | the clients' own rate, the rate at a cycle's end | the clients', [`SwaConfig::final_lr`] |
//!
//! State between rounds: `swa` and `n`, besides the base's under `base`. Memory: one vector more than the base. Weights
//! alone are averaged; running statistics are those of the current global vector, so that models with batch
//! normalisation should have them measured anew.
//!
//! Departures. The published code collects after the *first* round of a cycle, where the rate is highest
//! (`cycle_start`); the rule that it cites collects at the end, where the rate is `eta_2` (`cycle_end`, the default).
//! It counts the rate's cycles from the run's first round; here both are counted from `i0`, which is the same where `c`
//! divides the number of rounds before, as in its experiments.

use burn::tensor::backend::Backend;
use fedburn_core::{
    Aggregate, AggregateError, ClientId, Mean, MeanStrategy, ParamVector, PerClientStrategy, Reports, Round,
    RoundIndex, RoundMean, SchemaError, SideInfo, StateDict, StateError, Strategy, UpdateSet, Weighting,
};
use serde::{Deserialize, Serialize};

use crate::server_step::in_pieces;
use crate::{ServerModels, StrategyConfig, StrategyConfigError};

const KIND: &str = "swa";

/// When the average takes in a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SwaCollect {
    /// After the last round of each cycle.
    #[default]
    CycleEnd,
    /// After the first round of each cycle but the first, as the published code does.
    CycleStart,
}

/// Settings of [`Swa`]. The defaults are the published code's for CIFAR-10.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwaConfig {
    /// The strategy whose models are averaged.
    #[serde(default)]
    pub base: Box<StrategyConfig>,
    /// The first round, from 1, of the averaging; three quarters of the run in the paper.
    pub start: u64,
    /// Rounds of a cycle, at least 1; 1 leaves the clients' rate alone.
    #[serde(default = "default_cycle")]
    pub cycle: u64,
    /// The clients' learning rate in the last round of a cycle, positive.
    #[serde(default = "default_final_lr")]
    pub final_lr: f64,
    /// When the average takes in a model.
    #[serde(default)]
    pub collect: SwaCollect,
}

fn default_cycle() -> u64 {
    10
}

fn default_final_lr() -> f64 {
    1e-4
}

impl SwaConfig {
    /// Checks the settings and wraps the strategy that `base` makes, whose kind the result has.
    ///
    /// # Errors
    /// [`StrategyConfigError`] where a number is out of its range, the base averages already or cannot be built.
    pub fn build_with<B: Backend>(self, models: &dyn ServerModels<B>) -> Result<Strategy<B>, StrategyConfigError> {
        let whole = [("start", self.start), ("cycle", self.cycle)];
        if let Some((field, value)) = whole.into_iter().find(|(_, value)| *value == 0) {
            let expected = "a whole number from 1";
            return Err(StrategyConfigError::Value { kind: KIND, field, value: value.to_string(), expected });
        }
        StrategyConfigError::positive(KIND, "final_lr", self.final_lr)?;
        if self.base.layers().any(|inner| matches!(inner, StrategyConfig::Swa(_))) {
            let expected = "a strategy that does not average yet";
            return Err(StrategyConfigError::Value { kind: KIND, field: "base", value: KIND.to_owned(), expected });
        }
        let Self { base, start, cycle, final_lr, collect } = self;
        let schedule = Schedule { start, cycle, final_lr, collect };
        Ok(match base.build_with(models)? {
            Strategy::Mean(base) => Strategy::Mean(Box::new(Swa { base, schedule, average: None })),
            Strategy::PerClient(base) => Strategy::PerClient(Box::new(Swa { base, schedule, average: None })),
        })
    }
}

/// Averaging of the models of a strategy `S` of either kind.
#[derive(Clone, Debug)]
pub struct Swa<S, B: Backend> {
    base: S,
    schedule: Schedule,
    /// From round `start` on.
    average: Option<Average<B>>,
}

#[derive(Clone, Copy, Debug)]
struct Schedule {
    start: u64,
    cycle: u64,
    final_lr: f64,
    collect: SwaCollect,
}

impl Schedule {
    /// `j`, or `None` before the averaging.
    fn place(&self, round: RoundIndex) -> Option<u64> {
        round.0.checked_sub(self.start)
    }

    fn collects(&self, place: u64) -> bool {
        match self.collect {
            SwaCollect::CycleEnd => (place + 1).is_multiple_of(self.cycle),
            SwaCollect::CycleStart => place > 0 && place.is_multiple_of(self.cycle),
        }
    }

    /// Adds the round's rate to what the base sends.
    fn side_info<B: Backend>(&self, round: RoundIndex, mut side: SideInfo<B>) -> SideInfo<B> {
        if let Some(place) = self.place(round).filter(|_| self.cycle > 1) {
            let blend = (place % self.cycle + 1) as f64 / self.cycle as f64;
            side.scalars.insert(SideInfo::<B>::RATE_BLEND.into(), blend);
            side.scalars.insert(SideInfo::<B>::RATE_TARGET.into(), self.final_lr);
        }
        side
    }
}

#[derive(Clone, Debug)]
struct Average<B: Backend> {
    params: ParamVector<B>,
    /// `n`.
    models: u64,
}

impl<B: Backend> Average<B> {
    /// With one more model. The first takes the place of the copy that the average began with.
    fn with(self, model: &ParamVector<B>) -> Result<Self, SchemaError> {
        let models = self.models + 1;
        let [values] = in_pieces([self.params.values(), model.values()], |[average, model]| match models {
            1 => [model],
            _ => [average.clone() + (model - average) / models as f64],
        });
        Ok(Self { params: model.with_values(values)?, models })
    }
}

impl<S, B: Backend> Swa<S, B> {
    /// Takes the base's answer to `round` into the average, and lets the average be what is evaluated.
    fn finish(&mut self, round: &Round<'_, B>, mut aggregate: Aggregate<B>) -> Result<Aggregate<B>, AggregateError> {
        let Some(place) = self.schedule.place(round.index) else { return Ok(aggregate) };
        let schema = |source| AggregateError::Schema { round: round.index, source };
        let start = || Average { params: round.global.clone(), models: 0 };
        let mut average = self.average.clone().unwrap_or_else(start);
        if self.schedule.collects(place) {
            average = average.with(&aggregate.global).map_err(schema)?;
        }
        aggregate.deploy = Some(average.params.with_buffers_of(&aggregate.global).map_err(schema)?);
        aggregate.metrics.add("averaged_models", Mean::new(average.models as f64, 1.0));
        self.average = Some(average);
        Ok(aggregate)
    }

    fn state_with(&self, base: StateDict) -> StateDict {
        let mut state = StateDict::new();
        state.nest("base", base);
        if let Some(average) = &self.average {
            state.insert_params("average", &average.params);
            state.insert_u64("models", average.models);
        }
        state
    }

    /// Takes its own part out and leaves nothing but the base's, which it gives.
    fn split(mut state: StateDict, like: &ParamVector<B>) -> Result<(Option<Average<B>>, StateDict), StateError> {
        let base = state.split_off("base");
        let average = match state.is_empty() {
            true => None,
            false => Some(Average {
                params: state.take_params("average", like.schema(), &like.device())?,
                models: state.take_u64("models")?,
            }),
        };
        state.expect_empty()?;
        Ok((average, base))
    }
}

impl<B: Backend> MeanStrategy<B> for Swa<Box<dyn MeanStrategy<B>>, B> {
    fn name(&self) -> &'static str {
        KIND
    }

    fn weighting(&self) -> Weighting {
        self.base.weighting()
    }

    fn side_info(&self, round: RoundIndex, client: ClientId) -> SideInfo<B> {
        self.schedule.side_info(round, self.base.side_info(round, client))
    }

    fn step(&mut self, round: &Round<'_, B>, mean: &RoundMean<B>) -> Result<Aggregate<B>, AggregateError> {
        let aggregate = self.base.step(round, mean)?;
        self.finish(round, aggregate)
    }

    fn state(&self) -> StateDict {
        self.state_with(self.base.state())
    }

    fn restore(&mut self, state: StateDict, like: &ParamVector<B>) -> Result<(), StateError> {
        let (average, base) = Self::split(state, like)?;
        self.base.restore(base, like)?;
        self.average = average;
        Ok(())
    }
}

impl<B: Backend> PerClientStrategy<B> for Swa<Box<dyn PerClientStrategy<B>>, B> {
    fn name(&self) -> &'static str {
        KIND
    }

    fn reports(&self) -> Reports {
        self.base.reports()
    }

    fn remembers_clients(&self) -> bool {
        self.base.remembers_clients()
    }

    fn side_info(&self, round: RoundIndex, client: ClientId) -> SideInfo<B> {
        self.schedule.side_info(round, self.base.side_info(round, client))
    }

    fn aggregate(&mut self, round: &Round<'_, B>, updates: &UpdateSet<B>) -> Result<Aggregate<B>, AggregateError> {
        let aggregate = self.base.aggregate(round, updates)?;
        self.finish(round, aggregate)
    }

    fn state(&self) -> StateDict {
        self.state_with(self.base.state())
    }

    fn restore(&mut self, state: StateDict, like: &ParamVector<B>) -> Result<(), StateError> {
        let (average, base) = Self::split(state, like)?;
        self.base.restore(base, like)?;
        self.average = average;
        Ok(())
    }
}
