//! One model in memory that stands in for every client of a worker.

use burn::module::AutodiffModule;
use burn::tensor::backend::Backend;
use fedburn_core::{ModelFamily, ParamVector, SchemaError, Seed, load_to_train};

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
