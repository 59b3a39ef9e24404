//! A fixed number of classes a client, the "#C = k" split of NIID-Bench (Li, Diao, Chen and He, "Federated Learning on
//! Non-IID Data Silos: An Experimental Study", ICDE 2022, arXiv 2102.02079, section IV-A).
//!
//! Each client gets `k` different classes and each class is divided equally among its owners. Departure: NIID-Bench
//! gives client `i` class `i mod C` and draws the others at random; here every client takes the classes that have the
//! fewest owners so far, ties broken at random, so that owners of two classes differ in number by at most one.

use fedburn_core::{ClassId, Seed};
use rand::seq::SliceRandom;

use super::apportion::{deal, equal};
use super::pools::pools;
use super::{Partition, Partitioner, check_clients};
use crate::PartitionError;

/// Gives away all examples if `clients x classes_per_client` is at least the number of classes; otherwise the classes
/// without an owner are left out. Where a class has more owners than examples, the last owners get none of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pathological {
    classes_per_client: usize,
}

impl Pathological {
    /// `classes_per_client >= 1`.
    ///
    /// # Errors
    /// [`PartitionError::Setting`] for 0.
    pub fn new(classes_per_client: usize) -> Result<Self, PartitionError> {
        if classes_per_client == 0 {
            return Err(PartitionError::Setting {
                field: "classes_per_client",
                value: "0".into(),
                expected: "at least 1".into(),
            });
        }
        Ok(Self { classes_per_client })
    }
}

impl Partitioner for Pathological {
    fn partition(&self, labels: &[ClassId], clients: usize, seed: Seed) -> Result<Partition, PartitionError> {
        check_clients(clients)?;
        let pools = pools(labels, seed.index(0));
        let (classes_per_client, classes) = (self.classes_per_client, pools.len());
        if classes_per_client > classes {
            return Err(PartitionError::TooFewClasses { classes_per_client, classes });
        }
        let mut rng = seed.index(1).rng();
        let mut owners = vec![Vec::new(); classes];
        let mut order: Vec<usize> = (0..classes).collect();
        for client in 0..clients {
            order.shuffle(&mut rng);
            order.sort_by_key(|&class| owners[class].len());
            order[..classes_per_client].iter().for_each(|&class| owners[class].push(client));
        }
        let mut lists = vec![Vec::new(); clients];
        for (pool, owners) in pools.iter().zip(&owners).filter(|(_, owners)| !owners.is_empty()) {
            for (&owner, piece) in owners.iter().zip(deal(pool, &equal(pool.len(), owners.len()))) {
                lists[owner].extend(piece);
            }
        }
        Partition::new(lists, labels.len())
    }
}
