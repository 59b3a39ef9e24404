//! The coordinator: any order of arrival, any failures, any quorum give the same bits, or the round is abandoned.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use burn_flex::{Flex, FlexDevice};
use fedburn_core::{
    Aggregate, AggregateError, ClientFailure, ClientId, ClientInfo, ClientReport, ClientSampler, Codec,
    CompressionConfig, Event, LocalUpdate, MeanStrategy, Metrics, Outcome, ParamVector, PerClientStrategy, Reply,
    Reports, Request, Round, RoundIndex, RoundMean, Seed, SideInfo, Strategy, UpdateSet, Weighting,
};
use fedburn_runtime::{Coordinator, Effect, Input};
use fedburn_testkit::{schema, vector};
use proptest::prelude::{Just, prop, prop_assert, prop_assert_eq, prop_oneof, proptest};
use proptest::strategy::Strategy as _;

/// Answers with the mean and counts its calls through the global vector's drift.
struct TheMean;

impl MeanStrategy<Flex> for TheMean {
    fn name(&self) -> &'static str {
        "the_mean"
    }
    fn step(&mut self, _: &Round<'_, Flex>, mean: &RoundMean<Flex>) -> Result<Aggregate<Flex>, AggregateError> {
        Ok(mean.params.clone().into())
    }
}

/// The first update in cohort order: sensitive to order on purpose.
struct TheFirst;

impl PerClientStrategy<Flex> for TheFirst {
    fn name(&self) -> &'static str {
        "the_first"
    }
    fn aggregate(
        &mut self,
        round: &Round<'_, Flex>,
        updates: &UpdateSet<Flex>,
    ) -> Result<Aggregate<Flex>, AggregateError> {
        assert!(updates.iter().map(|u| u.client).eq(round.cohort.iter().copied()), "updates come in cohort order");
        let first = updates.iter().next().unwrap();
        Ok(first.local.params.clone().into())
    }
}

struct Everybody;

impl ClientSampler for Everybody {
    fn sample(&self, _: RoundIndex, available: &[ClientInfo], _: Seed) -> Vec<ClientId> {
        available.iter().map(|c| c.id).collect()
    }
}

fn mean() -> Strategy<Flex> {
    Strategy::Mean(Box::new(TheMean))
}

fn first() -> Strategy<Flex> {
    Strategy::PerClient(Box::new(TheFirst))
}

fn coordinator(strategy: Strategy<Flex>, min_updates: usize) -> Coordinator<Flex> {
    let global = vector(&[0.0; 3], &schema(&[3]), &FlexDevice);
    Coordinator::new(strategy, Box::new(Everybody), global, Seed::new(1), min_updates)
}

fn clients(n: u64) -> Vec<ClientInfo> {
    (0..n).map(|k| ClientInfo { id: ClientId(k), num_examples: 1 + k }).collect()
}

fn local(values: [f32; 3], num_examples: u64) -> LocalUpdate<Flex> {
    let params = vector(&values, &schema(&[3]), &FlexDevice);
    LocalUpdate {
        params,
        num_examples,
        side: SideInfo::default(),
        report: ClientReport::default(),
        metrics: Metrics::new(),
    }
}

fn trained(client: u64, update: LocalUpdate<Flex>) -> Outcome<Flex> {
    Outcome { client: ClientId(client), reply: Ok(Reply::Trained(update)) }
}

fn bits(params: &ParamVector<Flex>) -> Vec<u32> {
    params.to_host().into_iter().map(f32::to_bits).collect()
}

fn step(coordinator: &mut Coordinator<Flex>, input: Input<'_, Flex>) -> Vec<Effect<Flex>> {
    coordinator.step(input, Duration::ZERO).unwrap()
}

fn events(effects: &[Effect<Flex>]) -> Vec<&Event> {
    effects.iter().filter_map(|e| if let Effect::Emit(event) = e { Some(event) } else { None }).collect()
}

/// What one client does in a round.
#[derive(Clone, Debug)]
enum Act {
    Answer([f32; 3], u64),
    Fail,
    Silent,
    NotFinite,
    WrongModel,
}

fn act() -> impl proptest::strategy::Strategy<Value = Act> {
    prop_oneof![
        5 => (prop::array::uniform3(-1e6f32..1e6), 1u64..10_000).prop_map(|(v, n)| Act::Answer(v, n)),
        1 => Just(Act::Fail),
        1 => Just(Act::Silent),
        1 => Just(Act::NotFinite),
        1 => Just(Act::WrongModel),
    ]
}

