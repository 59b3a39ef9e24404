//! Rules for ensembles, SplitMix and DepthFL: members train as nets of their own would, and alone.

use std::sync::Arc;

use crate::common::{bits, initial, task, training};
use burn_flex::{Flex, FlexDevice};
use fedburn_core::{
    ClassId, Client, ClientId, LocalUpdate, ParamVector, RoundIndex, Seed, SideInfo, Slice, SliceName, TrainError,
};
use fedburn_data::{ClientData, Examples, Inputs};
use fedburn_models::{NormKind, Prediction, Zoo, ZooConfig};
use fedburn_train::{
    DepthFlConfig, FedDynRuleConfig, InclusiveFlRuleConfig, LocalTraining, NamedPart, ResidentModel, RuleConfig,
    SplitMixConfig, SupervisedClient,
};

const INPUT: [usize; 3] = [1, 8, 8];
const CLASSES: usize = 3;
const NORM: NormKind = NormKind::Batch;

fn zoo(config: ZooConfig) -> Zoo {
    config.build(INPUT, CLASSES).unwrap()
}

fn net() -> Zoo {
    zoo(ZooConfig::PreResNet20 { width: 2, norm: NORM, groups: None })
}

fn mix(nets: usize) -> Zoo {
    zoo(ZooConfig::SplitMix { nets, width: 2, norm: NORM, groups: None })
}

fn exits(exits: &[usize]) -> Zoo {
    zoo(ZooConfig::DepthFl { width: 2, exits: exits.to_vec(), prediction: Prediction::Mean, norm: NORM, groups: None })
}

fn split_mix(nets: &[usize]) -> RuleConfig {
    RuleConfig::SplitMix(SplitMixConfig { nets: nets.to_vec() })
}

fn depth_fl(classifiers: &[usize]) -> RuleConfig {
    RuleConfig::DepthFl(DepthFlConfig { classifiers: classifiers.to_vec(), ramp: 1, distillation: true, feddyn: None })
}

fn pictures() -> ClientData {
    let inputs = (0..10 * 64).map(|i| (i * 37 % 101) as f32 / 101.0 + (i / 64 % CLASSES) as f32 / 3.0).collect();
    let labels = (0..10).map(|i| ClassId(i % CLASSES as u32)).collect();
    ClientData::all(Arc::new(Examples::new(Inputs::F32(inputs), INPUT, labels, CLASSES).unwrap()))
}

/// Of two clients, with momentum and weight decay.
fn settings(rule: RuleConfig) -> LocalTraining {
    training(|c| (c.rule, c.lr, c.momentum, c.weight_decay) = (rule, 0.05, 0.9, 1e-2)).among(2)
}

fn global(zoo: &Zoo) -> ParamVector<Flex> {
    initial(zoo, 1, &FlexDevice)
}

fn train(
    zoo: &Zoo,
    rule: RuleConfig,
    global: &ParamVector<Flex>,
    slice: &[SliceName],
) -> Result<ParamVector<Flex>, TrainError> {
    Ok(train_all(zoo, rule, global, slice)?.params)
}

fn train_all(
    zoo: &Zoo,
    rule: RuleConfig,
    global: &ParamVector<Flex>,
    slice: &[SliceName],
) -> Result<LocalUpdate<Flex>, TrainError> {
    let resident = ResidentModel::new(zoo.clone(), FlexDevice);
    let training = Arc::new(settings(rule));
    let mut client = SupervisedClient::<Flex, Zoo>::new(ClientId(0), pictures().into(), training, resident);
    let mut task = task(global, 1);
    task.slice = slice.to_vec();
    client.train(&task)
}

fn parts(zoo: &Zoo, rule: RuleConfig) -> Vec<NamedPart> {
    settings(rule).parts::<Flex, _>(zoo, INPUT, &FlexDevice).unwrap()
}

/// What client 0 holds in round 1.
fn held(parts: &[NamedPart], rule: RuleConfig) -> Vec<SliceName> {
    settings(rule).sub_models(parts, Seed::new(7)).unwrap().held(RoundIndex(1), ClientId(0))
}

/// `values` as parameters of `zoo`.
fn as_model(zoo: &Zoo, values: &ParamVector<Flex>) -> ParamVector<Flex> {
    ParamVector::from_host(values.to_host(), global(zoo).schema().clone(), &FlexDevice).unwrap()
}

