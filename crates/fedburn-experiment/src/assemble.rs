//! From a config to the parts of a run. Everything that can be refused is refused here, before anything runs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fedburn::core::{
    Classifier, ClientInfo, ClientSampler, Codec, GeneratorFamily, ModelFamily, ParamSchema, ParamVector, Purpose,
    SchemaError, Schemas, Seed, SideInfo, Size, Strategy, SubModels, flatten, schema_of,
};
use fedburn::data::datasets::Dataset;
use fedburn::data::partition::Partition;
use fedburn::data::{ClientData, Examples, PartitionStatistics};
use fedburn::models::{FeatureGeneratorFamily, GeneratorConfig, ModelError, Zoo};
use fedburn::ops::Kernels;
use fedburn::runtime::{Attack, Availability, ReachableOnly, ServerError};
use fedburn::strategies::{
    FedDf, FedDfConfig, FedFtg, FedFtgConfig, FedGen, FedGenConfig, InclusiveFl, InclusiveFlConfig, Mixing,
    ServerModels, StrategyConfig, StrategyConfigError,
};
use fedburn::train::{
    ClientDataSource, ClientList, Heads, LabelFlipping, LocalData, LocalTraining, MemoryConfig, NamedPart,
    PersonalConfig, RuleConfig, StepMemory,
};

use crate::compatibility;
use crate::config::{ConfigError, ExperimentConfig};
use crate::initial_model::InitialModel;
use crate::library::{Divided, Library};

/// The parts that all seeds of an experiment share.
#[derive(Clone, Debug)]
pub struct Experiment {
    path: PathBuf,
    config: ExperimentConfig,
    dataset: Arc<Dataset>,
    /// What the server has, where it has examples.
    server_data: Option<Arc<Examples>>,
    zoo: Zoo,
    /// What the model begins with, where that is not random.
    initial: Option<InitialModel>,
    /// The recipe of the generator that the server sends, where it sends one.
    generator: Option<FeatureGeneratorFamily>,
    training: LocalTraining,
    mixing: Option<Mixing>,
    availability: Availability,
}

/// The parts of the run of one seed.
#[derive(Clone, Debug)]
pub struct Run {
    experiment: Experiment,
    seed: u64,
    partition: Partition,
    statistics: PartitionStatistics,
    clients: Arc<ClientList>,
    attack: Attack,
}

impl Experiment {
    /// Reads the data and checks every table of `config`, which came from `path`; `data_root` is where data sets are
    /// looked for.
    ///
    /// # Errors
    /// [`ConfigError::Value`] with the table, the field, its value and what was expected.
    pub fn new(path: &Path, config: ExperimentConfig, data_root: &Path) -> Result<Self, ConfigError> {
        Self::with_library(path, config, &mut Library::new(data_root))
    }

    /// [`Experiment::new`] with data that other experiments may have read already.
    ///
    /// # Errors
    /// As [`Experiment::new`].
    pub fn with_library(path: &Path, mut config: ExperimentConfig, library: &mut Library) -> Result<Self, ConfigError> {
        let refuse = |table, reason: String| ConfigError::Value { path: path.to_owned(), table, reason };
        config.server.check().map_err(|e| refuse("server", server_reason(&e)))?;
        config.early_stop.clone().unwrap_or_default().build().map_err(|e| refuse("early_stop", e.to_string()))?;
        let training = config.client.clone().build().map_err(|e| refuse("client", e.to_string()))?;
        let mixing = match &config.client.personal {
            Some(PersonalConfig::Mixing(mixing)) => {
                Some(Mixing::new(mixing.clone()).map_err(|e| refuse("client", e.to_string()))?)
            }
            _ => None,
        };
        let availability = config.availability.build().map_err(|e| refuse("availability", e.to_string()))?;
        let Divided { dataset, server: server_data } = library.data(path, &config)?;
        let (shape, classes) = (dataset.train.shape(), dataset.train.num_classes());
        let zoo = config.model.clone().build(shape, classes).map_err(|e| refuse("model", e.to_string()))?;
        let generator = match (uses_features(&config), zoo.features()) {
            (Some(what), None) => {
                let reason = format!("it is nothing but a head, and {what} features; expected another `kind`");
                return Err(refuse("model", reason));
            }
            (_, features) => generator(&config.strategy, features, classes),
        };
        let generator = generator.transpose().map_err(|e| refuse("strategy", e.to_string()))?;
        let initial = config.initial_model.as_mut().map(|initial| initial.read(path)).transpose();
        let initial = initial.map_err(|reason| refuse("initial_model", reason))?;
        let path = path.to_owned();
        Ok(Self { path, config, dataset, server_data, zoo, initial, generator, training, mixing, availability })
    }

