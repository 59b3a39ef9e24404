//! Modules, flat vectors and files: what goes in comes out, bit for bit, and what does not fit is refused by name.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module, Param, ParamId};
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig};
use burn::tensor::{Int, Tensor, backend::Backend};
use burn_flex::{Flex, FlexDevice};
use burn_ndarray::{NdArray, NdArrayDevice};
use fedburn_core::{
    ParamEntry, ParamKind, ParamSchema, ParamVector, SchemaError, Slice, flatten, flatten_part, load, load_part,
    schema_of,
};
use proptest::prelude::*;

#[derive(Module, Debug)]
struct Net<B: Backend> {
    layers: Vec<Linear<B>>,
    norm: BatchNorm<B>,
}

#[derive(Module, Debug)]
struct Counting<B: Backend> {
    steps: Param<Tensor<B, 1, Int>>,
}

fn net<B: Backend>(device: &B::Device) -> Net<B> {
    let linear = |inputs, outputs| LinearConfig::new(inputs, outputs).init(device);
    Net { layers: vec![linear(3, 4), linear(4, 2)], norm: BatchNormConfig::new(2).init(device) }
}

fn values(schema: &ParamSchema) -> Vec<f32> {
    (0..schema.num_values()).map(|i| i as f32 - 7.5).collect()
}

#[test]
fn the_schema_names_every_tensor_in_traversal_order_and_knows_running_statistics() {
    let schema = schema_of::<Flex, _>(&net(&FlexDevice)).unwrap();
    let found: Vec<_> = schema.entries().iter().map(|e| (e.path.as_str(), e.shape.clone(), e.kind)).collect();
    let (weight, buffer) = (ParamKind::Weight, ParamKind::Buffer);
    assert_eq!(
        found,
        [
            ("layers.0.weight", vec![3, 4], weight),
            ("layers.0.bias", vec![4], weight),
            ("layers.1.weight", vec![4, 2], weight),
            ("layers.1.bias", vec![2], weight),
            ("norm.gamma", vec![2], weight),
            ("norm.beta", vec![2], weight),
            ("norm.running_mean", vec![2], buffer),
            ("norm.running_var", vec![2], buffer),
        ]
    );
    assert_eq!((schema.num_values(), schema.num_weights(), schema.num_bytes()), (34, 30, 136));
}

fn round_trips<B: Backend>(device: &B::Device) {
    let schema = Arc::new(schema_of::<B, _>(&net(device)).unwrap());
    let vector = ParamVector::<B>::from_host(values(&schema), schema, device).unwrap();
    let loaded = load(net::<B>(device), &vector).unwrap();
    let again = flatten(&loaded).unwrap();
    assert_eq!(again.to_host(), vector.to_host());
    assert_eq!(again.schema(), vector.schema());
    assert_eq!(loaded.layers[1].weight.val().into_data(), vector.tensor::<2>("layers.1.weight").unwrap().into_data());
}

#[test]
fn load_then_flatten_changes_no_bit() {
    round_trips::<Flex>(&FlexDevice);
    round_trips::<NdArray>(&NdArrayDevice::Cpu);
}

/// Tensors, a corner of another, and nothing of the rest: as if a whole vector with zeros there had been loaded.
fn a_part_is_loaded_among_zeros<B: Backend>(device: &B::Device) {
    let entry = |path: &str, shape: &[usize], kind| ParamEntry::new(path, shape.to_vec(), kind);
    let (weight, buffer) = (ParamKind::Weight, ParamKind::Buffer);
    let entries = [
        entry("layers.0.weight", &[2, 3], weight),
        entry("layers.1.weight", &[4, 2], weight),
        entry("layers.1.bias", &[1], weight),
        entry("norm.running_var", &[2], buffer),
    ];
    let schema = Arc::new(ParamSchema::new(entries.into()).unwrap());
    let part = ParamVector::<B>::from_host(values(&schema), schema.clone(), device).unwrap();
    let loaded = load_part(net::<B>(device), &part).unwrap();
    let whole = Arc::new(schema_of::<B, _>(&net(device)).unwrap());
    let slice = Slice::new(whole.clone(), schema.clone()).unwrap();
    let expected = slice.put(&part, &ParamVector::zeros(whole, device)).unwrap();
    assert_eq!(flatten(&loaded).unwrap().to_host(), expected.to_host());
    assert_eq!(flatten_part(&loaded, &schema).unwrap().to_host(), part.to_host());

    let strange = Arc::new(ParamSchema::new(vec![entry("layers.9.bias", &[2], weight)]).unwrap());
    let strange = ParamVector::<B>::from_host(vec![1.0, 2.0], strange, device).unwrap();
    let unknown = SchemaError::UnknownPath { path: "layers.9.bias".into() };
    assert_eq!(load_part(net::<B>(device), &strange).unwrap_err(), unknown);
    assert_eq!(flatten_part(&net::<B>(device), strange.schema()).unwrap_err(), unknown);
}