fn outcome(client: u64, act: &Act) -> Option<Outcome<Flex>> {
    Some(match act {
        Act::Answer(values, n) => trained(client, local(*values, *n)),
        Act::Fail => Outcome { client: ClientId(client), reply: Err(ClientFailure::Disconnected) },
        Act::Silent => return None,
        Act::NotFinite => trained(client, local([0.0, f32::NAN, 0.0], 3)),
        Act::WrongModel => {
            let params = vector(&[1.0, 2.0], &schema(&[2]), &FlexDevice);
            trained(client, LocalUpdate { params, ..local([0.0; 3], 1) })
        }
    })
}

/// One round in which the clients act in the given order; the global vector's bits and who was included.
fn round(strategy: Strategy<Flex>, quorum: usize, acts: &[Act], order: &[usize]) -> (Vec<u32>, Vec<ClientId>, usize) {
    let mut coordinator = coordinator(strategy, quorum);
    let mut effects = step(&mut coordinator, Input::Begin(&clients(acts.len() as u64)));
    for &k in order {
        if let Some(outcome) = outcome(k as u64, &acts[k]) {
            effects.extend(step(&mut coordinator, Input::Outcome(outcome.clone())));
            // A repeated answer changes nothing.
            assert!(
                coordinator.finished() == RoundIndex(1) || step(&mut coordinator, Input::Outcome(outcome)).is_empty()
            );
        }
    }
    effects.extend(step(&mut coordinator, Input::Deadline));
    assert_eq!(coordinator.finished(), RoundIndex(1), "the round is over");
    let closed: Vec<_> = effects
        .iter()
        .filter_map(|e| if let Effect::Close { included, .. } = e { Some(included.clone()) } else { None })
        .collect();
    assert_eq!(closed.len(), 1, "a round closes once");
    let failures = events(&effects).iter().filter(|e| matches!(e, Event::ClientFailed { .. })).count();
    (bits(coordinator.global()), closed[0].clone(), failures)
}

proptest! {
    #[test]
    fn order_of_arrival_does_not_matter(
        (acts, order) in prop::collection::vec(act(), 1..9).prop_flat_map(|acts| {
            let order: Vec<usize> = (0..acts.len()).collect();
            (Just(acts), Just(order).prop_shuffle())
        }),
        quorum in 1usize..5,
    ) {
        let straight: Vec<usize> = (0..acts.len()).collect();
        for strategy in [mean, first] {
            let a = round(strategy(), quorum, &acts, &straight);
            let b = round(strategy(), quorum, &acts, &order);
            prop_assert_eq!(&a, &b);
            let usable: Vec<_> = (0..acts.len()).filter(|&k| matches!(acts[k], Act::Answer(..))).map(|k| ClientId(k as u64)).collect();
            prop_assert_eq!(a.2, acts.len() - usable.len(), "everyone else failed, each once");
            if usable.len() < quorum {
                prop_assert_eq!(a.0, vec![0; 3], "an abandoned round leaves the global vector alone");
                prop_assert!(a.1.is_empty());
            } else {
                prop_assert_eq!(a.1, usable);
            }
        }
    }

    #[test]
    fn no_sequence_of_inputs_panics_or_breaks_the_round_count(inputs in prop::collection::vec((0u8..4, 0u64..5, act()), 0..60)) {
        let mut coordinator = coordinator(mean(), 2);
        let known = clients(3);
        for (kind, client, act) in inputs {
            let before = coordinator.finished();
            let input = match kind {
                0 => Input::Begin(&known),
                1 => Input::Deadline,
                _ => match outcome(client, &act) {
                    Some(outcome) => Input::Outcome(outcome),
                    None => Input::Begin(&[]),
                },
            };
            step(&mut coordinator, input);
            prop_assert!(coordinator.finished().0 - before.0 <= 1);
            prop_assert!(coordinator.global().is_finite());
        }
    }
}

