//! FedProx: local training held near the global model.
//!
//! Li, Sahu, Zaheer, Sanjabi, Talwalkar and Smith, "Federated Optimization in Heterogeneous Networks", MLSys 2020,
//! arXiv:1812.06127.
//!
//! ```text
//! minimise f_k(x) + (mu / 2) norm(x - x_t)^2        gradient: grad f_k(x) + mu (x - x_t)
//! ```
//!
//! | symbol | meaning |
//! |---|---|
//! | `f_k` | the client's loss |
//! | `x_t` | the global model, where local training starts |
//! | `mu` | strength of the pull |
//!
//! State: none. Memory: the global vector, which is there anyway. The server averages, as for plain SGD. With `mu = 0`
//! the bits are those of plain SGD.

use burn::tensor::backend::Backend;
use fedburn_core::{ParamVector, TrainError};
use fedburn_data::Batch;
use serde::{Deserialize, Serialize};

use super::{BatchGradients, CrossEntropy, GradientRule, LocalRule, LocalRun, TrainModel, Trained, edit_gradients};

/// The numbers of [`LocalProximal`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProximalConfig {
    /// `mu`, at least 0, and so small that the learning rate times `mu` stays below 1. The paper tunes it in
    /// {0.001, 0.01, 0.1, 1}.
    pub mu: f64,
}

/// A gradient rule whose steps are pulled towards an anchor.
#[derive(Clone, Debug)]
pub struct Proximal<B: Backend, G> {
    rule: G,
    mu: f64,
    anchor: ParamVector<B>,
}

impl<B: Backend, G> Proximal<B, G> {
    /// The gradients of `rule` and `mu (x - anchor)`.
    pub fn new(rule: G, mu: f64, anchor: ParamVector<B>) -> Self {
        Self { rule, mu, anchor }
    }
}

impl<B: Backend, M: TrainModel<B>, G: GradientRule<B, M>> GradientRule<B, M> for Proximal<B, G> {
    fn gradients(&mut self, model: M, batch: Batch<B>) -> BatchGradients<B, M> {
        let mut step = self.rule.gradients(model, batch);
        if self.mu != 0.0 {
            edit_gradients(&step.model, &mut step.gradients, |place, gradient, weight| {
                gradient + (weight - self.anchor.values().clone().slice([place])).mul_scalar(self.mu)
            });
        }
        step
    }
}

/// Local SGD with a pull to the global model. Tells how many plain gradients its steps add up to with the pull counted
/// in, as normalised averaging needs.
#[derive(Clone, Copy, Debug)]
pub struct LocalProximal {
    mu: f64,
}

impl LocalProximal {
    /// The rule with the numbers of `config`, which a [`crate::LocalTrainingConfig`] checks.
    pub fn new(config: ProximalConfig) -> Self {
        Self { mu: config.mu }
    }
}

impl<B: Backend, M: TrainModel<B>> LocalRule<B, M> for LocalProximal {
    fn train(&mut self, model: M, run: &LocalRun<'_, B>) -> Result<Trained<B, M>, TrainError> {
        let mut rule = Proximal::new(run.training.sharpened(CrossEntropy), self.mu, run.task.global.clone());
        let trained = run.descend(model, &mut rule)?;
        Ok(Trained { accumulation: run.accumulation(trained.steps, self.mu), ..trained })
    }
}
