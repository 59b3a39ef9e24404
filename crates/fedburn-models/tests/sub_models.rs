//! Nets of fewer channels and nets that are several: their tensors are parts of the whole's, their scores follow.
#![allow(clippy::unwrap_used)]

use std::ops::Range;

use burn::tensor::{Tensor, TensorData};
use burn_flex::{Flex, FlexDevice};
use fedburn_core::{
    Classifier, Mode, ModelFamily, ParamSchema, ParamVector, Seed, Size, flatten, is_below, load, schema_of,
};
use fedburn_models::{NormKind, Prediction, Zoo, ZooConfig, ZooModel};

const INPUT: [usize; 3] = [2, 9, 8];
const CLASSES: usize = 5;

fn zoo(config: &ZooConfig) -> Zoo {
    config.clone().build(INPUT, CLASSES).unwrap()
}

fn init(zoo: &Zoo) -> ZooModel<Flex> {
    zoo.init(Seed::new(3), &FlexDevice)
}

fn slim(zoo: &Zoo, share: f64) -> Option<Zoo> {
    ModelFamily::<Flex>::slim(zoo, share)
}

fn schema(zoo: &Zoo) -> ParamSchema {
    schema_of::<Flex, _>(&init(zoo)).unwrap()
}

fn images() -> Tensor<Flex, 4> {
    let [channels, height, width] = INPUT;
    let values: Vec<f32> = (0..3 * channels * height * width).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
    Tensor::from_data(TensorData::new(values, [3, channels, height, width]), &FlexDevice)
}

fn preresnet(width: usize, norm: NormKind) -> ZooConfig {
    ZooConfig::PreResNet20 { width, norm, groups: None }
}

fn host<const D: usize>(tensor: Tensor<Flex, D>) -> Vec<f32> {
    tensor.into_data().iter().collect()
}

fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 1e-4, "{found}, expected {expected}");
    }
}

#[test]
fn slim_nets_are_leading_corners_of_the_whole() {
    for config in [
        ZooConfig::TwoNn { hidden: 7 },
        ZooConfig::FedAvgCnn {},
        preresnet(6, NormKind::Batch),
        preresnet(8, NormKind::Group),
        ZooConfig::Projected { body: Box::new(preresnet(4, NormKind::Batch)), width: 3 },
    ] {
        let zoo = zoo(&config);
        let whole = schema(&zoo);
        for share in [0.25, 0.5, 1.0] {
            let Some(slim) = slim(&zoo, share) else {
                assert!(config == preresnet(8, NormKind::Group) && share < 0.25, "{config:?}, {share}");
                continue;
            };
            let part = schema(&slim);
            assert_eq!(part.entries().len(), whole.entries().len());
            for (part, whole) in part.entries().iter().zip(whole.entries()) {
                assert_eq!((&part.path, part.kind, part.shape.len()), (&whole.path, whole.kind, whole.shape.len()));
                assert!(part.shape.iter().zip(&whole.shape).all(|(part, whole)| part <= whole), "{part:?}");
            }
            assert_eq!(share == 1.0, part == whole, "{config:?}, {share}");
            let scores = init(&slim).forward(images(), Mode::Train);
            assert_eq!(scores.dims(), [3, CLASSES]);
        }
    }
}

#[test]
fn channels_are_rounded_up_layer_by_layer() {
    let third = slim(&zoo(&preresnet(8, NormKind::Batch)), 1.0 / 6.0).unwrap();
    let schema = schema(&third);
    let shape = |path: &str| schema.entry(path).unwrap().shape.clone();
    assert_eq!(shape("stem.weight"), [2, 2, 3, 3], "8 / 6");
    assert_eq!(shape("blocks.3.conv1.weight"), [3, 2, 3, 3], "16 / 6");
    assert_eq!(shape("blocks.6.conv1.weight"), [6, 3, 3, 3], "32 / 6");
    assert_eq!(shape("head.weight"), [6, CLASSES], "all classes");
}

