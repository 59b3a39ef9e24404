//! Between flat vectors and a module that is being trained.

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, backend::Backend};

use super::module::{load, load_part};
use super::vector::ParamVector;
use crate::SchemaError;

/// Puts `params` into a training model; every weight requires gradients, also those that were frozen.
///
/// # Errors
/// [`SchemaError::Mismatch`] where the vector is not of this model.
pub fn load_to_train<B: Backend, M: AutodiffModule<Autodiff<B>>>(
    model: M,
    params: &ParamVector<B>,
) -> Result<M, SchemaError> {
    Ok(to_train(load(model, &on_autodiff(params)?)?))
}

/// As [`load_to_train`] for a part of the model; what it does not hold is zero.
///
/// # Errors
/// [`SchemaError`] where the vector is of no part of this model, as [`Slice::new`](super::slice::Slice::new) says.
pub fn load_part_to_train<B: Backend, M: AutodiffModule<Autodiff<B>>>(
    model: M,
    part: &ParamVector<B>,
) -> Result<M, SchemaError> {
    Ok(to_train(load_part(model, &on_autodiff(part)?)?))
}

fn to_train<B: Backend, M: AutodiffModule<Autodiff<B>>>(model: M) -> M {
    Module::<Autodiff<B>>::map(model, &mut RequireGradients { field: Vec::new() })
}

/// Puts `params` into a model that gradients flow through and that is not trained: no weight requires gradients.
///
/// # Errors
/// [`SchemaError::Mismatch`] where the vector is not of this model.
pub fn load_frozen<B: Backend, M: AutodiffModule<Autodiff<B>>>(
    model: M,
    params: &ParamVector<B>,
) -> Result<M, SchemaError> {
    Ok(load(model, &on_autodiff(params)?)?.no_grad())
}

fn on_autodiff<B: Backend>(params: &ParamVector<B>) -> Result<ParamVector<Autodiff<B>>, SchemaError> {
    ParamVector::new(Tensor::from_inner(params.values().clone()), params.schema().clone())
}

/// Marks weights as trained and running statistics as not. A module that was loaded on the inner backend has lost its
/// marks, because only autodiff tensors carry them.
struct RequireGradients {
    field: Vec<String>,
}

impl<B: Backend> ModuleMapper<Autodiff<B>> for RequireGradients {
    fn enter_module(&mut self, name: &str, _container: &str) {
        self.field.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.field.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<Autodiff<B>, D>>) -> Param<Tensor<Autodiff<B>, D>> {
        match self.field.last().map(String::as_str) {
            Some("running_mean" | "running_var") => param,
            _ => param.set_require_grad(true),
        }
    }
}

/// The gradients of `model` as one vector `[num_values]`, zero where a tensor has none.
pub fn flat_gradients<B: Backend, M: AutodiffModule<Autodiff<B>>>(
    model: &M,
    gradients: &GradientsParams,
) -> Tensor<B, 1> {
    let mut reader = Read { gradients, parts: Vec::new() };
    model.visit(&mut reader);
    Tensor::cat(reader.parts, 0)
}

struct Read<'a, B: Backend> {
    gradients: &'a GradientsParams,
    parts: Vec<Tensor<B, 1>>,
}

impl<B: Backend> ModuleVisitor<Autodiff<B>> for Read<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Autodiff<B>, D>>) {
        let len = param.lazy_shape().num_elements();
        self.parts.push(match self.gradients.get::<B, D>(param.id) {
            Some(gradient) => gradient.reshape([len]),
            None => Tensor::zeros([len], &param.val().device()),
        });
    }
}
