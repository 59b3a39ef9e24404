//! Attackers send what their equations say, whatever the order of answers, and honest clients are left alone.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use burn_flex::{Flex, FlexDevice};
use burn_ndarray::{NdArray, NdArrayDevice};
use fedburn_core::{
    ClientId, ClientInfo, ParamEntry, ParamKind, ParamSchema, ParamVector, Reply, Reports, Request, RoundIndex, Seed,
    ServerTransport, SideInfo, TrainTask,
};
use fedburn_runtime::{Attack, AttackConfig, AttackError, Attacked, AttackersConfig, MemoryStore};
use fedburn_testkit::{EchoPopulation, transport_suite};
use fedburn_transport::InProcess;

const GLOBAL: [f32; 5] = [1.0, -2.0, 0.5, 4.0, 9.0];
/// Clients with data among the first seven; the last value of [`GLOBAL`] is a running statistic.
const COHORT: [u64; 6] = [1, 2, 3, 4, 5, 6];
const ATTACKERS: [u64; 2] = [2, 5];

fn model() -> Arc<ParamSchema> {
    let entries = vec![
        ParamEntry::new("weight", vec![4], ParamKind::Weight),
        ParamEntry::new("running_mean", vec![1], ParamKind::Buffer),
    ];
    Arc::new(ParamSchema::new(entries).unwrap())
}

fn listed(clients: &[u64]) -> AttackersConfig {
    AttackersConfig::Clients(clients.iter().copied().map(ClientId).collect())
}

fn every_kind(attackers: &AttackersConfig) -> Vec<AttackConfig> {
    let attackers = || attackers.clone();
    vec![
        AttackConfig::None {},
        AttackConfig::SignFlip { attackers: attackers(), scale: 3.0 },
        AttackConfig::Gaussian { attackers: attackers(), std: 0.5 },
        AttackConfig::Alie { attackers: attackers(), z: Some(1.5) },
        AttackConfig::Alie { attackers: attackers(), z: None },
        AttackConfig::InnerProduct { attackers: attackers(), epsilon: 0.25 },
        AttackConfig::LabelFlip { attackers: attackers() },
    ]
}

fn attack(config: &AttackConfig) -> Attack {
    let clients: Vec<_> = (0..20).map(|k| ClientInfo { id: ClientId(k), num_examples: k % 7 }).collect();
    config.build(&clients, Seed::new(9)).unwrap()
}

/// What the clients of `cohort` send in a round, as the server sees it.
fn round(config: &AttackConfig, cohort: &[u64], workers: usize) -> BTreeMap<u64, Vec<f32>> {
    let transport = InProcess::<Flex>::new(Arc::new(EchoPopulation::new(20)), None, workers).unwrap();
    let mut transport = Attacked::new(transport, attack(config));
    let global = ParamVector::from_host(GLOBAL.to_vec(), model(), &FlexDevice).unwrap();
    let task = |client| TrainTask {
        round: RoundIndex(3),
        global: global.clone(),
        slice: Vec::new(),
        seed: Seed::new(5).client(client),
        side: SideInfo::default(),
        reports: Reports::default(),
        compression: Default::default(),
    };
    let requests = cohort.iter().map(|&k| (ClientId(k), Request::Train(task(ClientId(k))))).collect();
    let answers = transport.exchange(requests, Duration::from_secs(60)).map(|outcome| match outcome.reply {
        Ok(Reply::Trained(update)) => {
            assert_eq!(update.num_examples, outcome.client.0 % 7, "attackers keep their number of examples");
            (outcome.client.0, update.params.to_host())
        }
        other => panic!("client {}: {other:?}", outcome.client),
    });
    answers.collect()
}

fn honest() -> BTreeMap<u64, Vec<f32>> {
    round(&AttackConfig::None {}, &COHORT, 1)
}

