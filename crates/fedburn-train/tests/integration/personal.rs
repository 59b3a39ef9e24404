//! Ditto, APFL, FedRep, pFedMe and FedBN on clients: hand-made steps, plain loops in `f64`, and state that survives.

use std::sync::Arc;

use crate::common::quadratic::{Quadratic, TrainPoint, on_run, task_at, vector};
use crate::common::reference::{assert_close, loss_and_gradient, wide};
use crate::common::{Normed, Softmax, bits, initial, normed_initial, softmax_initial, task, toy_data, training};
use burn::tensor::backend::Backend;
use burn_flex::{Flex, FlexDevice};
use burn_ndarray::{NdArray, NdArrayDevice};
use fedburn_core::{
    ClassId, Client, ClientId, Metrics, ModelFamily, ParamVector, StateData, StateDict, StateTensor, TrainError,
};
use fedburn_data::{ClientData, Examples, Inputs};
use fedburn_models::{NormKind, ZooConfig};
use fedburn_train::{
    Adaptation, Apfl, ApflConfig, Ditto, DittoConfig, FedBnConfig, FedRep, FedRepConfig, LocalData, LocalRule,
    LocalRun, LocalTraining, LocalTrainingConfig, PFedMe, PFedMeConfig, PersonalConfig, ProximalConfig, ResidentModel,
    RuleConfig, SharpnessAwareConfig, SupervisedClient, Trained,
};
use proptest::prelude::*;

fn steps(count: usize, lr: f64) -> LocalTraining {
    training(|c| (c.epochs, c.steps, c.batch_size, c.lr) = (None, Some(count), usize::MAX, lr))
}

fn bowl(centre: [f32; 3]) -> Quadratic {
    Quadratic { curvature: [1.0; 3], centre }
}

/// A state whose vector `own` holds these values.
fn own<B: Backend>(values: [f32; 3], device: &B::Device) -> StateDict {
    let mut state = StateDict::new();
    state.insert_params("own", &vector::<B>(values, device));
    state
}

fn deployed<B: Backend>(rule: &dyn LocalRule<B, TrainPoint<B>>, global: [f32; 3], device: &B::Device) -> Vec<f32> {
    rule.deployed(&vector(global, device)).unwrap().to_host()
}

/// Plain descent on a quadratic.
struct OnBowl(Quadratic);

impl<B: Backend> LocalRule<B, TrainPoint<B>> for OnBowl {
    fn train(&mut self, model: TrainPoint<B>, run: &LocalRun<'_, B>) -> Result<Trained<B, TrainPoint<B>>, TrainError> {
        run.descend(model, &mut self.0)
    }
}

#[test]
fn golden_ditto_step() {
    fn check<B: Backend>(device: &B::Device) {
        let task = task_at::<B>([1.0, 1.0, 0.0], device);
        let mut rule = Ditto::new(Box::new(OnBowl(bowl([0.0; 3]))), DittoConfig { lambda: 0.5 });
        LocalRule::<B, TrainPoint<B>>::restore(&mut rule, own::<B>([2.0, 0.0, 0.0], device)).unwrap();
        let sent = on_run(&task, &steps(1, 0.1), |model, run| {
            rule.train_with(model, run, bowl([0.0; 3])).unwrap().model.host()
        });
        assert_close(&sent, &[0.9, 0.9, 0.0], 1e-6);
        assert_close(&deployed(&rule, [9.0; 3], device), &[1.75, 0.05, 0.0], 1e-6);
    }
    check::<Flex>(&FlexDevice);
    check::<NdArray>(&NdArrayDevice::Cpu);
}

