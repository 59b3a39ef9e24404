//! Sharpness-aware steps: SAM and ASAM, around any gradient rule.
//!
//! Foret, Kleiner, Mobahi and Neyshabur, "Sharpness-Aware Minimization for Efficiently Improving Generalization", ICLR
//! 2021, arXiv:2010.01412. Kwon, Kim, Park and Choi, "ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant
//! Learning of Deep Neural Networks", ICML 2021, arXiv:2102.11600. As local rules of a federation: Caldarola, Caputo and
//! Ciccone, "Improving Generalization in Federated Learning by Seeking Flat Minima", ECCV 2022, arXiv:2203.11834.
//!
//! ```text
//! g   = grad f(x)
//! SAM    eps = rho g / (norm(g) + 1e-16)
//! ASAM   u = T .* g,   eps = rho T .* u / (norm(u) + 1e-16)
//! g_s = grad f(x + eps)                      the same batch; x then steps along g_s
//! ```
//!
//! | symbol | meaning |
//! |---|---|
//! | `f` | loss of the batch, as the inner rule has it |
//! | `T` | `abs(x) + eta` for elements of weights, 1 for those of biases |
//! | `norm` | Euclidean, over all parameters of the model |
//!
//! State: none. Cost: two passes a step, and a second copy of the weights.
//!
//! Weights are the tensors that PyTorch calls so, as the authors' code finds them by name: those whose name contains
//! `weight`, and the scales of normalisation layers, which are named `gamma` here. Departures, which the sources leave
//! open: running statistics are those of the first pass alone; weight decay and clipping belong to the optimiser, so the
//! one uses the unperturbed `x` and the other applies to `g_s`. With `rho = 0` there is no second pass: bits and cost
//! are those of the inner rule.

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, backend::Backend};
use fedburn_data::Batch;
use serde::{Deserialize, Serialize};

use super::flat::Snapshot;
use super::{BatchGradients, GradientRule, TrainModel};
use crate::global_norm;

/// Keeps the quotient defined where the gradient vanishes; the value of the authors' code.
const TINY: f64 = 1e-16;

/// The `sharpness` of a `[client]` table: how far a step looks before it is taken. Defaults are those of the authors'
/// CIFAR-10 script.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum SharpnessAwareConfig {
    /// SAM: the neighbourhood is a ball.
    Sam {
        /// Its radius, at least 0.
        #[serde(default = "sam_rho")]
        rho: f64,
    },
    /// ASAM: the neighbourhood is stretched along each weight in proportion to its size.
    Asam {
        /// Its radius, at least 0.
        #[serde(default = "asam_rho")]
        rho: f64,
        /// Added to the size of each weight, at least 0. With 0 a weight that is zero is not perturbed.
        #[serde(default = "asam_eta")]
        eta: f64,
    },
}

fn sam_rho() -> f64 {
    0.1
}

fn asam_rho() -> f64 {
    0.7
}

fn asam_eta() -> f64 {
    0.2
}

impl SharpnessAwareConfig {
    /// Whether it looks anywhere else.
    pub(crate) fn looks(self) -> bool {
        self.rho() > 0.0
    }

    fn rho(self) -> f64 {
        match self {
            Self::Sam { rho } | Self::Asam { rho, .. } => rho,
        }
    }

    /// `T` for the tensor named by the end of `path`; `None` for ones.
    fn stretch<B: Backend, const D: usize>(self, path: &[String], weight: Tensor<B, D>) -> Option<Tensor<B, D>> {
        let is_weight = path.last().is_some_and(|name| name.contains("weight") || name == "gamma");
        match self {
            Self::Asam { eta, .. } if is_weight => Some(weight.abs().add_scalar(eta)),
            _ => None,
        }
    }
}

/// A gradient rule that takes its gradient where the loss rises most, as far as a [`SharpnessAwareConfig`] says; the
/// inner rule itself where there is none. The loss that it tells is that of the unperturbed model.
#[derive(Clone, Copy, Debug)]
pub struct Sharpened<G> {
    rule: G,
    sharpness: Option<SharpnessAwareConfig>,
}

impl<G> Sharpened<G> {
    /// Sharpness-aware steps on the loss of `rule`.
    pub fn new(rule: G, sharpness: Option<SharpnessAwareConfig>) -> Self {
        Self { rule, sharpness }
    }
}

impl<B: Backend, M: TrainModel<B>, G: GradientRule<B, M>> GradientRule<B, M> for Sharpened<G> {
    fn gradients(&mut self, model: M, batch: Batch<B>) -> BatchGradients<B, M> {
        let Some(sharpness) = self.sharpness.filter(|sharpness| sharpness.looks()) else {
            return self.rule.gradients(model, batch);
        };
        let first = self.rule.gradients(model, batch.clone());
        let here = Snapshot::of(&first.model);
        let above = climb(first.model, first.gradients, sharpness);
        let second = self.rule.gradients(above, batch);
        BatchGradients { model: here.restore(second.model), gradients: second.gradients, loss: first.loss }
    }
}

/// `x + eps`.
fn climb<B: Backend, M: AutodiffModule<Autodiff<B>>>(
    model: M,
    mut gradients: GradientsParams,
    sharpness: SharpnessAwareConfig,
) -> M {
    model.visit(&mut Stretch { sharpness, path: Vec::new(), gradients: &mut gradients });
    let Some(norm) = global_norm::<B, M>(&model, &gradients) else { return model };
    let scale = norm.add_scalar(TINY).recip().mul_scalar(sharpness.rho());
    model.map(&mut Climb { sharpness, path: Vec::new(), gradients, scale })
}

/// `g` to `u`.
struct Stretch<'a> {
    sharpness: SharpnessAwareConfig,
    path: Vec<String>,
    gradients: &'a mut GradientsParams,
}

impl<B: Backend> ModuleVisitor<Autodiff<B>> for Stretch<'_> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Autodiff<B>, D>>) {
        let Some(stretch) = self.sharpness.stretch(&self.path, param.val().inner()) else { return };
        let Some(gradient) = self.gradients.remove::<B, D>(param.id) else { return };
        self.gradients.register(param.id, gradient * stretch);
    }
}

/// `x` to `x + eps`.
struct Climb<B: Backend> {
    sharpness: SharpnessAwareConfig,
    path: Vec<String>,
    /// `u`.
    gradients: GradientsParams,
    /// `rho / (norm(u) + 1e-16)`, `[1]`.
    scale: Tensor<B, 1>,
}

impl<B: Backend> ModuleMapper<Autodiff<B>> for Climb<B> {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<Autodiff<B>, D>>) -> Param<Tensor<Autodiff<B>, D>> {
        let Some(ascent) = self.gradients.remove::<B, D>(param.id) else { return param };
        let step = ascent * self.scale.clone().reshape([1; D]);
        param.map(|weight| {
            let weight = weight.inner();
            let step = match self.sharpness.stretch(&self.path, weight.clone()) {
                Some(stretch) => step * stretch,
                None => step,
            };
            Tensor::from_inner(weight + step).require_grad()
        })
    }
}
