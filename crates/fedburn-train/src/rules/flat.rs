//! Between a model and flat vectors: what rules do to gradients and weights.

use std::ops::Range;

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, backend::Backend};

/// Changes the gradients of `model` tensor by tensor. `edit` is given a tensor's place in the flat vector, its gradient
/// and its weight, both as `[values]`, and returns the gradient to use. Tensors without a gradient (frozen ones, running
/// statistics) are passed over.
pub fn edit_gradients<B: Backend, M: AutodiffModule<Autodiff<B>>>(
    model: &M,
    gradients: &mut GradientsParams,
    edit: impl FnMut(Range<usize>, Tensor<B, 1>, Tensor<B, 1>) -> Tensor<B, 1>,
) {
    model.visit(&mut Edit { next: 0, gradients, edit });
}

struct Edit<'a, F> {
    /// Where the next tensor begins in the flat vector.
    next: usize,
    gradients: &'a mut GradientsParams,
    edit: F,
}

impl<B, F> ModuleVisitor<Autodiff<B>> for Edit<'_, F>
where
    B: Backend,
    F: FnMut(Range<usize>, Tensor<B, 1>, Tensor<B, 1>) -> Tensor<B, 1>,
{
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Autodiff<B>, D>>) {
        let shape = param.lazy_shape();
        let place = self.next..self.next + shape.num_elements();
        self.next = place.end;
        let Some(gradient) = self.gradients.remove::<B, D>(param.id) else { return };
        let len = place.len();
        let edited = (self.edit)(place, gradient.reshape([len]), param.val().inner().reshape([len]));
        self.gradients.register::<B, D>(param.id, edited.reshape(shape));
    }
}

/// A model's weights and running statistics at one moment, to come back to them bit for bit.
pub(crate) struct Snapshot(GradientsParams);

impl Snapshot {
    /// Takes a snapshot; tensors are shared, not copied.
    pub(crate) fn of<B: Backend, M: AutodiffModule<Autodiff<B>>>(model: &M) -> Self {
        // burn keeps the last update of running statistics pending until then.
        model.valid();
        let mut taken = Take(GradientsParams::new());
        model.visit(&mut taken);
        Self(taken.0)
    }

    /// The model as it was.
    pub(crate) fn restore<B: Backend, M: AutodiffModule<Autodiff<B>>>(self, model: M) -> M {
        // Folds in what is pending, which would come back after the restored values otherwise.
        model.valid();
        model.map(&mut PutBack(self.0))
    }
}

struct Take(GradientsParams);

impl<B: Backend> ModuleVisitor<Autodiff<B>> for Take {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Autodiff<B>, D>>) {
        self.0.register(param.id, param.val().inner());
    }
}

struct PutBack(GradientsParams);

impl<B: Backend> ModuleMapper<Autodiff<B>> for PutBack {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<Autodiff<B>, D>>) -> Param<Tensor<Autodiff<B>, D>> {
        let Some(values) = self.0.remove::<B, D>(param.id) else { return param };
        param.map(|now| Tensor::from_inner(values).set_require_grad(now.is_require_grad()))
    }
}

/// `model` with gradients only for the tensors whose path `trained` accepts; running statistics are never trained.
pub(crate) fn only<B: Backend, M: AutodiffModule<Autodiff<B>>>(model: M, trained: impl Fn(&str) -> bool) -> M {
    model.map(&mut Freeze { path: Vec::new(), trained })
}

struct Freeze<F> {
    path: Vec<String>,
    trained: F,
}

impl<B: Backend, F: Fn(&str) -> bool> ModuleMapper<Autodiff<B>> for Freeze<F> {
    fn enter_module(&mut self, name: &str, container: &str) {
        // As in schemas: the variant of an enum is no part of a path.
        if !container.starts_with("Enum:") {
            self.path.push(name.to_owned());
        }
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        if !container.starts_with("Enum:") {
            self.path.pop();
        }
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<Autodiff<B>, D>>) -> Param<Tensor<Autodiff<B>, D>> {
        match self.path.last().map(String::as_str) {
            Some("running_mean" | "running_var") => param,
            _ => {
                let trained = (self.trained)(&self.path.join("."));
                param.map(|values| Tensor::from_inner(values.inner()).set_require_grad(trained))
            }
        }
    }
}
