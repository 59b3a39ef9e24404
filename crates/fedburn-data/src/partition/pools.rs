//! The examples of each class.

use std::collections::BTreeMap;

use fedburn_core::{ClassId, Seed};
use rand::seq::SliceRandom;

/// The examples of each class that occurs, by class, each list shuffled from `seed.index(class)`.
pub(super) fn pools(labels: &[ClassId], seed: Seed) -> Vec<Vec<usize>> {
    let mut pools: BTreeMap<ClassId, Vec<usize>> = BTreeMap::new();
    labels.iter().enumerate().for_each(|(index, &label)| pools.entry(label).or_default().push(index));
    for (label, pool) in &mut pools {
        pool.shuffle(&mut seed.index(u64::from(label.0)).rng());
    }
    pools.into_values().collect()
}

/// The numbers `0..len`, shuffled.
pub(super) fn shuffled(len: usize, seed: Seed) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..len).collect();
    indices.shuffle(&mut seed.rng());
    indices
}