    /// The config that the parts were made from, with what the initial model's file holds.
    pub fn config(&self) -> &ExperimentConfig {
        &self.config
    }

    /// The examples, those of the server apart.
    pub fn dataset(&self) -> &Dataset {
        &self.dataset
    }

    /// The model family.
    pub fn zoo(&self) -> &Zoo {
        &self.zoo
    }

    /// The recipe of the generator that the server sends, where it sends one.
    pub fn generator(&self) -> Option<&FeatureGeneratorFamily> {
        self.generator.as_ref()
    }

    /// What the vectors of a run with such a `model` look like: what its server and its nodes have to know.
    ///
    /// # Errors
    /// [`ConfigError::Value`] for parts that the model does not have.
    pub fn schemas<B: Kernels>(&self, model: Arc<ParamSchema>, device: &B::Device) -> Result<Schemas, ConfigError> {
        let refused = |e: SchemaError| self.refused("model", e.to_string());
        let with_part = |schemas: Schemas, (name, part)| schemas.with_slice(name, part).map_err(refused);
        let schemas = self.parts::<B>(device)?.into_iter().try_fold(Schemas::from(model), with_part)?;
        let Some(family) = &self.generator else { return Ok(schemas) };
        let generator =
            schema_of::<B, _>(&GeneratorFamily::<B>::init(family, Seed::new(0), device)).map_err(refused)?;
        Ok(schemas.with_side(SideInfo::<B>::GENERATOR, Arc::new(generator)))
    }

    /// The parts of the model that clients may be asked to train.
    ///
    /// # Errors
    /// [`ConfigError::Value`] for parts that the model does not have.
    pub fn parts<B: Kernels>(&self, device: &B::Device) -> Result<Vec<NamedPart>, ConfigError> {
        self.training
            .parts::<B, _>(&self.zoo, self.dataset.train.shape(), device)
            .map_err(|e| self.refused("client", e.to_string()))
    }

    /// How clients train.
    pub fn training(&self) -> &LocalTraining {
        &self.training
    }

    /// How clients mix their own models with the global one, where they do.
    pub fn mixing(&self) -> Option<&Mixing> {
        self.mixing.as_ref()
    }

    /// Splits the data for one seed and checks that strategy and sampler can be made.
    ///
    /// # Errors
    /// [`ConfigError::Value`].
    pub fn run(&self, seed: u64) -> Result<Run, ConfigError> {
        let refuse = |table, reason: String| ConfigError::Value { path: self.path.clone(), table, reason };
        let split = Seed::new(self.config.partition_seed.unwrap_or(seed)).purpose(Purpose::Partition);
        let (train, users) = (&self.dataset.train, self.dataset.user_ids.as_deref());
        let partition = self
            .config
            .partition
            .partition(train.labels(), users, split)
            .map_err(|e| refuse("partition", e.to_string()))?;
        let views = partition.client_data(train).map_err(|e| refuse("partition", e.to_string()))?;
        let holdout = self.config.evaluation.client_holdout;
        let seeds = split.index(0);
        let local = views.into_iter().enumerate().map(|(k, data)| match holdout {
            0.0 => LocalData::from(data),
            share => {
                let (train, held_out) = data.split_holdout(share, seeds.index(k as u64));
                LocalData { train, held_out: Some(held_out) }
            }
        });
        let clients = Arc::new(ClientList::new(local));
        let with_data = clients.clients().iter().filter(|client| client.num_examples > 0).count();
        compatibility::check(&self.config, with_data).map_err(|e| refuse(e.table, e.reason))?;
        let statistics = PartitionStatistics::new(&partition, train.labels(), train.num_classes())
            .map_err(|e| refuse("partition", e.to_string()))?;
        let attack = self
            .config
            .attack
            .build(&clients.clients(), Seed::new(seed))
            .map_err(|e| refuse("attack", e.to_string()))?;
        let run = Run { experiment: self.clone(), seed, partition, statistics, clients, attack };
        run.sampler().map_err(|e| refuse("sampler", e))?;
        Ok(run)
    }

