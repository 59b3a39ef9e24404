//! Compression with error feedback against rounds by hand and in `f64`.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::common::quadratic::{task_at, vector};
use crate::common::reference::{assert_close, wide};
use crate::common::{Normed, normed_initial, softmax_initial, task, toy_data};
use burn::tensor::backend::Backend;
use burn_flex::{Flex, FlexDevice};
use burn_ndarray::{NdArray, NdArrayDevice};
use fedburn_core::{
    Client, ClientId, ClientInfo, ClientReport, LocalUpdate, Metrics, ParamKind, ParamVector, Population, SideInfo,
    StateDict, StateError, TrainError, TrainTask,
};
use fedburn_train::{ClientList, Compressed, CompressionConfig, LocalTrainingConfig, SupervisedPopulation};
use proptest::prelude::*;

const TOP_1: CompressionConfig = CompressionConfig::TopK { share: 0.3 };

/// A client that moves by given steps, and remembers how many it took.
struct Scripted {
    steps: VecDeque<Vec<f32>>,
    taken: u64,
}

impl Scripted {
    fn new(steps: &[Vec<f32>]) -> Self {
        Self { steps: steps.iter().cloned().collect(), taken: 0 }
    }
}

impl<B: Backend> Client<B> for Scripted {
    fn info(&self) -> ClientInfo {
        ClientInfo { id: ClientId(7), num_examples: 2 }
    }

    fn train(&mut self, task: &TrainTask<B>) -> Result<LocalUpdate<B>, TrainError> {
        let reason = "the script is over".to_owned();
        let step = self.steps.pop_front().ok_or(TrainError::Unusable { client: ClientId(7), reason })?;
        let step = ParamVector::<B>::from_host(step, task.global.schema().clone(), &task.global.device()).unwrap();
        self.taken += 1;
        Ok(LocalUpdate {
            params: task.global.with_values(task.global.values().clone() + step.into_values()).unwrap(),
            num_examples: 2,
            side: SideInfo::default(),
            report: ClientReport::default(),
            metrics: Metrics::new(),
        })
    }

    fn evaluate(&mut self, _: &ParamVector<B>) -> Result<Metrics, TrainError> {
        Ok(Metrics::new())
    }

    fn state(&self) -> StateDict {
        let mut state = StateDict::new();
        state.insert_u64("taken", self.taken);
        state
    }

    fn restore(&mut self, mut state: StateDict) -> Result<(), StateError> {
        self.taken = if state.is_empty() { 0 } else { state.take_u64("taken")? };
        state.expect_empty()
    }
}

#[test]
fn golden_rounds() {
    fn check<B: Backend>(config: CompressionConfig, sent: [[f64; 3]; 2], left: [f64; 3], device: &B::Device) {
        let mut client = Compressed::<B, _>::new(Scripted::new(&[vec![3.0, -1.0, 2.0], vec![0.0, -1.0, 0.0]]), config);
        for (start, sent) in [[0.0; 3], [1.0, 1.0, 1.0]].into_iter().zip(sent) {
            let expected: Vec<f64> = wide(&start).iter().zip(sent).map(|(x, c)| x + c).collect();
            assert_close(&client.train(&task_at(start, device)).unwrap().params.to_host(), &expected, 1e-6);
        }
        let schema = vector::<B>([0.0; 3], device).schema().clone();
        let error = client.state().take_params::<B>("error", &schema, device).unwrap();
        assert_close(&error.to_host(), &left, 1e-6);
        assert_eq!(client.state().split_off("client").take_u64("taken").unwrap(), 2);
    }
    // Signs: mean size 2, left [1, 1, 0]; then [1, 0, 0] of mean size 1/3.
    let signs = [[2.0, -2.0, 2.0], [1.0 / 3.0, 0.0, 0.0]];
    check::<Flex>(CompressionConfig::ScaledSign {}, signs, [2.0 / 3.0, 0.0, 0.0], &FlexDevice);
    check::<NdArray>(CompressionConfig::ScaledSign {}, signs, [2.0 / 3.0, 0.0, 0.0], &NdArrayDevice::Cpu);
    // The largest alone: 3, left [0, -1, 2]; then [0, -2, 2], of which the first counts.
    let largest = [[3.0, 0.0, 0.0], [0.0, -2.0, 0.0]];
    check::<Flex>(TOP_1, largest, [0.0, 0.0, 2.0], &FlexDevice);
    check::<NdArray>(TOP_1, largest, [0.0, 0.0, 2.0], &NdArrayDevice::Cpu);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..Default::default() })]

    /// Error feedback loses nothing: what was sent and what is left add up to what was meant.
    #[test]
    fn sent_and_left_add_up(
        rounds in prop::collection::vec(prop::collection::vec(-4.0..4.0f32, 16), 1..6),
        share in prop::option::of(0.01..1.0f64),
    ) {
        let config = share.map_or(CompressionConfig::ScaledSign {}, |share| CompressionConfig::TopK { share });
        let global = ParamVector::zeros(softmax_initial(0).schema().clone(), &FlexDevice);
        let mut client = Compressed::<Flex, _>::new(Scripted::new(&rounds), config);
        let mut error = vec![0.0f64; 16];
        for step in &rounds {
            let meant: Vec<f64> = error.iter().zip(step).map(|(e, v)| e + f64::from(*v)).collect();
            let sent = wide(&client.train(&task(&global, 0)).unwrap().params.to_host());
            match share {
                None => {
                    let size = meant.iter().map(|v| v.abs()).sum::<f64>() / 16.0;
                    prop_assert!(sent.iter().zip(&meant).all(|(c, v)| (c.abs() - size).abs() < 1e-5 && c * v >= 0.0));
                }
                Some(share) => {
                    let count = (share * 16.0).ceil() as usize;
                    let mut sizes: Vec<f64> = meant.iter().map(|v| v.abs()).collect();
                    sizes.sort_by(|a, b| b.total_cmp(a));
                    prop_assert!(sent.iter().filter(|c| **c != 0.0).count() <= count);
                    let (kept, best): (f64, f64) = (sent.iter().map(|c| c.abs()).sum(), sizes[..count].iter().sum());
                    prop_assert!((kept - best).abs() < 1e-4, "the largest are sent: {kept} {best}");
                }
            }
            error = meant.iter().zip(&sent).map(|(v, c)| v - c).collect();
        }
        let left = client.state().take_params::<Flex>("error", global.schema(), &FlexDevice).unwrap();
        assert_close(&left.to_host(), &error, 1e-4);
    }
}

