//! pFedMe: the global model as the centre of personal ones.
//!
//! Dinh, Tran and Nguyen, "Personalized Federated Learning with Moreau Envelopes", NeurIPS 2020, arXiv:2006.08848.
//!
//! ```text
//! for each batch:
//!     theta ~ argmin f(theta) + (lambda / 2) norm(theta - w)^2        K steps from the previous theta, rate eta_p
//!     w     <- w - eta lambda (w - theta)
//! ```
//!
//! | symbol | meaning | here |
//! |---|---|---|
//! | `w` | the local copy of the global model, sent | |
//! | `theta` | the personal model, used | |
//! | `f` | loss of the batch | |
//! | `lambda` | strength of the pull | [`PFedMeConfig::lambda`] |
//! | `eta_p`, `K` | inner rate and steps | [`PFedMeConfig::personal_lr`], [`PFedMeConfig::inner_steps`] |
//! | `eta` | rate of `w` | the client's learning rate; 0.005 in the paper |
//! | `R` | batches of a run | the client's `steps`; 20 in the paper |
//! | `beta` | server rate | `server_lr` of the strategy `fedavg` |
//!
//! State: `theta`; a client that has none begins with the received model. Cost: `K` passes a batch. Memory: one vector
//! kept, two during a run.
//!
//! Inner steps are plain: no momentum; weight decay and clipping are the client's (the authors' code has a decay of
//! 0.001). Running statistics are those of the inner passes. `eta_p (lambda + curvature of f)` must stay below 2.
//! The reported loss is that of the personal model before each inner step.

use burn::tensor::backend::Backend;
use fedburn_core::{Mean, ParamVector, SchemaError, SideInfo, StateDict, StateError, TrainError};
use serde::{Deserialize, Serialize};

use super::super::{CrossEntropy, GradientRule, Kept, LocalRule, LocalRun, Proximal, TrainModel, Trained, descend};
use super::{at, params_of};
use crate::Diverged;

/// The numbers of [`PFedMe`]; defaults are the paper's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PFedMeConfig {
    /// `lambda`, above 0; its product with the client's learning rate stays at or below 1.
    pub lambda: f64,
    /// `eta_p`, above 0; its product with `lambda` stays below 2.
    pub personal_lr: f64,
    /// `K`, at least 1.
    pub inner_steps: usize,
}

impl Default for PFedMeConfig {
    fn default() -> Self {
        Self { lambda: 15.0, personal_lr: 0.09, inner_steps: 5 }
    }
}

/// A personal model around which the global one is built.
#[derive(Clone, Debug)]
pub struct PFedMe<B: Backend> {
    config: PFedMeConfig,
    /// `theta`.
    own: Kept<B>,
}

impl<B: Backend> PFedMe<B> {
    /// The rule without state. A [`crate::LocalTrainingConfig`] checks the numbers.
    pub fn new(config: PFedMeConfig) -> Self {
        Self { config, own: Kept::new("own") }
    }

    /// As [`LocalRule::train`] on the loss of `rule`.
    ///
    /// # Errors
    /// [`TrainError`].
    pub fn train_with<M: TrainModel<B>>(
        &mut self,
        model: M,
        run: &LocalRun<'_, B>,
        mut rule: impl GradientRule<B, M>,
    ) -> Result<Trained<B, M>, TrainError> {
        let PFedMeConfig { lambda, personal_lr, inner_steps } = self.config;
        let mut own = self.own.recall_or(&run.task.global).map_err(|e| run.state_error(e))?;
        let (mut copy, rate) = (run.task.global.clone(), run.learning_rate() * lambda);
        let schema = |e| run.schema_error(e);
        let mut model = at(model, &own).map_err(schema)?;
        let (mut loss, mut steps) = (Mean::default(), 0);
        for batch in run.batches() {
            let inner = std::iter::repeat_n(batch, inner_steps);
            let mut pulled = Proximal::new(&mut rule, lambda, copy.clone());
            let found = descend(model, inner, &mut pulled, &mut run.training.optimiser(), personal_lr);
            let found = found.map_err(|_| run.diverged(Diverged { step: steps }))?;
            own = params_of(&found.model, &own).map_err(schema)?;
            let toward = copy.values().clone() - own.values().clone();
            let moved = copy.with_values(copy.values().clone() - toward.mul_scalar(rate));
            copy = moved.and_then(|moved| moved.with_buffers_of(&own)).map_err(schema)?;
            model = found.model;
            loss.merge(found.loss);
            steps += 1;
        }
        if !own.is_finite() {
            return Err(run.diverged(Diverged { step: steps.saturating_sub(1) }));
        }
        let model = at(model, &copy).map_err(schema)?;
        self.own.keep(own);
        Ok(Trained { model, loss, steps, accumulation: run.accumulation(steps, 0.0), side: SideInfo::default() })
    }
}

impl<B: Backend, M: TrainModel<B>> LocalRule<B, M> for PFedMe<B> {
    fn train(&mut self, model: M, run: &LocalRun<'_, B>) -> Result<Trained<B, M>, TrainError> {
        self.train_with(model, run, run.training.sharpened(CrossEntropy))
    }

    fn deployed(&self, global: &ParamVector<B>) -> Result<ParamVector<B>, SchemaError> {
        self.own.deployed_or(global)
    }

    fn state(&self) -> StateDict {
        self.own.state()
    }

    fn restore(&mut self, state: StateDict) -> Result<(), StateError> {
        self.own.restore(state)
    }
}
