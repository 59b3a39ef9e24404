//! The values of largest size with their places: `gap u32 | value f32`, by rising place.
//!
//! A gap is the number of values left out before a value, so that places rise whatever the bytes are.

use super::CodecError;

/// Bytes of a value with its gap.
const ENTRY_LEN: usize = 8;

/// Number of values that are kept of `num_values`.
pub(super) fn count(ratio: f64, num_values: usize) -> usize {
    ((ratio * num_values as f64).ceil() as usize).min(num_values)
}

pub(super) fn encoded_len(count: usize) -> usize {
    ENTRY_LEN * count
}

pub(super) fn encode(values: &[f32], count: usize, bytes: &mut Vec<u8>) -> Result<(), CodecError> {
    let Some(last) = count.checked_sub(1) else { return Ok(()) };
    let mut sizes: Vec<f32> = values.iter().map(|value| value.abs()).collect();
    let smallest = *sizes.select_nth_unstable_by(last, |a, b| b.total_cmp(a)).1;
    let mut equal = count - values.iter().filter(|value| value.abs() > smallest).count();
    let mut next = 0;
    for (place, value) in values.iter().enumerate() {
        let keep = value.abs() > smallest || (value.abs() == smallest && equal > 0);
        if !keep {
            continue;
        }
        equal -= usize::from(value.abs() == smallest);
        let too_far = |_| CodecError::Place { index: place as u64, num_values: values.len() };
        let gap = u32::try_from(place - next).map_err(too_far)?;
        bytes.extend_from_slice(&gap.to_le_bytes());
        bytes.extend_from_slice(&value.to_le_bytes());
        next = place + 1;
    }
    Ok(())
}

pub(super) fn decode(bytes: &[u8], num_values: usize) -> Result<Vec<f32>, CodecError> {
    let mut values = vec![0.0; num_values];
    let mut next = 0;
    for entry in bytes.as_chunks::<ENTRY_LEN>().0 {
        let [g0, g1, g2, g3, v0, v1, v2, v3] = *entry;
        let place = next + u64::from(u32::from_le_bytes([g0, g1, g2, g3]));
        let slot = usize::try_from(place).ok().and_then(|place| values.get_mut(place));
        let slot = slot.ok_or(CodecError::Place { index: place, num_values })?;
        *slot = f32::from_le_bytes([v0, v1, v2, v3]);
        next = place + 1;
    }
    Ok(values)
}
