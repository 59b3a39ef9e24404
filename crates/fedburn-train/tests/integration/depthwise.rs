//! Training part by part: against an independent loop that freezes nothing, at its limits, and with a second model.

use std::sync::Arc;

use crate::common::reference::assert_close;
use crate::common::{Softmax, bits, initial, softmax_initial, task, toy_data, training};
use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::nn::loss::CrossEntropyLoss;
use burn::optim::GradientsParams;
use burn::tensor::activation::softmax;
use burn::tensor::{Tensor, backend::Backend};
use burn_flex::{Flex, FlexDevice};
use burn_ndarray::NdArray;
use fedburn_core::{
    ClassId, Classifier, Client, ClientId, LocalUpdate, Mode, ModelFamily, ParamVector, Population, RoundIndex, Seed,
    Slice, StateDict, TrainError, flat_gradients, load, load_to_train,
};
use fedburn_data::{ClientData, Examples, Inputs};
use fedburn_models::{NormKind, Zoo, ZooConfig, ZooModel};
use fedburn_ops::Kernels;
use fedburn_train::{
    Bytes, ClientList, Cut, DepthwiseConfig, Heads, LocalTraining, LocalTrainingConfig, MemoryConfig, ResidentModel,
    RuleConfig, SharpnessAwareConfig, StepMemory, SupervisedClient, SupervisedPopulation,
};

const INPUT: [usize; 3] = [1, 8, 8];
const CLASSES: usize = 3;

fn preresnet(norm: NormKind) -> Zoo {
    ZooConfig::PreResNet20 { width: 4, norm, groups: None }.build(INPUT, CLASSES).unwrap()
}

fn vit() -> Zoo {
    ZooConfig::Vit { patch: 4, width: 8, depth: 4, heads: 2 }.build(INPUT, CLASSES).unwrap()
}

fn pictures() -> ClientData {
    let inputs = (0..10 * 64).map(|i| (i * 37 % 101) as f32 / 101.0 + (i / 64 % CLASSES) as f32 / 3.0).collect();
    let labels = (0..10).map(|i| ClassId(i % CLASSES as u32)).collect();
    ClientData::all(Arc::new(Examples::new(Inputs::F32(inputs), INPUT, labels, CLASSES).unwrap()))
}

/// Two epochs in batches of five with momentum and weight decay.
fn settings(rule: RuleConfig, change: impl FnOnce(&mut LocalTrainingConfig)) -> LocalTraining {
    training(|c| {
        (c.rule, c.lr, c.momentum, c.weight_decay) = (rule, 0.05, 0.9, 1e-2);
        change(c);
    })
}

fn depthwise(memory: MemoryConfig, mutual: Option<f64>) -> RuleConfig {
    RuleConfig::Depthwise(DepthwiseConfig { mutual, ..DepthwiseConfig::new(memory) })
}

fn of(budget: Bytes) -> RuleConfig {
    depthwise(MemoryConfig::Same(budget), None)
}

fn client<B: Kernels>(zoo: &Zoo, training: &LocalTraining) -> SupervisedClient<B, Zoo> {
    let resident = ResidentModel::new(zoo.clone(), B::Device::default());
    SupervisedClient::new(ClientId(0), pictures().into(), Arc::new(training.clone()), resident)
}

fn train<B: Kernels>(zoo: &Zoo, training: &LocalTraining) -> Result<LocalUpdate<B>, TrainError> {
    client::<B>(zoo, training).train(&task(&global(zoo), 1))
}

fn global<B: Kernels>(zoo: &Zoo) -> ParamVector<B> {
    initial(zoo, 1, &B::Device::default())
}

fn memory(zoo: &Zoo, training: &LocalTraining) -> StepMemory {
    let model: ZooModel<Flex> = zoo.init(Seed::new(1), &FlexDevice);
    StepMemory::of::<Flex, _>(&model, INPUT, training).unwrap().unwrap()
}

