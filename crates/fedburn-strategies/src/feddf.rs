//! FedDF: the clients' models fused by distillation on examples without labels that the server has.
//!
//! Tao Lin, Lingjing Kong, Sebastian U. Stich, Martin Jaggi: "Ensemble Distillation for Robust Model Fusion in Federated
//! Learning", NeurIPS 2020, arXiv 2006.07242; published code epfml/federated-learning-public-code.
//!
//! ```text
//! s <- the base strategy's own aggregate
//! for each batch x of the server's examples, in a new order in every pass:
//!     p = softmax( mean_k s_k(x) / T )                     the teachers' scores are averaged, not their probabilities
//!     s <- Adam step towards  min  mean KL( p || softmax(s(x) / T) ),   gradient cut to norm 5, rate on a cosine to 0
//! the next global vector is s
//! ```
//!
//! | symbol | meaning |
//! |---|---|
//! | `s`, `s_k` | scores of the student, which learns; of client `k`'s model, which teaches and stays as it is |
//! | `T` | temperature |
//!
//! State between rounds: the base's; Adam begins anew each round. Memory: the updates, the student with Adam's moments,
//! one teacher's network, the server's examples and `classes` numbers of each. Passes of a round: each teacher sees
//! each example once, whatever the number of steps.
//!
//! Departures. The published code takes up to 10,000 steps and stops early by the accuracy on labelled examples of the
//! server; here the server reads no label, so that the number of steps is a setting. All clients have one architecture:
//! there is one student. A round whose loss stops being finite keeps the base's aggregate, with the metric
//! `feddf_skipped`.

use burn::module::AutodiffModule;
use burn::optim::GradientsParams;
use burn::tensor::activation::log_softmax;
use burn::tensor::{ElementConversion, Int, Tensor, TensorData, backend::Backend};
use fedburn_core::{
    Aggregate, AggregateError, Classifier, ClientId, Mean, Mode, ModelFamily, ParamVector, PerClientStrategy, Reports,
    Round, RoundIndex, SchemaError, Seed, SideInfo, StateDict, StateError, Strategy, UpdateSet, flat_gradients,
    flatten, load, load_to_train,
};
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use crate::adam::Adam;
use crate::network::{blank, ensure_fits};
use crate::{StrategyConfig, StrategyConfigError};

const KIND: &str = "feddf";

/// Settings of [`FedDf`]. The defaults are the published code's, the number of steps apart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FedDfConfig {
    /// The strategy whose aggregate is the student.
    pub base: Box<StrategyConfig>,
    /// Batches that the student learns from in each round; 0 leaves the aggregate alone. 1000 is the least that the
    /// published code takes before it may stop.
    pub steps: usize,
    /// Examples of a batch, at least 1; more than the server has makes one batch of all.
    pub batch_size: usize,
    /// Learning rate of Adam at the first step, positive; it falls to 0 on a cosine.
    pub lr: f64,
    /// Temperature `T`, positive.
    pub temperature: f64,
    /// Largest norm of a step's whole gradient, positive.
    pub clip_norm: f64,
}

impl Default for FedDfConfig {
    fn default() -> Self {
        Self { base: Box::default(), steps: 1000, batch_size: 128, lr: 1e-3, temperature: 1.0, clip_norm: 5.0 }
    }
}

/// Distillation of the clients' models, of family `F`, into the model of another strategy.
pub struct FedDf<B: Backend, F> {
    base: Strategy<B>,
    config: FedDfConfig,
    family: F,
    /// `[examples, channels, height, width]`.
    inputs: TensorData,
}

impl<B: Backend, F: ModelFamily<B>> FedDf<B, F> {
    /// Distils on the server's `inputs` `[examples, channels, height, width]` into what `base` makes of each round;
    /// `config.base` is not looked at.
    ///
    /// # Errors
    /// [`StrategyConfigError`] where a number is out of its range, or there is no example.
    pub fn new(
        config: FedDfConfig,
        base: Strategy<B>,
        family: F,
        inputs: TensorData,
    ) -> Result<Self, StrategyConfigError> {
        if config.batch_size == 0 {
            let (value, expected) = ("0".to_owned(), "at least 1 example");
            return Err(StrategyConfigError::Value { kind: KIND, field: "batch_size", value, expected });
        }
        for (field, value) in [("lr", config.lr), ("temperature", config.temperature), ("clip_norm", config.clip_norm)]
        {
            StrategyConfigError::positive(KIND, field, value)?;
        }
        match inputs.shape.as_slice() {
            &[examples, _, _, _] if examples > 0 => Ok(Self { base, config, family, inputs }),
            found => {
                let reason = format!(
                    "the server's examples have the shape {found:?}, expected [examples, channels, height, width] and \
                     one example at least"
                );
                Err(StrategyConfigError::Models { kind: KIND, reason })
            }
        }
    }

