//! Exact weighted sums and means of `f32` vectors: the same bits for any order, any grouping, any number of threads.
//!
//! Floating-point sums depend on the order of their terms, so that a mean folded in order of arrival differs from run
//! to run. These sums do not round. An `f32` times a weight below `2^29` is exact in `f64`, and a pair of `f64`, the
//! rounded sum and the sum of its rounding errors, holds over a hundred bits, wherever they lie; a value that needs
//! more moves to an integer of 320 bits, which holds every sum of finite values. The mean is the exact quotient,
//! rounded once: computed in `f64` with a bound of its error, and exactly where that leaves a doubt.
//!
//! Where all vectors are at hand, [`exact_mean_into`] needs no sums at all: rounding in doubt is so rare that one plain
//! `f64` sum with an error bound does for nearly every value, at the speed at which memory is read.

mod at_once;
mod kernel;
mod pairs;
mod stored;
mod wide;

use thiserror::Error;

pub use at_once::{exact_mean, exact_mean_into};
use kernel::{Kernel, dispatch, in_parts, number_of_parts};
use pairs::{Divisor, EXACT_WEIGHT, Pairs};
use wide::Wide;

/// The exact sum of `weight x values` over vectors of one length, and its mean.
///
/// # Laws
/// Any order of `add`, and any tree of `merge`, give the same mean, bit for bit. The mean of a single vector is that
/// vector, bit for bit; equal vectors have themselves as mean; scaling every weight changes nothing. Each value of the
/// mean is the exact quotient rounded once to the nearest `f32`, ties to even, subnormal results included. A mean of
/// zero is `+0.0`, except that values that are all `-0.0` keep their sign, as does a quotient too small for `f32`.
///
/// Memory: 16 bytes a value, and 40 more for those in a block of 1,024 of which one needs more bits than a pair has.
///
/// # Examples
///
/// ```
/// use fedburn_runtime::ExactSum;
///
/// let (a, b) = ([1.0f32, 1e-30, -3.0], [0.5f32, 3e30, 1.0]);
/// let mut sum = ExactSum::new(3);
/// sum.add(&a, 60)?;
/// sum.add(&b, 20)?;
///
/// let (mut left, mut right) = (ExactSum::new(3), ExactSum::new(3));
/// left.add(&b, 20)?;
/// right.add(&a, 60)?;
/// left.merge(right)?;
/// assert_eq!(sum.mean()?, left.mean()?);
/// assert_eq!(sum.mean()?[0], 0.875);
/// # Ok::<(), fedburn_runtime::ExactSumError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ExactSum {
    /// Each sum is `high + low`, unevaluated; NaN in `high` stands for a sum in `wide`.
    high: Vec<f64>,
    low: Vec<f64>,
    /// What pairs cannot hold, by block of [`BLOCK`] values.
    wide: Vec<WideBlock>,
    weight: u64,
    threads: usize,
}

type WideBlock = Option<Box<[Wide]>>;

/// A vector, or a sum, that an [`ExactSum`] cannot take.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ExactSumError {
    /// The vector is not as long as the sum.
    #[error("expected {expected} values, found {found}")]
    Length {
        /// The sum's length.
        expected: usize,
        /// The vector's length.
        found: usize,
    },
    /// A value is NaN or infinite.
    #[error("value {index} is not finite")]
    NonFinite {
        /// Index of the first such value.
        index: usize,
    },
    /// A vector without weight cannot count.
    #[error("the weight is 0, expected at least 1")]
    ZeroWeight,
    /// The weights reach [`ExactSum::WEIGHT_LIMIT`].
    #[error("the weights add up to {total}, expected less than {}", ExactSum::WEIGHT_LIMIT)]
    WeightLimit {
        /// What they would add up to, at most `u64::MAX`.
        total: u64,
    },
    /// Nothing was added, so that there is no mean.
    #[error("the mean of no vectors is undefined")]
    Empty,
}

impl ExactSum {
    /// The weights of a sum add up to less than this, `2^36`: more examples than a round can have.
    pub const WEIGHT_LIMIT: u64 = 1 << 36;

    /// The empty sum of vectors of `len` values.
    pub fn new(len: usize) -> Self {
        Self {
            high: vec![-0.0; len],
            low: vec![0.0; len],
            wide: vec![None; len.div_ceil(BLOCK)],
            weight: 0,
            threads: 1,
        }
    }

