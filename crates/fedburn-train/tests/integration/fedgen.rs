//! Learning from the server's generator against its definition in `f64`, and when a client does.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::common::quadratic::{Point, train_model, vector};
use crate::common::reference::{assert_close, wide};
use crate::common::{CLASSES, FEATURES, Softmax, bits, initial, softmax_initial, task, toy_data, training};
use burn::backend::Autodiff;
use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor, backend::Backend};
use burn_flex::{Flex, FlexDevice};
use burn_ndarray::{NdArray, NdArrayDevice};
use fedburn_core::{
    ClassId, Classifier, Client, ClientId, Generator, GeneratorFamily, Mode, ModelFamily, ParamVector, RoundIndex,
    Seed, SideInfo, TrainError, TrainTask, flatten, load,
};
use fedburn_data::{ClientData, Examples, Inputs};
use fedburn_models::{FeatureGeneratorFamily, Zoo, ZooConfig};
use fedburn_ops::Kernels;
use fedburn_train::{
    FedGenRuleConfig, LocalFedGen, LocalRule, LocalRun, ResidentModel, RuleConfig, SharpnessAwareConfig,
    SupervisedClient,
};

/// A generator that knows one pair of features for each of three classes, whatever the noise.
#[derive(Module, Debug)]
struct Table<B: Backend> {
    rows: Param<Tensor<B, 2>>,
}

impl<B: Backend> Generator<B> for Table<B> {
    fn forward(&self, _noise: Tensor<B, 2>, labels: Tensor<B, 2>, _mode: Mode) -> Tensor<B, 4> {
        let [batch, _] = labels.dims();
        labels.matmul(self.rows.val()).reshape([batch, 2, 1, 1])
    }
}

#[derive(Clone, Debug)]
struct Tables;

impl<B: Backend> GeneratorFamily<B> for Tables {
    type Model = Table<B>;
    type TrainModel = Table<Autodiff<B>>;

    fn init(&self, _seed: Seed, device: &B::Device) -> Table<B> {
        Table { rows: Param::from_tensor(Tensor::zeros([3, 2], device)) }
    }

    fn noise(&self) -> usize {
        2
    }

    fn classes(&self) -> usize {
        3
    }
}

const ROWS: [[f32; 2]; 3] = [[1.5, -0.5], [-1.0, 0.25], [0.5, 2.0]];
const LABELS: [u32; 4] = [0, 2, 2, 1];

/// `log softmax(s)_y`.
fn log_likelihood(s: [f64; 3], y: usize) -> f64 {
    s[y] - s.iter().map(|s| s.exp()).sum::<f64>().ln()
}

/// The loss of a model whose logits are `x` and whose head adds `x[2]` to features, where `drawn` are the classes that
/// the generator was asked for; `bias` is the head's where it teaches.
fn loss(x: [f64; 3], bias: f64, drawn: &[usize], [alpha, beta]: [f64; 2]) -> f64 {
    let made = |class: usize, bias: f64| [f64::from(ROWS[class][0]), f64::from(ROWS[class][1]), bias];
    let mean = |sum: f64, count: usize| sum / count as f64;
    let entropy = |y: &u32| -log_likelihood(x, *y as usize);
    let apart = |y: &u32| {
        let taught = [0, 1, 2].map(|c| log_likelihood(made(*y as usize, bias), c));
        taught.iter().enumerate().map(|(c, log)| log.exp() * (log - log_likelihood(x, c))).sum::<f64>()
    };
    let own = mean(LABELS.iter().map(entropy).sum(), LABELS.len());
    let generated = mean(drawn.iter().map(|y| -log_likelihood(made(*y, x[2]), *y)).sum(), drawn.len());
    own + alpha * generated + beta * mean(LABELS.iter().map(apart).sum(), LABELS.len())
}

/// The loss of one step from `x` in the third round, and its gradient.
fn step<B: Backend>(x: [f32; 3], config: FedGenRuleConfig, seed: u64, device: &B::Device) -> (f64, Vec<f32>) {
    let labels = LABELS.map(ClassId).to_vec();
    let examples = Examples::new(Inputs::F32(vec![0.0; 4]), [1, 1, 1], labels, 3).unwrap();
    let data = ClientData::all(Arc::new(examples));
    let training = training(|c| (c.epochs, c.steps, c.batch_size, c.lr) = (None, Some(1), 4, 1.0));
    let mut task = task(&vector::<B>(x, device), seed);
    task.round = RoundIndex(3);
    let sent = Table { rows: Param::from_tensor(Tensor::from_floats(ROWS, device)) };
    task.side.vectors.insert(SideInfo::<B>::GENERATOR.into(), flatten(&sent).unwrap());
    let run = LocalRun { client: ClientId(3), task: &task, data: &data, training: &training, device, memory: None };
    let trained = LocalFedGen::new(config, Tables).train(train_model(&task.global), &run).unwrap();
    let model: Point<Autodiff<B>> = trained.model;
    let gradient = x.iter().zip(model.host()).map(|(before, after)| before - after).collect();
    (trained.loss.value().unwrap(), gradient)
}

