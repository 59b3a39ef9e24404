//! A partitioner of one's own: a share of the examples is dealt at random, the rest sorted by label.
//!
//! S. P. Karimireddy, S. Kale, M. Mohri, S. Reddi, S. Stich, A. T. Suresh: "SCAFFOLD: Stochastic Controlled Averaging
//! for Federated Learning", ICML 2020, arXiv 1910.06378, section 7, where the share is called similarity.

use fedburn::core::{ClassId, Purpose, Seed};
use fedburn::data::PartitionError;
use fedburn::data::partition::{Partition, Partitioner};
use rand::seq::SliceRandom;

/// Gives away all examples; clients differ in size by at most two.
struct Similarity {
    /// Share of the examples that is dealt at random, in `[0, 1]`: 0 leaves each client few classes, 1 makes all alike.
    share: f64,
}

impl Similarity {
    /// Checks the share.
    fn new(share: f64) -> Result<Self, PartitionError> {
        if (0.0..=1.0).contains(&share) {
            return Ok(Self { share });
        }
        Err(PartitionError::Setting { field: "share", value: share.to_string(), expected: "a number in [0, 1]".into() })
    }
}

impl Partitioner for Similarity {
    fn partition(&self, labels: &[ClassId], clients: usize, seed: Seed) -> Result<Partition, PartitionError> {
        if clients == 0 {
            return Err(PartitionError::Setting { field: "clients", value: "0".into(), expected: "at least 1".into() });
        }
        let mut indices: Vec<usize> = (0..labels.len()).collect();
        indices.shuffle(&mut seed.rng());
        let cut = (self.share * labels.len() as f64).round() as usize;
        let (alike, sorted) = indices.split_at_mut(cut);
        sorted.sort_by_key(|&index| labels[index]);
        let piece = |indices: &[usize], client: usize| {
            indices[client * indices.len() / clients..(client + 1) * indices.len() / clients].to_vec()
        };
        let lists = (0..clients).map(|client| [piece(alike, client), piece(sorted, client)].concat());
        Partition::new(lists.collect(), labels.len())
    }
}

/// How many examples of each class a client holds.
fn class_counts(indices: &[usize], labels: &[ClassId], classes: usize) -> Vec<usize> {
    let mut counts = vec![0; classes];
    indices.iter().for_each(|&index| counts[labels[index].0 as usize] += 1);
    counts
}

fn main() -> Result<(), PartitionError> {
    let labels: Vec<ClassId> = (0..600).map(|index| ClassId(index % 6)).collect();
    for share in [0.0, 0.5, 1.0] {
        let partition = Similarity::new(share)?.partition(&labels, 4, Seed::new(0).purpose(Purpose::Partition))?;
        println!("share {share}: examples of each class");
        for (client, indices) in partition.clients().iter().enumerate() {
            println!("  client {client}: {:?}", class_counts(indices, &labels, 6));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(share: f64, clients: usize) -> Result<Partition, PartitionError> {
        let labels: Vec<ClassId> = (0..101).map(|index| ClassId(index % 5)).collect();
        Similarity::new(share)?.partition(&labels, clients, Seed::new(3))
    }

    #[test]
    fn every_example_is_given_away_and_sizes_are_even() -> Result<(), PartitionError> {
        for (share, clients) in [(0.0, 1), (0.3, 7), (1.0, 101), (0.5, 300)] {
            let sizes: Vec<usize> = split(share, clients)?.clients().iter().map(Vec::len).collect();
            assert_eq!(sizes.iter().sum::<usize>(), 101);
            assert!(sizes.iter().max() <= sizes.iter().min().map(|min| min + 2).as_ref(), "{sizes:?}");
        }
        Ok(())
    }

    #[test]
    fn without_similarity_each_client_holds_few_classes() -> Result<(), PartitionError> {
        let labels: Vec<ClassId> = (0..100).map(|index| ClassId(index % 5)).collect();
        let partition = Similarity::new(0.0)?.partition(&labels, 5, Seed::new(3))?;
        for indices in partition.clients() {
            assert_eq!(class_counts(indices, &labels, 5).iter().filter(|&&count| count > 0).count(), 1);
        }
        Ok(())
    }

    #[test]
    fn it_is_a_function_of_the_seed() -> Result<(), PartitionError> {
        assert_eq!(split(0.5, 4)?, split(0.5, 4)?);
        Ok(())
    }

    #[test]
    fn impossible_requests_are_refused() {
        assert!(split(1.5, 4).is_err());
        assert!(split(f64::NAN, 4).is_err());
        assert!(split(0.5, 0).is_err());
    }
}
