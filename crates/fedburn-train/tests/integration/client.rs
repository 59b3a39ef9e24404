//! Clients of a simulation: determinism, nothing leaks between them, failures are named.

use std::sync::Arc;
use std::thread;

use crate::common::{Normed, Softmax, bits, initial, normed_initial, softmax_initial, task, toy_data, training};
use burn::tensor::backend::Backend;
use burn_flex::{Flex, FlexDevice};
use burn_ndarray::{NdArray, NdArrayDevice};
use fedburn_core::{
    ClassId, Client, ClientId, ClientInfo, ModelFamily, ParamVector, Population, Reports, RoundIndex, StateData,
    StateDict, StateError, StateTensor, TrainError, TrainTask, Worker,
};
use fedburn_data::{ClientData, Examples, Inputs};
use fedburn_models::{NormKind, Zoo, ZooConfig};
use fedburn_train::{
    ClientDataSource, ClientList, LocalData, LocalRule, LocalRun, LocalSgd, LocalTrainingConfig, ResidentModel,
    ScheduleConfig, SupervisedClient, SupervisedPopulation, TrainModel, Trained,
};

fn population<B: Backend, F: ModelFamily<B>>(
    family: F,
    device: B::Device,
    change: impl FnOnce(&mut LocalTrainingConfig),
) -> SupervisedPopulation<B, F> {
    let list: ClientList = (0..4).map(|k| toy_data(11 + k as usize, k)).collect();
    SupervisedPopulation::new(Arc::new(list), family, training(change), device)
}

fn train<B: Backend>(worker: &mut dyn Worker<B>, id: u64, task: &TrainTask<B>) -> ParamVector<B> {
    worker.client(ClientId(id)).unwrap().train(task).unwrap().params
}

#[test]
fn a_reused_model_gives_the_bits_of_a_fresh_one() {
    let global = normed_initial(1);
    let clients = population::<Flex, _>(Normed, FlexDevice, |c| c.momentum = 0.9);
    let fresh: Vec<_> = (0..4).map(|k| bits(&train(&mut *clients.worker(), k, &task(&global, k)))).collect();
    let mut worker = clients.worker();
    for k in [3, 0, 2, 1, 1, 0] {
        assert_eq!(bits(&train(&mut *worker, k, &task(&global, k))), fresh[k as usize], "client {k}");
        worker.client(ClientId(k)).unwrap().evaluate(&global).unwrap();
    }
    assert!(fresh[0] != fresh[1] && fresh[0] != bits(&global), "training does something");
}

#[test]
fn running_statistics_are_trained_and_sent() {
    let global = normed_initial(1);
    let update = train(&mut *population::<Flex, _>(Normed, FlexDevice, |_| {}).worker(), 0, &task(&global, 0));
    for path in ["norm.running_mean", "norm.running_var", "norm.gamma", "first.weight"] {
        let moved = global.tensor::<1>(path).map(|t| t.into_data() != update.tensor::<1>(path).unwrap().into_data());
        let moved = moved.unwrap_or_else(|_| {
            global.tensor::<2>(path).unwrap().into_data() != update.tensor::<2>(path).unwrap().into_data()
        });
        assert!(moved, "{path}");
    }
    assert_eq!(update.schema(), global.schema());
}

#[test]
fn workers_in_threads_give_the_bits_of_one_after_another() {
    let global = normed_initial(2);
    let clients = population::<Flex, _>(Normed, FlexDevice, |c| c.epochs = Some(5));
    let run = |k: u64| bits(&train(&mut *clients.worker(), k, &task(&global, 7)));
    let in_turn: Vec<_> = (0..4).map(run).collect();
    let at_once = thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|k| scope.spawn(move || run(k))).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(in_turn, at_once);
}

#[test]
fn ndarray_agrees_with_flex() {
    fn update<B: Backend, F: ModelFamily<B>>(family: F, device: B::Device) -> Vec<f32> {
        let global = initial::<B, _>(&family, 5, &device);
        let clients = population(family, device, |c| (c.momentum, c.weight_decay) = (0.9, 1e-3));
        train(&mut *clients.worker(), 1, &task(&global, 5)).to_host()
    }
    let pairs = [
        (update::<Flex, _>(Softmax, FlexDevice), update::<NdArray, _>(Softmax, NdArrayDevice::Cpu)),
        (update::<Flex, _>(Normed, FlexDevice), update::<NdArray, _>(Normed, NdArrayDevice::Cpu)),
    ];
    for (flex, ndarray) in pairs {
        let worst = flex.iter().zip(&ndarray).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(flex.len() == ndarray.len() && worst < 1e-4, "off by {worst}");
    }
}

