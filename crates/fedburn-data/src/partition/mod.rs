//! Splitting a data set among clients: the trait, the result, and the one registry of kinds.

mod apportion;
mod config;
mod dirichlet;
mod feature_shift;
mod iid;
mod inner_dirichlet;
mod natural;
mod pathological;
mod pools;
mod quantity_skew;
mod shards;

pub(crate) use apportion::dirichlet as dirichlet_shares;
pub use config::PartitionConfig;
pub use dirichlet::Dirichlet;
pub use feature_shift::{FeatureShift, Shift};
pub use iid::Iid;
pub use inner_dirichlet::InnerDirichlet;
pub use natural::Natural;
pub use pathological::Pathological;
pub use quantity_skew::{QuantitySkew, SizeLaw};
pub use shards::Shards;

use std::sync::Arc;

use fedburn_core::{ClassId, Seed};

use crate::{ClientData, DatasetError, Examples, PartitionError, Transform};

/// A rule that splits example indices among clients.
///
/// # Laws
/// A function of labels, number of clients and seed: the same bits every time. Ends after time in proportion to
/// examples, clients and classes: there is no drawing until it fits. Lists are disjoint and in range by construction of
/// [`Partition`]. Every rule says whether it gives away all examples and which minimum it keeps.
///
/// # Examples
///
/// ```
/// use fedburn_core::{ClassId, Seed};
/// use fedburn_data::partition::{Dirichlet, Partitioner};
///
/// let labels: Vec<ClassId> = (0..1000).map(|i| ClassId(i % 10)).collect();
/// let partition = Dirichlet::new(0.3, 10)?.partition(&labels, 20, Seed::new(1))?;
/// assert!(partition.clients().iter().all(|indices| indices.len() >= 10));
/// # Ok::<(), fedburn_data::PartitionError>(())
/// ```
pub trait Partitioner {
    /// Splits the examples that have these `labels` among `clients` clients.
    ///
    /// # Errors
    /// [`PartitionError`]: no client, or a request that these labels cannot meet.
    fn partition(&self, labels: &[ClassId], clients: usize, seed: Seed) -> Result<Partition, PartitionError>;
}

/// Which examples each client holds: one sorted list of indices a client, no example in two lists.
#[derive(Clone, Debug, PartialEq)]
pub struct Partition {
    clients: Vec<Vec<usize>>,
    num_examples: usize,
    moved: usize,
    /// Empty, or one for each client.
    transforms: Vec<Transform>,
}

impl Partition {
    /// Sorts and checks the lists of all clients over `num_examples` examples.
    ///
    /// # Errors
    /// [`PartitionError::OutOfRange`], [`PartitionError::Repeated`].
    pub fn new(mut clients: Vec<Vec<usize>>, num_examples: usize) -> Result<Self, PartitionError> {
        let mut taken = vec![false; num_examples];
        for (client, indices) in clients.iter_mut().enumerate() {
            indices.sort_unstable();
            for &index in indices.iter() {
                match taken.get_mut(index) {
                    None => return Err(PartitionError::OutOfRange { client, index, examples: num_examples }),
                    Some(true) => return Err(PartitionError::Repeated { client, index }),
                    Some(free) => *free = true,
                }
            }
        }
        Ok(Self { clients, num_examples, moved: 0, transforms: Vec::new() })
    }

    /// The examples of each client, sorted.
    pub fn clients(&self) -> &[Vec<usize>] {
        &self.clients
    }

    /// Number of examples that were split, whether given to a client or not.
    pub fn num_examples(&self) -> usize {
        self.num_examples
    }

    /// Number of examples moved from one client to another to give everyone the minimum. The fewer, the closer the
    /// split is to the distribution that its rule names.
    pub fn moved(&self) -> usize {
        self.moved
    }

    /// What the instruments of a client do to its inputs.
    pub fn transform(&self, client: usize) -> Option<&Transform> {
        self.transforms.get(client)
    }

    /// A number that tells partitions apart: 64-bit FNV-1a (Fowler, Noll and Vo) over the number of examples, then each
    /// client's length and indices, then kind and level of each client's transform, all as little-endian 64-bit words. The same on every
    /// machine.
    pub fn fingerprint(&self) -> u64 {
        let mut hash = Fnv::default();
        hash.word(self.num_examples as u64);
        for indices in &self.clients {
            hash.word(indices.len() as u64);
            indices.iter().for_each(|&index| hash.word(index as u64));
        }
        for transform in &self.transforms {
            let (kind, level) = match transform {
                Transform::Noise { sigma, .. } => (1, *sigma),
                Transform::Rotation { degrees } => (2, *degrees),
            };
            hash.word(kind);
            hash.word(level.to_bits());
        }
        hash.0
    }

