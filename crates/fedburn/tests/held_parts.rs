//! What the server makes of updates whose clients hold what they trained: local rule, parts, coordinator and strategy
//! together, against numbers by hand.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use burn_flex::{Flex, FlexDevice};
use fedburn::core::{
    ClientId, ClientInfo, ClientReport, LocalUpdate, Metrics, ModelFamily, Outcome, ParamVector, Purpose, Reply,
    Request, RoundIndex, Schemas, Seed, SideInfo, SliceName, SubModels, TrainTask, Weighting, schema_of,
};
use fedburn::models::{NormKind, Prediction, Zoo, ZooConfig};
use fedburn::runtime::{Coordinator, Effect, Input, SamplerConfig};
use fedburn::strategies::{FedAvgConfig, FedDynConfig, StrategyConfig};
use fedburn::train::{
    Absent, DepthFlConfig, DepthwiseConfig, FedDynRuleConfig, Heads, HeteroFlConfig, LocalTraining,
    LocalTrainingConfig, MemoryConfig, NamedPart, RuleConfig, SplitMixConfig,
};

const INPUT: [usize; 3] = [1, 8, 8];
const CLASSES: usize = 3;

/// What the model was before the round, everywhere.
const BEFORE: f32 = 7.0;

/// Two clients, A with one example and B with three.
const CLIENTS: [ClientInfo; 2] =
    [ClientInfo { id: ClientId(0), num_examples: 1 }, ClientInfo { id: ClientId(1), num_examples: 3 }];

/// A federation of the two, the rule and the model of a config.
struct Federation {
    parts: Vec<NamedPart>,
    sub_models: Option<Arc<dyn SubModels>>,
    coordinator: Coordinator<Flex>,
}

impl Federation {
    fn new(rule: RuleConfig, zoo: &Zoo) -> Self {
        Self::of(rule, zoo, StrategyConfig::FedAvg(FedAvgConfig::default()), None)
    }

    /// Where the rule goes by classes, with the `present` ones of A and B.
    fn of(rule: RuleConfig, zoo: &Zoo, strategy: StrategyConfig, present: Option<[Vec<bool>; 2]>) -> Self {
        let training: LocalTraining =
            LocalTrainingConfig { rule, ..LocalTrainingConfig::sgd(1, 4, 0.1) }.build().unwrap().among(2);
        let parts = training.parts::<Flex, _>(zoo, INPUT, &FlexDevice).unwrap();
        let seed = Seed::new(1);
        let sub_models = training.sub_models(&parts, seed.purpose(Purpose::Sampling));
        let model = Arc::new(schema_of::<Flex, _>(&ModelFamily::<Flex>::init(zoo, seed, &FlexDevice)).unwrap());
        let sub_models = match (sub_models, present) {
            (Some(sub_models), Some(present)) if training.goes_by_classes() => {
                let present: BTreeMap<_, _> = (0..).map(ClientId).zip(present).collect();
                Some(training.without_absent(sub_models, &parts, &model, &present))
            }
            (sub_models, _) => sub_models,
        };
        let named = parts.iter().cloned();
        let schemas = named.fold(Schemas::from(model.clone()), |all, (name, part)| all.with_slice(name, part).unwrap());
        let before = vec![BEFORE; model.num_values()];
        let global = ParamVector::from_host(before, model, &FlexDevice).unwrap();
        let strategy = strategy.build::<Flex>().unwrap();
        let sampler = SamplerConfig::All {}.build(&CLIENTS).unwrap();
        let coordinator = Coordinator::new(strategy, sampler, global, seed, 1);
        let coordinator = match &sub_models {
            Some(sub_models) => coordinator.with_sub_models(schemas, sub_models.clone()),
            None => coordinator,
        };
        Self { parts, sub_models, coordinator }
    }

    fn held(&self, client: u64) -> Vec<SliceName> {
        self.sub_models.as_ref().map(|all| all.held(RoundIndex(1), ClientId(client))).unwrap_or_default()
    }

    /// Whether a client holds the tensor at `path`.
    fn holds(&self, client: u64, path: &str) -> bool {
        let names = self.held(client);
        let named = |(name, part): &&NamedPart| names.contains(name) && part.entry(path).is_some();
        names.is_empty() || self.parts.iter().any(|part| named(&part))
    }