#[test]
fn what_cannot_be_slim_says_so() {
    for (config, share) in [
        (preresnet(8, NormKind::Group), 0.1),
        (preresnet(8, NormKind::Batch), 0.0),
        (preresnet(8, NormKind::Batch), 1.5),
        (preresnet(8, NormKind::Batch), f64::NAN),
        (ZooConfig::Softmax {}, 0.5),
    ] {
        assert!(slim(&zoo(&config), share).is_none(), "{config:?}, {share}");
    }
}

#[test]
fn layers_of_slim_nets_divide_in_training_alone() {
    let whole = zoo(&ZooConfig::TwoNn { hidden: 3 });
    // Two of three units: 2 / 3 of them, where the whole net of two units has the same weights.
    let (slim, plain) = (slim(&whole, 2.0 / 3.0).unwrap(), zoo(&ZooConfig::TwoNn { hidden: 2 }));
    let (slim, plain) = (init(&slim), init(&plain));
    let params: ParamVector<Flex> = flatten(&slim).unwrap();
    let without_biases = |params: &ParamVector<Flex>| {
        let mut values = params.to_host();
        for entry in params.schema().entries().iter().filter(|entry| entry.path.ends_with("bias")) {
            values[entry.range()].fill(0.0);
        }
        ParamVector::from_host(values, params.schema().clone(), &FlexDevice).unwrap()
    };
    let params = without_biases(&params);
    let (slim, plain) = (load(slim, &params).unwrap(), load(plain, &params).unwrap());
    let scores = |model: &ZooModel<Flex>, mode| host(model.forward(images(), mode));
    assert_eq!(scores(&slim, Mode::Evaluate), scores(&plain, Mode::Evaluate));
    // Two hidden layers without biases: twice divided by 2 / 3.
    let expected: Vec<f32> = scores(&plain, Mode::Train).into_iter().map(|score| score * 2.25).collect();
    assert_close(&scores(&slim, Mode::Train), &expected);
}

fn ensembles() -> [(ZooConfig, usize); 3] {
    let norm = NormKind::Batch;
    [
        (ZooConfig::SplitMix { nets: 3, width: 2, norm, groups: None }, 3),
        (ZooConfig::DepthFl { width: 2, exits: vec![1, 4, 9], prediction: Prediction::Mean, norm, groups: None }, 3),
        (
            ZooConfig::DepthFl {
                width: 2,
                exits: vec![9],
                prediction: Prediction::Mean,
                norm: NormKind::Group,
                groups: Some(1),
            },
            1,
        ),
    ]
}

#[test]
fn every_tensor_belongs_to_one_member_and_scores_are_means() {
    for (config, count) in ensembles() {
        let model = init(&zoo(&config));
        let (ensemble, schema) = (model.ensemble().unwrap(), schema(&zoo(&config)));
        let members = ensemble.members();
        assert_eq!(members.len(), count);
        for entry in schema.entries() {
            assert_eq!(members.iter().filter(|paths| is_below(&entry.path, paths)).count(), 1, "{}", entry.path);
        }
        let all: Vec<usize> = (0..count).collect();
        let each: Vec<Vec<f32>> = ensemble.logits(&all, images(), Mode::Train).into_iter().map(host).collect();
        let mean: Vec<f32> =
            (0..3 * CLASSES).map(|i| each.iter().map(|scores| scores[i]).sum::<f32>() / count as f32).collect();
        assert_close(&host(model.forward(images(), Mode::Train)), &mean);
        for member in all {
            let alone = ensemble.logits(&[member], images(), Mode::Train).remove(0);
            assert_eq!(host(alone), each[member], "{config:?}: member {member} by itself");
        }
    }
}

