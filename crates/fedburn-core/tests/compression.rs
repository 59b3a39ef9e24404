//! What clients and server make of a model and an update where a codec stands between them: rounds by hand, what is left
//! out, what is kept, and the way back from bytes.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use burn::tensor::backend::Backend;
use burn_flex::{Flex, FlexDevice};
use burn_ndarray::{NdArray, NdArrayDevice};
use fedburn_core::{
    Answered, Answerer, Client, ClientFailure, ClientId, ClientInfo, ClientReport, Codec, CompressionConfig,
    LocalUpdate, Metrics, ParamEntry, ParamKind, ParamSchema, ParamVector, Population, Reply, Reports, Request,
    RoundIndex, Seed, SideInfo, StateDict, StateError, TrainError, TrainTask, Worker,
};
use proptest::prelude::*;

const CLIENT: ClientId = ClientId(7);
const LOSSY: [Codec; 6] =
    [Codec::F16 {}, Codec::Bf16 {}, Codec::Int8 {}, Codec::Int4 {}, Codec::ScaledSign {}, Codec::TopK { ratio: 0.3 }];

/// Clients whose model after round `r` is the global one and the step of that round; they count their rounds.
#[derive(Clone)]
struct Scripted(Arc<Vec<Vec<f32>>>);

struct Walker {
    script: Scripted,
    taken: u64,
}

impl<B: Backend> Client<B> for Walker {
    fn info(&self) -> ClientInfo {
        ClientInfo { id: CLIENT, num_examples: 2 }
    }

    fn train(&mut self, task: &TrainTask<B>) -> Result<LocalUpdate<B>, TrainError> {
        let (schema, device) = (task.global.schema().clone(), task.global.device());
        let step = self.script.0[task.round.0 as usize - 1].clone();
        let step = ParamVector::<B>::from_host(step, schema, &device).unwrap().into_values();
        self.taken += 1;
        Ok(LocalUpdate {
            params: task.global.with_values(task.global.values().clone() + step).unwrap(),
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
        self.taken = state.take_u64("taken")?;
        state.expect_empty()
    }
}

impl<B: Backend> Population<B> for Scripted {
    fn clients(&self) -> Arc<[ClientInfo]> {
        [ClientInfo { id: CLIENT, num_examples: 2 }].into()
    }

    fn worker(&self) -> Box<dyn Worker<B>> {
        Box::new(self.clone())
    }
}

impl<B: Backend> Worker<B> for Scripted {
    fn client(&mut self, _: ClientId) -> Result<Box<dyn Client<B> + '_>, TrainError> {
        Ok(Box::new(Walker { script: self.clone(), taken: 0 }))
    }
}

/// Two weight tensors with running statistics between and behind them.
fn schema() -> Arc<ParamSchema> {
    let entry = |path: &str, len, kind| ParamEntry::new(path, vec![len], kind);
    let entries = vec![
        entry("a", 2, ParamKind::Weight),
        entry("mean", 1, ParamKind::Buffer),
        entry("b", 3, ParamKind::Weight),
        entry("variance", 1, ParamKind::Buffer),
    ];
    Arc::new(ParamSchema::new(entries).unwrap())
}

fn plain(len: usize) -> Arc<ParamSchema> {
    Arc::new(ParamSchema::new(vec![ParamEntry::new("w", vec![len], ParamKind::Weight)]).unwrap())
}

fn vector<B: Backend>(values: &[f32], schema: &Arc<ParamSchema>, device: &B::Device) -> ParamVector<B> {
    ParamVector::from_host(values.to_vec(), schema.clone(), device).unwrap()
}

fn up(up: Codec) -> CompressionConfig {
    CompressionConfig { up, ..Default::default() }
}

/// One client over the rounds of a script.
struct Rounds<B: Backend> {
    script: Scripted,
    compression: CompressionConfig,
    state: Option<StateDict>,
    round: u64,
    device: B::Device,
}

impl<B: Backend> Rounds<B> {
    fn new(script: &[Vec<f32>], compression: CompressionConfig, device: B::Device) -> Self {
        Self { script: Scripted(Arc::new(script.to_vec())), compression, state: None, round: 0, device }
    }

    fn answer(&mut self, global: &[f32], schema: &Arc<ParamSchema>) -> Result<ParamVector<B>, ClientFailure> {
        self.round += 1;
        let request = Request::Train(TrainTask {
            round: RoundIndex(self.round),
            global: vector(global, schema, &self.device),
            slice: Vec::new(),
            seed: Seed::new(3).round(RoundIndex(self.round)),
            side: SideInfo::default(),
            reports: Reports::default(),
            compression: self.compression,
        });
        let state = self.state.clone();
        let Answered { reply, state } = Answerer::<B>::new(&self.script).answer(CLIENT, request, || Ok(state))?;
        // As it is when it comes back from disk.
        self.state = state.map(|state| StateDict::from_bytes(&state.to_bytes().unwrap()).unwrap());
        match reply {
            Reply::Trained(update) => Ok(update.params),
            Reply::Evaluated(_) => panic!("a measurement in answer to a training request"),
        }
    }

