//! What every partitioner promises, checked for all kinds over arbitrary labels, clients and settings.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use fedburn_core::{ClassId, Seed};
use fedburn_data::partition::{
    Dirichlet, FeatureShift, Iid, InnerDirichlet, Natural, Partition, Partitioner, Pathological, QuantitySkew, Shards,
    Shift, SizeLaw,
};
use fedburn_data::{Examples, Inputs, PartitionError};
use proptest::prelude::*;

/// Labels of few classes, some of them rare and with gaps in their numbers.
fn labels() -> impl Strategy<Value = Vec<ClassId>> {
    prop::collection::vec(prop_oneof![0u32..3, 0u32..12, Just(4_000_000_000)].prop_map(ClassId), 0..300)
}

/// Parameters from the smallest to the largest number that is allowed.
fn positive() -> impl Strategy<Value = f64> {
    prop_oneof![Just(f64::MIN_POSITIVE), Just(f64::MAX), Just(1.0), (-12.0f64..12.0).prop_map(|e| 10f64.powf(e))]
}

fn indices(partition: &Partition) -> Vec<usize> {
    partition.clients().concat()
}

/// Disjoint, in range, as many clients as asked for, and the same bits again; `None` where the request is refused.
fn check(partitioner: &dyn Partitioner, labels: &[ClassId], clients: usize, seed: u64) -> Option<Partition> {
    let partition = partitioner.partition(labels, clients, Seed::new(seed)).ok()?;
    let all = indices(&partition);
    assert_eq!(partition.clients().len(), clients);
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "disjoint");
    assert!(all.iter().all(|&index| index < labels.len()), "in range");
    assert!(partition.moved() <= labels.len());
    let again = partitioner.partition(labels, clients, Seed::new(seed)).unwrap();
    assert_eq!(again.fingerprint(), partition.fingerprint());
    assert_eq!(again, partition);
    Some(partition)
}

fn covers(partition: &Partition) -> bool {
    indices(partition).len() == partition.num_examples()
}

fn smallest(partition: &Partition) -> usize {
    partition.clients().iter().map(Vec::len).min().unwrap()
}

fn largest(partition: &Partition) -> usize {
    partition.clients().iter().map(Vec::len).max().unwrap()
}