#[test]
fn an_ensemble_of_one_is_plain_descent_bit_for_bit() {
    for (zoo, rule) in [(mix(1), split_mix(&[1])), (exits(&[9]), depth_fl(&[1]))] {
        let expected = train(&net(), RuleConfig::Sgd, &as_model(&net(), &global(&zoo)), &[]).unwrap();
        assert_eq!(bits(&train(&zoo, rule, &global(&zoo), &[]).unwrap()), bits(&expected));
    }
}

#[test]
fn a_held_net_trains_as_if_it_were_alone() {
    let (zoo, rule) = (mix(3), split_mix(&[1, 3]));
    let parts = parts(&zoo, rule.clone());
    let names = held(&parts, rule.clone());
    assert_eq!((parts.len(), names.len()), (3, 1));
    let (_, schema) = parts.iter().find(|(name, _)| *name == names[0]).unwrap();
    let slice = Slice::new(global(&zoo).schema().clone(), schema.clone()).unwrap();
    let part = slice.take(&global(&zoo)).unwrap();
    let found = train(&zoo, rule, &part, &names).unwrap();
    let expected = train(&net(), RuleConfig::Sgd, &as_model(&net(), &part), &[]).unwrap();
    assert_eq!(found.schema(), schema);
    assert_eq!(bits(&found), bits(&expected));
}

#[test]
fn nets_of_a_mix_train_one_after_another_each_with_batches_of_its_own() {
    let zoo = mix(2);
    let (before, after) = (global(&zoo), train(&zoo, split_mix(&[2]), &global(&zoo), &[]).unwrap());
    let first = parts(&zoo, split_mix(&[2])).remove(0);
    let slice = Slice::new(before.schema().clone(), first.1).unwrap();
    let alone = train(&zoo, split_mix(&[1]), &slice.take(&before).unwrap(), &[first.0]).unwrap();
    assert_eq!(bits(&slice.take(&after).unwrap()), bits(&alone), "the first as if there were no second");
    let rest = slice.put(&slice.take(&before).unwrap(), &after).unwrap();
    assert_ne!(bits(&rest), bits(&before), "the second too");
}

#[test]
fn a_shallow_client_trains_its_stages_and_classifiers() {
    let (zoo, rule) = (exits(&[1, 4, 9]), depth_fl(&[2, 3]));
    let parts = parts(&zoo, rule.clone());
    let names = held(&parts, rule.clone());
    assert_eq!(names, ["member 0", "member 1"]);
    let holds = |path: &str| ["body.stem.", "body.norm.", "exits.0.", "exits.1."].iter().any(|p| path.starts_with(p));
    let block = |path: &str| (0..4).any(|block| path.starts_with(&format!("body.blocks.{block}.")));
    let whole = global(&zoo);
    let schemas = parts.iter().take(2).flat_map(|(_, schema)| schema.entries());
    let held: Vec<&str> = schemas.map(|entry| &*entry.path).collect();
    for entry in whole.schema().entries() {
        let path = &*entry.path;
        assert_eq!(held.contains(&path), holds(path) || block(path), "{path}");
    }
    let schemas = parts
        .into_iter()
        .try_fold(fedburn_core::Schemas::from(whole.schema().clone()), |all, (name, part)| all.with_slice(name, part));
    let slice = schemas.unwrap().slice(&names).unwrap().unwrap();
    let part = slice.take(&whole).unwrap();
    let found = train(&zoo, rule, &part, &names).unwrap();
    let (before, after) = (part.to_host(), found.to_host());
    for entry in found.schema().entries() {
        assert_ne!(before[entry.range()], after[entry.range()], "{}", entry.path);
    }
}

/// DepthFL with FedDyn's terms, of that `alpha`.
fn with_feddyn(classifiers: &[usize], alpha: f64) -> RuleConfig {
    let (classifiers, feddyn) = (classifiers.to_vec(), Some(FedDynRuleConfig { alpha }));
    RuleConfig::DepthFl(DepthFlConfig { classifiers, ramp: 1, distillation: true, feddyn })
}

#[test]
fn one_classifier_with_feddyns_terms_is_feddyn_bit_for_bit() {
    let (zoo, alone) = (exits(&[9]), RuleConfig::FedDyn(FedDynRuleConfig { alpha: 0.1 }));
    let expected = train(&net(), alone, &as_model(&net(), &global(&zoo)), &[]).unwrap();
    assert_eq!(bits(&train(&zoo, with_feddyn(&[1], 0.1), &global(&zoo), &[]).unwrap()), bits(&expected));
}