/// Runs `config` and compares each attacker's weights with `expected(honest vectors, own vector, coordinate)`.
fn assert_equation(config: &AttackConfig, expected: impl Fn(&[&Vec<f32>], &[f32], usize) -> f64) {
    let (honest, sent) = (honest(), round(config, &COHORT, 2));
    let others: Vec<_> = honest.iter().filter(|(k, _)| !ATTACKERS.contains(k)).map(|(_, v)| v).collect();
    assert_eq!(sent.len(), COHORT.len());
    for (client, values) in &sent {
        let own = &honest[client];
        if !ATTACKERS.contains(client) {
            assert_eq!(values, own, "client {client} is honest");
            continue;
        }
        for (place, &found) in values.iter().enumerate().take(4) {
            let (found, expected) = (f64::from(found), expected(&others, own, place));
            assert!((found - expected).abs() < 1e-5, "{config:?}, client {client}: {found}, expected {expected}");
        }
        assert_eq!(values[4], own[4], "running statistics stay the attacker's own");
    }
}

fn mean(others: &[&Vec<f32>], place: usize) -> f64 {
    others.iter().map(|v| f64::from(v[place])).sum::<f64>() / others.len() as f64
}

fn deviation(others: &[&Vec<f32>], place: usize) -> f64 {
    let mean = mean(others, place);
    (others.iter().map(|v| (f64::from(v[place]) - mean).powi(2)).sum::<f64>() / others.len() as f64).sqrt()
}

#[test]
fn attackers_send_what_the_equations_say() {
    let x = |place: usize| f64::from(GLOBAL[place]);
    let attackers = || listed(&ATTACKERS);
    assert_equation(&AttackConfig::SignFlip { attackers: attackers(), scale: 3.0 }, |_, own, place| {
        x(place) - 3.0 * (f64::from(own[place]) - x(place))
    });
    assert_equation(&AttackConfig::Alie { attackers: attackers(), z: Some(1.5) }, |others, _, place| {
        mean(others, place) - 1.5 * deviation(others, place)
    });
    // Six vectors, two of attackers: s = 4 - 2 = 2, Phi^-1(2/4) = 0.
    assert_equation(&AttackConfig::Alie { attackers: attackers(), z: None }, |others, _, place| mean(others, place));
    assert_equation(&AttackConfig::InnerProduct { attackers: attackers(), epsilon: 0.25 }, |others, _, place| {
        x(place) - 0.25 * (mean(others, place) - x(place))
    });
    assert_equation(&AttackConfig::LabelFlip { attackers: attackers() }, |_, own, place| f64::from(own[place]));
}

#[test]
fn gaussian_noise_has_its_deviation_and_differs_between_attackers() {
    let config = AttackConfig::Gaussian { attackers: AttackersConfig::Share(1.0), std: 10.0 };
    let sent = round(&config, &COHORT, 2);
    let noise: Vec<f64> = sent.values().flat_map(|v| (0..4).map(|i| f64::from(v[i]) - f64::from(GLOBAL[i]))).collect();
    let square = noise.iter().map(|n| n * n).sum::<f64>() / noise.len() as f64;
    // 24 draws: the mean square has a relative standard error of 0.29.
    assert!((square / 100.0 - 1.0).abs() < 0.9, "{square}");
    assert_ne!(sent[&1][0], sent[&2][0]);
}

#[test]
fn the_number_of_workers_changes_no_bit() {
    for config in every_kind(&AttackersConfig::Number(4)) {
        let one = round(&config, &COHORT, 1);
        for workers in [2, 5] {
            for _ in 0..3 {
                assert_eq!(round(&config, &COHORT, workers), one, "{config:?}, {workers} workers");
            }
        }
    }
}

#[test]
fn colluding_attackers_without_honest_company_go_by_their_own_vectors() {
    let config = AttackConfig::InnerProduct { attackers: listed(&ATTACKERS), epsilon: 2.0 };
    let (honest, sent) = (honest(), round(&config, &ATTACKERS, 1));
    for place in 0..4 {
        let (x, mean) = (f64::from(GLOBAL[place]), f64::from(honest[&2][place] + honest[&5][place]) / 2.0);
        assert!((f64::from(sent[&2][place]) - (x - 2.0 * (mean - x))).abs() < 1e-5);
        assert_eq!(sent[&2][place], sent[&5][place], "they all send the same");
    }
}

