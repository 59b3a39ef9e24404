//! The sub-models of the suite `fedepth` fit the budgets that its clients have for training in parts.
#![allow(clippy::unwrap_used)]

use burn_flex::{Flex, FlexDevice};
use fedburn_core::{Classifier, ModelFamily, Seed, Stages, schema_of};
use fedburn_models::{NormKind, Prediction, Zoo, ZooConfig, ZooModel};
use fedburn_train::{LocalTraining, LocalTrainingConfig, StepMemory};

/// Fashion-MNIST at half its resolution.
const INPUT: [usize; 3] = [1, 14, 14];
/// Shares of what a step of the whole model takes, by group of clients: `fair.toml`.
const BUDGETS: [f64; 4] = [0.43, 0.56, 0.69, 1.0];

fn training() -> LocalTraining {
    LocalTrainingConfig { momentum: 0.9, ..LocalTrainingConfig::sgd(1, 32, 0.05) }.build().unwrap()
}

fn net(width: usize) -> Zoo {
    ZooConfig::PreResNet20 { width, norm: NormKind::Batch, groups: None }.build(INPUT, 10).unwrap()
}

fn init(zoo: &Zoo) -> ZooModel<Flex> {
    zoo.init(Seed::new(0), &FlexDevice)
}

/// What a step takes that trains these parts of `model`, and no others are there, as a share of what one of the whole net
/// takes.
fn share(model: &ZooModel<Flex>, stages: &Stages) -> f64 {
    let (training, whole) = (training(), init(&net(8)));
    let bytes = |model: &ZooModel<Flex>, stages: &Stages| {
        let schema = schema_of::<Flex, _>(model).unwrap();
        StepMemory::new(stages, &schema, training.inputs(INPUT), &training, 4).whole().0 as f64
    };
    bytes(model, stages) / bytes(&whole, &whole.staged().unwrap().stages(training.inputs(INPUT)))
}

/// Of a whole net.
fn share_of(zoo: &Zoo) -> f64 {
    let model = init(zoo);
    share(&model, &model.staged().unwrap().stages(training().inputs(INPUT)))
}

#[test]
fn slim_nets_fit_and_wider_ones_do_not() {
    for (slim, budget) in [3.0, 4.0, 5.0, 8.0].into_iter().zip(BUDGETS) {
        let of = |eighths: f64| share_of(&ModelFamily::<Flex>::slim(&net(8), eighths / 8.0).unwrap());
        assert!(of(slim) <= budget, "{slim}: {} of {budget}", of(slim));
        assert!(slim == 8.0 || of(slim + 1.0) > budget, "{slim}: {} of {budget}", of(slim + 1.0));
    }
}

#[test]
fn narrow_nets_are_as_many_as_there_is_width_for() {
    let one = share_of(&net(2));
    for (nets, budget) in [1.0, 2.0, 2.0, 4.0].into_iter().zip(BUDGETS) {
        assert!(one <= budget && (budget * 4.0).floor() == nets, "{nets}: {one} of {budget}");
    }
}

#[test]
fn shallow_nets_fit_and_deeper_ones_do_not() {
    let (width, exits, norm) = (8, vec![1, 2, 3, 9], NormKind::Batch);
    let config = ZooConfig::DepthFl { width, exits, prediction: Prediction::Mean, norm, groups: None };
    let model = init(&config.build(INPUT, 10).unwrap());
    let ZooModel::DepthFl(depths) = &model else { panic!("asked for a net with several classifiers") };
    let of = |classifiers| share(&model, &depths.stages(classifiers, training().inputs(INPUT)));
    for (classifiers, budget) in [1, 2, 3].into_iter().zip(BUDGETS) {
        let (found, more) = (of(classifiers), of(classifiers + 1));
        assert!(found <= budget && more > budget, "{classifiers}: {found}, one more {more}, of {budget}");
    }
    assert!((1.0..1.1).contains(&of(4)), "all classifiers take more than the last alone: {}", of(4));
}
