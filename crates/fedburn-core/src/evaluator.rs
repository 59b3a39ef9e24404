//! Measuring a global model.

use burn::tensor::backend::Backend;

use crate::{EvaluateError, Metrics, ParamVector};

/// Measures a global model on data that the server may use, never on training clients' data.
pub trait Evaluator<B: Backend>: Send {
    /// Metrics of `global`, at least [`Metrics::LOSS`] and [`Metrics::ACCURACY`] for a classifier.
    ///
    /// # Errors
    /// [`EvaluateError`] where the vector is of another model or there is no data.
    fn evaluate(&mut self, global: &ParamVector<B>) -> Result<Metrics, EvaluateError>;
}
