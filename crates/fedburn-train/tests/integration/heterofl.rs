//! HeteroFL's client half: the masked loss, nets of the client's width, rows that are sent as received.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::common::quadratic::{Point, train_model, vector};
use crate::common::{bits, initial, task, training};
use burn::tensor::{Tensor, backend::Backend};
use burn_flex::{Flex, FlexDevice};
use burn_ndarray::{NdArray, NdArrayDevice};
use fedburn_core::{
    ClassId, Client, ClientId, ModelFamily, ParamVector, RoundIndex, SchemaError, Seed, Slice, TrainError,
};
use fedburn_data::{Batch, ClientData, Examples, Inputs};
use fedburn_models::{NormKind, Zoo, ZooConfig};
use fedburn_ops::Kernels;
use fedburn_train::{
    Absent, GradientRule, HeteroFlConfig, LocalTraining, LocalTrainingConfig, MaskedCrossEntropy, ResidentModel,
    RuleConfig, SupervisedClient,
};

const INPUT: [usize; 3] = [1, 8, 8];
const CLASSES: usize = 3;

fn heterofl(shares: &[f64], masked: bool) -> RuleConfig {
    RuleConfig::HeteroFl(HeteroFlConfig { shares: shares.to_vec(), masked, absent: Absent::LeftOut })
}

fn preresnet() -> Zoo {
    ZooConfig::PreResNet20 { width: 4, norm: NormKind::Batch, groups: None }.build(INPUT, CLASSES).unwrap()
}

/// Ten pictures of the first `classes` of all classes.
fn pictures(classes: u32) -> ClientData {
    let inputs = (0..10 * 64).map(|i| (i * 37 % 101) as f32 / 101.0 + (i / 64 % CLASSES) as f32 / 3.0).collect();
    let labels = (0..10).map(|i| ClassId(i % classes)).collect();
    ClientData::all(Arc::new(Examples::new(Inputs::F32(inputs), INPUT, labels, CLASSES).unwrap()))
}

/// Of four clients, with momentum and weight decay.
fn settings(rule: RuleConfig, change: impl FnOnce(&mut LocalTrainingConfig)) -> LocalTraining {
    let settings = training(|c| {
        (c.rule, c.lr, c.momentum, c.weight_decay) = (rule, 0.05, 0.9, 1e-2);
        change(c);
    });
    settings.among(4)
}

fn train<B: Kernels>(
    zoo: &Zoo,
    training: LocalTraining,
    client: u64,
    classes: u32,
    global: &ParamVector<B>,
) -> Result<ParamVector<B>, TrainError> {
    let resident = ResidentModel::new(zoo.clone(), B::Device::default());
    let (id, data) = (ClientId(client), pictures(classes).into());
    let mut client = SupervisedClient::<B, Zoo>::new(id, data, Arc::new(training), resident);
    let mut task = task(global, 1);
    task.slice = settings_part(client.info().id);
    Ok(client.train(&task)?.params)
}

/// What the server says of a client of the shares 0.5 and 1.
fn settings_part(client: ClientId) -> Vec<fedburn_core::SliceName> {
    let training = settings(heterofl(&[0.5, 1.0], true), |_| ());
    training.sub_models(&[], Seed::new(0)).unwrap().held(RoundIndex(1), client)
}

#[test]
fn absent_classes_have_a_score_of_zero() {
    fn loss<B: Backend>(device: &B::Device, present: &[bool]) -> f64 {
        let batch = Batch::<B> { inputs: Tensor::zeros([1, 1, 1, 1], device), labels: Tensor::from_ints([0], device) };
        let mut rule = MaskedCrossEntropy::new(present.to_vec());
        let found = rule.gradients(train_model(&vector::<B>([2.0, 1.0, 3.0], device)), batch);
        let _: &Point<_> = &found.model;
        found.loss.into_data().iter::<f64>().next().unwrap()
    }
    let without = -(2.0f64 - (2.0f64.exp() + 1.0f64.exp() + 3.0f64.exp()).ln());
    for (present, expected) in [([true, true, false], 0.407_605_96), ([true; 3], without)] {
        let (flex, ndarray) = (loss::<Flex>(&FlexDevice, &present), loss::<NdArray>(&NdArrayDevice::Cpu, &present));
        assert!((flex - expected).abs() < 1e-6 && (ndarray - expected).abs() < 1e-6, "{flex} {ndarray}");
    }
}

#[test]
fn groups_hold_nets_of_their_width() {
    let training = settings(heterofl(&[0.5, 1.0], true), |_| ());
    let shares: Vec<f64> = (0..4).map(|client| training.share(ClientId(client))).collect();
    assert_eq!(shares, [0.5, 0.5, 1.0, 1.0]);
    let held: Vec<_> = (0..4).map(|client| settings_part(ClientId(client))).collect();
    assert_eq!(held, [vec!["share 0.5"], vec!["share 0.5"], vec![], vec![]]);
    let parts = training.parts::<Flex, _>(&preresnet(), [1, 12, 12], &FlexDevice).unwrap();
    assert_eq!(parts.iter().map(|(name, _)| name.as_ref()).collect::<Vec<_>>(), ["share 0.5"]);
    let whole: ParamVector<Flex> = initial(&preresnet(), 1, &FlexDevice);
    assert!(Slice::new(whole.schema().clone(), parts[0].1.clone()).is_ok());
    let error = training
        .parts::<Flex, _>(&ZooConfig::LeNet5 {}.build([1, 12, 12], 3).unwrap(), [1, 12, 12], &FlexDevice)
        .unwrap_err();
    assert!(error.to_string().starts_with("`rule.heterofl.shares` is 0.5, expected a share"), "{error}");
}