    /// A round in which A and B make these values of all that they were sent.
    fn train(&mut self, values: [f32; 2]) {
        let before = self.coordinator.finished();
        let effects = self.coordinator.step(Input::Begin(&CLIENTS), Duration::ZERO).unwrap();
        let sent: Vec<(ClientId, TrainTask<Flex>)> = effects
            .into_iter()
            .filter_map(|effect| match effect {
                Effect::Send(client, Request::Train(task)) => Some((client, task)),
                _ => None,
            })
            .collect();
        assert_eq!(sent.len(), 2);
        for ((client, task), value) in sent.into_iter().zip(values) {
            let params = task.global.with_values(task.global.values().clone() * 0.0 + value).unwrap();
            let (side, report, metrics) = (SideInfo::default(), ClientReport::default(), Metrics::new());
            let num_examples = CLIENTS[client.0 as usize].num_examples;
            let update = LocalUpdate { params, num_examples, side, report, metrics };
            let answer = Outcome { client, reply: Ok(Reply::Trained(update)) };
            self.coordinator.step(Input::Outcome(answer), Duration::ZERO).unwrap();
        }
        assert_eq!(self.coordinator.finished(), before.next());
    }

    /// The model after a round, where each tensor has one value everywhere.
    fn round(&mut self, values: [f32; 2]) -> Vec<(String, f32)> {
        self.train(values);
        let (schema, after) = (self.coordinator.global().schema(), self.coordinator.global().to_host());
        let one = |range: std::ops::Range<usize>| {
            assert!(after[range.clone()].iter().all(|value| *value == after[range.start]));
            after[range.start]
        };
        schema.entries().iter().map(|entry| (entry.path.clone(), one(entry.range()))).collect()
    }
}

fn preresnet() -> ZooConfig {
    ZooConfig::PreResNet20 { width: 4, norm: NormKind::Batch, groups: None }
}

/// A's memory is enough for parts, B's for the whole.
fn depthwise(trained_only: bool, resource_weight: bool) -> RuleConfig {
    let memory = MemoryConfig::Shares(vec![0.9, 1.0]);
    let config = DepthwiseConfig { heads: Heads::Own, trained_only, resource_weight, ..DepthwiseConfig::new(memory) };
    RuleConfig::Depthwise(config)
}

#[test]
fn a_head_is_the_mean_over_those_who_trained_it() {
    let zoo = ZooConfig::WithExits { body: Box::new(preresnet()) }.build(INPUT, CLASSES).unwrap();
    // A, of one example, makes 2 of what it trains; B, of three, has 0 there and does not train classifiers of blocks.
    let mut federation = Federation::new(depthwise(true, false), &zoo);
    let mut found = [0; 4];
    for (path, value) in federation.round([2.0, 0.0]) {
        let (which, expected) = match (federation.holds(0, &path), federation.holds(1, &path)) {
            (true, false) => (0, 2.0),
            (true, true) => (1, 0.5),
            (false, true) => (2, 0.0),
            (false, false) => (3, BEFORE),
        };
        found[which] += 1;
        assert_eq!(value, expected, "{path}");
        assert_eq!(path.starts_with("exits"), which % 3 == 0, "{path}: classifiers of blocks are A's or nobody's");
    }
    assert!(found.iter().all(|count| *count > 0), "trained by A, both, B, nobody: {found:?}");

    // Whole models: what B did not train pulls all the same.
    let all = Federation::new(depthwise(false, false), &zoo).round([2.0, 0.0]);
    assert!(all.iter().all(|(_, value)| *value == 0.5), "{all:?}");
    // B, of the second group, counts twice: (1 * 2 + 3 * 2 * 0) / 7.
    let weighted = Federation::new(depthwise(false, true), &zoo).round([2.0, 0.0]);
    assert!(weighted.iter().all(|(_, value)| *value == 2.0 / 7.0), "{weighted:?}");
    let mut both = Federation::new(depthwise(true, true), &zoo);
    for (path, value) in both.round([2.0, 0.0]) {
        match (both.holds(0, &path), both.holds(1, &path)) {
            (true, true) => assert_eq!(value, 2.0 / 7.0, "{path}"),
            (true, false) => assert_eq!(value, 2.0, "{path}"),
            (_, true) => assert_eq!(value, 0.0, "{path}"),
            (false, false) => assert_eq!(value, BEFORE, "{path}"),
        }
    }
}