    /// Lets sums and means of long vectors use up to so many threads, at least 1. Changes no bit of any result.
    #[must_use]
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.threads = threads.max(1);
        self
    }

    /// Number of values of each vector.
    pub fn len(&self) -> usize {
        self.high.len()
    }

    /// Whether the vectors have no values.
    pub fn is_empty(&self) -> bool {
        self.high.is_empty()
    }

    /// The weights added so far.
    pub fn weight(&self) -> u64 {
        self.weight
    }

    /// Adds `weight x values`; `weight` is usually a number of examples. A refused vector leaves the sum untouched.
    ///
    /// # Errors
    /// [`ExactSumError::Length`], [`ExactSumError::NonFinite`], [`ExactSumError::ZeroWeight`],
    /// [`ExactSumError::WeightLimit`].
    pub fn add(&mut self, values: &[f32], weight: u64) -> Result<(), ExactSumError> {
        self.add_all(&[(values, weight)])
    }

    /// Adds several vectors, each with its weight, in one pass over the sums: several times faster than one by one.
    /// Where one is refused none is added.
    ///
    /// # Errors
    /// As [`ExactSum::add`].
    pub fn add_all(&mut self, updates: &[(&[f32], u64)]) -> Result<(), ExactSumError> {
        let total = check(self.len(), self.weight, updates.iter().map(|(values, weight)| (values.len(), *weight)))?;
        for (values, _) in updates {
            if let Some(index) = first_non_finite(values) {
                return Err(ExactSumError::NonFinite { index });
            }
        }
        let terms: Vec<Term<'_>> = updates.iter().flat_map(|(values, weight)| exact_terms(values, *weight)).collect();
        let size = self.part_size(terms.len() + 4);
        let blocks = size / BLOCK;
        let starts = (0..).step_by(size);
        let parts = starts
            .zip(self.high.chunks_mut(size).zip(self.low.chunks_mut(size)))
            .zip(self.wide.chunks_mut(blocks))
            .map(|((start, (high, low)), wide)| Fold { start, high, low, wide, terms: &terms });
        in_parts(parts, dispatch);
        self.weight = total;
        Ok(())
    }

    /// Adds everything that `other` holds. A refused sum leaves this one untouched.
    ///
    /// # Errors
    /// [`ExactSumError::Length`], [`ExactSumError::WeightLimit`].
    pub fn merge(&mut self, other: Self) -> Result<(), ExactSumError> {
        let total = total_weight(self.weight, other.weight)?;
        if other.len() != self.len() {
            return Err(ExactSumError::Length { expected: self.len(), found: other.len() });
        }
        let theirs = other.high.chunks(BLOCK).zip(other.low.chunks(BLOCK)).zip(&other.wide);
        let own = self.high.chunks_mut(BLOCK).zip(self.low.chunks_mut(BLOCK)).zip(&mut self.wide);
        for (((high, low), wide), ((their_high, their_low), their_wide)) in own.zip(theirs) {
            for (index, terms) in their_high.iter().zip(their_low).enumerate() {
                match their_wide {
                    Some(theirs) if terms.0.is_nan() => {
                        widened(&mut high[index], &mut low[index], wide, index).merge(&theirs[index]);
                    }
                    _ => add_value(&mut high[index], &mut low[index], wide, index, [*terms.0, *terms.1].into_iter()),
                }
            }
        }
        self.weight = total;
        Ok(())
    }

    /// The weighted mean, each value rounded once.
    ///
    /// # Errors
    /// [`ExactSumError::Empty`] where nothing was added.
    pub fn mean(&self) -> Result<Vec<f32>, ExactSumError> {
        self.divided_by(self.weight)
    }

    /// The sum over another weight than what was added, each value rounded once: the mean where the rest of the weight
    /// came with values of `-0.0`, which change no sum.
    ///
    /// # Errors
    /// [`ExactSumError::Empty`] for a weight of 0.
    pub(crate) fn divided_by(&self, weight: u64) -> Result<Vec<f32>, ExactSumError> {
        if weight == 0 {
            return Err(ExactSumError::Empty);
        }
        let mut means = vec![0.0; self.len()];
        let divisor = Divisor::new(weight);
        let size = self.part_size(5);
        let sums = self.high.chunks(size).zip(self.low.chunks(size)).zip(self.wide.chunks(size / BLOCK));
        let parts = means.chunks_mut(size).zip(sums).map(|(means, ((high, low), wide))| Means {
            high,
            low,
            wide,
            divisor: &divisor,
            means,
        });
        in_parts(parts, dispatch);
        Ok(means)
    }

    /// Values that one thread takes, whole blocks, where each value costs about `touched` words of memory.
    fn part_size(&self, touched: usize) -> usize {
        let parts = number_of_parts(self.threads, self.len() * touched);
        self.len().div_ceil(parts).next_multiple_of(BLOCK).max(BLOCK)
    }
}