#[test]
fn losses_and_gradients_follow_the_definition() {
    let x = [0.3f32, -0.8, 0.6];
    let at: [f64; 3] = x.map(f64::from);
    let mut drawn = BTreeSet::new();
    for (alpha, beta) in [(3.0, 0.0), (0.0, 2.0), (3.0, 2.0)] {
        let config = FedGenRuleConfig { alpha, beta, decay: 0.5, generated: 1, epochs: 1 };
        // The third round, one generated example for four of the client's.
        let weights = [alpha * 0.25 / 4.0, beta * 0.25];
        for seed in 0..8 {
            for (found, slopes) in
                [step::<Flex>(x, config, seed, &FlexDevice), step::<NdArray>(x, config, seed, &NdArrayDevice::Cpu)]
            {
                // One of the classes was drawn; it is told by the loss.
                let near = |y: &usize| (loss(at, at[2], &[*y], weights) - found).abs() < 1e-5;
                let y = (0..3).find(near).unwrap_or_else(|| panic!("{alpha} {beta}: {found}"));
                if alpha > 0.0 {
                    drawn.insert(y);
                }
                let slope = |i: usize| {
                    let moved = |by: f64| {
                        let mut x = at;
                        x[i] += by;
                        loss(x, at[2], &[y], weights)
                    };
                    (moved(1e-5) - moved(-1e-5)) / 2e-5
                };
                assert_close(&slopes, &[0, 1, 2].map(slope), 1e-5);
            }
        }
    }
    assert_eq!(drawn.len(), 3, "every class is drawn");
}

#[test]
fn weights_fall_to_their_least_and_zero_stays() {
    let x = [0.3f32, -0.8, 0.6];
    let at: [f64; 3] = x.map(f64::from);
    let config = FedGenRuleConfig { alpha: 0.0, beta: 1.0, decay: 1e-9, generated: 1, epochs: 1 };
    let found = |config| step::<NdArray>(x, config, 0, &NdArrayDevice::Cpu).0;
    let expected = loss(at, at[2], &[0], [0.0, 1e-4]);
    let none = loss(at, at[2], &[0], [0.0, 0.0]);
    assert!(expected - none > 1e-5 && (found(config) - expected).abs() < 1e-6, "{}", found(config));
    assert!((found(FedGenRuleConfig { beta: 0.0, ..config }) - none).abs() < 1e-6);
}

fn zoo() -> Zoo {
    ZooConfig::TwoNn { hidden: 8 }.build([1, 1, FEATURES], CLASSES).unwrap()
}

fn generator() -> FeatureGeneratorFamily {
    FeatureGeneratorFamily::new(8, CLASSES, 5, 6).unwrap()
}

fn made<B: Kernels>() -> ParamVector<B> {
    flatten(&GeneratorFamily::<B>::init(&generator(), Seed::new(4), &B::Device::default())).unwrap()
}

/// A request to train in the second round, with a generator where it was made.
fn asked<B: Kernels>(generator: Option<ParamVector<B>>) -> TrainTask<B> {
    let mut task = task(&initial(&zoo(), 1, &B::Device::default()), 2);
    task.round = RoundIndex(2);
    task.side.vectors.extend(generator.map(|made| (SideInfo::<B>::GENERATOR.into(), made)));
    task
}

/// What a client sends that trains for four epochs by `rule`.
fn update<B: Kernels>(
    rule: RuleConfig,
    sharpness: Option<SharpnessAwareConfig>,
    task: &TrainTask<B>,
) -> ParamVector<B> {
    let settings = Arc::new(training(|c| (c.rule, c.sharpness, c.epochs, c.lr) = (rule, sharpness, Some(4), 0.1)));
    let resident = ResidentModel::new(zoo(), B::Device::default());
    let rule = settings.rule_with(generator());
    let mut client = SupervisedClient::new(ClientId(0), toy_data(14, 2).into(), settings, resident).with_rule(rule);
    client.train(task).unwrap().params
}

fn fedgen(change: impl FnOnce(&mut FedGenRuleConfig)) -> RuleConfig {
    let mut config = FedGenRuleConfig { alpha: 2.0, beta: 2.0, generated: 5, ..FedGenRuleConfig::default() };
    change(&mut config);
    RuleConfig::FedGen(config)
}

