//! An exact weighted sum of `f32` vectors: the same bits for any order, any grouping, any number of threads.
//!
//! Floating-point sums depend on the order of their terms, so that a mean folded in order of arrival differs from run
//! to run. This one holds integers only. A finite `f32` is `m x 2^(b - 150)` with an integer `m < 2^24` and a biased
//! exponent `b` in `1..=254`; the 254 exponents are cut into four *windows* of 67. Within a window a value is the
//! integer `m << shift` with `shift < 67`, and as the weights of a sum stay below `2^36` in total, a 128-bit integer
//! holds every sum of a window: `24 + 36 + 66 = 126` bits. All windows together hold every sum of any finite values
//! without rounding; the mean is one exact division, rounded once.
//!
//! Model parameters lie in one window, `2^-59 <= |v| < 2^8`, which is always there: 16 bytes a value. The others are
//! made where a value needs them, for 4,096 values at a time.

use thiserror::Error;

/// The exact sum of `weight x values` over vectors of one length, and its mean.
///
/// # Laws
/// Any order of `add`, and any tree of `merge`, give the same mean, bit for bit. The mean of a single vector is that
/// vector, bit for bit; equal vectors have themselves as mean; scaling every weight changes nothing. Each value of the
/// mean is the exact quotient rounded once to the nearest `f32`, ties to even, subnormal results included. A mean of
/// zero is `+0.0`, except that values that are all `-0.0` keep their sign, as does a quotient too small for `f32`.
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
    /// The common window of every value.
    common: Vec<i128>,
    /// What the common window cannot hold, by block of [`BLOCK`] values.
    rare: Vec<Option<Box<Rare>>>,
    weight: u64,
}

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
        Self { common: vec![0; len], rare: vec![None; len.div_ceil(BLOCK)], weight: 0 }
    }

    /// Number of values of each vector.
    pub fn len(&self) -> usize {
        self.common.len()
    }

    /// Whether the vectors have no values.
    pub fn is_empty(&self) -> bool {
        self.common.is_empty()
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
        if weight == 0 {
            return Err(ExactSumError::ZeroWeight);
        }
        let total = self.total_with(values.len(), weight)?;
        // Without an early exit this pass is vectorised; the index is only looked for where there is one.
        if !values.iter().fold(true, |finite, v| finite & v.is_finite()) {
            let index = values.iter().position(|v| !v.is_finite()).unwrap_or_default();
            return Err(ExactSumError::NonFinite { index });
        }
        let blocks = self.common.chunks_mut(BLOCK).zip(values.chunks(BLOCK));
        for ((sums, values), rare) in blocks.zip(&mut self.rare) {
            if add_common(sums, values, weight) {
                rare.get_or_insert_default().add(values, weight);
            }
        }
        self.weight = total;
        Ok(())
    }

    /// Adds everything that `other` holds. A refused sum leaves this one untouched.
    ///
    /// # Errors
    /// [`ExactSumError::Length`], [`ExactSumError::WeightLimit`].
    pub fn merge(&mut self, other: Self) -> Result<(), ExactSumError> {
        self.weight = self.total_with(other.len(), other.weight)?;
        add_all(&mut self.common, &other.common);
        for (rare, other) in self.rare.iter_mut().zip(other.rare) {
            match (rare, other) {
                (Some(rare), Some(other)) => rare.merge(&other),
                (rare @ None, other) => *rare = other,
                (Some(_), None) => {}
            }
        }
        Ok(())
    }

    /// The weighted mean, each value rounded once.
    ///
    /// # Errors
    /// [`ExactSumError::Empty`] where nothing was added.
    pub fn mean(&self) -> Result<Vec<f32>, ExactSumError> {
        if self.weight == 0 {
            return Err(ExactSumError::Empty);
        }
        let mut means = Vec::with_capacity(self.len());
        for (sums, rare) in self.common.chunks(BLOCK).zip(&self.rare) {
            match rare {
                None => means.extend(sums.iter().map(|&sum| common_mean(sum, self.weight))),
                Some(rare) => means.extend(sums.iter().enumerate().map(|(i, &sum)| rare.mean(i, sum, self.weight))),
            }
        }
        Ok(means)
    }

    fn total_with(&self, len: usize, weight: u64) -> Result<u64, ExactSumError> {
        if len != self.len() {
            return Err(ExactSumError::Length { expected: self.len(), found: len });
        }
        let total = self.weight.saturating_add(weight);
        if total >= Self::WEIGHT_LIMIT {
            return Err(ExactSumError::WeightLimit { total });
        }
        Ok(total)
    }
}

