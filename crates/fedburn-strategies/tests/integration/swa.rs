//! Stochastic weight averaging around strategies of both kinds: golden vectors, schedule, reference, laws, refusals.

use std::sync::Arc;

use crate::support::{Course, assert_near, build, on_both, refusal};
use burn::tensor::backend::Backend;
use burn_flex::{Flex, FlexDevice};
use fedburn_core::{ClientId, ParamEntry, ParamKind, ParamSchema, ParamVector, RoundIndex, SideInfo, Weighting};
use fedburn_testkit::reference::server::swa_round;
use fedburn_testkit::{Convexity, answer_all, schema, strategy_laws, update, vector};
use proptest::prelude::*;

/// Section A5.5: the average after [1, 2], [3, 2] and [2, 5].
fn golden<B: Backend>() {
    let schema = schema(&[2]);
    let vector = |values: &[f32]| vector::<B>(values, &schema, &Default::default());
    let mut course = Course::<B>::new("kind = 'swa'\nstart = 1\ncycle = 1", vector(&[9.0, 9.0]), 1);
    for (model, average) in [([1.0, 2.0], [1.0, 2.0]), ([3.0, 2.0], [2.0, 2.0]), ([2.0, 5.0], [2.0, 3.0])] {
        let aggregate = course.round(&[update(0, 1, vector(&model))]);
        assert_eq!(aggregate.global.to_host(), model, "training goes on from the base's model");
        assert_near("average", &aggregate.deploy.unwrap().to_host(), &average.map(f64::from), 1e-6);
    }
}

#[test]
fn the_average_on_both_backends() {
    on_both!(golden);
}

fn laws<B: Backend>() {
    for base in ["", "\n[base]\nkind = 'fedadam'", "\n[base]\nkind = 'scaffold'", "\n[base]\nkind = 'fednova'"] {
        for start in [1, 2, 5] {
            let table = format!("kind = 'swa'\nstart = {start}\ncycle = 2{base}");
            let convexity = if base.is_empty() { Convexity::Convex } else { Convexity::Free };
            strategy_laws::<B>(|| build(&table), convexity, &Default::default());
        }
    }
}

#[test]
fn laws_on_both_backends() {
    on_both!(laws);
}

/// Section A5.5: eta_1 = 0.01, eta_2 = 1e-4, c = 5.
#[test]
fn the_rate_of_clients_falls_within_each_cycle() {
    let strategy = build::<Flex>("kind = 'swa'\nstart = 6\ncycle = 5\nfinal_lr = 1e-4");
    let rate = |round| {
        let sent = strategy.side_info(RoundIndex(round), ClientId(0)).scalars;
        let (tau, target) = (sent.get(SideInfo::<Flex>::RATE_BLEND)?, sent.get(SideInfo::<Flex>::RATE_TARGET)?);
        Some((1.0 - tau) * 0.01 + tau * target)
    };
    assert!((1..6).all(|round| rate(round).is_none()), "the clients' own rate before the start");
    for (round, expected) in (6..16).zip([0.00802, 0.00604, 0.00406, 0.00208, 0.0001].into_iter().cycle()) {
        assert!((rate(round).unwrap() - expected).abs() < 1e-9, "round {round}: {:?}", rate(round));
    }
    let constant = build::<Flex>("kind = 'swa'\nstart = 1\ncycle = 1");
    assert!(constant.side_info(RoundIndex(3), ClientId(0)).scalars.is_empty(), "cycles of one round change no rate");
}