#[test]
fn golden_apfl_step() {
    fn check<B: Backend>(device: &B::Device) {
        let task = task_at::<B>([1.0, 1.0, 0.0], device);
        let config = ApflConfig { alpha: 0.25, adapt: Adaptation::Round };
        let mut rule = Apfl::<B>::new(config);
        let mut state = own::<B>([2.0, 0.0, 0.0], device);
        state.insert_f64("alpha", 0.25);
        LocalRule::<B, TrainPoint<B>>::restore(&mut rule, state).unwrap();
        assert_close(&deployed(&rule, [1.0, 1.0, 0.0], device), &[1.25, 0.75, 0.0], 1e-6);
        let sent = on_run(&task, &steps(1, 0.1), |model, run| {
            rule.train_with(model, run, bowl([0.0; 3])).unwrap().model.host()
        });
        assert_close(&sent, &[0.9, 0.9, 0.0], 1e-6);
        assert!((rule.alpha() - 0.2).abs() < 1e-7, "{}", rule.alpha());
        let schema = task.global.schema();
        let mut state = LocalRule::<B, TrainPoint<B>>::state(&rule);
        let kept = state.take_params::<B>("own", schema, device).unwrap().to_host();
        assert_close(&kept, &[1.968_75, -0.018_75, 0.0], 1e-6);
    }
    check::<Flex>(&FlexDevice);
    check::<NdArray>(&NdArrayDevice::Cpu);
}

#[test]
fn golden_pfedme_steps() {
    fn check<B: Backend>(device: &B::Device) {
        let task = task_at::<B>([1.0, 1.0, 0.0], device);
        // 100 inner steps reach the limit 15 / 16.
        for (inner_steps, personal) in [(1, 0.91), (2, 0.9496), (100, 0.9375)] {
            let mut rule = PFedMe::<B>::new(PFedMeConfig { inner_steps, ..Default::default() });
            let sent = on_run(&task, &steps(1, 0.005), |model, run| {
                rule.train_with(model, run, bowl([0.0; 3])).unwrap().model.host()
            });
            assert_close(&deployed(&rule, [9.0; 3], device), &[personal, personal, 0.0], 1e-6);
            let moved = 1.0 - 0.005 * 15.0 * (1.0 - personal);
            assert_close(&sent, &[moved, moved, 0.0], 1e-6);
        }
    }
    check::<Flex>(&FlexDevice);
    check::<NdArray>(&NdArrayDevice::Cpu);
}

/// Bodies A 1 (one example) and B 3 (three examples) average to 2.5; heads stay with the clients.
#[test]
fn golden_fedrep_round() {
    fn check<B: Backend>(device: &B::Device) {
        let task = task_at::<B>([0.0, 0.0, 5.0], device);
        let run = |centre: [f32; 3]| {
            let mut rule = FedRep::new(FedRepConfig { head: vec!["bias".into()], body: 1 });
            let sent = on_run(&task, &steps(2, 1.0), |model, run| {
                rule.train_with(model, run, bowl(centre)).unwrap().model.host()
            });
            (sent, deployed::<B>(&rule, [2.5, 2.5, 5.0], device))
        };
        let ((a, uses_a), (b, uses_b)) = (run([1.0, 1.0, 10.0]), run([3.0, 3.0, 20.0]));
        assert_eq!((a.clone(), b.clone()), (vec![1.0, 1.0, 5.0], vec![3.0, 3.0, 5.0]), "the head as it was received");
        let mean: Vec<f32> = a.iter().zip(&b).map(|(a, b)| 0.25 * a + 0.75 * b).collect();
        assert_eq!(mean, [2.5, 2.5, 5.0]);
        assert_eq!((uses_a, uses_b), (vec![2.5, 2.5, 10.0], vec![2.5, 2.5, 20.0]));
    }
    check::<Flex>(&FlexDevice);
    check::<NdArray>(&NdArrayDevice::Cpu);
}

fn client<B: Backend, F: ModelFamily<B>>(
    family: F,
    data: &ClientData,
    settings: LocalTraining,
    device: B::Device,
) -> SupervisedClient<B, F> {
    let data = LocalData::from(data.clone());
    SupervisedClient::new(ClientId(3), data, Arc::new(settings), ResidentModel::new(family, device))
}

fn personal(kind: PersonalConfig) -> LocalTraining {
    training(|c| (c.personal, c.epochs) = (Some(kind), Some(3)))
}

fn is_norm(path: &str) -> bool {
    path.starts_with("norm.")
}

