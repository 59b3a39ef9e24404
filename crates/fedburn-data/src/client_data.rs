//! One client's view of shared examples.

use std::sync::Arc;

use burn::tensor::backend::Backend;
use fedburn_core::{ClassId, Seed};
use rand::seq::SliceRandom;

use crate::{Batch, DatasetError, Examples, Transform};

/// One client's data: indices into shared examples, and what its own instruments do to them.
#[derive(Clone, Debug)]
pub struct ClientData {
    examples: Arc<Examples>,
    indices: Vec<usize>,
    transform: Option<Transform>,
    labels: Labels,
}

/// Which labels a view gives to training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Labels {
    #[default]
    True,
    /// `C - 1 - y` for the label `y` of `C` classes.
    Flipped,
}

impl ClientData {
    /// The examples at `indices`. An index may occur more than once; the example then counts as often.
    ///
    /// # Errors
    /// [`DatasetError::Index`] where an index names no example.
    pub fn new(examples: Arc<Examples>, indices: Vec<usize>) -> Result<Self, DatasetError> {
        let len = examples.len();
        match indices.iter().find(|&&index| index >= len) {
            Some(&index) => Err(DatasetError::Index { index, len }),
            None => Ok(Self { examples, indices, transform: None, labels: Labels::True }),
        }
    }

    /// All of `examples`.
    pub fn all(examples: Arc<Examples>) -> Self {
        let indices = (0..examples.len()).collect();
        Self { examples, indices, transform: None, labels: Labels::True }
    }

    /// The same view through `transform`, which replaces an earlier one.
    #[must_use]
    pub fn with_transform(mut self, transform: Transform) -> Self {
        self.transform = Some(transform);
        self
    }

    /// The same view with every label `y` of `C` classes given as `C - 1 - y`: the data of a label-flipping attacker.
    #[must_use]
    pub fn with_flipped_labels(mut self) -> Self {
        self.labels = Labels::Flipped;
        self
    }

    /// The shared examples, before the client's transform, with their true labels.
    pub fn examples(&self) -> &Arc<Examples> {
        &self.examples
    }

    /// The client's examples, by index into [`ClientData::examples`].
    pub fn indices(&self) -> &[usize] {
        &self.indices
    }

    /// What the client's instruments do to its inputs.
    pub fn transform(&self) -> Option<&Transform> {
        self.transform.as_ref()
    }

    /// Number of the client's examples.
    pub fn len(&self) -> usize {
        self.indices.len()
    }

    /// Whether the client has no example.
    pub fn is_empty(&self) -> bool {
        self.indices.is_empty()
    }

    /// Number of the client's examples of each class, by class.
    pub fn class_counts(&self) -> Vec<u64> {
        let mut counts = vec![0; self.examples.num_classes()];
        let label = |&index: &usize| self.given(self.examples.labels()[index]).0 as usize;
        self.indices.iter().map(label).for_each(|label| counts[label] += 1);
        counts
    }

    /// Splits into training and held-out examples, drawn without regard to labels. `round(fraction x len)` examples
    /// are held out, but never the last training example; `fraction` is clamped to `[0, 1]`, NaN counts as 0. Both
    /// parts keep the order of the whole and its transform.
    pub fn split_holdout(&self, fraction: f64, seed: Seed) -> (ClientData, ClientData) {
        let wanted = (fraction.clamp(0.0, 1.0) * self.len() as f64).round() as usize;
        let num_held_out = wanted.min(self.len().saturating_sub(1));
        let mut positions: Vec<usize> = (0..self.len()).collect();
        positions.shuffle(&mut seed.rng());
        let (held_out, train) = positions.split_at_mut(num_held_out);
        let part = |positions: &mut [usize]| {
            positions.sort_unstable();
            Self { indices: positions.iter().map(|&p| self.indices[p]).collect(), ..self.without_indices() }
        };
        (part(train), part(held_out))
    }