#[test]
fn the_whole_net_of_all_classes_is_plain_descent_bit_for_bit() {
    fn check<B: Kernels>() {
        let (zoo, device) = (preresnet(), B::Device::default());
        let global = initial::<B, _>(&zoo, 1, &device);
        let plain = train(&zoo, settings(RuleConfig::Sgd, |_| ()), 3, CLASSES as u32, &global).unwrap();
        let found = train(&zoo, settings(heterofl(&[0.5, 1.0], true), |_| ()), 3, CLASSES as u32, &global).unwrap();
        assert_eq!(bits(&found), bits(&plain));
        let masked = train(&zoo, settings(heterofl(&[0.5, 1.0], true), |_| ()), 3, 2, &global).unwrap();
        let unmasked = train(&zoo, settings(heterofl(&[0.5, 1.0], false), |_| ()), 3, 2, &global).unwrap();
        let plain = train(&zoo, settings(RuleConfig::Sgd, |_| ()), 3, 2, &global).unwrap();
        assert_eq!(bits(&unmasked), bits(&plain));
        assert_ne!(bits(&masked), bits(&plain));
    }
    check::<Flex>();
    check::<NdArray>();
}

#[test]
fn a_client_of_half_the_width_trains_as_one_of_a_federation_of_that_width() {
    let (whole, half) = (preresnet(), ModelFamily::<Flex>::slim(&preresnet(), 0.5).unwrap());
    let rule = || settings(heterofl(&[0.5, 1.0], true), |_| ());
    let part = initial::<Flex, _>(&half, 1, &FlexDevice);
    let found = train(&whole, rule(), 0, CLASSES as u32, &part).unwrap();
    assert_eq!(found.schema(), part.schema());
    // Client 3 of another federation, whose whole net is that one.
    let expected = train(&half, settings(RuleConfig::Sgd, |_| ()), 3, CLASSES as u32, &part).unwrap();
    assert_eq!(bits(&found), bits(&expected));
    let error = train(&whole, rule(), 0, 3, &initial::<Flex, _>(&whole, 1, &FlexDevice)).unwrap_err();
    assert!(matches!(error, TrainError::Schema { source: SchemaError::Mismatch { .. }, .. }), "{error}");
}

#[test]
fn rows_of_absent_classes_do_not_count() {
    let zoo = preresnet();
    let training = settings(heterofl(&[0.5, 1.0], true), |_| ());
    let parts = training.parts::<Flex, _>(&zoo, INPUT, &FlexDevice).unwrap();
    let whole = initial::<Flex, _>(&zoo, 1, &FlexDevice).schema().clone();
    let present = BTreeMap::from([
        (ClientId(0), vec![true, false, false]),
        (ClientId(1), vec![true; 3]),
        (ClientId(2), vec![false, true, false]),
    ]);
    let base = training.sub_models(&parts, Seed::new(0)).unwrap();
    let sub_models = training.without_absent(base, &parts, &whole, &present);
    for (client, schema) in [(0, &parts[0].1), (1, &parts[0].1), (2, &whole), (3, &whole)] {
        assert_eq!(sub_models.held(RoundIndex(2), ClientId(client)), settings_part(ClientId(client)));
        let left_out: Vec<usize> =
            sub_models.uncounted(RoundIndex(2), ClientId(client)).into_iter().flatten().collect();
        let mut expected = Vec::new();
        for entry in schema.entries().iter().filter(|entry| entry.path.starts_with("head.")) {
            let absent = |class: usize| present.get(&ClientId(client)).is_some_and(|present| !present[class]);
            expected.extend(entry.range().filter(|place| absent((place - entry.offset) % CLASSES)));
        }
        assert_eq!(left_out, expected, "{client}");
    }
    let counted = |masked, absent| {
        let rule = RuleConfig::HeteroFl(HeteroFlConfig { shares: vec![1.0], masked, absent });
        settings(rule, |_| ()).goes_by_classes()
    };
    assert!(counted(true, Absent::LeftOut) && !counted(true, Absent::Counted) && !counted(false, Absent::LeftOut));
}

#[test]
fn rows_of_absent_classes_come_back_as_received() {
    let zoo = preresnet();
    let global = initial::<Flex, _>(&zoo, 1, &FlexDevice);
    let found = train(&zoo, settings(heterofl(&[0.5, 1.0], true), |_| ()), 3, 2, &global).unwrap();
    let (before, after) = (global.to_host(), found.to_host());
    for path in ["head.weight", "head.bias"] {
        for (index, place) in global.schema().entry(path).unwrap().range().enumerate() {
            assert_eq!(before[place] == after[place], index % CLASSES == 2, "{path}: {index}");
        }
    }
}
