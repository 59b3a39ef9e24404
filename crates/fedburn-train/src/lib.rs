//! The client half: local training rules and evaluation.
//!
//! A [`LocalTrainingConfig`] says how a client trains. A [`SupervisedPopulation`] makes clients on demand from a
//! [`ClientDataSource`]; its workers each hold one [`ResidentModel`] that stands in for every client. Training is one
//! loop, [`descend`]: an algorithm changes the gradient of a step as a [`GradientRule`], or surrounds whole runs as a
//! [`LocalRule`]. [`ClassifierEvaluator`] measures global models, [`CentralTraining`] is the baseline on pooled data.
//!
//! # Examples
//!
//! One client trains for one round:
//!
//! ```
//! use std::sync::Arc;
//! use burn_flex::{Flex, FlexDevice};
//! use fedburn_core::{
//!     ClassId, ClientId, Metrics, ModelFamily, Population, Reports, RoundIndex, Seed, SideInfo, TrainTask, flatten,
//! };
//! use fedburn_data::{ClientData, Examples, Inputs};
//! use fedburn_models::ZooConfig;
//! use fedburn_train::{ClientList, LocalTrainingConfig, SupervisedPopulation};
//!
//! let inputs = Inputs::F32((0..20).map(|i| i as f32 / 10.0).collect());
//! let labels = (0..20).map(|i| ClassId(i / 10)).collect();
//! let examples = Arc::new(Examples::new(inputs, [1, 1, 1], labels, 2)?);
//! let clients: ClientList = [ClientData::new(examples.clone(), vec![0, 5, 12])?, ClientData::all(examples)]
//!     .into_iter()
//!     .collect();
//!
//! let family = ZooConfig::Softmax {}.build([1, 1, 1], 2)?;
//! let global = flatten::<Flex, _>(&family.init(Seed::new(0), &FlexDevice))?;
//! let training = LocalTrainingConfig::sgd(3, 4, 0.1).build()?;
//! let population = SupervisedPopulation::<Flex, _>::new(Arc::new(clients), family, training, FlexDevice);
//!
//! let task = TrainTask {
//!     round: RoundIndex(1),
//!     global,
//!     slice: Vec::new(),
//!     seed: Seed::new(1),
//!     side: SideInfo::default(),
//!     reports: Reports::default(),
//!     compression: Default::default(),
//! };
//! let update = population.worker().client(ClientId(1))?.train(&task)?;
//! assert_eq!(update.num_examples, 20);
//! assert!(update.metrics.get(Metrics::TRAIN_LOSS).is_some());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod central;
mod config;
mod depth;
mod error;
mod evaluate;
mod gradients;
mod label_flipping;
mod memory_log;
mod parts;
mod population;
mod resident;
mod rules;
mod schedule;
mod sgd;
mod sharpness;
mod supervised_client;

pub use central::{CentralEpoch, CentralTraining};
pub use config::{LocalTraining, LocalTrainingConfig, RuleConfig};
pub use depth::{Bytes, BytesError, Cut, MemoryConfig, Part, StepMemory, TooLittleMemory};
pub use error::{CentralError, Diverged, TrainingConfigError};
pub use evaluate::{ClassifierEvaluator, evaluate_classifier};
pub use gradients::global_norm;
pub use label_flipping::LabelFlipping;
pub use memory_log::{MemoryLog, MemoryMeasurement, MemoryReading, PlannedMemory};
pub use parts::NamedPart;
pub use population::{ClientDataSource, ClientList, SupervisedPopulation};
pub use resident::ResidentModel;
pub use rules::{
    Absent, Adaptation, Apfl, ApflConfig, BatchGradients, ControlOption, CrossEntropy, DepthFlConfig, DepthwiseConfig,
    Descent, Ditto, DittoConfig, FedBn, FedBnConfig, FedDynRuleConfig, FedGenRuleConfig, FedRep, FedRepConfig,
    GradientRule, Heads, HeteroFlConfig, InclusiveFlRuleConfig, LocalDepthFl, LocalDepthwise, LocalFedDyn, LocalFedGen,
    LocalHeteroFl, LocalInclusiveFl, LocalMoon, LocalNtd, LocalProximal, LocalRule, LocalRun, LocalScaffold, LocalSgd,
    LocalSplitMix, MaskedCrossEntropy, ModelContrast, MoonConfig, NotTrueDistillation, NtdConfig, PFedMe, PFedMeConfig,
    PersonalConfig, Proximal, ProximalConfig, ScaffoldRuleConfig, Sharpened, SharpnessAwareConfig, SplitMixConfig,
    TrainModel, Trained, cross_entropy, descend, edit_gradients,
};
pub use schedule::ScheduleConfig;
pub use sgd::{Sgd, SgdConfig};
pub use sharpness::{LossAt, Sharpness, SharpnessConfig, SharpnessEvaluator};
pub use supervised_client::{LocalData, SupervisedClient};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