#[test]
fn the_seed_orders_the_batches() {
    let global = softmax_initial(0);
    let mut worker = population::<Flex, _>(Softmax, FlexDevice, |_| {}).worker();
    let one = bits(&train(&mut *worker, 0, &task(&global, 1)));
    assert_eq!(one, bits(&train(&mut *worker, 0, &task(&global, 1))));
    assert_ne!(one, bits(&train(&mut *worker, 0, &task(&global, 2))));
}

#[test]
fn the_rate_follows_the_round() {
    let mut late = task(&softmax_initial(0), 1);
    late.round = RoundIndex(3);
    let update = |change: fn(&mut LocalTrainingConfig)| {
        bits(&train(&mut *population::<Flex, _>(Softmax, FlexDevice, change).worker(), 0, &late))
    };
    let scheduled = update(|c| (c.lr, c.schedule) = (0.5, ScheduleConfig::Step { decay: 0.5, every: 1 }));
    assert_eq!(scheduled, update(|c| c.lr = 0.125));
    assert_ne!(scheduled, update(|c| c.lr = 0.5));
}

/// Two examples, the second so large that a step on it overflows.
fn explosive() -> ClientData {
    let inputs = Inputs::F32(vec![0.1, 0.2, 0.3, f32::MAX, -f32::MAX, f32::MAX]);
    ClientData::all(Arc::new(Examples::new(inputs, [1, 1, 3], vec![ClassId(0), ClassId(1)], 4).unwrap()))
}

#[test]
fn divergence_is_an_error_and_the_model_stays_usable() {
    let global = normed_initial(0);
    let list: ClientList = [explosive(), toy_data(12, 0)].into_iter().collect();
    let clients = SupervisedPopulation::<Flex, _>::new(Arc::new(list), Normed, training(|_| {}), FlexDevice);
    let expected = bits(&train(&mut *clients.worker(), 1, &task(&global, 3)));
    let mut worker = clients.worker();
    train(&mut *worker, 1, &task(&global, 3));
    let error = worker.client(ClientId(0)).unwrap().train(&task(&global, 3)).unwrap_err();
    assert!(matches!(error, TrainError::NonFinite { client: ClientId(0), round, .. } if round.0 == 1), "{error}");
    assert_eq!(bits(&train(&mut *worker, 1, &task(&global, 3))), expected);
}

#[test]
fn the_first_bad_step_is_named() {
    // Batches of one example: the loss of step 0 is finite, the first step throws the weights far away.
    let global = softmax_initial(0);
    let step = |steps, lr| {
        let settings = training(|c| (c.epochs, c.steps, c.batch_size, c.lr) = (None, Some(steps), 1, lr));
        let resident = ResidentModel::new(Softmax, FlexDevice);
        let mut client =
            SupervisedClient::<Flex, Softmax>::new(ClientId(4), toy_data(6, 0).into(), Arc::new(settings), resident);
        match client.train(&task(&global, 0)) {
            Err(TrainError::NonFinite { step, .. }) => Some(step),
            Ok(_) => None,
            Err(other) => panic!("{other}"),
        }
    };
    assert_eq!(step(300, 0.1), None);
    assert_eq!(step(3, 1e300), Some(1), "the weights are infinite after step 0, the loss of step 1 shows it");
    assert_eq!(step(1, 1e300), Some(0), "no later loss shows it, the parameters do");
}

#[test]
fn no_data_is_said() {
    let examples = toy_data(5, 0).examples().clone();
    let list: ClientList = [ClientData::new(examples, vec![]).unwrap()].into_iter().collect();
    assert_eq!(*list.clients(), [ClientInfo { id: ClientId(0), num_examples: 0 }]);
    let clients = SupervisedPopulation::<Flex, _>::new(Arc::new(list), Softmax, training(|_| {}), FlexDevice);
    let mut worker = clients.worker();
    let mut client = worker.client(ClientId(0)).unwrap();
    let global = softmax_initial(0);
    assert!(matches!(client.train(&task(&global, 0)), Err(TrainError::NoData { client: ClientId(0) })));
    assert!(matches!(client.evaluate(&global), Err(TrainError::NoData { client: ClientId(0) })));
}