    fn left_out(&self, schema: &Arc<ParamSchema>) -> Option<Vec<f32>> {
        let mut state = self.state.clone()?.split_off("compression");
        (!state.is_empty()).then(|| state.take_params::<B>("left_out", schema, &self.device).unwrap().to_host())
    }
}

fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    let close = found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6);
    assert!(close, "{found:?}, expected {expected:?}");
}

#[test]
fn rounds_by_hand() {
    fn check<B: Backend>(codec: Codec, sent: [[f32; 3]; 2], left: [f32; 3], device: B::Device) {
        let script = [vec![3.0, -1.0, 2.0], vec![0.0, -1.0, 0.0]];
        let mut rounds = Rounds::<B>::new(&script, up(codec), device);
        for (start, sent) in [[0.0; 3], [1.0, 1.0, 1.0]].into_iter().zip(sent) {
            let expected: Vec<f32> = start.iter().zip(sent).map(|(x, c)| x + c).collect();
            assert_close(&rounds.answer(&start, &plain(3)).unwrap().to_host(), &expected);
        }
        assert_close(&rounds.left_out(&plain(3)).unwrap(), &left);
        assert_eq!(rounds.state.unwrap().take_u64("taken").unwrap(), 2, "the client's own state is beside it");
    }
    // Signs: mean size 2, left [1, 1, 0]; then [1, 0, 0] of mean size 1/3.
    let signs = [[2.0, -2.0, 2.0], [1.0 / 3.0, 0.0, 0.0]];
    check::<Flex>(Codec::ScaledSign {}, signs, [2.0 / 3.0, 0.0, 0.0], FlexDevice);
    check::<NdArray>(Codec::ScaledSign {}, signs, [2.0 / 3.0, 0.0, 0.0], NdArrayDevice::Cpu);
    // The largest alone: 3, left [0, -1, 2]; then [0, -2, 2], of which the first counts.
    let (one, largest) = (Codec::TopK { ratio: 0.3 }, [[3.0, 0.0, 0.0], [0.0, -2.0, 0.0]]);
    check::<Flex>(one, largest, [0.0, 0.0, 2.0], FlexDevice);
    check::<NdArray>(one, largest, [0.0, 0.0, 2.0], NdArrayDevice::Cpu);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..Default::default() })]

    /// Error feedback loses nothing: what was sent and what is left add up to what was meant; without it, each update
    /// is alone. And both backends send the same bits.
    #[test]
    fn sent_and_left_add_up(
        script in prop::collection::vec(prop::collection::vec(-4.0..4.0f32, 20), 1..6),
        codec in prop::sample::select(LOSSY.to_vec()),
        error_feedback: bool,
    ) {
        let compression = CompressionConfig { up: codec, error_feedback, ..Default::default() };
        let mut rounds = Rounds::<Flex>::new(&script, compression, FlexDevice);
        let mut others = Rounds::<NdArray>::new(&script, compression, NdArrayDevice::Cpu);
        let (mut sent, mut meant) = (vec![0.0f64; 20], vec![0.0f64; 20]);
        for step in &script {
            let update = rounds.answer(&[0.0; 20], &plain(20)).unwrap();
            let other = others.answer(&[0.0; 20], &plain(20)).unwrap();
            prop_assert_eq!(&update.encoded().unwrap().bytes, &other.encoded().unwrap().bytes);
            prop_assert_eq!(update.to_host(), other.to_host());
            for ((sent, update), (meant, step)) in
                sent.iter_mut().zip(update.to_host()).zip(meant.iter_mut().zip(step))
            {
                *sent += f64::from(update);
                *meant += f64::from(*step);
            }
        }
        match rounds.left_out(&plain(20)) {
            Some(left) => {
                prop_assert!(error_feedback);
                for ((meant, sent), left) in meant.iter().zip(&sent).zip(left) {
                    prop_assert!((meant - sent - f64::from(left)).abs() < 1e-4, "{meant} {sent} {left}");
                }
            }
            None => prop_assert!(!error_feedback),
        }
    }

    /// What a server reads is what the client said: parameters, bits and all.
    #[test]
    fn bytes_make_the_same_vector_at_the_other_end(
        global in prop::collection::vec(-2.0..2.0f32, 7),
        step in prop::collection::vec(-0.1..0.1f32, 7),
        codec in prop::sample::select(LOSSY.to_vec()),
    ) {
        let schema = schema();
        let mut rounds = Rounds::<Flex>::new(std::slice::from_ref(&step), up(codec), FlexDevice);
        let update = rounds.answer(&global, &schema).unwrap();
        let encoded = update.encoded().unwrap().clone();
        prop_assert_eq!(encoded.bytes.len(), codec.vector_len(&schema));
        let global = vector::<Flex>(&global, &schema, &FlexDevice);
        let read = ParamVector::decode_update(encoded, &global).unwrap();
        prop_assert_eq!(read.to_host(), update.to_host());
        for (place, exact) in [(2, global.to_host()[2] + step[2]), (6, global.to_host()[6] + step[6])] {
            prop_assert_eq!(update.to_host()[place], exact, "running statistics are not compressed");
        }
    }

    #[test]
    fn a_model_goes_down_and_is_read_as_it_was_sent(
        values in prop::collection::vec(-2.0..2.0f32, 7),
        codec in prop::sample::select(LOSSY[..4].to_vec()),
    ) {
        let schema = schema();
        let model = vector::<Flex>(&values, &schema, &FlexDevice);
        let sent = model.through(codec, Seed::new(1)).unwrap();
        let read = ParamVector::<Flex>::decode_model(sent.encoded().unwrap().clone(), &schema, &FlexDevice).unwrap();
        prop_assert_eq!(read.to_host(), sent.to_host());
        prop_assert_eq!((sent.to_host()[2], sent.to_host()[6]), (values[2], values[6]));
        let off = sent.to_host().iter().zip(&values).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        prop_assert!(off <= 2.0 / 7.0 * 1.01, "{codec:?} is off by {off}");
    }
}

