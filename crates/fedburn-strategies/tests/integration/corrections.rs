//! The server halves of SCAFFOLD and FedDyn: golden vectors, references, laws, what is sent.

use crate::support::{Course, assert_near, build, on_both, refusal};
use burn::tensor::backend::Backend;
use burn_flex::{Flex, FlexDevice};
use fedburn_core::{ClientId, ClientUpdate, ParamVector, RoundIndex, SideInfo, StateData, StateTensor, Strategy};
use fedburn_testkit::reference::server::{feddyn_round, scaffold_round};
use fedburn_testkit::{Convexity, Rounds, base_case, schema, strategy_laws, update, vector};
use proptest::prelude::*;
use proptest::strategy::Strategy as _;

const SCAFFOLD: &str = "kind = 'scaffold'";
const FEDDYN: &str = "kind = 'feddyn'\nalpha = 0.1";

fn with_control<B: Backend>(mut update: ClientUpdate<B>, delta: &[f32]) -> ClientUpdate<B> {
    let delta = vector(delta, update.local.params.schema(), &update.local.params.device());
    update.local.side.vectors.insert(SideInfo::<B>::CONTROL_DELTA.into(), delta);
    update
}

/// One entry of a strategy's state.
fn kept<B: Backend>(strategy: &Strategy<B>, name: &str) -> Vec<f32> {
    match strategy.state().take(name).unwrap().data {
        StateData::F32(values) => values,
        other => panic!("{name} is {other:?}"),
    }
}

/// Section B3: c begins at [0.1, 0, -0.1], one client of four returns y and dc.
fn scaffold_golden<B: Backend>() {
    let schema = schema(&[3]);
    let vector = |values: &[f32]| vector::<B>(values, &schema, &Default::default());
    let mut course = Course::<B>::new(SCAFFOLD, vector(&[1.0, 2.0, 3.0]), 4);
    let mut state = course.strategy.state();
    state.insert("control", StateTensor { shape: vec![3], data: StateData::F32(vec![0.1, 0.0, -0.1]) });
    course.strategy.restore(state, &course.global).unwrap();
    let sent = course.strategy.side_info(RoundIndex(1), ClientId(0));
    assert_eq!(sent.vectors[SideInfo::<B>::CONTROL].to_host(), [0.1, 0.0, -0.1], "also right after restoring");
    course.round(&[with_control(update(0, 7, vector(&[0.791, 1.658, 2.639])), &[0.945, 1.71, 1.905])]);
    assert_near("x", &course.global.to_host(), &[0.791, 1.658, 2.639], 1e-7);
    assert_near("c", &kept(&course.strategy, "control"), &[0.33625, 0.4275, 0.37625], 1e-6);
    let sent = course.strategy.side_info(RoundIndex(2), ClientId(3));
    assert_eq!(sent.vectors[SideInfo::<B>::CONTROL].to_host(), kept(&course.strategy, "control"));
}

/// Section B4: two clients of four.
fn feddyn_golden<B: Backend>() {
    let schema = schema(&[3]);
    let vector = |values: &[f32]| vector::<B>(values, &schema, &Default::default());
    let mut course = Course::<B>::new(FEDDYN, vector(&[1.0, 2.0, 3.0]), 4);
    let updates = [update(0, 1, vector(&[0.811, 1.622, 2.622])), update(1, 50, vector(&[1.19845, 2.0, 2.80155]))];
    let aggregate = course.round(&updates);
    assert_near("x", &course.global.to_host(), &[1.0070875, 1.7165, 2.5676625], 1e-6);
    // h = -(alpha / N) drift.
    let h: Vec<_> = kept(&course.strategy, "drift").iter().map(|d| -0.1 / 4.0 * d).collect();
    let expected = [-0.00023625, 0.00945, 0.01441125];
    assert_near("h", &h, &expected, 1e-7);
    let norm = expected.iter().map(|v| v * v).sum::<f64>().sqrt() / 0.1;
    assert!((aggregate.metrics.get("drift_norm").unwrap() - norm).abs() < 1e-5, "|h| / alpha is reported");
    let sent = course.strategy.side_info(RoundIndex(2), ClientId(0));
    assert_eq!((sent.scalars[SideInfo::<B>::ALPHA], sent.vectors.len()), (0.1, 0));
}

#[test]
fn golden_vectors_on_both_backends() {
    on_both!(scaffold_golden);
    on_both!(feddyn_golden);
}

fn laws<B: Backend>() {
    for table in [SCAFFOLD, "kind = 'scaffold'\nserver_lr = 0.5", FEDDYN] {
        strategy_laws::<B>(|| build(table), Convexity::Free, &Default::default());
    }
}

#[test]
fn laws_on_both_backends() {
    on_both!(laws);
}

/// A start and rounds of clients `(y, dc)`, all of one length.
type Case = (Vec<f32>, Vec<Vec<(Vec<f32>, Vec<f32>)>>);

