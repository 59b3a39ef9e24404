//! Small models, updates and clients to test with.

use std::sync::Arc;

use burn::tensor::backend::Backend;
use fedburn_core::{
    Client, ClientId, ClientInfo, ClientReport, ClientUpdate, LocalUpdate, Mean, Metrics, ParamEntry, ParamKind,
    ParamSchema, ParamVector, Population, SideInfo, StateDict, StateError, TrainError, TrainTask, Worker,
};
use rand::RngExt;

/// A schema of weight tensors with these lengths, named `t0`, `t1`, ….
pub fn schema(lengths: &[usize]) -> Arc<ParamSchema> {
    let entries =
        lengths.iter().enumerate().map(|(i, &n)| ParamEntry::new(format!("t{i}"), vec![n], ParamKind::Weight));
    Arc::new(ParamSchema::new(entries.collect()).expect("distinct names and small lengths"))
}

/// A vector of these values.
pub fn vector<B: Backend>(values: &[f32], schema: &Arc<ParamSchema>, device: &B::Device) -> ParamVector<B> {
    ParamVector::from_host(values.to_vec(), schema.clone(), device).expect("as many values as the schema has")
}

/// A client's update without side information.
pub fn update<B: Backend>(client: u64, num_examples: u64, params: ParamVector<B>) -> ClientUpdate<B> {
    let local = LocalUpdate {
        params,
        num_examples,
        side: SideInfo::default(),
        report: ClientReport::default(),
        metrics: Metrics::new(),
    };
    ClientUpdate { client: ClientId(client), local }
}

/// The update with what some strategies ask of clients besides: as many steps as the client's number and one, and half
/// its parameters as the change of its control variate. Strategies that did not ask do not look.
pub fn answer_all<B: Backend>(mut update: ClientUpdate<B>) -> ClientUpdate<B> {
    let (steps, params) = (update.client.0 + 1, &update.local.params);
    let control = params.with_values(params.values().clone() * 0.5).expect("as many values as before");
    update.local.side.vectors.insert(SideInfo::<B>::CONTROL_DELTA.into(), control);
    let report = &mut update.local.report;
    (report.accumulation, report.steps) = (Some(steps as f64), Some(steps));
    update
}

/// The BASE case of the golden vectors: `x_t = [1, 2, 3]`, client A with one example, client B with three.
pub fn base_case<B: Backend>(device: &B::Device) -> (ParamVector<B>, Vec<ClientUpdate<B>>) {
    let schema = schema(&[3]);
    let global = vector(&[1.0, 2.0, 3.0], &schema, device);
    let a = update(0, 1, vector(&[1.2, 1.8, 3.0], &schema, device));
    let b = update(1, 3, vector(&[0.6, 2.4, 3.6], &schema, device));
    (global, vec![a, b])
}

/// A client that "trains" by adding noise from its task's seed, scaled by the number of rounds that it took part in:
/// cheap, deterministic, and different for every client, round, seed and history.
#[derive(Clone, Debug)]
pub struct EchoClient {
    info: ClientInfo,
    participations: u64,
}

impl EchoClient {
    /// A client with this many examples.
    pub fn new(id: ClientId, num_examples: u64) -> Self {
        Self { info: ClientInfo { id, num_examples }, participations: 0 }
    }
}

impl<B: Backend> Client<B> for EchoClient {
    fn info(&self) -> ClientInfo {
        self.info
    }

    fn train(&mut self, task: &TrainTask<B>) -> Result<LocalUpdate<B>, TrainError> {
        if self.info.num_examples == 0 {
            return Err(TrainError::NoData { client: self.info.id });
        }
        self.participations += 1;
        let mut rng = task.seed.rng();
        let scale = self.participations as f32;
        let values = task.global.to_host().into_iter().map(|v| v + scale * rng.random_range(-1.0f32..1.0)).collect();
        let schema = |source| TrainError::Schema { client: self.info.id, source };
        Ok(LocalUpdate {
            params: ParamVector::from_host(values, task.global.schema().clone(), &task.global.device())
                .map_err(schema)?,
            num_examples: self.info.num_examples,
            side: SideInfo::default(),
            report: ClientReport::default(),
            metrics: Metrics::new()
                .with(Metrics::TRAIN_LOSS, Mean::new(1.0 / f64::from(scale), self.info.num_examples as f64)),
        })
    }

    fn evaluate(&mut self, global: &ParamVector<B>) -> Result<Metrics, TrainError> {
        let sum: f64 = global.to_host().into_iter().map(f64::from).sum();
        Ok(Metrics::new().with(Metrics::LOSS, Mean::new(sum, self.info.num_examples as f64)))
    }

    fn state(&self) -> StateDict {
        let mut state = StateDict::new();
        state.insert_u64("participations", self.participations);
        state
    }

    fn restore(&mut self, mut state: StateDict) -> Result<(), StateError> {
        self.participations = state.take_u64("participations")?;
        state.expect_empty()
    }
}

/// Echo clients `0..n`; client `k` has `k % 7` examples, so some have none.
#[derive(Clone, Debug)]
pub struct EchoPopulation(Arc<[ClientInfo]>);

impl EchoPopulation {
    /// `n` clients.
    pub fn new(n: u64) -> Self {
        Self((0..n).map(|k| ClientInfo { id: ClientId(k), num_examples: k % 7 }).collect())
    }
}

impl<B: Backend> Population<B> for EchoPopulation {
    fn clients(&self) -> Arc<[ClientInfo]> {
        self.0.clone()
    }

    fn worker(&self) -> Box<dyn Worker<B>> {
        Box::new(self.clone())
    }
}

impl<B: Backend> Worker<B> for EchoPopulation {
    fn client(&mut self, id: ClientId) -> Result<Box<dyn Client<B> + '_>, TrainError> {
        match self.0.get(id.0 as usize) {
            Some(info) => Ok(Box::new(EchoClient::new(id, info.num_examples))),
            None => Err(TrainError::Unusable { client: id, reason: format!("there are {} clients", self.0.len()) }),
        }
    }
}