    /// The strategy.
    ///
    /// # Errors
    /// [`ConfigError::Value`].
    pub fn strategy<B: Kernels>(&self) -> Result<Strategy<B>, ConfigError> {
        let refuse = |reason: String| ConfigError::Value { path: self.path.clone(), table: "strategy", reason };
        self.config.strategy.clone().build_with(self).map_err(|e| refuse(e.to_string()))
    }
}

impl Experiment {
    /// What a training step needs of memory of a model with a `share` of the channels; `None` where that is not made of
    /// blocks.
    ///
    /// # Errors
    /// [`ConfigError::Value`] where the model makes no schema.
    pub fn step_memory<B: Kernels>(&self, share: f64, device: &B::Device) -> Result<Option<StepMemory>, ConfigError> {
        let slim = if share < 1.0 { ModelFamily::<B>::slim(&self.zoo, share) } else { None };
        let model = ModelFamily::<B>::init(slim.as_ref().unwrap_or(&self.zoo), Seed::new(0), device);
        let memory = StepMemory::of::<B, _>(&model, self.dataset.train.shape(), &self.training);
        memory.map_err(|e| self.refused("model", e.to_string()))
    }

    /// Checks that of so many clients some have the memory to train, where their memory matters, and that the model has the
    /// parts that clients are to train.
    ///
    /// # Errors
    /// [`ConfigError::Value`] with the smallest budget that would do.
    pub fn check_memory<B: Kernels>(&self, device: &B::Device, clients: usize) -> Result<(), ConfigError> {
        if !self.parts::<B>(device)?.is_empty() {
            self.check_parts::<B>()?;
        }
        let RuleConfig::Depthwise(rule) = &self.config.client.rule else { return Ok(()) };
        if rule.resource_weight {
            self.check_weights::<B>()?;
        }
        let Some(memory) = self.step_memory::<B>(1.0, device)? else {
            let reason = "it is not made of blocks, and [client] rule `depthwise` trains block by block; expected \
                          preresnet20 or vit";
            return Err(self.refused("model", reason.to_owned()));
        };
        let budgets = rule.memory.groups_of(clients).map(|group| rule.memory.budget(group, memory.whole()));
        let most = budgets.max().unwrap_or_default();
        let refused = |error| self.refused("client", format!("`rule.depthwise.memory`: {error}"));
        let cut = memory.cut(most).map_err(refused)?;
        let head_is_trained = rule.heads == Heads::Shared || cut.parts.iter().any(|part| part.exit.is_none());
        // What the machines of clients have nobody knows before they are there.
        if head_is_trained || rule.memory == MemoryConfig::Machine {
            return Ok(());
        }
        let reason = format!(
            "`rule.depthwise.heads` is own, and the model's head, which predicts, would never be trained: that takes memory \
             for the whole model, {}, and no client has more than {}; expected a group with that much, for \
             example {{ shares = [0.5, 1.0] }}, or `heads = \"shared\"`",
            memory.whole(),
            most.rounded()
        );
        Err(self.refused("client", reason))
    }

    /// Checks that the rest of the config goes with clients that hold parts of the model.
    fn check_parts<B: Kernels>(&self) -> Result<(), ConfigError> {
        let strategy = self.strategy::<B>()?;
        let knows_sizes = matches!(self.config.strategy, StrategyConfig::InclusiveFl(_));
        if matches!(strategy, Strategy::PerClient(_)) && !knows_sizes {
            let reason = format!(
                "`{}` looks at single updates, and those of [client] `rule` are of parts of the model; expected a strategy \
                 that sees their mean, for example fedavg",
                strategy.name()
            );
            return Err(self.refused("strategy", reason));
        }
        let compression = &self.config.compression;
        let feedback = compression.error_feedback && !compression.up.is_lossless();
        if feedback && matches!(self.config.client.rule, RuleConfig::SplitMix(_)) {
            let reason = "`error_feedback` is of the part that a client trains, and [client] rule `split_mix` gives it \
                          another in each round; expected false";
            return Err(self.refused("compression", reason.to_owned()));
        }
        match compression.down {
            Codec::Int8 {} | Codec::Int4 {} => {
                let reason = "`down` goes by blocks of values, and [client] `rule` sends parts of the model; expected f32, \
                              f16 or bf16";
                Err(self.refused("compression", reason.to_owned()))
            }
            _ => Ok(()),
        }
    }