#[test]
fn an_update_is_refused_with_a_reason_before_any_state_is_touched() {
    let cases: [(LocalUpdate<Flex>, &str); 3] = [
        (local([0.0, f32::INFINITY, 0.0], 1), "`t0` holds a NaN or an infinity"),
        (LocalUpdate { params: vector(&[1.0], &schema(&[1]), &FlexDevice), ..local([0.0; 3], 1) }, "schemas differ"),
        (
            LocalUpdate {
                side: SideInfo { scalars: [("c".into(), f64::NAN)].into(), ..SideInfo::default() },
                ..local([0.0; 3], 1)
            },
            "side scalar `c` is NaN",
        ),
    ];
    for (update, reason) in cases {
        let mut coordinator = coordinator(mean(), 1);
        step(&mut coordinator, Input::Begin(&clients(2)));
        let effects = step(&mut coordinator, Input::Outcome(trained(0, update)));
        let Event::ClientFailed { failure: ClientFailure::Malformed { reason: found }, .. } = events(&effects)[0]
        else {
            panic!("not refused")
        };
        assert!(found.contains(reason), "{found}");
        step(&mut coordinator, Input::Outcome(trained(1, local([1.0, 2.0, 3.0], 5))));
        assert_eq!(coordinator.global().to_host(), [1.0, 2.0, 3.0], "only the good update counts");
    }
}

#[test]
fn no_examples_is_no_data_and_an_evaluation_is_no_update() {
    let mut coordinator = coordinator(mean(), 1);
    step(&mut coordinator, Input::Begin(&clients(2)));
    let effects = step(&mut coordinator, Input::Outcome(trained(0, local([1.0; 3], 0))));
    assert!(matches!(events(&effects)[0], Event::ClientFailed { failure: ClientFailure::NoData, .. }));
    let effects = step(
        &mut coordinator,
        Input::Outcome(Outcome { client: ClientId(1), reply: Ok(Reply::Evaluated(Metrics::new())) }),
    );
    assert!(matches!(events(&effects)[0], Event::ClientFailed { failure: ClientFailure::Malformed { .. }, .. }));
    assert!(matches!(events(&effects)[1], Event::RoundAbandoned { .. }));
}

#[test]
fn nobody_available_is_an_abandoned_round() {
    let mut coordinator = coordinator(mean(), 1);
    let effects = step(&mut coordinator, Input::Begin(&[]));
    assert!(events(&effects).iter().any(|e| matches!(e, Event::RoundAbandoned { .. })));
    assert_eq!(coordinator.finished(), RoundIndex(1));
}

#[test]
fn tasks_carry_the_clients_own_seed_and_the_bytes_are_counted() {
    let mut coordinator = coordinator(mean(), 1);
    let effects = step(&mut coordinator, Input::Begin(&clients(3)));
    let seeds: Vec<Seed> = effects
        .iter()
        .filter_map(|e| if let Effect::Send(_, Request::Train(task)) = e { Some(task.seed) } else { None })
        .collect();
    assert!(seeds.len() == 3 && seeds[0] != seeds[1] && seeds[1] != seeds[2]);
    for k in 0..3 {
        let effects = step(&mut coordinator, Input::Outcome(trained(k, local([1.0; 3], 1))));
        if let Some(Event::RoundCommitted { bytes_down, bytes_up, updates, .. }) = events(&effects).last() {
            assert_eq!((*bytes_down, *bytes_up, *updates), (36, 36, 3));
            return;
        }
    }
    panic!("the round was not committed");
}

/// Weighs uniformly and asks for side information.
struct SideMean;

impl MeanStrategy<Flex> for SideMean {
    fn name(&self) -> &'static str {
        "side_mean"
    }
    fn weighting(&self) -> Weighting {
        Weighting::Uniform
    }
    fn step(&mut self, _: &Round<'_, Flex>, mean: &RoundMean<Flex>) -> Result<Aggregate<Flex>, AggregateError> {
        assert_eq!((mean.num_examples, mean.num_updates), (4, 2));
        assert_eq!(mean.side.scalars["tau"], 2.0, "scalars have the mean's weighting");
        Ok(mean.side.vectors["control"].clone().into())
    }
}

fn with_side(values: [f32; 3], num_examples: u64, control: [f32; 3], tau: f64) -> LocalUpdate<Flex> {
    let vectors = [("control".into(), vector(&control, &schema(&[3]), &FlexDevice))].into();
    LocalUpdate { side: SideInfo { vectors, scalars: [("tau".into(), tau)].into() }, ..local(values, num_examples) }
}

