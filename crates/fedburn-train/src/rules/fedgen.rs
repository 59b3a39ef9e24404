//! FedGen, the client half: local training that also learns from features of each class, which the server's generator
//! makes. The server half is the strategy of the same name.
//!
//! Zhuangdi Zhu, Junyuan Hong and Jiayu Zhou, "Data-Free Knowledge Distillation for Heterogeneous Federated Learning",
//! ICML 2021, arXiv:2105.10056; published code zhuangdizhu/FedGen.
//!
//! ```text
//! loss = CE(s, y) + (Q / batch_size) alpha_t CE(h(G(y')), y') + beta_t KL( softmax(h(G(y))) || softmax(s) )
//! alpha_t = max(alpha decay^(t - 1), 1e-4), beta_t likewise                      means over the batch
//! ```
//!
//! | symbol | meaning |
//! |---|---|
//! | `s`, `y` | logits of the local model for a batch, its classes |
//! | `h` | head of the local model; what the second term compares with is followed back no further |
//! | `G` | the server's generator, with fresh noise; it stays as it is |
//! | `y'`, `Q` | classes drawn uniformly, and their number |
//! | `t` | the round |
//!
//! State: none. Both terms are there once the server sends a generator, and in the first local `epochs`; a step without
//! them, and every step where `alpha` and `beta` are 0, is one of plain descent, bit for bit. Cost of a step: two passes
//! of the generator and of the head. The server averages, as for plain SGD.
//!
//! Departures. The noise is normal, as in the paper; the published code draws it uniformly from 0 to 1. The classes `y'`
//! are all that the model tells apart.

use burn::nn::loss::CrossEntropyLoss;
use burn::optim::GradientsParams;
use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{Int, Tensor, TensorData, backend::Backend};
use fedburn_core::{Generator, GeneratorFamily, Mode, RoundIndex, Seed, SideInfo, TrainError, load};
use fedburn_data::Batch;
use rand::RngExt;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};

use super::{BatchGradients, CrossEntropy, GradientRule, LocalRule, LocalRun, TrainModel, Trained};

/// The numbers of [`LocalFedGen`]; defaults are those of the published MNIST example.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FedGenRuleConfig {
    /// Weight `alpha` of the classes of what the generator makes, at least 0.
    pub alpha: f64,
    /// Weight `beta` of what the head says of features of the same class, at least 0.
    pub beta: f64,
    /// Factor of both weights from round to round, in `(0, 1]`; they fall to 1e-4 at least.
    pub decay: f64,
    /// Generated examples of a step, `Q`, at least 1.
    pub generated: usize,
    /// Local epochs that learn from the generator; the others do not.
    pub epochs: usize,
}

impl Default for FedGenRuleConfig {
    fn default() -> Self {
        Self { alpha: 10.0, beta: 10.0, decay: 0.98, generated: 32, epochs: 20 }
    }
}

impl FedGenRuleConfig {
    /// `weight` in `round`.
    fn decayed(&self, weight: f64, round: RoundIndex) -> f64 {
        match weight {
            0.0 => 0.0,
            weight => (weight * self.decay.powf(round.0.saturating_sub(1) as f64)).max(LEAST),
        }
    }
}

/// Below it a weight that is not 0 does not fall.
const LEAST: f64 = 1e-4;

/// A gradient rule: cross-entropy on a batch, and on what a generator `N` makes of classes.
struct GeneratedFeatures<N> {
    generator: N,
    /// Length of the noise, number of classes.
    sizes: [usize; 2],
    /// `alpha_t Q / batch_size`, `beta_t`.
    weights: [f64; 2],
    generated: usize,
    /// Steps that learn from the generator, and gradients that each of them takes.
    steps: usize,
    passes: usize,
    /// Gradients so far.
    calls: usize,
    seed: Seed,
}

impl<N> GeneratedFeatures<N> {
    /// `y'` and the noise of both terms in a step: the same for every gradient of it.
    fn draw<B: Backend>(&self, step: usize, batch: usize, device: &B::Device) -> [Tensor<B, 2>; 3] {
        let ([noise, classes], mut rng) = (self.sizes, self.seed.index(step as u64).rng());
        let drawn: Vec<i64> = (0..self.generated).map(|_| rng.random_range(0..classes as i64)).collect();
        let mut normal = |rows: usize| {
            let values: Vec<f32> = (0..rows * noise).map(|_| StandardNormal.sample(&mut rng)).collect();
            Tensor::from_data(TensorData::new(values, [rows, noise]), device)
        };
        let (own, other) = (normal(batch), normal(self.generated));
        [one_hot(Tensor::from_data(drawn.as_slice(), device), classes), other, own]
    }
}

