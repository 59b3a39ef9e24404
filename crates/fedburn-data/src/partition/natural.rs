//! Clients that exist: everybody keeps the examples they made (Caldas et al., "LEAF: A Benchmark for Federated
//! Settings", 2018, arXiv 1812.01097).

use std::collections::BTreeMap;

use fedburn_core::{ClassId, Seed};

use super::pools::shuffled;
use super::{Partition, Partitioner, check_clients};
use crate::PartitionError;

/// One client for each user that has at least `min_examples` examples. Where fewer clients are asked for than there are
/// such users, that many are drawn at random and the others' examples are left out. Clients come in the order of their
/// user ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Natural {
    users: BTreeMap<u64, Vec<usize>>,
    num_examples: usize,
    min_examples: usize,
}

impl Natural {
    /// `user_ids` says who made each example.
    pub fn new(user_ids: &[u64], min_examples: usize) -> Self {
        let mut users: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        user_ids.iter().enumerate().for_each(|(index, &user)| users.entry(user).or_default().push(index));
        users.retain(|_, indices| indices.len() >= min_examples);
        Self { users, num_examples: user_ids.len(), min_examples }
    }

    /// Number of users that have enough examples.
    pub fn num_users(&self) -> usize {
        self.users.len()
    }
}

impl Partitioner for Natural {
    fn partition(&self, labels: &[ClassId], clients: usize, seed: Seed) -> Result<Partition, PartitionError> {
        check_clients(clients)?;
        if labels.len() != self.num_examples {
            return Err(PartitionError::UserIds { expected: labels.len(), found: self.num_examples });
        }
        let (users, min_examples) = (self.users.len(), self.min_examples);
        if clients > users {
            return Err(PartitionError::TooFewUsers { clients, users, min_examples });
        }
        let mut chosen = shuffled(users, seed);
        chosen.truncate(clients);
        chosen.sort_unstable();
        let lists: Vec<&Vec<usize>> = self.users.values().collect();
        Partition::new(chosen.into_iter().map(|user| lists[user].clone()).collect(), labels.len())
    }
}
