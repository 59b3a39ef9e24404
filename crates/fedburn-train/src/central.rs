//! Training on pooled data: the baseline that federated training is measured against.

use std::ops::ControlFlow;

use burn::module::AutodiffModule;
use burn::tensor::backend::Backend;
use fedburn_core::{Mean, ModelFamily, ParamVector, RoundIndex, Seed, flatten};
use fedburn_data::{Batches, ClientData};

use crate::{CentralError, CrossEntropy, Diverged, LocalTraining, ResidentModel, descend};

/// Plain SGD on one data set, epoch after epoch: all clients' data together, or one client alone.
///
/// Uses the batch size, optimiser and schedule of a run's clients; `epochs` and `steps` of the settings are not used.
/// Momentum persists through all epochs; the learning-rate schedule counts epochs instead of rounds. A client's local
/// run of `E` epochs and `E` epochs here, on the same data and seed and with a constant rate, give the same bits.
#[derive(Debug)]
pub struct CentralTraining<B: Backend, F: ModelFamily<B>> {
    training: LocalTraining,
    resident: ResidentModel<B, F>,
}

/// What happened in one epoch.
#[derive(Debug)]
pub struct CentralEpoch<'a, B: Backend> {
    /// Its number, from 1.
    pub epoch: u64,
    /// The parameters after it.
    pub params: &'a ParamVector<B>,
    /// Mean loss over its examples, each measured before its step.
    pub loss: Mean,
}

impl<B: Backend, F: ModelFamily<B>> CentralTraining<B, F> {
    /// Training of models of `family` on `device`.
    pub fn new(family: F, training: LocalTraining, device: B::Device) -> Self {
        Self { training, resident: ResidentModel::new(family, device) }
    }

    /// Trains from `initial` for `epochs` passes over `data` and returns the parameters. `on_epoch` sees every epoch and
    /// may `Break` to end early; the order of the examples is drawn from `seed`.
    ///
    /// # Errors
    /// [`CentralError`]: no data, a vector of another model, a loss or parameter that became non-finite.
    pub fn run(
        &mut self,
        initial: &ParamVector<B>,
        data: &ClientData,
        epochs: u64,
        seed: Seed,
        mut on_epoch: impl FnMut(CentralEpoch<'_, B>) -> ControlFlow<()>,
    ) -> Result<ParamVector<B>, CentralError> {
        if data.is_empty() {
            return Err(CentralError::NoData);
        }
        let device = self.resident.device().clone();
        let batch_size = self.training.config().batch_size;
        let mut batches = Batches::<B>::steps(data, batch_size, usize::MAX, seed, &device);
        let mut optimiser = self.training.optimiser();
        let mut model = self.resident.load(initial)?;
        let mut params = initial.clone();
        for epoch in 1..=epochs {
            let batches = batches.by_ref().take(data.len().div_ceil(batch_size));
            let lr = self.training.learning_rate(RoundIndex(epoch));
            let diverged = |source| CentralError::Diverged { epoch, source };
            let descent = descend(model, batches, &mut CrossEntropy, &mut optimiser, lr).map_err(diverged)?;
            model = descent.model;
            params = initial.with_values(flatten(&model.valid())?.into_values())?;
            if !params.is_finite() {
                return Err(diverged(Diverged { step: descent.steps.saturating_sub(1) }));
            }
            if on_epoch(CentralEpoch { epoch, params: &params, loss: descent.loss }).is_break() {
                break;
            }
        }
        self.resident.keep(model);
        Ok(params)
    }
}
