//! A projection between the features of a model and its head.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Tensor, backend::Backend};
use fedburn_ops::Kernels;

use crate::{linear, linear_relu};

/// Two linear layers with ReLU between them, from features to what is then the features.
///
/// Qinbin Li, Bingsheng He, Dawn Song: Model-Contrastive Federated Learning, CVPR 2021, arXiv:2103.16257, with the sizes
/// of its published code: as many units as features, then 256.
#[derive(Module, Debug)]
pub struct Projection<B: Backend> {
    /// `[features, features]`.
    pub hidden: Linear<B>,
    /// `[features, width]`.
    pub output: Linear<B>,
}

/// How many features a family of models has, and how many it makes of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Features {
    own: usize,
    projected: Option<usize>,
}

impl Features {
    /// So many, without a projection.
    pub(crate) fn new(own: usize) -> Self {
        Self { own, projected: None }
    }

    /// What the head sees.
    pub(crate) fn len(&self) -> usize {
        self.projected.unwrap_or(self.own)
    }

    /// The same projected to `width` numbers; `None` where they are projected already.
    pub(crate) fn projected(self, width: usize) -> Option<Self> {
        self.projected.is_none().then_some(Self { projected: Some(width), ..self })
    }

    /// The same of so many own features.
    pub(crate) fn of(self, own: usize) -> Self {
        Self { own, ..self }
    }

    /// The projection, where there is one.
    pub(crate) fn build<B: Backend>(&self, device: &B::Device) -> Option<Projection<B>> {
        self.projected.map(|width| Projection {
            hidden: LinearConfig::new(self.own, self.own).init(device),
            output: LinearConfig::new(self.own, width).init(device),
        })
    }
}

/// `features` `[batch, features]`, projected to `[batch, width]` where there is a projection.
pub(crate) fn project<B: Kernels>(projection: &Option<Projection<B>>, features: Tensor<B, 2>) -> Tensor<B, 2> {
    match projection {
        Some(layers) => linear(&layers.output, linear_relu(&layers.hidden, features)),
        None => features,
    }
}
