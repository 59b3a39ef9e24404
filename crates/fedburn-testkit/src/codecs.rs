//! Every codec, for laws that all of them keep.

use fedburn_core::Codec;

/// Every codec; those that leave values out keep this share. One that is added to the core does not compile until it is
/// here, and so in every test of them all.
pub fn codecs(ratio: f64) -> Vec<Codec> {
    let next = |codec: &Codec| match codec {
        Codec::F32 {} => Some(Codec::F16 {}),
        Codec::F16 {} => Some(Codec::Bf16 {}),
        Codec::Bf16 {} => Some(Codec::Int8 {}),
        Codec::Int8 {} => Some(Codec::Int4 {}),
        Codec::Int4 {} => Some(Codec::ScaledSign {}),
        Codec::ScaledSign {} => Some(Codec::TopK { ratio }),
        Codec::TopK { .. } => None,
    };
    std::iter::successors(Some(Codec::F32 {}), next).collect()
}