#[test]
fn a_base_net_is_the_mean_over_those_who_trained_it_by_their_examples() {
    let zoo = ZooConfig::SplitMix { nets: 3, width: 2, norm: NormKind::Batch, groups: None };
    let rule = RuleConfig::SplitMix(SplitMixConfig { nets: vec![2, 2] });
    let mut federation = Federation::new(rule, &zoo.build(INPUT, CLASSES).unwrap());
    assert_ne!(federation.held(0), federation.held(1));
    let mut found = [0; 3];
    for (path, value) in federation.round([2.0, 6.0]) {
        let (which, expected) = match (federation.holds(0, &path), federation.holds(1, &path)) {
            (true, true) => (0, 5.0),
            (true, false) => (1, 2.0),
            (false, true) => (2, 6.0),
            (false, false) => panic!("{path}: two of three nets each leave none out here"),
        };
        found[which] += 1;
        assert_eq!(value, expected, "{path}");
    }
    assert!(found.iter().all(|count| *count > 0), "trained by both, A, B: {found:?}");
}

#[test]
fn feddyns_drift_is_of_those_who_hold_a_value() {
    let exits = vec![1, 2, 9];
    let zoo = ZooConfig::DepthFl { width: 2, exits, prediction: Prediction::Mean, norm: NormKind::Batch, groups: None };
    let feddyn = Some(FedDynRuleConfig { alpha: 0.1 });
    let rule = DepthFlConfig { classifiers: vec![1, 2], ramp: 1, distillation: true, feddyn };
    let strategy = StrategyConfig::FedDyn(FedDynConfig { alpha: 0.1 });
    let zoo = zoo.build(INPUT, CLASSES).unwrap();
    let mut federation = Federation::of(RuleConfig::DepthFl(rule), &zoo, strategy, None);
    // The drift is the sum of what holders moved, and half of it, the share of one of two clients, joins the mean:
    // 1 + (-5 - 7) / 2 with both, 0 - 7 / 2 with B alone; then, from there, 2 + (-12 + (2 - -5) 2) / 2 and
    // 2 + (-7 + 2 - -3.5) / 2.
    for (values, expected) in [([2.0, 0.0], [-5.0, -3.5, BEFORE]), ([2.0, 2.0], [3.0, 1.25, BEFORE])] {
        let mut found = [0; 3];
        for (path, value) in federation.round(values) {
            let which = match (federation.holds(0, &path), federation.holds(1, &path)) {
                (true, true) => 0,
                (false, true) => 1,
                (false, false) => 2,
                (true, false) => panic!("{path} is A's alone"),
            };
            found[which] += 1;
            assert_eq!(value, expected[which], "{path}");
        }
        assert!(found.iter().all(|count| *count > 0), "of both, of B, of nobody: {found:?}");
    }
}

#[test]
fn a_classs_row_is_the_mean_over_those_who_have_the_class() {
    let zoo = ZooConfig::TwoNn { hidden: 4 }.build(INPUT, 4).unwrap();
    let after = |absent| {
        let rule = RuleConfig::HeteroFl(HeteroFlConfig { shares: vec![0.5, 1.0], masked: true, absent });
        let uniform = StrategyConfig::FedAvg(FedAvgConfig { weighting: Weighting::Uniform, ..FedAvgConfig::default() });
        let present = [vec![true, true, false, false], vec![false, true, true, false]];
        let mut federation = Federation::of(rule, &zoo, uniform, Some(present));
        federation.train([10.0, 20.0]);
        federation.coordinator.global().clone()
    };
    let model = after(Absent::LeftOut);
    // B alone has the last two of the inputs of the classifier.
    let weights: Vec<f32> = model.tensor::<2>("head.weight").unwrap().into_data().iter().collect();
    let (both, alone) = ([10., 15., 20., BEFORE], [BEFORE, 20., 20., BEFORE]);
    assert_eq!(weights, [both, both, alone, alone].concat());
    let bias: Vec<f32> = model.tensor::<1>("head.bias").unwrap().into_data().iter().collect();
    assert_eq!(bias, both);
    let hidden: Vec<f32> = model.tensor::<1>("hidden2.bias").unwrap().into_data().iter().collect();
    assert_eq!(hidden, [15., 15., 20., 20.]);
    let counted: Vec<f32> = after(Absent::Counted).tensor::<1>("head.bias").unwrap().into_data().iter().collect();
    assert_eq!(counted, [15.0; 4]);
}
