//! Which part of the model each client trains.

use std::fmt::Debug;

use crate::{ClientId, RoundIndex, SliceName};

/// Decides, on the server, which part of the model a client holds.
///
/// # Laws
/// The answer is a function of the arguments, so that a server that goes on where another was asks for the same.
pub trait SubModels: Debug + Send + Sync {
    /// Names of the parts, which share no tensor; none: the whole model.
    fn held(&self, round: RoundIndex, client: ClientId) -> Vec<SliceName>;
}
