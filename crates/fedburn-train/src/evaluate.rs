//! Measuring classifiers.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};

use burn::tensor::backend::Backend;
use fedburn_core::{Classifier, EvaluateError, Evaluator, Mean, Metrics, Mode, ModelFamily, ParamVector, Seed, load};
use fedburn_data::ClientData;

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
    let pass = Pass { data, batch_size: batch_size.max(1), device };
    metrics((0..pass.batches()).map(|batch| pass.score(model, batch)), data)
}

/// Measures global models on examples that belong to the server.
#[derive(Debug)]
pub struct ClassifierEvaluator<B: Backend, F: ModelFamily<B>> {
    family: F,
    device: B::Device,
    data: ClientData,
    batch_size: usize,
    threads: usize,
    model: Option<F::Model>,
}

impl<B: Backend, F: ModelFamily<B>> ClassifierEvaluator<B, F> {
    /// Examples in one forward pass unless [`ClassifierEvaluator::with_batch_size`] says otherwise. More would be no
    /// faster on a CPU, where what a layer makes of them should stay in cache.
    pub const BATCH_SIZE: usize = 64;

    /// Measures models of `family` on all of `data`.
    pub fn new(family: F, data: ClientData, device: B::Device) -> Self {
        Self { family, device, data, batch_size: Self::BATCH_SIZE, threads: 1, model: None }
    }

    /// Another number of examples in one forward pass; 0 counts as 1.
    #[must_use]
    pub fn with_batch_size(mut self, batch_size: usize) -> Self {
        self.batch_size = batch_size;
        self
    }

    /// Spreads the batches over this many threads (0 for one a core) instead of one. The measurements have the same
    /// bits for any number.
    #[must_use]
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = match threads {
            0 => std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
            n => n,
        };
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
        let pass = Pass { data: &self.data, batch_size: self.batch_size.max(1), device: &self.device };
        Ok(metrics(pass.scores(model, self.threads), &self.data))
    }
}

/// One pass over all examples, batch by batch.
struct Pass<'a, B: Backend> {
    data: &'a ClientData,
    batch_size: usize,
    device: &'a B::Device,
}

/// What a model made of one batch.
#[derive(Clone, Copy, Debug, Default)]
struct Score {
    correct: u64,
    /// Sum over the examples.
    loss: f64,
}

impl<B: Backend> Pass<'_, B> {
    fn batches(&self) -> usize {
        self.data.len().div_ceil(self.batch_size)
    }

    fn score<M: Classifier<B>>(&self, model: &M, batch: usize) -> Score {
        let first = batch * self.batch_size;
        let positions: Vec<usize> = (first..(first + self.batch_size).min(self.data.len())).collect();
        let inputs = self.data.batch::<B>(&positions, self.device).inputs;
        let logits = model.forward(inputs, Mode::Evaluate);
        let [_, classes] = logits.dims();
        let logits: Vec<f64> = logits.into_data().iter::<f64>().collect();
        let labels = self.data.examples().labels();
        let mut total = Score::default();
        for (scores, &index) in logits.chunks_exact(classes).zip(&self.data.indices()[first..]) {
            let label = labels[index].0 as usize;
            total.correct += u64::from(best(scores) == Some(label));
            total.loss += cross_entropy(scores, label);
        }
        total
    }

    /// The scores of all batches in order, computed by `threads` threads: the calling one and others beside it.
    fn scores<M: Classifier<B>>(&self, model: &M, threads: usize) -> Vec<Score> {
        let next = AtomicUsize::new(0);
        let take = |model: &M| {
            let mut scores = Vec::new();
            loop {
                match next.fetch_add(1, Ordering::Relaxed) {
                    batch if batch < self.batches() => scores.push((batch, self.score(model, batch))),
                    _ => return scores,
                }
            }
        };
        let mut scores = std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads.min(self.batches()))
                .map(|_| {
                    let model = model.clone();
                    scope.spawn(move || take(&model))
                })
                .collect();
            let mut scores = take(model);
            for other in others {
                // A panic goes on in the thread that asked for the evaluation, as if it had happened there.
                scores.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            }
            scores
        });
        scores.sort_unstable_by_key(|(batch, _)| *batch);
        scores.into_iter().map(|(_, score)| score).collect()
    }
}

/// Adds the scores of all batches, in the batches' order: the sum does not depend on who computed which.
fn metrics(scores: impl IntoIterator<Item = Score>, data: &ClientData) -> Metrics {
    let add = |a: Score, b: Score| Score { correct: a.correct + b.correct, loss: a.loss + b.loss };
    let total = scores.into_iter().fold(Score::default(), add);
    match data.len() as f64 {
        0.0 => Metrics::new(),
        examples => Metrics::new()
            .with(Metrics::ACCURACY, Mean::from_sum(total.correct as f64, examples))
            .with(Metrics::LOSS, Mean::from_sum(total.loss, examples)),
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