#[test]
fn strangers_and_foreign_vectors_are_refused() {
    let mut worker = population::<Flex, _>(Softmax, FlexDevice, |_| {}).worker();
    assert!(matches!(worker.client(ClientId(4)), Err(TrainError::Unusable { client: ClientId(4), .. })));
    let foreign = normed_initial(0);
    let error = worker.client(ClientId(1)).unwrap().train(&task(&foreign, 0)).unwrap_err();
    assert!(matches!(error, TrainError::Schema { client: ClientId(1), .. }), "{error}");
    assert!(worker.client(ClientId(1)).unwrap().evaluate(&foreign).is_err());
    train(&mut *worker, 1, &task(&softmax_initial(0), 0));
}

#[test]
fn class_counts_are_reported_only_if_asked() {
    let data = toy_data(9, 1);
    let settings = Arc::new(training(|_| {}));
    let resident = ResidentModel::new(Softmax, FlexDevice);
    let mut client = SupervisedClient::<Flex, Softmax>::new(ClientId(0), data.clone().into(), settings, resident);
    let mut task = task(&softmax_initial(0), 0);
    assert_eq!(client.train(&task).unwrap().report.class_counts, None);
    task.reports = Reports { class_counts: true, ..Reports::default() };
    assert_eq!(client.train(&task).unwrap().report.class_counts, Some(data.class_counts()));
    assert_eq!(client.info(), ClientInfo { id: ClientId(0), num_examples: 9 });
}

#[test]
fn evaluation_prefers_held_out_examples() {
    let (train, held_out) = (toy_data(10, 1), toy_data(7, 2));
    let weight = |held_out| {
        let list = ClientList::new([LocalData { train: train.clone(), held_out }]);
        let clients = SupervisedPopulation::<Flex, _>::new(Arc::new(list), Softmax, training(|_| {}), FlexDevice);
        let metrics = clients.worker().client(ClientId(0)).unwrap().evaluate(&softmax_initial(0)).unwrap();
        metrics.iter().next().unwrap().1.weight()
    };
    assert_eq!(weight(Some(held_out)), 7.0);
    assert_eq!(weight(None), 10.0);
    assert_eq!(weight(Some(ClientData::new(train.examples().clone(), vec![]).unwrap())), 10.0);
}

#[test]
fn plain_clients_keep_no_state() {
    let mut worker = population::<Flex, _>(Softmax, FlexDevice, |_| {}).worker();
    let mut client = worker.client(ClientId(0)).unwrap();
    client.train(&task(&softmax_initial(0), 0)).unwrap();
    assert!(client.state().is_empty());
    client.restore(StateDict::new()).unwrap();
    let mut foreign = StateDict::new();
    foreign.insert_u64("runs", 1);
    assert!(matches!(client.restore(foreign), Err(StateError::Unexpected { .. })));
}

/// Counts its runs and leaves the model frozen behind.
#[derive(Default)]
struct Freezing {
    runs: u64,
}

impl<B: Backend, M: TrainModel<B>> LocalRule<B, M> for Freezing {
    fn train(&mut self, model: M, run: &LocalRun<'_, B>) -> Result<Trained<B, M>, TrainError> {
        let mut trained = LocalSgd.train(model, run)?;
        self.runs += 1;
        trained.model = trained.model.no_grad();
        Ok(trained)
    }

    fn state(&self) -> StateDict {
        let mut state = StateDict::new();
        state.insert("runs", StateTensor { shape: vec![1], data: StateData::U64(vec![self.runs]) });
        state
    }

    fn restore(&mut self, mut state: StateDict) -> Result<(), StateError> {
        self.runs = state.take_u64("runs")?;
        state.expect_empty()
    }
}

