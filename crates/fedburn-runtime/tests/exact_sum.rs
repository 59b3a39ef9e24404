//! Laws of the exact sum, and its means against big-integer arithmetic.
#![allow(clippy::unwrap_used)]

use fedburn_runtime::{ExactSum, ExactSumError, exact_mean, exact_mean_into};
use num_bigint::BigInt;
use proptest::collection::vec;
use proptest::prelude::*;

/// Any finite value, each magnitude as likely as the next, with the edges of the format thrown in.
fn any_finite() -> impl Strategy<Value = f32> {
    let edges = [0.0, f32::MIN_POSITIVE, f32::from_bits(1), f32::from_bits(0x7f_ffff), f32::MAX, 1.0, 256.0];
    prop_oneof![
        6 => any::<u32>().prop_map(f32::from_bits).prop_filter("finite", |v| v.is_finite()),
        1 => (0..edges.len(), any::<bool>()).prop_map(move |(i, sign)| if sign { -edges[i] } else { edges[i] }),
        3 => -2f32..2.0,
    ]
}

/// Values of neighbouring magnitudes, so that terms cancel, quotients tie and results are subnormal.
fn narrow() -> impl Strategy<Value = Vec<f32>> {
    (0u32..254).prop_flat_map(|exponent| {
        let value =
            (any::<bool>(), 0u32..3, 0u32..0x80_0000, any::<bool>()).prop_map(move |(sign, up, fraction, few)| {
                let fraction = if few { fraction & 3 } else { fraction };
                f32::from_bits(u32::from(sign) << 31 | (exponent + up).min(254) << 23 | fraction)
            });
        vec(value, 1..12)
    })
}

fn weight() -> impl Strategy<Value = u64> {
    prop_oneof![1u64..10, 1u64..1 << 32]
}