/// Steps of SGD as PyTorch has it on flat vectors. The whole model is differentiated; of the gradient the part's own
/// tensors are used.
fn reference<B: Kernels>(zoo: &Zoo, training: &LocalTraining, cut: &Cut) -> Vec<f32> {
    let device = B::Device::default();
    let mut params = global::<B>(zoo);
    let (config, data) = (training.config(), pictures());
    for (index, part) in cut.parts.iter().enumerate() {
        let mut velocity = vec![0.0f32; params.num_values()];
        for batch in training.batches::<B>(&data, Seed::new(1).index(index as u64), &device) {
            let model = ZooModel::<Autodiff<B>>::from_inner(ModelFamily::<B>::init(zoo, Seed::new(0), &device));
            let model = load_to_train(model, &params).unwrap();
            let staged = model.staged().unwrap();
            let through = cut.route.iter().filter(|block| **block < part.blocks.end);
            let hidden = through.fold(staged.stem(Tensor::from_inner(batch.inputs), Mode::Train), |hidden, block| {
                staged.block(*block, hidden, Mode::Train)
            });
            let logits = match part.exit {
                Some(block) => staged.exit(block, hidden, Mode::Train).unwrap(),
                None => staged.logits(hidden, Mode::Train),
            };
            let loss = CrossEntropyLoss::new(None, &device).forward(logits, Tensor::from_inner(batch.labels));
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            let gradient: Vec<f32> = flat_gradients::<B, _>(&model, &gradients).into_data().iter().collect();
            let stages = staged.stages(training.inputs(INPUT));
            let mut values = params.to_host();
            for entry in params.schema().entries() {
                let in_block = part.blocks.clone().any(|block| stages.blocks[block].holds(&entry.path));
                let head = part.exit.map_or(&stages.head, |block| &stages.exits[block]);
                if in_block || head.holds(&entry.path) || part.stem && stages.stem.holds(&entry.path) {
                    for i in entry.range() {
                        let slope = gradient[i] + config.weight_decay as f32 * values[i];
                        velocity[i] = config.momentum as f32 * velocity[i] + slope;
                        values[i] -= config.lr as f32 * velocity[i];
                    }
                }
            }
            params = ParamVector::from_host(values, params.schema().clone(), &device).unwrap();
        }
    }
    params.to_host()
}

#[test]
fn memory_for_everything_is_plain_descent_bit_for_bit() {
    fn check<B: Kernels>() {
        for zoo in [preresnet(NormKind::Batch), preresnet(NormKind::Group), vit()] {
            let plain = train::<B>(&zoo, &settings(RuleConfig::Sgd, |_| {})).unwrap();
            let whole = memory(&zoo, &settings(RuleConfig::Sgd, |_| {})).whole();
            let update = train::<B>(&zoo, &settings(of(whole), |_| {})).unwrap();
            assert_eq!(bits(&update.params), bits(&plain.params), "{zoo:?}");
            assert_eq!(update.metrics, plain.metrics);
            let less = train::<B>(&zoo, &settings(of(Bytes(whole.0 - 1)), |_| {})).unwrap();
            assert_ne!(bits(&less.params), bits(&plain.params), "{zoo:?}");
        }
    }
    check::<Flex>();
    check::<NdArray>();
}

#[test]
fn each_part_takes_the_steps_of_a_loop_that_freezes_nothing() {
    for zoo in [preresnet(NormKind::Batch), preresnet(NormKind::Group), vit()] {
        let plain = settings(RuleConfig::Sgd, |_| {});
        let memory = memory(&zoo, &plain);
        let least = memory.needed_from(0);
        for budget in [least, Bytes((least.0 + memory.whole().0) / 2)] {
            let cut = memory.cut(budget).unwrap();
            assert!(cut.parts.len() > 1, "{cut:?}");
            let found = train::<Flex>(&zoo, &settings(of(budget), |_| {})).unwrap().params.to_host();
            let expected: Vec<f64> = reference::<Flex>(&zoo, &plain, &cut).into_iter().map(f64::from).collect();
            assert_close(&found, &expected, 1e-4);
        }
    }
}