    /// The student after a round, and the mean of its losses.
    fn distil(
        &self,
        round: &Round<'_, B>,
        start: &ParamVector<B>,
        updates: &UpdateSet<B>,
    ) -> Result<(ParamVector<B>, Mean), SchemaError> {
        let (config, device) = (&self.config, start.device());
        let inputs = Tensor::<B, 4>::from_data(self.inputs.clone(), &device);
        let taught = self.taught(&inputs, updates)?;
        let mut student = load_to_train(blank(&self.family, &device), start)?;
        let mut adam = Adam::new(start);
        let mut losses = Tensor::<B, 1>::zeros([1], &device);
        let mut batches = Batches::new(inputs.dims()[0], config.batch_size, round.seed.index(ORDER));
        for step in 0..config.steps {
            let chosen = Tensor::<B, 1, Int>::from_data(batches.draw(), &device);
            let scores = student.forward(Tensor::from_inner(inputs.clone().select(0, chosen.clone())), Mode::Train);
            let loss = divergence(Tensor::from_inner(taught.clone().select(0, chosen)), scores, config.temperature);
            losses = losses + loss.clone().inner();
            let gradients = GradientsParams::from_grads(loss.backward(), &student);
            let gradient = clipped(flat_gradients(&student, &gradients), config.clip_norm);
            // With the running statistics that this pass has moved.
            let now = flatten(&student.valid())?;
            let cosine = (1.0 + (std::f64::consts::PI * step as f64 / config.steps as f64).cos()) / 2.0;
            student = load_to_train(student, &adam.step(&now, gradient, config.lr * cosine)?)?;
        }
        let loss = Mean::from_sum(losses.into_scalar().elem(), config.steps as f64);
        Ok((flatten(&student.valid())?, loss))
    }

    /// What the clients' models say of `inputs` together, as logarithms of probabilities, `[examples, classes]`.
    fn taught(&self, inputs: &Tensor<B, 4>, updates: &UpdateSet<B>) -> Result<Tensor<B, 2>, SchemaError> {
        let (size, [examples, ..]) = (self.config.batch_size, inputs.dims());
        let mut network = self.family.init(Seed::new(0), &inputs.device());
        let mut sum: Option<Tensor<B, 2>> = None;
        for update in updates.iter() {
            network = load(network, &update.local.params)?;
            let batch = |from: usize| inputs.clone().slice(from..examples.min(from + size));
            let scores = (0..examples).step_by(size).map(|from| network.forward(batch(from), Mode::Evaluate));
            let scores = Tensor::cat(scores.collect(), 0);
            sum = Some(match sum {
                Some(sum) => sum + scores,
                None => scores,
            });
        }
        let sum = sum.expect("a round has at least one update");
        Ok(log_softmax(sum / (updates.len() as f64 * self.config.temperature), 1))
    }
}

/// The child of a round's seed that orders are drawn from; a wrapped `fedftg` uses smaller numbers.
const ORDER: u64 = 3;

/// Which examples the student sees: all of them in an order drawn anew in every pass, whole batches only.
struct Batches {
    order: Vec<i64>,
    size: usize,
    /// Examples of the order that have been seen.
    seen: usize,
    passes: u64,
    seed: Seed,
}

impl Batches {
    fn new(examples: usize, size: usize, seed: Seed) -> Self {
        Self { order: (0..examples as i64).collect(), size: size.min(examples), seen: examples, passes: 0, seed }
    }

    fn draw(&mut self) -> &[i64] {
        if self.seen + self.size > self.order.len() {
            self.order.shuffle(&mut self.seed.index(self.passes).rng());
            (self.seen, self.passes) = (0, self.passes + 1);
        }
        self.seen += self.size;
        &self.order[self.seen - self.size..self.seen]
    }
}

/// `KL( p || softmax(s / T) )`, mean over the batch; `log_p` and `s` are `[batch, classes]`.
fn divergence<B: Backend>(log_p: Tensor<B, 2>, s: Tensor<B, 2>, temperature: f64) -> Tensor<B, 1> {
    let log_q = log_softmax(s / temperature, 1);
    (log_p.clone().exp() * (log_p - log_q)).sum_dim(1).mean()
}

/// `gradient` `[num_values]`, shortened where its norm is above `bound`.
fn clipped<B: Backend>(gradient: Tensor<B, 1>, bound: f64) -> Tensor<B, 1> {
    let norm = gradient.clone().square().sum().sqrt();
    gradient * (norm.clamp_min(bound).recip() * bound)
}

