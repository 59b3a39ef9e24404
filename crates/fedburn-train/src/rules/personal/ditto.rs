//! Ditto: a model of one's own, held near the global one.
//!
//! Li, Hu, Beirami and Smith, "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021,
//! arXiv:2012.04221.
//!
//! ```text
//! v_k <- v_k - eta (grad f_k(v_k) + lambda (v_k - x_t))        a step for each batch of the local run
//! ```
//!
//! | symbol | meaning |
//! |---|---|
//! | `x_t` | the global model, as received |
//! | `v_k` | the client's own model, which it uses |
//! | `f_k`, `eta` | the client's loss and learning rate |
//! | `lambda` | strength of the pull |
//!
//! State: `v_k` beside the inner rule's; a client that has none begins with `x_t`. Cost: a second run a round. Memory: one
//! vector kept, two during a run. What is sent is the inner rule's: the federation does not notice.
//!
//! The own model is stepped on the same batches, with the client's optimiser (its momentum starts anew) and
//! sharpness-aware steps where the client takes them. With `lambda = 0` it is a model trained without the federation.
//! Departure: the paper's dynamic variant, which chooses `lambda` on validation data, is not offered.

use burn::tensor::backend::Backend;
use fedburn_core::{ParamVector, SchemaError, StateDict, StateError, TrainError};
use serde::{Deserialize, Serialize};

use super::super::{CrossEntropy, GradientRule, Kept, LocalRule, LocalRun, Proximal, TrainModel, Trained};
use super::{at, finite_params_of};

/// The numbers of [`Ditto`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DittoConfig {
    /// `lambda`, at least 0, and so small that the learning rate times it stays below 1. The paper tunes it in
    /// {0.1, 1, 2}.
    pub lambda: f64,
}

impl Default for DittoConfig {
    fn default() -> Self {
        Self { lambda: 0.1 }
    }
}

/// A personal model beside any rule.
pub struct Ditto<B: Backend, M> {
    global: Box<dyn LocalRule<B, M>>,
    lambda: f64,
    /// `v_k`.
    own: Kept<B>,
}

impl<B: Backend, M: TrainModel<B>> Ditto<B, M> {
    /// A personal model beside `global`, which trains what is sent. A [`crate::LocalTrainingConfig`] checks the numbers.
    pub fn new(global: Box<dyn LocalRule<B, M>>, config: DittoConfig) -> Self {
        Self { global, lambda: config.lambda, own: Kept::new("own") }
    }

    /// As [`LocalRule::train`], the personal model on the loss of `rule`.
    ///
    /// # Errors
    /// [`TrainError`].
    pub fn train_with(
        &mut self,
        model: M,
        run: &LocalRun<'_, B>,
        rule: impl GradientRule<B, M>,
    ) -> Result<Trained<B, M>, TrainError> {
        let own = self.own.recall_or(&run.task.global).map_err(|e| run.state_error(e))?;
        let before = self.global.state();
        let sent = self.global.train(model, run)?;
        let personal = self.own_run(sent.model, sent.steps, &own, run, rule);
        match personal {
            Ok((model, own)) => {
                self.own.keep(own);
                let Trained { loss, steps, accumulation, side, .. } = sent;
                Ok(Trained { model, loss, steps, accumulation, side })
            }
            Err(error) => {
                self.global.restore(before).map_err(|e| run.state_error(e))?;
                Err(error)
            }
        }
    }

    /// Trains from `own` and returns the model as it came, and what became of `own`.
    fn own_run(
        &self,
        sent: M,
        steps: usize,
        own: &ParamVector<B>,
        run: &LocalRun<'_, B>,
        rule: impl GradientRule<B, M>,
    ) -> Result<(M, ParamVector<B>), TrainError> {
        let schema = |e| run.schema_error(e);
        let params = finite_params_of(&sent, steps, run)?;
        let mut rule = Proximal::new(rule, self.lambda, run.task.global.clone());
        let trained = run.descend(at(sent, own).map_err(schema)?, &mut rule)?;
        let own = finite_params_of(&trained.model, trained.steps, run)?;
        Ok((at(trained.model, &params).map_err(schema)?, own))
    }
}

impl<B: Backend, M: TrainModel<B>> LocalRule<B, M> for Ditto<B, M> {
    fn train(&mut self, model: M, run: &LocalRun<'_, B>) -> Result<Trained<B, M>, TrainError> {
        self.train_with(model, run, run.training.sharpened(CrossEntropy))
    }

    fn deployed(&self, global: &ParamVector<B>) -> Result<ParamVector<B>, SchemaError> {
        self.own.deployed_or(global)
    }

    fn state(&self) -> StateDict {
        let mut state = self.own.state();
        state.nest("global", self.global.state());
        state
    }

    fn restore(&mut self, mut state: StateDict) -> Result<(), StateError> {
        let global = state.split_off("global");
        let mut own = self.own.clone();
        own.restore(state)?;
        self.global.restore(global)?;
        self.own = own;
        Ok(())
    }
}
