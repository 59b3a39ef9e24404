//! Whole numbers from shares, without NaN and without loops that may not end.

use fedburn_core::Seed;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Exp1, Gamma, StandardNormal};

use super::{Partition, check_minimum};
use crate::PartitionError;

/// One draw of `len` shares from the symmetric Dirichlet distribution with `alpha > 0`. Finite for every alpha: the
/// gamma variates are drawn as logarithms, where a tiny alpha cannot underflow to 0 / 0.
///
/// For `alpha < 1` a gamma variate is one of `alpha + 1` times `U^(1 / alpha)` (Marsaglia and Tsang, ACM TOMS 26(3),
/// 2000), and `-ln U` is exponential. An alpha above 10^12 is drawn as 10^12, whose shares are equal to six digits.
pub(crate) fn dirichlet(alpha: f64, len: usize, rng: &mut ChaCha8Rng) -> Vec<f64> {
    let alpha = alpha.min(1e12);
    let shape = if alpha < 1.0 { alpha + 1.0 } else { alpha };
    let gamma = Gamma::new(shape, 1.0).expect("the shape is between 1 and 10^12");
    let draw = |_| {
        let log = gamma.sample(rng).ln();
        if alpha < 1.0 {
            let exponential: f64 = Exp1.sample(rng);
            log - exponential / alpha
        } else {
            log
        }
    };
    softmax((0..len).map(draw).collect())
}

/// `len` shares of log-normal weights `exp(sigma x N(0, 1))`.
pub(super) fn log_normal(sigma: f64, len: usize, rng: &mut ChaCha8Rng) -> Vec<f64> {
    let draw = |_| {
        let normal: f64 = StandardNormal.sample(rng);
        sigma * normal
    };
    softmax((0..len).map(draw).collect())
}

/// `exp(x)`, normalised to sum one; finite whatever the logarithms are.
pub(super) fn softmax(mut logs: Vec<f64>) -> Vec<f64> {
    logs.iter_mut().for_each(|log| *log = log.clamp(f64::MIN, f64::MAX));
    let max = logs.iter().copied().fold(f64::MIN, f64::max);
    logs.iter_mut().for_each(|log| *log = (*log - max).exp());
    let sum: f64 = logs.iter().sum();
    logs.iter_mut().for_each(|weight| *weight /= sum);
    logs
}

/// Cuts `total` into pieces at the floors of the cumulative shares, the last piece taking the rest: the rule of the
/// public Dirichlet splits. `shares` is not empty and sums to one.
pub(super) fn cut(total: usize, shares: &[f64]) -> Vec<usize> {
    let mut sum = 0.0;
    let mut start = 0;
    let last = shares.len() - 1;
    let piece = |(position, share): (usize, &f64)| {
        sum += share;
        let end = if position == last { total } else { ((sum * total as f64) as usize).clamp(start, total) };
        let size = end - start;
        start = end;
        size
    };
    shares.iter().enumerate().map(piece).collect()
}

/// Whole sizes that sum to `total` and are nearest to the shares: floors, then one more for the largest remainders,
/// ties to the first (Hamilton's method). `shares` sums to one.
pub(super) fn largest_remainder(total: usize, shares: &[f64]) -> Vec<usize> {
    let quotas: Vec<f64> = shares.iter().map(|share| share * total as f64).collect();
    let mut left = total;
    let mut sizes = Vec::with_capacity(quotas.len());
    for quota in &quotas {
        // Rounding may make the floors sum to one more than the total.
        let size = (quota.floor() as usize).min(left);
        left -= size;
        sizes.push(size);
    }
    let remainder = |k: usize| quotas[k] - quotas[k].floor();
    let mut order: Vec<usize> = (0..quotas.len()).collect();
    order.sort_by(|&a, &b| remainder(b).total_cmp(&remainder(a)));
    for &k in order.iter().cycle().take(if order.is_empty() { 0 } else { left }) {
        sizes[k] += 1;
    }
    sizes
}

/// Sizes as near to equal as can be; the first ones are larger by one.
pub(super) fn equal(total: usize, parts: usize) -> Vec<usize> {
    (0..parts).map(|k| total / parts + usize::from(k < total % parts)).collect()
}

/// How many examples each client gives away so that all can have `min_examples`: everyone below is filled up, everyone
/// above pays in proportion to its surplus, nobody sinks below. Needs `clients x min_examples <= total`.
pub(super) fn donations(sizes: &[usize], min_examples: usize) -> Vec<usize> {
    let deficit: usize = sizes.iter().map(|size| min_examples.saturating_sub(*size)).sum();
    let surplus: Vec<usize> = sizes.iter().map(|size| size.saturating_sub(min_examples)).collect();
    let total: usize = surplus.iter().sum();
    if deficit == 0 {
        return vec![0; sizes.len()];
    }
    // Exact integer quotas: cumulative floors differ by at most each client's surplus, because deficit <= total.
    let (mut before, mut paid) = (0u128, 0u128);
    let gift = |own: &usize| {
        before += *own as u128;
        let due = before * deficit as u128 / total as u128;
        let gift = due - paid;
        paid = due;
        gift as usize
    };
    surplus.iter().map(gift).collect()
}

