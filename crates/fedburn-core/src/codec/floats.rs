//! Floats of two and four bytes.

use half::{bf16, f16};

pub(super) fn encode<const N: usize>(values: &[f32], write: impl Fn(f32) -> [u8; N], bytes: &mut Vec<u8>) {
    values.iter().for_each(|&value| bytes.extend_from_slice(&write(value)));
}

pub(super) fn decode<const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.as_chunks::<N>().0.iter().map(|bytes| read(*bytes)).collect()
}

pub(super) fn to_f16(value: f32) -> [u8; 2] {
    let limit = f16::MAX.to_f32();
    f16::from_f32(value.clamp(-limit, limit)).to_le_bytes()
}

pub(super) fn from_f16(bytes: [u8; 2]) -> f32 {
    f16::from_le_bytes(bytes).to_f32()
}

pub(super) fn to_bf16(value: f32) -> [u8; 2] {
    let limit = bf16::MAX.to_f32();
    bf16::from_f32(value.clamp(-limit, limit)).to_le_bytes()
}

pub(super) fn from_bf16(bytes: [u8; 2]) -> f32 {
    bf16::from_le_bytes(bytes).to_f32()
}
