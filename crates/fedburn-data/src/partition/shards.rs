//! Sorted shards (McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS
//! 2017, arXiv 1602.05629, section 3): sort by label, cut into equal shards, deal a few to each client at random.
//! Within a class the order is random.

use fedburn_core::{ClassId, Seed};

use super::apportion::{deal, equal};
use super::pools::{pools, shuffled};
use super::{Partition, Partitioner, check_clients};
use crate::PartitionError;

/// Gives away all examples: shards differ in size by at most one where the paper has them equal. More shards than
/// examples are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shards {
    shards_per_client: usize,
}

impl Shards {
    /// `shards_per_client >= 1`; the paper has 2 (100 clients, 200 shards of 300 digits).
    ///
    /// # Errors
    /// [`PartitionError::Setting`] for 0.
    pub fn new(shards_per_client: usize) -> Result<Self, PartitionError> {
        if shards_per_client == 0 {
            return Err(PartitionError::Setting {
                field: "shards_per_client",
                value: "0".into(),
                expected: "at least 1".into(),
            });
        }
        Ok(Self { shards_per_client })
    }
}

impl Partitioner for Shards {
    fn partition(&self, labels: &[ClassId], clients: usize, seed: Seed) -> Result<Partition, PartitionError> {
        check_clients(clients)?;
        let (shards_per_client, examples) = (self.shards_per_client, labels.len());
        let num_shards = clients.checked_mul(shards_per_client).filter(|&shards| shards <= examples);
        let num_shards = num_shards.ok_or(PartitionError::TooManyShards { clients, shards_per_client, examples })?;
        let sorted = pools(labels, seed.index(0)).concat();
        let shards = deal(&sorted, &equal(examples, num_shards));
        let order = shuffled(shards.len(), seed.index(1));
        let own = |numbers: &[usize]| numbers.iter().flat_map(|&n| shards[n].iter().copied()).collect();
        Partition::new(order.chunks(shards_per_client).map(own).collect(), examples)
    }
}