fn with_exits(body: ZooConfig) -> Zoo {
    ZooConfig::WithExits { body: Box::new(body) }.build(INPUT, CLASSES).unwrap()
}

fn nets_with_exits() -> [Zoo; 2] {
    [
        with_exits(ZooConfig::PreResNet20 { width: 4, norm: NormKind::Batch, groups: None }),
        with_exits(ZooConfig::Vit { patch: 4, width: 8, depth: 4, heads: 2 }),
    ]
}

fn own_heads(memory: MemoryConfig, trained_only: bool) -> RuleConfig {
    RuleConfig::Depthwise(DepthwiseConfig { heads: Heads::Own, trained_only, ..DepthwiseConfig::new(memory) })
}

#[test]
fn parts_are_trained_with_heads_of_their_own_and_the_whole_with_the_models() {
    for zoo in nets_with_exits() {
        let own = |budget| settings(own_heads(MemoryConfig::Same(budget), false), |_| {});
        let memory = memory(&zoo, &own(Bytes(1)));
        let least = memory.needed_from(0);
        for budget in [least, Bytes((least.0 + memory.whole().0) / 2)] {
            let cut = memory.cut(budget).unwrap();
            assert!(cut.parts.len() > 1 && cut.parts.iter().all(|part| part.exit.is_some()), "{cut:?}");
            let found = train::<Flex>(&zoo, &own(budget)).unwrap().params.to_host();
            let expected: Vec<f64> = reference::<Flex>(&zoo, &own(budget), &cut).into_iter().map(f64::from).collect();
            assert_close(&found, &expected, 1e-4);
        }
        let plain = train::<Flex>(&zoo, &settings(RuleConfig::Sgd, |_| {})).unwrap();
        assert_eq!(bits(&train::<Flex>(&zoo, &own(memory.whole())).unwrap().params), bits(&plain.params));
    }
    let error = train::<Flex>(&vit(), &settings(own_heads(MemoryConfig::Same(Bytes(1 << 40)), false), |_| {}));
    assert!(error.unwrap_err().to_string().contains("with_exits"));
}

#[test]
fn clients_hold_what_they_train_and_what_inputs_go_through() {
    for zoo in nets_with_exits() {
        let shares = MemoryConfig::Shares(vec![0.9, 1.0]);
        let of = |trained_only| settings(own_heads(shares.clone(), trained_only), |_| {}).among(2);
        assert!(of(false).sub_models(&[], Seed::new(1)).is_none());
        let training = of(true);
        let parts = training.parts::<Flex, _>(&zoo, INPUT, &FlexDevice).unwrap();
        let sub_models = training.sub_models(&parts, Seed::new(1)).unwrap();
        let held = |client| sub_models.held(RoundIndex(1), ClientId(client));
        assert_eq!((held(0), held(1)), (vec!["memory 0".into()], vec!["memory 1".into()]));
        let exits =
            |part: usize| parts[part].1.entries().iter().filter(|entry| entry.path.starts_with("exits")).count();
        assert!(exits(0) > 0 && exits(1) == 0, "memory for the whole trains the model's head alone");

        let (model, memory): (ZooModel<Flex>, _) = (zoo.init(Seed::new(1), &FlexDevice), memory(&zoo, &training));
        let stages = model.staged().unwrap().stages(training.inputs(INPUT));
        let cut = memory.cut(Bytes((0.9 * memory.whole().0 as f64) as u64)).unwrap();
        let exits: Vec<usize> = cut.parts.iter().filter_map(|part| part.exit).collect();
        let whole = global::<Flex>(&zoo);
        for entry in whole.schema().entries() {
            let other = stages.head.holds(&entry.path)
                || (0..stages.exits.len()).any(|i| stages.exits[i].holds(&entry.path) && !exits.contains(&i));
            let there = parts[0].1.entries().iter().any(|held| held.path == entry.path);
            assert_eq!(there, !other, "{}", entry.path);
        }

        // A client that is sent its part trains it as one that is sent the whole does.
        let slice = Slice::new(whole.schema().clone(), parts[0].1.clone()).unwrap();
        let mut asked = task(&slice.take(&whole).unwrap(), 1);
        asked.slice = held(0);
        let part = client::<Flex>(&zoo, &training).train(&asked).unwrap().params;
        let all = client::<Flex>(&zoo, &of(false)).train(&task(&whole, 1)).unwrap().params;
        assert_eq!(bits(&part), bits(&slice.take(&all).unwrap()));
    }
}