    /// The view of `examples` that each client holds, transform included.
    ///
    /// # Errors
    /// [`DatasetError::Length`] where `examples` are not those that were split.
    pub fn client_data(&self, examples: &Arc<Examples>) -> Result<Vec<ClientData>, DatasetError> {
        let (expected, found) = (self.num_examples, examples.len());
        if expected != found {
            return Err(DatasetError::Length { what: "examples, as many as were split", expected, found });
        }
        let view = |(client, indices): (usize, &Vec<usize>)| {
            let data = ClientData::new(Arc::clone(examples), indices.clone())?;
            Ok(match self.transform(client) {
                Some(transform) => data.with_transform(transform.clone()),
                None => data,
            })
        };
        self.clients.iter().enumerate().map(view).collect()
    }

    fn with_moved(self, moved: usize) -> Self {
        Self { moved, ..self }
    }

    fn with_transforms(self, transforms: Vec<Transform>) -> Self {
        Self { transforms, ..self }
    }
}

struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn word(&mut self, word: u64) {
        for byte in word.to_le_bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

fn check_clients(clients: usize) -> Result<(), PartitionError> {
    if clients > 0 {
        return Ok(());
    }
    Err(PartitionError::Setting { field: "clients", value: "0".into(), expected: "at least 1".into() })
}

fn check_minimum(examples: usize, clients: usize, min_examples: usize) -> Result<(), PartitionError> {
    match clients.checked_mul(min_examples) {
        Some(needed) if needed <= examples => Ok(()),
        _ => Err(PartitionError::Infeasible { clients, min_examples, examples }),
    }
}

fn check_positive(field: &'static str, value: f64) -> Result<(), PartitionError> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(PartitionError::Setting { field, value: value.to_string(), expected: "a finite number above 0".into() })
}

fn check_not_negative(field: &'static str, value: f64) -> Result<(), PartitionError> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(PartitionError::Setting { field, value: value.to_string(), expected: "a finite number, at least 0".into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Inputs;

    #[test]
    fn partitioners_are_objects() {
        let labels = [ClassId(0); 4];
        let boxed: Box<dyn Partitioner> = Box::new(Iid);
        assert_eq!(boxed.partition(&labels, 2, Seed::new(0)).unwrap().clients().len(), 2);
    }

    #[test]
    fn lists_that_overlap_or_leave_the_range_are_refused() {
        let new = |clients: &[&[usize]]| Partition::new(clients.iter().map(|c| c.to_vec()).collect(), 4);
        assert_eq!(new(&[&[3, 0], &[1]]).unwrap().clients(), [vec![0, 3], vec![1]]);
        assert_eq!(new(&[&[0], &[1, 0]]), Err(PartitionError::Repeated { client: 1, index: 0 }));
        assert_eq!(new(&[&[2, 2]]), Err(PartitionError::Repeated { client: 0, index: 2 }));
        assert_eq!(new(&[&[4]]), Err(PartitionError::OutOfRange { client: 0, index: 4, examples: 4 }));
    }

    #[test]
    fn the_fingerprint_is_pinned_and_sees_every_change() {
        let new = |clients: &[&[usize]], n| Partition::new(clients.iter().map(|c| c.to_vec()).collect(), n).unwrap();
        let all = [
            new(&[&[0, 1], &[2]], 3),
            new(&[&[0], &[1, 2]], 3),
            new(&[&[0, 1], &[2]], 4),
            new(&[&[0, 1], &[2], &[]], 3),
            new(&[&[0, 1], &[2]], 3).with_transforms(vec![Transform::Rotation { degrees: 0.0 }; 2]),
        ];
        let mut prints: Vec<u64> = all.iter().map(Partition::fingerprint).collect();
        assert_eq!(prints[0], new(&[&[1, 0], &[2]], 3).fingerprint(), "the order in a list does not matter");
        assert_eq!(prints[0], 13_978_697_044_421_673_158, "fingerprints are part of published results");
        prints.sort_unstable();
        prints.dedup();
        assert_eq!(prints.len(), all.len());
    }

    #[test]
    fn the_wrong_examples_are_refused() {
        let partition = Partition::new(vec![vec![0]], 1).unwrap();
        let examples = Examples::new(Inputs::F32(vec![0.0; 2]), [1, 1, 1], vec![ClassId(0); 2], 1).unwrap();
        assert!(matches!(partition.client_data(&Arc::new(examples)), Err(DatasetError::Length { .. })));
    }
}
