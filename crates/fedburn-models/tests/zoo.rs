//! Every architecture of the zoo: size, shape, initial weights, gradients, both modes, both CPU backends.
#![allow(clippy::unwrap_used)]

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::{GradientsParams, Optimizer, SgdConfig};
use burn::tensor::backend::Backend;
use burn::tensor::{ElementConversion, Int, Tensor, TensorData};
use burn_flex::{Flex, FlexDevice};
use burn_ndarray::{NdArray, NdArrayDevice};
use fedburn_core::{Classifier, Mode, ModelFamily, ParamKind, ParamVector, Seed, flatten, load, schema_of};
use fedburn_models::{NormKind, Prediction, Zoo, ZooConfig, ZooModel};
use fedburn_ops::Kernels;

type Train = Autodiff<Flex>;

const CLASSES: usize = 5;

fn resnet(depth: usize, norm: NormKind) -> ZooConfig {
    ZooConfig::ResNet { depth, norm, groups: None }
}

fn preresnet(width: usize, norm: NormKind) -> ZooConfig {
    ZooConfig::PreResNet20 { width, norm, groups: None }
}

fn vit([patch, width, depth, heads]: [usize; 4]) -> ZooConfig {
    ZooConfig::Vit { patch, width, depth, heads }
}

fn split_mix(nets: usize, width: usize) -> ZooConfig {
    ZooConfig::SplitMix { nets, width, norm: NormKind::Batch, groups: None }
}

fn depth_fl(width: usize, exits: &[usize]) -> ZooConfig {
    ZooConfig::DepthFl {
        width,
        exits: exits.to_vec(),
        prediction: Prediction::Mean,
        norm: NormKind::Batch,
        groups: None,
    }
}

fn projected(body: ZooConfig, width: usize) -> ZooConfig {
    ZooConfig::Projected { body: Box::new(body), width }
}

/// Every architecture at the smallest size that tests it.
fn small() -> Vec<(Zoo, [usize; 3])> {
    let cases = [
        (ZooConfig::Softmax {}, [2, 3, 4]),
        (ZooConfig::TwoNn { hidden: 16 }, [1, 5, 4]),
        (ZooConfig::LeNet5 {}, [1, 12, 13]),
        (ZooConfig::FedAvgCnn {}, [2, 4, 5]),
        (resnet(8, NormKind::Group), [3, 6, 5]),
        (resnet(8, NormKind::Batch), [3, 6, 5]),
        (preresnet(2, NormKind::Group), [3, 6, 5]),
        (preresnet(2, NormKind::Batch), [3, 6, 5]),
        (split_mix(2, 2), [3, 6, 5]),
        (depth_fl(2, &[2, 9]), [3, 6, 5]),
        (vit([2, 8, 3, 2]), [3, 6, 4]),
        (ZooConfig::CharLstm { hidden: 12 }, [1, 1, 6]),
        (projected(ZooConfig::TwoNn { hidden: 16 }, 7), [1, 5, 4]),
    ];
    cases.map(|(config, input)| (config.build(input, CLASSES).unwrap(), input)).into()
}

/// Inputs that suit images and token sequences alike, and labels.
fn batch<B: Backend>(zoo: &Zoo, [c, h, w]: [usize; 3], device: &B::Device) -> (Tensor<B, 4>, Tensor<B, 1, Int>) {
    let batch = 6;
    let value = |i: usize| match zoo {
        Zoo::CharLstm(_) => (i * 7 % 11 % CLASSES) as f32,
        _ => ((i * 37 % 101) as f32 / 50.0 - 1.0) * if i.is_multiple_of(3) { -1.0 } else { 1.0 },
    };
    let inputs: Vec<f32> = (0..batch * c * h * w).map(value).collect();
    let labels: Vec<i32> = (0..batch).map(|i| (i % CLASSES) as i32).collect();
    let inputs = Tensor::from_data(TensorData::new(inputs, [batch, c, h, w]), device);
    (inputs, Tensor::from_data(TensorData::new(labels, [batch]), device))
}

