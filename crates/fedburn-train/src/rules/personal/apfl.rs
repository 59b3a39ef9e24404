//! APFL: a mix of one's own model and the global one, whose weight is learned.
//!
//! Deng, Kamani and Mahdavi, "Adaptive Personalized Federated Learning", 2020, arXiv:2003.13461.
//!
//! ```text
//! vbar  = alpha v + (1 - alpha) w                                 what the client uses
//! w     <- w - eta grad f(w)                                      sent
//! v     <- v - eta alpha grad f(vbar)
//! alpha <- clip(alpha - eta <v - w, grad f(vbar)>, 0, 1)          all three from the old values
//! ```
//!
//! | symbol | meaning |
//! |---|---|
//! | `w` | the local copy of the global model |
//! | `v` | the client's own model |
//! | `alpha` | weight of the own model |
//! | `f`, `eta` | loss of the batch, learning rate |
//!
//! State: `v`, `alpha`; a client that has none begins with the global model and [`ApflConfig::alpha`]. Cost: two passes a
//! step. Memory: one vector kept, three during a run.
//!
//! Departures: the paper's weight form is used; the authors' code mixes outputs, approximates the gradient at `vbar` and
//! adds `0.02 alpha` to that of `alpha`. As there, `alpha` moves on the first batch of a run, or on every batch by option.
//! `w` and `v` have an optimiser of the client's settings each; running statistics are those of the passes at `w` (sent)
//! and at `vbar` (used).

use burn::tensor::{ElementConversion, backend::Backend};
use fedburn_core::{ParamVector, SchemaError, StateDict, StateError, TrainError, flat_gradients};
use fedburn_data::Batch;
use serde::{Deserialize, Serialize};

use super::super::{BatchGradients, CrossEntropy, GradientRule, Kept, LocalRule, LocalRun, TrainModel, Trained};
use super::{at, finite_params_of, params_of};
use crate::{Diverged, Sgd};

/// The numbers of [`Apfl`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ApflConfig {
    /// First weight of the own model, in `[0, 1]`.
    pub alpha: f64,
    /// When the weight moves.
    pub adapt: Adaptation,
}

impl Default for ApflConfig {
    fn default() -> Self {
        Self { alpha: 0.5, adapt: Adaptation::Round }
    }
}

/// When the weight of the own model moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Adaptation {
    /// On the first batch of each run.
    #[default]
    Round,
    /// On every batch.
    Step,
    /// Never.
    Never,
}

/// Two models and the weight of their mix.
#[derive(Clone, Debug)]
pub struct Apfl<B: Backend> {
    config: ApflConfig,
    /// `v`.
    own: Kept<B>,
    alpha: f64,
}

impl<B: Backend> Apfl<B> {
    /// The rule without state. A [`crate::LocalTrainingConfig`] checks the numbers.
    pub fn new(config: ApflConfig) -> Self {
        Self { config, own: Kept::new("own"), alpha: config.alpha }
    }

    /// The weight of the own model.
    pub fn alpha(&self) -> f64 {
        self.alpha
    }

    /// As [`LocalRule::train`] on the loss of `rule`.
    ///
    /// # Errors
    /// [`TrainError`].
    pub fn train_with<M: TrainModel<B>>(
        &mut self,
        model: M,
        run: &LocalRun<'_, B>,
        rule: impl GradientRule<B, M>,
    ) -> Result<Trained<B, M>, TrainError> {
        let own = self.own.recall_or(&run.task.global).map_err(|e| run.state_error(e))?;
        let (optimiser, lr) = (run.training.optimiser(), run.learning_rate());
        let mut beside =
            Beside { rule, own, alpha: self.alpha, adapt: self.config.adapt, optimiser, lr, steps: 0, failed: None };
        let trained = run.descend(model, &mut beside)?;
        let Beside { own, alpha, failed, .. } = beside;
        failed.map_or(Ok(()), |e| Err(run.schema_error(e)))?;
        finite_params_of(&trained.model, trained.steps, run)?;
        if !own.is_finite() || !alpha.is_finite() {
            return Err(run.diverged(Diverged { step: trained.steps.saturating_sub(1) }));
        }
        self.own.keep(own);
        self.alpha = alpha;
        Ok(trained)
    }
}