/// Values of the tensors whose path `of` accepts.
fn part(params: &ParamVector<Flex>, of: impl Fn(&str) -> bool) -> Vec<f32> {
    let values = params.to_host();
    params.schema().entries().iter().filter(|e| of(&e.path)).flat_map(|e| values[e.range()].to_vec()).collect()
}

/// Shared weights A 1 (one example) and B 3 (three examples) average to 2.5; scales 0.5 and 2.0 stay with the clients.
#[test]
fn golden_fedbn_round() {
    let at = |shared: f32, scale: f32| {
        let like = normed_initial(1);
        let values = like
            .schema()
            .entries()
            .iter()
            .flat_map(|e| std::iter::repeat_n(if is_norm(&e.path) { scale } else { shared }, e.len()));
        ParamVector::<Flex>::from_host(values.collect(), like.schema().clone(), &FlexDevice).unwrap()
    };
    // The rate is too small to move a weight; running statistics of the received layers are what could be sent.
    let mut used = Vec::new();
    for (shared, scale) in [(1.0, 0.5), (3.0, 2.0)] {
        let start = at(shared, scale);
        let mut state = StateDict::new();
        let norms = start.schema().entries().iter().filter(|e| is_norm(&e.path));
        for entry in norms {
            let data = StateData::F32(vec![scale; entry.len()]);
            state.insert(format!("layers.{}", entry.path), StateTensor { shape: entry.shape.clone(), data });
        }
        let tiny = training(|c| (c.personal, c.lr) = (Some(PersonalConfig::FedBn(FedBnConfig::default())), 1e-30));
        let mut client = client(Normed, &toy_data(8, 0), tiny, FlexDevice);
        client.restore(state).unwrap();
        let sent = client.train(&task(&at(shared, 7.0), 1)).unwrap().params;
        assert_eq!(bits(&sent), bits(&at(shared, 7.0)), "layers as they were received, statistics too");
        let gamma = client.state().take("layers.norm.gamma").unwrap();
        assert_eq!(gamma.data, StateData::F32(vec![scale; 8]), "the client's own stay");
        used.push(sent);
    }
    let mean = used[0].values().clone() * 0.25 + used[1].values().clone() * 0.75;
    let mean = used[0].with_values(mean).unwrap();
    assert!(part(&mean, |p| !is_norm(p)).iter().all(|v| *v == 2.5));
}

#[test]
fn fedbn_keeps_layers_by_type_around_any_rule() {
    for rule in [RuleConfig::Sgd, RuleConfig::Proximal(ProximalConfig { mu: 0.1 })] {
        let settings = training(|c| (c.rule, c.personal) = (rule, Some(PersonalConfig::FedBn(FedBnConfig::default()))));
        let global = normed_initial(3);
        let mut client = client(Normed, &toy_data(11, 3), settings, FlexDevice);
        let sent = client.train(&task(&global, 1)).unwrap().params;
        assert_eq!(part(&sent, is_norm), part(&global, is_norm), "gamma, beta and statistics as received");
        assert_ne!(part(&sent, |p| p == "first.weight"), part(&global, |p| p == "first.weight"));
        let kept: Vec<String> = client.state().iter().map(|(name, _)| name.to_owned()).collect();
        let expected = ["beta", "gamma", "running_mean", "running_var"].map(|f| format!("layers.norm.{f}"));
        assert_eq!(kept, expected);
        // The next run goes on with them.
        let first = client.state();
        client.train(&task(&global, 2)).unwrap();
        assert_ne!(client.state(), first);
    }
    let mut without =
        client(Softmax, &toy_data(5, 0), personal(PersonalConfig::FedBn(FedBnConfig::default())), FlexDevice);
    let error = without.train(&task(&softmax_initial(0), 1)).unwrap_err().to_string();
    assert!(error.contains("[\"BatchNorm\"], and the model has no such layer"), "{error}");
}