#[test]
fn a_part_of_a_model_is_loaded_among_zeros() {
    a_part_is_loaded_among_zeros::<Flex>(&FlexDevice);
    a_part_is_loaded_among_zeros::<NdArray>(&NdArrayDevice::Cpu);
}

#[test]
fn loading_keeps_parameter_ids_and_lets_gradients_flow() {
    type Train = Autodiff<Flex>;
    let model = net::<Train>(&FlexDevice);
    let id = model.layers[0].weight.id;
    let schema = Arc::new(schema_of::<Train, _>(&model).unwrap());
    let vector = ParamVector::<Train>::from_host(values(&schema), schema, &FlexDevice).unwrap();
    let model = load(model, &vector).unwrap();
    assert_eq!(model.layers[0].weight.id, id);
    let input = Tensor::<Train, 2>::ones([1, 3], &FlexDevice);
    let gradients = model.layers[1].forward(model.layers[0].forward(input)).sum().backward();
    assert!(model.layers[0].weight.grad(&gradients).is_some());
    assert_eq!(flatten(&model.valid()).unwrap().to_host(), vector.to_host());
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let schema = Arc::new(ParamSchema::new(vec![ParamEntry::new("w", vec![2], ParamKind::Weight)]).unwrap());
    let vector = ParamVector::<Flex>::from_host(vec![1.0, 2.0], schema.clone(), &FlexDevice).unwrap();
    let error = load(net::<Flex>(&FlexDevice), &vector).unwrap_err().to_string();
    assert!(error.contains("layers.0.weight") && error.contains("`w`"), "{error}");
    let wrong = ParamVector::<Flex>::from_host(vec![1.0], schema, &FlexDevice).unwrap_err();
    assert_eq!(wrong, SchemaError::Length { expected: 2, found: 1 });
    assert!(matches!(vector.tensor::<1>("v"), Err(SchemaError::UnknownPath { .. })));
    assert!(matches!(vector.tensor::<2>("w"), Err(SchemaError::Rank { expected: 1, found: 2, .. })));
    let counting =
        Counting { steps: Param::initialized(ParamId::new(), Tensor::<Flex, 1, Int>::from_data([1], &FlexDevice)) };
    assert_eq!(schema_of::<Flex, _>(&counting), Err(SchemaError::UnsupportedKind { path: "steps".to_owned() }));
}

#[test]
fn clones_are_told_from_equals() {
    let schema = Arc::new(ParamSchema::new(vec![ParamEntry::new("a", vec![2], ParamKind::Weight)]).unwrap());
    let vector = ParamVector::<Flex>::from_host(vec![1.0, 2.0], schema.clone(), &FlexDevice).unwrap();
    assert!(vector.is_clone_of(&vector.clone()) && vector.clone().is_clone_of(&vector));
    let equal = ParamVector::<Flex>::from_host(vec![1.0, 2.0], schema, &FlexDevice).unwrap();
    assert!(!vector.is_clone_of(&equal));
    assert!(!vector.is_clone_of(&vector.with_values(vector.values().clone()).unwrap()));
}

#[test]
fn the_first_non_finite_tensor_is_named() {
    let schema = Arc::new(schema_of::<Flex, _>(&net(&FlexDevice)).unwrap());
    let mut numbers = values(&schema);
    let vector =
        |numbers: &[f32]| ParamVector::<Flex>::from_host(numbers.to_vec(), schema.clone(), &FlexDevice).unwrap();
    assert!(vector(&numbers).is_finite() && vector(&numbers).first_non_finite().is_none());
    numbers[..2].fill(f32::MAX);
    assert!(vector(&numbers).is_finite(), "a sum that overflows is no infinity");
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        numbers[17] = bad;
        assert_eq!(vector(&numbers).first_non_finite().map(|e| e.path.as_str()), Some("layers.1.weight"));
    }
}

