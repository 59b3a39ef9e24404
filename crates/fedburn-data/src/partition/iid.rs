//! Independent and identically distributed clients: examples are shuffled and dealt out equally (McMahan et al.,
//! "Communication-Efficient Learning of Deep Networks from Decentralized Data", AISTATS 2017, arXiv 1602.05629,
//! section 3).

use fedburn_core::{ClassId, Seed};

use super::apportion::{deal, equal};
use super::pools::shuffled;
use super::{Partition, Partitioner, check_clients};
use crate::PartitionError;

/// Gives away all examples; sizes differ by at most one. With more clients than examples the last clients are empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Iid;

impl Partitioner for Iid {
    fn partition(&self, labels: &[ClassId], clients: usize, seed: Seed) -> Result<Partition, PartitionError> {
        check_clients(clients)?;
        let lists = deal(&shuffled(labels.len(), seed), &equal(labels.len(), clients));
        Partition::new(lists, labels.len())
    }
}
