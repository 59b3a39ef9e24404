//! Laws of the samplers, and their frequencies.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use fedburn_core::{ClientId, ClientInfo, RoundIndex, Seed};
use fedburn_runtime::{AvailabilityConfig, SamplerConfig, SamplerError};
use proptest::collection::vec;
use proptest::prelude::*;

/// Ids with gaps; about a quarter without data.
fn clients(sizes: &[u64]) -> Vec<ClientInfo> {
    let id = |index: usize| ClientId(3 * index as u64 + 1);
    sizes.iter().enumerate().map(|(index, &n)| ClientInfo { id: id(index), num_examples: n }).collect()
}

fn sizes() -> impl Strategy<Value = Vec<u64>> {
    vec(prop_oneof![1 => Just(0), 3 => 1u64..1000], 1..40)
        .prop_filter("some data", |sizes| sizes.iter().any(|&n| n > 0))
}

proptest! {
    #[test]
    fn the_laws_of_the_trait_hold(sizes in sizes(), per_round in 1usize..40, seed: u64, round: u64, kind in 0usize..4, gone in vec(any::<bool>(), 40)) {
        let population = clients(&sizes);
        let per_round = per_round.min(population.len());
        let config = match kind {
            0 => SamplerConfig::Uniform { per_round },
            1 => SamplerConfig::Weighted { per_round },
            2 => SamplerConfig::Fixed { clients: population.iter().rev().take(per_round).map(|c| c.id).collect() },
            _ => SamplerConfig::All {},
        };
        let sampler = config.clone().build(&population).unwrap();
        let available: Vec<_> = population.iter().zip(&gone).filter(|(_, gone)| !**gone).map(|(c, _)| *c).collect();
        let (round, seed) = (RoundIndex(round), Seed::new(seed));
        let cohort = sampler.sample(round, &available, seed);

        prop_assert!(cohort.is_sorted_by(|a, b| a < b), "sorted, without repeats: {cohort:?}");
        let with_data: Vec<_> = available.iter().filter(|c| c.num_examples > 0).map(|c| c.id).collect();
        prop_assert!(cohort.iter().all(|c| with_data.contains(c)), "reachable and with data");
        match config {
            SamplerConfig::Uniform { .. } | SamplerConfig::Weighted { .. } => {
                prop_assert_eq!(cohort.len(), per_round.min(with_data.len()));
            }
            SamplerConfig::Fixed { clients } => {
                prop_assert!(with_data.iter().all(|c| clients.contains(c) == cohort.contains(c)));
            }
            _ => prop_assert_eq!(&cohort, &with_data),
        }
        prop_assert_eq!(sampler.sample(round, &available, seed), cohort, "a pure function");
    }

    #[test]
    fn availability_is_pure_and_grows_with_the_probability(seed: u64, round: u64, client: u64, a in 0.01f64..1.0, b in 0.01f64..1.0) {
        let (seed, round, client) = (Seed::new(seed), RoundIndex(round), ClientId(client));
        let is_available = |probability| {
            let availability = AvailabilityConfig { probability, ..Default::default() }.build().unwrap();
            let reached = availability.is_available(seed, round, client);
            let listed = availability.reachable(seed, round, &[ClientInfo { id: client, num_examples: 1 }]).len();
            assert_eq!(listed, usize::from(reached), "both ways agree");
            reached
        };
        prop_assert!(is_available(a.min(b)) <= is_available(a.max(b)));
        prop_assert!(is_available(1.0));
    }
}

/// How often each client is chosen in 20,000 rounds.
fn counts(config: SamplerConfig, population: &[ClientInfo]) -> BTreeMap<ClientId, f64> {
    let sampler = config.build(population).unwrap();
    let mut counts: BTreeMap<_, f64> = population.iter().map(|c| (c.id, 0.0)).collect();
    for round in 1..=ROUNDS {
        for client in sampler.sample(RoundIndex(round), population, Seed::new(11)) {
            *counts.get_mut(&client).unwrap() += 1.0;
        }
    }
    counts
}

const ROUNDS: u64 = 20_000;

/// Whether `count` of [`ROUNDS`] is within five standard deviations of probability `p`.
fn fits(count: f64, p: f64) -> bool {
    let rounds = ROUNDS as f64;
    (count - rounds * p).abs() < 5.0 * (rounds * p * (1.0 - p)).sqrt() + 1e-9
}

#[test]
fn uniform_chooses_every_client_and_every_pair_alike() {
    let population = clients(&[10, 20, 0, 1, 500, 3, 7, 7, 9]);
    let counts = counts(SamplerConfig::Uniform { per_round: 3 }, &population);
    for client in &population {
        let expected = if client.num_examples > 0 { 3.0 / 8.0 } else { 0.0 };
        assert!(fits(counts[&client.id], expected), "{client:?}: {}", counts[&client.id]);
    }
    let sampler = SamplerConfig::Uniform { per_round: 3 }.build(&population).unwrap();
    let mut pairs: BTreeMap<(ClientId, ClientId), f64> = BTreeMap::new();
    for round in 1..=ROUNDS {
        let cohort = sampler.sample(RoundIndex(round), &population, Seed::new(12));
        for (i, &a) in cohort.iter().enumerate() {
            cohort[i + 1..].iter().for_each(|&b| *pairs.entry((a, b)).or_default() += 1.0);
        }
    }
    assert_eq!(pairs.len(), 8 * 7 / 2);
    for (pair, count) in pairs {
        assert!(fits(count, 3.0 / 28.0), "{pair:?}: {count}");
    }
}

