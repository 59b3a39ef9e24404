//! One model in memory that stands in for every client of a worker.

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module, ModuleMapper, Param};
use burn::tensor::{Tensor, backend::Backend};
use fedburn_core::{ModelFamily, ParamVector, SchemaError, Seed, load};

/// A worker's training model. Clients come and go, the module stays: parameters are loaded into it for each client,
/// which is much cheaper than building a module.
///
/// Nothing of one client reaches the next: every weight and running statistic is overwritten, every weight is set to
/// be trained again, and a model that was lost to an error is built anew at the next use.
#[derive(Debug)]
pub struct ResidentModel<B: Backend, F: ModelFamily<B>> {
    family: F,
    device: B::Device,
    model: Option<F::TrainModel>,
}

impl<B: Backend, F: ModelFamily<B>> ResidentModel<B, F> {
    /// A slot for models of `family` on `device`; the first use builds one.
    pub fn new(family: F, device: B::Device) -> Self {
        Self { family, device, model: None }
    }

    /// Where the model is.
    pub fn device(&self) -> &B::Device {
        &self.device
    }

    /// Takes the model out, loaded with `params`. Every weight requires gradients, also those that an earlier rule
    /// froze.
    ///
    /// # Errors
    /// [`SchemaError::Mismatch`] where the vector is not of this family.
    pub fn load(&mut self, params: &ParamVector<B>) -> Result<F::TrainModel, SchemaError> {
        let model = self.model.take().unwrap_or_else(|| {
            // The weights are overwritten below; which they were does not matter.
            F::TrainModel::from_inner(self.family.init(Seed::new(0), &self.device))
        });
        load_to_train(model, params)
    }

    /// Puts a model back for the next client and returns its inference form, running statistics synchronised.
    pub fn keep(&mut self, model: F::TrainModel) -> F::Model {
        // `valid` also folds in pending updates of running statistics, which a later load would not overwrite.
        self.model.insert(model).valid()
    }
}

/// Puts `params` into a training model; every weight requires gradients, also those that were frozen.
///
/// # Errors
/// [`SchemaError::Mismatch`] where the vector is not of this model.
pub(crate) fn load_to_train<B: Backend, M: AutodiffModule<Autodiff<B>>>(
    model: M,
    params: &ParamVector<B>,
) -> Result<M, SchemaError> {
    let values = Tensor::from_inner(params.values().clone());
    let model = load(model, &ParamVector::new(values, params.schema().clone())?)?;
    Ok(Module::<Autodiff<B>>::map(model, &mut RequireGradients { field: Vec::new() }))
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
