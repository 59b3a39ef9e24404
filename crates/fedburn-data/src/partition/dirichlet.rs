//! Label skew drawn from a Dirichlet distribution.
//!
//! For every class `c`, shares over the clients `p_c ~ Dir_K(alpha)` are drawn and the class's examples are cut
//! accordingly. This is the rule of Yurochkin et al. ("Bayesian Nonparametric Federated Learning of Neural Networks",
//! ICML 2019, arXiv 1905.12022) and of NIID-Bench (Li, Diao, Chen and He, "Federated Learning on Non-IID Data Silos: An
//! Experimental Study", ICDE 2022, arXiv 2102.02079, section IV-A), to which most papers refer as "Dirichlet". Hsu, Qi
//! and Brown ("Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification", 2019,
//! arXiv 1909.06335), who introduced Dirichlet skew, draw class shares for each client and keep sizes equal: that is
//! [`crate::partition::InnerDirichlet`] with `sigma = 0`.
//!
//! Departures: public codes draw again until the smallest client is large enough, which may never end; here the missing
//! examples are moved from the larger clients at random, in proportion to their surplus, and counted in
//! [`Partition::moved`]. NIID-Bench also stops giving a class to clients that already have their even share of the
//! data; here shares are the plain draw.

use fedburn_core::{ClassId, Seed};

use super::apportion::{cut, dirichlet, repaired};
use super::pools::pools;
use super::{Partition, Partitioner, check_clients, check_minimum, check_positive};
use crate::PartitionError;

/// Gives away all examples; every client gets at least `min_examples`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dirichlet {
    alpha: f64,
    min_examples: usize,
}

impl Dirichlet {
    /// Concentration `alpha > 0`: towards 0 a class goes to one client, towards infinity to all alike.
    ///
    /// # Errors
    /// [`PartitionError::Setting`] where alpha is not a finite number above 0.
    pub fn new(alpha: f64, min_examples: usize) -> Result<Self, PartitionError> {
        check_positive("alpha", alpha)?;
        Ok(Self { alpha, min_examples })
    }
}

impl Partitioner for Dirichlet {
    fn partition(&self, labels: &[ClassId], clients: usize, seed: Seed) -> Result<Partition, PartitionError> {
        check_clients(clients)?;
        check_minimum(labels.len(), clients, self.min_examples)?;
        let mut rng = seed.index(0).rng();
        let mut lists = vec![Vec::new(); clients];
        for pool in pools(labels, seed.index(1)) {
            let mut rest = pool.as_slice();
            for (list, size) in lists.iter_mut().zip(cut(pool.len(), &dirichlet(self.alpha, clients, &mut rng))) {
                let (piece, after) = rest.split_at(size);
                list.extend_from_slice(piece);
                rest = after;
            }
        }
        repaired(lists, labels.len(), self.min_examples, seed.index(2))
    }
}
