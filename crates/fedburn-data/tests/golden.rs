//! Pinned splits: a change of any of these numbers changes every published result.
#![allow(clippy::unwrap_used)]

use fedburn_core::{ClassId, Purpose, Seed};
use fedburn_data::partition::{Partition, PartitionConfig};

/// 60 examples of class 0, 45 of class 1, 30 of class 2, 15 of class 3, mixed.
fn labels() -> Vec<ClassId> {
    (0..150u32).map(|i| ClassId([0, 0, 0, 0, 1, 1, 1, 2, 2, 3][(i * 7 % 10) as usize])).collect()
}

fn split(config: &str) -> Partition {
    let config: PartitionConfig = serde_json::from_str(config).unwrap();
    let users: Vec<u64> = (0..150).map(|i| i * i % 7).collect();
    config.partition(&labels(), Some(&users), Seed::new(42).purpose(Purpose::Partition)).unwrap()
}

fn histogram(partition: &Partition) -> Vec<[usize; 4]> {
    let labels = labels();
    let count = |indices: &Vec<usize>| {
        let mut counts = [0; 4];
        indices.iter().for_each(|&index| counts[labels[index].0 as usize] += 1);
        counts
    };
    partition.clients().iter().map(count).collect()
}

#[track_caller]
fn pinned(config: &str, expected: &[[usize; 4]], fingerprint: u64) {
    let partition = split(config);
    assert_eq!((histogram(&partition).as_slice(), partition.fingerprint()), (expected, fingerprint));
}

#[test]
fn iid() {
    pinned(r#"{"kind": "iid", "clients": 4}"#, &[], 0);
}

#[test]
fn dirichlet() {
    pinned(r#"{"kind": "dirichlet", "clients": 4, "alpha": 0.3}"#, &[], 0);
}

#[test]
fn pathological() {
    pinned(r#"{"kind": "pathological", "clients": 4}"#, &[], 0);
}

#[test]
fn shards() {
    pinned(r#"{"kind": "shards", "clients": 4}"#, &[], 0);
}

#[test]
fn log_normal_sizes() {
    pinned(r#"{"kind": "quantity_skew", "clients": 4, "law": {"kind": "log_normal", "sigma": 1.0}}"#, &[], 0);
}

#[test]
fn power_law_sizes() {
    pinned(r#"{"kind": "quantity_skew", "clients": 4, "law": {"kind": "power_law", "exponent": 1.0}}"#, &[], 0);
}

#[test]
fn dirichlet_sizes() {
    pinned(r#"{"kind": "quantity_skew", "clients": 4, "law": {"kind": "dirichlet", "alpha": 1.0}}"#, &[], 0);
}

#[test]
fn natural() {
    pinned(r#"{"kind": "natural"}"#, &[], 0);
}

#[test]
fn feature_shift() {
    pinned(r#"{"kind": "feature_shift", "clients": 4, "shift": {"kind": "noise", "max_sigma": 0.5}}"#, &[], 0);
}

#[test]
fn inner_dirichlet() {
    pinned(r#"{"kind": "inner_dirichlet", "clients": 4, "sigma": 0.5}"#, &[], 0);
}
