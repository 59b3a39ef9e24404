//! Gradients of a whole model.

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, backend::Backend};

/// The Euclidean norm of all gradients of `model` taken together, `[1]`, on the device; `None` where there are none.
///
/// burn's own clipping looks at one tensor at a time; clipping, sharpness-aware steps and differential privacy need
/// the norm over the model.
pub fn global_norm<B: Backend, M: AutodiffModule<Autodiff<B>>>(
    model: &M,
    gradients: &GradientsParams,
) -> Option<Tensor<B, 1>> {
    let mut sum = SumOfSquares::<B> { gradients, total: None };
    model.visit(&mut sum);
    sum.total.map(Tensor::sqrt)
}

struct SumOfSquares<'a, B: Backend> {
    gradients: &'a GradientsParams,
    total: Option<Tensor<B, 1>>,
}

impl<B: Backend> ModuleVisitor<Autodiff<B>> for SumOfSquares<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Autodiff<B>, D>>) {
        let Some(gradient) = self.gradients.get::<B, D>(param.id) else { return };
        let squares = (gradient.clone() * gradient).sum();
        self.total = Some(match self.total.take() {
            Some(total) => total + squares,
            None => squares,
        });
    }
}