fn init<B: Kernels>(zoo: &Zoo, seed: u64) -> ZooModel<B> {
    ModelFamily::<B>::init(zoo, Seed::new(seed), &B::Device::default())
}

fn train_model(zoo: &Zoo, seed: u64) -> ZooModel<Train> {
    ZooModel::from_inner(init::<Flex>(zoo, seed))
}

fn bits<B: Backend>(params: &ParamVector<B>) -> Vec<u32> {
    params.to_host().iter().map(|v| v.to_bits()).collect()
}

fn model_bits<B: Kernels>(model: &ZooModel<B>) -> Vec<u32> {
    bits(&flatten::<B, _>(model).unwrap())
}

fn running_statistics(model: &ZooModel<Flex>) -> Vec<u32> {
    let params = flatten(model).unwrap();
    let host = params.to_host();
    let buffers = params.schema().entries().iter().filter(|e| e.kind == ParamKind::Buffer);
    buffers.flat_map(|e| host[e.range()].iter().map(|v| v.to_bits())).collect()
}

fn loss(model: &ZooModel<Train>, inputs: Tensor<Train, 4>, labels: Tensor<Train, 1, Int>) -> Tensor<Train, 1> {
    CrossEntropyLossConfig::new().init(&FlexDevice).forward(model.forward(inputs, Mode::Train), labels)
}

#[test]
fn parameter_counts_are_those_of_the_literature() {
    let cases = [
        (ZooConfig::Softmax {}, [1, 28, 28], 10, 7_850),
        (ZooConfig::TwoNn { hidden: 200 }, [1, 28, 28], 10, 199_210),
        (ZooConfig::LeNet5 {}, [1, 28, 28], 10, 61_706),
        (ZooConfig::LeNet5 {}, [1, 32, 32], 10, 61_706),
        (ZooConfig::LeNet5 {}, [3, 32, 32], 10, 62_006),
        (ZooConfig::FedAvgCnn {}, [1, 28, 28], 10, 1_663_370),
        (resnet(8, NormKind::Group), [3, 32, 32], 10, 78_042),
        (resnet(20, NormKind::Group), [3, 32, 32], 10, 272_474),
        (resnet(20, NormKind::Batch), [3, 32, 32], 10, 272_474),
        (resnet(32, NormKind::Group), [3, 32, 32], 10, 466_906),
        (resnet(56, NormKind::Group), [3, 32, 32], 10, 855_770),
        (ZooConfig::ResNet18 { groups: 2 }, [3, 32, 32], 10, 11_173_962),
        (preresnet(16, NormKind::Batch), [3, 32, 32], 10, 272_314),
        (preresnet(16, NormKind::Group), [3, 32, 32], 10, 272_314),
        (split_mix(2, 16), [3, 32, 32], 10, 2 * 272_314),
        (depth_fl(16, &[3, 6, 9]), [3, 32, 32], 10, 272_314 + (16 * 64 + 128 + 650) + (32 * 64 + 128 + 650)),
        (vit([16, 192, 12, 3]), [3, 224, 224], 1000, 5_717_416),
        (ZooConfig::CharLstm { hidden: 256 }, [1, 1, 80], 80, 819_920),
        (projected(ZooConfig::LeNet5 {}, 256), [1, 28, 28], 10, 61_706 - 850 + 85 * 84 + 85 * 256 + 257 * 10),
    ];
    for (config, input, classes, expected) in cases {
        let model = init::<Flex>(&config.clone().build(input, classes).unwrap(), 0);
        assert_eq!(schema_of::<Flex, _>(&model).unwrap().num_weights(), expected, "{config:?}");
    }
    let with_statistics = init::<Flex>(&resnet(20, NormKind::Batch).build([3, 32, 32], 10).unwrap(), 0);
    assert_eq!(schema_of::<Flex, _>(&with_statistics).unwrap().num_values(), 272_474 + 2 * 784);
}

