//! A client that trains a classifier on its own labelled examples.

use std::borrow::BorrowMut;
use std::collections::BTreeSet;
use std::marker::PhantomData;
use std::sync::Arc;

use burn::tensor::backend::Backend;
use fedburn_core::{
    Client, ClientId, ClientInfo, ClientReport, LocalUpdate, Mean, Metrics, ModelFamily, ParamVector, Resample,
    ResamplingClient, SchemaError, Seed, StateData, StateDict, StateError, TrainError, TrainTask, flatten,
    flatten_part,
};
use fedburn_data::{ClientData, DatasetError};
use rand::RngExt;
use rand::seq::SliceRandom;

use crate::{
    Diverged, LocalRule, LocalRun, LocalTraining, MemoryLog, MemoryMeasurement, ResidentModel, evaluate_classifier,
};

/// One client's examples.
#[derive(Clone, Debug)]
pub struct LocalData {
    /// Trained on.
    pub train: ClientData,
    /// Evaluated on; where absent or empty, the training examples are.
    pub held_out: Option<ClientData>,
}

impl From<ClientData> for LocalData {
    fn from(train: ClientData) -> Self {
        Self { train, held_out: None }
    }
}

/// A client with labelled examples, a local rule and a model to train in.
///
/// `R` is the model's owner: [`ResidentModel`] itself for a device with one client, or `&mut ResidentModel` for a
/// worker that plays many clients, one after another.
///
/// # Determinism
/// On flex and ndarray the update is a function of the task, the data, the settings and the rule's state; which clients
/// used the resident model before does not matter.
pub struct SupervisedClient<B: Backend, F: ModelFamily<B>, R = ResidentModel<B, F>> {
    id: ClientId,
    data: LocalData,
    training: Arc<LocalTraining>,
    rule: Box<dyn LocalRule<B, F::TrainModel>>,
    resident: R,
    memory: Option<Arc<MemoryLog>>,
    family: PhantomData<fn() -> F>,
}

impl<B: Backend, F: ModelFamily<B>, R: BorrowMut<ResidentModel<B, F>> + Send> SupervisedClient<B, F, R> {
    /// Examples in one forward pass of [`Client::evaluate`].
    const EVALUATION_BATCH: usize = 64;

    /// A client that follows the rule of `training`.
    pub fn new(id: ClientId, data: LocalData, training: Arc<LocalTraining>, resident: R) -> Self {
        let rule = training.rule();
        Self { id, data, training, rule, resident, memory: None, family: PhantomData }
    }

    /// The same client with a rule of your own.
    #[must_use]
    pub fn with_rule(mut self, rule: Box<dyn LocalRule<B, F::TrainModel>>) -> Self {
        self.rule = rule;
        self
    }

    /// The same client, which records what its training holds of memory.
    #[must_use]
    pub fn with_memory_log(mut self, log: Arc<MemoryLog>) -> Self {
        self.memory = Some(log);
        self
    }

    fn schema_error(&self, source: SchemaError) -> TrainError {
        TrainError::Schema { client: self.id, source }
    }