/// A vector and a weight whose products are exact.
type Term<'a> = (&'a [f32], f64);

/// `weight x values` as one exact term, or two where the weight has too many bits for one.
fn exact_terms(values: &[f32], weight: u64) -> impl Iterator<Item = Term<'_>> {
    exact_weights(weight).map(move |weight| (values, weight))
}

/// A weight as a sum of one or two whose products with an `f32` are exact.
fn exact_weights(weight: u64) -> impl Iterator<Item = f64> {
    let low = weight % EXACT_WEIGHT;
    // Also where the lower part is zero: the sign of a zero product counts.
    let high = (weight != low).then_some((weight - low) as f64);
    std::iter::once(low as f64).filter(move |&low| low != 0.0 || high.is_none()).chain(high)
}

/// The total weight of `updates`, each a length and a weight, if all fit in.
pub(crate) fn check(
    expected: usize,
    weight: u64,
    updates: impl IntoIterator<Item = (usize, u64)>,
) -> Result<u64, ExactSumError> {
    updates.into_iter().try_fold(weight, |total, (found, weight)| {
        if weight == 0 {
            return Err(ExactSumError::ZeroWeight);
        }
        if found != expected {
            return Err(ExactSumError::Length { expected, found });
        }
        total_weight(total, weight)
    })
}

fn total_weight(weight: u64, more: u64) -> Result<u64, ExactSumError> {
    let total = weight.saturating_add(more);
    if total >= ExactSum::WEIGHT_LIMIT { Err(ExactSumError::WeightLimit { total }) } else { Ok(total) }
}

/// The index of the first NaN or infinity.
pub(crate) fn first_non_finite(values: &[f32]) -> Option<usize> {
    // Without an early exit this pass is vectorised; the index is only looked for where there is one.
    let finite = values.iter().fold(true, |finite, v| finite & v.is_finite());
    if finite { None } else { values.iter().position(|v| !v.is_finite()) }
}

/// Adds terms to some of the sums.
struct Fold<'a> {
    /// Where the sums begin in the terms' vectors.
    start: usize,
    high: &'a mut [f64],
    low: &'a mut [f64],
    wide: &'a mut [WideBlock],
    terms: &'a [Term<'a>],
}

impl Kernel for Fold<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const LANES: usize>(self) {
        let blocks = self.high.chunks_mut(BLOCK).zip(self.low.chunks_mut(BLOCK)).zip(self.wide);
        for (((high, low), wide), start) in blocks.zip((self.start..).step_by(BLOCK)) {
            let (high_groups, high_rest) = high.as_chunks_mut::<GROUP>();
            let (low_groups, low_rest) = low.as_chunks_mut::<GROUP>();
            // The sums of a block stay in the cache; more vectors at a time would drive each other out of it.
            for terms in self.terms.chunks(TERMS) {
                let mut at = 0;
                for (high, low) in high_groups.iter_mut().zip(low_groups.iter_mut()) {
                    fold(high, low, wide, at, start, terms);
                    at += GROUP;
                }
                let rest = high_rest.as_chunks_mut::<1>().0.iter_mut().zip(low_rest.as_chunks_mut::<1>().0);
                for (high, low) in rest {
                    fold(high, low, wide, at, start, terms);
                    at += 1;
                }
            }
        }
    }
}

/// Adds terms to the `N` sums of a block that begin at `at`; the block begins at `start` in the terms.
#[inline(always)]
fn fold<const N: usize>(
    high: &mut [f64; N],
    low: &mut [f64; N],
    wide: &mut WideBlock,
    at: usize,
    start: usize,
    terms: &[Term<'_>],
) {
    let mut pairs = Pairs::of(high, low);
    for (values, weight) in terms {
        pairs.add(kernel::group(values, start + at), *weight);
    }
    if pairs.is_exact() {
        (*high, *low) = (pairs.high, pairs.low);
        return;
    }
    for (lane, (high, low)) in high.iter_mut().zip(low).enumerate() {
        let products = terms.iter().map(|(values, weight)| f64::from(values[start + at + lane]) * weight);
        add_value(high, low, wide, at + lane, products);
    }
}

/// Adds terms to one sum, `index` within its block, and moves it to `wide` where a pair does not hold it.
#[cold]
fn add_value(
    high: &mut f64,
    low: &mut f64,
    wide: &mut WideBlock,
    index: usize,
    mut terms: impl Iterator<Item = f64> + Clone,
) {
    let sum = terms.clone().try_fold((*high, *low), pairs::add_exactly);
    match sum {
        Some(sum) => (*high, *low) = sum,
        None => {
            let wide = widened(high, low, wide, index);
            terms.by_ref().for_each(|term| wide.add(term));
        }
    }
}

/// The wide sum of a value, made from its pair where it still has one.
fn widened<'a>(high: &mut f64, low: &mut f64, wide: &'a mut WideBlock, index: usize) -> &'a mut Wide {
    let wide = &mut wide.get_or_insert_with(|| vec![Wide::default(); BLOCK].into())[index];
    if !high.is_nan() {
        wide.add(*high);
        wide.add(*low);
        (*high, *low) = (f64::NAN, 0.0);
    }
    wide
}

