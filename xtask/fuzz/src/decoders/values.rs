//! Parameters: what codecs wrote, model files, and states of strategies and clients.

use std::sync::Arc;

use burn_flex::{Flex, FlexDevice};
use fedburn_core::{Codec, Encoded, ParamEntry, ParamKind, ParamSchema, ParamVector, Seed, StateDict};
use fedburn_testkit::codecs;

use crate::Decoder;
use crate::decoder::Decoded;

pub(super) fn decoders() -> Vec<Decoder> {
    let schema = schema();
    let global = vector(vec![0.0; schema.num_values()], &schema);
    let others = [
        Decoder::new(
            "update",
            256,
            move |input| update(input, &global),
            |_, update| {
                assert!(update.to_host().iter().all(|value| value.is_finite()));
            },
        ),
        Decoder::new("model-file", 2_048, model_file, |_, model| {
            let again = model_file(&model.to_safetensors().expect("a model that was read"));
            let bits = |model: ParamVector<Flex>| model.to_host().into_iter().map(f32::to_bits).collect::<Vec<_>>();
            assert_eq!(bits(again.expect("it can be read again")), bits(model));
        }),
        Decoder::new("initial-model", 2_048, initial_model, |_, model| {
            let values = model.to_host();
            assert!(values.iter().all(|value| value.is_finite()) && values[8..] == [0.5; 3]);
        }),
        Decoder::new(
            "state",
            2_048,
            |input| Ok(StateDict::from_bytes(input)?),
            |_, state| {
                let bytes = state.to_bytes().expect("a state that was read");
                let again = StateDict::from_bytes(&bytes).expect("it can be read again");
                assert_eq!(again.to_bytes().expect("and written again"), bytes);
            },
        ),
    ];
    all().into_iter().map(coded).chain(others).collect()
}

/// What is read is written again in as many bytes.
fn coded(codec: Codec) -> Decoder {
    let num_values = 300;
    Decoder::new(
        format!("values-{}", codec.name().replace('_', "-")),
        4 * num_values,
        move |input| Ok(codec.decode(input, num_values)?),
        move |input, values| {
            assert!(values.len() == num_values && values.iter().all(|value| value.is_finite()));
            assert_eq!(codec.encode(&values, Seed::new(1)).expect("values that were read").len(), input.len());
        },
    )
}

/// The first byte chooses the codec.
fn update(input: &[u8], global: &ParamVector<Flex>) -> Decoded<ParamVector<Flex>> {
    let (choice, bytes) = input.split_first().ok_or("no codec")?;
    let codecs = all();
    let codec = codecs[usize::from(*choice) % codecs.len()];
    Ok(ParamVector::decode_update(Encoded { codec, bytes: bytes.to_vec() }, global)?)
}

fn model_file(bytes: &[u8]) -> Decoded<ParamVector<Flex>> {
    Ok(ParamVector::from_safetensors(bytes, schema(), &FlexDevice)?)
}

/// Of all but the last layer.
fn initial_model(bytes: &[u8]) -> Decoded<ParamVector<Flex>> {
    let (schema, kept) = (schema(), ["c".to_owned()]);
    Ok(vector(vec![0.5; schema.num_values()], &schema).with_safetensors(bytes, &kept)?)
}

/// Weights around running statistics.
pub(super) fn schema() -> Arc<ParamSchema> {
    let entry = |path, shape, kind| ParamEntry::new(path, shape, kind);
    let entries = vec![
        entry("a", vec![2, 3], ParamKind::Weight),
        entry("b", vec![2], ParamKind::Buffer),
        entry("c", vec![3], ParamKind::Weight),
    ];
    Arc::new(ParamSchema::new(entries).expect("different names"))
}

fn all() -> Vec<Codec> {
    codecs(0.1)
}

pub(super) fn vector(values: Vec<f32>, schema: &Arc<ParamSchema>) -> ParamVector<Flex> {
    ParamVector::from_host(values, schema.clone(), &FlexDevice).expect("as many values as the schema has")
}
