//! FedGen, the server half: a generator of what clients' models see of each class, which clients learn from. The client
//! half is the local rule of the same name.
//!
//! Zhuangdi Zhu, Junyuan Hong, Jiayu Zhou: "Data-Free Knowledge Distillation for Heterogeneous Federated Learning", ICML
//! 2021, arXiv 2105.10056; published code zhuangdizhu/FedGen.
//!
//! ```text
//! I times, on the heads h_k of the clients' models as they came:
//!     y uniform over the classes that some client has, z ~ N(0, 1), r = G(z, y)
//!     G one step of Adam towards   min  alpha SUM_k mean_i( w_k^{y_i} CE(h_k(r_i), y_i) )
//!                                       - beta KL( SUM_k w_k h_k(r) || h(r) ) + eta L_div
//!     L_div = exp( mean_{i,j}( -mean|r_i - r_j| mean (z_i - z_j)^2 ) ),   w_k^y = n_k^y / SUM_i n_i^y
//! the next global vector is the base strategy's own aggregate; G goes to the clients of the next round
//! ```
//!
//! | symbol | meaning | here |
//! |---|---|---|
//! | `G` | the generator; its weights and Adam's moments outlive the round | `Made` |
//! | `h_k`, `h` | heads of the clients' models and of the global one that they started from | `Teachers` |
//! | `n_k^y` | number of examples of class `y` that client `k` trained on; clients report them | `ClassCounts` |
//!
//! State between rounds: the base's, the generator, Adam's moments. Down: the generator beside the model, from the round
//! after the first in which it was trained. Memory: the updates, the generator with its moments, `teachers_resident`
//! networks; a pass goes through heads alone. Time of a round: `I` steps of the generator with a pass of each head.
//!
//! Who teaches: as in [`FedFtg`](crate::FedFtg), all clients of the round that told of examples.
//!
//! Departures. The noise is normal, as in the paper; the published code draws it uniformly from 0 to 1. The published code
//! takes the mean of the weights and of the cross-entropies before it multiplies them; here each example has its own
//! weight, as its comments say. It counts the examples seen in training and begins with one of each class; here clients
//! report what they have, and a class that nobody has is not asked for. A round in which nobody teaches, and one in which
//! a number stops being finite, keeps the generator, with the metric `fedgen_skipped`.

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::optim::GradientsParams;
use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{ElementConversion, Tensor, backend::Backend};
use fedburn_core::{
    Aggregate, AggregateError, Classifier, ClientId, Generator, GeneratorFamily, Mean, Metrics, Mode, ModelFamily,
    ParamVector, PerClientStrategy, Reports, Round, RoundIndex, Seed, SideInfo, StateDict, StateError, Strategy,
    UpdateSet, flat_gradients, flatten, load_frozen, load_to_train,
};
use serde::{Deserialize, Serialize};

use crate::adam::Adam;
use crate::class_counts::ClassCounts;
use crate::fedftg::code_diversity;
use crate::generated::{Batch, Made};
use crate::network::{blank, ensure_fits};
use crate::teachers::{Taught, Teachers, total};
use crate::{StrategyConfig, StrategyConfigError};

const KIND: &str = "fedgen";

/// Settings of [`FedGen`]. The defaults are the published code's for MNIST.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FedGenConfig {
    /// The strategy whose aggregate is the next global model.
    pub base: Box<StrategyConfig>,
    /// Steps of the generator in each round, `I`.
    pub iterations: usize,
    /// Examples of a batch, 2 to 512: `L_div` compares all pairs.
    pub batch_size: usize,
    /// Learning rate of Adam, positive.
    pub lr: f64,
    /// Its factor from round to round, above 0 and at most 1.
    pub lr_decay: f64,
    /// Factor of the weight added to its gradient, from 0.
    pub weight_decay: f64,
    /// Weight of what the clients' heads say, from 0.
    pub alpha: f64,
    /// Weight of their disagreement with the global head, which is looked for, from 0.
    pub beta: f64,
    /// Weight of diversity, from 0.
    pub eta: f64,
    /// Networks of clients in memory at a time, at least 1.
    pub teachers_resident: usize,
    /// Length of the generator's noise.
    pub noise: usize,
    /// Units of the generator's hidden layer.
    pub hidden: usize,
}

impl Default for FedGenConfig {
    fn default() -> Self {
        Self {
            base: Box::default(),
            iterations: 50,
            batch_size: 32,
            lr: 3e-4,
            lr_decay: 0.98,
            weight_decay: 1e-2,
            alpha: 1.0,
            beta: 0.0,
            eta: 1.0,
            teachers_resident: 1,
            noise: 32,
            hidden: 256,
        }
    }
}