    /// Checks that the strategy has a mean in which clients may count more than once.
    fn check_weights<B: Kernels>(&self) -> Result<(), ConfigError> {
        let Strategy::PerClient(strategy) = self.strategy::<B>()? else { return Ok(()) };
        let reason = format!(
            "`rule.depthwise.resource_weight` is true, a factor of clients' weights in a mean, and [strategy] `{}` looks at \
             single updates; expected false, or a strategy that sees their mean, for example fedavg",
            strategy.name()
        );
        Err(self.refused("client", reason))
    }

    /// The error of a table of the file.
    pub(crate) fn refused(&self, table: &'static str, reason: String) -> ConfigError {
        ConfigError::Value { path: self.path.clone(), table, reason }
    }
}

/// What of `config` needs a model with features, in words.
fn uses_features(config: &ExperimentConfig) -> Option<&'static str> {
    let generates = |layer: &StrategyConfig| matches!(layer, StrategyConfig::FedGen(_));
    match config.client.rule {
        RuleConfig::Moon(_) => Some("[client] rule `moon` compares"),
        _ => config.strategy.layers().any(generates).then_some("[strategy] `fedgen` makes"),
    }
}

/// The generator that `strategy` sends to its clients.
fn generator(
    strategy: &StrategyConfig,
    features: Option<usize>,
    classes: usize,
) -> Option<Result<FeatureGeneratorFamily, ModelError>> {
    strategy.layers().find_map(|layer| match layer {
        StrategyConfig::FedGen(config) => {
            Some(FeatureGeneratorFamily::new(features?, classes, config.noise, config.hidden))
        }
        _ => None,
    })
}

impl<B: Kernels> ServerModels<B> for Experiment {
    fn fedftg(&self, config: FedFtgConfig, base: Strategy<B>) -> Result<Strategy<B>, StrategyConfigError> {
        if matches!(self.zoo, Zoo::CharLstm(_)) {
            let reason = "its inputs are symbols, which no generator makes; expected a model of pictures".to_owned();
            return Err(StrategyConfigError::Models { kind: "fedftg", reason });
        }
        let train = &self.dataset.train;
        let sizes = GeneratorConfig { noise: config.noise, width: config.width };
        let generator = sizes.build(train.shape(), train.num_classes());
        let reason = |e: ModelError| StrategyConfigError::Models { kind: "fedftg", reason: e.to_string() };
        let strategy = FedFtg::new(config, base, self.zoo.clone(), generator.map_err(reason)?)?;
        Ok(Strategy::PerClient(Box::new(strategy)))
    }

    fn fedgen(&self, config: FedGenConfig, base: Strategy<B>) -> Result<Strategy<B>, StrategyConfigError> {
        let missing = || StrategyConfigError::Models { kind: "fedgen", reason: "there is no generator".to_owned() };
        let generator = self.generator.clone().ok_or_else(missing)?;
        Ok(Strategy::PerClient(Box::new(FedGen::new(config, base, self.zoo.clone(), generator)?)))
    }

    fn feddf(&self, config: FedDfConfig, base: Strategy<B>) -> Result<Strategy<B>, StrategyConfigError> {
        let missing = || StrategyConfigError::Models {
            kind: "feddf",
            reason: "it learns from examples that the server has, and there are none; expected \
                     server_data = { share = 0.1 }, or another share of the training examples"
                .to_owned(),
        };
        let examples = self.server_data.as_ref().ok_or_else(missing)?;
        // The inputs alone: labels are not the strategy's to see.
        Ok(Strategy::PerClient(Box::new(FedDf::new(config, base, self.zoo.clone(), examples.inputs())?)))
    }

    fn inclusive_fl(&self, config: InclusiveFlConfig) -> Result<Strategy<B>, StrategyConfigError> {
        let model = ModelFamily::<B>::init(&self.zoo, Seed::new(0), &B::Device::default());
        // Nested members, as the client half checks.
        let sizes = model.ensemble().map(Size::all).unwrap_or_default();
        Ok(Strategy::PerClient(Box::new(InclusiveFl::new(config, sizes)?)))
    }
}