/// What one block holds outside the common window. Each part is empty until a value needs it.
#[derive(Clone, Debug, Default)]
struct Rare {
    /// The windows below and above the common one; the common window's own place stays empty.
    windows: [Vec<i128>; WINDOWS],
    /// The weight that came with a value of `-0.0`, which no integer shows.
    negative_zero: Vec<u64>,
}

impl Rare {
    fn add(&mut self, values: &[f32], weight: u64) {
        for (i, &value) in values.iter().enumerate() {
            let Parts { negative, mantissa, window, shift } = Parts::of(value);
            if mantissa == 0 {
                if negative {
                    sized(&mut self.negative_zero)[i] += weight;
                }
            } else if window != COMMON {
                sized(&mut self.windows[window])[i] += signed(mantissa * weight, shift, negative);
            }
        }
    }

    fn merge(&mut self, other: &Self) {
        for (window, other) in self.windows.iter_mut().zip(&other.windows).filter(|(_, other)| !other.is_empty()) {
            add_all(sized(window), other);
        }
        if !other.negative_zero.is_empty() {
            sized(&mut self.negative_zero).iter_mut().zip(&other.negative_zero).for_each(|(a, b)| *a += b);
        }
    }

    fn mean(&self, index: usize, common: i128, weight: u64) -> f32 {
        let mut windows = [0; WINDOWS];
        for (sum, window) in windows.iter_mut().zip(&self.windows) {
            *sum = window.get(index).copied().unwrap_or_default();
        }
        windows[COMMON] = common;
        let only_negative_zero = self.negative_zero.get(index) == Some(&weight);
        if only_negative_zero { -0.0 } else { wide_mean(windows, weight) }
    }
}

/// A finite `f32` taken apart: `mantissa x 2^(WINDOW_BITS x window + shift - 149)`.
struct Parts {
    negative: bool,
    mantissa: u64,
    window: usize,
    shift: u32,
}

impl Parts {
    fn of(value: f32) -> Self {
        let bits = value.to_bits();
        let (biased, fraction) = (bits >> 23 & 0xff, u64::from(bits & 0x7f_ffff));
        // Subnormals have the exponent of the smallest normals, without the implicit bit.
        let mantissa = if biased == 0 { fraction } else { fraction | 1 << 23 };
        let exponent = biased.max(1) - 1;
        Self {
            negative: bits >> 31 == 1,
            mantissa,
            window: (exponent / WINDOW_BITS) as usize,
            shift: exponent % WINDOW_BITS,
        }
    }
}

/// Adds the values that lie in the common window, and says whether something is left for [`Rare`].
fn add_common(sums: &mut [i128], values: &[f32], weight: u64) -> bool {
    let mut left = false;
    for (sum, &value) in sums.iter_mut().zip(values) {
        let bits = value.to_bits();
        let shift = (bits >> 23 & 0xff).wrapping_sub(COMMON_FIRST_EXPONENT);
        if shift < WINDOW_BITS {
            let mantissa = u64::from(bits & 0x7f_ffff | 1 << 23);
            *sum += signed(mantissa * weight, shift, bits >> 31 == 1);
        } else {
            left |= bits != 0;
        }
    }
    left
}

/// `±(product << shift)`; `product < 2^60` and `shift < 67`, so that nothing is lost.
#[inline]
fn signed(product: u64, shift: u32, negative: bool) -> i128 {
    let magnitude = i128::from(product) << shift;
    let mask = -i128::from(negative);
    (magnitude ^ mask) - mask
}

/// The mean of a value that never left the common window.
#[inline]
fn common_mean(sum: i128, weight: u64) -> f32 {
    let magnitude = sum.unsigned_abs();
    if magnitude == 0 {
        return 0.0;
    }
    let zeros = magnitude.leading_zeros();
    let aligned = magnitude << zeros;
    let exponent = 64 - zeros as i32 + WINDOW_BITS as i32 * COMMON as i32 - 149;
    rounded_quotient(sum < 0, (aligned >> 64) as u64, aligned as u64 != 0, exponent, weight)
}