/// In the zoo's nets batch normalisation is the variant of an enum, and group normalisation is something else.
#[test]
fn fedbn_finds_the_layers_of_the_zoo() {
    let inputs = Inputs::F32((0..2 * 64).map(|i| (i % 7) as f32).collect());
    let data = Examples::new(inputs, [1, 8, 8], vec![ClassId(0), ClassId(1)], 2).unwrap();
    let data = ClientData::all(Arc::new(data));
    let train = |norm: NormKind| {
        let family = ZooConfig::ResNet { depth: 8, norm, groups: None }.build([1, 8, 8], 2).unwrap();
        let global = initial::<Flex, _>(&family, 0, &FlexDevice);
        let kind = PersonalConfig::FedBn(FedBnConfig::default());
        let settings = training(|c| (c.personal, c.epochs) = (Some(kind), Some(1)));
        client(family, &data, settings, FlexDevice).train(&task(&global, 1)).map(|sent| (global, sent.params))
    };
    let (global, sent) = train(NormKind::Batch).unwrap();
    let batch_norm = |p: &str| ["gamma", "beta", "running_mean", "running_var"].iter().any(|end| p.ends_with(end));
    assert!(part(&global, batch_norm).len() > 100);
    assert_eq!(part(&sent, batch_norm), part(&global, batch_norm));
    assert_ne!(part(&sent, |p| !batch_norm(p)), part(&global, |p| !batch_norm(p)));
    assert!(matches!(train(NormKind::Group), Err(TrainError::Unusable { .. })));
}

#[test]
fn ditto_does_not_change_what_is_sent() {
    let (global, data) = (normed_initial(4), toy_data(13, 4));
    for rule in [RuleConfig::Sgd, RuleConfig::Proximal(ProximalConfig { mu: 0.1 })] {
        let train = |kind: Option<PersonalConfig>| {
            let settings = training(|c| (c.rule, c.personal) = (rule.clone(), kind));
            client(Normed, &data, settings, FlexDevice).train(&task(&global, 1)).unwrap()
        };
        let (plain, ditto) = (train(None), train(Some(PersonalConfig::Ditto(DittoConfig::default()))));
        assert_eq!(bits(&plain.params), bits(&ditto.params));
        assert_eq!(plain.metrics, ditto.metrics);
    }
}

/// Without a pull, the personal model of round two goes on from that of round one, whatever the federation sends.
#[test]
fn ditto_without_a_pull_is_local_training() {
    let (first, data) = (normed_initial(4), toy_data(13, 4));
    let mut ditto = client(Normed, &data, personal(PersonalConfig::Ditto(DittoConfig { lambda: 0.0 })), FlexDevice);
    let plain = || client(Normed, &data, training(|c| c.epochs = Some(3)), FlexDevice);
    ditto.train(&task(&first, 1)).unwrap();
    ditto.train(&task(&normed_initial(9), 2)).unwrap();
    let alone = plain().train(&task(&first, 1)).unwrap().params;
    let alone = plain().train(&task(&alone, 2)).unwrap().params;
    let kept = ditto.state().take_params::<Flex>("own", alone.schema(), &FlexDevice).unwrap();
    assert_eq!(bits(&kept), bits(&alone));
}

#[test]
fn apfl_sends_what_plain_descent_sends() {
    let (global, data) = (normed_initial(4), toy_data(13, 4));
    let train = |personal| {
        let settings = training(|c| (c.personal, c.momentum) = (personal, 0.9));
        client(Normed, &data, settings, FlexDevice).train(&task(&global, 1)).unwrap()
    };
    let apfl = train(Some(PersonalConfig::Apfl(ApflConfig::default())));
    assert_eq!(bits(&train(None).params), bits(&apfl.params));
}

