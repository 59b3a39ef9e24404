//! Optimal model averaging: golden vectors, laws, an independent reference, the plug-in table, clients that mix.

use std::sync::Arc;

use burn::tensor::backend::Backend;
use burn_flex::{Flex, FlexDevice};
use burn_ndarray::NdArray;
use fedburn_core::{
    Client, ClientId, ClientInfo, ClientReport, ClientUpdate, LocalUpdate, Mean, Metrics, MixingBlocks, MixingConfig,
    MixingEstimator, ParamEntry, ParamKind, ParamSchema, ParamVector, Reports, Resample, ResamplingClient, RoundIndex,
    Seed, SideInfo, StateDict, StateError, TrainError, TrainTask, VarianceConfig,
};
use fedburn_strategies::{BiasEstimate, Mixing, MixingClient, OptimalAveragingConfig, StrategyConfig};
use fedburn_testkit::reference::averaging::{mixed_block, source_weights_for_first};
use fedburn_testkit::{Convexity, combine, schema, strategy_laws, update, vector};
use proptest::prelude::*;
use rand_distr::{Distribution, Normal};

// The server: several sources.

/// `(variance reported, model)` of clients 0, 1, …, ten examples each.
fn reports<B: Backend>(sources: &[(f64, Vec<f32>)]) -> Vec<ClientUpdate<B>> {
    let (schema, device) = (schema(&[sources[0].1.len()]), Default::default());
    let report = |(k, (variance, x)): (usize, &(f64, Vec<f32>))| {
        let mut update = update::<B>(k as u64, 10, vector(x, &schema, &device));
        update.local.side.scalars.insert(MixingConfig::VARIANCE.into(), *variance);
        update
    };
    sources.iter().enumerate().map(report).collect()
}

fn weights_and_model<B: Backend>(config: &OptimalAveragingConfig, updates: &[ClientUpdate<B>]) -> (Vec<f64>, Vec<f32>) {
    let mut strategy = StrategyConfig::OptimalAveraging(config.clone()).build().unwrap();
    let next = combine(&mut strategy, RoundIndex(1), &updates[0].local.params, updates).unwrap();
    (next.mixing.map_or(Vec::new(), |m| m.weights[0].clone()), next.global.to_host())
}

fn for_first(biases: BiasEstimate) -> OptimalAveragingConfig {
    OptimalAveragingConfig { target: Some(0), biases, ..Default::default() }
}

/// Section A2.6: V = [0.1, 0.01, 0.02], delta = [0, 0.5, -0.2].
#[test]
fn three_sources() {
    fn check<B: Backend>() {
        let updates = reports::<B>(&[(0.1, vec![0.0]), (0.01, vec![0.5]), (0.02, vec![-0.2])]);
        let (weights, model) = weights_and_model(&for_first(BiasEstimate::Plain), &updates);
        let expected = [0.097_222_22, 0.277_777_78, 0.625];
        assert!(weights.iter().zip(expected).all(|(w, e)| (w - e).abs() < 1e-5), "{weights:?}");
        assert!((f64::from(model[0]) - (0.5 * expected[1] - 0.2 * expected[2])).abs() < 1e-5);
    }
    check::<Flex>();
    check::<NdArray>();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn weights_are_those_of_the_reference(
        (variances, models) in (1usize..6, 1usize..20).prop_flat_map(|(m, d)| (
            prop::collection::vec(0.01f64..2.0, m),
            prop::collection::vec(prop::collection::vec(-2f32..2.0, d), m),
        )),
    ) {
        let sources: Vec<_> = variances.iter().copied().zip(models.clone()).collect();
        let (weights, model) = weights_and_model(&for_first(BiasEstimate::Plain), &reports::<Flex>(&sources));
        let models: Vec<Vec<f64>> = models.iter().map(|x| x.iter().map(|v| f64::from(*v)).collect()).collect();
        let expected = source_weights_for_first(&models, &variances);
        for (w, e) in weights.iter().zip(&expected) {
            prop_assert!((w - e).abs() < 2e-4 * (1.0 + e.abs()), "{weights:?}, expected {expected:?}");
        }
        for (i, found) in model.iter().enumerate() {
            let mean: f64 = expected.iter().zip(&models).map(|(w, x)| w * x[i]).sum();
            prop_assert!((f64::from(*found) - mean).abs() < 2e-3);
        }
    }
}

