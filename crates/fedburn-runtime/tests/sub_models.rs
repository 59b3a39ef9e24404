//! Clients that hold a part of the model: each value is the mean over those who hold it, exactly, whatever came when.
#![allow(clippy::unwrap_used)]

use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use burn_flex::{Flex, FlexDevice};
use fedburn_core::{
    Aggregate, AggregateError, ClientFailure, ClientId, ClientInfo, ClientReport, ClientSampler, Codec,
    CompressionConfig, Event, LocalUpdate, MeanStrategy, Metrics, Outcome, ParamEntry, ParamKind, ParamSchema,
    ParamVector, PerClientStrategy, Reply, Request, Round, RoundIndex, RoundMean, Schemas, Seed, SideInfo, SliceName,
    Strategy, SubModels, TrainTask, UpdateSet, Weighting,
};
use fedburn_runtime::{Coordinator, Effect, ExactSum, Input};
use fedburn_testkit::vector;
use proptest::prelude::{prop, prop_assert_eq, proptest};

struct TheMean(Weighting);

impl MeanStrategy<Flex> for TheMean {
    fn name(&self) -> &'static str {
        "the_mean"
    }
    fn weighting(&self) -> Weighting {
        self.0
    }
    fn step(&mut self, _: &Round<'_, Flex>, mean: &RoundMean<Flex>) -> Result<Aggregate<Flex>, AggregateError> {
        Ok(mean.params.clone().into())
    }
}

/// The last update in cohort order.
struct TheLast;

impl PerClientStrategy<Flex> for TheLast {
    fn name(&self) -> &'static str {
        "the_last"
    }
    fn aggregate(&mut self, _: &Round<'_, Flex>, updates: &UpdateSet<Flex>) -> Result<Aggregate<Flex>, AggregateError> {
        Ok(updates.iter().last().unwrap().local.params.clone().into())
    }
}

struct Everybody;

impl ClientSampler for Everybody {
    fn sample(&self, _: RoundIndex, available: &[ClientInfo], _: Seed) -> Vec<ClientId> {
        available.iter().map(|c| c.id).collect()
    }
}

/// Client `i` holds the `i`-th and counts as often as the `i`-th number says, once where there is none, without the `i`-th
/// values.
#[derive(Debug)]
struct Listed(Vec<Vec<SliceName>>, Vec<u64>, Vec<Vec<Range<usize>>>);

impl SubModels for Listed {
    fn held(&self, _: RoundIndex, client: ClientId) -> Vec<SliceName> {
        self.0[client.0 as usize].clone()
    }

    fn times(&self, _: RoundIndex, client: ClientId) -> NonZeroU64 {
        self.1.get(client.0 as usize).map_or(NonZeroU64::MIN, |times| (*times).try_into().unwrap())
    }

    fn uncounted(&self, _: RoundIndex, client: ClientId) -> Vec<Range<usize>> {
        self.2.get(client.0 as usize).cloned().unwrap_or_default()
    }
}

fn schema(entries: &[(&str, &[usize])]) -> Arc<ParamSchema> {
    let entry = |(path, shape): &(&str, &[usize])| ParamEntry::new(*path, shape.to_vec(), ParamKind::Weight);
    Arc::new(ParamSchema::new(entries.iter().map(entry).collect()).unwrap())
}

/// A matrix and a vector; parts `corner`, `matrix` and `tail`.
fn schemas() -> Schemas {
    let whole = Schemas::from(schema(&[("w", &[3, 3]), ("b", &[2])]));
    let parts = [
        ("corner", schema(&[("w", &[2, 2])])),
        ("matrix", schema(&[("w", &[3, 3])])),
        ("tail", schema(&[("b", &[2])])),
    ];
    parts.into_iter().fold(whole, |schemas, (name, part)| schemas.with_slice(name, part).unwrap())
}

