//! What the clients' class counts say: which labels to draw, and how much each client's word weighs for a class.

use fedburn_core::{ClientUpdate, Seed};
use rand::seq::SliceRandom;

/// The class counts of the clients of a round that told of examples, `n_k^y`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ClassCounts {
    /// Places of those clients among the updates, each with its examples of every class.
    clients: Vec<(usize, Vec<u64>)>,
    classes: usize,
    silent: usize,
}

impl ClassCounts {
    /// Reads the reports of `updates`; one of another number of classes counts as none.
    pub(crate) fn of<'a, B: burn::tensor::backend::Backend>(
        updates: impl Iterator<Item = &'a ClientUpdate<B>>,
        classes: usize,
    ) -> Self {
        let (mut clients, mut silent) = (Vec::new(), 0);
        for (place, update) in updates.enumerate() {
            match &update.local.report.class_counts {
                Some(counts) if counts.len() == classes => clients.push((place, counts.clone())),
                _ => silent += 1,
            }
        }
        clients.retain(|(_, counts)| counts.iter().any(|count| *count > 0));
        Self { clients, classes, silent }
    }

    /// Places among the updates of the clients that told of examples, in their order.
    pub(crate) fn told(&self) -> impl Iterator<Item = usize> {
        self.clients.iter().map(|(place, _)| *place)
    }

    /// Clients that did not say what they have.
    pub(crate) fn silent(&self) -> usize {
        self.silent
    }

    /// `SUM_k n_k^y` of each class.
    fn totals(&self) -> Vec<u64> {
        let total = |class: usize| self.clients.iter().map(|(_, counts)| counts[class]).fold(0, u64::saturating_add);
        (0..self.classes).map(total).collect()
    }

    /// Class-level ensemble weights `a_k^y = n_k^y / SUM_i n_i^y`, of [`ClassCounts::told`],
    /// `[clients][classes]`; 0 where nobody has the class.
    pub(crate) fn ensemble_weights(&self) -> Vec<Vec<f32>> {
        let totals = self.totals();
        let share =
            |(count, total): (&u64, &u64)| if *total == 0 { 0.0 } else { (*count as f64 / *total as f64) as f32 };
        self.clients.iter().map(|(_, counts)| counts.iter().zip(&totals).map(share).collect()).collect()
    }

    /// `len` labels in the exact proportion of `p(y) = SUM_k n_k^y / SUM_{k,c} n_k^c`, rounded down cumulatively, in
    /// an order drawn from `seed`; `None` where no client has any example.
    pub(crate) fn labels(&self, len: usize, seed: Seed) -> Option<Vec<usize>> {
        proportioned(&self.totals(), len).map(|labels| shuffled(labels, seed))
    }

    /// `len` labels, every class that somebody has as often as the others, in an order drawn from `seed`.
    pub(crate) fn uniform_labels(&self, len: usize, seed: Seed) -> Option<Vec<usize>> {
        let held: Vec<u64> = self.totals().into_iter().map(|total| total.min(1)).collect();
        proportioned(&held, len).map(|labels| shuffled(labels, seed))
    }
}

/// `len` labels in proportion of `shares`: class `y` ends at `floor(len SUM_{c <= y} share_c / SUM_c share_c)`.
fn proportioned(shares: &[u64], len: usize) -> Option<Vec<usize>> {
    let total: u128 = shares.iter().map(|share| u128::from(*share)).sum();
    let (mut labels, mut passed) = (Vec::with_capacity(len), 0);
    for (class, share) in shares.iter().enumerate() {
        passed += u128::from(*share);
        // Cannot exceed `len`, since `passed <= total`.
        let end = (passed * len as u128).checked_div(total)? as usize;
        labels.resize(end, class);
    }
    Some(labels)
}

fn shuffled(mut labels: Vec<usize>, seed: Seed) -> Vec<usize> {
    labels.shuffle(&mut seed.rng());
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told<const N: usize, const C: usize>(counts: [[u64; C]; N]) -> ClassCounts {
        let clients = counts.into_iter().map(Vec::from).enumerate().collect();
        ClassCounts { clients, classes: C, silent: 0 }
    }

    fn two_clients() -> ClassCounts {
        told([[8, 0, 2], [2, 6, 0]])
    }

    #[test]
    fn golden_vectors() {
        let weights = two_clients().ensemble_weights();
        assert_eq!(weights, [[0.8, 0.0, 1.0], [0.2, 1.0, 0.0]]);
        assert_eq!(proportioned(&two_clients().totals(), 9).unwrap(), [0, 0, 0, 0, 0, 1, 1, 1, 2]);
        // FedGen's.
        let weights = told([[5, 0, 3], [1, 4, 0]]).ensemble_weights();
        assert_eq!(weights, [[5.0 / 6.0, 0.0, 1.0], [1.0 / 6.0, 1.0, 0.0]]);
    }

    #[test]
    fn a_class_that_nobody_has_is_never_drawn() {
        let counts = told([[0, 3, 0, 1], [0, 5, 0, 0]]);
        let drawn = counts.labels(900, Seed::new(1)).unwrap();
        let count = |class| drawn.iter().filter(|label| **label == class).count();
        assert_eq!([0, 1, 2, 3].map(count), [0, 800, 0, 100]);
        let uniform = counts.uniform_labels(7, Seed::new(1)).unwrap();
        assert_eq!([0, 1, 2, 3].map(|class| uniform.iter().filter(|label| **label == class).count()), [0, 3, 0, 4]);
        assert_eq!(counts.ensemble_weights()[0], [0.0, 0.375, 0.0, 1.0]);
        assert_ne!(drawn, counts.labels(900, Seed::new(2)).unwrap(), "another order");
    }

    #[test]
    fn nobody_with_examples_means_no_labels() {
        let nothing = ClassCounts { clients: Vec::new(), classes: 2, silent: 1 };
        assert_eq!(nothing.labels(4, Seed::new(1)), None);
    }
}
