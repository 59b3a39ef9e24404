//! Stochastic gradient descent with momentum, over burn modules.

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, ModuleMapper, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, backend::Backend};

use crate::global_norm;

/// Settings of [`Sgd`].
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SgdConfig {
    /// Momentum `m`, in `[0, 1)`.
    pub momentum: f64,
    /// Nesterov's form of momentum.
    pub nesterov: bool,
    /// Weight decay `d`, at least 0.
    pub weight_decay: f64,
    /// Largest norm `c` of the whole gradient, above 0.
    pub clip_norm: Option<f64>,
}

/// Stochastic gradient descent as PyTorch defines it, with dampening 0.
///
/// With gradient `g`, weight `w`, velocity `v` (zero at first) and learning rate `lr`, a step is
///
/// ```text
/// g <- g min(1, c / norm(g))              norm over the whole model, if clipping is on
/// g <- g + d w                            weight decay, coupled
/// v <- m v + g                            if m > 0
/// w <- w - lr (g + m v)                   Nesterov
/// w <- w - lr v                           otherwise
/// ```
///
/// A parameter without gradient (frozen, unused, a running statistic) is left alone, its velocity too. Nothing is read
/// from the device, clipping included. The velocity belongs to one local run: make a new optimiser for the next.
/// Nesterov momentum: Sutskever, Martens, Dahl and Hinton, "On the importance of initialization and momentum in deep
/// learning", ICML 2013.
#[derive(Debug)]
pub struct Sgd {
    config: SgdConfig,
    velocity: GradientsParams,
}

impl Sgd {
    /// An optimiser without velocity.
    pub fn new(config: SgdConfig) -> Self {
        Self { config, velocity: GradientsParams::new() }
    }

    /// One step with learning rate `lr`.
    pub fn step<B: Backend, M: AutodiffModule<Autodiff<B>>>(
        &mut self,
        model: M,
        gradients: GradientsParams,
        lr: f64,
    ) -> M {
        let scale = self.config.clip_norm.and_then(|limit| {
            let norm = global_norm::<B, M>(&model, &gradients)?;
            Some(norm.recip().mul_scalar(limit).clamp_max(1.0))
        });
        model.map(&mut Step { sgd: self, gradients, lr, scale })
    }
}

struct Step<'a, B: Backend> {
    sgd: &'a mut Sgd,
    gradients: GradientsParams,
    lr: f64,
    /// Factor of every gradient, `[1]`.
    scale: Option<Tensor<B, 1>>,
}

impl<B: Backend> ModuleMapper<Autodiff<B>> for Step<'_, B> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<Autodiff<B>, D>>) -> Param<Tensor<Autodiff<B>, D>> {
        let id = param.id;
        let Some(mut gradient) = self.gradients.remove::<B, D>(id) else { return param };
        let SgdConfig { momentum, nesterov, weight_decay, .. } = self.sgd.config;
        if let Some(scale) = &self.scale {
            gradient = gradient * scale.clone().reshape([1; D]);
        }
        param.map(|weight| {
            let weight = weight.inner();
            if weight_decay > 0.0 {
                gradient = gradient + weight.clone().mul_scalar(weight_decay);
            }
            if momentum > 0.0 {
                let velocity = match self.sgd.velocity.remove::<B, D>(id) {
                    Some(velocity) => velocity.mul_scalar(momentum) + gradient.clone(),
                    None => gradient.clone(),
                };
                self.sgd.velocity.register(id, velocity.clone());
                gradient = if nesterov { gradient + velocity.mul_scalar(momentum) } else { velocity };
            }
            Tensor::from_inner(weight - gradient.mul_scalar(self.lr)).require_grad()
        })
    }
}
