//! FedNova: golden vectors, reference, laws, clients without steps.

use std::sync::Arc;

use crate::support::{Course, assert_near, build, on_both, refusal};
use burn::tensor::backend::Backend;
use burn_flex::{Flex, FlexDevice};
use fedburn_core::{
    ClientUpdate, MemoryStore, ParamEntry, ParamKind, ParamSchema, ParamVector, Round, RoundIndex, Seed,
};
use fedburn_core::{Reports, Strategy, UpdateSet};
use fedburn_testkit::reference::server::fednova_step;
use fedburn_testkit::{Convexity, base_case, schema, strategy_laws, update, vector};
use proptest::prelude::*;
use proptest::strategy::Strategy as _;

const PLAIN: &str = "kind = 'fednova'";
const PROXIMAL: &str = "kind = 'fednova'\neffective_steps = 'steps'";
const MOMENTUM: &str = "kind = 'fednova'\nserver_momentum = 0.5";

fn reported<B: Backend>(mut update: ClientUpdate<B>, accumulation: f64, steps: u64) -> ClientUpdate<B> {
    (update.local.report.accumulation, update.local.report.steps) = (Some(accumulation), Some(steps));
    update
}

/// The BASE case, where A and B report `(a, tau)`.
fn base<B: Backend>(reports: [(f64, u64); 2]) -> (ParamVector<B>, Vec<ClientUpdate<B>>) {
    let (global, updates) = base_case::<B>(&Default::default());
    (global, updates.into_iter().zip(reports).map(|(update, (a, steps))| reported(update, a, steps)).collect())
}

/// Section B8, and by hand from its accumulations.
fn golden<B: Backend>() {
    for (table, reports, expected) in [
        (PLAIN, [(2.0, 2), (4.0, 4)], [0.825, 2.175, 3.39375]),
        // Momentum 0.9: tau_eff = 0.25 * 2.9 + 0.75 * 9.049 = 7.51175.
        (
            PLAIN,
            [(2.9, 2), (9.049, 4)],
            [
                1.0 + 7.51175 * (0.05 / 2.9 - 0.3 / 9.049),
                2.0 - 7.51175 * (0.05 / 2.9 - 0.3 / 9.049),
                3.0 + 7.51175 * 0.45 / 9.049,
            ],
        ),
        // Proximal, eta 0.1, mu 0.5: tau_eff = 0.25 * 2 + 0.75 * 4 = 3.5.
        (
            PROXIMAL,
            [(1.95, 2), (3.709875, 4)],
            [
                1.0 + 3.5 * (0.05 / 1.95 - 0.3 / 3.709875),
                2.0 - 3.5 * (0.05 / 1.95 - 0.3 / 3.709875),
                3.0 + 3.5 * 0.45 / 3.709875,
            ],
        ),
    ] {
        let (global, updates) = base::<B>(reports);
        let aggregate = Course::new(table, global, 2).round(&updates);
        assert_near(table, &aggregate.global.to_host(), &expected, 1e-6);
    }
    // Server momentum: the first step is (-0.175, 0.175, 0.39375), the second half of it and the second round's own.
    let (global, updates) = base::<B>([(2.0, 2), (4.0, 4)]);
    let mut course = Course::new(MOMENTUM, global, 2);
    course.round(&updates);
    let moved = vector(&[1.825, 2.175, 3.39375], course.global.schema(), &Default::default());
    let second = course.round(&[reported(update(0, 1, moved), 3.0, 3)]).global.to_host();
    assert_near(MOMENTUM, &second, &[0.825 - 0.0875 + 1.0, 2.175 + 0.0875, 3.39375 + 0.196875], 1e-6);
}

#[test]
fn the_base_case_on_both_backends() {
    on_both!(golden);
}

fn laws<B: Backend>() {
    for table in [PLAIN, PROXIMAL, MOMENTUM] {
        strategy_laws::<B>(|| build(table), Convexity::Free, &Default::default());
    }
}

#[test]
fn laws_on_both_backends() {
    on_both!(laws);
}

/// `(n, a, steps, x)` of a client.
type Sent = (u64, f64, u64, Vec<f32>);

