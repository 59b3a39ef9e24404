//! A simulated population whose clients share one way of training.

use std::sync::Arc;

use burn::tensor::backend::Backend;
use fedburn_core::{Client, ClientId, ClientInfo, ModelFamily, Population, ResamplingClient, TrainError, Worker};
use fedburn_data::ClientData;

use crate::{LocalData, LocalRule, LocalTraining, MemoryLog, ResidentModel, SupervisedClient};

/// Where clients' examples come from. Asked only for clients that train or evaluate, so that a population may be far
/// larger than what fits into memory.
pub trait ClientDataSource: Send + Sync {
    /// Every client, sorted by id, without repeats; `num_examples` counts training examples.
    fn clients(&self) -> Arc<[ClientInfo]>;

    /// The examples of one client.
    ///
    /// # Errors
    /// [`TrainError::Unusable`] where there is no such client or its data cannot be had.
    fn local_data(&self, id: ClientId) -> Result<LocalData, TrainError>;
}

/// Clients numbered from 0, their views held in memory.
#[derive(Clone, Debug)]
pub struct ClientList {
    clients: Arc<[ClientInfo]>,
    data: Vec<LocalData>,
}

impl ClientList {
    /// The client `i` has the `i`-th item.
    pub fn new(data: impl IntoIterator<Item = LocalData>) -> Self {
        let data: Vec<_> = data.into_iter().collect();
        let info =
            |(i, d): (usize, &LocalData)| ClientInfo { id: ClientId(i as u64), num_examples: d.train.len() as u64 };
        Self { clients: data.iter().enumerate().map(info).collect(), data }
    }
}

impl FromIterator<ClientData> for ClientList {
    fn from_iter<I: IntoIterator<Item = ClientData>>(views: I) -> Self {
        Self::new(views.into_iter().map(LocalData::from))
    }
}

impl ClientDataSource for ClientList {
    fn clients(&self) -> Arc<[ClientInfo]> {
        self.clients.clone()
    }

    fn local_data(&self, id: ClientId) -> Result<LocalData, TrainError> {
        let data = usize::try_from(id.0).ok().and_then(|index| self.data.get(index));
        data.cloned().ok_or_else(|| TrainError::Unusable {
            client: id,
            reason: format!("no such client, the population has {}", self.data.len()),
        })
    }
}

/// Makes the rule of one client, without state.
type NewRule<B, M> = Arc<dyn Fn() -> Box<dyn LocalRule<B, M>> + Send + Sync>;

/// Puts something around a client: an attack, a personal model.
type Wrapper<B> = Arc<dyn for<'a> Fn(Box<dyn ResamplingClient<B> + 'a>) -> Box<dyn Client<B> + 'a> + Send + Sync>;

/// All clients of a simulation: one model family, one way of training, data on demand. Costs what its source costs,
/// and one model for each worker.
pub struct SupervisedPopulation<B: Backend, F: ModelFamily<B>> {
    source: Arc<dyn ClientDataSource>,
    family: F,
    training: Arc<LocalTraining>,
    rule: NewRule<B, F::TrainModel>,
    wrapper: Wrapper<B>,
    memory: Option<Arc<MemoryLog>>,
    device: B::Device,
}

impl<B: Backend, F: ModelFamily<B>> SupervisedPopulation<B, F> {
    /// Clients with the data of `source` that train models of `family` on `device` by the rule of `training`.
    pub fn new(source: Arc<dyn ClientDataSource>, family: F, training: LocalTraining, device: B::Device) -> Self {
        let training = Arc::new(training.among(source.clients().len()));
        let settings = training.clone();
        let (rule, wrapper) = (Arc::new(move || settings.rule()), Arc::new(unwrapped));
        Self { source, family, training, rule, wrapper, memory: None, device }
    }

    /// The same population with a rule of your own; `rule` is called for each client that is built.
    #[must_use]
    pub fn with_rule(
        mut self,
        rule: impl Fn() -> Box<dyn LocalRule<B, F::TrainModel>> + Send + Sync + 'static,
    ) -> Self {
        self.rule = Arc::new(rule);
        self
    }

    /// The same population with something around each client, in place of an earlier wrapper; `wrapper` is called for
    /// each client that is built. Several wrappers are one that applies them from the inside out.
    #[must_use]
    pub fn with_wrapper(
        mut self,
        wrapper: impl for<'a> Fn(Box<dyn ResamplingClient<B> + 'a>) -> Box<dyn Client<B> + 'a> + Send + Sync + 'static,
    ) -> Self {
        self.wrapper = Arc::new(wrapper);
        self
    }

    /// The same population, which records what its clients' training holds of memory.
    #[must_use]
    pub fn with_memory_log(mut self, log: Arc<MemoryLog>) -> Self {
        self.memory = Some(log);
        self
    }
}

fn unwrapped<'a, B: Backend>(client: Box<dyn ResamplingClient<B> + 'a>) -> Box<dyn Client<B> + 'a> {
    client
}

impl<B: Backend, F: ModelFamily<B>> Population<B> for SupervisedPopulation<B, F> {
    fn clients(&self) -> Arc<[ClientInfo]> {
        self.source.clients()
    }

    fn worker(&self) -> Box<dyn Worker<B>> {
        Box::new(SupervisedWorker {
            source: self.source.clone(),
            training: self.training.clone(),
            rule: self.rule.clone(),
            wrapper: self.wrapper.clone(),
            memory: self.memory.clone(),
            resident: ResidentModel::new(self.family.clone(), self.device.clone()),
        })
    }
}

struct SupervisedWorker<B: Backend, F: ModelFamily<B>> {
    source: Arc<dyn ClientDataSource>,
    training: Arc<LocalTraining>,
    rule: NewRule<B, F::TrainModel>,
    wrapper: Wrapper<B>,
    memory: Option<Arc<MemoryLog>>,
    resident: ResidentModel<B, F>,
}

impl<B: Backend, F: ModelFamily<B>> Worker<B> for SupervisedWorker<B, F> {
    fn client(&mut self, id: ClientId) -> Result<Box<dyn Client<B> + '_>, TrainError> {
        let data = self.source.local_data(id)?;
        let client = SupervisedClient::<B, F, _>::new(id, data, self.training.clone(), &mut self.resident);
        let client = client.with_rule((self.rule)());
        Ok((self.wrapper)(Box::new(match &self.memory {
            Some(log) => client.with_memory_log(log.clone()),
            None => client,
        })))
    }
}
