//! MOON: local training whose features stay near those of the global model and away from the client's last ones.
//!
//! Qinbin Li, Bingsheng He and Dawn Song, "Model-Contrastive Federated Learning", CVPR 2021, arXiv:2103.16257; published
//! code QinbinLi/MOON.
//!
//! ```text
//! l_con = -log( exp(cos(r, r_glob) / T) / ( exp(cos(r, r_glob) / T) + exp(cos(r, r_prev) / T) ) )
//! loss  = CE(s, y) + mu l_con                                                    mean over the batch
//! ```
//!
//! | symbol | meaning |
//! |---|---|
//! | `s`, `r` | logits of the local model and the features that its head made them of |
//! | `r_glob` | features of the global model, which stays frozen |
//! | `r_prev` | features of the client's model at the end of the last round it took part in, frozen too |
//! | `mu`, `T` | weight and temperature of the contrast |
//! | `cos` | cosine of the angle; 0, with slope 0, where a vector is shorter than 1e-8 |
//!
//! State: the client's last model. A client that has none trains without the contrast. Cost: a forward pass of either
//! frozen model a step, and their memory. The server averages, as for plain SGD.
//!
//! The features are what the model's head sees ([`Split`](fedburn_core::Split)). The paper's projection head is a part of
//! the model (`kind = "projected"` of the zoo). The frozen models run in evaluation mode. One past model is compared
//! with; the published code can keep more.

use burn::backend::Autodiff;
use burn::nn::loss::CrossEntropyLoss;
use burn::optim::GradientsParams;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Bool, Tensor, backend::Backend};
use fedburn_core::{Classifier, Mode, StateDict, StateError, TrainError, flatten, load};
use fedburn_data::Batch;
use serde::{Deserialize, Serialize};

use super::{BatchGradients, GradientRule, Kept, LocalRule, LocalRun, TrainModel, Trained};

/// The numbers of [`LocalMoon`]; defaults are those of the published CIFAR-10 example.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MoonConfig {
    /// Weight `mu` of the contrast, at least 0. The paper tunes it in {0.001, 0.01, 0.1, 1, 5, 10}.
    pub mu: f64,
    /// Temperature `T`, above 0.
    pub temperature: f64,
}

impl Default for MoonConfig {
    fn default() -> Self {
        Self { mu: 5.0, temperature: 0.5 }
    }
}

/// A gradient rule: cross-entropy, and the contrast between the features of two frozen models.
#[derive(Clone, Debug)]
pub struct ModelContrast<T> {
    config: MoonConfig,
    frozen: Option<[T; 2]>,
}

impl<T> ModelContrast<T> {
    /// Holds features near those of `global` and away from those of `previous`, models for inference; plain
    /// cross-entropy without a `previous` one, and for models that are not split into features and a head.
    pub fn new(config: MoonConfig, global: T, previous: Option<T>) -> Self {
        Self { config, frozen: previous.filter(|_| config.mu > 0.0).map(|previous| [global, previous]) }
    }
}

impl<B: Backend, M: TrainModel<B>, T: Classifier<B>> GradientRule<B, M> for ModelContrast<T> {
    fn gradients(&mut self, model: M, batch: Batch<B>) -> BatchGradients<B, M> {
        let device = batch.inputs.device();
        let frozen = self.frozen.as_ref().and_then(|models| {
            let features = |model: &T| Some(model.split()?.features(batch.inputs.clone(), Mode::Evaluate));
            Some([features(&models[0])?, features(&models[1])?])
        });
        let inputs = Tensor::from_inner(batch.inputs);
        let (logits, term) = match (model.split(), frozen) {
            (Some(parts), Some([global, previous])) => {
                let features = parts.features(inputs, Mode::Train);
                (parts.head(features.clone()), Some(contrast(features, global, previous, self.config.temperature)))
            }
            _ => (model.forward(inputs, Mode::Train), None),
        };
        let mut loss = CrossEntropyLoss::new(None, &device).forward(logits, Tensor::from_inner(batch.labels));
        if let Some(term) = term {
            loss = loss + term.mul_scalar(self.config.mu);
        }
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        BatchGradients { model, gradients, loss: loss.inner() }
    }
}

/// `l_con` of features `[batch, features]`, mean over the batch.
fn contrast<B: Backend>(
    r: Tensor<Autodiff<B>, 2>,
    global: Tensor<B, 2>,
    previous: Tensor<B, 2>,
    temperature: f64,
) -> Tensor<Autodiff<B>, 1> {
    let near = cosine(r.clone(), Tensor::from_inner(global));
    let far = cosine(r, Tensor::from_inner(previous));
    let both = Tensor::cat(vec![near, far], 1).div_scalar(temperature);
    log_softmax(both, 1).narrow(1, 0, 1).mean().neg()
}

/// The cosine of the angle between each two rows of `[batch, features]`, `[batch, 1]`.
fn cosine<B: Backend>(a: Tensor<B, 2>, b: Tensor<B, 2>) -> Tensor<B, 2> {
    let (short_a, norm_a) = norm(&a);
    let (short_b, norm_b) = norm(&b);
    ((a * b).sum_dim(1) / (norm_a * norm_b)).mask_fill(short_a, 0.0).mask_fill(short_b, 0.0)
}

/// Which rows of `[batch, features]` are too short to point anywhere, and the norms of the others, `[batch, 1]`.
fn norm<B: Backend>(t: &Tensor<B, 2>) -> (Tensor<B, 2, Bool>, Tensor<B, 2>) {
    let squares = t.clone().square().sum_dim(1);
    let short = squares.clone().lower_elem(SHORTEST * SHORTEST);
    // The root's slope at 0 is infinite.
    (short.clone(), squares.mask_fill(short, 1.0).sqrt())
}

/// The norm below which a vector has no direction.
const SHORTEST: f64 = 1e-8;

/// Local SGD with model contrast.
#[derive(Clone, Debug)]
pub struct LocalMoon<B: Backend> {
    config: MoonConfig,
    /// The client's model at the end of its last round.
    previous: Kept<B>,
}

impl<B: Backend> LocalMoon<B> {
    /// The rule of a client that has not taken part yet, with the numbers of `config`, which a
    /// [`crate::LocalTrainingConfig`] checks.
    pub fn new(config: MoonConfig) -> Self {
        Self { config, previous: Kept::new("previous") }
    }
}

impl<B: Backend, M: TrainModel<B>> LocalRule<B, M> for LocalMoon<B> {
    fn train(&mut self, model: M, run: &LocalRun<'_, B>) -> Result<Trained<B, M>, TrainError> {
        if model.split().is_none() {
            let reason = "the rule `moon` compares features, and the model is not split into features and a head";
            return Err(TrainError::Unusable { client: run.client, reason: reason.to_owned() });
        }
        let previous = self.previous.recall_any(&run.task.global).map_err(|e| run.state_error(e))?;
        let previous = previous.map(|params| load(model.valid(), &params)).transpose();
        let previous = previous.map_err(|e| run.schema_error(e))?;
        let rule = ModelContrast::new(self.config, model.valid(), previous);
        let trained = run.descend(model, &mut run.training.sharpened(rule))?;
        self.previous.keep(flatten(&trained.model.valid()).map_err(|e| run.schema_error(e))?);
        Ok(trained)
    }

    fn state(&self) -> StateDict {
        self.previous.state()
    }

    fn restore(&mut self, state: StateDict) -> Result<(), StateError> {
        self.previous.restore(state)
    }
}
