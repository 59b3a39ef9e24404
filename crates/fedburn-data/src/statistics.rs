//! How heterogeneous a partition is.
//!
//! Let `p` be the class shares of the whole data set and `q_k` those of client `k`, with `n_k` examples. Logarithms are
//! natural, `0 ln 0 = 0`.
//!
//! | figure | definition | range |
//! |---|---|---|
//! | label entropy | `-sum_c q_k(c) ln q_k(c)` | 0 to `ln C`, nats |
//! | EMD | `sum_c abs(q_k(c) - p(c))`, the form of Zhao et al. ("Federated Learning with Non-IID Data", 2018, arXiv 1806.00582, section 3.2): twice the total variation distance | 0 to 2 |
//! | Jensen-Shannon | `KL(q_k, m) / 2 + KL(p, m) / 2` with `m = (q_k + p) / 2` (Lin, "Divergence Measures Based on the Shannon Entropy", IEEE Trans. Inf. Theory 37(1), 1991) | 0 to `ln 2`, nats |
//!
//! Clients without examples have no class shares: they have no figures and enter no mean.

use fedburn_core::ClassId;
use serde::{Deserialize, Serialize};

use crate::PartitionError;
use crate::partition::Partition;

/// The figures of a partition, fit for a report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartitionStatistics {
    /// [`Partition::fingerprint`] as 16 hexadecimal digits.
    pub fingerprint: String,
    /// Number of examples that were split.
    pub num_examples: u64,
    /// Number of examples that a client got.
    pub num_assigned: u64,
    /// [`Partition::moved`].
    pub num_moved: u64,
    /// Number of examples of each class in the whole data set.
    pub class_counts: Vec<u64>,
    /// Sizes of all clients.
    pub sizes: SizeSummary,
    /// Each client alone.
    pub clients: Vec<ClientStatistics>,
    /// Mean over clients with examples, each counting alike; `None` where all are empty.
    pub mean: Option<Heterogeneity>,
    /// Mean over clients with examples, each counting by its examples.
    pub weighted_mean: Option<Heterogeneity>,
}

/// Numbers of examples of the clients.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SizeSummary {
    /// The smallest.
    pub min: u64,
    /// The middle one; half-way between the two middle ones for an even number of clients.
    pub median: f64,
    /// The mean.
    pub mean: f64,
    /// The largest.
    pub max: u64,
    /// Standard deviation (of the clients as a population) over mean; 0 where all are empty.
    pub coefficient_of_variation: f64,
}

/// One client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientStatistics {
    /// Number of its examples of each class.
    pub class_counts: Vec<u64>,
    /// Its figures; `None` without examples.
    pub heterogeneity: Option<Heterogeneity>,
}

/// How far class shares are from those of the whole data set; definitions in the table above.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Heterogeneity {
    /// Label entropy in nats.
    pub label_entropy: f64,
    /// Sum of absolute differences of the shares, 0 to 2.
    pub emd: f64,
    /// Jensen-Shannon divergence in nats, 0 to `ln 2`.
    pub jensen_shannon: f64,
}

impl ClientStatistics {
    /// Number of the client's examples.
    pub fn num_examples(&self) -> u64 {
        self.class_counts.iter().sum()
    }
}