impl<B: Backend, F: ModelFamily<B>> PerClientStrategy<B> for FedDf<B, F> {
    fn name(&self) -> &'static str {
        KIND
    }

    fn reports(&self) -> Reports {
        self.base.reports()
    }

    fn remembers_clients(&self) -> bool {
        self.base.remembers_clients()
    }

    fn side_info(&self, round: RoundIndex, client: ClientId) -> SideInfo<B> {
        self.base.side_info(round, client)
    }

    fn aggregate(&mut self, round: &Round<'_, B>, updates: &UpdateSet<B>) -> Result<Aggregate<B>, AggregateError> {
        let schema = |source| AggregateError::Schema { round: round.index, source };
        ensure_fits(&self.family, round.global).map_err(schema)?;
        let mut aggregate = self.base.aggregate(round, updates)?;
        let (student, loss) = self.distil(round, &aggregate.global, updates).map_err(schema)?;
        let finite = loss.value().is_none_or(f64::is_finite) && student.is_finite();
        aggregate.metrics.add("feddf_skipped", Mean::new(if finite { 0.0 } else { 1.0 }, 1.0));
        if finite {
            aggregate.metrics.add("feddf_loss", loss);
            aggregate.global = student;
        }
        Ok(aggregate)
    }

    fn state(&self) -> StateDict {
        self.base.state()
    }

    fn restore(&mut self, state: StateDict, like: &ParamVector<B>) -> Result<(), StateError> {
        self.base.restore(state, like)
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;
    use burn_flex::{Flex, FlexDevice};
    use burn_ndarray::NdArray;

    use super::*;

    type Wide = Autodiff<NdArray<f64>>;

    fn numbers<B: Backend, const D: usize>(t: Tensor<B, D>) -> Vec<f64> {
        t.into_data().iter().collect()
    }

    #[test]
    fn golden_vectors() {
        fn check<B: Backend>(device: &B::Device) {
            let teachers = Tensor::<B, 2>::from_data([[1.0, 0.5, 0.0]], device);
            let student = Tensor::<B, 2>::from_data([[0.5, 0.5, 0.0]], device);
            let found = numbers(divergence(log_softmax(teachers, 1), student, 1.0))[0];
            assert!((found - 0.03099061).abs() < 1e-6, "{found}");
        }
        check::<Flex>(&FlexDevice);
        check::<NdArray>(&Default::default());

        let s = Tensor::<Wide, 2>::from_data([[0.5, 0.5, 0.0]], &Default::default()).require_grad();
        let log_p = log_softmax(Tensor::from_data([[1.0, 0.5, 0.0]], &Default::default()), 1);
        let slopes = divergence(log_p, s.clone(), 1.0).backward();
        for (found, expected) in numbers(s.grad(&slopes).unwrap()).iter().zip([-0.12282866, 0.07645585, 0.04637281]) {
            assert!((found - expected).abs() < 1e-7, "{found}, expected {expected}");
        }
    }

    #[test]
    fn slopes_agree_with_finite_differences() {
        let device = Default::default();
        let wave = |phase: f64| (0..12).map(|i| ((i as f64 + 1.0) * phase).sin() * 3.0).collect::<Vec<f64>>();
        let point = wave(1.3);
        let loss = |s: Tensor<Wide, 1>, temperature: f64| {
            let log_p = log_softmax(Tensor::<Wide, 1>::from_data(wave(0.7).as_slice(), &device).reshape([3, 4]), 1);
            divergence(log_p, s.reshape([3, 4]), temperature)
        };
        for temperature in [0.5, 1.0, 4.0] {
            let leaf = Tensor::<Wide, 1>::from_data(point.as_slice(), &device).require_grad();
            let slopes = loss(leaf.clone(), temperature).backward();
            for (i, found) in numbers(leaf.grad(&slopes).unwrap()).into_iter().enumerate() {
                let moved = |by: f64| {
                    let mut values = point.clone();
                    values[i] += by;
                    numbers(loss(Tensor::from_data(values.as_slice(), &device), temperature))[0]
                };
                let expected = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                assert!((found - expected).abs() < 1e-8, "value {i}: {found}, expected {expected}");
            }
        }
    }

    #[test]
    fn every_pass_is_another_order_of_whole_batches() {
        let mut batches = Batches::new(7, 3, Seed::new(1));
        let mut pass = || {
            let mut seen = [batches.draw().to_vec(), batches.draw().to_vec()].concat();
            let order = seen.clone();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), 6, "an example came twice in a pass");
            order
        };
        let passes: Vec<_> = (0..20).map(|_| pass()).collect();
        assert!((0..7).all(|example| passes.iter().flatten().any(|seen| *seen == example)));
        assert!(passes.windows(2).all(|two| two[0] != two[1]));
        assert_eq!(Batches::new(2, 9, Seed::new(1)).draw().len(), 2);
    }

    #[test]
    fn long_gradients_are_cut_to_the_bound_and_short_ones_left_alone() {
        let cut =
            |values: [f64; 2]| numbers(clipped(Tensor::<NdArray<f64>, 1>::from_data(values, &Default::default()), 5.0));
        assert_eq!(cut([0.3, -0.4]), [0.3, -0.4]);
        let long = cut([30.0, -40.0]);
        assert!((long[0] - 3.0).abs() < 1e-12 && (long[1] + 4.0).abs() < 1e-12, "{long:?}");
    }
}