#[test]
fn parameter_paths_are_readable() {
    let paths = |config: ZooConfig, input| {
        let schema = schema_of::<Flex, _>(&init::<Flex>(&config.build(input, 3).unwrap(), 0)).unwrap();
        schema.entries().iter().map(|e| e.path.clone()).collect::<Vec<_>>()
    };
    assert_eq!(
        paths(ZooConfig::TwoNn { hidden: 4 }, [1, 2, 2]),
        ["hidden1.weight", "hidden1.bias", "hidden2.weight", "hidden2.bias", "head.weight", "head.bias"]
    );
    assert_eq!(
        paths(ZooConfig::CharLstm { hidden: 4 }, [1, 1, 2])[..5],
        ["embedding.weight", "lstm.0.weight_ih", "lstm.0.weight_hh", "lstm.0.bias_ih", "lstm.0.bias_hh"]
    );
    assert_eq!(
        paths(projected(ZooConfig::TwoNn { hidden: 4 }, 2), [1, 2, 2])[4..],
        ["projection.hidden", "projection.output", "head"]
            .iter()
            .flat_map(|layer| ["weight", "bias"].map(|tensor| format!("{layer}.{tensor}")))
            .collect::<Vec<_>>()
    );
    let resnet = paths(resnet(8, NormKind::Batch), [1, 4, 4]);
    assert_eq!(resnet[..2], ["stem.weight", "norm.gamma"]);
    for path in ["blocks.0.conv1.weight", "blocks.2.norm2.beta", "blocks.1.shortcut.norm.running_mean", "head.bias"] {
        assert!(resnet.iter().any(|p| p == path), "{path} is not among {resnet:?}");
    }
}

#[test]
fn logits_have_a_row_an_example_and_a_column_a_class() {
    for (zoo, input) in small() {
        let (inputs, _) = batch::<Flex>(&zoo, input, &FlexDevice);
        assert_eq!(init::<Flex>(&zoo, 0).forward(inputs, Mode::Evaluate).dims(), [6, CLASSES], "{zoo:?}");
    }
    let zoo = ZooConfig::ResNet18 { groups: 2 }.build([1, 8, 8], 7).unwrap();
    let logits = init::<Flex>(&zoo, 0).forward(Tensor::ones([2, 1, 8, 8], &FlexDevice), Mode::Evaluate);
    assert_eq!(logits.dims(), [2, 7]);
    assert!(logits.into_data().iter::<f32>().all(f32::is_finite));
}

#[test]
fn a_model_is_its_features_and_its_head() {
    let batch_norm = (projected(resnet(8, NormKind::Batch), 3).build([3, 6, 5], CLASSES).unwrap(), [3, 6, 5]);
    for (zoo, input) in small().into_iter().chain([batch_norm]) {
        for mode in [Mode::Train, Mode::Evaluate] {
            let (model, (inputs, _)) = (init::<Flex>(&zoo, 1), batch::<Flex>(&zoo, input, &FlexDevice));
            let Some(parts) = model.split() else {
                let no_features = matches!(zoo, Zoo::Softmax(_) | Zoo::SplitMix(_) | Zoo::DepthFl(_));
                assert_eq!((zoo.features(), no_features), (None, true), "{zoo:?}");
                continue;
            };
            let features = parts.features(inputs.clone(), mode);
            assert_eq!(Some(features.dims()[1]), zoo.features(), "{zoo:?}");
            let whole = init::<Flex>(&zoo, 1).forward(inputs, mode).into_data();
            assert_eq!(parts.head(features).into_data(), whole, "{zoo:?}, {mode:?}");
        }
    }
}

#[test]
fn flattening_and_loading_keeps_every_bit() {
    for (zoo, _) in small() {
        let params = flatten(&init::<Flex>(&zoo, 1)).unwrap();
        let loaded = load(init::<Flex>(&zoo, 2), &params).unwrap();
        assert_eq!(model_bits(&loaded), bits(&params), "{zoo:?}");
    }
}