impl<B: Backend, M: TrainModel<B>, N: Generator<B>> GradientRule<B, M> for GeneratedFeatures<N> {
    fn gradients(&mut self, model: M, batch: Batch<B>) -> BatchGradients<B, M> {
        let step = self.calls / self.passes;
        self.calls += 1;
        let Some(parts) = model.split().filter(|_| step < self.steps && self.weights != [0.0; 2]) else {
            return CrossEntropy.gradients(model, batch);
        };
        let (device, [examples]) = (batch.inputs.device(), batch.labels.dims());
        let [drawn, other, own] = self.draw::<B>(step, examples, &device);
        let said = |noise: Tensor<B, 2>, classes: Tensor<B, 2>| {
            let features = self.generator.forward(noise, classes, Mode::Evaluate).flatten::<2>(1, 3);
            parts.head(Tensor::from_inner(features))
        };
        let scores = model.forward(Tensor::from_inner(batch.inputs), Mode::Train);
        let mut loss =
            CrossEntropyLoss::new(None, &device).forward(scores.clone(), Tensor::from_inner(batch.labels.clone()));
        let [alpha, beta] = self.weights;
        if alpha > 0.0 {
            let likelihood = log_softmax(said(other, drawn.clone()), 1) * Tensor::from_inner(drawn);
            loss = loss - likelihood.sum().mul_scalar(alpha / self.generated as f64);
        }
        if beta > 0.0 {
            let taught = said(own, one_hot(batch.labels, self.sizes[1])).inner();
            let (p, log_p) = (softmax(taught.clone(), 1), log_softmax(taught, 1));
            let apart = Tensor::from_inner(log_p) - log_softmax(scores, 1);
            loss = loss + (Tensor::from_inner(p) * apart).sum().mul_scalar(beta / examples as f64);
        }
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        BatchGradients { model, gradients, loss: loss.inner() }
    }
}

/// `[batch, classes]`, one at each example's class and zero elsewhere.
fn one_hot<B: Backend>(labels: Tensor<B, 1, Int>, classes: usize) -> Tensor<B, 2> {
    let [batch] = labels.dims();
    let counted = Tensor::<B, 1, Int>::arange(0..classes as i64, &labels.device()).reshape([1, classes]);
    labels.reshape([batch, 1]).expand([batch, classes]).equal(counted.expand([batch, classes])).float()
}

/// Local SGD that also learns from the server's [`SideInfo::GENERATOR`], a generator of family `G`; plain SGD where none
/// is sent.
#[derive(Clone, Debug)]
pub struct LocalFedGen<G> {
    config: FedGenRuleConfig,
    generator: G,
}

impl<G> LocalFedGen<G> {
    /// The rule with the numbers of `config`, which a [`crate::LocalTrainingConfig`] checks.
    pub fn new(config: FedGenRuleConfig, generator: G) -> Self {
        Self { config, generator }
    }

    fn features<B: Backend>(&self, run: &LocalRun<'_, B>) -> Result<Option<GeneratedFeatures<G::Model>>, TrainError>
    where
        G: GeneratorFamily<B>,
    {
        let Some(sent) = run.task.side.vectors.get(SideInfo::<B>::GENERATOR) else { return Ok(None) };
        let generator = load(self.generator.init(Seed::new(0), run.device), sent).map_err(|e| run.schema_error(e))?;
        let (config, batch_size) = (&self.config, run.training.config().batch_size);
        let [alpha, beta] = [config.alpha, config.beta].map(|weight| config.decayed(weight, run.task.round));
        Ok(Some(GeneratedFeatures {
            generator,
            sizes: [self.generator.noise(), self.generator.classes()],
            weights: [alpha * config.generated as f64 / batch_size as f64, beta],
            generated: config.generated,
            steps: config.epochs.saturating_mul(run.data.len().div_ceil(batch_size)),
            passes: run.training.passes(),
            calls: 0,
            seed: run.task.seed.index(GENERATED),
        }))
    }
}

/// The child of a task's seed that noise and classes are drawn from; batches are of the first.
const GENERATED: u64 = 1;

impl<B: Backend, M: TrainModel<B>, G: GeneratorFamily<B>> LocalRule<B, M> for LocalFedGen<G> {
    fn train(&mut self, model: M, run: &LocalRun<'_, B>) -> Result<Trained<B, M>, TrainError> {
        if model.split().is_none() {
            let reason = "the rule `fedgen` learns from features, and the model is not split into features and a head";
            return Err(TrainError::Unusable { client: run.client, reason: reason.to_owned() });
        }
        match self.features(run)? {
            Some(rule) => run.descend(model, &mut run.training.sharpened(rule)),
            None => run.descend(model, &mut run.training.sharpened(CrossEntropy)),
        }
    }
}

/// Stands for [`LocalFedGen`] where nobody has said of which family the generator is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WithoutGenerator;

impl<B: Backend, M: TrainModel<B>> LocalRule<B, M> for WithoutGenerator {
    fn train(&mut self, _: M, run: &LocalRun<'_, B>) -> Result<Trained<B, M>, TrainError> {
        let reason = "the rule `fedgen` needs the family of the generator: see `LocalTraining::rule_with`";
        Err(TrainError::Unusable { client: run.client, reason: reason.to_owned() })
    }
}
