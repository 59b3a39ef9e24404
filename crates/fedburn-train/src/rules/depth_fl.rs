//! DepthFL: clients train a net up to a depth, with a classifier at several depths that teach each other.
//!
//! Minjae Kim, Sangyoon Yu, Suhyun Kim, Soo-Mook Moon, "DepthFL: Depthwise Federated Learning for Heterogeneous Clients",
//! ICLR 2023, openreview pf8RIZTMU58.
//!
//! ```text
//! client of depth b:  receive the first b stages and classifiers
//!                     the run's epochs of SGD on
//!                       sum_i CE(o_i, y) + c / (b - 1) sum_i sum_{j != i} KL(softmax(o_j) || softmax(o_i))
//!                     and, with FedDyn, - <g_k, x> + (alpha / 2) |x - x_t|^2
//! server:             each tensor is the mean over the clients that hold it, all alike; what nobody holds stays
//!                     with FedDyn: h <- h - (alpha / N) sum_k (x_k - x_t) over those, and the mean less h / alpha
//! prediction:         the mean of the scores of all classifiers
//! ```
//!
//! | symbol | meaning |
//! |---|---|
//! | `o_i` | scores of the classifier `i`; as a teacher, `o_j`, as they are |
//! | `c` | `exp(-5 (1 - min(t, T) / T)^2)` in round `t`, `T` being [`DepthFlConfig::ramp`] |
//!
//! State: none; with FedDyn `g_k`, of what the client holds ([`super::LocalFedDyn`]). Memory: that of the net up to the
//! client's depth. The server's mean is that of `fedavg` with uniform weights, the paper's variant "DepthFL (FedAvg)", or,
//! with FedDyn's terms, the strategy `feddyn`.

use burn::backend::Autodiff;
use burn::nn::loss::CrossEntropyLoss;
use burn::optim::GradientsParams;
use burn::tensor::{Int, Tensor, backend::Backend};
use fedburn_core::{ClientId, Mode, RoundIndex, SliceName, StateDict, StateError, SubModels, TrainError};
use fedburn_data::Batch;
use serde::{Deserialize, Serialize};

use super::members::{held, member_name};
use super::ntd::divergence;
use super::{BatchGradients, FedDynRuleConfig, GradientRule, LocalFedDyn, LocalRule, LocalRun, TrainModel, Trained};
use crate::depth::group_of;

/// The numbers of [`LocalDepthFl`]; defaults are the paper's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DepthFlConfig {
    /// How many classifiers each group of clients trains, from the first, with what is before them: at least 1; more
    /// than there are makes all. Client `i` of `N` is in group `floor(G i / N)` of `G`.
    pub classifiers: Vec<usize>,
    /// Rounds over which what classifiers teach each other comes to its full weight, at least 1.
    #[serde(default = "ramp")]
    pub ramp: u64,
    /// Whether they teach each other.
    #[serde(default = "distillation")]
    pub distillation: bool,
    /// FedDyn's terms, with the strategy of that name; absent: without. The paper's `alpha` is 0.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feddyn: Option<FedDynRuleConfig>,
}

fn ramp() -> u64 {
    300
}

fn distillation() -> bool {
    true
}

impl DepthFlConfig {
    /// `c` in `round`.
    pub fn weight(&self, round: RoundIndex) -> f64 {
        let passed = (round.0 as f64 / self.ramp.max(1) as f64).min(1.0);
        if self.distillation { (-5.0 * (1.0 - passed).powi(2)).exp() } else { 0.0 }
    }
}

/// The server's half: each client holds the stages up to its group's depth.
#[derive(Clone, Debug)]
pub(crate) struct Depths {
    pub(crate) config: DepthFlConfig,
    pub(crate) clients: usize,
    /// Number of classifiers.
    pub(crate) classifiers: usize,
}

impl SubModels for Depths {
    fn held(&self, _round: RoundIndex, client: ClientId) -> Vec<SliceName> {
        let depth = self.config.classifiers.get(group_of(self.config.classifiers.len(), client, self.clients));
        let depth = depth.copied().filter(|depth| *depth < self.classifiers);
        (0..depth.unwrap_or(0)).map(member_name).collect()
    }
}

/// Local SGD of a net up to the client's depth.
#[derive(Clone, Debug)]
pub struct LocalDepthFl<B: Backend> {
    config: DepthFlConfig,
    dynamic: Option<LocalFedDyn<B>>,
}

impl<B: Backend> LocalDepthFl<B> {
    /// The rule of a client that has not taken part yet, with the numbers of `config`, which a
    /// [`crate::LocalTrainingConfig`] checks.
    pub fn new(config: DepthFlConfig) -> Self {
        let dynamic = config.feddyn.map(LocalFedDyn::new);
        Self { config, dynamic }
    }
}

impl<B: Backend, M: TrainModel<B>> LocalRule<B, M> for LocalDepthFl<B> {
    fn train(&mut self, model: M, run: &LocalRun<'_, B>) -> Result<Trained<B, M>, TrainError> {
        let (_, held) = held(&model, run, "depth_fl", "depth_fl", true)?;
        let weight = self.config.weight(run.task.round);
        let mut rule = run.training.sharpened(SelfDistillation { members: held, weight });
        match &mut self.dynamic {
            Some(dynamic) => dynamic.train_with(model, run, rule),
            None => run.descend(model, &mut rule),
        }
    }