impl FedGenConfig {
    fn check(&self) -> Result<(), StrategyConfigError> {
        StrategyConfigError::generated(KIND, self.iterations, self.batch_size)?;
        StrategyConfigError::resident(KIND, self.teachers_resident)?;
        StrategyConfigError::positive(KIND, "lr", self.lr)?;
        StrategyConfigError::decay(KIND, "lr_decay", self.lr_decay)?;
        let weights =
            [("weight_decay", self.weight_decay), ("alpha", self.alpha), ("beta", self.beta), ("eta", self.eta)];
        weights.into_iter().try_for_each(|(field, value)| StrategyConfigError::not_negative(KIND, field, value))
    }
}

/// A generator beside the models of another strategy, with classifiers of family `F` and a generator of family `G`.
pub struct FedGen<B: Backend, F, G> {
    base: Strategy<B>,
    config: FedGenConfig,
    family: F,
    generator: G,
    /// From the first round on in which it was trained.
    made: Option<Made<B>>,
}

impl<B: Backend, F: ModelFamily<B>, G: GeneratorFamily<B>> FedGen<B, F, G> {
    /// Trains a generator beside what `base` makes of each round; `config.base` is not looked at. `generator` makes
    /// features of `family`.
    ///
    /// # Errors
    /// [`StrategyConfigError`] where a number is out of its range.
    pub fn new(config: FedGenConfig, base: Strategy<B>, family: F, generator: G) -> Result<Self, StrategyConfigError> {
        config.check()?;
        Ok(Self { base, config, family, generator, made: None })
    }

    /// The generator after the round; adds figures to `metrics`. `None` where nobody teaches or a number stopped being
    /// finite.
    fn train(
        &self,
        round: &Round<'_, B>,
        updates: &UpdateSet<B>,
        metrics: &mut Metrics,
    ) -> Result<Option<Made<B>>, AggregateError> {
        let (config, device) = (&self.config, round.global.device());
        let schema = |source| AggregateError::Schema { round: round.index, source };
        let (classes, seed) = (self.generator.classes(), round.seed.index(SEEDS));
        let counts = ClassCounts::of(updates.iter(), classes);
        metrics.add("fedgen_silent", Mean::new(counts.silent() as f64, 1.0));
        let labels = counts.uniform_labels(config.iterations * config.batch_size, seed.index(LABELS));
        let Some(labels) = labels else { return Ok(None) };
        let models = counts.told().map(|k| &updates.iter().as_slice()[k].local.params).collect();
        let mut teachers = Teachers::new(&self.family, models, config.teachers_resident, device.clone());
        let student = load_frozen(blank(&self.family, &device), round.global).map_err(schema)?;
        let weights = counts.ensemble_weights();
        let (mut generator, adam) = match &self.made {
            Some(made) => (made.generator.clone(), made.adam.clone()),
            None => {
                let drawn = flatten(&self.generator.init(seed.index(GENERATOR), &device));
                (drawn.map_err(schema)?, None)
            }
        };
        let mut adam = adam.unwrap_or_else(|| Adam::new(&generator));
        let lr = config.lr * config.lr_decay.powf(round.index.0.saturating_sub(1) as f64);
        let zeros = ParamVector::zeros(generator.schema().clone(), &device);
        let mut network = G::TrainModel::from_inner(self.generator.init(Seed::new(0), &device));
        let mut losses = Tensor::<B, 1>::zeros([1], &device);
        for (iteration, labels) in labels.chunks_exact(config.batch_size).enumerate() {
            let seed = seed.index(NOISE).index(iteration as u64);
            let batch = Batch::new(labels, classes, &weights, self.generator.noise(), seed, &device);
            network = load_to_train(network, &generator).map_err(schema)?;
            let loss = self.loss(round, &network, &batch, &mut teachers, &student)?;
            losses = losses + loss.clone().inner();
            let gradients = GradientsParams::from_grads(loss.backward(), &network);
            // With the running statistics that this pass has moved.
            let now = flatten(&network.valid()).map_err(schema)?;
            let decay = now.with_buffers_of(&zeros).map_err(schema)?.into_values() * config.weight_decay;
            let gradient = flat_gradients(&network, &gradients) + decay;
            generator = adam.step(&now, gradient, lr).map_err(schema)?;
        }
        let sum: f64 = losses.into_scalar().elem();
        if !(sum.is_finite() && generator.is_finite()) {
            return Ok(None);
        }
        metrics.add("fedgen_loss", Mean::from_sum(sum, config.iterations as f64));
        Ok(Some(Made { generator, adam: Some(adam) }))
    }