fn sum_of(updates: &[(Vec<f32>, u64)]) -> ExactSum {
    let mut sum = ExactSum::new(updates[0].0.len());
    updates.iter().for_each(|(values, weight)| sum.add(values, *weight).unwrap());
    sum
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn mean_bits(sum: &ExactSum) -> Vec<u32> {
    bits(&sum.mean().unwrap())
}

fn slices(updates: &[(Vec<f32>, u64)]) -> Vec<(&[f32], u64)> {
    updates.iter().map(|(values, weight)| (&values[..], *weight)).collect()
}

/// Every way to the mean of these updates, on so many threads, as bits.
fn all_means(updates: &[(Vec<f32>, u64)], threads: usize) -> Vec<Vec<u32>> {
    let mut into = vec![f32::NAN; updates[0].0.len()];
    exact_mean_into(&mut into, &slices(updates), threads).unwrap();
    let in_place = exact_mean(updates[0].clone(), &slices(&updates[1..]), threads).unwrap();
    let mut sum = ExactSum::new(into.len()).with_threads(threads);
    sum.add_all(&slices(updates)).unwrap();
    vec![bits(&into), bits(&in_place), mean_bits(&sum)]
}

/// `value x 2^149`, an integer for every finite `f32`.
fn scaled(value: f32) -> BigInt {
    let fraction = BigInt::from(value.to_bits() & 0x7f_ffff);
    let biased = value.to_bits() >> 23 & 0xff;
    let magnitude = if biased == 0 { fraction } else { (fraction + (1 << 23)) << (biased - 1) };
    if value.is_sign_negative() { -magnitude } else { magnitude }
}

/// Whether `rounded` is the `f32` nearest to `sum / weight`, the even one of two equally near. Without a division:
/// the distances to it and to its neighbours are compared, all multiplied by `weight`.
fn is_nearest(rounded: f32, sum: &BigInt, weight: u64) -> bool {
    let distance = |candidate: f32| (sum - scaled(candidate) * weight).magnitude().clone();
    let own = distance(rounded);
    [rounded.next_up(), rounded.next_down()].into_iter().filter(|v| v.is_finite()).all(|neighbour| {
        let other = distance(neighbour);
        own < other || own == other && rounded.to_bits() & 1 == 0
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn each_mean_is_the_nearest_float(
        values in prop_oneof![vec(any_finite(), 1..12), narrow()],
        weights in vec(weight(), 12),
    ) {
        let mut sum = ExactSum::new(1);
        let mut reference = BigInt::from(0);
        for (value, weight) in values.iter().zip(&weights) {
            sum.add(&[*value], *weight).unwrap();
            reference += scaled(*value) * *weight;
        }
        let mean = sum.mean().unwrap()[0];
        prop_assert!(is_nearest(mean, &reference, sum.weight()), "{mean:e} for {values:?} x {weights:?}");
        if reference != BigInt::from(0) {
            prop_assert_eq!(mean.is_sign_negative(), reference < BigInt::from(0), "the quotient's sign is kept");
        }
    }

    #[test]
    fn order_and_grouping_do_not_matter(
        updates in vec((vec(any_finite(), 5), weight()), 1..9),
        order in any::<prop::sample::Selector>(),
        cuts in vec(any::<prop::sample::Index>(), 8),
    ) {
        let expected = mean_bits(&sum_of(&updates));
        let mut rest = updates.clone();
        let mut shuffled = Vec::new();
        while !rest.is_empty() {
            let chosen = order.select(0..rest.len());
            shuffled.push(rest.swap_remove(chosen));
        }
        prop_assert_eq!(mean_bits(&sum_of(&shuffled)), expected.clone());

        // A random tree: two of the sums that are left merge, until one is left.
        let mut forest: Vec<ExactSum> = shuffled.iter().map(|update| sum_of(std::slice::from_ref(update))).collect();
        for cut in cuts {
            if forest.len() > 1 {
                let taken = forest.swap_remove(cut.index(forest.len()));
                let into = cut.index(forest.len());
                forest[into].merge(taken).unwrap();
            }
        }
        prop_assert_eq!(forest.len(), 1);
        prop_assert_eq!(mean_bits(&forest[0]), expected);
    }

    #[test]
    fn all_at_once_is_one_by_one(
        len in 1usize..300,
        updates in vec((vec(prop_oneof![any_finite(), -1f32..1.0], 300), weight()), 1..12),
        equal in any::<bool>(),
    ) {
        let updates: Vec<_> = updates.into_iter().map(|(v, w)| (v[..len].to_vec(), if equal { 600 } else { w })).collect();
        for found in all_means(&updates, 1) {
            prop_assert_eq!(found, mean_bits(&sum_of(&updates)));
        }
    }

    #[test]
    fn values_beside_a_rounding_boundary_are_rounded_right(
        // Pairs of neighbouring floats, whose mean is a tie, and something that breaks the tie, or nearly does.
        pairs in vec((-2f32..2.0, -149i32..-20, any::<bool>(), 0u32..3), 130),
        weights in prop_oneof![Just([1, 1]), Just([600, 600]), Just([1 << 30, 1 << 30]), Just([3, 4])],
        last in 1u64..5,
    ) {
        let tiny = |exponent: i32, negative: bool, kind: u32| match kind {
            0 => 0.0,
            _ => f32::powi(2.0, exponent) * if negative { -1.0 } else { 1.0 },
        };
        let updates = [
            (pairs.iter().map(|p| p.0).collect::<Vec<_>>(), weights[0]),
            (pairs.iter().map(|p| p.0.next_up()).collect(), weights[1]),
            (pairs.iter().map(|p| tiny(p.1, p.2, p.3)).collect(), last),
            // Cancels, so that what is left lies at the boundary.
            (pairs.iter().map(|p| p.0 * 0.5).collect(), last),
            (pairs.iter().map(|p| p.0 * -0.5).collect(), last),
        ];
        let total = updates.iter().map(|(_, weight)| weight).sum();
        let means = all_means(&updates, 1);
        for (index, &mean) in means[0].iter().enumerate() {
            let sum = updates.iter().map(|(values, weight)| scaled(values[index]) * *weight).sum();
            prop_assert!(is_nearest(f32::from_bits(mean), &sum, total), "value {index} of {updates:?}");
        }
        prop_assert!(means.windows(2).all(|ways| ways[0] == ways[1]));
    }

    #[test]
    fn one_client_and_equal_clients_come_back_bit_for_bit(
        values in vec(any_finite(), 1..20),
        weights in vec(weight(), 1..8),
    ) {
        let updates: Vec<_> = weights.iter().map(|weight| (values.clone(), *weight)).collect();
        prop_assert_eq!(mean_bits(&sum_of(&updates[..1])), bits(&values));
        prop_assert_eq!(mean_bits(&sum_of(&updates)), bits(&values));
    }

    #[test]
    fn scaling_the_weights_changes_nothing(
        updates in vec((vec(any_finite(), 3), 1u64..1000), 1..6),
        factor in 1u64..1_000_000,
    ) {
        let scaled: Vec<_> = updates.iter().map(|(values, weight)| (values.clone(), weight * factor)).collect();
        prop_assert_eq!(mean_bits(&sum_of(&scaled)), mean_bits(&sum_of(&updates)));
    }

    #[test]
    fn a_refused_vector_leaves_the_sum_untouched(values in vec(any_finite(), 4), at in 0usize..4, bad in 0usize..3) {
        let mut sum = sum_of(&[(values.clone(), 3)]);
        let mut refused = values.clone();
        refused[at] = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][bad];
        let non_finite = Err(ExactSumError::NonFinite { index: at });
        prop_assert_eq!(sum.add(&refused, 1), non_finite.clone());
        prop_assert_eq!(sum.add_all(&[(&values, 1), (&refused, 1)]), non_finite.clone());
        prop_assert_eq!(exact_mean((values.clone(), 1), &[(&refused, 1)], 1).map(drop), non_finite.clone());
        prop_assert_eq!(exact_mean((refused, 1), &[(&values, 1)], 1).map(drop), non_finite);
        prop_assert_eq!(mean_bits(&sum), bits(&values));
        prop_assert_eq!(sum.weight(), 3);
    }
}

#[test]
fn every_exponent_comes_back_at_the_heaviest_weight() {
    let values: Vec<f32> = (0..255u32)
        .flat_map(|exponent| [0, 1, 0x2a_aaaa, 0x7f_ffff].map(|fraction| f32::from_bits(exponent << 23 | fraction)))
        .flat_map(|value| [value, -value])
        .collect();
    let mut sum = ExactSum::new(values.len());
    sum.add(&values, ExactSum::WEIGHT_LIMIT - 1).unwrap();
    assert_eq!(mean_bits(&sum), bits(&values));
}

#[test]
fn cancellation_is_exact_over_the_whole_range() {
    // The largest value and the smallest subnormal are 276 binary places apart.
    let tiny = f32::from_bits(1);
    let sum = sum_of(&[(vec![f32::MAX], 1), (vec![tiny], 2), (vec![-f32::MAX], 1)]);
    assert_eq!(mean_bits(&sum), [0], "half of the smallest subnormal is a tie, and 0 is even");
    let sum = sum_of(&[(vec![f32::MAX], 1), (vec![tiny], 3), (vec![-f32::MAX], 1)]);
    assert_eq!(mean_bits(&sum), [1], "three fifths of the smallest subnormal");
}

#[test]
fn zeros_keep_their_sign_only_where_all_agree() {
    let cases: [(&[f32], f32); 5] =
        [(&[-0.0], -0.0), (&[-0.0, -0.0], -0.0), (&[-0.0, 0.0], 0.0), (&[1.0, -1.0], 0.0), (&[-0.0, 1.0, -1.0], 0.0)];
    for (values, expected) in cases {
        let updates: Vec<_> = values.iter().map(|&v| (vec![v], 2)).collect();
        assert_eq!(mean_bits(&sum_of(&updates)), [expected.to_bits()], "{values:?}");
    }
}

#[test]
fn threads_change_no_bit() {
    // Long enough to be shared by three threads, with values that need the widest sums at the seams.
    let len = 700_003;
    let updates: Vec<(Vec<f32>, u64)> = (0..5u64)
        .map(|k| {
            let value = |i: u64| match (i + k) % 99_991 {
                0 => 1e30,
                1 => -1e-30,
                n => (n as f32 - 5e4) * 1e-5,
            };
            ((0..len).map(value).collect(), 600 + 100 * (k % 2))
        })
        .collect();
    let expected = mean_bits(&sum_of(&updates));
    for threads in [1, 2, 3, 16] {
        for found in all_means(&updates, threads) {
            assert!(found == expected, "{threads} threads");
        }
    }
    let mut broken = updates;
    (broken[3].0[650_000], broken[1].0[20], broken[4].0[19]) = (f32::NAN, f32::INFINITY, f32::NAN);
    let found = exact_mean_into(&mut vec![0.0; len as usize], &slices(&broken), 3);
    assert_eq!(found, Err(ExactSumError::NonFinite { index: 19 }), "the first of all");
}

#[test]
fn blocks_do_not_disturb_each_other() {
    // Rare values in the first, a middle and the last, shorter block.
    let mut values: Vec<f32> = (0..3 * 4096 + 7).map(|i| (i as f32 - 6000.0) / 4096.0).collect();
    for (index, value) in [(0, 1e30), (4095, -1e-40), (4096, 1e-30), (9000, -0.0), (3 * 4096 + 6, f32::MIN)] {
        values[index] = value;
    }
    assert_eq!(mean_bits(&sum_of(&[(values.clone(), 5)])), bits(&values));
    assert_eq!(mean_bits(&sum_of(&[(values.clone(), 1), (values.clone(), 7)])), bits(&values));
}

#[test]
fn what_cannot_be_counted_is_refused() {
    let mut sum = ExactSum::new(2);
    assert_eq!(sum.mean(), Err(ExactSumError::Empty));
    assert_eq!(sum.add(&[1.0], 1), Err(ExactSumError::Length { expected: 2, found: 1 }));
    assert_eq!(sum.add(&[1.0, 1.0], 0), Err(ExactSumError::ZeroWeight));
    assert_eq!(exact_mean_into(&mut [0.0], &[], 1), Err(ExactSumError::Empty));
    assert_eq!(
        exact_mean_into(&mut [0.0], &[(&[1.0], 1), (&[1.0, 2.0], 1)], 1).map_err(|e| e.to_string()),
        Err("expected 1 values, found 2".to_owned())
    );
    assert_eq!(exact_mean((vec![1.0], 1), &[(&[1.0], 0)], 1), Err(ExactSumError::ZeroWeight));
    sum.add(&[1.0, 2.0], ExactSum::WEIGHT_LIMIT - 2).unwrap();
    let heavy = Err(ExactSumError::WeightLimit { total: ExactSum::WEIGHT_LIMIT });
    assert_eq!(sum.add(&[5.0, 5.0], 2), heavy);
    assert_eq!(sum.merge(sum_of(&[(vec![5.0, 5.0], 2)])), heavy);
    assert_eq!(sum.merge(ExactSum::new(1)), Err(ExactSumError::Length { expected: 2, found: 1 }));
    assert_eq!(sum.add(&[5.0, 5.0], u64::MAX), Err(ExactSumError::WeightLimit { total: u64::MAX }));
    assert_eq!(sum.mean().unwrap(), [1.0, 2.0]);
}
