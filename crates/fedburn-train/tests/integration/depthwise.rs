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
    ClassId, Classifier, Client, ClientId, LocalUpdate, Mode, ModelFamily, ParamVector, Population, Seed, StateDict,
    TrainError, flat_gradients, load, load_to_train, schema_of,
};
use fedburn_data::{ClientData, Examples, Inputs};
use fedburn_models::{NormKind, Zoo, ZooConfig, ZooModel};
use fedburn_ops::Kernels;
use fedburn_train::{
    Bytes, ClientList, Cut, DepthwiseConfig, LocalTraining, LocalTrainingConfig, MemoryConfig, ResidentModel,
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
    RuleConfig::Depthwise(DepthwiseConfig { memory, mutual })
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
    let (stages, schema) = (model.staged().unwrap().stages(INPUT), schema_of::<Flex, _>(&model).unwrap());
    StepMemory::new(&stages, &schema, training, 4)
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
            let logits = staged.logits(hidden, Mode::Train);
            let loss = CrossEntropyLoss::new(None, &device).forward(logits, Tensor::from_inner(batch.labels));
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            let gradient: Vec<f32> = flat_gradients::<B, _>(&model, &gradients).into_data().iter().collect();
            let stages = staged.stages(INPUT);
            let mut values = params.to_host();
            for entry in params.schema().entries() {
                let in_block = part.blocks.clone().any(|block| stages.blocks[block].holds(&entry.path));
                if in_block || stages.head.holds(&entry.path) || part.stem && stages.stem.holds(&entry.path) {
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
        for budget in [memory.needed_from(0), Bytes(memory.whole().0 * 2 / 3)] {
            let cut = memory.cut(budget).unwrap();
            assert!(cut.parts.len() > 1, "{cut:?}");
            let found = train::<Flex>(&zoo, &settings(of(budget), |_| {})).unwrap().params.to_host();
            let expected: Vec<f64> = reference::<Flex>(&zoo, &plain, &cut).into_iter().map(f64::from).collect();
            assert_close(&found, &expected, 1e-4);
        }
    }
}

#[test]
fn what_no_part_trains_keeps_its_bits() {
    // A batch so large that the first blocks do not fit where the last ones do.
    let zoo = preresnet(NormKind::Batch);
    let plain = settings(RuleConfig::Sgd, |c| c.batch_size = 64);
    let model: ZooModel<Flex> = zoo.init(Seed::new(1), &FlexDevice);
    let (stages, memory) = (model.staged().unwrap().stages(INPUT), memory(&zoo, &plain));
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
    let shares = vec![0.5, 1.0];
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
