//! A client that trains a classifier on its own labelled examples.

use std::borrow::BorrowMut;
use std::marker::PhantomData;
use std::sync::Arc;

use burn::tensor::backend::Backend;
use fedburn_core::{
    Client, ClientId, ClientInfo, ClientReport, LocalUpdate, Mean, Metrics, ModelFamily, ParamVector, SchemaError,
    StateDict, StateError, TrainError, TrainTask, flatten,
};
use fedburn_data::ClientData;

use crate::{Diverged, LocalRule, LocalRun, LocalTraining, ResidentModel, evaluate_classifier};

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
    family: PhantomData<fn() -> F>,
}

impl<B: Backend, F: ModelFamily<B>, R: BorrowMut<ResidentModel<B, F>> + Send> SupervisedClient<B, F, R> {
    /// Examples in one forward pass of [`Client::evaluate`].
    const EVALUATION_BATCH: usize = 256;

    /// A client that follows the rule of `training`.
    pub fn new(id: ClientId, data: LocalData, training: Arc<LocalTraining>, resident: R) -> Self {
        let rule = training.rule();
        Self { id, data, training, rule, resident, family: PhantomData }
    }

    /// The same client with a rule of your own.
    #[must_use]
    pub fn with_rule(mut self, rule: Box<dyn LocalRule<B, F::TrainModel>>) -> Self {
        self.rule = rule;
        self
    }

    fn schema_error(&self, source: SchemaError) -> TrainError {
        TrainError::Schema { client: self.id, source }
    }
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
        let data = &self.data.train;
        if data.is_empty() {
            return Err(TrainError::NoData { client: self.id });
        }
        let model = self.resident.borrow_mut().load(&task.global).map_err(|e| self.schema_error(e))?;
        let device = self.resident.borrow().device().clone();
        let run = LocalRun { client: self.id, task, data, training: &self.training, device: &device };
        // A rule changes its state in `train`; a result that is refused below must not leave it changed.
        let before = self.rule.state();
        let trained = self.rule.train(model, &run)?;
        let model = self.resident.borrow_mut().keep(trained.model);
        let params = flatten(&model).and_then(|flat| task.global.with_values(flat.into_values()));
        let params = params.map_err(|e| self.schema_error(e))?;
        if !params.is_finite() {
            let diverged = run.diverged(Diverged { step: trained.steps.saturating_sub(1) });
            self.rule.restore(before).map_err(|source| TrainError::State { client: self.id, source })?;
            return Err(diverged);
        }
        let num_examples = data.len() as u64;
        let loss = trained.loss.value().map(|loss| Mean::new(loss, num_examples as f64));
        Ok(LocalUpdate {
            params,
            num_examples,
            side: trained.side,
            report: ClientReport {
                class_counts: task.reports.class_counts.then(|| data.class_counts()),
                accumulation: task.reports.accumulation.then_some(trained.accumulation),
                steps: task.reports.steps.then_some(trained.steps as u64),
            },
            metrics: loss.into_iter().fold(Metrics::new(), |all, loss| all.with(Metrics::TRAIN_LOSS, loss)),
        })
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
