//! A classifier that is several.

use burn::tensor::{Tensor, backend::Backend};

use crate::Mode;

/// A classifier whose scores are made of those of its members, each a classifier: nets of their own, or one net with a
/// classifier at several depths.
///
/// # Laws
/// [`Classifier::forward`](crate::Classifier::forward) is the mean over all members of `logits` up to rounding, or, of
/// nested members, the logits of the last. Every
/// tensor of the model lies below the path of just one member. The logits of a member depend on its own layers and,
/// where members are nested, on those of members before it.
pub trait Ensemble<B: Backend> {
    /// Paths of each member's layers, each with all that is below it. Layers of several members belong to the first.
    fn members(&self) -> Vec<Vec<String>>;

    /// Paths of those layers of a member on which the scores of no other depend: its classifier, or all of it.
    ///
    /// # Panics
    /// Where there is no such member.
    fn own(&self, member: usize) -> Vec<String>;

    /// Whether a member goes on where the one before it ends.
    fn nested(&self) -> bool;

    /// Class scores (logits) `[batch, classes]` of each of `members`, ascending, of `inputs`
    /// `[batch, channels, height, width]`; no other member's own layers are looked at, but nested ones' before them.
    ///
    /// # Panics
    /// Where there is no such member.
    fn logits(&self, members: &[usize], inputs: Tensor<B, 4>, mode: Mode) -> Vec<Tensor<B, 2>>;
}

/// A model that an [`Ensemble`] of nested members holds: one member with all that its scores depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Size {
    /// Paths of its layers, each with all that is below it.
    pub paths: Vec<String>,
    /// Paths of those before its classifier that a smaller model does not have, from input to output.
    pub layers: Vec<String>,
}

impl Size {
    /// The models that `ensemble` holds, one a member.
    pub fn all<B: Backend>(ensemble: &dyn Ensemble<B>) -> Vec<Self> {
        let mut before: Vec<String> = Vec::new();
        let members = ensemble.members().into_iter().enumerate();
        let size = |(member, paths): (usize, Vec<String>)| {
            let own = ensemble.own(member);
            let layers: Vec<String> = paths.into_iter().filter(|path| !own.contains(path)).collect();
            before.extend_from_slice(&layers);
            Self { paths: before.iter().cloned().chain(own).collect(), layers }
        };
        members.map(size).collect()
    }
}
