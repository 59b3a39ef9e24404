//! Mini-batches of one local training run.

use burn::tensor::backend::Backend;
use fedburn_core::Seed;
use rand::seq::SliceRandom;

use crate::{Batch, ClientData};

/// Mini-batches of one client's data. Shuffled runs draw a fresh permutation for every epoch, from `seed.index(epoch)`
/// with epochs counted from 0; the last batch of an epoch may be smaller. A client without data has no batches.
///
/// # Determinism
/// The batches are a function of the data, the batch size and the seed, on every backend.
#[derive(Clone, Debug)]
pub struct Batches<'a, B: Backend> {
    data: &'a ClientData,
    device: &'a B::Device,
    batch_size: usize,
    /// `None` keeps the order of the data.
    seed: Option<Seed>,
    /// Positions in `data`, in this epoch's order.
    order: Vec<usize>,
    /// Start of the next batch in `order`.
    next: usize,
    /// Epochs begun so far.
    epoch: u64,
    /// Batches still to come.
    remaining: usize,
}

impl<'a, B: Backend> Batches<'a, B> {
    /// `epochs` shuffled passes over the data. A `batch_size` of 0 counts as 1; one beyond the data, such as
    /// `usize::MAX`, makes a single batch an epoch.
    pub fn epochs(data: &'a ClientData, batch_size: usize, epochs: usize, seed: Seed, device: &'a B::Device) -> Self {
        let batches = per_epoch(data, batch_size).saturating_mul(epochs);
        Self::new(data, batch_size, batches, Some(seed), device)
    }

    /// `steps` shuffled batches, over as many passes as that takes; `usize::MAX` is without end.
    pub fn steps(data: &'a ClientData, batch_size: usize, steps: usize, seed: Seed, device: &'a B::Device) -> Self {
        let batches = if data.is_empty() { 0 } else { steps };
        Self::new(data, batch_size, batches, Some(seed), device)
    }

    /// One pass in the order of the data, for evaluation.
    pub fn in_order(data: &'a ClientData, batch_size: usize, device: &'a B::Device) -> Self {
        Self::new(data, batch_size, per_epoch(data, batch_size), None, device)
    }

    /// The data behind the batches.
    pub fn data(&self) -> &'a ClientData {
        self.data
    }

    fn new(
        data: &'a ClientData,
        batch_size: usize,
        remaining: usize,
        seed: Option<Seed>,
        device: &'a B::Device,
    ) -> Self {
        let batch_size = batch_size.clamp(1, data.len().max(1));
        Self { data, device, batch_size, seed, order: Vec::new(), next: 0, epoch: 0, remaining }
    }

    /// A permutation that does not depend on the epochs before it.
    fn begin_epoch(&mut self) {
        self.order.clear();
        self.order.extend(0..self.data.len());
        if let Some(seed) = self.seed {
            self.order.shuffle(&mut seed.index(self.epoch).rng());
        }
        self.epoch += 1;
        self.next = 0;
    }
}

impl<B: Backend> Iterator for Batches<'_, B> {
    type Item = Batch<B>;

    fn next(&mut self) -> Option<Batch<B>> {
        self.remaining = self.remaining.checked_sub(1)?;
        if self.next == self.order.len() {
            self.begin_epoch();
        }
        let end = (self.next + self.batch_size).min(self.order.len());
        let batch = self.data.batch(&self.order[self.next..end], self.device);
        self.next = end;
        Some(batch)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.remaining, Some(self.remaining))
    }
}

impl<B: Backend> ExactSizeIterator for Batches<'_, B> {}

fn per_epoch(data: &ClientData, batch_size: usize) -> usize {
    data.len().div_ceil(batch_size.max(1))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use burn_flex::{Flex, FlexDevice};
    use fedburn_core::ClassId;

    use super::*;
    use crate::{Examples, Inputs, Transform};

    fn numbered(len: usize) -> ClientData {
        let labels = vec![ClassId(0); len];
        let inputs = Inputs::F32((0..len).map(|i| i as f32).collect());
        ClientData::all(Arc::new(Examples::new(inputs, [1, 1, 1], labels, 1).unwrap()))
    }

    fn contents(batches: Batches<'_, Flex>) -> Vec<Vec<f32>> {
        batches.map(|batch| batch.inputs.into_data().to_vec().unwrap()).collect()
    }

    #[test]
    fn each_epoch_is_another_permutation_of_all_data() {
        let data = numbered(10);
        let batches = Batches::epochs(&data, 4, 3, Seed::new(1), &FlexDevice);
        assert_eq!(batches.len(), 9);
        let batches = contents(batches);
        assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4, 2, 4, 4, 2, 4, 4, 2]);
        let epochs: Vec<Vec<f32>> = batches.chunks(3).map(|b| b.concat()).collect();
        for epoch in &epochs {
            let mut sorted = epoch.clone();
            sorted.sort_by(f32::total_cmp);
            assert_eq!(sorted, (0..10).map(|i| i as f32).collect::<Vec<_>>());
        }
        assert!(epochs[0] != epochs[1] && epochs[1] != epochs[2]);
    }

    #[test]
    fn steps_run_through_the_same_batches_as_epochs() {
        let data = numbered(10);
        let epochs = contents(Batches::epochs(&data, 4, 2, Seed::new(1), &FlexDevice));
        let steps = contents(Batches::steps(&data, 4, 5, Seed::new(1), &FlexDevice));
        assert_eq!(steps, epochs[..5]);
        assert_ne!(steps, contents(Batches::steps(&data, 4, 5, Seed::new(2), &FlexDevice)));
        let endless = contents_of_first(Batches::steps(&data, 4, usize::MAX, Seed::new(1), &FlexDevice), 6);
        assert_eq!(endless, epochs);
    }

    fn contents_of_first(batches: Batches<'_, Flex>, count: usize) -> Vec<Vec<f32>> {
        batches.take(count).map(|batch| batch.inputs.into_data().to_vec().unwrap()).collect()
    }

    #[test]
    fn evaluation_keeps_the_order() {
        assert_eq!(
            contents(Batches::in_order(&numbered(5), 2, &FlexDevice)),
            [vec![0.0, 1.0], vec![2.0, 3.0], vec![4.0]]
        );
    }

    #[test]
    fn odd_sizes_are_defined() {
        let (none, some) = (numbered(0), numbered(3));
        assert_eq!(Batches::<Flex>::steps(&none, 2, 7, Seed::new(0), &FlexDevice).count(), 0);
        assert_eq!(Batches::<Flex>::epochs(&none, 2, 7, Seed::new(0), &FlexDevice).count(), 0);
        assert_eq!(Batches::<Flex>::epochs(&some, 0, 1, Seed::new(0), &FlexDevice).count(), 3);
        assert_eq!(Batches::<Flex>::epochs(&some, usize::MAX, 2, Seed::new(0), &FlexDevice).count(), 2);
    }

    #[test]
    fn a_transform_changes_inputs_in_the_same_way_every_epoch() {
        let data = numbered(1).with_transform(Transform::Noise { sigma: 1.0, seed: Seed::new(9) });
        let values = contents(Batches::epochs(&data, 1, 2, Seed::new(0), &FlexDevice)).concat();
        assert!(values[0] == values[1] && values[0] != 0.0);
    }
}
