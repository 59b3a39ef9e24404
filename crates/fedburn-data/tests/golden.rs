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
    pinned(
        r#"{"kind": "iid", "clients": 4}"#,
        &[[17, 13, 5, 3], [15, 15, 5, 3], [16, 8, 9, 4], [12, 9, 11, 5]],
        17_881_185_777_909_381_202,
    );
}

#[test]
fn dirichlet() {
    pinned(
        r#"{"kind": "dirichlet", "clients": 4, "alpha": 0.3}"#,
        &[[12, 0, 0, 0], [0, 27, 0, 0], [19, 17, 26, 0], [29, 1, 4, 15]],
        6_136_876_684_767_949_130,
    );
}

#[test]
fn pathological() {
    pinned(
        r#"{"kind": "pathological", "clients": 4}"#,
        &[[30, 0, 15, 0], [0, 23, 0, 8], [0, 22, 0, 7], [30, 0, 15, 0]],
        3_194_085_322_423_692_688,
    );
}

#[test]
fn shards() {
    pinned(
        r#"{"kind": "shards", "clients": 4}"#,
        &[[0, 0, 21, 15], [19, 19, 0, 0], [3, 26, 9, 0], [38, 0, 0, 0]],
        15_240_891_130_583_299_824,
    );
}

#[test]
fn log_normal_sizes() {
    pinned(
        r#"{"kind": "quantity_skew", "clients": 4, "law": {"kind": "log_normal", "sigma": 1.0}}"#,
        &[[9, 7, 6, 6], [12, 11, 4, 5], [12, 11, 8, 0], [27, 16, 12, 4]],
        10_066_433_954_951_111_914,
    );
}

#[test]
fn power_law_sizes() {
    pinned(
        r#"{"kind": "quantity_skew", "clients": 4, "law": {"kind": "power_law", "exponent": 1.0}}"#,
        &[[12, 11, 6, 7], [7, 5, 3, 3], [31, 22, 16, 3], [10, 7, 5, 2]],
        6_703_155_224_562_005_940,
    );
}

#[test]
fn dirichlet_sizes() {
    pinned(
        r#"{"kind": "quantity_skew", "clients": 4, "law": {"kind": "dirichlet", "alpha": 1.0}}"#,
        &[[11, 11, 6, 6], [11, 7, 5, 5], [18, 12, 9, 0], [20, 15, 10, 4]],
        12_695_681_219_594_103_130,
    );
}

#[test]
fn natural() {
    pinned(
        r#"{"kind": "natural"}"#,
        &[[9, 6, 4, 3], [17, 13, 9, 4], [17, 12, 9, 4], [17, 14, 8, 4]],
        206_397_602_587_291_886,
    );
}

#[test]
fn feature_shift() {
    pinned(
        r#"{"kind": "feature_shift", "clients": 4, "shift": {"kind": "noise", "max_sigma": 0.5}}"#,
        &[[13, 11, 12, 2], [14, 11, 9, 4], [19, 11, 2, 5], [14, 12, 7, 4]],
        4_119_036_802_188_650_602,
    );
}

#[test]
fn inner_dirichlet() {
    pinned(
        r#"{"kind": "inner_dirichlet", "clients": 4, "sigma": 0.5}"#,
        &[[9, 20, 4, 0], [12, 6, 3, 14], [18, 2, 14, 1], [21, 17, 9, 0]],
        1_513_654_101_465_638_460,
    );
}