#[test]
fn a_failed_run_leaves_the_state_and_a_restored_client_goes_on() {
    let script = [vec![3.0, -1.0, 2.0], vec![0.5, -1.0, 0.0]];
    let task = task_at::<Flex>([0.0; 3], &FlexDevice);
    let mut lasting = Compressed::<Flex, _>::new(Scripted::new(&script), TOP_1);
    lasting.train(&task).unwrap();
    let saved = StateDict::from_bytes(&lasting.state().to_bytes().unwrap()).unwrap();
    let mut restored = Compressed::<Flex, _>::new(Scripted::new(&script[1..]), TOP_1);
    restored.restore(saved.clone()).unwrap();
    assert_eq!(restored.state(), saved);
    let (a, b) = (lasting.train(&task).unwrap(), restored.train(&task).unwrap());
    assert_eq!(a.params.to_host(), b.params.to_host());
    let before = lasting.state();
    assert!(lasting.train(&task).is_err());
    assert_eq!(lasting.state(), before);
    let mut foreign = saved;
    foreign.insert_f64("other", 0.0);
    assert!(lasting.restore(foreign).is_err());
    assert_eq!(lasting.state(), before);
}

#[test]
fn the_client_table_compresses_weights_and_leaves_running_statistics() {
    let global = normed_initial(1);
    let update = |compression: &str| {
        let text = format!("epochs = 2\nbatch_size = 5\nlr = 0.1\n{compression}");
        let training = toml::from_str::<LocalTrainingConfig>(&text).unwrap().build().unwrap();
        let list: ClientList = [toy_data(12, 1)].into_iter().collect();
        let population = SupervisedPopulation::<Flex, _>::new(Arc::new(list), Normed, training, FlexDevice);
        population.worker().client(ClientId(0)).unwrap().train(&task(&global, 3)).unwrap().params
    };
    let (plain, all) = (update(""), update("compression = { kind = \"top_k\", share = 1.0 }"));
    assert_close(&all.to_host(), &wide(&plain.to_host()), 1e-6);
    let few = update("compression = { kind = \"top_k\", share = 0.1 }");
    let (few, plain, start) = (few.to_host(), plain.to_host(), global.to_host());
    let mut moved = 0;
    for entry in global.schema().entries() {
        match entry.kind {
            ParamKind::Weight => moved += entry.range().filter(|&i| few[i] != start[i]).count(),
            ParamKind::Buffer => assert_eq!(few[entry.range()], plain[entry.range()], "{}", entry.path),
        }
    }
    assert_eq!(moved, (global.schema().num_weights() as f64 * 0.1).ceil() as usize);
}
