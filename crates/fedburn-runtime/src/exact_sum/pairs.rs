//! Sums as pairs of `f64` whose unevaluated sum is exact, for several values side by side.
//!
//! The error of a floating-point addition is itself a floating-point number, found with six operations: D. Knuth,
//! "The Art of Computer Programming", vol. 2, section 4.2.2, theorem B. `high` takes the terms, `low` their errors;
//! where `low` too had to round, the sum says so and does not count. Nothing here depends on the width of the vectors:
//! every operation is IEEE 754 arithmetic on one value.

use super::wide::rounded_quotient;

/// Weights below this make products with an `f32` that are exact: `24 + 29 = 53` bits.
pub(super) const EXACT_WEIGHT: u64 = 1 << 29;

/// The sums of `N` values.
pub(super) struct Pairs<const N: usize> {
    pub(super) high: [f64; N],
    pub(super) low: [f64; N],
    /// What rounding `low` lost, as bits; the sign does not count.
    lost: [u64; N],
}

/// Total weight, and what a quotient by it needs.
#[derive(Clone, Copy)]
pub(super) struct Divisor {
    pub(super) weight: u64,
    pub(super) value: f64,
    pub(super) reciprocal: f64,
}

impl<const N: usize> Pairs<N> {
    /// The sum of nothing: `-0.0`, because adding `0.0` to it makes `0.0` and adding `-0.0` leaves it.
    pub(super) const EMPTY: Self = Self { high: [-0.0; N], low: [0.0; N], lost: [0; N] };

    #[inline(always)]
    pub(super) fn of(high: &[f64; N], low: &[f64; N]) -> Self {
        Self { high: *high, low: *low, lost: [0; N] }
    }

    /// Adds `weight x values`; `weight` is an integer below [`EXACT_WEIGHT`], or such a one times a power of two.
    #[inline(always)]
    pub(super) fn add(&mut self, values: &[f32; N], weight: f64) {
        for (lane, &value) in values.iter().enumerate() {
            let (high, error) = two_sum(self.high[lane], f64::from(value) * weight);
            let (low, lost) = two_sum(self.low[lane], error);
            (self.high[lane], self.low[lane]) = (high, low);
            self.lost[lane] |= lost.to_bits() << 1;
        }
    }

    /// Whether nothing was lost, nor any term NaN or infinite.
    #[inline(always)]
    pub(super) fn is_exact(&self) -> bool {
        self.lost.iter().fold(0, |all, lost| all | lost) == 0
    }

    /// The quotients, each rounded once, and which of them are in doubt or not numbers: those whose word is not 0.
    #[inline(always)]
    pub(super) fn means(&self, divisor: &Divisor) -> ([f32; N], [u32; N]) {
        let (mut means, mut doubts) = ([0.0; N], [0; N]);
        for lane in 0..N {
            let (sum, error) = two_sum(self.high[lane], self.low[lane]);
            // An error of zero would turn a sum of -0.0 into 0.0.
            let sum = if self.low[lane] == 0.0 { self.high[lane] } else { sum };
            let first = sum * divisor.reciprocal;
            // Exact, as `first` is a few units off at most and the weight has 36 bits.
            let rest = (-first).mul_add(divisor.value, sum);
            let rest_and_error = rest + error;
            // Adding a zero would turn a quotient of -0.0 into 0.0.
            let more = first + rest_and_error * divisor.reciprocal;
            let quotient = if rest_and_error == 0.0 { first } else { more };
            // A quotient that f64 holds, a tie above all, leaves no doubt.
            let exact = error == 0.0 && (quotient - first) * divisor.value == rest;
            let slack = if exact { 0.0 } else { SLACK };
            (means[lane], doubts[lane]) = between(quotient * (1.0 - slack), quotient * (1.0 + slack));
        }
        (means, doubts)
    }
}

impl Divisor {
    pub(super) fn new(weight: u64) -> Self {
        Self { weight, value: weight as f64, reciprocal: 1.0 / weight as f64 }
    }
}

/// More than the relative error of a quotient, and of the bounds made from it: `2^-53` for each of four roundings.
const SLACK: f64 = 4.0 * f64::EPSILON;

/// Rounds what lies between two bounds. Rounding keeps order, so that bounds which agree leave no doubt; otherwise, or
/// where a bound is NaN, the word is not 0.
#[inline(always)]
pub(super) fn between(low: f64, high: f64) -> (f32, u32) {
    let (low, high) = (low as f32, high as f32);
    (low, (low.to_bits() ^ high.to_bits()) | u32::from(low.is_nan()))
}

/// Whether any word is not 0.
#[inline(always)]
pub(super) fn any<const N: usize>(doubts: &[u32; N]) -> bool {
    doubts.iter().fold(0, |all, doubt| all | doubt) != 0
}

/// The sum rounded, and its error: `a + b` exactly, in any order of magnitude.
#[inline(always)]
pub(super) fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let b_part = sum - a;
    (sum, (a - (sum - b_part)) + (b - b_part))
}

/// One sum and one more term, or `None` where a pair cannot hold them.
pub(super) fn add_exactly((high, low): (f64, f64), term: f64) -> Option<(f64, f64)> {
    let (high, error) = two_sum(high, term);
    let (low, lost) = two_sum(low, error);
    // Also false where a term is NaN or infinite.
    (lost == 0.0).then_some((high, low))
}

/// One quotient `(high + low) / weight`, rounded once, whatever the doubt.
pub(super) fn mean_of_pair(high: f64, low: f64, weight: u64) -> f32 {
    let (sum, error) = two_sum(high, low);
    if sum == 0.0 {
        return if low == 0.0 { high as f32 } else { 0.0 };
    }
    // Eleven more bits than the sum's own 53, and whether anything is left below them. No sum is subnormal in f64.
    let (bits, negative) = (sum.to_bits(), sum < 0.0);
    let (mantissa, exponent) = (bits << 12 >> 12 | 1 << 52, (bits << 1 >> 53) as i32 - 1075);
    let scale = f64::from_bits(((1023 + 11 - exponent) as u64) << 52);
    let below = if negative { -error * scale } else { error * scale };
    let whole = below.floor();
    let top = (mantissa << 11).wrapping_add_signed(whole as i64);
    rounded_quotient(negative, top, below != whole, exponent - 11, weight)
}
