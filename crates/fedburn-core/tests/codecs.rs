//! Codecs: bytes that never change, laws, and what foreign bytes may do.
#![allow(clippy::unwrap_used)]

use fedburn_core::{Codec, CodecError, Seed};
use fedburn_testkit::codecs;
use proptest::prelude::*;

/// Share of the values that are kept where some are left out.
const RATIO: f64 = 0.3;

/// Values of every size that training makes, and the ends of what a float can hold.
fn values() -> impl Strategy<Value = Vec<f32>> {
    let value = prop_oneof![
        4 => -4.0..4.0f32,
        4 => -1e-3..1e-3f32,
        1 => any::<f32>().prop_filter("finite", |value| value.is_finite()),
        1 => Just(0.0f32),
    ];
    prop_oneof![prop::collection::vec(value.clone(), 0..40), prop::collection::vec(value, 500..600)]
}

fn through(codec: Codec, values: &[f32], seed: u64) -> Vec<f32> {
    codec.decode(&codec.encode(values, Seed::new(seed)).unwrap(), values.len()).unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// The bytes of one vector in every codec: they are part of the protocol and of every published result.
#[test]
fn bytes_are_pinned() {
    let values = [1.0, -0.5, 0.0, 0.26, -1.0, 3.0e-5, 0.75];
    let expected = [
        "0000803f000000bf00000000b81e853e000080bf82a8fb370000403f",
        "003c00b80000293400bcf701003a",
        "803f00bf0000853e80bffc37403f",
        "09207fc1002181005f",
        "9330d7200905",
        "e75d003fc404",
        "000000000000803f03000000000080bf010000000000403f",
    ];
    let found: Vec<String> = codecs(RATIO)
        .iter()
        .map(|codec| {
            let bytes = codec.encode(&values, Seed::new(5)).unwrap();
            bytes.iter().map(|byte| format!("{byte:02x}")).collect()
        })
        .collect();
    assert_eq!(found, expected);
}

proptest! {
    #[test]
    fn lengths_follow_from_the_number_of_values_and_all_is_finite(values in values(), seed: u64) {
        for codec in codecs(RATIO) {
            let bytes = codec.encode(&values, Seed::new(seed)).unwrap();
            prop_assert_eq!(bytes.len(), codec.encoded_len(values.len()), "{:?}", codec);
            prop_assert_eq!(&bytes, &codec.encode(&values, Seed::new(seed)).unwrap(), "{:?}", codec);
            let decoded = codec.decode(&bytes, values.len()).unwrap();
            prop_assert_eq!(decoded.len(), values.len());
            prop_assert!(decoded.iter().all(|value| value.is_finite()), "{:?}", codec);
        }
    }

    #[test]
    fn what_a_codec_can_hold_it_holds(values in values(), seed: u64) {
        prop_assert_eq!(bits(&through(Codec::F32 {}, &values, seed)), bits(&values));
        for codec in [Codec::F16 {}, Codec::Bf16 {}, Codec::TopK { ratio: 0.3 }] {
            let once = through(codec, &values, seed);
            prop_assert_eq!(bits(&through(codec, &once, seed)), bits(&once), "{:?}", codec);
        }
    }

    #[test]
    fn floats_are_rounded_to_the_nearest(values in prop::collection::vec(-100.0..100.0f32, 1..50)) {
        for (codec, share) in [(Codec::F16 {}, 1.0 / 2048.0), (Codec::Bf16 {}, 1.0 / 256.0)] {
            for (value, read) in values.iter().zip(through(codec, &values, 0)) {
                prop_assert!((value - read).abs() <= value.abs() * share + 3e-8, "{codec:?}: {value} {read}");
            }
        }
    }

    #[test]
    fn a_block_is_off_by_less_than_one_level(values in values(), seed: u64) {
        // Half precision ends before single precision does.
        let values: Vec<f32> = values.into_iter().map(|value| value.clamp(-4e5, 4e5)).collect();
        for (codec, levels) in [(Codec::Int8 {}, 127.0), (Codec::Int4 {}, 7.0)] {
            for (block, read) in values.chunks(256).zip(through(codec, &values, seed).chunks(256)) {
                let largest = block.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
                let level = largest / levels * 1.001 + 6e-8;
                for (value, read) in block.iter().zip(read) {
                    prop_assert!((value - read).abs() <= level, "{codec:?}: {value} {read}, a level is {level}");
                }
            }
        }
    }

    #[test]
    fn the_largest_values_are_kept(values in values(), ratio in 0.001..1.0f64) {
        let count = (ratio * values.len() as f64).ceil() as usize;
        let read = through(Codec::TopK { ratio }, &values, 0);
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by(|&a, &b| values[b].abs().total_cmp(&values[a].abs()));
        let mut expected = vec![0.0f32; values.len()];
        order[..count].iter().for_each(|&place| expected[place] = values[place]);
        prop_assert_eq!(bits(&read), bits(&expected));
    }

    /// Against the definition: five signs a byte are worth nothing if one is off.
    #[test]
    fn signs_are_those_of_the_values(values in prop::collection::vec(prop_oneof![-4.0..4.0f32, Just(0.0)], 0..40)) {
        let size = values.iter().map(|value| f64::from(value.abs())).sum::<f64>() / values.len().max(1) as f64;
        for (value, read) in values.iter().zip(through(Codec::ScaledSign {}, &values, 0)) {
            let sign = if *value == 0.0 { 0.0 } else { value.signum() };
            prop_assert_eq!(read, sign * size as f32);
        }
    }

    #[test]
    fn foreign_bytes_are_refused_or_read_as_finite_values(
        mut bytes in prop::collection::vec(any::<u8>(), 0..700),
        num_values in 0usize..600,
        fit in any::<bool>(),
    ) {
        for codec in codecs(RATIO) {
            if fit {
                bytes.resize(codec.encoded_len(num_values), 0x2a);
            }
            match codec.decode(&bytes, num_values) {
                Ok(values) => {
                    prop_assert_eq!(bytes.len(), codec.encoded_len(num_values));
                    prop_assert!(values.len() == num_values && values.iter().all(|value| value.is_finite()));
                }
                Err(CodecError::Length { .. }) => prop_assert_ne!(bytes.len(), codec.encoded_len(num_values)),
                Err(_) => prop_assert_eq!(bytes.len(), codec.encoded_len(num_values)),
            }
        }
    }
}

/// Stochastic rounding: over seeds the mean of what is read is the value, to what so many draws can tell.
#[test]
fn rounding_at_random_is_right_on_average() {
    let values = [1.0, 0.303, -0.71, 0.004, -0.0041, 0.5, -1.0, 0.0];
    const DRAWS: u64 = 4_000;
    for (codec, levels) in [(Codec::Int8 {}, 127.0), (Codec::Int4 {}, 7.0)] {
        let mut sums = [0.0f64; 8];
        for seed in 0..DRAWS {
            for (sum, value) in sums.iter_mut().zip(through(codec, &values, seed)) {
                *sum += f64::from(value);
            }
        }
        // Between two levels the standard deviation is at most half a level.
        let bound = 4.5 * 0.5 / levels / (DRAWS as f64).sqrt();
        for (sum, value) in sums.iter().zip(values) {
            let off = (sum / DRAWS as f64 - f64::from(value)).abs();
            assert!(off < bound, "{codec:?}: {value} is read as {} on average", sum / DRAWS as f64);
        }
        let first = through(codec, &values, 0);
        assert!((1..100).any(|seed| through(codec, &values, seed) != first), "{codec:?}: the seed is of use");
    }
}

#[test]
fn values_beyond_half_precision_become_its_largest() {
    let far = [1e9, -1e9, f32::MAX, 1.0];
    assert_eq!(through(Codec::F16 {}, &far, 0), [65504.0, -65504.0, 65504.0, 1.0]);
    assert!(through(Codec::Bf16 {}, &far, 0)[2] > 3.38e38);
    // The largest scale of half precision times 127 levels.
    assert_eq!(through(Codec::Int8 {}, &far, 0)[..3], [65504.0 * 127.0, -65504.0 * 127.0, 65504.0 * 127.0]);
}

#[test]
fn bytes_that_no_codec_wrote_are_refused() {
    let scale = |bits: u16| bits.to_le_bytes();
    let block = |scale: [u8; 2], levels: &[u8]| [&scale[..], levels].concat();
    let one = scale(0x3c00);
    let gap = |gap: u32, value: f32| [gap.to_le_bytes(), value.to_le_bytes()].concat();
    let (int8, int4, signs, half) = (Codec::Int8 {}, Codec::Int4 {}, Codec::ScaledSign {}, Codec::TopK { ratio: 0.5 });
    let size = 1.5f32.to_le_bytes();
    assert_eq!(int8.decode(&block(one, &[0x7f, 0x81]), 2), Ok(vec![127.0, -127.0]));
    assert_eq!(int4.decode(&block(one, &[0x97, 0x01]), 3), Ok(vec![7.0, -7.0, 1.0]));
    assert_eq!(signs.decode(&[&size[..], &[1 + 2 * 3 + 9]].concat(), 3), Ok(vec![1.5, -1.5, 1.5]));
    assert_eq!(half.decode(&[gap(1, 2.0), gap(1, -3.0)].concat(), 4), Ok(vec![0.0, 2.0, 0.0, -3.0]));
    for (what, codec, bytes, num_values) in [
        ("a level that is not used", int8, block(one, &[0x80, 0]), 2),
        ("a level that is not used", int4, block(one, &[0x08]), 2),
        ("a level behind the last", int4, block(one, &[0x77, 0x11]), 3),
        ("a scale of zero", int8, block(scale(0), &[0]), 1),
        ("a scale below zero", int8, block(scale(0xbc00), &[0]), 1),
        ("an infinite scale", int8, block(scale(0x7c00), &[0]), 1),
        ("a scale that is no number", int4, block(scale(0x7e00), &[0]), 1),
        ("a sign behind the last", signs, [&size[..], &[27]].concat(), 3),
        ("a byte of no signs", signs, [&size[..], &[243]].concat(), 5),
        ("a size below zero", signs, [&(-1.5f32).to_le_bytes()[..], &[1]].concat(), 1),
        ("a size that is no number", signs, [&f32::NAN.to_le_bytes()[..], &[1]].concat(), 1),
        ("a place behind the last", half, [gap(1, 2.0), gap(2, 2.0)].concat(), 4),
        ("a place far behind the last", half, [gap(u32::MAX, 2.0), gap(u32::MAX, 2.0)].concat(), 4),
        ("an infinity", half, gap(0, f32::INFINITY), 2),
        ("an infinity", Codec::F16 {}, vec![0, 0x7c], 1),
        ("no number", Codec::Bf16 {}, vec![0xc0, 0x7f], 1),
        ("no number", Codec::F32 {}, f32::NAN.to_le_bytes().to_vec(), 1),
        ("a byte too many", Codec::F16 {}, vec![0; 3], 1),
        ("a byte too few", int8, block(one, &[]), 1),
    ] {
        assert!(codec.decode(&bytes, num_values).is_err(), "{what}: {codec:?} {bytes:?}");
    }
}

#[test]
fn values_and_settings_that_cannot_be_are_refused() {
    for codec in codecs(RATIO) {
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(codec.encode(&[0.0, wrong], Seed::new(0)), Err(CodecError::NonFinite { index: 1 }));
        }
    }
    for ratio in [0.0, -0.1, 1.1, f64::NAN] {
        let codec = Codec::TopK { ratio };
        let error = codec.encode(&[0.0], Seed::new(0)).unwrap_err().to_string();
        assert!(error.contains("`ratio`") && error.contains("(0, 1]"), "{error}");
        assert!(codec.decode(&[], 0).is_err());
    }
}
