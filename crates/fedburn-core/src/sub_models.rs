//! Which part of the model each client trains, and how much it counts.

use std::fmt::Debug;
use std::num::NonZeroU64;
use std::ops::Range;

use crate::{ClientId, RoundIndex, SliceName};

/// Decides, on the server, which part of the model a client holds and how much it counts.
///
/// # Laws
/// Answers are functions of the arguments, so that a server that goes on where another was asks for the same.
pub trait SubModels: Debug + Send + Sync {
    /// Names of the parts, which share no tensor; none: the whole model.
    fn held(&self, round: RoundIndex, client: ClientId) -> Vec<SliceName>;

    /// How many times a client counts in the round's mean: a factor of the weight that it has by itself.
    fn times(&self, _round: RoundIndex, _client: ClientId) -> NonZeroU64 {
        NonZeroU64::MIN
    }

    /// Stretches of the vector that a client holds, whose values are not of its making: they do not count in the round's
    /// mean, and stay as they are where nobody makes any.
    fn uncounted(&self, _round: RoundIndex, _client: ClientId) -> Vec<Range<usize>> {
        Vec::new()
    }
}