#[test]
fn nothing_changes_where_nothing_is_lost() {
    let mut rounds = Rounds::<Flex>::new(&[vec![0.3, 1e-30, f32::MIN_POSITIVE]], up(Codec::F32 {}), FlexDevice);
    let update = rounds.answer(&[0.1, 1.0, 0.0], &plain(3)).unwrap();
    assert_eq!(update.to_host(), [0.1 + 0.3, 1.0, f32::MIN_POSITIVE]);
    assert!(update.encoded().is_none() && rounds.left_out(&plain(3)).is_none());
    let model = vector::<Flex>(&[0.1], &plain(1), &FlexDevice);
    assert!(model.through(Codec::F32 {}, Seed::new(0)).unwrap().is_clone_of(&model));
}

#[test]
fn bytes_belong_to_their_vector_and_no_other() {
    let model = vector::<Flex>(&[0.1, 0.2], &plain(2), &FlexDevice);
    let sent = model.through(Codec::F16 {}, Seed::new(0)).unwrap();
    assert_eq!(sent.clone().encoded(), sent.encoded());
    assert!(sent.with_values(sent.values().clone() * 2.0).unwrap().encoded().is_none());
    assert!(sent.minus(&model).unwrap().encoded().is_none());
}

#[test]
fn an_update_that_cannot_be_written_is_a_failure_with_the_tensors_name() {
    let mut rounds = Rounds::<Flex>::new(&[vec![0.0, f32::NAN]], up(Codec::Int8 {}), FlexDevice);
    match rounds.answer(&[0.0; 2], &plain(2)) {
        Err(ClientFailure::Failed { reason }) => assert!(reason.contains("tensor `w`"), "{reason}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn bytes_of_another_model_are_refused() {
    let model = vector::<Flex>(&[0.1, 0.2], &plain(2), &FlexDevice);
    let sent = model.through(Codec::Int8 {}, Seed::new(0)).unwrap().encoded().unwrap().clone();
    let other = vector::<Flex>(&[0.0; 3], &plain(3), &FlexDevice);
    assert!(ParamVector::decode_update(sent.clone(), &other).is_err());
    assert!(ParamVector::<Flex>::decode_model(sent, &plain(3), &FlexDevice).is_err());
    assert!(model.update_through(Codec::Int8 {}, &other, None, Seed::new(0)).is_err());
}

#[test]
fn what_is_sent_down_is_a_whole_model() {
    for down in [Codec::ScaledSign {}, Codec::TopK { ratio: 0.5 }] {
        let error = CompressionConfig { down, ..Default::default() }.check().unwrap_err().to_string();
        assert!(error.contains("`down`") && error.contains(down.name()), "{error}");
    }
    let wrong = CompressionConfig { up: Codec::TopK { ratio: 2.0 }, ..Default::default() };
    assert!(wrong.check().unwrap_err().to_string().contains("`ratio` is 2"));
    assert!(CompressionConfig { down: Codec::Int4 {}, ..Default::default() }.check().is_ok());
}