#[test]
fn a_client_of_a_later_group_counts_more() {
    let of = |resource_weight, trained_only| {
        let memory = MemoryConfig::Shares(vec![0.9, 0.5, 1.0, 2.0]);
        let config = DepthwiseConfig { resource_weight, trained_only, ..DepthwiseConfig::new(memory) };
        settings(RuleConfig::Depthwise(config), |_| {}).among(8)
    };
    let times = |training: LocalTraining| {
        let sub_models = training.sub_models(&[], Seed::new(1)).unwrap();
        assert!((0..8).all(|client| sub_models.held(RoundIndex(3), ClientId(client)).is_empty()));
        (0..8).map(|client| sub_models.times(RoundIndex(3), ClientId(client)).get()).collect::<Vec<u64>>()
    };
    assert_eq!(times(of(true, false)), [1, 1, 2, 2, 3, 3, 4, 4]);
    assert_eq!(times(of(true, true)), [1, 1, 2, 2, 3, 3, 4, 4]);
    assert_eq!(times(of(false, true)), [1; 8]);
    let plain = of(true, false);
    assert!(plain.parts::<Flex, _>(&preresnet(NormKind::Batch), INPUT, &FlexDevice).unwrap().is_empty());
}

#[test]
fn blocks_that_inputs_go_past_are_not_held() {
    let zoo = preresnet(NormKind::Batch);
    let rule = |memory| RuleConfig::Depthwise(DepthwiseConfig { trained_only: true, ..DepthwiseConfig::new(memory) });
    let large = |c: &mut LocalTrainingConfig| c.batch_size = 64;
    let budget = memory(&zoo, &settings(RuleConfig::Sgd, large)).needed_from(3);
    let training = settings(rule(MemoryConfig::Same(budget)), large);
    let parts = training.parts::<Flex, _>(&zoo, INPUT, &FlexDevice).unwrap();
    let left_out = |path: &str| ["blocks.0", "blocks.1", "blocks.2"].iter().any(|block| path.starts_with(block));
    let (whole, held) = (global::<Flex>(&zoo), &parts[0].1);
    assert!(held.entries().iter().all(|entry| !left_out(&entry.path)));
    let blocks = whole.schema().entries().iter().filter(|entry| left_out(&entry.path)).count();
    assert_eq!(held.entries().len() + blocks, whole.schema().entries().len());
    let all = settings(rule(MemoryConfig::Same(Bytes(1 << 40))), large);
    assert!(all.parts::<Flex, _>(&zoo, INPUT, &FlexDevice).unwrap().is_empty());
}