/// The rounds, of 14 with `start = 4` and `cycle = 3`, after which the average takes in a model: those after which it
/// differs from before.
#[test]
fn models_are_collected_where_the_setting_says() {
    let schema = schema(&[1]);
    for (collect, expected) in [("cycle_end", vec![6, 9, 12]), ("cycle_start", vec![7, 10, 13])] {
        let table = format!("kind = 'swa'\nstart = 4\ncycle = 3\ncollect = '{collect}'");
        let mut course = Course::<Flex>::new(&table, vector(&[0.0], &schema, &FlexDevice), 1);
        let mut collected = Vec::new();
        let mut before = None;
        for round in 1..=14u16 {
            let aggregate = course.round(&[update(0, 1, vector(&[f32::from(round).powi(2)], &schema, &FlexDevice))]);
            let deployed = aggregate.deploy.map(|d| d.to_host()[0]);
            assert_eq!(deployed.is_some(), round >= 4, "{collect}, round {round}");
            if round == 4 {
                assert_eq!(deployed, Some(9.0), "the model that round 4 started from");
            } else if deployed != before {
                collected.push(round);
            }
            before = deployed;
        }
        assert_eq!(collected, expected, "{collect}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_average_is_the_references(
        models in prop::collection::vec(prop::collection::vec(-10.0f32..10.0, 3), 1..20), start in 1u64..6, cycle in 1u64..5,
        at_end: bool,
    ) {
        let schema = schema(&[3]);
        let collect = if at_end { "cycle_end" } else { "cycle_start" };
        let table = format!("kind = 'swa'\nstart = {start}\ncycle = {cycle}\ncollect = '{collect}'");
        let mut course = Course::<Flex>::new(&table, vector(&[0.5; 3], &schema, &FlexDevice), 1);
        let (mut copy, mut taken) = (Vec::new(), Vec::new());
        for (round, model) in (1..).zip(&models) {
            if round == start {
                copy = course.global.to_host().into_iter().map(f64::from).collect();
            }
            let deploy = course.round(&[update(0, 1, vector(model, &schema, &FlexDevice))]).deploy;
            prop_assert_eq!(deploy.is_some(), round >= start);
            let Some(deploy) = deploy else { continue };
            let takes = if at_end { (round - start + 1) % cycle == 0 } else { round > start && (round - start) % cycle == 0 };
            if takes {
                taken.push(model.iter().map(|v| f64::from(*v)).collect::<Vec<_>>());
            }
            assert_near(&table, &deploy.to_host(), &swa_round(&copy, &taken), 1e-5);
        }
    }
}

#[test]
fn the_base_keeps_its_weighting_reports_and_side_information() {
    let wrapped = |base: &str| build::<Flex>(&format!("kind = 'swa'\nstart = 1\ncycle = 4\n[base]\n{base}"));
    assert_eq!(wrapped("kind = 'scaffold'").weighting(), Weighting::Uniform);
    assert!(wrapped("kind = 'fednova'").reports().accumulation);
    let sent = wrapped("kind = 'feddyn'\nalpha = 0.3").side_info(RoundIndex(1), ClientId(0)).scalars;
    assert_eq!(sent[SideInfo::<Flex>::ALPHA], 0.3);
    assert_eq!(sent[SideInfo::<Flex>::RATE_BLEND], 0.25);
}

/// Stopped in the middle of a cycle, with a base that has state of its own.
#[test]
fn a_resumed_average_goes_on_as_if_never_stopped() {
    let table = "kind = 'swa'\nstart = 2\ncycle = 2\n[base]\nkind = 'scaffold'";
    let schema = schema(&[2]);
    let params = |values: [f32; 2]| vector::<Flex>(&values, &schema, &FlexDevice);
    let clients = |round: u64| [answer_all(update(0, 1, params([round as f32, 1.0 / round as f32])))];
    let mut whole = Course::new(table, params([0.0, 0.0]), 3);
    let mut other = Course::new(table, params([0.0, 0.0]), 3);
    for round in 1..=9 {
        other.global = whole.global.clone();
        other.skip_to(round);
        other.strategy = build(table);
        other.strategy.restore(whole.strategy.state(), &whole.global).unwrap();
        let sent = |course: &Course<Flex>| {
            let side = course.strategy.side_info(RoundIndex(round), ClientId(0));
            (side.scalars, side.vectors.into_iter().map(|(name, v)| (name, v.to_host())).collect::<Vec<_>>())
        };
        assert_eq!(sent(&whole), sent(&other), "round {round}");
        let deployed = [&mut whole, &mut other].map(|c| c.round(&clients(round)).deploy.map(|d| d.to_host()));
        assert_eq!(deployed[0], deployed[1], "round {round}");
    }
}

#[test]
fn running_statistics_are_those_of_the_current_model() {
    let entries = [("w", ParamKind::Weight), ("norm.running_mean", ParamKind::Buffer)];
    let entries = entries.map(|(path, kind)| ParamEntry::new(path, vec![1], kind)).to_vec();
    let schema = Arc::new(ParamSchema::new(entries).unwrap());
    let params =
        |values: [f32; 2]| ParamVector::<Flex>::from_host(values.to_vec(), schema.clone(), &FlexDevice).unwrap();
    let mut course = Course::new("kind = 'swa'\nstart = 1\ncycle = 1", params([0.0, 0.0]), 1);
    course.round(&[update(0, 1, params([1.0, 1.0]))]);
    let deployed = course.round(&[update(0, 1, params([3.0, 7.0]))]).deploy.unwrap();
    assert_eq!(deployed.to_host(), [2.0, 7.0]);
}

#[test]
fn what_makes_no_average_is_refused() {
    for (table, words) in [
        ("kind = 'swa'", vec!["missing field `start`"]),
        ("kind = 'swa'\nstart = 0", vec!["`swa`", "start = 0"]),
        ("kind = 'swa'\nstart = 1\ncycle = 0", vec!["`swa`", "cycle = 0"]),
        ("kind = 'swa'\nstart = 1\nfinal_lr = 0", vec!["`swa`", "final_lr = 0"]),
        ("kind = 'swa'\nstart = 1\n[base]\nkind = 'swa'\nstart = 3", vec!["base = swa", "does not average yet"]),
        ("kind = 'swa'\nstart = 1\n[base]\nkind = 'fedavg'\nserver_lr = -1", vec!["`fedavg`", "server_lr = -1"]),
    ] {
        let reason = refusal(table);
        assert!(words.iter().all(|word| reason.contains(word)), "{reason}");
    }
}