#[test]
fn without_visible_bias_the_weights_are_those_of_the_variances() {
    let near = reports::<Flex>(&[(0.4, vec![0.1, 0.0, 0.1]), (0.1, vec![0.0, 0.1, 0.0]), (0.2, vec![0.0, 0.0, 0.1])]);
    for target in [None, Some(0)] {
        let config = OptimalAveragingConfig { target, ..for_first(BiasEstimate::Corrected) };
        let (weights, _) = weights_and_model(&config, &near);
        let expected = [1.0 / 7.0, 4.0 / 7.0, 2.0 / 7.0];
        assert!(weights.iter().zip(expected).all(|(w, e)| (w - e).abs() < 1e-6), "{target:?}: {weights:?}");
    }
}

#[test]
fn a_client_far_away_counts_for_nothing_and_negative_weights_go_on_request() {
    let far = reports::<Flex>(&[(0.1, vec![0.0; 4]), (0.1, vec![100.0; 4])]);
    let (weights, _) = weights_and_model(&for_first(BiasEstimate::Corrected), &far);
    assert!(weights[0] > 0.999, "{weights:?}");
    // Two biases on one side: a negative weight for the larger one cancels some of the smaller.
    let aside = reports::<Flex>(&[(1.0, vec![0.0]), (0.01, vec![1.0]), (0.01, vec![2.0])]);
    let (free, _) = weights_and_model(&for_first(BiasEstimate::Plain), &aside);
    let clip = OptimalAveragingConfig { clip: true, ..for_first(BiasEstimate::Plain) };
    let (clipped, _) = weights_and_model(&clip, &aside);
    assert!(free[2] < 0.0 && clipped[2] == 0.0, "{free:?}, {clipped:?}");
    assert!((clipped.iter().sum::<f64>() - 1.0).abs() < 1e-12);
}

#[test]
fn a_round_without_the_target_or_without_reports_is_told() {
    let updates = reports::<Flex>(&[(0.1, vec![0.0]), (0.1, vec![1.0])]);
    let absent = OptimalAveragingConfig { target: Some(7), ..Default::default() };
    assert_eq!(weights_and_model(&absent, &updates), (vec![], vec![0.0]), "the global vector stays");
    let silent = vec![update::<Flex>(0, 1, vector(&[1.0], &schema(&[1]), &FlexDevice))];
    let mut strategy = StrategyConfig::OptimalAveraging(Default::default()).build().unwrap();
    let error = combine(&mut strategy, RoundIndex(1), &silent[0].local.params, &silent).unwrap_err().to_string();
    assert!(error.contains("client 0 reported no usable `variance`; set `variance`"), "{error}");
}

#[test]
fn running_statistics_are_averaged_by_examples() {
    let entry = |path: &str, kind| ParamEntry::new(path, vec![1], kind);
    let entries = vec![entry("w", ParamKind::Weight), entry("running_var", ParamKind::Buffer)];
    let schema = Arc::new(ParamSchema::new(entries).unwrap());
    let updates = [(0, 1, [0.0, 1.0]), (1, 3, [100.0, 5.0])]
        .map(|(k, n, x)| update(k, n, vector::<Flex>(&x, &schema, &FlexDevice)));
    let config = OptimalAveragingConfig { target: Some(0), variance: Some(1.0), ..Default::default() };
    let (weights, model) = weights_and_model(&config, &updates);
    assert!(weights[0] > 0.99 && model[0] < 1.0);
    assert_eq!(model[1], 4.0);
}

#[test]
fn the_laws_hold() {
    for target in [None, Some(0)] {
        for biases in [BiasEstimate::Corrected, BiasEstimate::Plain] {
            let config = OptimalAveragingConfig { target, biases, variance: Some(30.0), clip: target.is_none() };
            let make = || StrategyConfig::OptimalAveraging(config.clone()).build().unwrap();
            strategy_laws::<Flex>(make, Convexity::Convex, &Default::default());
            let make = || StrategyConfig::OptimalAveraging(config.clone()).build().unwrap();
            strategy_laws::<NdArray>(make, Convexity::Convex, &Default::default());
        }
    }
}

