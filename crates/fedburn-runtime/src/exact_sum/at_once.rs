//! The exact mean of vectors that are all at hand.

use super::kernel::{Kernel, dispatch, group, in_parts, number_of_parts};
use super::pairs::{Divisor, Pairs, add_exactly, any, between, mean_of_pair};
use super::wide::Wide;
use super::{ExactSumError, Term, check, exact_terms, exact_weights};

/// The weighted mean of vectors, each with its weight, into `means` on up to `threads` threads: the bits that
/// [`ExactSum`](crate::ExactSum) gives, several times faster and without sums in memory. On error `means` is of no use.
///
/// Each value is summed in `f64` once, with a bound of the error. Where every number within the bound rounds to the
/// same `f32` that is the result; where not, about once in a million values or where quotients tie, the value is
/// summed again exactly.
///
/// # Errors
/// As [`ExactSum::add`](crate::ExactSum::add) and [`ExactSum::mean`](crate::ExactSum::mean).
///
/// # Examples
///
/// ```
/// let mut mean = [0.0; 3];
/// fedburn_runtime::exact_mean_into(&mut mean, &[(&[1.0, 1e-30, -3.0], 60), (&[0.5, 3e30, 1.0], 20)], 1)?;
/// assert_eq!(mean, [0.875, 7.5e29, -2.0]);
/// # Ok::<(), fedburn_runtime::ExactSumError>(())
/// ```
pub fn exact_mean_into(means: &mut [f32], updates: &[(&[f32], u64)], threads: usize) -> Result<(), ExactSumError> {
    mean(means, None, updates, threads)
}

/// As [`exact_mean_into`], with the means in the place of the first vector's values.
///
/// # Errors
/// As [`ExactSum::add`](crate::ExactSum::add).
pub fn exact_mean(first: (Vec<f32>, u64), others: &[(&[f32], u64)], threads: usize) -> Result<Vec<f32>, ExactSumError> {
    let (mut values, weight) = first;
    mean(&mut values, Some(weight), others, threads)?;
    Ok(values)
}

/// The mean of `others` and, where it has a weight, of what `means` holds.
fn mean(means: &mut [f32], own: Option<u64>, others: &[(&[f32], u64)], threads: usize) -> Result<(), ExactSumError> {
    let len = means.len();
    let own_length = own.map(|weight| (len, weight));
    let total =
        check(len, 0, own_length.into_iter().chain(others.iter().map(|(values, weight)| (values.len(), *weight))))?;
    if total == 0 {
        return Err(ExactSumError::Empty);
    }
    let own = own.map_or_else(Vec::new, |weight| exact_weights(weight).collect());
    let others: Vec<_> = others.iter().flat_map(|(values, weight)| exact_terms(values, *weight)).collect();
    let mean = Mean::new(&own, &others, total);
    let size = len.div_ceil(number_of_parts(threads, len.saturating_mul(others.len() + 2))).max(1);
    let parts = (0..).step_by(size).zip(means.chunks_mut(size));
    let outcomes = in_parts(parts.map(|(start, values)| Part { mean: &mean, start, values }), dispatch);
    let finite: Result<(), usize> = outcomes.into_iter().collect();
    finite.map_err(|index| ExactSumError::NonFinite { index })
}

/// What is to be computed.
struct Mean<'a> {
    /// The weight of what is in the place of the means, as one or two terms.
    own: &'a [f64],
    others: &'a [Term<'a>],
    divisor: Divisor,
    /// Error of a quotient, relative to the largest of its terms.
    slack: f64,
}

/// A piece of the flat axis, from `start` in the other vectors.
struct Part<'a> {
    mean: &'a Mean<'a>,
    start: usize,
    values: &'a mut [f32],
}

impl Kernel for Part<'_> {
    /// Fails with the index of the first value that is not finite.
    type Output = Result<(), usize>;

    #[inline(always)]
    fn run<const LANES: usize>(self) -> Result<(), usize> {
        let Self { mean, start: mut at, values } = self;
        let (groups, rest) = values.as_chunks_mut::<LANES>();
        for values in groups {
            mean.replace(at, values)?;
            at += LANES;
        }
        for values in rest.as_chunks_mut::<1>().0 {
            mean.replace(at, values)?;
            at += 1;
        }
        Ok(())
    }
}