#[test]
fn safetensors_round_trip_and_refuse_damage() {
    let schema = Arc::new(schema_of::<Flex, _>(&net(&FlexDevice)).unwrap());
    let vector = ParamVector::<Flex>::from_host(values(&schema), schema.clone(), &FlexDevice).unwrap();
    let bytes = vector.to_safetensors().unwrap();
    let read = |bytes: &[u8]| ParamVector::<Flex>::from_safetensors(bytes, schema.clone(), &FlexDevice);
    assert_eq!(read(&bytes).unwrap().to_host(), vector.to_host());
    for cut in 0..bytes.len() {
        assert!(matches!(read(&bytes[..cut]), Err(SchemaError::File { .. })), "cut at {cut}");
    }
    let other = Arc::new(ParamSchema::new(vec![ParamEntry::new("w", vec![2], ParamKind::Weight)]).unwrap());
    let small = ParamVector::<Flex>::zeros(other, &FlexDevice).to_safetensors().unwrap();
    assert!(read(&small).unwrap_err().to_string().contains("1 tensors where the model has 8"));
}

#[test]
fn a_file_takes_the_place_of_all_tensors_but_those_that_are_kept() {
    let schema = Arc::new(schema_of::<Flex, _>(&net(&FlexDevice)).unwrap());
    let trained = ParamVector::<Flex>::from_host(values(&schema), schema.clone(), &FlexDevice).unwrap();
    let bytes = trained.to_safetensors().unwrap();
    let random = ParamVector::<Flex>::from_host(vec![0.25; schema.num_values()], schema.clone(), &FlexDevice).unwrap();
    let kept = |layers: &[&str]| layers.iter().map(|&layer| layer.to_owned()).collect::<Vec<String>>();
    assert_eq!(random.with_safetensors(&bytes, &[]).unwrap().to_host(), trained.to_host());
    let mixed = random.with_safetensors(&bytes, &kept(&["layers.1", "norm.gamma", "lay"])).unwrap();
    for entry in schema.entries() {
        let own = entry.path.starts_with("layers.1") || entry.path == "norm.gamma";
        let expected = if own { &random } else { &trained }.to_host();
        assert_eq!(mixed.to_host()[entry.range()], expected[entry.range()], "{}", entry.path);
    }

    // A net of other layers at one place, and one with a layer less, of which a file may say what it likes.
    let other = |change: &dyn Fn(&mut Vec<ParamEntry>)| {
        let mut entries = schema.entries().to_vec();
        change(&mut entries);
        let schema = Arc::new(ParamSchema::new(entries).unwrap());
        ParamVector::<Flex>::from_host(values(&schema), schema, &FlexDevice).unwrap().to_safetensors().unwrap()
    };
    let (wide, without): (Vec<u8>, Vec<u8>) =
        (other(&|entries| entries[2].shape = vec![4, 7]), other(&|entries| drop(entries.remove(3))));
    let more = other(&|entries| entries.push(ParamEntry::new("extra.b", vec![1], ParamKind::Weight)));
    for (bytes, word) in [
        (&wide, "`layers.1.weight` is F32 [4, 7], expected F32 [4, 2]"),
        (&without, "`layers.1.bias` is missing, expected F32 [2]"),
        (&more, "`extra.b` is not one of the model"),
    ] {
        let error = random.with_safetensors(bytes, &kept(&["norm"])).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
        let found = random.with_safetensors(bytes, &kept(&["layers.1", "extra"])).unwrap();
        assert_eq!(found.to_host()[..16], trained.to_host()[..16]);
    }
    let mut numbers = values(&schema);
    numbers[3] = f32::NAN;
    let broken = ParamVector::<Flex>::from_host(numbers, schema, &FlexDevice).unwrap().to_safetensors().unwrap();
    let error = random.with_safetensors(&broken, &[]).unwrap_err().to_string();
    assert!(error.contains("`layers.0.weight` holds a NaN"), "{error}");
    assert!(random.with_safetensors(&broken, &kept(&["layers"])).is_ok());
    for cut in 0..bytes.len() {
        assert!(matches!(random.with_safetensors(&bytes[..cut], &[]), Err(SchemaError::File { .. })), "cut at {cut}");
    }
}

proptest! {
    #[test]
    fn any_bits_survive_the_host_round_trip(bits in prop::collection::vec(any::<u32>(), 1..50)) {
        let entry = ParamEntry::new("w", vec![bits.len()], ParamKind::Weight);
        let schema = Arc::new(ParamSchema::new(vec![entry]).unwrap());
        let numbers: Vec<f32> = bits.iter().map(|b| f32::from_bits(*b)).collect();
        let vector = ParamVector::<Flex>::from_host(numbers, schema, &FlexDevice).unwrap();
        let back: Vec<u32> = vector.to_host().into_iter().map(f32::to_bits).collect();
        prop_assert_eq!(back, bits);
    }
}