/// The gradients at `w`, as the global model needs them; meanwhile `v` and `alpha` make their own step.
struct Beside<B: Backend, G> {
    rule: G,
    /// `v`.
    own: ParamVector<B>,
    alpha: f64,
    adapt: Adaptation,
    optimiser: Sgd,
    lr: f64,
    /// Steps taken.
    steps: usize,
    failed: Option<SchemaError>,
}

impl<B: Backend, M: TrainModel<B>, G: GradientRule<B, M>> GradientRule<B, M> for Beside<B, G> {
    fn gradients(&mut self, model: M, batch: Batch<B>) -> BatchGradients<B, M> {
        let BatchGradients { model, gradients, loss } = self.rule.gradients(model, batch.clone());
        let same = model.clone();
        let model = self.own_step(model, batch).unwrap_or_else(|error| {
            self.failed.get_or_insert(error);
            same
        });
        self.steps += 1;
        BatchGradients { model, gradients, loss }
    }
}

impl<B: Backend, G> Beside<B, G> {
    /// Moves `v` and `alpha` and returns `model` as it was.
    fn own_step<M: TrainModel<B>>(&mut self, model: M, batch: Batch<B>) -> Result<M, SchemaError>
    where
        G: GradientRule<B, M>,
    {
        let copy = params_of(&model, &self.own)?;
        let mix = mixed(&self.own, &copy, self.alpha)?;
        let BatchGradients { model, gradients, .. } = self.rule.gradients(at(model, &mix)?, batch);
        let moves = match self.adapt {
            Adaptation::Round => self.steps == 0,
            Adaptation::Step => true,
            Adaptation::Never => false,
        };
        let along = moves.then(|| {
            let apart = self.own.values().clone() - copy.values().clone();
            (apart * flat_gradients(&model, &gradients)).sum().into_scalar().elem::<f64>()
        });
        // The statistics that the pass at the mix has made belong to the own model.
        let own = self.own.with_buffers_of(&params_of(&model, &mix)?)?;
        let moved = self.optimiser.step::<B, M>(at(model, &own)?, gradients, self.lr * self.alpha);
        self.own = params_of(&moved, &own)?;
        self.alpha = along.map_or(self.alpha, |along| (self.alpha - self.lr * along).clamp(0.0, 1.0));
        at(moved, &copy)
    }
}

impl<B: Backend, M: TrainModel<B>> LocalRule<B, M> for Apfl<B> {
    fn train(&mut self, model: M, run: &LocalRun<'_, B>) -> Result<Trained<B, M>, TrainError> {
        self.train_with(model, run, run.training.sharpened(CrossEntropy))
    }

    fn deployed(&self, global: &ParamVector<B>) -> Result<ParamVector<B>, SchemaError> {
        let own = self.own.deployed_or(global)?;
        mixed(&own, global, self.alpha)
    }

    fn state(&self) -> StateDict {
        let mut state = self.own.state();
        if !state.is_empty() {
            state.insert_f64("alpha", self.alpha);
        }
        state
    }

    fn restore(&mut self, mut state: StateDict) -> Result<(), StateError> {
        let alpha = if state.is_empty() { self.config.alpha } else { state.take_f64("alpha")? };
        self.own.restore(state)?;
        self.alpha = alpha;
        Ok(())
    }
}

/// `alpha own + (1 - alpha) global`, with the running statistics of `own`.
fn mixed<B: Backend>(own: &ParamVector<B>, global: &ParamVector<B>, alpha: f64) -> Result<ParamVector<B>, SchemaError> {
    own.schema().ensure_same(global.schema())?;
    let values = own.values().clone().mul_scalar(alpha) + global.values().clone().mul_scalar(1.0 - alpha);
    own.with_values(values)?.with_buffers_of(own)
}