#[test]
fn weighted_follows_successive_sampling() {
    let sizes = [1u64, 2, 3, 4, 0, 30];
    let population = clients(&sizes);
    let total: u64 = sizes.iter().sum();
    let one = counts(SamplerConfig::Weighted { per_round: 1 }, &population);
    let two = counts(SamplerConfig::Weighted { per_round: 2 }, &population);
    for (k, client) in population.iter().enumerate() {
        let share = |n: u64, of: u64| n as f64 / of as f64;
        let first = share(sizes[k], total);
        // Chosen first, or second after any other.
        let after = |j: usize| share(sizes[j], total) * share(sizes[k], total - sizes[j]);
        let second: f64 = (0..sizes.len()).filter(|&j| j != k).map(after).sum();
        assert!(fits(one[&client.id], first), "{client:?} of one: {}", one[&client.id]);
        assert!(fits(two[&client.id], first + second), "{client:?} of two: {}", two[&client.id]);
    }
}

#[test]
fn availability_and_dropout_have_their_probabilities_and_are_independent() {
    let availability = AvailabilityConfig { probability: 0.3, dropout: 0.2 }.build().unwrap();
    let (mut reached, mut failed, mut both) = (0.0, 0.0, 0.0);
    for draw in 0..ROUNDS {
        let (round, client) = (RoundIndex(draw % 100), ClientId(draw / 100));
        let r = availability.is_available(Seed::new(5), round, client);
        let f = availability.drops_out(Seed::new(5), round, client);
        reached += f64::from(u8::from(r));
        failed += f64::from(u8::from(f));
        both += f64::from(u8::from(r && f));
    }
    assert!(fits(reached, 0.3) && fits(failed, 0.2) && fits(both, 0.06), "{reached} {failed} {both}");
}

#[test]
fn cohorts_are_pinned() {
    let population = clients(&[5; 50]);
    let cohort = |config: SamplerConfig| -> Vec<u64> {
        let sampler = config.build(&population).unwrap();
        sampler.sample(RoundIndex(3), &population, Seed::new(1)).iter().map(|c| c.0).collect()
    };
    // Part of every published result: may never change.
    assert_eq!(cohort(SamplerConfig::Uniform { per_round: 5 }), [31, 46, 52, 91, 133]);
    assert_eq!(cohort(SamplerConfig::Weighted { per_round: 5 }), [10, 40, 55, 103, 139]);
}

#[test]
fn a_million_clients_are_no_burden() {
    let population: Vec<_> = (0..1_000_000).map(|id| ClientInfo { id: ClientId(id), num_examples: 1 }).collect();
    for config in [SamplerConfig::Uniform { per_round: 10 }, SamplerConfig::Weighted { per_round: 10 }] {
        let sampler = config.build(&population).unwrap();
        let cohorts: Vec<_> = (1..=20).map(|r| sampler.sample(RoundIndex(r), &population, Seed::new(3))).collect();
        let mean = cohorts.iter().flatten().map(|c| c.0 as f64).sum::<f64>() / 200.0;
        // The mean of 200 uniform draws has a deviation of about 20,400.
        assert!((mean - 500_000.0).abs() < 110_000.0, "{mean}");
    }
}

#[test]
fn impossible_configs_are_refused() {
    let population = clients(&[1, 2, 3]);
    let refused = |config: SamplerConfig| config.build(&population).err().unwrap();
    for value in [0, 4] {
        let expected = SamplerError::PerRound { value, clients: 3 };
        assert_eq!(refused(SamplerConfig::Uniform { per_round: value }), expected);
        assert_eq!(refused(SamplerConfig::Weighted { per_round: value }), expected);
    }
    let fixed = |ids: &[u64]| SamplerConfig::Fixed { clients: ids.iter().map(|&id| ClientId(id)).collect() };
    assert_eq!(refused(fixed(&[])), SamplerError::NoClients);
    assert_eq!(refused(fixed(&[4, 1, 4])), SamplerError::Repeated { client: ClientId(4) });
    assert_eq!(refused(fixed(&[1, 2])), SamplerError::Unknown { client: ClientId(2), clients: 3 });
    assert_eq!(SamplerConfig::All {}.build(&clients(&[0, 0])).err().unwrap(), SamplerError::NoData { clients: 2 });
    for (probability, dropout) in [(0.0, 0.0), (1.1, 0.0), (f64::NAN, 0.0), (1.0, -0.1), (1.0, f64::NAN)] {
        let config = AvailabilityConfig { probability, dropout };
        assert!(matches!(config.build(), Err(SamplerError::Probability { .. })), "{config:?}");
    }
}

#[test]
fn configs_read_as_documented() {
    let read = |text: &str| serde_json::from_str::<SamplerConfig>(text);
    assert_eq!(read(r#"{"kind":"weighted","per_round":3}"#).unwrap(), SamplerConfig::Weighted { per_round: 3 });
    assert_eq!(read(r#"{"kind":"fixed","clients":[3]}"#).unwrap(), SamplerConfig::Fixed { clients: vec![ClientId(3)] });
    assert_eq!(read(r#"{"kind":"all"}"#).unwrap(), SamplerConfig::All {});
    for wrong in [r#"{"kind":"all","per_round":3}"#, r#"{"kind":"uniform"}"#, r#"{"kind":"some"}"#] {
        assert!(read(wrong).is_err(), "{wrong}");
    }
    assert_eq!(serde_json::from_str::<AvailabilityConfig>("{}").unwrap(), AvailabilityConfig::default());
    assert!(serde_json::from_str::<AvailabilityConfig>(r#"{"drop":0.1}"#).is_err());
}