/// The message of a refused `[server]` field, without the table's name, which is told anyway.
fn server_reason(error: &ServerError) -> String {
    match error {
        ServerError::Config { field, value, expected } => format!("`{field}` is {value}, expected {expected}"),
        other => other.to_string(),
    }
}

impl Run {
    /// What all seeds share.
    pub fn experiment(&self) -> &Experiment {
        &self.experiment
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The root of the run's seed tree.
    pub fn seeds(&self) -> Seed {
        Seed::new(self.seed)
    }

    /// The vector that the run begins with.
    ///
    /// # Errors
    /// [`ConfigError::Value`] where the model makes no vector, or the file to begin with is not one of this model.
    pub fn initial<B: Kernels>(&self, device: &B::Device) -> Result<ParamVector<B>, ConfigError> {
        let Experiment { zoo, initial, .. } = &self.experiment;
        let random = ModelFamily::<B>::init(zoo, self.seeds().purpose(Purpose::Initialisation), device);
        let random = flatten(&random).map_err(|e| self.experiment.refused("model", e.to_string()))?;
        match initial {
            Some(initial) => initial.over(&random).map_err(|reason| self.experiment.refused("initial_model", reason)),
            None => Ok(random),
        }
    }

    /// Who holds which examples.
    pub fn partition(&self) -> &Partition {
        &self.partition
    }

    /// How different the clients' data are.
    pub fn statistics(&self) -> &PartitionStatistics {
        &self.statistics
    }

    /// The clients' examples with their true labels.
    pub fn clients(&self) -> &Arc<ClientList> {
        &self.clients
    }

    /// What clients train on: label-flipping attackers have wrong labels.
    pub fn training_data(&self) -> Arc<dyn ClientDataSource> {
        match self.attack.flips_labels() {
            true => Arc::new(LabelFlipping::new(self.clients.clone(), self.attack.attackers().clone())),
            false => self.clients.clone(),
        }
    }

    /// Who attacks, and how.
    pub fn attack(&self) -> &Attack {
        &self.attack
    }

    /// Who fails when.
    pub fn availability(&self) -> Availability {
        self.experiment.availability
    }

    /// Which client holds which part of the model and how much of it counts, `parts` being those of [`Experiment::parts`]
    /// and `model` the schema of the whole; `None` where each holds all of it and counts once.
    ///
    /// # Errors
    /// [`ConfigError::Value`] where a client's examples cannot be had.
    pub fn sub_models(
        &self,
        parts: &[NamedPart],
        model: &ParamSchema,
    ) -> Result<Option<Arc<dyn SubModels>>, ConfigError> {
        let training = self.experiment.training.clone().among(self.clients.clients().len());
        let sub_models = training.sub_models(parts, self.seeds().purpose(Purpose::Sampling));
        let Some(sub_models) = sub_models else { return Ok(None) };
        if !training.goes_by_classes() {
            return Ok(Some(sub_models));
        }
        let data = self.training_data();
        let present = |client: &ClientInfo| {
            let local = data.local_data(client.id).map_err(|e| self.experiment.refused("data", e.to_string()))?;
            Ok((client.id, local.train.class_counts().into_iter().map(|count| count > 0).collect()))
        };
        let present = self.clients.clients().iter().map(present).collect::<Result<BTreeMap<_, _>, ConfigError>>()?;
        Ok(Some(training.without_absent(sub_models, parts, model, &present)))
    }

    /// All examples that some client trains on: what centralised training may use.
    ///
    /// # Errors
    /// The reason, where the parts of the partition do not fit the data.
    pub fn pooled(&self) -> Result<ClientData, String> {
        let mut indices = Vec::new();
        for info in self.clients.clients().iter() {
            indices.extend_from_slice(self.clients.local_data(info.id).map_err(|e| e.to_string())?.train.indices());
        }
        indices.sort_unstable();
        ClientData::new(self.experiment.dataset.train.clone(), indices).map_err(|e| e.to_string())
    }

    /// The sampler, which sees only the clients that can be reached.
    ///
    /// # Errors
    /// The reason, where the population cannot give what the config asks.
    pub fn sampler(&self) -> Result<Box<dyn ClientSampler>, String> {
        let sampler =
            self.experiment.config.sampler.clone().build(&self.clients.clients()).map_err(|e| e.to_string())?;
        Ok(Box::new(ReachableOnly::new(sampler, self.availability(), self.seeds())))
    }
}