    /// What the generator `network` makes small, of one batch.
    fn loss(
        &self,
        round: &Round<'_, B>,
        network: &G::TrainModel,
        batch: &Batch<B>,
        teachers: &mut Teachers<'_, B, F>,
        student: &F::TrainModel,
    ) -> Result<Tensor<Autodiff<B>, 1>, AggregateError> {
        let config = &self.config;
        let (z, y) = (Tensor::from_inner(batch.z.clone()), Tensor::from_inner(batch.y.clone()));
        let made = network.forward(z.clone(), y.clone(), Mode::Train);
        let features = made.clone().flatten::<2>(1, 3);
        let head = |model: &F::TrainModel| match model.split() {
            Some(parts) => Ok(parts.head(features.clone())),
            None => {
                let reason = "it makes features for heads, and the model is not split into features and a head";
                Err(AggregateError::Unusable { round: round.index, strategy: KIND, reason: reason.to_owned() })
            }
        };
        let mut taught = Vec::with_capacity(teachers.len());
        for (k, weights) in batch.weights.iter().enumerate() {
            let model = teachers.network(k).map_err(|source| AggregateError::Schema { round: round.index, source })?;
            taught.push(Taught { scores: head(model)?, weights: Tensor::from_inner(weights.clone()) });
        }
        let mut loss = fidelity(&taught, &y) * config.alpha + code_diversity(&made, &z) * config.eta;
        if config.beta > 0.0 {
            loss = loss - disagreement(&taught, head(student)?) * config.beta;
        }
        Ok(loss)
    }
}

/// The child of a round's seed that all of this is drawn from; a wrapped `fedftg` or `feddf` uses smaller numbers.
const SEEDS: u64 = 4;
const LABELS: u64 = 0;
const GENERATOR: u64 = 1;
const NOISE: u64 = 2;

/// `SUM_k mean_i( w_{k,i} CE(t_{k,i}, y_i) )`; `y` `[batch, classes]` is one at each example's class.
fn fidelity<B: Backend>(taught: &[Taught<B>], y: &Tensor<B, 2>) -> Tensor<B, 1> {
    let one = |t: &Taught<B>| {
        let likelihood = (log_softmax(t.scores.clone(), 1) * y.clone()).sum_dim(1).squeeze_dim::<1>(1);
        (likelihood * t.weights.clone()).mean().neg()
    };
    total(taught.iter().map(one))
}

/// `KL( softmax(SUM_k w_k t_k) || softmax(s) )`, the mean over examples and classes, as the published code has it.
fn disagreement<B: Backend>(taught: &[Taught<B>], s: Tensor<B, 2>) -> Tensor<B, 1> {
    let ensemble = total(taught.iter().map(|t| t.scores.clone() * t.weights.clone().unsqueeze_dim::<2>(1)));
    let (p, log_p) = (softmax(ensemble.clone(), 1), log_softmax(ensemble, 1));
    (p * (log_p - log_softmax(s, 1))).mean()
}