#[test]
fn side_information_is_averaged_as_the_parameters_are() {
    let mut coordinator = coordinator(Strategy::Mean(Box::new(SideMean)), 1);
    step(&mut coordinator, Input::Begin(&clients(2)));
    step(&mut coordinator, Input::Outcome(trained(0, with_side([1.0; 3], 1, [1.0, 2.0, 3.0], 1.0))));
    step(&mut coordinator, Input::Outcome(trained(1, with_side([3.0; 3], 3, [3.0, 4.0, 5.0], 3.0))));
    assert_eq!(coordinator.global().to_host(), [2.0, 3.0, 4.0]);
}

#[test]
fn side_information_of_some_clients_only_ends_the_run_with_its_name() {
    let mut coordinator = coordinator(Strategy::Mean(Box::new(SideMean)), 1);
    step(&mut coordinator, Input::Begin(&clients(2)));
    step(&mut coordinator, Input::Outcome(trained(0, with_side([1.0; 3], 1, [1.0; 3], 1.0))));
    let error =
        coordinator.step(Input::Outcome(trained(1, local([1.0; 3], 3))), Duration::ZERO).err().unwrap().to_string();
    assert!(error.contains("side_mean") && error.contains("`control`"), "{error}");
    assert_eq!(coordinator.global().to_host(), [0.0; 3], "the global vector is the one before the round");
}

/// Sees every update and asks for FedNova's numbers, and for class counts if told so.
struct Asking(bool);

impl PerClientStrategy<Flex> for Asking {
    fn name(&self) -> &'static str {
        "asking"
    }
    fn reports(&self) -> Reports {
        Reports { accumulation: true, steps: true, class_counts: self.0 }
    }
    fn aggregate(&mut self, _: &Round<'_, Flex>, set: &UpdateSet<Flex>) -> Result<Aggregate<Flex>, AggregateError> {
        let [report] = set.iter().map(|u| u.local.report.clone()).collect::<Vec<_>>().try_into().unwrap();
        assert_eq!(report, ClientReport { accumulation: Some(2.5), steps: Some(3), class_counts: None });
        Ok(set.iter().next().unwrap().local.params.clone().into())
    }
}

#[test]
fn a_client_that_leaves_out_what_was_asked_fails_and_what_was_not_asked_is_dropped() {
    let mut coordinator = coordinator(Strategy::PerClient(Box::new(Asking(false))), 1);
    step(&mut coordinator, Input::Begin(&clients(4)));
    let full = ClientReport { accumulation: Some(2.5), steps: Some(3), class_counts: Some(vec![1]) };
    for (client, report, reason) in [
        (0, ClientReport { accumulation: None, ..full.clone() }, "did not report its accumulation"),
        (1, ClientReport { steps: None, ..full.clone() }, "did not report its number of steps"),
        (2, ClientReport { accumulation: Some(f64::NAN), ..full.clone() }, "the accumulation NaN"),
    ] {
        let effects =
            step(&mut coordinator, Input::Outcome(trained(client, LocalUpdate { report, ..local([1.0; 3], 1) })));
        let events = events(&effects);
        let [Event::ClientFailed { failure: ClientFailure::Malformed { reason: found }, .. }] = events.as_slice()
        else {
            panic!("{events:?}");
        };
        assert!(found.contains(reason), "{found}");
    }
    step(&mut coordinator, Input::Outcome(trained(3, LocalUpdate { report: full, ..local([2.0; 3], 1) })));
    assert_eq!(coordinator.global().to_host(), [2.0; 3]);
}

/// Begins the first round of two clients from `start` and lets both answer with the model that they were sent and `step`
/// on top: what they were sent, the next global vector, and the bytes down and up.
fn compressed_round(start: [f32; 3], compression: CompressionConfig, step_by: f32) -> (Vec<f32>, Vec<f32>, u64, u64) {
    let global = vector(&start, &schema(&[3]), &FlexDevice);
    let mut coordinator =
        Coordinator::new(mean(), Box::new(Everybody), global, Seed::new(1), 1).with_compression(compression);
    let begun = step(&mut coordinator, Input::Begin(&clients(2)));
    let sent = begun.iter().find_map(|effect| match effect {
        Effect::Send(_, Request::Train(task)) => {
            assert_eq!(task.compression, compression);
            Some(task.global.to_host())
        }
        _ => None,
    });
    let sent = sent.unwrap();
    let answer = [sent[0] + step_by, sent[1] + step_by, sent[2] + step_by];
    step(&mut coordinator, Input::Outcome(trained(0, local(answer, 1))));
    let closed = step(&mut coordinator, Input::Outcome(trained(1, local(answer, 1))));
    let bytes = events(&closed).into_iter().find_map(|event| match event {
        Event::RoundCommitted { bytes_down, bytes_up, .. } => Some((*bytes_down, *bytes_up)),
        _ => None,
    });
    let (down, up) = bytes.unwrap();
    (sent, coordinator.global().to_host(), down, up)
}

