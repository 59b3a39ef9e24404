//! Integers of a few bits in blocks with a scale each: `scale f16 | level, level, ...`.
//!
//! The scale is the smallest half-precision number with which the block's largest value is within the levels, so that
//! none is cut off. Levels of 4 bits share a byte, the first one in its lower half; that of an odd block's end is 0.

use half::f16;
use rand::Rng;

use super::CodecError;

/// Values of a block.
const BLOCK: usize = 256;
/// Bytes of a block's scale.
const SCALE_LEN: usize = 2;

/// The largest level of so many bits; the smallest is its opposite.
const fn most<const BITS: u32>() -> i32 {
    (1 << (BITS - 1)) - 1
}

/// Bytes of the levels of so many values.
const fn levels_len<const BITS: u32>(values: usize) -> usize {
    (values * BITS as usize).div_ceil(8)
}

pub(super) fn encoded_len<const BITS: u32>(num_values: usize) -> usize {
    let (full, rest) = (num_values / BLOCK, num_values % BLOCK);
    let last = if rest == 0 { 0 } else { SCALE_LEN + levels_len::<BITS>(rest) };
    full * (SCALE_LEN + levels_len::<BITS>(BLOCK)) + last
}

pub(super) fn encode<const BITS: u32>(values: &[f32], rng: &mut impl Rng, bytes: &mut Vec<u8>) {
    for block in values.chunks(BLOCK) {
        let largest = block.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        let scale = scale::<BITS>(largest);
        bytes.extend_from_slice(&scale.to_le_bytes());
        let scale = scale.to_f32();
        let mut level = |&value: &f32| round::<BITS>(value / scale, rng);
        match BITS {
            8 => bytes.extend(block.iter().map(|value| level(value) as u8)),
            _ => bytes.extend(block.chunks(2).map(|pair| {
                let low = level(&pair[0]);
                let high = pair.get(1).map_or(0, &mut level);
                (low & 0xf | high << 4) as u8
            })),
        }
    }
}

pub(super) fn decode<const BITS: u32>(bytes: &[u8], num_values: usize) -> Result<Vec<f32>, CodecError> {
    let mut values = Vec::with_capacity(num_values);
    for (block, bytes) in bytes.chunks(SCALE_LEN + levels_len::<BITS>(BLOCK)).enumerate() {
        let (scale, levels) = bytes.split_at(SCALE_LEN);
        let scale = f16::from_le_bytes([scale[0], scale[1]]).to_f32();
        if !(scale > 0.0 && scale.is_finite()) {
            return Err(CodecError::Scale { block, scale });
        }
        let level = |at: usize| match BITS {
            8 => levels[at] as i8,
            _ if at.is_multiple_of(2) => (levels[at / 2] as i8) << 4 >> 4,
            _ => levels[at / 2] as i8 >> 4,
        };
        let (begin, len) = (values.len(), BLOCK.min(num_values - values.len()));
        for at in 0..len {
            if i32::from(level(at)) < -most::<BITS>() {
                return Err(CodecError::Level { index: begin + at });
            }
            values.push(f32::from(level(at)) * scale);
        }
        if BITS == 4 && !len.is_multiple_of(2) && level(len) != 0 {
            return Err(CodecError::Level { index: begin + len });
        }
    }
    Ok(values)
}

/// The smallest scale with which values up to `largest` are within the levels.
fn scale<const BITS: u32>(largest: f32) -> f16 {
    let most = most::<BITS>() as f32;
    let nearest = f16::from_f32((largest / most).min(f16::MAX.to_f32())).max(f16::MIN_POSITIVE_SUBNORMAL);
    let next = f16::from_bits(nearest.to_bits() + 1);
    if nearest.to_f32() * most < largest && next.is_finite() { next } else { nearest }
}

/// The level below or above `value`, each so often that the mean is `value`.
fn round<const BITS: u32>(value: f32, rng: &mut impl Rng) -> i32 {
    let below = value.floor();
    // 24 bits, as many as the fraction has.
    let chance = (rng.next_u32() >> 8) as f32 / (1u32 << 24) as f32;
    let up = chance < value - below;
    // Beyond the levels only where no scale of half precision is large enough.
    (below as i32).saturating_add(i32::from(up)).clamp(-most::<BITS>(), most::<BITS>())
}
