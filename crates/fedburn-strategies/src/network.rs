//! Networks on the server, for strategies that run models.

use burn::module::AutodiffModule;
use burn::tensor::backend::Backend;
use fedburn_core::{ModelFamily, ParamVector, SchemaError, Seed, schema_of};

/// A network whose weights are going to be overwritten.
pub(crate) fn blank<B: Backend, F: ModelFamily<B>>(family: &F, device: &B::Device) -> F::TrainModel {
    F::TrainModel::from_inner(family.init(Seed::new(0), device))
}

/// Whether `params` are those of a model of `family`: asked before a wrapped strategy takes a step that could not be
/// undone.
///
/// # Errors
/// [`SchemaError::Mismatch`] where they are not.
pub(crate) fn ensure_fits<B: Backend, F: ModelFamily<B>>(
    family: &F,
    params: &ParamVector<B>,
) -> Result<(), SchemaError> {
    schema_of::<B, _>(&family.init(Seed::new(0), &params.device()))?.ensure_same(params.schema())
}