impl<B: Backend, F: ModelFamily<B>, G: GeneratorFamily<B>> PerClientStrategy<B> for FedGen<B, F, G> {
    fn name(&self) -> &'static str {
        KIND
    }

    fn reports(&self) -> Reports {
        Reports { class_counts: true, ..self.base.reports() }
    }

    fn remembers_clients(&self) -> bool {
        self.base.remembers_clients()
    }

    fn side_info(&self, round: RoundIndex, client: ClientId) -> SideInfo<B> {
        let mut side = self.base.side_info(round, client);
        if let Some(made) = &self.made {
            side.vectors.insert(SideInfo::<B>::GENERATOR.into(), made.generator.clone());
        }
        side
    }

    fn aggregate(&mut self, round: &Round<'_, B>, updates: &UpdateSet<B>) -> Result<Aggregate<B>, AggregateError> {
        ensure_fits(&self.family, round.global)
            .map_err(|source| AggregateError::Schema { round: round.index, source })?;
        let mut metrics = Metrics::new();
        // Before the base, whose step cannot be taken back.
        let made = self.train(round, updates, &mut metrics)?;
        let mut aggregate = self.base.aggregate(round, updates)?;
        metrics.add("fedgen_skipped", Mean::new(if made.is_none() { 1.0 } else { 0.0 }, 1.0));
        aggregate.metrics.merge(&metrics);
        self.made = made.or(self.made.take());
        Ok(aggregate)
    }

    fn state(&self) -> StateDict {
        let mut state = StateDict::new();
        state.nest("base", self.base.state());
        if let Some(made) = &self.made {
            made.save(&mut state);
        }
        state
    }

    fn restore(&mut self, mut state: StateDict, like: &ParamVector<B>) -> Result<(), StateError> {
        let base = state.split_off("base");
        self.made = Made::restore(&mut state, &self.generator, &like.device())?;
        state.expect_empty()?;
        self.base.restore(base, like)
    }
}

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};
    use burn_ndarray::NdArray;

    use super::*;

    fn numbers<B: Backend>(t: Tensor<B, 1>) -> Vec<f64> {
        t.into_data().iter().collect()
    }

    #[test]
    fn golden_vectors() {
        fn check<B: Backend>(device: &B::Device) {
            let z = Tensor::<B, 2>::from_data([[0.0, 0.0], [1.0, 1.0]], device);
            let made = Tensor::<B, 2>::from_data([[0.0, 2.0], [2.0, 2.0]], device).reshape([2, 2, 1, 1]);
            let found = numbers(code_diversity(&made, &z))[0];
            assert!((found - 0.60653066).abs() < 1e-6, "{found}");

            // By hand, with the weights of the counts [5, 0, 3] and [1, 4, 0] for the classes 0 and 1.
            let taught = |scores: [[f32; 3]; 2], weights: [f32; 2]| Taught {
                scores: Tensor::from_data(scores, device),
                weights: Tensor::from_data(weights, device),
            };
            let (a, b) = ([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]]);
            let taught = [taught(a, [5.0 / 6.0, 0.0]), taught(b, [1.0 / 6.0, 1.0])];
            let y = Tensor::<B, 2>::from_data([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], device);
            let entropy = [(1.0 + 2.0 * (-2.0f64).exp()).ln(), (1.0 + 2.0 * 1f64.exp()).ln(), 3f64.ln()];
            let expected = (5.0 * entropy[0] / 6.0 + entropy[1] / 6.0 + entropy[2]) / 2.0;
            let found = numbers(fidelity(&taught, &y))[0];
            assert!((found - expected).abs() < 1e-6, "{found}, expected {expected}");

            // The ensemble's scores are [5/3, 1/6, 1/6] and [0, 0, 0].
            let s = Tensor::<B, 2>::from_data([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], device);
            let (large, small) = ((5.0f64 / 3.0).exp(), (1.0f64 / 6.0).exp());
            let p = [large, small, small].map(|e| e / (large + 2.0 * small));
            let expected = p.iter().map(|p| p * (3.0 * p).ln()).sum::<f64>() / 6.0;
            let found = numbers(disagreement(&taught, s))[0];
            assert!((found - expected).abs() < 1e-6, "{found}, expected {expected}");
        }
        check::<Flex>(&FlexDevice);
        check::<NdArray>(&Default::default());
    }

    /// The slopes of every part of the generator's loss, in `f64`, against central differences.
    #[test]
    fn slopes_agree_with_finite_differences() {
        type Wide = Autodiff<NdArray<f64>>;
        let device = Default::default();
        let wave = |len: usize, phase: f64| (0..len).map(|i| ((i as f64 + 1.0) * phase).sin()).collect::<Vec<f64>>();
        let y = Tensor::<Wide, 1>::from_data([1.0, 0.0, 0.0, 0.0, 0.0, 1.0], &device).reshape([2, 3]);
        let z = Tensor::<Wide, 1>::from_data(wave(4, 0.7).as_slice(), &device).reshape([2, 2]);
        // What is varied: the scores of two clients and of the global model, then the features.
        let point = wave(3 * 6 + 2 * 5, 1.3);
        let losses = |values: Tensor<Wide, 1>| {
            let part = |index: usize| values.clone().narrow(0, 6 * index, 6).reshape([2, 3]);
            let taught = [[0.3, 1.0], [0.7, 0.0]].map(|weights| Tensor::<Wide, 1>::from_data(weights, &device));
            let taught: Vec<_> = (0..2).map(|k| Taught { scores: part(k), weights: taught[k].clone() }).collect();
            let made = values.clone().narrow(0, 18, 10).reshape([2, 5, 1, 1]);
            [fidelity(&taught, &y), disagreement(&taught, part(2)), code_diversity(&made, &z)]
        };
        for (index, name) in ["fidelity", "disagreement", "diversity"].into_iter().enumerate() {
            let at = |values: &[f64]| numbers(losses(Tensor::from_data(values, &device))[index].clone())[0];
            let leaf = Tensor::<Wide, 1>::from_data(point.as_slice(), &device).require_grad();
            let slopes = losses(leaf.clone())[index].backward();
            let found: Vec<f64> = leaf.grad(&slopes).unwrap().into_data().to_vec().unwrap();
            assert!(found.iter().any(|slope| slope.abs() > 1e-3), "{name}");
            for (i, found) in found.into_iter().enumerate() {
                let moved = |by: f64| {
                    let mut values = point.clone();
                    values[i] += by;
                    at(&values)
                };
                let expected = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                assert!((found - expected).abs() < 1e-8, "{name}, value {i}: {found}, expected {expected}");
            }
        }
    }
}
