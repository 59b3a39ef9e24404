//! The client half: local training rules and evaluation.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod central;
mod config;
mod error;
mod evaluate;
mod gradients;
mod population;
mod resident;
mod rules;
mod schedule;
mod sgd;
mod supervised_client;

pub use central::{CentralEpoch, CentralTraining};
pub use config::{LocalTraining, LocalTrainingConfig, RuleConfig};
pub use error::{CentralError, Diverged, TrainingConfigError};
pub use evaluate::{ClassifierEvaluator, evaluate_classifier};
pub use gradients::global_norm;
pub use population::{ClientDataSource, ClientList, SupervisedPopulation};
pub use resident::ResidentModel;
pub use rules::{
    BatchGradients, CrossEntropy, Descent, GradientRule, LocalRule, LocalRun, LocalSgd, TrainModel, Trained,
    cross_entropy, descend,
};
pub use schedule::ScheduleConfig;
pub use sgd::{Sgd, SgdConfig};
pub use supervised_client::{LocalData, SupervisedClient};