/// Divides some of the sums.
struct Means<'a> {
    high: &'a [f64],
    low: &'a [f64],
    wide: &'a [WideBlock],
    divisor: &'a Divisor,
    means: &'a mut [f32],
}

impl Kernel for Means<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const LANES: usize>(self) {
        let (groups, rest) = self.means.as_chunks_mut::<GROUP>();
        let mut at = 0;
        for means in groups {
            divide(self.high, self.low, self.wide, at, self.divisor, means);
            at += GROUP;
        }
        for means in rest.as_chunks_mut::<1>().0 {
            divide(self.high, self.low, self.wide, at, self.divisor, means);
            at += 1;
        }
    }
}

#[inline(always)]
fn divide<const N: usize>(
    high: &[f64],
    low: &[f64],
    wide: &[WideBlock],
    at: usize,
    divisor: &Divisor,
    means: &mut [f32; N],
) {
    let (quotients, doubts) = Pairs::<N>::of(kernel::group(high, at), kernel::group(low, at)).means(divisor);
    *means = quotients;
    if pairs::any(&doubts) {
        for (index, (mean, doubt)) in (at..).zip(means.iter_mut().zip(doubts)) {
            if doubt != 0 {
                *mean = match &wide[index / BLOCK] {
                    Some(wide) if high[index].is_nan() => wide[index % BLOCK].mean(divisor.weight),
                    _ => pairs::mean_of_pair(high[index], low[index], divisor.weight),
                };
            }
        }
    }
}

/// Values that share an allocation of wide sums.
const BLOCK: usize = 1024;
/// Vectors that are added in one pass over a block.
const TERMS: usize = 4;
/// Sums that are added to side by side: few enough to stay in registers.
const GROUP: usize = 16;

#[cfg(test)]
mod tests {
    use super::kernel::run_at;
    use super::*;

    /// Ordinary values, ties, zeros of both signs, and values that no pair holds.
    fn vectors(len: usize) -> Vec<(Vec<f32>, u64)> {
        let value = |k: usize, i: usize| match (i * 7 + k) % 53 {
            0 => 0.0,
            1 => -0.0,
            2 => [1e-30, 1e30, -1e-38, 3.0][(k + i) % 4],
            3 => f32::from_bits(1 + k as u32),
            n => (n as f32 - 26.0) * 0.037 + (k * len + i) as f32 * 1e-6,
        };
        (0..6)
            .map(|k| ((0..len).map(|i| value(k, i)).collect(), [600, 600, 1, (1 << 29) + 7, 1 << 30, 600][k]))
            .collect()
    }

    #[test]
    fn every_processor_gives_the_same_bits() {
        let vectors = vectors(1500);
        let terms: Vec<Term<'_>> = vectors.iter().flat_map(|(values, weight)| exact_terms(values, *weight)).collect();
        let divisor = Divisor::new(vectors.iter().map(|(_, weight)| weight).sum());
        let results: Vec<Vec<u32>> = (0..3)
            .filter_map(|level| {
                let mut sum = ExactSum::new(1500);
                let ExactSum { high, low, wide, .. } = &mut sum;
                run_at(level, Fold { start: 0, high, low, wide, terms: &terms })?;
                assert!(sum.wide.iter().all(Option::is_some), "every block has values that need it");
                let mut means = vec![0.0; 1500];
                let (high, low, wide) = (&sum.high, &sum.low, &sum.wide);
                run_at(level, Means { high, low, wide, divisor: &divisor, means: &mut means })?;
                Some(means.iter().map(|v| v.to_bits()).collect())
            })
            .collect();
        assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
        let updates: Vec<_> = vectors.iter().map(|(values, weight)| (&values[..], *weight)).collect();
        for level in 0..3 {
            if let Some(means) = at_once::means_at(level, &updates) {
                assert_eq!(means.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), results[0]);
            }
        }
    }
}