/// Refused exactly where the minimum cannot be met, and kept otherwise.
fn check_minimum(partitioner: &dyn Partitioner, labels: &[ClassId], clients: usize, seed: u64, min: usize) {
    match check(partitioner, labels, clients, seed) {
        Some(partition) => assert!(covers(&partition) && smallest(&partition) >= min),
        None => {
            assert!(clients * min > labels.len());
            let error = partitioner.partition(labels, clients, Seed::new(seed)).unwrap_err();
            assert_eq!(error, PartitionError::Infeasible { clients, min_examples: min, examples: labels.len() });
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..Default::default() })]

    #[test]
    fn equal_sizes_cover(labels in labels(), clients in 1usize..400, seed: u64) {
        let noise = FeatureShift::new(Shift::Noise { max_sigma: 1.0 }).unwrap();
        let turn = FeatureShift::new(Shift::Rotation { max_degrees: 90.0 }).unwrap();
        let partitioners: [&dyn Partitioner; 3] = [&Iid, &noise, &turn];
        for partitioner in partitioners {
            let partition = check(partitioner, &labels, clients, seed).unwrap();
            prop_assert!(covers(&partition) && largest(&partition) - smallest(&partition) <= 1);
        }
    }

    #[test]
    fn dirichlet_covers_and_keeps_the_minimum(
        labels in labels(), clients in 1usize..60, alpha in positive(), min in 0usize..12, seed: u64,
    ) {
        check_minimum(&Dirichlet::new(alpha, min).unwrap(), &labels, clients, seed, min);
    }

    #[test]
    fn inner_dirichlet_covers_and_keeps_the_minimum(
        labels in labels(), clients in 1usize..60, alpha in positive(), sigma in positive(), min in 0usize..12, seed: u64,
    ) {
        check_minimum(&InnerDirichlet::new(alpha, sigma, min).unwrap(), &labels, clients, seed, min);
        let equal = InnerDirichlet::new(alpha, 0.0, 0).unwrap();
        let partition = check(&equal, &labels, clients, seed).unwrap();
        prop_assert!(largest(&partition) - smallest(&partition) <= 1);
    }

    #[test]
    fn quantity_skew_covers_and_keeps_the_minimum(
        labels in labels(), clients in 1usize..60, value in positive(), min in 0usize..12, seed: u64,
    ) {
        for law in [
            SizeLaw::LogNormal { sigma: value },
            SizeLaw::PowerLaw { exponent: value },
            SizeLaw::Dirichlet { alpha: value },
        ] {
            check_minimum(&QuantitySkew::new(law, min).unwrap(), &labels, clients, seed, min);
        }
    }

    #[test]
    fn pathological_clients_have_few_classes(labels in labels(), clients in 1usize..60, k in 1usize..14, seed: u64) {
        let classes = labels.iter().collect::<BTreeSet<_>>().len();
        let partitioner = Pathological::new(k).unwrap();
        let Some(partition) = check(&partitioner, &labels, clients, seed) else {
            prop_assert!(k > classes);
            return Ok(());
        };
        prop_assert_eq!(covers(&partition), clients * k >= classes);
        for indices in partition.clients() {
            prop_assert!(indices.iter().map(|&i| labels[i]).collect::<BTreeSet<_>>().len() <= k);
        }
    }

    #[test]
    fn shards_are_runs_of_the_sorted_labels(labels in labels(), clients in 1usize..60, s in 1usize..5, seed: u64) {
        let Some(partition) = check(&Shards::new(s).unwrap(), &labels, clients, seed) else {
            prop_assert!(clients * s > labels.len());
            return Ok(());
        };
        prop_assert!(covers(&partition));
        let shard = labels.len() / (clients * s);
        prop_assert!(smallest(&partition) >= s * shard && largest(&partition) <= s * (shard + 1));
        // A run of `m` sorted examples meets at most `m` classes, and a boundary is in one shard only.
        let classes = labels.iter().collect::<BTreeSet<_>>().len();
        let held = |c: &Vec<usize>| c.iter().map(|&i| labels[i]).collect::<BTreeSet<_>>().len();
        let total: usize = partition.clients().iter().map(held).sum();
        prop_assert!(total <= clients * s + classes.saturating_sub(1));
    }

    #[test]
    fn natural_clients_are_whole_users(users in prop::collection::vec(0u64..20, 0..200), min in 0usize..6, seed: u64) {
        let labels = vec![ClassId(0); users.len()];
        let natural = Natural::new(&users, min);
        for clients in 1..=natural.num_users() + 1 {
            let Some(partition) = check(&natural, &labels, clients, seed) else {
                prop_assert_eq!(clients, natural.num_users() + 1);
                continue;
            };
            for indices in partition.clients() {
                let whole: Vec<usize> = (0..users.len()).filter(|&i| users[i] == users[indices[0]]).collect();
                prop_assert_eq!(indices, &whole);
                prop_assert!(whole.len() >= min);
            }
        }
    }
}

#[test]
fn no_client_at_all_is_refused_by_everyone() {
    let partitioners: [Box<dyn Partitioner>; 8] = [
        Box::new(Iid),
        Box::new(Dirichlet::new(1.0, 0).unwrap()),
        Box::new(Pathological::new(1).unwrap()),
        Box::new(Shards::new(1).unwrap()),
        Box::new(QuantitySkew::new(SizeLaw::LogNormal { sigma: 1.0 }, 0).unwrap()),
        Box::new(Natural::new(&[0; 5], 0)),
        Box::new(FeatureShift::new(Shift::Noise { max_sigma: 0.0 }).unwrap()),
        Box::new(InnerDirichlet::new(1.0, 0.0, 0).unwrap()),
    ];
    for partitioner in partitioners {
        let error = partitioner.partition(&[ClassId(0); 5], 0, Seed::new(0)).unwrap_err();
        assert!(matches!(error, PartitionError::Setting { field: "clients", .. }), "{error}");
    }
}

#[test]
fn another_seed_gives_another_split() {
    let labels: Vec<ClassId> = (0..500).map(|i| ClassId(i % 10)).collect();
    let dirichlet = Dirichlet::new(0.5, 1).unwrap();
    let print = |seed| dirichlet.partition(&labels, 10, Seed::new(seed)).unwrap().fingerprint();
    assert_ne!(print(1), print(2));
}

