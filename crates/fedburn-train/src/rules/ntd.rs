//! FedNTD: local training that remembers what the global model knew of the other classes.
//!
//! Lee, Jeong, Shin, Bae and Yun, "Preservation of the Global Knowledge by Not-True Distillation in Federated Learning",
//! NeurIPS 2022, arXiv:2106.03097.
//!
//! ```text
//! loss = CE(s, y) + beta tau^2 KL( softmax(u' / tau) || softmax(s' / tau) )        mean over the batch
//! ```
//!
//! | symbol | meaning |
//! |---|---|
//! | `s`, `u` | logits of the local model and of the global one, which stays frozen |
//! | `s'`, `u'` | the same without the entry of the true class `y` |
//! | `beta`, `tau` | weight and temperature of the distillation |
//!
//! State: none. Cost: one forward pass of the global model a step, and its memory. With two classes the term is zero.
//! The server averages, as for plain SGD. The global model runs in evaluation mode: its running statistics are its own.

use burn::backend::Autodiff;
use burn::nn::loss::CrossEntropyLoss;
use burn::optim::GradientsParams;
use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{Int, Tensor, backend::Backend};
use fedburn_core::{Classifier, Mode, TrainError};
use fedburn_data::Batch;
use serde::{Deserialize, Serialize};

use super::{BatchGradients, GradientRule, LocalRule, LocalRun, TrainModel, Trained};

/// The numbers of [`LocalNtd`]; defaults are the paper's.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NtdConfig {
    /// Weight `beta` of the distillation, at least 0.
    pub beta: f64,
    /// Temperature `tau`, above 0.
    pub tau: f64,
}

impl Default for NtdConfig {
    fn default() -> Self {
        Self { beta: 1.0, tau: 1.0 }
    }
}

/// A gradient rule: cross-entropy, and distillation from a frozen `teacher` over the classes that are not true.
#[derive(Clone, Debug)]
pub struct NotTrueDistillation<T> {
    config: NtdConfig,
    teacher: T,
}

impl<T> NotTrueDistillation<T> {
    /// Distils from `teacher`, a model for inference.
    pub fn new(config: NtdConfig, teacher: T) -> Self {
        Self { config, teacher }
    }
}

impl<B: Backend, M: TrainModel<B>, T: Classifier<B>> GradientRule<B, M> for NotTrueDistillation<T> {
    fn gradients(&mut self, model: M, batch: Batch<B>) -> BatchGradients<B, M> {
        let device = batch.inputs.device();
        let taught = self.teacher.forward(batch.inputs.clone(), Mode::Evaluate);
        let logits = model.forward(Tensor::from_inner(batch.inputs), Mode::Train);
        let labels = Tensor::from_inner(batch.labels.clone());
        let mut loss = CrossEntropyLoss::new(None, &device).forward(logits.clone(), labels);
        let [_, classes] = taught.dims();
        if classes > 2 && self.config.beta > 0.0 {
            let others = not_true(batch.labels, classes);
            let term = divergence(
                logits.gather(1, Tensor::from_inner(others.clone())),
                taught.gather(1, others),
                self.config.tau,
            );
            loss = loss + term.mul_scalar(self.config.beta);
        }
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        BatchGradients { model, gradients, loss: loss.inner() }
    }
}

/// For each label the other classes in order, `[batch, classes - 1]`.
fn not_true<B: Backend>(labels: Tensor<B, 1, Int>, classes: usize) -> Tensor<B, 2, Int> {
    let [batch] = labels.dims();
    let width = classes - 1;
    let counted = Tensor::<B, 1, Int>::arange(0..width as i64, &labels.device()).reshape([1, width]);
    let counted = counted.expand([batch, width]);
    let passed = counted.clone().greater_equal(labels.reshape([batch, 1]).expand([batch, width]));
    counted + passed.int()
}

/// `tau^2 KL(softmax(u / tau) || softmax(s / tau))`, mean over the rows of `[batch, classes]`.
pub(super) fn divergence<B: Backend>(s: Tensor<Autodiff<B>, 2>, u: Tensor<B, 2>, tau: f64) -> Tensor<Autodiff<B>, 1> {
    let [batch, _] = u.dims();
    let u = u.div_scalar(tau);
    let (p, log_p) = (Tensor::from_inner(softmax(u.clone(), 1)), Tensor::from_inner(log_softmax(u, 1)));
    let log_q = log_softmax(s.div_scalar(tau), 1);
    (p * (log_p - log_q)).sum().mul_scalar(tau * tau / batch as f64)
}

/// Local SGD with not-true distillation from the global model.
#[derive(Clone, Copy, Debug)]
pub struct LocalNtd {
    config: NtdConfig,
}

impl LocalNtd {
    /// The rule with the numbers of `config`, which a [`crate::LocalTrainingConfig`] checks.
    pub fn new(config: NtdConfig) -> Self {
        Self { config }
    }
}

impl<B: Backend, M: TrainModel<B>> LocalRule<B, M> for LocalNtd {
    fn train(&mut self, model: M, run: &LocalRun<'_, B>) -> Result<Trained<B, M>, TrainError> {
        let teacher = model.valid();
        let rule = NotTrueDistillation::new(self.config, teacher);
        run.descend(model, &mut run.training.sharpened(rule))
    }
}
