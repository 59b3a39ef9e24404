//! The clients' models as teachers: a few networks in memory, whatever the number of clients.

use std::ops::Range;

use burn::backend::Autodiff;
use burn::tensor::{Tensor, backend::Backend};
use fedburn_core::{Classifier, Mode, ModelFamily, SchemaError, UpdateSet, load_frozen};

use super::losses::Taught;
use crate::network::blank;

/// Networks that hold vectors to be asked for scores, never trained. Nothing of a vector changes by being asked: its
/// running statistics are read, not followed, and no gradient reaches its weights.
pub(super) struct Teachers<'a, B: Backend, F: ModelFamily<B>> {
    family: &'a F,
    updates: &'a UpdateSet<B>,
    device: B::Device,
    /// The first clients keep a network each; the others share the last one.
    slots: Vec<Option<(usize, F::TrainModel)>>,
}

impl<'a, B: Backend, F: ModelFamily<B>> Teachers<'a, B, F> {
    /// The models of `updates`, with at most `resident` networks in memory, at least one.
    pub(super) fn new(family: &'a F, updates: &'a UpdateSet<B>, resident: usize, device: B::Device) -> Self {
        let slots = (0..resident.clamp(1, updates.len())).map(|_| None).collect();
        Self { family, updates, device, slots }
    }

    pub(super) fn len(&self) -> usize {
        self.updates.len()
    }

    /// The network with the model of the `k`-th client.
    fn network(&mut self, k: usize) -> Result<&F::TrainModel, SchemaError> {
        let place = k.min(self.slots.len() - 1);
        let network = match self.slots[place].take() {
            Some((held, network)) if held == k => network,
            other => {
                let network = other.map_or_else(|| blank(self.family, &self.device), |(_, network)| network);
                load_frozen(network, &self.updates.iter().as_slice()[k].local.params)?
            }
        };
        Ok(&self.slots[place].insert((k, network)).1)
    }

    /// Scores `[batch, classes]` of the `k`-th client's model for `x` `[batch, channels, height, width]`, through which
    /// gradients flow to `x` where it asks for them.
    pub(super) fn scores(
        &mut self,
        k: usize,
        x: Tensor<Autodiff<B>, 4>,
    ) -> Result<Tensor<Autodiff<B>, 2>, SchemaError> {
        Ok(self.network(k)?.forward(x, Mode::Evaluate))
    }

    /// What the clients of `group` say of `x` `[batch, channels, height, width]`, with their `weights` `[batch]`, which
    /// are those of all clients.
    pub(super) fn taught(
        &mut self,
        group: Range<usize>,
        weights: &[Tensor<B, 1>],
        x: &Tensor<B, 4>,
    ) -> Result<Vec<Taught<Autodiff<B>>>, SchemaError> {
        let one = |k: usize| {
            let scores = self.scores(k, Tensor::from_inner(x.clone()))?;
            Ok(Taught { scores, weights: Tensor::from_inner(weights[k].clone()) })
        };
        group.map(one).collect()
    }
}
