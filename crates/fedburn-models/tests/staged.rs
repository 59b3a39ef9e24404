//! Staged models: their parts are the whole, their tables those of the specification, any block can be read.
#![allow(clippy::unwrap_used)]

use burn::tensor::{Tensor, TensorData};
use burn_flex::{Flex, FlexDevice};
use fedburn_core::{Classifier, Mode, ModelFamily, ParamSchema, Seed, Stage, Stages, schema_of};
use fedburn_models::{NormKind, ZooConfig, ZooModel};

fn preresnet(width: usize, norm: NormKind) -> ZooConfig {
    ZooConfig::PreResNet20 { width, norm, groups: None }
}

fn vit([patch, width, depth, heads]: [usize; 4]) -> ZooConfig {
    ZooConfig::Vit { patch, width, depth, heads }
}

fn with_exits(body: ZooConfig) -> ZooConfig {
    ZooConfig::WithExits { body: Box::new(body) }
}

fn model(config: ZooConfig, input: [usize; 3], classes: usize) -> ZooModel<Flex> {
    config.build(input, classes).unwrap().init(Seed::new(1), &FlexDevice)
}

fn parts(config: ZooConfig, input: [usize; 3], classes: usize) -> (Stages, ParamSchema) {
    let model = model(config, input, classes);
    (model.staged().unwrap().stages(batch_of(2, input)), schema_of::<Flex, _>(&model).unwrap())
}

fn batch_of(batch: usize, [channels, height, width]: [usize; 3]) -> [usize; 4] {
    [batch, channels, height, width]
}

fn images([channels, height, width]: [usize; 3], batch: usize) -> Tensor<Flex, 4> {
    let values: Vec<f32> = (0..batch * channels * height * width).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
    Tensor::from_data(TensorData::new(values, [batch, channels, height, width]), &FlexDevice)
}

#[test]
fn preresnet20_has_the_published_table() {
    let (stages, schema) = parts(preresnet(16, NormKind::Batch), [3, 32, 32], 10);
    let table = |f: &dyn Fn(&Stage) -> usize| {
        (f(&stages.stem), stages.blocks.iter().map(f).collect::<Vec<_>>(), f(&stages.head))
    };
    let activations = vec![65536, 65536, 65536, 49152, 32768, 32768, 24576, 16384, 16384];
    assert_eq!(table(&Stage::activations), (16384, activations, 8256));
    let parameters = vec![4672, 4672, 4672, 14432, 18560, 18560, 57536, 73984, 73984];
    assert_eq!(table(&|stage| stage.parameters(&schema)), (464, parameters, 778));
    let keep: Vec<bool> = stages.blocks.iter().map(|block| block.keeps_shape).collect();
    assert_eq!(keep, [true, true, true, false, true, true, false, true, true]);
}

#[test]
fn tables_follow_the_size_of_the_picture() {
    let (stages, _) = parts(preresnet(8, NormKind::Batch), [1, 30, 21], 10);
    let kept = |index: usize| stages.blocks[index].kept.clone();
    assert_eq!(kept(0), vec![vec![8, 30, 21]; 4]);
    assert_eq!(kept(3), [vec![8, 30, 21], vec![8, 30, 21], vec![16, 15, 11], vec![16, 15, 11]]);
    assert_eq!(kept(8), vec![vec![32, 8, 6]; 4]);
    assert_eq!(stages.head.kept, [vec![32, 8, 6], vec![32, 8, 6], vec![32]]);
}

#[test]
fn layers_of_a_transformer_are_alike() {
    let (stages, schema) = parts(vit([16, 192, 12, 3]), [3, 32, 32], 10);
    assert_eq!(stages.blocks.len(), 12);
    for layer in &stages.blocks {
        assert_eq!(layer.parameters(&schema), 444_864);
        assert_eq!(layer.activations(), 16 * 5 * 192 + 3 * 3 * 5 * 5);
        assert!(layer.keeps_shape);
    }
}

#[test]
fn parts_in_turn_are_the_whole_and_hold_every_parameter_once() {
    for (config, input) in [
        (preresnet(4, NormKind::Batch), [3, 9, 6]),
        (preresnet(4, NormKind::Group), [3, 9, 6]),
        (vit([3, 8, 4, 2]), [3, 9, 6]),
        (ZooConfig::Projected { body: Box::new(preresnet(2, NormKind::Batch)), width: 5 }, [1, 8, 8]),
        (ZooConfig::Projected { body: Box::new(vit([4, 8, 2, 1])), width: 5 }, [1, 8, 8]),
        (with_exits(preresnet(4, NormKind::Batch)), [3, 9, 6]),
        (with_exits(vit([3, 8, 4, 2])), [3, 9, 6]),
    ] {
        let model = model(config.clone(), input, 5);
        let staged = model.staged().unwrap();
        let (stages, schema) = (staged.stages(batch_of(2, input)), schema_of::<Flex, _>(&model).unwrap());
        let all = [&stages.stem].into_iter().chain(&stages.blocks).chain([&stages.head]).chain(&stages.exits);
        let all: Vec<&Stage> = all.collect();
        for entry in schema.entries() {
            assert_eq!(all.iter().filter(|stage| stage.holds(&entry.path)).count(), 1, "{config:?}: {}", entry.path);
        }
        let inputs = images(input, 3);
        let mut hidden = staged.stem(inputs.clone(), Mode::Train);
        for (index, stage) in stages.blocks.iter().enumerate() {
            let before = hidden.dims();
            hidden = staged.block(index, hidden, Mode::Train);
            assert_eq!(stage.keeps_shape, hidden.dims() == before, "{config:?}: block {index}");
            let logits = staged.logits(hidden.clone(), Mode::Train);
            assert_eq!(logits.dims(), [3, 5], "{config:?}: block {index}");
            assert!(logits.into_data().iter::<f32>().all(f32::is_finite));
            let exit = staged.exit(index, hidden.clone(), Mode::Train).map(|logits| logits.dims());
            assert_eq!(exit, stages.exits.get(index).map(|_| [3, 5]), "{config:?}: exit {index}");
        }
        let whole = model.forward(inputs, Mode::Train).into_data();
        assert_eq!(staged.logits(hidden, Mode::Train).into_data(), whole, "{config:?}");
    }
}

#[test]
fn exits_are_norm_mean_and_linear_and_leave_the_rest_of_the_model_as_it_is() {
    for (body, parameters) in [
        (preresnet(4, NormKind::Batch), vec![58, 58, 58, 106, 106, 106, 202, 202, 202]),
        (vit([4, 8, 2, 1]), vec![106, 106]),
    ] {
        let (stages, schema) = parts(with_exits(body.clone()), [1, 8, 8], 10);
        assert_eq!(stages.exits.iter().map(|exit| exit.parameters(&schema)).collect::<Vec<_>>(), parameters);
        let (with, without) = (model(with_exits(body.clone()), [1, 8, 8], 10), model(body, [1, 8, 8], 10));
        let forward = |model: &ZooModel<Flex>| model.forward(images([1, 8, 8], 2), Mode::Train).into_data();
        assert_eq!(forward(&with), forward(&without));
    }
    let refused = with_exits(ZooConfig::Softmax {}).build([1, 8, 8], 10).unwrap_err().to_string();
    assert!(refused.contains("with_exits") && refused.contains("preresnet20 or vit"), "{refused}");
}