    /// The examples at `positions` of this view, in that order, as tensors.
    ///
    /// # Panics
    /// Where a position is not below [`ClientData::len`].
    pub fn batch<B: Backend>(&self, positions: &[usize], device: &B::Device) -> Batch<B> {
        let indices: Vec<usize> = positions.iter().map(|&p| self.indices[p]).collect();
        let size = self.examples.size();
        let mut inputs = Vec::with_capacity(indices.len() * size);
        for &index in &indices {
            let start = inputs.len();
            self.examples.append_input(index, &mut inputs);
            if let Some(transform) = &self.transform {
                transform.apply(&mut inputs[start..], self.examples.shape(), index);
            }
        }
        let labels = indices.iter().map(|&index| self.given(self.examples.labels()[index]));
        self.examples.tensors(inputs, labels, device)
    }

    /// The label that training sees.
    fn given(&self, label: ClassId) -> ClassId {
        match self.labels {
            Labels::True => label,
            // Labels are below the number of classes.
            Labels::Flipped => ClassId(self.examples.num_classes() as u32 - 1 - label.0),
        }
    }

    fn without_indices(&self) -> Self {
        Self { indices: Vec::new(), examples: self.examples.clone(), transform: self.transform.clone(), ..*self }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use burn_flex::{Flex, FlexDevice};
    use proptest::prelude::*;

    use super::*;
    use crate::Inputs;

    fn numbered(len: usize) -> Arc<Examples> {
        let labels = (0..len).map(|i| ClassId(i as u32 % 3)).collect();
        Arc::new(Examples::new(Inputs::F32((0..len).map(|i| i as f32).collect()), [1, 1, 1], labels, 4).unwrap())
    }

    #[test]
    fn counts_and_range() {
        let data = ClientData::new(numbered(6), vec![5, 0, 0]).unwrap();
        assert_eq!(data.class_counts(), [2, 0, 1, 0]);
        assert!(matches!(ClientData::new(numbered(6), vec![6]), Err(DatasetError::Index { index: 6, len: 6 })));
    }

    #[test]
    fn flipped_labels_reach_training_and_counts_and_survive_a_split() {
        let data = ClientData::new(numbered(6), vec![0, 1, 2, 3]).unwrap().with_flipped_labels();
        assert_eq!(data.class_counts(), [0, 1, 1, 2], "labels 0, 1, 2, 0 of four classes");
        let labels = data.batch::<Flex>(&[1, 2], &FlexDevice).labels.into_data();
        assert_eq!(labels.iter::<i64>().collect::<Vec<_>>(), [2, 1]);
        let (train, held_out) = data.split_holdout(0.5, Seed::new(0));
        let counts = [train, held_out].map(|part| part.class_counts());
        assert_eq!((0..4).map(|class| counts[0][class] + counts[1][class]).collect::<Vec<_>>(), [0, 1, 1, 2]);
    }

    proptest! {
        #[test]
        fn a_holdout_splits_without_loss(len in 0usize..60, fraction in -0.5f64..1.5, seed: u64) {
            let data = ClientData::all(numbered(len));
            let (train, held_out) = data.split_holdout(fraction, Seed::new(seed));
            let union: BTreeSet<usize> = train.indices().iter().chain(held_out.indices()).copied().collect();
            prop_assert_eq!(union.len(), len);
            prop_assert_eq!(train.len() + held_out.len(), len);
            prop_assert!(len == 0 || !train.is_empty());
            prop_assert!((held_out.len() as f64 - fraction.clamp(0.0, 1.0) * len as f64).abs() <= 1.0);
            let (again, _) = data.split_holdout(fraction, Seed::new(seed));
            prop_assert_eq!(train.indices(), again.indices());
        }
    }

    #[test]
    fn a_holdout_of_no_number_is_empty() {
        assert!(ClientData::all(numbered(5)).split_holdout(f64::NAN, Seed::new(0)).1.is_empty());
    }
}
