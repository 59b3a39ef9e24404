//! Compression as it travels: which codecs a node knows, and what a task asks for.

use bytes::Bytes;
use fedburn_core::{Codec, CompressionConfig};

use super::Kind;
use crate::wire::extension::{Extension, Extensions};
use crate::wire::frame::FrameError;

/// The extension of a [`TaskOffer`](super::TaskOffer) that says how model and update are written, sent to nodes that know
/// the codecs; absent where both are 32-bit floats:
/// `up u8 | down u8 | error_feedback u8 | ratio f64`, little-endian, the ratio 0 where `up` has none.
pub const COMPRESSION: u16 = 1;

/// The [features](crate::wire::features) that a node needs for tasks of this compression: bit `n` for codec `n`, but for
/// 0, 32-bit floats, which all know.
pub fn codec_features(compression: &CompressionConfig) -> u64 {
    [compression.up, compression.down].map(|codec| 1 << number(codec) & !1).iter().fold(0, |all, bit| all | bit)
}

/// The extension that says it; `None` where nothing is lost.
pub fn compression_to_wire(compression: &CompressionConfig) -> Option<Extension> {
    let CompressionConfig { up, down, error_feedback } = *compression;
    let ratio = if let Codec::TopK { ratio } = up { ratio } else { 0.0 };
    let data = [&[number(up), number(down), u8::from(error_feedback)][..], &ratio.to_le_bytes()].concat();
    (!compression.is_none()).then(|| Extension { id: COMPRESSION, data: data.into() })
}

/// What the extensions of a task say of it.
///
/// # Errors
/// [`FrameError::Malformed`] where it is not what a sender writes, names an unknown codec or one that cannot be.
pub fn compression_from_wire(extensions: &Extensions) -> Result<CompressionConfig, FrameError> {
    let Some(data) = extensions.find(COMPRESSION) else { return Ok(CompressionConfig::default()) };
    let malformed = |reason: String| FrameError::Malformed { kind: Kind::TaskOffer, reason };
    let read = |data: &Bytes| {
        let (&[up, down, error_feedback @ (0 | 1)], ratio) = data.split_first_chunk()? else { return None };
        let ratio = f64::from_le_bytes(ratio.try_into().ok()?);
        let (up, down) = (codec(up, ratio)?, codec(down, 0.0)?);
        Some(CompressionConfig { up, down, error_feedback: error_feedback == 1 })
    };
    let compression = read(data).ok_or_else(|| malformed("an unknown compression".to_owned()))?;
    compression.check().map_err(|e| malformed(e.to_string()))?;
    match compression_to_wire(&compression) {
        Some(same) if same.data == data => Ok(compression),
        _ => Err(malformed("a compression that no sender writes".to_owned())),
    }
}

/// The numbers are part of the protocol and may never change.
fn number(codec: Codec) -> u8 {
    match codec {
        Codec::F32 {} => 0,
        Codec::F16 {} => 1,
        Codec::Bf16 {} => 2,
        Codec::Int8 {} => 3,
        Codec::Int4 {} => 4,
        Codec::ScaledSign {} => 5,
        Codec::TopK { .. } => 6,
    }
}

fn codec(number: u8, ratio: f64) -> Option<Codec> {
    Some(match number {
        0 => Codec::F32 {},
        1 => Codec::F16 {},
        2 => Codec::Bf16 {},
        3 => Codec::Int8 {},
        4 => Codec::Int4 {},
        5 => Codec::ScaledSign {},
        6 => Codec::TopK { ratio },
        _ => return None,
    })
}