    /// Trains on `part`, or on all training examples.
    fn train_with(&mut self, task: &TrainTask<B>, part: Option<&ClientData>) -> Result<LocalUpdate<B>, TrainError> {
        let data = part.unwrap_or(&self.data.train);
        if data.is_empty() {
            return Err(TrainError::NoData { client: self.id });
        }
        let share = self.training.share(self.id);
        let resident = self.resident.borrow_mut();
        let measurement =
            self.memory.as_ref().and_then(|_| MemoryMeasurement::begin::<B>(resident.ready(), resident.device()));
        let is_part = share == 1.0 && !task.slice.is_empty();
        let loaded = match is_part {
            true => resident.load_part(&task.global),
            false => resident.load_share(&task.global, share),
        };
        let model = loaded.map_err(|e| self.schema_error(e))?;
        let device = self.resident.borrow().device().clone();
        let (client, memory) = (self.id, measurement.as_ref());
        let run = LocalRun { client, task, data, training: &self.training, device: &device, memory };
        // A rule changes its state in `train`; a result that is refused below must not leave it changed.
        let before = self.rule.state();
        let trained = self.rule.train(model, &run)?;
        let model = self.resident.borrow_mut().keep(trained.model);
        let params = match is_part {
            true => flatten_part(&model, task.global.schema()),
            false => flatten(&model).and_then(|flat| task.global.with_values(flat.into_values())),
        };
        let params = params.map_err(|e| self.schema_error(e))?;
        if !params.is_finite() {
            let diverged = run.diverged(Diverged { step: trained.steps.saturating_sub(1) });
            self.rule.restore(before).map_err(|source| TrainError::State { client: self.id, source })?;
            return Err(diverged);
        }
        let num_examples = data.len() as u64;
        let loss = trained.loss.value().map(|loss| Mean::new(loss, num_examples as f64));
        let update = LocalUpdate {
            params,
            num_examples,
            side: trained.side,
            report: ClientReport {
                class_counts: task.reports.class_counts.then(|| data.class_counts()),
                accumulation: task.reports.accumulation.then_some(trained.accumulation),
                steps: task.reports.steps.then_some(trained.steps as u64),
            },
            metrics: loss.into_iter().fold(Metrics::new(), |all, loss| all.with(Metrics::TRAIN_LOSS, loss)),
        };
        if let (Some(measurement), Some(log)) = (measurement, &self.memory) {
            // What leaves with the client does not lie ready for the next.
            let leaves = sent(&update) + stored(&self.rule.state()) - stored(&before);
            drop(before);
            let left = measurement.finish(self.id, trained.steps, log);
            self.resident.borrow_mut().left(left - leaves);
        }
        Ok(update)
    }
}

/// Bytes of an update's vectors.
fn sent<B: Backend>(update: &LocalUpdate<B>) -> i64 {
    let vectors = update.side.vectors.values().chain([&update.params]);
    vectors.map(|vector| size_of::<B::FloatElem>() * vector.schema().num_values()).sum::<usize>() as i64
}

/// Bytes of a state's values.
fn stored(state: &StateDict) -> i64 {
    let bytes = |data: &StateData| match data {
        StateData::F32(values) => size_of_val(values.as_slice()),
        StateData::F64(values) => size_of_val(values.as_slice()),
        StateData::U64(values) => size_of_val(values.as_slice()),
    };
    state.iter().map(|(_, tensor)| bytes(&tensor.data)).sum::<usize>() as i64
}

impl<B, F, R> Client<B> for SupervisedClient<B, F, R>
where
    B: Backend,
    F: ModelFamily<B>,
    R: BorrowMut<ResidentModel<B, F>> + Send,
{
    fn info(&self) -> ClientInfo {
        ClientInfo { id: self.id, num_examples: self.data.train.len() as u64 }
    }

    fn train(&mut self, task: &TrainTask<B>) -> Result<LocalUpdate<B>, TrainError> {
        self.train_with(task, None)
    }

    fn evaluate(&mut self, global: &ParamVector<B>) -> Result<Metrics, TrainError> {
        let held_out = self.data.held_out.as_ref().filter(|data| !data.is_empty());
        let data = held_out.unwrap_or(&self.data.train);
        if data.is_empty() {
            return Err(TrainError::NoData { client: self.id });
        }
        let deployed = self.rule.deployed(global).map_err(|e| self.schema_error(e))?;
        let model = self.resident.borrow_mut().load(&deployed).map_err(|e| self.schema_error(e))?;
        let model = self.resident.borrow_mut().keep(model);
        Ok(evaluate_classifier(&model, data, Self::EVALUATION_BATCH, self.resident.borrow().device()))
    }

    fn state(&self) -> StateDict {
        self.rule.state()
    }

    fn restore(&mut self, state: StateDict) -> Result<(), StateError> {
        self.rule.restore(state)
    }
}

