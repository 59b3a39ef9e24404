//! Element-wise arithmetic on host rows, for rules whose state lives on the host or whose operations (sorting) backends
//! do there anyway. A piece of the round is `clients` rows of `len` values, one after another; loops run along rows, so
//! that the compiler makes vector instructions of them.

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

/// `sum_k weights[k] * rows[k]` with one weight a row, in `f64`.
pub(crate) fn weighted_rows(weights: &[f64], rows: &[f32], len: usize) -> Vec<f64> {
    let mut sums = vec![0.0f64; len];
    for (weight, row) in weights.iter().zip(rows.chunks_exact(len)) {
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += weight * f64::from(*x));
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

/// Sorts each column of `rows` upwards: Batcher's merge exchange (Knuth, The Art of Computer Programming 3, algorithm
/// 5.2.2M), a fixed sequence of exchanges between whole rows.
pub(crate) fn sort_columns(rows: &mut [f32], len: usize) {
    let count = rows.len() / len;
    let top = count.next_power_of_two() / 2;
    let mut p = top;
    while p > 0 {
        let (mut q, mut r, mut d) = (top, 0, p);
        loop {
            for i in (0..count - d.min(count)).filter(|i| i & p == r) {
                let (low, high) = rows.split_at_mut((i + d) * len);
                exchange(&mut low[i * len..][..len], &mut high[..len]);
            }
            if q == p {
                break;
            }
            (d, q, r) = (q - p, q / 2, p);
        }
        p /= 2;
    }
}

fn exchange(low: &mut [f32], high: &mut [f32]) {
    for (a, b) in low.iter_mut().zip(high) {
        (*a, *b) = if *b < *a { (*b, *a) } else { (*a, *b) };
    }
}

/// The median of each column of `rows`, sorted by [`sort_columns`]; of an even number the mean of the two in the middle.
pub(crate) fn median_of_sorted(rows: &[f32], len: usize) -> Vec<f32> {
    let count = rows.len() / len;
    mean_rows(&rows[(count - 1) / 2 * len..(count / 2 + 1) * len], len)
}

/// The rows at these places, one after another.
pub(crate) fn choose_rows(rows: &[f32], places: &[usize], len: usize) -> Vec<f32> {
    let mut chosen = Vec::with_capacity(places.len() * len);
    places.iter().for_each(|k| chosen.extend_from_slice(&rows[k * len..][..len]));
    chosen
}

/// The mean of each column.
pub(crate) fn mean_rows(rows: &[f32], len: usize) -> Vec<f32> {
    let count = (rows.len() / len) as f64;
    if rows.len() == len {
        return rows.to_vec();
    }
    let mut sums = vec![0.0f64; len];
    for row in rows.chunks_exact(len) {
        sums.iter_mut().zip(row).for_each(|(sum, v)| *sum += f64::from(*v));
    }
    sums.into_iter().map(|sum| (sum / count) as f32).collect()
}

/// `sum_i (a_i - b_i)^2`, in several lanes of `f64`: neither overflow nor cancellation.
pub(crate) fn squared_distance<T: Copy + Into<f64>>(a: &[f32], b: &[T]) -> f64 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut sums = [0.0f64; 8];
    for (a, b) in a.iter().zip(b) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            let difference = f64::from(*a) - (*b).into();
            *sum += difference * difference;
        }
    }
    let rest = a_rest.iter().zip(b_rest).map(|(a, b)| (f64::from(*a) - (*b).into()).powi(2));
    sums.iter().sum::<f64>() + rest.sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the zero-one principle a fixed sequence of exchanges sorts everything if it sorts zeros and ones.
    #[test]
    fn merge_exchange_sorts_every_sequence_of_zeros_and_ones() {
        for count in 1..=12u32 {
            for bits in 0..1u32 << count {
                let mut rows: Vec<f32> = (0..count).map(|i| (bits >> i & 1) as f32).collect();
                sort_columns(&mut rows, 1);
                assert!(rows.is_sorted(), "{count} rows, {bits:b}: {rows:?}");
            }
        }
    }

    #[test]
    fn columns_are_sorted_one_by_one() {
        let mut rows = vec![3.0, 1.0, 1.0, 2.0, 2.0, 3.0];
        sort_columns(&mut rows, 2);
        assert_eq!(rows, [1.0, 1.0, 2.0, 2.0, 3.0, 3.0]);
        assert_eq!(median_of_sorted(&rows, 2), [2.0, 2.0]);
        assert_eq!(median_of_sorted(&rows[..4], 2), [1.5, 1.5]);
        assert_eq!(median_of_sorted(&[f32::MAX, f32::MAX], 1), [f32::MAX]);
    }

    #[test]
    fn lanes_and_rest_are_counted_once() {
        for len in [0, 1, 7, 8, 9, 31] {
            let a: Vec<f32> = (0..len).map(|i| i as f32).collect();
            let b = vec![1.0f32; len];
            let expected: f64 = (0..len).map(|i| (i as f64 - 1.0).powi(2)).sum();
            assert_eq!(squared_distance(&a, &b), expected);
            assert_eq!(sum(&a), (0..len).sum::<usize>() as f64);
        }
    }
}