#[test]
fn fedrep_sends_a_trained_body_and_the_received_head() {
    let (global, data) = (normed_initial(4), toy_data(13, 4));
    let is_head = |p: &str| p.starts_with("head.");
    let mut fedrep = client(Normed, &data, personal(PersonalConfig::FedRep(FedRepConfig::default())), FlexDevice);
    let sent = fedrep.train(&task(&global, 1)).unwrap().params;
    assert_eq!(part(&sent, is_head), part(&global, is_head));
    for path in ["first.weight", "norm.gamma", "norm.running_mean"] {
        assert_ne!(part(&sent, |p| p == path), part(&global, |p| p == path), "{path}");
    }
    let kept: Vec<String> = fedrep.state().iter().map(|(name, _)| name.to_owned()).collect();
    assert_eq!(kept, ["head.bias", "head.weight"]);
    // Both phases leave the other part alone: with the body's phase alone, the head is as received.
    let named = FedRepConfig { head: vec!["first".into()], body: 1 };
    let mut other = client(Normed, &data, personal(PersonalConfig::FedRep(named)), FlexDevice);
    let sent = other.train(&task(&global, 1)).unwrap().params;
    assert_eq!(part(&sent, |p| p.starts_with("first.")), part(&global, |p| p.starts_with("first.")));
    let unknown = FedRepConfig { head: vec!["tail".into()], body: 1 };
    let mut broken = client(Normed, &data, personal(PersonalConfig::FedRep(unknown)), FlexDevice);
    assert!(
        matches!(broken.train(&task(&global, 1)), Err(TrainError::Unusable { reason, .. }) if reason.contains("`tail`"))
    );
}

fn kinds() -> Vec<PersonalConfig> {
    vec![
        PersonalConfig::Ditto(DittoConfig::default()),
        PersonalConfig::Apfl(ApflConfig::default()),
        PersonalConfig::FedRep(FedRepConfig::default()),
        PersonalConfig::PFedMe(PFedMeConfig { lambda: 5.0, ..Default::default() }),
        PersonalConfig::FedBn(FedBnConfig::default()),
    ]
}

#[test]
fn clients_measure_what_they_keep() {
    let (global, data) = (normed_initial(5), toy_data(30, 5));
    for kind in kinds() {
        let mut personal = client(Normed, &data, personal(kind.clone()), FlexDevice);
        let loss =
            |client: &mut SupervisedClient<Flex, Normed>| client.evaluate(&global).unwrap().get(Metrics::LOSS).unwrap();
        let plain = loss(&mut client(Normed, &data, training(|_| {}), FlexDevice));
        assert_eq!(loss(&mut personal), plain, "{kind:?}: before it has taken part");
        personal.train(&task(&global, 1)).unwrap();
        assert!(loss(&mut personal) < plain, "{kind:?}: its own model fits its own data better");
    }
}

#[test]
fn restoring_equals_not_stopping_and_failures_leave_no_trace() {
    let global = normed_initial(7);
    let sharp = Some(SharpnessAwareConfig::Sam { rho: 0.05 });
    for kind in kinds() {
        let new = || {
            let settings = training(|c| (c.personal, c.epochs, c.sharpness) = (Some(kind.clone()), Some(2), sharp));
            client(Normed, &toy_data(9, 7), settings, FlexDevice)
        };
        let mut lasting = new();
        assert!(lasting.state().is_empty(), "{kind:?}: a client that has not taken part keeps nothing");
        lasting.train(&task(&global, 1)).unwrap();
        let saved = StateDict::from_bytes(&lasting.state().to_bytes().unwrap()).unwrap();
        assert!(!saved.is_empty());
        let broken = global.with_values(global.values().clone() * f32::INFINITY).unwrap();
        assert!(lasting.train(&task(&broken, 2)).is_err());
        assert_eq!(lasting.state(), saved, "{kind:?}: a failed run");

        let mut restored = new();
        restored.restore(saved.clone()).unwrap();
        assert_eq!(restored.state(), saved);
        let measured = |client: &mut SupervisedClient<Flex, Normed>| client.evaluate(&global).unwrap();
        assert_eq!(measured(&mut lasting), measured(&mut restored), "{kind:?}");
        let sent = |client: &mut SupervisedClient<Flex, Normed>| bits(&client.train(&task(&global, 3)).unwrap().params);
        assert_eq!(sent(&mut lasting), sent(&mut restored), "{kind:?}");
        assert_eq!(lasting.state(), restored.state());

        let mut foreign = client(Softmax, &toy_data(9, 7), personal(kind.clone()), FlexDevice);
        if foreign.restore(saved).is_ok() {
            assert!(foreign.train(&task(&softmax_initial(7), 1)).is_err(), "{kind:?}");
            assert!(foreign.evaluate(&softmax_initial(7)).is_err(), "{kind:?}");
        }
    }
}