/// Makes a partition of `clients`, first moving random examples from large clients to those below `min_examples`.
/// Moves exactly the number that is missing, once: time in proportion to examples and clients.
pub(super) fn repaired(
    mut clients: Vec<Vec<usize>>,
    num_examples: usize,
    min_examples: usize,
    seed: Seed,
) -> Result<Partition, PartitionError> {
    let sizes: Vec<usize> = clients.iter().map(Vec::len).collect();
    check_minimum(sizes.iter().sum(), clients.len(), min_examples)?;
    let mut rng = seed.rng();
    let mut pool = Vec::new();
    for (indices, gift) in clients.iter_mut().zip(donations(&sizes, min_examples)) {
        if gift > 0 {
            indices.shuffle(&mut rng);
            pool.extend(indices.drain(indices.len() - gift..));
        }
    }
    let moved = pool.len();
    pool.shuffle(&mut rng);
    for indices in &mut clients {
        let missing = min_examples.saturating_sub(indices.len());
        indices.extend(pool.drain(pool.len() - missing..));
    }
    Ok(Partition::new(clients, num_examples)?.with_moved(moved))
}

/// Deals a list out in consecutive pieces of the given sizes, which sum to at most its length.
pub(super) fn deal(indices: &[usize], sizes: &[usize]) -> Vec<Vec<usize>> {
    let mut rest = indices;
    let piece = |&size: &usize| {
        let (piece, after) = rest.split_at(size);
        rest = after;
        piece.to_vec()
    };
    sizes.iter().map(piece).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pieces_add_up(total in 0usize..5000, logs in prop::collection::vec(any::<f64>(), 1..40)) {
            let logs: Vec<f64> = logs.into_iter().map(|l| if l.is_nan() { 0.0 } else { l }).collect();
            let shares = softmax(logs);
            prop_assert!(shares.iter().all(|s| s.is_finite() && *s >= 0.0));
            prop_assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            prop_assert_eq!(cut(total, &shares).iter().sum::<usize>(), total);
            let sizes = largest_remainder(total, &shares);
            prop_assert_eq!(sizes.iter().sum::<usize>(), total);
            for (size, share) in sizes.iter().zip(&shares) {
                prop_assert!((*size as f64 - share * total as f64).abs() <= 1.0 + 1e-6);
            }
            prop_assert_eq!(equal(total, shares.len()).iter().sum::<usize>(), total);
        }

        #[test]
        fn donations_pay_exactly_what_is_missing(sizes in prop::collection::vec(0usize..50, 1..30), min in 0usize..20) {
            prop_assume!(sizes.len() * min <= sizes.iter().sum());
            let gifts = donations(&sizes, min);
            let missing: usize = sizes.iter().map(|s| min.saturating_sub(*s)).sum();
            prop_assert_eq!(gifts.iter().sum::<usize>(), missing);
            for (size, gift) in sizes.iter().zip(gifts) {
                prop_assert!(gift == 0 || size - gift >= min);
            }
        }

        #[test]
        fn dirichlet_shares_are_finite_for_every_alpha(exponent in -320.0f64..308.0, len in 1usize..50, seed: u64) {
            let alpha = 10f64.powf(exponent).max(f64::MIN_POSITIVE);
            let shares = dirichlet(alpha, len, &mut Seed::new(seed).rng());
            prop_assert!(shares.iter().all(|s| (0.0..=1.0).contains(s)));
            prop_assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn dirichlet_shares_have_the_mean_and_variance_of_theory() {
        // Share of one of K: mean 1 / K, variance (K - 1) / (K^2 (K alpha + 1)).
        let (len, draws) = (5, 20_000);
        for alpha in [0.05, 0.3, 1.0, 10.0] {
            let mut rng = Seed::new(11).rng();
            let first: Vec<f64> = (0..draws).map(|_| dirichlet(alpha, len, &mut rng)[0]).collect();
            let k = len as f64;
            let variance = (k - 1.0) / (k * k * (k * alpha + 1.0));
            let mean = first.iter().sum::<f64>() / draws as f64;
            let squares: Vec<f64> = first.iter().map(|s| (s - 1.0 / k).powi(2)).collect();
            let found = squares.iter().sum::<f64>() / draws as f64;
            let spread = squares.iter().map(|s| (s - found).powi(2)).sum::<f64>() / draws as f64;
            assert!((mean - 1.0 / k).abs() < 5.0 * (variance / draws as f64).sqrt(), "alpha {alpha}: mean {mean}");
            assert!(
                (found - variance).abs() < 5.0 * (spread / draws as f64).sqrt(),
                "alpha {alpha}: {found}, {variance}"
            );
        }
    }
}