impl<B, F, R> ResamplingClient<B> for SupervisedClient<B, F, R>
where
    B: Backend,
    F: ModelFamily<B>,
    R: BorrowMut<ResidentModel<B, F>> + Send,
{
    fn train_on(&mut self, task: &TrainTask<B>, part: Resample) -> Result<LocalUpdate<B>, TrainError> {
        let data = resample(&self.data.train, part, task.seed.index(RESAMPLING));
        let data = data.map_err(|e| TrainError::Unusable { client: self.id, reason: e.to_string() })?;
        let before = self.rule.state();
        let update = self.train_with(task, Some(&data));
        self.rule.restore(before).map_err(|source| TrainError::State { client: self.id, source })?;
        update
    }
}

/// The child of a task's seed that shards and bootstrap samples are drawn from; rules use small numbers.
const RESAMPLING: u64 = u64::MAX;

/// The named part of `data`, in the order of the whole. Shards are those of one permutation, so that they are disjoint.
fn resample(data: &ClientData, part: Resample, seed: Seed) -> Result<ClientData, DatasetError> {
    let len = data.len();
    let shard = |position: usize, of: usize| {
        let mut order: Vec<usize> = (0..len).collect();
        order.shuffle(&mut seed.rng());
        order.into_iter().skip(position % of.max(1)).step_by(of.max(1)).collect::<BTreeSet<usize>>()
    };
    let positions: Vec<usize> = match part {
        Resample::Shard { part, of } => shard(part, of).into_iter().collect(),
        Resample::AllBut { part, of } => {
            let left_out = shard(part, of);
            (0..len).filter(|position| !left_out.contains(position)).collect()
        }
        Resample::Bootstrap { index } => {
            let mut rng = seed.index(index as u64).rng();
            let mut drawn: Vec<usize> = (0..len).map(|_| rng.random_range(0..len)).collect();
            drawn.sort_unstable();
            drawn
        }
    };
    let indices = positions.into_iter().map(|position| data.indices()[position]).collect();
    let view = ClientData::new(data.examples().clone(), indices)?;
    Ok(match data.transform() {
        Some(transform) => view.with_transform(transform.clone()),
        None => view,
    })
}

#[cfg(test)]
mod tests {
    use fedburn_core::ClassId;
    use fedburn_data::{Examples, Inputs, Transform};
    use proptest::prelude::*;

    use super::*;

    fn numbered(len: usize) -> ClientData {
        let inputs = Inputs::F32((0..len).map(|i| i as f32).collect());
        let examples = Examples::new(inputs, [1, 1, 1], vec![ClassId(0); len], 1).unwrap();
        ClientData::all(Arc::new(examples))
    }

    proptest! {
        #[test]
        fn shards_are_disjoint_even_and_make_up_the_whole(len in 0usize..40, of in 2usize..7, seed: u64) {
            let (data, seed) = (numbered(len), Seed::new(seed));
            let indices = |part| resample(&data, part, seed).unwrap().indices().to_vec();
            let mut all = Vec::new();
            for part in 0..of {
                let (shard, rest) = (indices(Resample::Shard { part, of }), indices(Resample::AllBut { part, of }));
                prop_assert!(shard.len() == len / of || shard.len() == len.div_ceil(of));
                let mut whole = [shard.clone(), rest].concat();
                whole.sort_unstable();
                prop_assert_eq!(&whole, data.indices());
                all.extend(shard);
            }
            all.sort_unstable();
            prop_assert_eq!(&all, data.indices());
        }
    }

    #[test]
    fn bootstrap_samples_are_as_large_as_the_data_and_differ() {
        let data = numbered(30).with_transform(Transform::Noise { sigma: 1.0, seed: Seed::new(9) });
        let draw = |index, seed| resample(&data, Resample::Bootstrap { index }, Seed::new(seed)).unwrap();
        let (a, b) = (draw(0, 1), draw(1, 1));
        assert_eq!((a.len(), b.len()), (30, 30));
        assert!(a.indices() != b.indices() && a.indices() != draw(0, 2).indices());
        assert_eq!(a.indices(), draw(0, 1).indices());
        assert_eq!(a.transform(), data.transform(), "the client's instruments stay its own");
    }
}