#[test]
fn scores_of_a_member_depend_on_its_own_layers_and_nested_ones_before() {
    for (config, count) in ensembles() {
        let family = zoo(&config);
        let model = init(&family);
        let params: ParamVector<Flex> = flatten(&model).unwrap();
        let (members, nested) = (model.ensemble().unwrap().members(), model.ensemble().unwrap().nested());
        let scores = |model: &ZooModel<Flex>, member| {
            host(model.ensemble().unwrap().logits(&[member], images(), Mode::Train).remove(0))
        };
        for (changed, paths) in members.iter().enumerate() {
            let mut values = params.to_host();
            let own = params.schema().entries().iter().filter(|entry| is_below(&entry.path, paths));
            own.for_each(|entry| values[entry.range()].iter_mut().for_each(|value| *value = *value * 0.5 + 0.01));
            let other = ParamVector::from_host(values, params.schema().clone(), &FlexDevice).unwrap();
            let other = load(init(&family), &other).unwrap();
            for member in 0..count {
                let same = scores(&model, member) == scores(&other, member);
                assert_eq!(same, if nested { member < changed } else { member != changed }, "{changed}, {member}");
            }
        }
    }
}

#[test]
fn only_a_members_own_layers_are_no_part_of_larger_models() {
    let model = init(&zoo(&ensembles()[1].0));
    let sizes = Size::all(model.ensemble().unwrap());
    let blocks = |range: Range<usize>| range.map(|block| format!("body.blocks.{block}")).collect::<Vec<_>>();
    let stem = ["body.stem".to_owned(), "body.norm".to_owned()];
    assert_eq!(sizes[0].layers, [&stem[..], &blocks(0..1)].concat());
    assert_eq!((&sizes[1].layers, &sizes[2].layers), (&blocks(1..4), &blocks(4..9)));
    let last = ["head_norm", "projection", "head"].map(|layer| format!("body.{layer}"));
    assert_eq!(sizes[1].paths, [&stem[..], &blocks(0..4), &["exits.1".to_owned()]].concat());
    assert_eq!(sizes[2].paths, [&stem[..], &blocks(0..9), &last].concat());
}

#[test]
fn the_last_classifier_can_predict_alone() {
    let config = |prediction| ZooConfig::DepthFl {
        width: 2,
        exits: vec![2, 9],
        prediction,
        norm: NormKind::Batch,
        groups: None,
    };
    let [mean, last] = [Prediction::Mean, Prediction::Last].map(|prediction| init(&zoo(&config(prediction))));
    let alone = last.ensemble().unwrap().logits(&[1], images(), Mode::Train).remove(0);
    assert_eq!(host(last.forward(images(), Mode::Train)), host(alone));
    assert_ne!(host(last.forward(images(), Mode::Train)), host(mean.forward(images(), Mode::Train)));
}

#[test]
fn members_of_a_mix_are_nets_of_that_width() {
    let mix = zoo(&ZooConfig::SplitMix { nets: 2, width: 3, norm: NormKind::Batch, groups: None });
    let (mix, net) = (schema(&mix), schema(&zoo(&preresnet(3, NormKind::Batch))));
    for entry in net.entries() {
        for member in 0..2 {
            assert_eq!(mix.entry(&format!("nets.{member}.{}", entry.path)).unwrap().shape, entry.shape);
        }
    }
    assert_eq!(mix.num_values(), 2 * net.num_values());
}

#[test]
fn impossible_ensembles_are_refused() {
    let refused = |config: ZooConfig| config.build(INPUT, CLASSES).unwrap_err().to_string();
    let depth = |exits: &[usize]| ZooConfig::DepthFl {
        width: 2,
        exits: exits.to_vec(),
        prediction: Prediction::Mean,
        norm: NormKind::Batch,
        groups: None,
    };
    for exits in [&[][..], &[0, 9], &[3, 3, 9], &[3, 6], &[9, 10]] {
        let found = refused(depth(exits));
        assert!(found.starts_with(&format!("model `depth_fl`: exits is {exits:?}, expected ascending")), "{found}");
    }
    let mix = ZooConfig::SplitMix { nets: 0, width: 2, norm: NormKind::Batch, groups: None };
    assert_eq!(refused(mix), "model `split_mix`: nets is 0, expected 1 to 1024");
}
