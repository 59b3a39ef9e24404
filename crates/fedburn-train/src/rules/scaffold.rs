//! SCAFFOLD, the client half: steps corrected by control variates. The server half is the strategy of the same name.
//!
//! Karimireddy, Kale, Mohri, Reddi, Stich and Suresh, "SCAFFOLD: Stochastic Controlled Averaging for Federated
//! Learning", ICML 2020, arXiv:1910.06378, algorithm 1.
//!
//! ```text
//! y <- x_t;   K times:  y <- y - eta_l (grad f_k(y) - c_k + c)
//! option one:  c_k+ = grad f_k(x_t)                            over all of the client's examples
//! option two:  c_k+ = c_k - c + (x_t - y) / (K eta_l)
//! send y and c_k+ - c_k;   c_k <- c_k+
//! ```
//!
//! | symbol | meaning |
//! |---|---|
//! | `f_k` | the client's loss, weight decay included; with sharpness-aware steps its gradients are theirs |
//! | `x_t`, `y` | the global model, the client's |
//! | `c`, `c_k` | control variates of the server and of the client |
//! | `eta_l`, `K` | the round's learning rate, number of steps |
//!
//! State: `c_k`, zeros for a client that has none. Memory: three vectors besides the model. Option one costs one more
//! pass over the data.
//!
//! Momentum is refused: option two reads the mean gradient off the distance travelled, which momentum stretches, and
//! the paper's steps have none. Control variates are zero for running statistics.

use burn::tensor::{Tensor, backend::Backend};
use fedburn_core::{ParamVector, SchemaError, SideInfo, StateDict, StateError, TrainError, flat_gradients, flatten};
use fedburn_data::Batches;
use serde::{Deserialize, Serialize};

use super::flat::Snapshot;
use super::kept::Kept;
use super::shifted::Shifted;
use super::{CrossEntropy, GradientRule, LocalRule, LocalRun, TrainModel, Trained};

/// The numbers of [`LocalScaffold`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScaffoldRuleConfig {
    /// How the client's control variate is renewed.
    pub option: ControlOption,
}

/// How a client's control variate is renewed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlOption {
    /// The gradient over all of the client's examples at the global model.
    One,
    /// The mean of the gradients that the steps took, which costs nothing.
    #[default]
    Two,
}

/// Local SGD on corrected gradients. Takes the server's [`SideInfo::CONTROL`], zeros where none is sent, and sends
/// [`SideInfo::CONTROL_DELTA`].
#[derive(Clone, Debug)]
pub struct LocalScaffold<B: Backend> {
    option: ControlOption,
    /// `c_k`.
    control: Kept<B>,
}

impl<B: Backend> LocalScaffold<B> {
    /// The rule of a client that has not taken part yet.
    pub fn new(config: ScaffoldRuleConfig) -> Self {
        Self { option: config.option, control: Kept::new("control") }
    }

    /// [`LocalRule::train`] on the loss of `rule` in place of the configured one.
    ///
    /// # Errors
    /// [`TrainError`]; the client's control variate is then as before.
    pub fn train_with<M: TrainModel<B>>(
        &mut self,
        model: M,
        run: &LocalRun<'_, B>,
        mut rule: impl GradientRule<B, M>,
    ) -> Result<Trained<B, M>, TrainError> {
        let schema_error = |e| run.schema_error(e);
        let global = &run.task.global;
        let zeros = || ParamVector::zeros(global.schema().clone(), run.device);
        let server = run.task.side.vectors.get(SideInfo::<B>::CONTROL).cloned().unwrap_or_else(zeros);
        let own = self.control.recall(global).map_err(|e| run.state_error(e))?;
        let correction = server.minus(&own).map_err(schema_error)?;
        let (model, at_start) = match self.option {
            ControlOption::One => full_gradient(model, run, &mut rule),
            ControlOption::Two => (model, None),
        };
        let shift = correction.values().clone();
        let mut trained = run.descend(model, &mut Shifted { rule, shift })?;
        let renewed = match at_start {
            Some(gradient) => gradient,
            None => {
                let local = flatten(&trained.model.valid()).map_err(schema_error)?;
                let travelled = global.minus(&local).map_err(schema_error)?.into_values();
                let length = trained.steps.max(1) as f64 * run.learning_rate();
                travelled.div_scalar(length) - correction.into_values()
            }
        };
        let renewed = without_statistics(global, renewed).map_err(schema_error)?;
        let delta = renewed.minus(&own).map_err(schema_error)?;
        self.control.keep(renewed);
        trained.side.vectors.insert(SideInfo::<B>::CONTROL_DELTA.into(), delta);
        Ok(trained)
    }
}

impl<B: Backend, M: TrainModel<B>> LocalRule<B, M> for LocalScaffold<B> {
    fn train(&mut self, model: M, run: &LocalRun<'_, B>) -> Result<Trained<B, M>, TrainError> {
        self.train_with(model, run, run.training.sharpened(CrossEntropy))
    }

    fn state(&self) -> StateDict {
        self.control.state()
    }

    fn restore(&mut self, state: StateDict) -> Result<(), StateError> {
        self.control.restore(state)
    }
}

/// `values` as a vector of the schema of `like`, zero for running statistics.
pub(super) fn without_statistics<B: Backend>(
    like: &ParamVector<B>,
    values: Tensor<B, 1>,
) -> Result<ParamVector<B>, SchemaError> {
    like.with_values(values)?.with_buffers_of(&ParamVector::zeros(like.schema().clone(), &like.device()))
}

/// `grad f_k(x_t)` over all examples, `[num_values]`; the model's running statistics are as before.
fn full_gradient<B: Backend, M: TrainModel<B>>(
    model: M,
    run: &LocalRun<'_, B>,
    rule: &mut impl GradientRule<B, M>,
) -> (M, Option<Tensor<B, 1>>) {
    let config = run.training.config();
    let before = Snapshot::of(&model);
    let start = run.task.global.values().clone().mul_scalar(config.weight_decay);
    let (mut model, mut total) = (model, start);
    for batch in Batches::<B>::in_order(run.data, config.batch_size, run.device) {
        let share = batch.labels.dims()[0] as f64 / run.data.len() as f64;
        let step = rule.gradients(model, batch);
        total = total + flat_gradients(&step.model, &step.gradients).mul_scalar(share);
        model = step.model;
    }
    (before.restore(model), Some(total))
}