/// The share of one class that a client gets is Beta(alpha, (K - 1) alpha): mean 1 / K, variance
/// (K - 1) / (K^2 (K alpha + 1)). Without a minimum the split must show it, up to sampling and rounding.
#[test]
fn dirichlet_splits_have_the_moments_of_theory() {
    let (clients, per_class, classes, draws) = (8usize, 2000u32, 10u32, 150u64);
    let labels: Vec<ClassId> = (0..per_class * classes).map(|i| ClassId(i % classes)).collect();
    for alpha in [0.1, 0.5, 5.0] {
        let partitioner = Dirichlet::new(alpha, 0).unwrap();
        let mut shares = Vec::new();
        for seed in 0..draws {
            let partition = partitioner.partition(&labels, clients, Seed::new(seed)).unwrap();
            let mut counts = vec![0u32; classes as usize];
            partition.clients()[3].iter().for_each(|&index| counts[labels[index].0 as usize] += 1);
            shares.extend(counts.iter().map(|&count| f64::from(count) / f64::from(per_class)));
        }
        let (n, k) = (shares.len() as f64, clients as f64);
        let mean = shares.iter().sum::<f64>() / n;
        let squares: Vec<f64> = shares.iter().map(|s| (s - 1.0 / k).powi(2)).collect();
        let variance = squares.iter().sum::<f64>() / n;
        let spread = (squares.iter().map(|s| (s - variance).powi(2)).sum::<f64>() / n).sqrt();
        let theory = (k - 1.0) / (k * k * (k * alpha + 1.0));
        assert!((mean - 1.0 / k).abs() < 4.0 * (theory / n).sqrt() + 1e-3, "alpha {alpha}: mean {mean}");
        assert!((variance - theory).abs() < 4.0 * spread / n.sqrt(), "alpha {alpha}: {variance}, theory {theory}");
    }
}

/// With unlimited supply of every class, a client's class shares are Dir_C(alpha): the variance over clients of one
/// class's share is (C - 1) / (C^2 (C alpha + 1)) plus the sampling noise of the draws; exhausted classes only shrink
/// the difference between the first and the last draws, so the test takes a large alpha and many clients.
#[test]
fn inner_dirichlet_shares_follow_the_prior() {
    let (clients, each, classes) = (400usize, 100usize, 10u32);
    let labels: Vec<ClassId> = (0..(clients * each) as u32).map(|i| ClassId(i % classes)).collect();
    let alpha = 2.0;
    let partition = InnerDirichlet::new(alpha, 0.0, 0).unwrap().partition(&labels, clients, Seed::new(5)).unwrap();
    let share = |indices: &Vec<usize>, class| {
        indices.iter().filter(|&&i| labels[i].0 == class).count() as f64 / indices.len() as f64
    };
    let c = f64::from(classes);
    let shares: Vec<f64> =
        partition.clients().iter().flat_map(|i| (0..classes).map(move |class| share(i, class))).collect();
    let variance = shares.iter().map(|s| (s - 1.0 / c).powi(2)).sum::<f64>() / shares.len() as f64;
    let prior = (c - 1.0) / (c * c * (c * alpha + 1.0));
    let noise = (1.0 / c * (1.0 - 1.0 / c) - prior) / each as f64;
    assert!((variance / (prior + noise) - 1.0).abs() < 0.1, "{variance}, theory {}", prior + noise);
}

#[test]
fn feature_shift_reaches_the_inputs() {
    use std::sync::Arc;

    use burn_flex::{Flex, FlexDevice};

    let labels = vec![ClassId(0); 40];
    let examples = Arc::new(Examples::new(Inputs::F32(vec![1.0; 40 * 16]), [1, 4, 4], labels, 1).unwrap());
    let shift = FeatureShift::new(Shift::Noise { max_sigma: 2.0 }).unwrap();
    let partition = shift.partition(examples.labels(), 4, Seed::new(1)).unwrap();
    let deviation = |client: usize| {
        let data = &partition.client_data(&examples).unwrap()[client];
        let values = data.batch::<Flex>(&(0..10).collect::<Vec<_>>(), &FlexDevice).inputs.into_data();
        let values = values.to_vec::<f32>().unwrap();
        (values.iter().map(|v| f64::from(v - 1.0).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
    };
    for client in 0..4 {
        // 160 draws: a standard error of 6 percent.
        let expected = 0.5 * (client + 1) as f64;
        assert!((deviation(client) / expected - 1.0).abs() < 0.25, "client {client}: {}", deviation(client));
    }
}