#[test]
fn a_rule_of_ones_own_keeps_state_and_frozen_weights_do_not_reach_the_next_client() {
    let global = softmax_initial(0);
    let plain = bits(&train(&mut *population::<Flex, _>(Softmax, FlexDevice, |_| {}).worker(), 2, &task(&global, 1)));
    let clients = population::<Flex, _>(Softmax, FlexDevice, |_| {}).with_rule(|| Box::new(Freezing::default()));
    let mut worker = clients.worker();
    train(&mut *worker, 0, &task(&global, 1));
    assert_eq!(bits(&train(&mut *worker, 2, &task(&global, 1))), plain);

    let mut client = worker.client(ClientId(2)).unwrap();
    client.train(&task(&global, 1)).unwrap();
    let mut state = client.state();
    drop(client);
    let mut client = worker.client(ClientId(2)).unwrap();
    client.restore(state.clone()).unwrap();
    client.train(&task(&global, 1)).unwrap();
    assert_eq!((state.take_u64("runs").unwrap(), client.state().take_u64("runs").unwrap()), (1, 2));
}

#[test]
fn a_run_refused_for_its_parameters_leaves_the_rule_as_it_was() {
    let settings = training(|c| (c.epochs, c.steps, c.lr) = (None, Some(1), 1e300));
    let clients = SupervisedPopulation::<Flex, _>::new(
        Arc::new([toy_data(6, 0)].into_iter().collect::<ClientList>()),
        Softmax,
        settings,
        FlexDevice,
    )
    .with_rule(|| Box::new(Freezing::default()));
    let mut worker = clients.worker();
    let mut client = worker.client(ClientId(0)).unwrap();
    assert!(matches!(client.train(&task(&softmax_initial(0), 0)), Err(TrainError::NonFinite { step: 0, .. })));
    assert_eq!(client.state().take_u64("runs").unwrap(), 0);
}

#[test]
fn models_of_the_zoo_train_in_a_reused_slot_and_on_both_backends() {
    let inputs = (0..6 * 256).map(|i| (i * 37 % 101) as f32 / 101.0).collect();
    let labels = (0..6).map(|i| ClassId(i % 3)).collect();
    let data = ClientData::all(Arc::new(Examples::new(Inputs::F32(inputs), [1, 16, 16], labels, 3).unwrap()));
    let trained = |resident: &mut ResidentModel<Flex, Zoo>, global: &ParamVector<Flex>| {
        let settings = Arc::new(training(|c| (c.epochs, c.batch_size) = (Some(1), 3)));
        let mut client = SupervisedClient::<Flex, Zoo, _>::new(ClientId(0), data.clone().into(), settings, resident);
        client.train(&task(global, 0)).unwrap().params
    };
    let resnet = ZooConfig::ResNet { depth: 8, norm: NormKind::Batch, groups: None }.build([1, 16, 16], 3).unwrap();
    let global = initial::<Flex, _>(&resnet, 0, &FlexDevice);
    let mut resident = ResidentModel::new(resnet, FlexDevice);
    let fresh = trained(&mut resident, &global);
    assert_eq!(bits(&trained(&mut resident, &global)), bits(&fresh));
    let moved = global.minus(&fresh).unwrap();
    for entry in moved.schema().entries() {
        let values = &moved.to_host()[entry.range()];
        assert!(values.iter().any(|v| *v != 0.0), "`{}` was not trained", entry.path);
    }

    let two_nn = ZooConfig::TwoNn { hidden: 8 }.build([1, 16, 16], 3).unwrap();
    let global = initial::<Flex, _>(&two_nn, 0, &FlexDevice);
    let flex = trained(&mut ResidentModel::new(two_nn.clone(), FlexDevice), &global).to_host();
    let global = initial::<NdArray, _>(&two_nn, 0, &NdArrayDevice::Cpu);
    let settings = Arc::new(training(|c| (c.epochs, c.batch_size) = (Some(1), 3)));
    let resident = ResidentModel::<NdArray, _>::new(two_nn, NdArrayDevice::Cpu);
    let mut client = SupervisedClient::<NdArray, Zoo>::new(ClientId(0), data.clone().into(), settings, resident);
    let ndarray = client.train(&task(&global, 0)).unwrap().params.to_host();
    assert!(flex.iter().zip(&ndarray).all(|(a, b)| (a - b).abs() < 1e-5));
}
