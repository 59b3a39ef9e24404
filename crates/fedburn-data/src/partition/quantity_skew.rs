//! Clients that differ in how much data they have, not in its distribution.
//!
//! Quantity skew is one of the three kinds of NIID-Bench (Li, Diao, Chen and He, "Federated Learning on Non-IID Data
//! Silos: An Experimental Study", ICDE 2022, arXiv 2102.02079, section IV-C), which draws sizes from a Dirichlet
//! distribution. Log-normal sizes are those of Acar et al. ("Federated Learning Based on Dynamic Regularization", ICLR
//! 2021, arXiv 2111.04263, authors' code), power-law sizes those of Li et al. ("Federated Optimization in Heterogeneous
//! Networks", MLSys 2020, arXiv 1812.06127, section 5.1), there without a stated exponent.

use fedburn_core::{ClassId, Seed};
use serde::{Deserialize, Serialize};

use super::apportion::{deal, dirichlet, donations, largest_remainder, log_normal, softmax};
use super::pools::shuffled;
use super::{Partition, Partitioner, check_clients, check_minimum, check_not_negative, check_positive};
use crate::PartitionError;

/// How sizes are distributed.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum SizeLaw {
    /// In proportion to `exp(sigma x N(0, 1))`; 0 makes equal sizes.
    LogNormal {
        /// Standard deviation of the logarithm, at least 0.
        sigma: f64,
    },
    /// The `r`-th largest client in proportion to `r^-exponent`; 0 makes equal sizes. Ranks are dealt at random.
    PowerLaw {
        /// At least 0.
        exponent: f64,
    },
    /// Shares drawn from a symmetric Dirichlet distribution.
    Dirichlet {
        /// Concentration, above 0.
        alpha: f64,
    },
}

impl SizeLaw {
    pub(super) fn check(self) -> Result<(), PartitionError> {
        match self {
            Self::LogNormal { sigma } => check_not_negative("sigma", sigma),
            Self::PowerLaw { exponent } => check_not_negative("exponent", exponent),
            Self::Dirichlet { alpha } => check_positive("alpha", alpha),
        }
    }

    /// Whole sizes that sum to `total`.
    pub(super) fn sizes(self, total: usize, clients: usize, seed: Seed) -> Vec<usize> {
        let shares = match self {
            Self::LogNormal { sigma } => log_normal(sigma, clients, &mut seed.rng()),
            Self::Dirichlet { alpha } => dirichlet(alpha, clients, &mut seed.rng()),
            Self::PowerLaw { exponent } => {
                let ranks = shuffled(clients, seed);
                softmax(ranks.iter().map(|&rank| -exponent * ((rank + 1) as f64).ln()).collect())
            }
        };
        largest_remainder(total, &shares)
    }
}

/// Sizes of which the small ones are raised to `min_examples` at the others' expense, and how much was moved.
pub(super) fn raised(sizes: &[usize], min_examples: usize) -> (Vec<usize>, usize) {
    let gifts = donations(sizes, min_examples);
    let moved = gifts.iter().sum();
    (sizes.iter().zip(gifts).map(|(size, gift)| (size - gift).max(min_examples)).collect(), moved)
}

/// Gives away all examples, at random; every client gets at least `min_examples`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QuantitySkew {
    law: SizeLaw,
    min_examples: usize,
}

impl QuantitySkew {
    /// Sizes by `law`.
    ///
    /// # Errors
    /// [`PartitionError::Setting`] where the law's parameter is out of range.
    pub fn new(law: SizeLaw, min_examples: usize) -> Result<Self, PartitionError> {
        law.check()?;
        Ok(Self { law, min_examples })
    }
}

impl Partitioner for QuantitySkew {
    fn partition(&self, labels: &[ClassId], clients: usize, seed: Seed) -> Result<Partition, PartitionError> {
        check_clients(clients)?;
        check_minimum(labels.len(), clients, self.min_examples)?;
        let drawn = self.law.sizes(labels.len(), clients, seed.index(0));
        let (sizes, moved) = raised(&drawn, self.min_examples);
        let lists = deal(&shuffled(labels.len(), seed.index(1)), &sizes);
        Ok(Partition::new(lists, labels.len())?.with_moved(moved))
    }
}
