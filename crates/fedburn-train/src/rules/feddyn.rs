//! FedDyn, the client half: a regulariser that lets local optima agree with the global one. The server half is the
//! strategy of the same name.
//!
//! Acar, Zhao, Matas Navarro, Mattina, Whatmough and Saligrama, "Federated Learning Based on Dynamic Regularization",
//! ICLR 2021, arXiv:2111.04263, algorithm 1.
//!
//! ```text
//! minimise f_k(x) - <g_k, x> + (alpha / 2) norm(x - x_t)^2     gradient: grad f_k(x) - g_k + alpha (x - x_t)
//! g_k <- g_k - alpha (x_k - x_t)
//! ```
//!
//! | symbol | meaning |
//! |---|---|
//! | `f_k` | the client's loss |
//! | `x_t`, `x_k` | the global model, the client's after training |
//! | `g_k` | the client's dynamic: at an exact minimum, its gradient there |
//! | `alpha` | strength of the regulariser |
//!
//! State: `g_k`, zeros for a client that has none. Memory: two vectors besides the model.
//!
//! The minimum is approached by the configured steps of SGD, as in the authors' code. That code keeps `-g_k / alpha`
//! instead of `g_k` and writes the quadratic term as weight decay: the same steps. Where the server sends an `alpha`,
//! that one holds, so that both halves agree. `g_k` is zero for running statistics. A client that holds a part of the model,
//! always the same, has a `g_k` of that part.

use std::sync::Arc;

use burn::tensor::backend::Backend;
use fedburn_core::{
    ParamVector, SchemaError, SideInfo, Slice, StateDict, StateError, TrainError, flatten_part, schema_of,
};
use serde::{Deserialize, Serialize};

use super::kept::Kept;
use super::scaffold::without_statistics;
use super::shifted::Shifted;
use super::{CrossEntropy, GradientRule, LocalRule, LocalRun, Proximal, TrainModel, Trained};

/// The numbers of [`LocalFedDyn`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FedDynRuleConfig {
    /// `alpha`, above 0, where the server sends none. 0.01 in the authors' CIFAR-10 script.
    pub alpha: f64,
}

impl Default for FedDynRuleConfig {
    fn default() -> Self {
        Self { alpha: 0.01 }
    }
}

/// Local SGD on the regularised loss.
#[derive(Clone, Debug)]
pub struct LocalFedDyn<B: Backend> {
    alpha: f64,
    /// `g_k`.
    dynamic: Kept<B>,
}

impl<B: Backend> LocalFedDyn<B> {
    /// The rule of a client that has not taken part yet.
    pub fn new(config: FedDynRuleConfig) -> Self {
        Self { alpha: config.alpha, dynamic: Kept::new("dynamic") }
    }

    /// What [`LocalFedDyn::take_back`] takes, whichever model it is of.
    pub(crate) fn kept(&self) -> StateDict {
        self.dynamic.state()
    }

    /// # Errors
    /// [`StateError`] where the state holds something else.
    pub(crate) fn take_back(&mut self, state: StateDict) -> Result<(), StateError> {
        self.dynamic.restore(state)
    }

    /// [`LocalRule::train`] on the loss of `rule` in place of the configured one.
    ///
    /// # Errors
    /// [`TrainError`]; the client's dynamic is then as before.
    pub fn train_with<M: TrainModel<B>>(
        &mut self,
        model: M,
        run: &LocalRun<'_, B>,
        rule: impl GradientRule<B, M>,
    ) -> Result<Trained<B, M>, TrainError> {
        let global = &run.task.global;
        let alpha = run.task.side.scalars.get(SideInfo::<B>::ALPHA).copied().unwrap_or(self.alpha);
        if !(alpha > 0.0 && alpha.is_finite()) {
            let reason = format!("the server sent {alpha} as `alpha` of `feddyn`, expected a number above 0");
            return Err(TrainError::Unusable { client: run.client, reason });
        }
        let dynamic = self.dynamic.recall(global).map_err(|e| run.state_error(e))?;
        let whole = Whole::of(&model, run).map_err(|e| run.schema_error(e))?;
        let in_whole = |vector: &ParamVector<B>| whole.with(vector).map_err(|e| run.schema_error(e));
        let regularised = Proximal::new(rule, alpha, in_whole(global)?);
        let shift = in_whole(&dynamic)?.into_values().neg();
        let trained = run.descend(model, &mut Shifted { rule: regularised, shift })?;
        let local = flatten_part(&trained.model.valid(), global.schema()).map_err(|e| run.schema_error(e))?;
        let moved = local.minus(global).map_err(|e| run.schema_error(e))?.into_values();
        let renewed = without_statistics(global, dynamic.into_values() - moved.mul_scalar(alpha));
        self.dynamic.keep(renewed.map_err(|e| run.schema_error(e))?);
        Ok(Trained { accumulation: run.accumulation(trained.steps, alpha), ..trained })
    }
}

/// Where what a client holds lies in the model that it trains, whose gradients are of the whole.
struct Whole(Option<Slice>);

impl Whole {
    fn of<B: Backend, M: TrainModel<B>>(model: &M, run: &LocalRun<'_, B>) -> Result<Self, SchemaError> {
        if run.task.slice.is_empty() {
            return Ok(Self(None));
        }
        Slice::new(Arc::new(schema_of(model)?), run.task.global.schema().clone()).map(|slice| Self(Some(slice)))
    }

    /// `vector` among zeros.
    fn with<B: Backend>(&self, vector: &ParamVector<B>) -> Result<ParamVector<B>, SchemaError> {
        match &self.0 {
            Some(slice) => slice.put(vector, &ParamVector::zeros(slice.whole().clone(), &vector.device())),
            None => Ok(vector.clone()),
        }
    }
}

impl<B: Backend, M: TrainModel<B>> LocalRule<B, M> for LocalFedDyn<B> {
    fn train(&mut self, model: M, run: &LocalRun<'_, B>) -> Result<Trained<B, M>, TrainError> {
        self.train_with(model, run, run.training.sharpened(CrossEntropy))
    }

    fn state(&self) -> StateDict {
        self.kept()
    }

    fn restore(&mut self, state: StateDict) -> Result<(), StateError> {
        self.take_back(state)
    }
}
