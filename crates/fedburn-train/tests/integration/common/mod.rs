//! Tiny models and data that several test files share.

pub mod quadratic;
pub mod reference;

use std::sync::Arc;

use burn::backend::Autodiff;
use burn::module::Module;
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig};
use burn::tensor::{Tensor, activation::relu, backend::Backend};
use burn_flex::{Flex, FlexDevice};
use fedburn_core::{
    ClassId, Classifier, Mode, ModelFamily, ParamKind, ParamVector, Reports, RoundIndex, Seed, SideInfo, TrainTask,
    flatten, load, schema_of,
};
use fedburn_data::{ClientData, Examples, Inputs};
use fedburn_train::{LocalTraining, LocalTrainingConfig};
use rand::RngExt;

pub const FEATURES: usize = 3;
pub const CLASSES: usize = 4;

/// Softmax regression, simple enough for a reference by hand.
#[derive(Module, Debug)]
pub struct SoftmaxNet<B: Backend> {
    linear: Linear<B>,
}

impl<B: Backend> Classifier<B> for SoftmaxNet<B> {
    fn forward(&self, inputs: Tensor<B, 4>, _mode: Mode) -> Tensor<B, 2> {
        self.linear.forward(inputs.flatten::<2>(1, 3))
    }
}

#[derive(Clone, Debug)]
pub struct Softmax;

impl<B: Backend> ModelFamily<B> for Softmax {
    type Model = SoftmaxNet<B>;
    type TrainModel = SoftmaxNet<Autodiff<B>>;

    fn init(&self, seed: Seed, device: &B::Device) -> SoftmaxNet<B> {
        drawn(SoftmaxNet { linear: LinearConfig::new(FEATURES, CLASSES).init(device) }, seed, device)
    }
}

/// A network with batch normalisation, whose running statistics are the usual way for state to leak.
#[derive(Module, Debug)]
pub struct NormNet<B: Backend> {
    first: Linear<B>,
    norm: BatchNorm<B>,
    head: Linear<B>,
}

impl<B: Backend> Classifier<B> for NormNet<B> {
    fn forward(&self, inputs: Tensor<B, 4>, _mode: Mode) -> Tensor<B, 2> {
        let hidden = self.first.forward(inputs.flatten::<2>(1, 3));
        self.head.forward(relu(self.norm.forward(hidden)))
    }
}

#[derive(Clone, Debug)]
pub struct Normed;

impl<B: Backend> ModelFamily<B> for Normed {
    type Model = NormNet<B>;
    type TrainModel = NormNet<Autodiff<B>>;

    fn init(&self, seed: Seed, device: &B::Device) -> NormNet<B> {
        let model = NormNet {
            first: LinearConfig::new(FEATURES, 8).init(device),
            norm: BatchNormConfig::new(8).init(device),
            head: LinearConfig::new(8, CLASSES).init(device),
        };
        drawn(model, seed, device)
    }
}

/// Loads weights in `[-0.5, 0.5)` and running statistics in `[0.5, 1.5)`.
fn drawn<B: Backend, M: Module<B>>(model: M, seed: Seed, device: &B::Device) -> M {
    let schema = Arc::new(schema_of(&model).unwrap());
    let mut rng = seed.rng();
    let kinds = schema.entries().iter().flat_map(|e| std::iter::repeat_n(e.kind, e.len()));
    let values = kinds.map(|kind| rng.random::<f32>() + if kind == ParamKind::Weight { -0.5 } else { 0.5 }).collect();
    load(model, &ParamVector::from_host(values, schema, device).unwrap()).unwrap()
}

/// The flat parameters of a freshly drawn model.
pub fn initial<B: Backend, F: ModelFamily<B>>(family: &F, seed: u64, device: &B::Device) -> ParamVector<B> {
    flatten(&family.init(Seed::new(seed), device)).unwrap()
}

/// `len` noisy examples around one centre a class.
pub fn toy_data(len: usize, seed: u64) -> ClientData {
    let mut rng = Seed::new(seed).rng();
    let labels: Vec<ClassId> = (0..len).map(|_| ClassId(rng.random_range(0..CLASSES as u32))).collect();
    let centre = |label: ClassId, feature: usize| if label.0 as usize == feature { 1.0 } else { -0.2 };
    let inputs = labels
        .iter()
        .flat_map(|&label| (0..FEATURES).map(move |f| centre(label, f)))
        .map(|centre: f32| centre + rng.random::<f32>() - 0.5)
        .collect();
    ClientData::all(Arc::new(Examples::new(Inputs::F32(inputs), [1, 1, FEATURES], labels, CLASSES).unwrap()))
}

pub fn task<B: Backend>(global: &ParamVector<B>, seed: u64) -> TrainTask<B> {
    TrainTask {
        round: RoundIndex(1),
        global: global.clone(),
        slice: Vec::new(),
        seed: Seed::new(seed),
        side: SideInfo::default(),
        reports: Reports::default(),
        compression: Default::default(),
    }
}

pub fn training(change: impl FnOnce(&mut LocalTrainingConfig)) -> LocalTraining {
    let mut config = LocalTrainingConfig::sgd(2, 5, 0.1);
    change(&mut config);
    config.build().unwrap()
}

pub fn bits<B: Backend>(params: &ParamVector<B>) -> Vec<u32> {
    params.to_host().into_iter().map(f32::to_bits).collect()
}

pub fn softmax_initial(seed: u64) -> ParamVector<Flex> {
    initial::<Flex, _>(&Softmax, seed, &FlexDevice)
}

pub fn normed_initial(seed: u64) -> ParamVector<Flex> {
    initial::<Flex, _>(&Normed, seed, &FlexDevice)
}