impl<'a> Mean<'a> {
    fn new(own: &'a [f64], others: &'a [Term<'a>], weight: u64) -> Self {
        // A sum of so many rounded terms, the reciprocal and the product err by 2^-53 each at most; four times as much
        // covers the rounding of the bounds themselves.
        let slack = (own.len() + others.len() + 4) as f64 * 2.0 * f64::EPSILON;
        Self { own, others, divisor: Divisor::new(weight), slack }
    }

    /// Replaces `N` values by their means, or fails with the index of one that is not finite.
    #[inline(always)]
    fn replace<const N: usize>(&self, at: usize, values: &mut [f32; N]) -> Result<(), usize> {
        let mut sums = [-0.0; N];
        let mut largest = [0; N];
        for &weight in self.own {
            add(&mut sums, &mut largest, values, weight);
        }
        for (values, weight) in self.others {
            add(&mut sums, &mut largest, group(values, at), *weight);
        }
        let (mut means, mut doubts) = ([0.0; N], [0; N]);
        for lane in 0..N {
            let quotient = sums[lane] * self.divisor.reciprocal;
            let slack = f64::from(f32::from_bits(largest[lane])) * self.slack;
            (means[lane], doubts[lane]) = between(quotient - slack, quotient + slack);
        }
        if !any(&doubts) {
            *values = means;
            return Ok(());
        }
        for start in (0..N).step_by(GROUP) {
            let end = N.min(start + GROUP);
            if doubts[start..end].iter().all(|&doubt| doubt == 0) {
                values[start..end].copy_from_slice(&means[start..end]);
            } else if let Some(values) = values[start..].first_chunk_mut::<GROUP>() {
                self.settle(at + start, values)?;
            } else {
                values[start..]
                    .as_chunks_mut::<1>()
                    .0
                    .iter_mut()
                    .enumerate()
                    .try_for_each(|(i, v)| self.settle(at + start + i, v))?;
            }
        }
        Ok(())
    }

    /// The same by exact sums.
    #[inline(always)]
    fn settle<const N: usize>(&self, at: usize, values: &mut [f32; N]) -> Result<(), usize> {
        let mut pairs = Pairs::EMPTY;
        for &weight in self.own {
            pairs.add(values, weight);
        }
        for (values, weight) in self.others {
            pairs.add(group(values, at), *weight);
        }
        let (means, doubts) = pairs.means(&self.divisor);
        let all = !pairs.is_exact();
        for lane in 0..N {
            let doubt = all || doubts[lane] != 0;
            values[lane] = if doubt { self.exact(at + lane, values[lane]).ok_or(at + lane)? } else { means[lane] };
        }
        Ok(())
    }

    /// One mean, whatever the values, or `None` where one of them is not finite. `own` is the first vector's value.
    #[cold]
    fn exact(&self, index: usize, own: f32) -> Option<f32> {
        let own = self.own.iter().map(|weight| f64::from(own) * weight);
        let others = self.others.iter().map(|(values, weight)| f64::from(values[index]) * weight);
        let terms = own.chain(others);
        if let Some((high, low)) = terms.clone().try_fold((-0.0, 0.0), add_exactly) {
            return Some(mean_of_pair(high, low, self.divisor.weight));
        }
        let mut sum = Wide::default();
        for term in terms {
            if !term.is_finite() {
                return None;
            }
            sum.add(term);
        }
        Some(sum.mean(self.divisor.weight))
    }
}

/// Adds `weight x values`, and keeps the largest magnitude of each place, as bits, which order like magnitudes.
#[inline(always)]
fn add<const N: usize>(sums: &mut [f64; N], largest: &mut [u32; N], values: &[f32; N], weight: f64) {
    for lane in 0..N {
        sums[lane] += f64::from(values[lane]) * weight;
    }
    for lane in 0..N {
        largest[lane] = largest[lane].max(values[lane].to_bits() & 0x7fff_ffff);
    }
}

/// Values that are summed again where one of them is in doubt.
const GROUP: usize = 16;

/// The means of `updates`, computed with the instructions of `level`.
#[cfg(test)]
pub(super) fn means_at(level: usize, updates: &[(&[f32], u64)]) -> Option<Vec<f32>> {
    let others: Vec<_> = updates.iter().flat_map(|(values, weight)| exact_terms(values, *weight)).collect();
    let mut means = vec![0.0; updates[0].0.len()];
    let mean = Mean::new(&[], &others, updates.iter().map(|(_, weight)| weight).sum());
    super::kernel::run_at(level, Part { mean: &mean, start: 0, values: &mut means })?.ok()?;
    Some(means)
}