fn coordinator(strategy: Strategy<Flex>, held: &[&[&'static str]]) -> Coordinator<Flex> {
    counted(strategy, held, &[])
}

fn counted(strategy: Strategy<Flex>, held: &[&[&'static str]], times: &[u64]) -> Coordinator<Flex> {
    listed(strategy, held, times, &[])
}

fn listed(
    strategy: Strategy<Flex>,
    held: &[&[&'static str]],
    times: &[u64],
    uncounted: &[&[Range<usize>]],
) -> Coordinator<Flex> {
    let schemas = schemas();
    let values: Vec<f32> = (0..11).map(|i| i as f32).collect();
    let global = vector(&values, schemas.model(), &FlexDevice);
    let named = held.iter().map(|names| names.iter().map(|&name| name.into()).collect()).collect();
    Coordinator::new(strategy, Box::new(Everybody), global, Seed::new(1), 1).with_sub_models(
        schemas,
        Arc::new(Listed(named, times.to_vec(), uncounted.iter().map(|of| of.to_vec()).collect())),
    )
}

fn uniform() -> Strategy<Flex> {
    Strategy::Mean(Box::new(TheMean(Weighting::Uniform)))
}

fn by_examples() -> Strategy<Flex> {
    Strategy::Mean(Box::new(TheMean(Weighting::Examples)))
}

fn tasks(coordinator: &mut Coordinator<Flex>, clients: u64) -> Vec<TrainTask<Flex>> {
    let clients: Vec<_> = (0..clients).map(|k| ClientInfo { id: ClientId(k), num_examples: 1 }).collect();
    let effects = coordinator.step(Input::Begin(&clients), Duration::ZERO).unwrap();
    let sent = effects.into_iter().filter_map(|effect| match effect {
        Effect::Send(_, Request::Train(task)) => Some(task),
        _ => None,
    });
    sent.collect()
}

fn answer(client: u64, params: ParamVector<Flex>, num_examples: u64) -> Outcome<Flex> {
    let (side, report, metrics) = (SideInfo::default(), ClientReport::default(), Metrics::new());
    let update = LocalUpdate { params, num_examples, side, report, metrics };
    Outcome { client: ClientId(client), reply: Ok(Reply::Trained(update)) }
}

/// Each client answers with one number everywhere; the global vector after that.
fn round(coordinator: &mut Coordinator<Flex>, numbers: &[f32]) -> Vec<f32> {
    round_of(coordinator, numbers, &vec![1; numbers.len()])
}

/// The same for clients of so many examples.
fn round_of(coordinator: &mut Coordinator<Flex>, numbers: &[f32], examples: &[u64]) -> Vec<f32> {
    let sent = tasks(coordinator, numbers.len() as u64);
    for (client, (task, number)) in sent.iter().zip(numbers).enumerate() {
        let params = vector(&vec![*number; task.global.num_values()], task.global.schema(), &FlexDevice);
        let answer = answer(client as u64, params, examples[client]);
        coordinator.step(Input::Outcome(answer), Duration::ZERO).unwrap();
    }
    coordinator.global().to_host()
}

#[test]
fn each_value_is_the_mean_of_those_who_hold_it() {
    // HeteroFL's example: a full client all 10, one of two by two all 20; and the small one alone.
    let both = round(&mut coordinator(uniform(), &[&["matrix"], &["corner"]]), &[10.0, 20.0]);
    assert_eq!(both, [15., 15., 10., 15., 15., 10., 10., 10., 10., 9., 10.]);
    let small = round(&mut coordinator(uniform(), &[&["corner"]]), &[20.0]);
    assert_eq!(small, [20., 20., 2., 20., 20., 5., 6., 7., 8., 9., 10.]);
    let joined = round(&mut coordinator(uniform(), &[&["tail", "corner"], &[]]), &[1.0, 3.0]);
    assert_eq!(joined, [2., 2., 3., 2., 2., 3., 3., 3., 3., 2., 2.]);
}

#[test]
fn a_client_counts_as_often_as_it_is_said_to() {
    // 2 once and 1 twice are the same weight; where the first holds nothing, it does not pull.
    let (held, values): ([&[&str]; 2], _) = ([&["corner"], &[]], [10.0, 20.0]);
    let twice = round_of(&mut counted(by_examples(), &held, &[1, 2]), &values, &[2, 1]);
    assert_eq!(twice, [15., 15., 20., 15., 15., 20., 20., 20., 20., 20., 20.]);
    // (1 * 1 * 10 + 3 * 4 * 36) / (1 + 12) = 34; as often as each other is as once.
    let whole: [&[&str]; 2] = [&[], &[]];
    assert_eq!(round_of(&mut counted(by_examples(), &whole, &[1, 4]), &[10.0, 36.0], &[1, 3]), [34.0; 11]);
    assert_eq!(round_of(&mut counted(by_examples(), &whole, &[4, 4]), &[8.0, 24.0], &[1, 3]), [20.0; 11]);
    assert_eq!(round_of(&mut counted(uniform(), &whole, &[1, 2]), &[10.0, 40.0], &[7, 1]), [30.0; 11]);
    let alone: [&[&str]; 1] = [&["corner"]];
    let corner = round_of(&mut counted(by_examples(), &alone, &[3]), &[20.0], &[2]);
    assert_eq!(corner, [20., 20., 2., 20., 20., 5., 6., 7., 8., 9., 10.]);
}

#[test]
fn what_a_client_does_not_make_does_not_count() {
    // The second's corner, without its second and third value: places 1 and 3 of the whole.
    let held: [&[&str]; 2] = [&[], &["corner"]];
    let some = round(&mut listed(uniform(), &held, &[], &[&[], &[1..2, 2..3]]), &[10.0, 20.0]);
    assert_eq!(some, [15., 10., 10., 10., 15., 10., 10., 10., 10., 10., 10.]);
    // Of whole models, by examples, and what is behind the end means nothing.
    let whole: [&[&str]; 2] = [&[], &[]];
    let uncounted: [&[Range<usize>]; 2] = [&[0..1, 8..9], &[8..9, 10..20]];
    let found = round_of(&mut listed(by_examples(), &whole, &[1, 3], &uncounted), &[8.0, 24.0], &[3, 1]);
    assert_eq!(found, [24., 16., 16., 16., 16., 16., 16., 16., 8., 16., 8.], "nobody makes the ninth: it stays");
}

#[test]
fn a_number_that_does_not_count_has_to_be_one_all_the_same() {
    let uncounted: [&[Range<usize>]; 1] = [&[0..1, 3..4]];
    let mut coordinator = listed(uniform(), &[&[]], &[], &uncounted);
    let sent = tasks(&mut coordinator, 1);
    let mut values = vec![1.0; 11];
    values[0] = f32::NAN;
    let params = vector(&values, sent[0].global.schema(), &FlexDevice);
    let effects = coordinator.step(Input::Outcome(answer(0, params, 1)), Duration::ZERO).unwrap();
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Emit(Event::RoundAbandoned { .. }))));
}

#[test]
fn scalars_count_as_often_as_their_client() {
    struct Scalar;
    impl MeanStrategy<Flex> for Scalar {
        fn name(&self) -> &'static str {
            "scalar"
        }
        fn step(&mut self, round: &Round<'_, Flex>, mean: &RoundMean<Flex>) -> Result<Aggregate<Flex>, AggregateError> {
            let value = mean.side.scalars["value"] as f32;
            Ok(round.global.with_values(round.global.values().clone() * 0.0 + value).unwrap().into())
        }
    }
    let mut coordinator = counted(Strategy::Mean(Box::new(Scalar)), &[&[], &[]], &[1, 4]);
    for (client, task) in tasks(&mut coordinator, 2).into_iter().enumerate() {
        let mut answer = answer(client as u64, task.global, [1, 3][client]);
        if let Ok(Reply::Trained(update)) = &mut answer.reply {
            update.side.scalars.insert("value".into(), [10.0, 36.0][client]);
        }
        coordinator.step(Input::Outcome(answer), Duration::ZERO).unwrap();
    }
    assert_eq!(coordinator.global().to_host(), [34.0; 11]);
}

#[test]
fn a_client_that_would_count_more_than_a_sum_can_hold_is_left_out() {
    let mut coordinator = counted(by_examples(), &[&[], &[]], &[1, u64::MAX]);
    assert_eq!(round_of(&mut coordinator, &[10.0, 20.0], &[2, 3]), [10.0; 11]);
}

#[test]
fn a_task_names_and_brings_the_part() {
    let mut coordinator = coordinator(uniform(), &[&["tail", "corner"], &[]]);
    let sent = tasks(&mut coordinator, 2);
    assert_eq!(sent[0].slice, ["tail", "corner"]);
    assert_eq!(sent[0].global.to_host(), [0.0, 1.0, 3.0, 4.0, 9.0, 10.0]);
    assert!(sent[1].slice.is_empty());
    assert_eq!(sent[1].global.num_values(), 11);
    let mut effects = Vec::new();
    for client in [0, 1] {
        let params = sent[client].global.clone();
        effects.extend(coordinator.step(Input::Outcome(answer(client as u64, params, 2)), Duration::ZERO).unwrap());
    }
    let bytes = effects.iter().find_map(|effect| match effect {
        Effect::Emit(Event::RoundCommitted { bytes_down, bytes_up, .. }) => Some((*bytes_down, *bytes_up)),
        _ => None,
    });
    assert_eq!(bytes, Some((4 * 17, 4 * 17)));
}

#[test]
fn an_answer_of_another_part_does_not_count() {
    let mut coordinator = coordinator(uniform(), &[&["corner"], &["corner"]]);
    let sent = tasks(&mut coordinator, 2);
    let whole = coordinator.global().clone();
    let effects = coordinator.step(Input::Outcome(answer(0, whole, 1)), Duration::ZERO).unwrap();
    let failed = effects.iter().any(|effect| {
        matches!(effect, Effect::Emit(Event::ClientFailed { failure: ClientFailure::Malformed { reason }, .. })
            if reason.contains("`w` [2, 2]"))
    });
    assert!(failed);
    let mut beside = answer(1, sent[1].global.clone(), 1);
    if let Ok(Reply::Trained(update)) = &mut beside.reply {
        update.side.vectors.insert("control".into(), sent[1].global.clone());
    }
    let effects = coordinator.step(Input::Outcome(beside), Duration::ZERO).unwrap();
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Emit(Event::RoundAbandoned { .. }))));
}

