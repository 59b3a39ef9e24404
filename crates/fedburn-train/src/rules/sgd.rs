//! Plain local SGD: the client half of federated averaging.
//!
//! McMahan, Moore, Ramage, Hampson and Agüera y Arcas, "Communication-Efficient Learning of Deep Networks from
//! Decentralized Data", AISTATS 2017, arXiv:1602.05629, algorithm 1, `ClientUpdate`.

use burn::tensor::backend::Backend;
use fedburn_core::TrainError;

use super::{CrossEntropy, LocalRule, LocalRun, TrainModel, Trained};

/// Epochs or steps of mini-batch SGD on the client's own cross-entropy. Keeps nothing across rounds: momentum starts at
/// zero in every run, as the model it belonged to is replaced.
#[derive(Clone, Copy, Debug, Default)]
pub struct LocalSgd;

impl<B: Backend, M: TrainModel<B>> LocalRule<B, M> for LocalSgd {
    fn train(&mut self, model: M, run: &LocalRun<'_, B>) -> Result<Trained<B, M>, TrainError> {
        run.descend(model, &mut run.training.sharpened(CrossEntropy))
    }
}