    fn state(&self) -> StateDict {
        self.dynamic.as_ref().map_or_else(StateDict::new, LocalFedDyn::kept)
    }

    fn restore(&mut self, state: StateDict) -> Result<(), StateError> {
        match &mut self.dynamic {
            Some(dynamic) => dynamic.take_back(state),
            None => state.expect_empty(),
        }
    }
}

/// A gradient rule: the cross-entropies of members of an ensemble, and what they teach each other.
#[derive(Clone, Debug)]
struct SelfDistillation {
    members: Vec<usize>,
    /// `c`.
    weight: f64,
}

impl<B: Backend, M: TrainModel<B>> GradientRule<B, M> for SelfDistillation {
    fn gradients(&mut self, model: M, batch: Batch<B>) -> BatchGradients<B, M> {
        let inputs = Tensor::from_inner(batch.inputs);
        let scores = match model.ensemble() {
            Some(ensemble) => ensemble.logits(&self.members, inputs, Mode::Train),
            None => vec![model.forward(inputs, Mode::Train)],
        };
        let loss = self_distillation(&scores, batch.labels, self.weight);
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        BatchGradients { model, gradients, loss: loss.inner() }
    }
}

/// The loss `[1]` of the scores `[batch, classes]` of several classifiers, mean over the batch.
fn self_distillation<B: Backend>(
    scores: &[Tensor<Autodiff<B>, 2>],
    labels: Tensor<B, 1, Int>,
    weight: f64,
) -> Tensor<Autodiff<B>, 1> {
    let device = labels.device();
    let mut loss = Tensor::zeros([1], &device);
    for (student, own) in scores.iter().enumerate() {
        loss = loss + CrossEntropyLoss::new(None, &device).forward(own.clone(), Tensor::from_inner(labels.clone()));
        let teachers = scores.iter().enumerate().filter(|(teacher, _)| *teacher != student && weight > 0.0);
        for (_, teacher) in teachers {
            let term = divergence(own.clone(), teacher.clone().inner(), 1.0);
            loss = loss + term.mul_scalar(weight / (scores.len() - 1) as f64);
        }
    }
    loss
}

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};
    use burn_ndarray::{NdArray, NdArrayDevice};

    use super::*;

    fn config(ramp: u64) -> DepthFlConfig {
        DepthFlConfig { classifiers: vec![1, 2, 3, 9], ramp, distillation: true, feddyn: None }
    }

    fn loss<B: Backend>(device: &B::Device, weight: f64) -> f64 {
        let scores = [[1.0f32, 0.0], [0.0, 2.0]].map(|row| Tensor::<Autodiff<B>, 2>::from_floats([row], device));
        let loss = self_distillation(&scores, Tensor::<B, 1, Int>::from_ints([0], device), weight);
        loss.into_data().iter::<f64>().next().unwrap()
    }

    #[test]
    fn golden_losses() {
        let half_way = config(300).weight(RoundIndex(150));
        assert!((half_way - 0.286_504_80).abs() < 1e-8);
        for (weight, expected) in [(1.0, 4.275_756_67), (half_way, 2.966_088_44), (0.0, 0.313_261_69 + 2.126_928_01)] {
            let (flex, ndarray) = (loss::<Flex>(&FlexDevice, weight), loss::<NdArray>(&NdArrayDevice::Cpu, weight));
            assert!((flex - expected).abs() < 1e-6 && (ndarray - expected).abs() < 1e-6, "{flex} {ndarray}");
        }
    }

    #[test]
    fn teachers_get_no_gradient() {
        let device = &FlexDevice;
        let scores = [[1.0f32, 0.0], [0.0, 2.0]]
            .map(|row| Tensor::<Autodiff<Flex>, 2>::from_floats([row], device).require_grad());
        let gradients = self_distillation(&scores, Tensor::<Flex, 1, Int>::from_ints([0], device), 1.0).backward();
        let softmax = |[a, b]: [f64; 2]| [a.exp() / (a.exp() + b.exp()), b.exp() / (a.exp() + b.exp())];
        let (p, q) = (softmax([1.0, 0.0]), softmax([0.0, 2.0]));
        // Of CE and of KL(other || own) in the own scores: p - y and p - q.
        for (scores, own, other) in [(&scores[0], p, q), (&scores[1], q, p)] {
            let found: Vec<f64> = scores.grad(&gradients).unwrap().into_data().iter().collect();
            for class in 0..2 {
                let label = if class == 0 { 1.0 } else { 0.0 };
                let expected = own[class] - label + own[class] - other[class];
                assert!((found[class] - expected).abs() < 1e-6, "{found:?}, class {class}: expected {expected}");
            }
        }
    }

    #[test]
    fn the_ramp_ends_at_full_weight() {
        let weights = [1, 10, 20].map(|round| config(10).weight(RoundIndex(round)));
        assert!(weights[0] < 0.02 && weights[1] == 1.0 && weights[2] == 1.0, "{weights:?}");
        assert_eq!(DepthFlConfig { distillation: false, ..config(10) }.weight(RoundIndex(20)), 0.0);
    }

    #[test]
    fn clients_hold_stages_up_to_their_depth() {
        let depths = Depths { config: config(1), clients: 4, classifiers: 3 };
        let held = |client| depths.held(RoundIndex(1), ClientId(client)).len();
        assert_eq!([held(0), held(1), held(2), held(3)], [1, 2, 0, 0], "none is the whole");
    }
}