#[test]
fn initial_weights_depend_on_the_seed_alone() {
    for (zoo, _) in small() {
        Flex::seed(&FlexDevice, 1);
        let first = model_bits(&init::<Flex>(&zoo, 1));
        Flex::seed(&FlexDevice, 2);
        assert_eq!(model_bits(&init::<Flex>(&zoo, 1)), first, "{zoo:?}: burn's generator was asked");
        assert_eq!(model_bits(&init::<NdArray>(&zoo, 1)), first, "{zoo:?}: backends differ");
        assert_ne!(model_bits(&init::<Flex>(&zoo, 2)), first, "{zoo:?}: the seed is ignored");
        let threads = std::thread::scope(|scope| {
            let threads = [(); 2].map(|()| scope.spawn(|| model_bits(&init::<Flex>(&zoo, 1))));
            threads.map(|thread| thread.join().unwrap())
        });
        assert_eq!(threads, [first.clone(), first], "{zoo:?}: threads differ");
    }
}

#[test]
fn backends_agree_on_the_forward_pass() {
    for (zoo, input) in small() {
        for mode in [Mode::Train, Mode::Evaluate] {
            let flex = init::<Flex>(&zoo, 1).forward(batch::<Flex>(&zoo, input, &FlexDevice).0, mode);
            let device = NdArrayDevice::default();
            let ndarray = init::<NdArray>(&zoo, 1).forward(batch::<NdArray>(&zoo, input, &device).0, mode);
            for (a, b) in flex.into_data().iter::<f32>().zip(ndarray.into_data().iter::<f32>()) {
                assert!((a - b).abs() <= 1e-4 * (1.0 + b.abs()), "{zoo:?}, {mode:?}: {a} and {b}");
            }
        }
    }
}

#[test]
fn every_weight_has_a_gradient() {
    for (zoo, input) in small() {
        let model = train_model(&zoo, 1);
        let (inputs, labels) = batch::<Train>(&zoo, input, &FlexDevice);
        let gradients = GradientsParams::from_grads(loss(&model, inputs, labels).backward(), &model);
        let schema = schema_of::<Flex, _>(&model.valid()).unwrap();
        let weights = schema.entries().iter().filter(|e| e.kind == ParamKind::Weight).count();
        assert_eq!(gradients.len(), weights, "{zoo:?}");
    }
}

#[test]
fn a_training_step_reduces_the_loss_and_moves_every_layer() {
    for (zoo, input) in small() {
        let model = train_model(&zoo, 1);
        let before = flatten(&model.valid()).unwrap();
        let (inputs, labels) = batch::<Train>(&zoo, input, &FlexDevice);
        let first = loss(&model, inputs.clone(), labels.clone());
        let gradients = GradientsParams::from_grads(first.backward(), &model);
        let model = SgdConfig::new().init::<Train, ZooModel<Train>>().step(0.02, model, gradients);
        let second = loss(&model, inputs, labels);
        let [first, second] = [first, second].map(|l| l.into_scalar().elem::<f32>());
        assert!(second < first, "{zoo:?}: the loss went from {first} to {second}");

        let (before, after) = (before.to_host(), flatten(&model.valid()).unwrap());
        for entry in after.schema().entries().iter().filter(|e| e.path.ends_with("weight")) {
            assert_ne!(after.to_host()[entry.range()], before[entry.range()], "{zoo:?}: {} stood still", entry.path);
        }
    }
}

#[test]
fn modes_matter_to_batch_norm_alone() {
    for (zoo, input) in small() {
        let model = train_model(&zoo, 1);
        let has_statistics = !running_statistics(&model.valid()).is_empty();
        let (inputs, _) = batch::<Train>(&zoo, input, &FlexDevice);
        let [train, evaluate] =
            [Mode::Train, Mode::Evaluate].map(|mode| model.forward(inputs.clone(), mode).into_data());
        assert_eq!(train != evaluate, has_statistics, "{zoo:?}");
    }
}