// The client: plug-in weights.

fn mixing(change: impl FnOnce(&mut MixingConfig)) -> Mixing {
    let mut config = MixingConfig::default();
    change(&mut config);
    Mixing::new(config).unwrap()
}

proptest! {
    #[test]
    fn mixes_are_those_of_the_reference(
        block in prop::collection::vec((-3f32..3.0, -3f32..3.0, 0f32..2.0), 3..30),
        stein: bool,
    ) {
        let column = |of: fn(&(f32, f32, f32)) -> f32| block.iter().map(of).collect::<Vec<_>>();
        let (local, global, variance) = (column(|r| r.0), column(|r| r.1), column(|r| r.2));
        let estimator = if stein { MixingEstimator::Stein } else { MixingEstimator::Plain };
        let mixed = mixing(|c| c.estimator = estimator).mix(&schema(&[block.len()]), &local, &variance, &global);
        let wide = |v: &[f32]| v.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
        let (alpha, expected) = mixed_block(&wide(&local), &wide(&global), &wide(&variance), stein);
        prop_assert!((mixed.weights[0].1 - alpha).abs() < 1e-6 && (mixed.global_share - alpha).abs() < 1e-6);
        for (found, expected) in mixed.values.iter().zip(expected) {
            prop_assert!((f64::from(*found) - expected).abs() < 1e-5);
        }
    }
}

/// Section A2.4: risk of plug-in weights by block size for L ~ N(0, 0.1), G ~ N(0.5, 0.01), target 0.
#[test]
fn the_table_of_plug_in_risks() {
    let mut rng = Seed::new(24).rng();
    let (local, global) = (Normal::new(0.0, 0.1f64.sqrt()).unwrap(), Normal::new(0.5, 0.1).unwrap());
    let mut risk = |estimator: MixingEstimator, q: usize, samples: usize| {
        let mixing = mixing(|c| c.estimator = estimator);
        let mut total = 0.0;
        for _ in 0..samples {
            let pairs: Vec<(f64, f64)> = (0..q).map(|_| (local.sample(&mut rng), global.sample(&mut rng))).collect();
            let distance: f64 = pairs.iter().map(|(l, g)| (l - g) * (l - g)).sum();
            let alpha = mixing.weight(q, 0.1 * q as f64, distance);
            total += pairs.iter().map(|(l, g)| ((1.0 - alpha) * l + alpha * g).powi(2)).sum::<f64>() / q as f64;
        }
        total / samples as f64
    };
    let (plain, stein) = (MixingEstimator::Plain, MixingEstimator::Stein);
    let table = [
        (plain, 1, 200_000, 0.1250),
        (plain, 3, 60_000, 0.1009),
        (stein, 3, 60_000, 0.0935),
        (plain, 10, 20_000, 0.0812),
        (stein, 10, 20_000, 0.0800),
        (plain, 100, 2_000, 0.0731),
        (stein, 100, 2_000, 0.0731),
    ];
    for (estimator, q, samples, expected) in table {
        let found = risk(estimator, q, samples);
        assert!((found - expected).abs() < 0.002, "{estimator:?}, q = {q}: {found:.4}, expected {expected}");
    }
}

/// Its model is the mean of its rows, whose variance is known; `evaluate` tells the first value.
struct Means {
    rows: Vec<[f32; 3]>,
    runs: u64,
}

impl Means {
    fn mean(&self, task: &TrainTask<Flex>, rows: Vec<[f32; 3]>) -> Result<LocalUpdate<Flex>, TrainError> {
        let values = (0..3).map(|i| rows.iter().map(|r| r[i]).sum::<f32>() / rows.len() as f32).collect();
        let params = ParamVector::from_host(values, task.global.schema().clone(), &FlexDevice).unwrap();
        if !params.is_finite() {
            return Err(TrainError::NonFinite { client: ClientId(0), round: task.round, step: 0 });
        }
        let (num_examples, side, report) = (rows.len() as u64, SideInfo::default(), ClientReport::default());
        Ok(LocalUpdate { params, num_examples, side, report, metrics: Metrics::new() })
    }
}