#[test]
fn a_shallow_client_keeps_the_dynamic_of_what_it_holds() {
    const ALPHA: f64 = 0.5;
    const LR: f64 = 0.05;
    let zoo = exits(&[1, 4, 9]);
    let parts = parts(&zoo, depth_fl(&[1, 3]));
    let names = held(&parts, depth_fl(&[1, 3]));
    let slice = Slice::new(global(&zoo).schema().clone(), parts[0].1.clone()).unwrap();
    let mut task = task(&slice.take(&global(&zoo)).unwrap(), 1);
    task.slice = names;
    let client = |rule| {
        let one_step = training(|c| (c.rule, c.lr, c.epochs, c.steps, c.batch_size) = (rule, LR, None, Some(1), 10));
        let resident = ResidentModel::new(zoo.clone(), FlexDevice);
        SupervisedClient::<Flex, Zoo>::new(ClientId(0), pictures().into(), Arc::new(one_step.among(2)), resident)
    };
    let plain = client(depth_fl(&[1, 3])).train(&task).unwrap().params;
    let mut client = client(with_feddyn(&[1, 3], ALPHA));
    // The pull is nothing at `x_t`, and there is no dynamic yet.
    assert_eq!(bits(&client.train(&task).unwrap().params), bits(&plain));
    let dynamic = client.state().take_params::<Flex>("dynamic", plain.schema(), &FlexDevice).unwrap();
    let moved = plain.minus(&task.global).unwrap();
    for (dynamic, moved) in dynamic.to_host().iter().zip(moved.to_host()) {
        assert!((f64::from(*dynamic) + ALPHA * f64::from(moved)).abs() < 1e-6, "{dynamic} after {moved}");
    }
    assert!(dynamic.to_host().iter().any(|value| value.abs() > 1e-4), "something was learnt");
    // From there again: x - lr (gradient - g).
    let again = client.train(&task).unwrap().params;
    for ((again, plain), dynamic) in again.to_host().iter().zip(plain.to_host()).zip(dynamic.to_host()) {
        let expected = f64::from(plain) + LR * f64::from(dynamic);
        assert!((f64::from(*again) - expected).abs() < 1e-5, "{again}, expected {expected}");
    }
}

#[test]
fn a_client_of_a_size_trains_its_model_alone_and_says_which() {
    let zoo = exits(&[1, 4, 9]);
    let rule = |sizes: &[usize]| RuleConfig::InclusiveFl(InclusiveFlRuleConfig { sizes: sizes.to_vec() });
    let parts = parts(&zoo, rule(&[2]));
    let names = held(&parts, rule(&[2]));
    assert_eq!((parts.len(), names.as_slice()), (3, &["size 1".into()][..]));
    let schema = parts[1].1.clone();
    assert!(schema.entry("exits.1.head.weight").is_some() && schema.entry("body.blocks.3.conv1.weight").is_some());
    assert!(schema.entry("exits.0.head.weight").is_none() && schema.entry("body.head.weight").is_none());
    let part = Slice::new(global(&zoo).schema().clone(), schema).unwrap().take(&global(&zoo)).unwrap();
    let update = train_all(&zoo, rule(&[2]), &part, &names).unwrap();
    assert_eq!(update.side.scalars[SideInfo::<Flex>::SIZE], 1.0);
    let (before, after) = (part.to_host(), update.params.to_host());
    for entry in part.schema().entries() {
        assert_ne!(before[entry.range()], after[entry.range()], "{}", entry.path);
    }
    // With one classifier there is nothing to tell it from DepthFL.
    let one = exits(&[9]);
    let alone = train_all(&one, rule(&[1]), &global(&one), &["size 0".into()]).unwrap();
    assert_eq!(bits(&alone.params), bits(&train(&one, depth_fl(&[1]), &global(&one), &[]).unwrap()));
}

#[test]
fn other_models_are_refused() {
    for (zoo, rule, kind) in [
        (net(), split_mix(&[1]), "split_mix"),
        (exits(&[3, 9]), split_mix(&[1]), "split_mix"),
        (mix(2), depth_fl(&[1]), "depth_fl"),
    ] {
        let error = train(&zoo, rule.clone(), &global(&zoo), &[]).unwrap_err().to_string();
        assert!(error.contains(&format!("the rule `{kind}` trains")), "{error}");
        let error = settings(rule).parts::<Flex, _>(&zoo, INPUT, &FlexDevice).unwrap_err().to_string();
        assert!(error.starts_with(&format!("`rule` is {kind}, expected another rule")), "{error}");
    }
}