impl PartitionStatistics {
    /// The figures of `partition`, which split examples with these `labels` of `num_classes` classes.
    ///
    /// # Errors
    /// [`PartitionError::Setting`] where the labels are not those that were split or need more classes.
    pub fn new(partition: &Partition, labels: &[ClassId], num_classes: usize) -> Result<Self, PartitionError> {
        let wrong = |field, value: usize, expected: String| {
            Err(PartitionError::Setting { field, value: value.to_string(), expected })
        };
        if labels.len() != partition.num_examples() {
            return wrong(
                "labels",
                labels.len(),
                format!("{} of them, as many as were split", partition.num_examples()),
            );
        }
        if let Some(largest) = labels.iter().max().filter(|label| label.0 as usize >= num_classes) {
            return wrong("num_classes", num_classes, format!("more than the largest label, {largest}"));
        }
        let all = counts(0..labels.len(), labels, num_classes);
        let global = shares(&all);
        let client = |indices: &Vec<usize>| {
            let class_counts = counts(indices.iter().copied(), labels, num_classes);
            let heterogeneity = (!indices.is_empty()).then(|| Heterogeneity::between(&shares(&class_counts), &global));
            ClientStatistics { class_counts, heterogeneity }
        };
        let clients: Vec<ClientStatistics> = partition.clients().iter().map(client).collect();
        let sizes: Vec<u64> = clients.iter().map(ClientStatistics::num_examples).collect();
        Ok(Self {
            fingerprint: format!("{:016x}", partition.fingerprint()),
            num_examples: labels.len() as u64,
            num_assigned: sizes.iter().sum(),
            num_moved: partition.moved() as u64,
            class_counts: all,
            mean: mean(&clients, |_| 1.0),
            weighted_mean: mean(&clients, |client| client.num_examples() as f64),
            sizes: SizeSummary::new(sizes),
            clients,
        })
    }
}

impl SizeSummary {
    fn new(mut sizes: Vec<u64>) -> Self {
        sizes.sort_unstable();
        let count = sizes.len().max(1) as f64;
        let at = |position: usize| sizes.get(position).copied().unwrap_or(0);
        let middle = sizes.len() / 2;
        let median = if sizes.len() % 2 == 1 {
            at(middle) as f64
        } else {
            (at(middle.saturating_sub(1)) as f64 + at(middle) as f64) / 2.0
        };
        let mean = sizes.iter().sum::<u64>() as f64 / count;
        let variance = sizes.iter().map(|&size| (size as f64 - mean).powi(2)).sum::<f64>() / count;
        let coefficient_of_variation = if mean > 0.0 { variance.sqrt() / mean } else { 0.0 };
        Self { min: at(0), median, mean, max: at(sizes.len().saturating_sub(1)), coefficient_of_variation }
    }
}

impl Heterogeneity {
    /// Figures of class shares `q` against `p`; both sum to one.
    fn between(q: &[f64], p: &[f64]) -> Self {
        let entropy_term = |share: f64| if share > 0.0 { -share * share.ln() } else { 0.0 };
        let divergence = |a: f64, b: f64| {
            let middle = (a + b) / 2.0;
            let half = |share: f64| if share > 0.0 { share / 2.0 * (share / middle).ln() } else { 0.0 };
            half(a) + half(b)
        };
        Self {
            label_entropy: q.iter().copied().map(entropy_term).sum(),
            emd: q.iter().zip(p).map(|(q, p)| (q - p).abs()).sum(),
            // Rounding must not make a divergence of equal shares negative.
            jensen_shannon: q.iter().zip(p).map(|(&q, &p)| divergence(q, p)).sum::<f64>().max(0.0),
        }
    }
}

fn counts(indices: impl Iterator<Item = usize>, labels: &[ClassId], num_classes: usize) -> Vec<u64> {
    let mut counts = vec![0; num_classes];
    indices.for_each(|index| counts[labels[index].0 as usize] += 1);
    counts
}

/// Counts over their sum; zeros where there is nothing.
fn shares(counts: &[u64]) -> Vec<f64> {
    let total = counts.iter().sum::<u64>().max(1) as f64;
    counts.iter().map(|&count| count as f64 / total).collect()
}

fn mean(clients: &[ClientStatistics], weight: impl Fn(&ClientStatistics) -> f64) -> Option<Heterogeneity> {
    let mut sum = Heterogeneity::default();
    let mut total = 0.0;
    for client in clients {
        let Some(figures) = client.heterogeneity else { continue };
        let weight = weight(client);
        total += weight;
        sum.label_entropy += weight * figures.label_entropy;
        sum.emd += weight * figures.emd;
        sum.jensen_shannon += weight * figures.jensen_shannon;
    }
    let divided = |sum: f64| sum / total;
    (total > 0.0).then(|| Heterogeneity {
        label_entropy: divided(sum.label_entropy),
        emd: divided(sum.emd),
        jensen_shannon: divided(sum.jensen_shannon),
    })
}

