//! Gradients plus a constant: what control variates and dynamic regularisers do to a step.

use burn::tensor::{Tensor, backend::Backend};
use fedburn_data::Batch;

use super::{BatchGradients, GradientRule, TrainModel, edit_gradients};

/// A gradient rule whose gradients are all shifted by one flat vector `[num_values]`.
#[derive(Clone, Debug)]
pub(crate) struct Shifted<B: Backend, G> {
    pub(crate) rule: G,
    pub(crate) shift: Tensor<B, 1>,
}

impl<B: Backend, M: TrainModel<B>, G: GradientRule<B, M>> GradientRule<B, M> for Shifted<B, G> {
    fn gradients(&mut self, model: M, batch: Batch<B>) -> BatchGradients<B, M> {
        let mut step = self.rule.gradients(model, batch);
        edit_gradients(&step.model, &mut step.gradients, |place, gradient, _| {
            gradient + self.shift.clone().slice([place])
        });
        step
    }
}