/// A start and clients, of one length.
fn cases() -> impl proptest::strategy::Strategy<Value = (Vec<f32>, Vec<Sent>)> {
    (1usize..5).prop_flat_map(|len| {
        let values = move || prop::collection::vec(-10.0f32..10.0, len);
        let client = (1u64..1000, 0.5f64..100.0, 1u64..100, values());
        (values(), prop::collection::vec(client, 1..40))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn one_round_is_the_references((start, clients) in cases(), proximal: bool) {
        let schema = schema(&[start.len()]);
        let mut course =
            Course::<Flex>::new(if proximal { PROXIMAL } else { PLAIN }, vector(&start, &schema, &FlexDevice), 99);
        let updates: Vec<_> = clients.iter().enumerate()
            .map(|(k, (n, a, steps, x))| reported(update(k as u64, *n, vector(x, &schema, &FlexDevice)), *a, *steps))
            .collect();
        let wide = |values: &[f32]| values.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
        let rows: Vec<_> = clients.iter()
            .map(|(n, a, steps, x)| (*n as f64, *a, if proximal { *steps as f64 } else { *a }, wide(x)))
            .collect();
        let expected = fednova_step(&wide(&start), &rows);
        let found = course.round(&updates).global.to_host();
        // Weights add up to more than one where numbers of steps differ.
        let gain = rows.iter().map(|(.., steps, _)| *steps).fold(0.0, f64::max) / rows.iter().map(|(_, a, ..)| *a).fold(1e9, f64::min);
        for ((found, step), x) in found.iter().zip(expected).zip(start) {
            let expected = f64::from(x) + step;
            prop_assert!((f64::from(*found) - expected).abs() <= 1e-5 * (1.0 + gain), "{found}, expected {expected}");
        }
    }

    /// Equal numbers of steps: the weighted mean, and a single client's parameters up to the last bit.
    #[test]
    fn with_equal_steps_it_is_fedavg((start, clients) in cases(), steps in 1u64..50) {
        let schema = schema(&[start.len()]);
        let updates: Vec<_> = clients.iter().enumerate()
            .map(|(k, (n, .., x))| reported(update(k as u64, *n, vector(x, &schema, &FlexDevice)), steps as f64, steps))
            .collect();
        let global = vector::<Flex>(&start, &schema, &FlexDevice);
        let [nova, mean] = [PLAIN, "kind = 'fedavg'"].map(|table| Course::new(table, global.clone(), 99).round(&updates));
        for (nova, mean) in nova.global.to_host().into_iter().zip(mean.global.to_host()) {
            prop_assert!((nova - mean).abs() <= 2e-5, "{nova}, FedAvg gives {mean}");
        }
    }
}

#[test]
fn clients_without_a_step_are_left_out_and_a_round_without_any_step_changes_nothing() {
    let (global, mut updates) = base::<Flex>([(2.0, 2), (4.0, 4)]);
    let expected = Course::new(PLAIN, global.clone(), 3).round(&updates).global.to_host();
    let idle = vector(&[9.0, 9.0, 9.0], global.schema(), &FlexDevice);
    updates.push(reported(update(2, 100, idle.clone()), 0.0, 0));
    let aggregate = Course::new(PLAIN, global.clone(), 3).round(&updates);
    assert_eq!(aggregate.global.to_host(), expected);
    assert_eq!(aggregate.mixing.unwrap().weights[0][2], 0.0);

    let mut course = Course::new(MOMENTUM, global.clone(), 3);
    course.round(&updates[..2]);
    let (before, state) = (course.global.to_host(), course.strategy.state());
    course.round(&[reported(update(2, 100, idle), 0.0, 0)]);
    assert_eq!((course.global.to_host(), course.strategy.state()), (before, state));
}

#[test]
fn it_asks_for_no_more_than_it_needs_and_refuses_a_client_that_did_not_answer() {
    let reports = |table| build::<Flex>(table).reports();
    assert_eq!(reports(PLAIN), Reports { accumulation: true, ..Reports::default() });
    assert_eq!(reports(PROXIMAL), Reports { accumulation: true, steps: true, ..Reports::default() });
    let (global, updates) = base_case::<Flex>(&FlexDevice);
    let (memory, cohort) = (MemoryStore::new(), updates.iter().map(|u| u.client).collect::<Vec<_>>());
    let (index, seed) = (RoundIndex(1), Seed::new(0));
    let round = Round { index, global: &global, cohort: &cohort, population: 2, seed, memory: &memory };
    let Strategy::PerClient(mut strategy) = build(PLAIN) else { panic!("it must see single clients") };
    let error = strategy.aggregate(&round, &UpdateSet::new(updates).unwrap()).unwrap_err().to_string();
    assert!(error.contains("`fednova`") && error.contains("client 0 did not report its accumulation"), "{error}");
}

#[test]
fn running_statistics_are_the_mean() {
    let entries = [("w", ParamKind::Weight), ("norm.running_mean", ParamKind::Buffer)];
    let entries = entries.map(|(path, kind)| ParamEntry::new(path, vec![1], kind)).to_vec();
    let schema = Arc::new(ParamSchema::new(entries).unwrap());
    let vector =
        |values: [f32; 2]| ParamVector::<Flex>::from_host(values.to_vec(), schema.clone(), &FlexDevice).unwrap();
    let updates = [(1, 2.0, [2.0, 2.0]), (3, 4.0, [3.0, 6.0])];
    let updates = updates.map(|(n, a, values)| reported(update(n, n, vector(values)), a, a as u64));
    let found = Course::new(PLAIN, vector([1.0, 1.0]), 2).round(&updates).global.to_host();
    // tau_eff = 3.5: the weight is 1 + 3.5 * (0.25 * 1 / 2 + 0.75 * 2 / 4), the statistic 0.25 * 2 + 0.75 * 6.
    assert_near("a weight and a statistic", &found, &[2.75, 5.0], 1e-6);
}

#[test]
fn what_makes_no_rule_is_refused() {
    let reason = refusal("kind = 'fednova'\nserver_momentum = 1.0");
    assert!(reason.contains("`fednova`") && reason.contains("server_momentum = 1"), "{reason}");
}