impl Client<Flex> for Means {
    fn info(&self) -> ClientInfo {
        ClientInfo { id: ClientId(0), num_examples: self.rows.len() as u64 }
    }

    fn train(&mut self, task: &TrainTask<Flex>) -> Result<LocalUpdate<Flex>, TrainError> {
        self.runs += 1;
        self.mean(task, self.rows.clone())
    }

    fn evaluate(&mut self, global: &ParamVector<Flex>) -> Result<Metrics, TrainError> {
        Ok(Metrics::new().with(Metrics::LOSS, Mean::new(f64::from(global.to_host()[0]), 1.0)))
    }

    fn state(&self) -> StateDict {
        let mut state = StateDict::new();
        state.insert_u64("runs", self.runs);
        state
    }

    fn restore(&mut self, mut state: StateDict) -> Result<(), StateError> {
        self.runs = if state.is_empty() { 0 } else { state.take_u64("runs")? };
        state.expect_empty()
    }
}

impl ResamplingClient<Flex> for Means {
    fn train_on(&mut self, task: &TrainTask<Flex>, part: Resample) -> Result<LocalUpdate<Flex>, TrainError> {
        let numbered = self.rows.iter().copied().enumerate();
        let rows = match part {
            Resample::AllBut { part, of } => numbered.filter(|(i, _)| i % of != part).map(|(_, r)| r).collect(),
            Resample::Shard { part, of } => numbered.filter(|(i, _)| i % of == part).map(|(_, r)| r).collect(),
            Resample::Bootstrap { index } => {
                numbered.map(|(i, _)| self.rows[(i * (index + 1)) % self.rows.len()]).collect()
            }
        };
        self.mean(task, rows)
    }
}

const ROWS: [[f32; 3]; 6] =
    [[1.0, 0.0, 2.0], [3.0, 1.0, 2.0], [2.0, 5.0, 2.5], [0.0, 0.0, 2.5], [4.0, 2.0, 3.0], [2.0, 4.0, 3.0]];

fn task(global: [f32; 3]) -> TrainTask<Flex> {
    TrainTask {
        round: RoundIndex(1),
        global: vector(&global, &schema(&[3]), &FlexDevice),
        slice: Vec::new(),
        seed: Seed::new(1),
        side: SideInfo::default(),
        reports: Reports::default(),
        compression: Default::default(),
    }
}

fn client(rows: &[[f32; 3]], change: impl FnOnce(&mut MixingConfig)) -> MixingClient<Means> {
    MixingClient::new(Means { rows: rows.to_vec(), runs: 0 }, mixing(change))
}

/// The jackknife of a mean is its textbook variance, `s^2 / n`, and of disjoint shards the variance of their means over
/// their number.
#[test]
fn the_variance_of_a_mean_is_found() {
    let sample_variance = |values: Vec<f64>| {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (values.len() - 1) as f64
    };
    let column = |i: usize| ROWS.iter().map(|r| f64::from(r[i])).collect::<Vec<_>>();
    let means_of_three = |i: usize| column(i)[..3].iter().zip(&column(i)[3..]).map(|(a, b)| (a + b) / 2.0).collect();
    let jackknife: f64 = (0..3).map(|i| sample_variance(column(i)) / 6.0).sum::<f64>() / 3.0;
    let split: f64 = (0..3).map(|i| sample_variance(means_of_three(i)) / 3.0).sum::<f64>() / 3.0;
    for (variance, expected) in [
        (VarianceConfig::Jackknife { parts: 6 }, jackknife),
        (VarianceConfig::Jackknife { parts: 60 }, jackknife),
        (VarianceConfig::Split { parts: 3 }, split),
    ] {
        let update =
            client(&ROWS, |c| (c.variance, c.report_variance) = (variance, true)).train(&task([0.0; 3])).unwrap();
        let found = update.side.scalars[MixingConfig::VARIANCE];
        assert!((found - expected).abs() < 1e-6, "{variance:?}: {found}, expected {expected}");
    }
}