#[test]
fn what_no_part_trains_keeps_its_bits() {
    // A batch so large that the first blocks do not fit where the last ones do.
    let zoo = preresnet(NormKind::Batch);
    let plain = settings(RuleConfig::Sgd, |c| c.batch_size = 64);
    let model: ZooModel<Flex> = zoo.init(Seed::new(1), &FlexDevice);
    let (stages, memory) = (model.staged().unwrap().stages(plain.inputs(INPUT)), memory(&zoo, &plain));
    for (first, stem) in [(3, true), (6, false)] {
        let budget = memory.needed_from(first);
        let cut = memory.cut(budget).unwrap();
        assert_eq!((cut.parts[0].blocks.start, cut.parts[0].stem), (first, stem));
        let update = train::<Flex>(&zoo, &settings(of(budget), |c| c.batch_size = 64)).unwrap().params;
        let (before, after) = (global::<Flex>(&zoo).to_host(), update.to_host());
        for entry in update.schema().entries() {
            let untrained = stages.blocks[..first].iter().any(|stage| stage.holds(&entry.path));
            let frozen = untrained || (!stem && stages.stem.holds(&entry.path));
            let same = before[entry.range()].iter().zip(&after[entry.range()]).all(|(a, b)| a.to_bits() == b.to_bits());
            assert_eq!(same, frozen, "first {first}: {}", entry.path);
        }
    }
}

#[test]
fn sharpness_aware_steps_go_with_parts() {
    let zoo = preresnet(NormKind::Group);
    let sharp = |rho: f64, rule| settings(rule, |c| c.sharpness = Some(SharpnessAwareConfig::Sam { rho }));
    let budget = memory(&zoo, &sharp(0.0, RuleConfig::Sgd)).needed_from(0);
    let [none, some] = [0.0, 0.5].map(|rho| bits(&train::<Flex>(&zoo, &sharp(rho, of(budget))).unwrap().params));
    let plain = memory(&zoo, &settings(RuleConfig::Sgd, |_| {})).needed_from(0);
    assert!(plain < budget, "what a step goes back to is counted");
    assert_ne!(none, some);
}

#[test]
fn clients_without_memory_or_blocks_say_so() {
    let zoo = preresnet(NormKind::Batch);
    let error = train::<Flex>(&zoo, &settings(of(Bytes(1024)), |_| {})).unwrap_err();
    let smallest = memory(&zoo, &settings(RuleConfig::Sgd, |_| {})).cut(Bytes(1024)).unwrap_err().smallest;
    let message = error.to_string();
    assert!(matches!(error, TrainError::Unusable { client: ClientId(0), .. }));
    assert!(message.contains("insufficient memory: 1.00 KiB") && message.contains(&smallest.to_string()), "{message}");

    let rule = settings(of(Bytes(1 << 40)), |_| {});
    let resident = ResidentModel::new(Softmax, FlexDevice);
    let mut client = SupervisedClient::<Flex, _>::new(ClientId(0), toy_data(5, 1).into(), Arc::new(rule), resident);
    let error = client.train(&task(&softmax_initial(1), 1)).unwrap_err().to_string();
    assert!(error.contains("`depthwise`") && error.contains("not made of blocks"), "{error}");
}

#[test]
fn groups_of_a_population_have_budgets_of_their_own() {
    let zoo = preresnet(NormKind::Batch);
    let shares = vec![0.8, 1.0];
    let rule = settings(depthwise(MemoryConfig::Shares(shares.clone()), None), |_| {});
    let list: ClientList = (0..4).map(|_| pictures()).collect();
    let population = SupervisedPopulation::<Flex, _>::new(Arc::new(list), zoo.clone(), rule, FlexDevice);
    let mut worker = population.worker();
    let whole = memory(&zoo, &settings(RuleConfig::Sgd, |_| {})).whole();
    for id in 0..4 {
        let update = worker.client(ClientId(id)).unwrap().train(&task(&global(&zoo), 1)).unwrap();
        let budget = Bytes((shares[id as usize / 2] * whole.0 as f64) as u64);
        let alone = train::<Flex>(&zoo, &settings(of(budget), |_| {})).unwrap();
        assert_eq!(bits(&update.params), bits(&alone.params), "client {id}");
    }
}