#[test]
fn tables_say_what_is_kept_and_meaningless_ones_are_refused() {
    let parse = |personal: &str| -> LocalTrainingConfig {
        toml::from_str(&format!("epochs = 2\nbatch_size = 8\nlr = 0.05\npersonal = {personal}")).unwrap()
    };
    let kinds = [
        ("{ kind = 'ditto', lambda = 0.5 }", PersonalConfig::Ditto(DittoConfig { lambda: 0.5 })),
        ("{ kind = 'apfl' }", PersonalConfig::Apfl(ApflConfig { alpha: 0.5, adapt: Adaptation::Round })),
        ("{ kind = 'fedrep' }", PersonalConfig::FedRep(FedRepConfig { head: vec![], body: 1 })),
        (
            "{ kind = 'pfedme' }",
            PersonalConfig::PFedMe(PFedMeConfig { lambda: 15.0, personal_lr: 0.09, inner_steps: 5 }),
        ),
        ("{ kind = 'fedbn' }", PersonalConfig::FedBn(FedBnConfig { layers: vec!["BatchNorm".into()] })),
        ("{ kind = 'mixing' }", PersonalConfig::Mixing(Default::default())),
    ];
    for (table, kind) in kinds {
        let config = parse(table);
        assert_eq!(config.personal, Some(kind), "{table}");
        assert_eq!(toml::from_str::<LocalTrainingConfig>(&toml::to_string(&config).unwrap()).unwrap(), config);
        config.build().unwrap();
    }
    let refused = [
        ("personal.lambda", "{ kind = 'ditto', lambda = -0.1 }"),
        ("personal.lambda", "{ kind = 'ditto', lambda = 20.0 }"),
        ("personal.alpha", "{ kind = 'apfl', alpha = 1.5 }"),
        ("personal.body", "{ kind = 'fedrep', body = 2 }"),
        ("personal.body", "{ kind = 'fedrep', body = 0 }"),
        ("personal.lambda", "{ kind = 'pfedme', lambda = 0.0 }"),
        ("personal.personal_lr", "{ kind = 'pfedme', personal_lr = 0.2 }"),
        ("personal.inner_steps", "{ kind = 'pfedme', inner_steps = 0 }"),
        ("personal.layers", "{ kind = 'fedbn', layers = [] }"),
    ];
    for (field, table) in refused {
        let message = parse(table).build().unwrap_err().to_string();
        assert!(message.starts_with(&format!("`{field}` is ")), "{table}: {message}");
    }
    for kind in ["apfl", "fedrep", "pfedme"] {
        let mut config = parse(&format!("{{ kind = '{kind}' }}"));
        config.rule = RuleConfig::Proximal(ProximalConfig { mu: 0.1 });
        assert!(config.build().unwrap_err().to_string().contains("sgd"), "{kind}");
    }
    let unknown = "epochs = 2\nbatch_size = 8\nlr = 0.05\npersonal = { kind = 'ditto', mu = 1.0 }";
    assert!(toml::from_str::<LocalTrainingConfig>(unknown).is_err());
}

fn axpy(x: &[f64], factor: f64, y: &[f64]) -> Vec<f64> {
    x.iter().zip(y).map(|(x, y)| x + factor * y).collect()
}

