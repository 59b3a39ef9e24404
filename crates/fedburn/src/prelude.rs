//! What a federation of one's own usually needs.

pub use fedburn_core::{
    Aggregate, AggregateError, Classifier, Client, ClientId, ClientInfo, ClientSampler, Evaluator, Event, LocalUpdate,
    MeanStrategy, Metrics, Mode, ModelFamily, Observer, ParamVector, PerClientStrategy, Population, Purpose, Round,
    RoundIndex, RoundMean, Seed, ServerTransport, StopReason, Strategy, TrainTask, UpdateSet, flatten, load,
};
pub use fedburn_data::{Batch, ClientData, Examples};
pub use fedburn_runtime::{RunSummary, Server, ServerConfig};
pub use fedburn_strategies::{FedAvg, FedAvgConfig, StrategyConfig};
pub use fedburn_train::{ClassifierEvaluator, ClientList, LocalTrainingConfig, SupervisedPopulation};
pub use fedburn_transport::InProcess;