/// The mean of a value that needs several windows: `sum of windows[w] << (WINDOW_BITS x w)`, divided.
fn wide_mean(windows: [i128; WINDOWS], weight: u64) -> f32 {
    // All weights are below 2^36 and the largest value is 2^24 << 253: the sum fits 313 bits and a sign.
    let mut limbs = [0u64; LIMBS];
    for (index, window) in windows.into_iter().enumerate() {
        add_shifted(&mut limbs, window, WINDOW_BITS as usize * index);
    }
    let negative = limbs[LIMBS - 1] >> 63 == 1;
    if negative {
        negate(&mut limbs);
    }
    let Some(top) = limbs.iter().rposition(|&limb| limb != 0) else {
        return 0.0;
    };
    let zeros = limbs[top].leading_zeros();
    let below = if top == 0 { 0 } else { limbs[top - 1] };
    let joined = (u128::from(limbs[top]) << 64 | u128::from(below)) << zeros;
    let lost = joined as u64 != 0 || limbs[..top.saturating_sub(1)].iter().any(|&limb| limb != 0);
    rounded_quotient(negative, (joined >> 64) as u64, lost, 64 * top as i32 - zeros as i32 - 149, weight)
}

/// Adds `value << shift` in two's complement.
fn add_shifted(limbs: &mut [u64; LIMBS], value: i128, shift: usize) {
    let extension = (value >> 127) as u64;
    let words = [value as u64, (value >> 64) as u64];
    let word = |index: usize| words.get(index).copied().unwrap_or(extension);
    let (skip, bits) = (shift / 64, shift % 64);
    let mut carry = false;
    for (index, limb) in limbs[skip..].iter_mut().enumerate() {
        let low = if index == 0 { 0 } else { word(index - 1) };
        let moved = ((u128::from(word(index)) << 64 | u128::from(low)) << bits >> 64) as u64;
        (*limb, carry) = add_with_carry(*limb, moved, carry);
    }
}

fn negate(limbs: &mut [u64; LIMBS]) {
    let mut carry = true;
    for limb in limbs {
        (*limb, carry) = add_with_carry(!*limb, 0, carry);
    }
}

fn add_with_carry(a: u64, b: u64, carry: bool) -> (u64, bool) {
    let (sum, first) = a.overflowing_add(b);
    let (sum, second) = sum.overflowing_add(u64::from(carry));
    (sum, first || second)
}

/// `± (top + lost) x 2^exponent / weight` as the nearest `f32`, ties to even; `lost` stands for a positive part of
/// `top`'s unit. `top >= 2^63` and `weight < 2^36`, so that the quotient has at least 28 bits: 24 for the mantissa,
/// and below them what decides the rounding, the last of which may stand for everything further down.
#[inline]
fn rounded_quotient(negative: bool, top: u64, lost: bool, exponent: i32, weight: u64) -> f32 {
    let quotient = top / weight;
    let quotient = quotient | u64::from(lost || quotient * weight != top);
    let length = 64 - quotient.leading_zeros() as i32;
    // Down to 24 bits, or to multiples of 2^-149 where the result is subnormal.
    let drop = (length - 24).max(-149 - exponent);
    let mantissa = match drop {
        ..64 => {
            let (kept, rest, half) = (quotient >> drop, quotient & ((1 << drop) - 1), 1u64 << (drop - 1));
            kept + u64::from(rest > half || rest == half && kept & 1 == 1)
        }
        // Only the quotient's size against one half of 2^-149 is left; a tie goes to the even 0.
        64 => u64::from(quotient > 1 << 63),
        65.. => 0,
    };
    // A mantissa that rounding carried to 2^24 moves into the exponent by itself; one below 2^23 is subnormal.
    let bits = ((exponent + drop + 149) as u32) << 23;
    f32::from_bits((bits + mantissa as u32) | u32::from(negative) << 31)
}

/// The part, at full length once it is needed.
fn sized<T: Clone + Default>(part: &mut Vec<T>) -> &mut [T] {
    if part.is_empty() {
        part.resize(BLOCK, T::default());
    }
    part
}

fn add_all(sums: &mut [i128], others: &[i128]) {
    sums.iter_mut().zip(others).for_each(|(a, b)| *a += b);
}

/// Values that share their rare windows.
const BLOCK: usize = 4096;
/// Number of exponents in a window.
const WINDOW_BITS: u32 = 67;
/// Windows that cover the 254 exponents.
const WINDOWS: usize = 4;
/// The window of ordinary parameters, `2^-59 <= |v| < 2^8`.
const COMMON: usize = 1;
/// The first biased exponent of the common window.
const COMMON_FIRST_EXPONENT: u32 = WINDOW_BITS * COMMON as u32 + 1;
/// 64-bit words of a sum over all windows.
const LIMBS: usize = 5;