#[test]
fn a_client_sends_its_own_model_and_uses_the_mix() {
    let global = task([2.5, 2.5, 2.6]);
    let mut client = client(&ROWS, |c| c.estimator = MixingEstimator::Plain);
    let update = client.train(&global).unwrap();
    assert_eq!(update.params.to_host(), [2.0, 2.0, 2.5]);
    assert!(update.side.scalars.is_empty(), "nothing else leaves the client");
    let (mix, share) = client.mixed(&global.global).unwrap();
    assert!(share > 0.0, "{share}");
    let expected = (1.0 - share) * 2.0 + share * 2.5;
    assert!((f64::from(mix.to_host()[0]) - expected).abs() < 1e-6);
    let metrics = client.evaluate(&global.global).unwrap();
    assert!((metrics.get(Metrics::LOSS).unwrap() - expected).abs() < 1e-6);
    assert_eq!(metrics.get(MixingClient::<Means>::GLOBAL_SHARE), Some(share));
}

#[test]
fn the_mix_survives_in_the_state() {
    let far = task([9.0, 2.0, 2.5]);
    let mut first = client(&ROWS, |_| {});
    first.train(&far).unwrap();
    let mut second = client(&ROWS, |_| {});
    assert_eq!(second.mixed(&far.global).unwrap().1, 1.0, "without a model of its own the global one is used");
    second.restore(StateDict::from_bytes(&Client::<Flex>::state(&first).to_bytes().unwrap()).unwrap()).unwrap();
    assert_eq!(first.mixed(&far.global).unwrap().0.to_host(), second.mixed(&far.global).unwrap().0.to_host());
    assert_eq!(Client::<Flex>::state(&first), Client::<Flex>::state(&second));
    let mut wrong = Client::<Flex>::state(&first);
    wrong.insert_u64("mixing_model", 3);
    assert!(matches!(second.restore(wrong), Err(StateError::Shape { .. })));
    let other = vector::<Flex>(&[1.0], &schema(&[1]), &FlexDevice);
    assert!(matches!(first.mixed(&other), Err(StateError::Shape { .. })));
}

#[test]
fn where_the_variance_is_unknown_the_global_model_is_used() {
    let global = task([2.5, 2.5, 2.6]);
    let mut alone = client(&ROWS[..1], |_| {});
    alone.train(&global).unwrap();
    assert_eq!(alone.mixed(&global.global).unwrap().1, 1.0, "one example");
    // The sum of all rows is finite, that of a part is not.
    let rows = [[f32::MAX, 0.0, 0.0], [-f32::MAX, 0.0, 0.0], [f32::MAX, 0.0, 0.0]];
    let mut diverging = client(&rows, |c| c.variance = VarianceConfig::Jackknife { parts: 3 });
    diverging.train(&global).unwrap();
    assert_eq!(diverging.mixed(&global.global).unwrap().1, 1.0, "a part diverged");
    assert_eq!(diverging.mixed(&global.global).unwrap().0.to_host(), global.global.to_host());
}

#[test]
fn a_single_client_of_a_federation_keeps_its_model() {
    let mut client = client(&ROWS, |_| {});
    let update = client.train(&task([0.0; 3])).unwrap();
    let (mix, share) = client.mixed(&update.params).unwrap();
    assert_eq!((mix.to_host(), share), (update.params.to_host(), 0.0));
}

#[test]
fn blocks_can_be_the_model_or_single_elements() {
    let schema = Arc::new(
        ParamSchema::new(vec![
            ParamEntry::new("a", vec![3], ParamKind::Weight),
            ParamEntry::new("b", vec![3], ParamKind::Weight),
        ])
        .unwrap(),
    );
    let (local, global) = ([0.0f32; 6], [1.0, 1.0, 1.0, 2.0, 2.0, 2.0]);
    let mix = |blocks, estimator| {
        mixing(|c| (c.blocks, c.estimator) = (blocks, estimator)).mix(&schema, &local, &[0.5; 6], &global)
    };
    let model = mix(MixingBlocks::PerModel, MixingEstimator::Plain);
    assert_eq!(model.weights, [("*".to_owned(), 3.0 / 15.0)]);
    let elements = mix(MixingBlocks::PerElement, MixingEstimator::Plain);
    assert_eq!(elements.values, [0.5, 0.5, 0.5, 0.25, 0.25, 0.25]);
}
