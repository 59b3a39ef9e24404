//! Measuring classifiers.

use burn::tensor::backend::Backend;
use fedburn_core::{Classifier, EvaluateError, Evaluator, Mean, Metrics, Mode, ModelFamily, ParamVector, Seed, load};
use fedburn_data::{Batches, ClientData};

/// Accuracy and mean cross-entropy (nats) of `model` over all of `data`, read in batches of `batch_size`; empty metrics
/// where there is no data.
///
/// Correct answers are counted, losses are computed and added on the host in `f64`. Of equal scores the lowest class
/// wins. A model with non-finite scores gets a NaN or infinite loss, and a NaN is never the best score.
pub fn evaluate_classifier<B: Backend, M: Classifier<B>>(
    model: &M,
    data: &ClientData,
    batch_size: usize,
    device: &B::Device,
) -> Metrics {
    let labels = data.examples().labels();
    let mut labels = data.indices().iter().map(|&index| labels[index].0 as usize);
    let (mut correct, mut loss) = (0u64, 0.0);
    for batch in Batches::<B>::in_order(data, batch_size, device) {
        let logits = model.forward(batch.inputs, Mode::Evaluate);
        let [_, classes] = logits.dims();
        let logits: Vec<f64> = logits.into_data().iter::<f64>().collect();
        for (scores, label) in logits.chunks_exact(classes).zip(&mut labels) {
            correct += u64::from(best(scores) == Some(label));
            loss += cross_entropy(scores, label);
        }
    }
    match data.len() as f64 {
        0.0 => Metrics::new(),
        examples => Metrics::new()
            .with(Metrics::ACCURACY, Mean::from_sum(correct as f64, examples))
            .with(Metrics::LOSS, Mean::from_sum(loss, examples)),
    }
}

/// Measures global models on examples that belong to the server.
#[derive(Debug)]
pub struct ClassifierEvaluator<B: Backend, F: ModelFamily<B>> {
    family: F,
    device: B::Device,
    data: ClientData,
    batch_size: usize,
    model: Option<F::Model>,
}

impl<B: Backend, F: ModelFamily<B>> ClassifierEvaluator<B, F> {
    /// Examples in one forward pass unless [`ClassifierEvaluator::with_batch_size`] says otherwise.
    pub const BATCH_SIZE: usize = 256;

    /// Measures models of `family` on all of `data`.
    pub fn new(family: F, data: ClientData, device: B::Device) -> Self {
        Self { family, device, data, batch_size: Self::BATCH_SIZE, model: None }
    }

    /// Another number of examples in one forward pass; 0 counts as 1.
    #[must_use]
    pub fn with_batch_size(mut self, batch_size: usize) -> Self {
        self.batch_size = batch_size;
        self
    }
}

impl<B: Backend, F: ModelFamily<B>> Evaluator<B> for ClassifierEvaluator<B, F> {
    fn evaluate(&mut self, global: &ParamVector<B>) -> Result<Metrics, EvaluateError> {
        if self.data.is_empty() {
            return Err(EvaluateError::NoData);
        }
        let model = self.model.take().unwrap_or_else(|| self.family.init(Seed::new(0), &self.device));
        let model = self.model.insert(load(model, global)?);
        Ok(evaluate_classifier(model, &self.data, self.batch_size, &self.device))
    }
}

/// The class with the highest score, the lowest of several; none where every score is NaN.
fn best(scores: &[f64]) -> Option<usize> {
    let mut best: Option<usize> = None;
    for (class, score) in scores.iter().enumerate().filter(|(_, score)| !score.is_nan()) {
        if best.is_none_or(|b| *score > scores[b]) {
            best = Some(class);
        }
    }
    best
}

/// `-log softmax(scores)[label]`, shifted by the maximum so that it does not overflow.
fn cross_entropy(scores: &[f64], label: usize) -> f64 {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|score| (score - max).exp()).sum();
    sum.ln() + max - scores[label]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ties_go_to_the_lowest_class_and_nan_never_wins() {
        assert_eq!(best(&[0.0, 2.0, 2.0]), Some(1));
        assert_eq!(best(&[f64::NAN, -1.0]), Some(1));
        assert_eq!(best(&[f64::NAN]), None);
    }

    #[test]
    fn cross_entropy_matches_its_definition_and_does_not_overflow() {
        let scores: [f64; 3] = [0.3, -1.2, 2.0];
        let sum: f64 = scores.iter().map(|s| s.exp()).sum();
        assert!((cross_entropy(&scores, 1) - (sum.ln() + 1.2)).abs() < 1e-12);
        assert!((cross_entropy(&[1e30, 0.0], 0)).abs() < 1e-12);
        assert_eq!(cross_entropy(&[1e30, 0.0], 1), 1e30);
        assert!(cross_entropy(&[f64::NAN, 0.0], 1).is_nan());
    }
}
