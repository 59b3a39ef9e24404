//! Files of data sets, plain or gzip: what unpacks them may hold what gzip can expand them to.

use std::path::{Path, PathBuf};

use fedburn_data::datasets::cifar::Cifar;
use fedburn_data::datasets::leaf::Leaf;
use fedburn_data::datasets::{csv, idx, safetensors};

use crate::Decoder;

pub(super) fn decoders() -> Vec<Decoder> {
    let path = || Path::new("input");
    let cifar = |name, cifar: Cifar| {
        packed(Decoder::new(
            name,
            4_096,
            move |input| Ok(cifar.decode(input, path())?),
            |_, (pixels, labels)| {
                assert_eq!(pixels.len(), 3_072 * labels.len());
            },
        ))
    };
    let leaf = |name, leaf: Leaf| {
        let decode = move |input: &[u8]| Ok(leaf.decode(&[(PathBuf::from("input"), input.to_vec())])?);
        packed(Decoder::new(name, 8_192, decode, |_, found| assert_eq!(found.examples.len(), found.user_ids.len())))
    };
    vec![
        packed(Decoder::new(
            "idx-images",
            1_024,
            move |input| Ok(idx::images(input, path())?),
            |_, images| {
                assert_eq!(images.pixels.len() % (images.height * images.width), 0);
            },
        )),
        packed(Decoder::new("idx-labels", 1_024, move |input| Ok(idx::labels(input, path())?), |_, _| ())),
        cifar("cifar-10", Cifar::Ten),
        cifar("cifar-100", Cifar::Hundred),
        leaf("femnist", Leaf::Femnist),
        leaf("shakespeare", Leaf::Shakespeare),
        packed(Decoder::new(
            "csv",
            1_024,
            move |input| Ok(csv(input, path())?),
            |_, table| {
                assert_eq!(table.values.len(), table.labels.len() * table.shape.iter().product::<usize>());
            },
        )),
        Decoder::new(
            "safetensors",
            2_048,
            move |input| Ok(safetensors(input, path())?),
            |_, table| {
                assert_eq!(table.values.len(), table.labels.len() * table.shape.iter().product::<usize>());
            },
        ),
    ]
}

/// Deflate expands a thousandfold, and what is unpacked is held as bytes and as values, growing.
fn packed(decoder: Decoder) -> Decoder {
    let bound = 1_032 * 8 * decoder.longest;
    decoder.holding(bound)
}