fn between(own: &[f64], global: &[f64], alpha: f64) -> Vec<f64> {
    own.iter().zip(global).map(|(v, w)| alpha * v + (1.0 - alpha) * w).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..Default::default() })]

    /// Two rounds of one client, the server's part played by given vectors, on both backends.
    #[test]
    fn rounds_follow_the_definition(
        kind in 0usize..4,
        strength in 0.0..2.0f64,
        every_step: bool,
        count in 2usize..5,
        seed in 0u64..100,
    ) {
        let (data, lr) = (toy_data(9, seed), 0.2);
        let alpha = (strength / 2.0).clamp(0.0, 1.0);
        let adapt = if every_step { Adaptation::Step } else { Adaptation::Round };
        let config = match kind {
            0 => PersonalConfig::Ditto(DittoConfig { lambda: strength }),
            1 => PersonalConfig::Apfl(ApflConfig { alpha, adapt }),
            2 => PersonalConfig::PFedMe(PFedMeConfig { lambda: strength + 0.1, personal_lr: 0.3, inner_steps: count }),
            _ => PersonalConfig::FedRep(FedRepConfig { head: vec!["linear.bias".into()], body: count - 1 }),
        };
        let settings = || training(|c| {
            (c.epochs, c.steps, c.batch_size, c.lr) = (None, Some(count), usize::MAX, lr);
            c.personal = Some(config.clone());
        });
        let gradient = |x: &[f64]| loss_and_gradient(x, &data).1;
        let mut on_flex = client(Softmax, &data, settings(), FlexDevice);
        let mut on_ndarray = client(Softmax, &data, settings(), NdArrayDevice::Cpu);
        let mut own: Option<Vec<f64>> = None;
        let mut weight = alpha;
        for round in 0..2 {
            let global = softmax_initial(seed + round);
            let start = wide(&global.to_host());
            let (mut w, mut v) = (start.clone(), own.clone().unwrap_or(start.clone()));
            let bias = start.len() - crate::common::CLASSES;
            if kind == 3 {
                w[bias..].copy_from_slice(&v[bias..]);
            }
            for step in 0..count {
                match kind {
                    0 => {
                        let pull = axpy(&v, -1.0, &start);
                        v = axpy(&axpy(&v, -lr, &gradient(&v)), -lr * strength, &pull);
                        w = axpy(&w, -lr, &gradient(&w));
                    }
                    1 => {
                        let at_mix = gradient(&between(&v, &w, weight));
                        let along: f64 = (0..v.len()).map(|i| (v[i] - w[i]) * at_mix[i]).sum();
                        let (old_v, old_weight) = (v.clone(), weight);
                        v = axpy(&old_v, -lr * old_weight, &at_mix);
                        w = axpy(&w, -lr, &gradient(&w));
                        if every_step || step == 0 {
                            weight = (old_weight - lr * along).clamp(0.0, 1.0);
                        }
                    }
                    2 => {
                        for _ in 0..count {
                            let pull = axpy(&v, -1.0, &w);
                            v = axpy(&axpy(&v, -0.3, &gradient(&v)), -0.3 * (strength + 0.1), &pull);
                        }
                        let apart = axpy(&w, -1.0, &v);
                        w = axpy(&w, -lr * (strength + 0.1), &apart);
                    }
                    _ => {
                        let g = gradient(&w);
                        let moved = if step == 0 { bias..w.len() } else { 0..bias };
                        moved.for_each(|i| w[i] -= lr * g[i]);
                        v = w.clone();
                    }
                }
            }
            let used = match kind {
                1 => between(&v, &start, weight),
                3 => [&start[..bias], &v[bias..]].concat(),
                _ => v.clone(),
            };
            if kind == 3 {
                w[bias..].copy_from_slice(&start[bias..]);
            }
            own = Some(v);

            let there = ParamVector::<NdArray>::from_host(
                global.to_host(),
                initial::<NdArray, _>(&Softmax, seed, &NdArrayDevice::Cpu).schema().clone(),
                &NdArrayDevice::Cpu,
            ).unwrap();
            assert_close(&on_flex.train(&task(&global, round)).unwrap().params.to_host(), &w, 3e-5);
            assert_close(&on_ndarray.train(&task(&there, round)).unwrap().params.to_host(), &w, 3e-5);
            let (expected, _) = loss_and_gradient(&used, &data);
            for found in [on_flex.evaluate(&global).unwrap(), on_ndarray.evaluate(&there).unwrap()] {
                prop_assert!((found.get(Metrics::LOSS).unwrap() - expected).abs() < 1e-4);
            }
        }
    }
}