fn cases() -> impl proptest::strategy::Strategy<Value = Case> {
    (1usize..5).prop_flat_map(|len| {
        let values = move || prop::collection::vec(-10.0f32..10.0, len);
        let round = prop::collection::vec((values(), values()), 1..8);
        (values(), prop::collection::vec(round, 1..5))
    })
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn both_are_the_references((start, rounds) in cases(), extra in 0u64..100, lr in 0.1..1.5f64, alpha in 0.01..1.0f64) {
        let schema = schema(&[start.len()]);
        let population = 8 + extra;
        let params = |values: &[f32]| vector::<Flex>(values, &schema, &FlexDevice);
        let mut scaffold = Course::new(&format!("{SCAFFOLD}\nserver_lr = {lr:?}"), params(&start), population);
        let mut feddyn = Course::new(&format!("kind = 'feddyn'\nalpha = {alpha:?}"), params(&start), population);
        let (mut c, mut h) = (vec![0.0; start.len()], vec![0.0; start.len()]);
        for clients in &rounds {
            let updates: Vec<_> = clients.iter().enumerate()
                .map(|(k, (y, dc))| with_control(update(k as u64, 1 + k as u64, params(y)), dc))
                .collect();
            let (y, dc): (Vec<_>, Vec<_>) = clients.iter().map(|(y, dc)| (wide(y), wide(dc))).unzip();

            let pairs: Vec<_> = y.iter().cloned().zip(dc).collect();
            let (x, next) = scaffold_round(&wide(&scaffold.global.to_host()), &c, &pairs, population as f64, lr);
            c = next;
            assert_near("SCAFFOLD, x", &scaffold.round(&updates).global.to_host(), &x, 1e-5);
            assert_near("SCAFFOLD, c", &kept(&scaffold.strategy, "control"), &c, 1e-5);

            let before = wide(&feddyn.global.to_host());
            let (x, next) = feddyn_round(&before, &h, &y, population as f64, alpha);
            h = next;
            assert_near("FedDyn, x", &feddyn.round(&updates).global.to_host(), &x, 1e-4);
        }
    }

    /// With every client in every round, `x = mean x_k - h / alpha` moves on the same way whatever `alpha` is: only
    /// the clients' part depends on it.
    #[test]
    fn feddyns_server_does_not_depend_on_alpha((start, rounds) in cases()) {
        let schema = schema(&[start.len()]);
        let params = |values: &[f32]| vector::<Flex>(values, &schema, &FlexDevice);
        let mut courses = [0.01, 1.0].map(|a| Course::new(&format!("kind = 'feddyn'\nalpha = {a}"), params(&start), 8));
        for clients in &rounds {
            let updates: Vec<_> =
                clients.iter().enumerate().map(|(k, (y, _))| update(k as u64, 1, params(y))).collect();
            let [a, b] = courses.each_mut().map(|course| course.round(&updates).global.to_host());
            prop_assert_eq!(a, b);
        }
    }
}

/// Clients that join later count in `N` from then on; clients that cannot be reached still do.
#[test]
fn feddyn_keeps_the_sum_when_the_population_changes() {
    let schema = schema(&[1]);
    let params = |value: f32| vector::<Flex>(&[value], &schema, &FlexDevice);
    let mut strategy = build::<Flex>("kind = 'feddyn'");
    let mut round = |population, index, global, local| {
        let rounds = Rounds::new(population);
        rounds.combine(&mut strategy, RoundIndex(index), &params(global), &[update(0, 1, params(local))]).unwrap()
    };
    // drift 1, N 2; drift 3, N 4; drift 3, N still 4.
    assert_eq!(round(2, 1, 0.0, 1.0).global.to_host(), [1.5]);
    assert_eq!(round(4, 2, 0.0, 2.0).global.to_host(), [2.75]);
    assert_eq!(round(3, 3, 1.0, 1.0).global.to_host(), [1.75]);
}

#[test]
fn scaffold_says_what_clients_must_send() {
    let (global, updates) = base_case::<Flex>(&FlexDevice);
    let mut strategy = build::<Flex>(SCAFFOLD);
    assert!(strategy.side_info(RoundIndex(1), ClientId(0)).vectors.is_empty(), "zeros need not be sent");
    let error = Rounds::new(2).combine(&mut strategy, RoundIndex(1), &global, &updates).unwrap_err().to_string();
    assert!(error.contains("`scaffold`") && error.contains("`control_delta`"), "{error}");
    assert!(strategy.state().is_empty(), "a refused round leaves the state as it was");
}

/// A control variate of running statistics would be applied to nothing.
#[test]
fn running_statistics_have_no_corrections() {
    use fedburn_core::{ParamEntry, ParamKind, ParamSchema};
    let entries = [("w", ParamKind::Weight), ("norm.running_var", ParamKind::Buffer)];
    let entries = entries.map(|(path, kind)| ParamEntry::new(path, vec![1], kind)).to_vec();
    let schema = std::sync::Arc::new(ParamSchema::new(entries).unwrap());
    let params =
        |values: [f32; 2]| ParamVector::<Flex>::from_host(values.to_vec(), schema.clone(), &FlexDevice).unwrap();
    for (table, name) in [("kind = 'scaffold'\nserver_lr = 0.5", "control"), (FEDDYN, "drift")] {
        let mut course = Course::new(table, params([1.0, 1.0]), 2);
        let updates = [update(0, 1, params([2.0, 3.0])), update(1, 9, params([4.0, 5.0]))];
        course.round(&updates.map(|u| with_control(u, &[1.0, 1.0])));
        assert_eq!(course.global.to_host()[1], 4.0, "{table}: the uniform mean");
        let kept = kept(&course.strategy, name);
        assert!(kept[0] != 0.0 && kept[1] == 0.0, "{table}: {kept:?}");
    }
}

#[test]
fn what_makes_no_rule_is_refused() {
    for (table, words) in
        [("kind = 'scaffold'\nserver_lr = -1", "server_lr = -1"), ("kind = 'feddyn'\nalpha = 0", "alpha = 0")]
    {
        let reason = refusal(table);
        assert!(reason.contains(words), "{reason}");
    }
}
