//! What a federation is measured against: training on the pooled data, and every client alone.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use burn::tensor::backend::Backend;
use fedburn::core::{
    ClientInfo, EvaluateError, Evaluator, Metrics, ModelFamily, ParamVector, Purpose, Seed, TrainError,
};
use fedburn::data::ClientData;
use fedburn::train::{CentralError, CentralTraining, ClassifierEvaluator, ClientDataSource, LocalData, LocalTraining};
use thiserror::Error;

use crate::results::{BaselinePoint, LocalOnly};

/// A baseline that could not be trained.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BaselineError {
    /// Training failed.
    #[error("{what}: {source}")]
    Training {
        /// Which baseline.
        what: String,
        /// Why.
        source: CentralError,
    },
    /// The model could not be measured.
    #[error("{what}: {source}")]
    Evaluation {
        /// Which baseline.
        what: String,
        /// Why.
        source: EvaluateError,
    },
    /// A client's data could not be had.
    #[error("client data: {source}")]
    Data {
        /// Why.
        #[from]
        source: TrainError,
    },
}

/// How baselines train and on what they are measured.
#[derive(Clone, Debug)]
pub struct Baseline<B: Backend, F: ModelFamily<B>> {
    /// The model.
    pub family: F,
    /// Batch size, optimiser and schedule, which are the clients'; the schedule counts epochs.
    pub training: LocalTraining,
    /// The weights to start from, which are the federation's.
    pub initial: ParamVector<B>,
    /// The server's held-out examples.
    pub test: ClientData,
    /// The root of the run's seed tree.
    pub run: Seed,
}

impl<B: Backend, F: ModelFamily<B>> Baseline<B, F> {
    /// Trains on `pooled` and measures after every epoch; `on_epoch` sees each point.
    ///
    /// # Errors
    /// [`BaselineError`].
    pub fn centralised(
        &self,
        pooled: &ClientData,
        epochs: usize,
        mut on_epoch: impl FnMut(&BaselinePoint),
    ) -> Result<Vec<BaselinePoint>, BaselineError> {
        let what = || "centralised training".to_owned();
        let mut evaluator = self.evaluator();
        let (mut points, mut failed) = (Vec::new(), None);
        let seed = self.run.purpose(Purpose::Baseline).index(0);
        self.central()
            .run(&self.initial, pooled, epochs as u64, seed, |epoch| match evaluator.evaluate(epoch.params) {
                Ok(metrics) => {
                    let [loss, accuracy] = [Metrics::LOSS, Metrics::ACCURACY].map(|name| metrics.get(name));
                    let point = BaselinePoint { epoch: epoch.epoch, loss, accuracy };
                    on_epoch(&point);
                    points.push(point);
                    ControlFlow::Continue(())
                }
                Err(source) => {
                    failed = Some(source);
                    ControlFlow::Break(())
                }
            })
            .map_err(|source| BaselineError::Training { what: what(), source })?;
        match failed {
            Some(source) => Err(BaselineError::Evaluation { what: what(), source }),
            None => Ok(points),
        }
    }

    /// Trains every client alone on its own examples and measures it on the server's; `workers` threads. `on_client`
    /// is called after each, in any order.
    ///
    /// # Errors
    /// [`BaselineError`] of the first client, by number, that failed.
    pub fn local_only(
        &self,
        source: &dyn ClientDataSource,
        epochs: usize,
        workers: usize,
        on_client: impl Fn() + Sync,
    ) -> Result<Vec<LocalOnly>, BaselineError> {
        let clients: Vec<_> = source.clients().iter().copied().filter(|c| c.num_examples > 0).collect();
        let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(clients.len())));
        std::thread::scope(|scope| {
            for _ in 0..workers.clamp(1, clients.len().max(1)) {
                scope.spawn(|| {
                    let (mut central, mut evaluator) = (self.central(), self.evaluator());
                    while let Some(client) = clients.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let result = self.one_alone(&mut central, &mut evaluator, source, client, epochs);
                        done.lock().unwrap_or_else(PoisonError::into_inner).push((client.id, result));
                        on_client();
                    }
                });
            }
        });
        let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        done.sort_by_key(|(id, _)| *id);
        done.into_iter().map(|(_, result)| result).collect()
    }

    fn one_alone(
        &self,
        central: &mut CentralTraining<B, F>,
        evaluator: &mut ClassifierEvaluator<B, F>,
        source: &dyn ClientDataSource,
        client: &ClientInfo,
        epochs: usize,
    ) -> Result<LocalOnly, BaselineError> {
        let what = || format!("client {} alone", client.id);
        let LocalData { train: data, held_out } = source.local_data(client.id)?;
        let seed = self.run.purpose(Purpose::Baseline).index(1).client(client.id);
        let params = central
            .run(&self.initial, &data, epochs as u64, seed, |_| ControlFlow::Continue(()))
            .map_err(|source| BaselineError::Training { what: what(), source })?;
        let metrics =
            evaluator.evaluate(&params).map_err(|source| BaselineError::Evaluation { what: what(), source })?;
        let [loss, accuracy] = [Metrics::LOSS, Metrics::ACCURACY].map(|name| metrics.get(name));
        let own_data = held_out.filter(|data| !data.is_empty()).unwrap_or(data);
        let mut own = ClassifierEvaluator::new(self.family.clone(), own_data, self.initial.device());
        let own = own.evaluate(&params).map_err(|source| BaselineError::Evaluation { what: what(), source })?;
        let own_accuracy = own.get(Metrics::ACCURACY);
        Ok(LocalOnly { client: client.id.0, num_examples: client.num_examples, accuracy, loss, own_accuracy })
    }

    fn central(&self) -> CentralTraining<B, F> {
        CentralTraining::new(self.family.clone(), self.training.clone(), self.initial.device())
    }

    fn evaluator(&self) -> ClassifierEvaluator<B, F> {
        ClassifierEvaluator::new(self.family.clone(), self.test.clone(), self.initial.device())
    }
}
