//! Element-wise arithmetic on host rows, for rules whose state lives on the host or whose operations (sorting) every
//! backend does there anyway. A piece of the round is `clients` rows of `len` values, one after another; loops run along rows, so that the
//! compiler makes vector instructions of them.

use burn::tensor::{Tensor, backend::Backend};

/// The tensor's values as `f32`, in its own order; without a copy where the backend is the host and the tensor unshared.
pub(crate) fn to_host<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().into_vec().expect("converted to f32 just before")
}

/// Divides each column of `rows` by its sum, which must not be zero.
pub(crate) fn normalise_columns(rows: &mut [f32], len: usize) {
    let mut totals = vec![0.0f32; len];
    for row in rows.chunks_exact(len) {
        totals.iter_mut().zip(row).for_each(|(total, w)| *total += w);
    }
    for row in rows.chunks_exact_mut(len) {
        row.iter_mut().zip(&totals).for_each(|(w, total)| *w /= total);
    }
}

/// `sum_k weights[k] * rows[k]`, column by column.
pub(crate) fn weighted_columns(weights: &[f32], rows: &[f32], len: usize) -> Vec<f32> {
    let mut sums = vec![0.0f32; len];
    for (weights, row) in weights.chunks_exact(len).zip(rows.chunks_exact(len)) {
        sums.iter_mut().zip(weights).zip(row).for_each(|((sum, w), x)| *sum += w * x);
    }
    sums
}

/// The sum in `f64`, in several lanes so that additions need not wait for each other.
pub(crate) fn sum(values: &[f32]) -> f64 {
    let (lanes, rest) = values.as_chunks::<8>();
    let mut sums = [0.0f64; 8];
    for lane in lanes {
        sums.iter_mut().zip(lane).for_each(|(sum, v)| *sum += f64::from(*v));
    }
    sums.iter().sum::<f64>() + rest.iter().map(|v| f64::from(*v)).sum::<f64>()
}