#[test]
fn what_clients_were_not_sent_of_the_model_stays_with_the_server() {
    // Half precision has steps of 1/1024 from 1 on.
    let (start, nearest) = ([1.0003, -1.0003, 0.5], [1.0, -1.0, 0.5]);
    let down = |error_feedback| CompressionConfig { down: Codec::F16 {}, error_feedback, ..Default::default() };
    let (sent, next, ..) = compressed_round(start, down(true), 0.25);
    assert_eq!(sent, nearest);
    for (next, start) in next.iter().zip(start) {
        assert!((next - (start + 0.25)).abs() < 2e-7, "{next}: the server's own vector moves by the step");
    }
    let (sent, next, ..) = compressed_round(start, down(false), 0.25);
    assert_eq!((sent, next), (nearest.to_vec(), vec![1.25, -0.75, 0.75]));
    let (sent, next, ..) = compressed_round(start, CompressionConfig::default(), 0.25);
    assert_eq!((sent, next), (start.to_vec(), start.map(|x| x + 0.25).to_vec()));
}

#[test]
fn bytes_are_those_of_the_codecs() {
    for (up, down, bytes_up, bytes_down) in [
        (Codec::F32 {}, Codec::F32 {}, 12, 12),
        (Codec::Int8 {}, Codec::F16 {}, 5, 6),
        (Codec::TopK { ratio: 0.1 }, Codec::Int4 {}, 8, 4),
        (Codec::ScaledSign {}, Codec::Bf16 {}, 5, 6),
    ] {
        let compression = CompressionConfig { up, down, ..Default::default() };
        let (_, _, found_down, found_up) = compressed_round([0.5; 3], compression, 0.5);
        assert_eq!((found_down, found_up), (2 * bytes_down, 2 * bytes_up), "{compression:?}");
    }
}

#[test]
fn class_counts_are_of_as_many_examples_as_the_update() {
    let mut coordinator = coordinator(Strategy::PerClient(Box::new(Counted)), 1);
    step(&mut coordinator, Input::Begin(&clients(4)));
    let mut answer = |client, counts: &[u64]| {
        let report = ClientReport { class_counts: Some(counts.to_vec()), ..ClientReport::default() };
        let update = LocalUpdate { report, ..local([2.0; 3], 3) };
        let effects = step(&mut coordinator, Input::Outcome(trained(client, update)));
        matches!(events(&effects)[0], Event::ClientTrained { .. })
    };
    let accepted =
        [(0, &[3, 1][..]), (1, &[]), (2, &[u64::MAX, 4]), (3, &[1, 0, 2])].map(|(k, counts)| answer(k, counts));
    assert_eq!(accepted, [false, false, false, true]);
    assert_eq!(coordinator.global().to_host(), [2.0; 3]);
}

/// Asks for class counts, and sees those of one client.
struct Counted;

impl PerClientStrategy<Flex> for Counted {
    fn name(&self) -> &'static str {
        "counted"
    }
    fn reports(&self) -> Reports {
        Reports { class_counts: true, ..Reports::default() }
    }
    fn aggregate(&mut self, _: &Round<'_, Flex>, set: &UpdateSet<Flex>) -> Result<Aggregate<Flex>, AggregateError> {
        assert_eq!(set.len(), 1);
        Ok(set.iter().next().unwrap().local.params.clone().into())
    }
}

#[test]
fn a_client_may_keep_its_class_counts_to_itself() {
    let mut coordinator = coordinator(Strategy::PerClient(Box::new(Asking(true))), 1);
    step(&mut coordinator, Input::Begin(&clients(1)));
    let report = ClientReport { accumulation: Some(2.5), steps: Some(3), class_counts: None };
    step(&mut coordinator, Input::Outcome(trained(0, LocalUpdate { report, ..local([2.0; 3], 1) })));
    assert_eq!(coordinator.global().to_host(), [2.0; 3]);
}