#[test]
fn memory_for_two_models_teaches_each_the_other() {
    let zoo = vit();
    let whole = memory(&zoo, &settings(RuleConfig::Sgd, |_| {})).whole();
    let both = |bytes, mutual| settings(depthwise(MemoryConfig::Same(Bytes(bytes)), mutual), |_| {});
    let (enough, too_little) = (both(2 * whole.0, Some(1.0)), both(2 * whole.0 - 1, Some(1.0)));
    let plain = train::<Flex>(&zoo, &settings(RuleConfig::Sgd, |_| {})).unwrap();
    for alone in [too_little, both(2 * whole.0, None)] {
        assert_eq!(bits(&train::<Flex>(&zoo, &alone).unwrap().params), bits(&plain.params));
    }

    // Two equal models have nothing to teach each other, and stay equal.
    let mut first = client::<Flex>(&zoo, &enough);
    assert!(first.state().is_empty());
    let update = first.train(&task(&global(&zoo), 1)).unwrap();
    assert_close(&update.params.to_host(), &wide(&plain.params), 1e-5);
    let mut state = first.state();
    let own: ParamVector<Flex> = state.clone().take_params("own", update.params.schema(), &FlexDevice).unwrap();
    assert_close(&own.to_host(), &wide(&update.params), 1e-5);

    // One step from another own model, against the gradient of the divergence by its definition.
    let once = |c: &mut LocalTrainingConfig| {
        (c.epochs, c.batch_size, c.momentum, c.weight_decay) = (Some(1), 10, 0.0, 0.0);
    };
    let (received, other): (_, ParamVector<Flex>) = (global::<Flex>(&zoo), initial(&zoo, 2, &FlexDevice));
    let mut kept = StateDict::new();
    kept.insert_params("own", &other);
    let lessons = settings(depthwise(MemoryConfig::Same(Bytes(1 << 40)), Some(3.0)), once);
    let mut second = client::<Flex>(&zoo, &lessons);
    second.restore(kept).unwrap();
    let sent = second.train(&task(&received, 1)).unwrap().params;
    let kept: ParamVector<Flex> = second.state().take_params("own", sent.schema(), &FlexDevice).unwrap();
    assert_close(&sent.to_host(), &taught(&zoo, &lessons, [&received, &other], 3.0), 1e-6);
    assert_close(&kept.to_host(), &taught(&zoo, &lessons, [&other, &received], 3.0), 1e-6);

    state.insert_params("more", &own);
    assert!(client::<Flex>(&zoo, &enough).restore(state).is_err());
}

fn wide<B: Backend>(params: &ParamVector<B>) -> Vec<f64> {
    params.to_host().into_iter().map(f64::from).collect()
}

/// The first of two models after a step on all examples, where the second is its teacher: the divergence's gradient at
/// the logits is `softmax(student) - softmax(teacher)`.
fn taught(zoo: &Zoo, training: &LocalTraining, models: [&ParamVector<Flex>; 2], weight: f64) -> Vec<f64> {
    let (data, config) = (pictures(), training.config());
    let batch = training.batches::<Flex>(&data, Seed::new(1).index(0), &FlexDevice).next().unwrap();
    let fresh = || ModelFamily::<Flex>::init(zoo, Seed::new(0), &FlexDevice);
    let teacher = load(fresh(), models[1]).unwrap().forward(batch.inputs.clone(), Mode::Train);
    let student = load_to_train(ZooModel::<Autodiff<Flex>>::from_inner(fresh()), models[0]).unwrap();
    let logits = student.forward(Tensor::from_inner(batch.inputs), Mode::Train);
    let slope = softmax(logits.clone().inner(), 1) - softmax(teacher, 1);
    let entropy = CrossEntropyLoss::new(None, &FlexDevice).forward(logits.clone(), Tensor::from_inner(batch.labels));
    let loss = entropy + (logits * Tensor::from_inner(slope)).sum().mul_scalar(weight / 10.0);
    let gradients = GradientsParams::from_grads(loss.backward(), &student);
    let gradient = flat_gradients::<Flex, _>(&student, &gradients).into_data();
    wide(models[0]).into_iter().zip(gradient.iter::<f64>()).map(|(value, slope)| value - config.lr * slope).collect()
}