#[test]
fn a_strategy_of_single_updates_sees_the_model_where_a_client_holds_nothing() {
    let strategy = Strategy::PerClient(Box::new(TheLast));
    let after = round(&mut coordinator(strategy, &[&[], &["corner"]]), &[10.0, 20.0]);
    assert_eq!(after, [20., 20., 2., 20., 20., 5., 6., 7., 8., 9., 10.]);
}

#[test]
fn a_part_that_there_is_not_is_an_error_before_anything_is_sent() {
    for (names, word) in [(vec!["edge"], "no part `edge`"), (vec!["corner", "matrix"], "share the tensor `w`")] {
        let mut coordinator = coordinator(uniform(), &[&names]);
        let clients = [ClientInfo { id: ClientId(0), num_examples: 1 }];
        let Err(error) = coordinator.step(Input::Begin(&clients), Duration::ZERO) else { panic!("{names:?}") };
        let error = with_causes(&error);
        assert!(error.contains(word), "{error}");
    }
}

/// An error and its causes.
fn with_causes(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", with_causes(cause)),
        None => error.to_string(),
    }
}

proptest! {
    #[test]
    fn the_mean_is_exact_and_in_any_order(
        answers in prop::collection::vec((0usize..4, 1u64..1000, 1u64..5, prop::array::uniform11(-1e6f32..1e6)), 1..7),
        turn in 0usize..7,
        half in prop::bool::ANY,
    ) {
        const HELD: [&[&str]; 4] = [&[], &["corner"], &["matrix"], &["tail", "corner"]];
        let held: Vec<_> = answers.iter().map(|(part, ..)| HELD[*part]).collect();
        let times: Vec<u64> = answers.iter().map(|(_, _, times, _)| *times).collect();
        let down = if half { Codec::F16 {} } else { Codec::F32 {} };
        let run = |turn: usize| {
            let compression = CompressionConfig { down, error_feedback: false, ..Default::default() };
            let mut coordinator = counted(by_examples(), &held, &times).with_compression(compression);
            let sent = tasks(&mut coordinator, answers.len() as u64);
            for step in 0..answers.len() {
                let client = (step + turn) % answers.len();
                let (_, weight, _, values) = &answers[client];
                let len = sent[client].global.num_values();
                let params = vector(&values[..len], sent[client].global.schema(), &FlexDevice);
                coordinator.step(Input::Outcome(answer(client as u64, params, *weight)), Duration::ZERO).unwrap();
            }
            coordinator.global().to_host()
        };
        let found = run(0);
        prop_assert_eq!(&run(turn), &found);

        let schemas = schemas();
        let expected = (0..11).map(|place| {
            let mut sum = ExactSum::new(1);
            for ((_, weight, times, values), names) in answers.iter().zip(&held) {
                let names: Vec<SliceName> = names.iter().map(|&name| name.into()).collect();
                let places: Vec<usize> = match schemas.slice(&names).unwrap() {
                    Some(slice) => slice.ranges().iter().cloned().flatten().collect(),
                    None => (0..11).collect(),
                };
                if let Some(at) = places.iter().position(|of| *of == place) {
                    sum.add(&[values[at]], weight * times).unwrap();
                }
            }
            sum.mean().map_or(place as f32, |mean| mean[0])
        });
        prop_assert_eq!(found, expected.collect::<Vec<f32>>());
    }
}