#[test]
fn evaluating_leaves_running_statistics_alone_and_training_moves_them() {
    let zoo = resnet(8, NormKind::Batch).build([3, 6, 5], CLASSES).unwrap();
    let (inputs, _) = batch::<Train>(&zoo, [3, 6, 5], &FlexDevice);
    let model = train_model(&zoo, 1);
    let fresh = running_statistics(&model.valid());
    model.forward(inputs.clone(), Mode::Evaluate);
    assert_eq!(running_statistics(&model.valid()), fresh);

    model.forward(inputs.clone(), Mode::Train);
    let trained = running_statistics(&model.valid());
    assert!(trained.iter().zip(&fresh).all(|(a, b)| a != b), "some statistic stood still");
    let logits = model.forward(inputs.clone(), Mode::Evaluate).into_data();
    assert_eq!(running_statistics(&model.valid()), trained);
    assert_eq!(
        model.valid().forward(inputs.inner(), Mode::Evaluate).into_data(),
        logits,
        "autodiff evaluates otherwise"
    );
}

#[test]
fn batch_norm_trains_the_same_off_autodiff() {
    let zoo = resnet(8, NormKind::Batch).build([3, 6, 5], CLASSES).unwrap();
    let (inputs, _) = batch::<Train>(&zoo, [3, 6, 5], &FlexDevice);
    let (tracked, plain) = (train_model(&zoo, 1), init::<Flex>(&zoo, 1));
    let expected = tracked.forward(inputs.clone(), Mode::Train).into_data();
    assert_eq!(plain.forward(inputs.inner(), Mode::Train).into_data(), expected);
    assert_eq!(running_statistics(&plain), running_statistics(&tracked.valid()));
}

