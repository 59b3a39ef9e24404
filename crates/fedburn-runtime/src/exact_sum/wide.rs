//! Sums over the whole range of `f32`, for the few values that need them.

/// A sum as an integer, in units of `2^-149`: two's complement, least significant word first. Every finite `f32` is
/// such an integer below `2^277`; with weights below `2^36` the sum fits 313 bits and a sign.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wide([u64; LIMBS]);

/// 64-bit words of a sum.
pub(super) const LIMBS: usize = 5;

impl Wide {
    /// The sum of these words.
    pub(super) fn of_limbs(limbs: [u64; LIMBS]) -> Self {
        Self(limbs)
    }

    /// Its words.
    pub(super) fn limbs(&self) -> [u64; LIMBS] {
        self.0
    }

    /// Adds an exact sum of products: any finite multiple of `2^-149`.
    pub(super) fn add(&mut self, term: f64) {
        let bits = term.to_bits();
        let (biased, fraction) = ((bits << 1 >> 53) as i32, bits << 12 >> 12);
        if biased == 0 {
            // Zero: what is subnormal in f64 lies far below 2^-149.
            return;
        }
        let (mantissa, shift) = (i128::from(fraction | 1 << 52), biased - 1075 + 149);
        // Bits below the unit are zeros.
        let magnitude = if shift < 0 { mantissa >> -shift } else { mantissa };
        add_shifted(&mut self.0, if term < 0.0 { -magnitude } else { magnitude }, shift.max(0) as usize);
    }

    /// Adds another sum.
    pub(super) fn merge(&mut self, other: &Self) {
        let mut carry = false;
        for (limb, other) in self.0.iter_mut().zip(other.0) {
            (*limb, carry) = add_with_carry(*limb, other, carry);
        }
    }

    /// The quotient by `weight`, rounded once.
    pub(super) fn mean(&self, weight: u64) -> f32 {
        let mut limbs = self.0;
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
/// `top`'s unit. `top >= 2^62` and `weight < 2^36`, so that the quotient has at least 26 bits: 24 for the mantissa,
/// and below them what decides the rounding, the last of which may stand for everything further down.
pub(super) fn rounded_quotient(negative: bool, top: u64, lost: bool, exponent: i32, weight: u64) -> f32 {
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
