//! Label skew client by client, with sizes of its own: the split of Acar et al. ("Federated Learning Based on Dynamic
//! Regularization", ICLR 2021, arXiv 2111.04263, authors' code), after Hsu, Qi and Brown ("Measuring the Effects of
//! Non-Identical Data Distribution for Federated Visual Classification", 2019, arXiv 1909.06335, where sizes are equal
//! and the prior is `Dir(alpha p)` for class frequencies `p`).
//!
//! Sizes are log-normal, each client draws class shares `q_k ~ Dir_C(alpha)`; then, until all sizes are filled, a random
//! unfilled client draws a class from `q_k` and takes one of its remaining examples. Departures: where the authors draw
//! a class again while its examples are used up, `q_k` is renormalised over the remaining classes, which is the same
//! distribution and always ends; where `q_k` has no weight left on them, they count by how many examples they have. Sizes
//! sum to the number of examples instead of being rounded down.

use fedburn_core::{ClassId, Seed};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use super::apportion::dirichlet;
use super::pools::pools;
use super::quantity_skew::{SizeLaw, raised};
use super::{Partition, Partitioner, check_clients, check_minimum, check_positive};
use crate::PartitionError;

/// Gives away all examples; every client gets at least `min_examples`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InnerDirichlet {
    alpha: f64,
    sizes: SizeLaw,
    min_examples: usize,
}

impl InnerDirichlet {
    /// Concentration `alpha > 0` of each client's class shares, and `sigma >= 0`, the standard deviation of the
    /// logarithm of sizes; 0 makes equal sizes.
    ///
    /// # Errors
    /// [`PartitionError::Setting`] where either is out of range.
    pub fn new(alpha: f64, sigma: f64, min_examples: usize) -> Result<Self, PartitionError> {
        check_positive("alpha", alpha)?;
        let sizes = SizeLaw::LogNormal { sigma };
        sizes.check()?;
        Ok(Self { alpha, sizes, min_examples })
    }
}

impl Partitioner for InnerDirichlet {
    fn partition(&self, labels: &[ClassId], clients: usize, seed: Seed) -> Result<Partition, PartitionError> {
        check_clients(clients)?;
        check_minimum(labels.len(), clients, self.min_examples)?;
        let drawn = self.sizes.sizes(labels.len(), clients, seed.index(0));
        let (sizes, moved) = raised(&drawn, self.min_examples);
        let mut rng = seed.index(1).rng();
        let mut pools = pools(labels, seed.index(2));
        let priors: Vec<Vec<f64>> = sizes.iter().map(|_| dirichlet(self.alpha, pools.len(), &mut rng)).collect();
        let mut lists = vec![Vec::new(); clients];
        let mut unfilled: Vec<usize> = (0..clients).filter(|&client| sizes[client] > 0).collect();
        while !unfilled.is_empty() {
            let position = rng.random_range(0..unfilled.len());
            let client = unfilled[position];
            let class = draw_class(&priors[client], &pools, &mut rng);
            lists[client].extend(pools[class].pop());
            if lists[client].len() == sizes[client] {
                unfilled.swap_remove(position);
            }
        }
        Ok(Partition::new(lists, labels.len())?.with_moved(moved))
    }
}

/// A class with remaining examples, in proportion to `prior`. There is one: sizes sum to the number of examples.
fn draw_class(prior: &[f64], pools: &[Vec<usize>], rng: &mut ChaCha8Rng) -> usize {
    let by_prior = |class: usize| if pools[class].is_empty() { 0.0 } else { prior[class] };
    let by_size = |class: usize| pools[class].len() as f64;
    let total: f64 = (0..pools.len()).map(by_prior).sum();
    let uniform: f64 = rng.random();
    if total > 0.0 {
        pick(pools.len(), by_prior, uniform * total)
    } else {
        pick(pools.len(), by_size, uniform * (0..pools.len()).map(by_size).sum::<f64>())
    }
}

/// The class in whose stretch of the cumulative weights `point` lies; never one of weight 0.
fn pick(classes: usize, weight: impl Fn(usize) -> f64, point: f64) -> usize {
    let mut sum = 0.0;
    let mut last = 0;
    for class in (0..classes).filter(|&class| weight(class) > 0.0) {
        sum += weight(class);
        last = class;
        if point < sum {
            break;
        }
    }
    last
}