#[test]
fn attacked_transports_keep_the_laws_of_transports() {
    // Attackers outside the suite's population and inside it: failures pass through, every request has one outcome.
    for config in every_kind(&AttackersConfig::Share(0.4)) {
        let flex = |population| InProcess::<Flex>::new(Arc::new(population), Some(Arc::new(MemoryStore::default())), 2);
        transport_suite(|p: EchoPopulation| Attacked::new(flex(p).unwrap(), attack(&config)), &FlexDevice);
    }
    let config = AttackConfig::Alie { attackers: AttackersConfig::Number(3), z: None };
    let ndarray = |population| {
        InProcess::<NdArray>::new(Arc::new(population), Some(Arc::new(MemoryStore::default())), 2).unwrap()
    };
    transport_suite(|p: EchoPopulation| Attacked::new(ndarray(p), attack(&config)), &NdArrayDevice::Cpu);
}

#[test]
fn attackers_are_drawn_from_the_seed_among_clients_with_data() {
    let clients: Vec<_> = (0..30).map(|k| ClientInfo { id: ClientId(k), num_examples: k % 3 }).collect();
    let draw = |attackers, seed| {
        let config = AttackConfig::LabelFlip { attackers };
        config.build(&clients, Seed::new(seed)).map(|attack| attack.attackers().clone())
    };
    let drawn = draw(AttackersConfig::Share(0.25), 1).unwrap();
    assert_eq!(drawn.len(), 5, "a quarter of the 20 clients with data");
    assert!(drawn.iter().all(|client| client.0 % 3 != 0));
    assert_eq!(drawn, draw(AttackersConfig::Number(5), 1).unwrap());
    assert_ne!(drawn, draw(AttackersConfig::Number(5), 2).unwrap());
    assert!(draw(AttackersConfig::Number(0), 1).unwrap().is_empty());
    assert_eq!(draw(AttackersConfig::Number(21), 1), Err(AttackError::TooMany { number: 21, clients: 20 }));
    assert!(matches!(draw(listed(&[1, 3]), 1), Err(AttackError::Unknown { client: ClientId(3), clients: 20 })));
    assert!(matches!(draw(AttackersConfig::Share(1.5), 1), Err(AttackError::Value { field: "attackers.share", .. })));
}

#[test]
fn tables_are_read_and_impossible_values_refused_by_name() {
    let parse = |text: &str| serde_json::from_str::<AttackConfig>(text);
    assert!(AttackConfig::default().is_none());
    let alie = parse(r#"{ "kind": "alie", "attackers": { "clients": [1, 2] } }"#).unwrap();
    assert_eq!(alie, AttackConfig::Alie { attackers: listed(&[1, 2]), z: None });
    for config in every_kind(&AttackersConfig::Share(0.5)) {
        assert_eq!(parse(&serde_json::to_string(&config).unwrap()).unwrap(), config);
    }
    for wrong in [r#"{ "kind": "none", "attackers": { "number": 1 } }"#, r#"{ "kind": "gaussian" }"#] {
        assert!(parse(wrong).is_err(), "{wrong}");
    }
    let attackers = || AttackersConfig::Number(1);
    let clients = [ClientInfo { id: ClientId(0), num_examples: 1 }];
    for (field, config) in [
        ("scale", AttackConfig::SignFlip { attackers: attackers(), scale: 0.0 }),
        ("std", AttackConfig::Gaussian { attackers: attackers(), std: f64::NAN }),
        ("z", AttackConfig::Alie { attackers: attackers(), z: Some(-0.1) }),
        ("epsilon", AttackConfig::InnerProduct { attackers: attackers(), epsilon: f64::INFINITY }),
    ] {
        let message = config.build(&clients, Seed::new(0)).unwrap_err().to_string();
        assert!(message.starts_with(&format!("`{field}` is ")) && message.contains("expected"), "{message}");
    }
}