#[test]
fn impossible_models_are_refused_with_field_value_and_expectation() {
    let image = [1, 28, 28];
    let resnet_with = |norm, groups| ZooConfig::ResNet { depth: 20, norm, groups };
    let cases = [
        (ZooConfig::Softmax {}, image, 0, "model `softmax`: classes is 0, expected at least 1"),
        (ZooConfig::Softmax {}, [0, 28, 28], 10, "model `softmax`: input channels is 0, expected at least 1"),
        (ZooConfig::TwoNn { hidden: 0 }, image, 10, "model `two_nn`: hidden is 0, expected at least 1"),
        (ZooConfig::TwoNn { hidden: usize::MAX }, image, 10, "expected at most 1048576"),
        (ZooConfig::LeNet5 {}, [1, 8, 8], 10, "model `lenet5`: input height is 8, expected at least 12"),
        (ZooConfig::LeNet5 {}, [1, 28, 11], 10, "model `lenet5`: input width is 11, expected at least 12"),
        (ZooConfig::FedAvgCnn {}, [1, 3, 28], 10, "model `fedavg_cnn`: input height is 3, expected at least 4"),
        (resnet(18, NormKind::Group), image, 10, "model `resnet`: depth is 18, expected 8, 20, 32 or 56"),
        (resnet(8, NormKind::Group), [1, 3, 3], 10, "model `resnet`: input height is 3, expected at least 4"),
        (resnet_with(NormKind::Group, Some(3)), image, 10, "model `resnet`: groups is 3, expected a divisor of 16"),
        (resnet_with(NormKind::Group, Some(0)), image, 10, "groups is 0, expected a divisor of 16"),
        (resnet_with(NormKind::Batch, Some(2)), image, 10, "groups is 2, expected nothing, since batch norm"),
        (ZooConfig::ResNet18 { groups: 7 }, image, 10, "model `resnet18`: groups is 7, expected a divisor of 64"),
        (ZooConfig::ResNet18 { groups: 2 }, [1, 7, 8], 10, "model `resnet18`: input height is 7, expected at least 8"),
        (projected(ZooConfig::TwoNn { hidden: 4 }, 0), image, 10, "model `projected`: width is 0, expected at least 1"),
        (projected(ZooConfig::LeNet5 {}, 4), [1, 8, 8], 10, "model `lenet5`: input height is 8"),
        (projected(ZooConfig::Softmax {}, 4), image, 10, "model `projected`: body is Softmax, expected a model"),
        (projected(projected(ZooConfig::LeNet5 {}, 4), 4), image, 10, "without a projection"),
        (preresnet(0, NormKind::Batch), image, 10, "model `preresnet20`: width is 0, expected at least 1"),
        (preresnet(3, NormKind::Group), image, 10, "groups is 2, expected a divisor of `width`, 3"),
        (vit([5, 8, 1, 1]), image, 10, "model `vit`: input height is 28, expected a multiple of `patch`, 5"),
        (vit([7, 8, 1, 3]), image, 10, "model `vit`: heads is 3, expected a divisor of `width`, 8"),
        (vit([7, 8, 0, 1]), image, 10, "model `vit`: depth is 0, expected at least 1"),
        (ZooConfig::CharLstm { hidden: 256 }, image, 10, "input shape is [1, 28, 28], expected [1, 1, length]"),
        (ZooConfig::CharLstm { hidden: 256 }, [1, 1, 0], 10, "input width is 0, expected at least 1"),
    ];
    for (config, input, classes, expected) in cases {
        let message = config.build(input, classes).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn the_smallest_allowed_inputs_work() {
    let cases = [
        (ZooConfig::LeNet5 {}, [1, 12, 12]),
        (ZooConfig::LeNet5 {}, [1, 12, 32]),
        (ZooConfig::FedAvgCnn {}, [1, 4, 4]),
        (resnet(8, NormKind::Group), [1, 4, 4]),
        (resnet(8, NormKind::Batch), [1, 4, 4]),
        (preresnet(1, NormKind::Batch), [1, 4, 4]),
        (vit([4, 2, 1, 1]), [1, 4, 4]),
        (ZooConfig::CharLstm { hidden: 1 }, [1, 1, 1]),
    ];
    for (config, input) in cases {
        let zoo = config.build(input, 1).unwrap();
        let [c, h, w] = input;
        let logits = init::<Flex>(&zoo, 0).forward(Tensor::zeros([1, c, h, w], &FlexDevice), Mode::Train);
        assert_eq!(logits.dims(), [1, 1], "{zoo:?}");
    }
}

#[test]
fn configurations_have_defaults_and_refuse_unknown_fields() {
    let parse = |text: &str| toml::from_str::<ZooConfig>(text);
    let cases = [
        ("softmax", "", ZooConfig::Softmax {}),
        ("two_nn", "", ZooConfig::TwoNn { hidden: 200 }),
        ("lenet5", "", ZooConfig::LeNet5 {}),
        ("fedavg_cnn", "", ZooConfig::FedAvgCnn {}),
        ("resnet", "depth = 20", resnet(20, NormKind::Group)),
        ("resnet", "depth = 8\nnorm = \"batch\"", resnet(8, NormKind::Batch)),
        ("resnet18", "", ZooConfig::ResNet18 { groups: 2 }),
        ("preresnet20", "", preresnet(16, NormKind::Batch)),
        ("split_mix", "nets = 4\nwidth = 2", split_mix(4, 2)),
        ("depth_fl", "", depth_fl(16, &[3, 6, 9])),
        ("vit", "", vit([16, 192, 12, 3])),
        ("char_lstm", "", ZooConfig::CharLstm { hidden: 256 }),
    ];
    for (kind, fields, expected) in cases {
        let text = format!("kind = \"{kind}\"\n{fields}");
        let config = parse(&text).unwrap();
        assert_eq!(config, expected);
        assert_eq!(parse(&toml::to_string(&config).unwrap()).unwrap(), config);
        let message = parse(&format!("{text}\nbreadth = 3")).unwrap_err().to_string();
        assert!(message.contains("unknown field `breadth`"), "{message}");
    }
    let around = parse("kind = \"projected\"\nbody = { kind = \"lenet5\" }").unwrap();
    assert_eq!(around, projected(ZooConfig::LeNet5 {}, 256));
    assert_eq!(parse(&toml::to_string(&around).unwrap()).unwrap(), around);
    assert!(parse("kind = \"vgg\"").unwrap_err().to_string().contains("unknown variant `vgg`"));
}