#[test]
fn without_a_generator_or_weights_or_epochs_it_is_plain_descent() {
    let (without, with) = (asked::<Flex>(None), asked::<Flex>(Some(made())));
    let plain = bits(&update(RuleConfig::Sgd, None, &without));
    assert_eq!(bits(&update(fedgen(|_| {}), None, &without)), plain);
    assert_eq!(bits(&update(fedgen(|c| (c.alpha, c.beta) = (0.0, 0.0)), None, &with)), plain);
    assert_eq!(bits(&update(fedgen(|c| c.epochs = 0), None, &with)), plain);
    let variants = [fedgen(|_| {}), fedgen(|c| c.alpha = 0.0), fedgen(|c| c.beta = 0.0), fedgen(|c| c.epochs = 3)];
    let mut found: BTreeSet<_> = variants.map(|rule| bits(&update(rule, None, &with))).into();
    assert!(found.insert(plain) && found.len() == 5, "a setting without effect");
    assert_eq!(bits(&update(fedgen(|c| c.epochs = 4), None, &with)), bits(&update(fedgen(|_| {}), None, &with)));
    let other = update::<NdArray>(fedgen(|_| {}), None, &asked(Some(made())));
    assert_close(&other.to_host(), &wide(&update(fedgen(|_| {}), None, &with).to_host()), 1e-4);
}

#[test]
fn the_head_learns_what_the_generator_makes_of_each_class() {
    fn check<B: Kernels>() {
        let (device, task) = (B::Device::default(), asked::<B>(Some(made())));
        let recognised = |rule: RuleConfig| {
            let params = update::<B>(rule, None, &task);
            let model = load(ModelFamily::<B>::init(&zoo(), Seed::new(0), &device), &params).unwrap();
            let network = load(GeneratorFamily::<B>::init(&generator(), Seed::new(0), &device), &made()).unwrap();
            let z = Tensor::<B, 1, Int>::arange(0..20 * 5 * CLASSES as i64, &device).float().sin();
            let y = Tensor::<B, 2>::eye(CLASSES, &device).repeat_dim(0, 20);
            let features = network.forward(z.reshape([20 * CLASSES, 5]), y.clone(), Mode::Evaluate);
            let scores = model.split().unwrap().head(features.flatten::<2>(1, 3));
            let share = (burn::tensor::activation::softmax(scores, 1) * y).sum() / (20 * CLASSES) as f64;
            burn::tensor::ElementConversion::elem::<f64>(share.into_scalar())
        };
        let (plain, taught) = (recognised(RuleConfig::Sgd), recognised(fedgen(|c| c.generated = 40)));
        assert!(taught > plain + 0.015, "{taught}, {plain} without the rule");
    }
    check::<Flex>();
    check::<NdArray>();
}

/// With other noise at the second point even the nearest one would be far away.
#[test]
fn both_gradients_of_a_sharpness_aware_step_see_the_same_features() {
    let task = asked::<Flex>(Some(made()));
    let sharp = update(fedgen(|_| {}), Some(SharpnessAwareConfig::Sam { rho: 1e-6 }), &task);
    assert_close(&sharp.to_host(), &wide(&update(fedgen(|_| {}), None, &task).to_host()), 1e-4);
}

#[test]
fn what_it_cannot_work_with_is_refused() {
    let settings = Arc::new(training(|c| c.rule = fedgen(|_| {})));
    let refused = |task: TrainTask<Flex>| {
        let resident = ResidentModel::new(zoo(), FlexDevice);
        let client = SupervisedClient::<Flex, _>::new(ClientId(0), toy_data(5, 1).into(), settings.clone(), resident);
        client.with_rule(settings.rule_with(generator())).train(&task).unwrap_err()
    };
    let foreign = asked(None).global;
    assert!(matches!(refused(asked(Some(foreign))), TrainError::Schema { .. }), "the vector of another network");

    let resident = ResidentModel::new(Softmax, FlexDevice);
    let client = SupervisedClient::<Flex, _>::new(ClientId(0), toy_data(5, 1).into(), settings.clone(), resident);
    let rule = settings.rule_with(generator());
    let error = client.with_rule(rule).train(&task(&softmax_initial(1), 1)).unwrap_err().to_string();
    assert!(error.contains("`fedgen`") && error.contains("features and a head"), "{error}");

    let resident = ResidentModel::new(zoo(), FlexDevice);
    let mut client = SupervisedClient::<Flex, _>::new(ClientId(0), toy_data(5, 1).into(), settings.clone(), resident);
    let error = client.train(&asked(None)).unwrap_err().to_string();
    assert!(error.contains("rule_with"), "{error}");
}
