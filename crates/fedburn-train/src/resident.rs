//! One model in memory that stands in for every client of a worker.

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::{Tensor, backend::Backend};
use fedburn_core::{ModelFamily, ParamVector, SchemaError, Seed, load_part_to_train, load_to_train};

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
    /// Share of the family's channels that the model has.
    share: f64,
    /// Bytes that the model took when it was built, where they are counted.
    built: i64,
    /// Bytes that its first client left besides: what kernels keep. Later ones also leave what burn's graph does not free,
    /// a little each time, which is nobody's need.
    kept: Option<i64>,
}

impl<B: Backend, F: ModelFamily<B>> ResidentModel<B, F> {
    /// A slot for models of `family` on `device`; the first use builds one.
    pub fn new(family: F, device: B::Device) -> Self {
        Self { family, device, model: None, share: 1.0, built: 0, kept: None }
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
        self.load_share(params, 1.0)
    }

    /// As [`ResidentModel::load`], for a model of a `share` of the family's channels ([`ModelFamily::slim`]). There is
    /// one model at a time: another share than before builds anew.
    ///
    /// # Errors
    /// [`SchemaError::Mismatch`] where the vector is not of such a model, or the family has none.
    pub fn load_share(&mut self, params: &ParamVector<B>, share: f64) -> Result<F::TrainModel, SchemaError> {
        self.replace(share, |model| load_to_train(model, params))
    }

    /// As [`ResidentModel::load`] for a part of the model; what it does not hold is zero.
    ///
    /// # Errors
    /// [`SchemaError`] where the vector is of no part of this family's model, as
    /// [`Slice::new`](fedburn_core::Slice::new) says.
    pub fn load_part(&mut self, part: &ParamVector<B>) -> Result<F::TrainModel, SchemaError> {
        self.replace(1.0, |model| load_part_to_train(model, part))
    }

    fn replace(
        &mut self,
        share: f64,
        load: impl FnOnce(F::TrainModel) -> Result<F::TrainModel, SchemaError>,
    ) -> Result<F::TrainModel, SchemaError> {
        let is_used = self.model.is_some();
        let model = load(self.take(share))?;
        if is_used {
            free_graphs::<B>(&self.device);
        }
        Ok(model)
    }

    fn take(&mut self, share: f64) -> F::TrainModel {
        let kept = self.model.take().filter(|_| self.share == share);
        self.share = share;
        kept.unwrap_or_else(|| {
            let before = fedburn_meter::held();
            let slim = if share < 1.0 { self.family.slim(share) } else { None };
            // The weights are overwritten before anybody sees them; which they are does not matter.
            let built = slim.as_ref().unwrap_or(&self.family).init(Seed::new(0), &self.device);
            let model = F::TrainModel::from_inner(built);
            self.built = fedburn_meter::held() - before;
            model
        })
    }

    /// Bytes that lie ready for the next client, where they are counted.
    pub(crate) fn ready(&self) -> i64 {
        let model = if self.model.is_some() { self.built } else { 0 };
        model + self.kept.unwrap_or_default()
    }

    /// Says how many a client left; the first decides.
    pub(crate) fn left(&mut self, bytes: i64) {
        self.kept.get_or_insert(bytes - self.built);
    }

    /// Puts a model back for the next client and returns its inference form, running statistics synchronised.
    pub fn keep(&mut self, model: F::TrainModel) -> F::Model {
        // `valid` also folds in pending updates of running statistics, which a later load would not overwrite.
        self.model.insert(model).valid()
    }
}

/// Frees what graphs of tensors that are gone left, on whichever thread. burn does so in the next backward pass, when the
/// new graph is there too: this is a pass of one number.
pub(crate) fn free_graphs<B: Backend>(device: &B::Device) {
    drop(Tensor::<Autodiff<B>, 1>::zeros([1], device).require_grad().sum().backward());
}