#[cfg(test)]
mod tests {
    use std::f64::consts::LN_2;

    use proptest::prelude::*;

    use super::*;

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-12
    }

    fn statistics(lists: &[&[usize]], labels: &[u32], classes: usize) -> PartitionStatistics {
        let labels: Vec<ClassId> = labels.iter().copied().map(ClassId).collect();
        let partition = Partition::new(lists.iter().map(|l| l.to_vec()).collect(), labels.len()).unwrap();
        PartitionStatistics::new(&partition, &labels, classes).unwrap()
    }

    #[test]
    fn figures_by_hand() {
        // Global shares (1/2, 1/2). Client 0 has class 0 only, client 1 is balanced, client 2 is empty.
        let s = statistics(&[&[0], &[1, 2, 3, 4], &[]], &[0, 0, 0, 1, 1, 1], 2);
        assert_eq!(s.class_counts, [3, 3]);
        assert_eq!((s.num_examples, s.num_assigned, s.num_moved), (6, 5, 0));
        let [first, second] = [0, 1].map(|k: usize| s.clients[k].heterogeneity.unwrap());
        assert_eq!(first.label_entropy, 0.0);
        assert!(close(first.emd, 1.0));
        // m = (3/4, 1/4): KL(q, m) = ln 4/3, KL(p, m) = (ln 2/3 + ln 2) / 2.
        let js = ((4.0f64 / 3.0).ln() + ((2.0f64 / 3.0).ln() + 2.0f64.ln()) / 2.0) / 2.0;
        assert!(close(first.jensen_shannon, js));
        assert!(close(second.label_entropy, LN_2) && second.emd == 0.0 && second.jensen_shannon == 0.0);
        assert_eq!(s.clients[2].heterogeneity, None);
        assert!(close(s.mean.unwrap().emd, 0.5) && close(s.weighted_mean.unwrap().emd, 0.2));
        let variance = ((1.0f64 - 5.0 / 3.0).powi(2) + (4.0f64 - 5.0 / 3.0).powi(2) + (5.0f64 / 3.0).powi(2)) / 3.0;
        assert_eq!((s.sizes.min, s.sizes.median, s.sizes.max), (0, 1.0, 4));
        assert!(close(s.sizes.coefficient_of_variation, variance.sqrt() / (5.0 / 3.0)));
    }

    #[test]
    fn nothing_is_defined() {
        let s = statistics(&[&[], &[]], &[], 3);
        assert_eq!((s.mean, s.weighted_mean, s.sizes.coefficient_of_variation), (None, None, 0.0));
        assert_eq!(s.sizes.median, 0.0);
    }

    #[test]
    fn foreign_labels_are_refused() {
        let partition = Partition::new(vec![vec![0]], 1).unwrap();
        assert!(PartitionStatistics::new(&partition, &[], 1).is_err());
        assert!(PartitionStatistics::new(&partition, &[ClassId(1)], 1).is_err());
    }

    proptest! {
        #[test]
        fn figures_stay_in_range_and_survive_json(owners in prop::collection::vec((0usize..6, 0u32..5), 0..80)) {
            let labels: Vec<ClassId> = owners.iter().map(|&(_, label)| ClassId(label)).collect();
            let mut lists = vec![Vec::new(); 5];
            owners.iter().enumerate().filter(|(_, (k, _))| *k < 5).for_each(|(i, (k, _))| lists[*k].push(i));
            let s = PartitionStatistics::new(&Partition::new(lists, labels.len()).unwrap(), &labels, 5).unwrap();
            for h in s.clients.iter().filter_map(|c| c.heterogeneity).chain(s.mean).chain(s.weighted_mean) {
                prop_assert!((0.0..=5f64.ln() + 1e-12).contains(&h.label_entropy));
                prop_assert!((0.0..=2.0).contains(&h.emd));
                prop_assert!((0.0..=LN_2 + 1e-12).contains(&h.jensen_shannon));
            }
            let json = serde_json::to_string(&s).unwrap();
            prop_assert_eq!(serde_json::from_str::<PartitionStatistics>(&json).unwrap(), s);
        }
    }
}
