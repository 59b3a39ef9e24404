//! Signs and one size: `size f32 | five signs, five signs, ...`, each byte `s0 + 3 s1 + 9 s2 + 27 s3 + 81 s4` with 0 for
//! zero, 1 for plus and 2 for minus; the signs behind the last value are 0.

use super::CodecError;

/// Signs of a byte.
const SIGNS: usize = 5;
/// Bytes of the size.
const SIZE_LEN: usize = 4;

pub(super) fn encoded_len(num_values: usize) -> usize {
    SIZE_LEN + num_values.div_ceil(SIGNS)
}

pub(super) fn encode(values: &[f32], bytes: &mut Vec<u8>) {
    let total = values.iter().fold(0.0, |total, value| total + f64::from(value.abs()));
    let size = (total / values.len().max(1) as f64) as f32;
    bytes.extend_from_slice(&size.to_le_bytes());
    let sign = |&value: &f32| match value {
        0.0 => 0,
        v if v > 0.0 => 1,
        _ => 2,
    };
    bytes.extend(values.chunks(SIGNS).map(|five| five.iter().rev().fold(0, |byte, value| 3 * byte + sign(value))));
}

pub(super) fn decode(bytes: &[u8], num_values: usize) -> Result<Vec<f32>, CodecError> {
    let (size, signs) = bytes.split_at(SIZE_LEN);
    let size = f32::from_le_bytes([size[0], size[1], size[2], size[3]]);
    if !(size.is_sign_positive() && size.is_finite()) {
        return Err(CodecError::Scale { block: 0, scale: size });
    }
    let mut values = Vec::with_capacity(num_values);
    for &byte in signs {
        let (index, len) = (values.len(), SIGNS.min(num_values - values.len()) as u32);
        if u32::from(byte) >= 3u32.pow(len) {
            return Err(CodecError::Level { index });
        }
        values.extend((0..len).map(|place| [0.0, size, -size][usize::from(byte / 3u8.pow(place) % 3)]));
    }
    Ok(values)
}
