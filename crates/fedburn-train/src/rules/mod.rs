//! Local rules: what a client does between receiving the global model and sending its own.
//!
//! There is one training loop, [`descend`]. An algorithm that only changes the gradient of a step (proximal terms,
//! control variates, sharpness-aware steps, extra losses) is a [`GradientRule`] given to that loop; one that also keeps
//! state across rounds, sends something besides the model or trains in stages is a [`LocalRule`] around it.

mod depth_fl;
mod depthwise;
mod descent;
mod feddyn;
mod fedgen;
mod flat;
mod heterofl;
mod inclusive_fl;
mod kept;
mod members;
mod moon;
mod ntd;
mod personal;
mod proximal;
mod scaffold;
mod sgd;
mod sharpness;
mod shifted;
mod split_mix;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::backend::Backend;
use fedburn_core::{
    Classifier, ClientId, Mean, ParamVector, SchemaError, SideInfo, StateDict, StateError, TrainError, TrainTask,
};
use fedburn_data::{Batches, ClientData};

pub(crate) use depth_fl::Depths;
pub use depth_fl::{DepthFlConfig, LocalDepthFl};
pub(crate) use depthwise::Budgets;
pub use depthwise::{DepthwiseConfig, Heads, LocalDepthwise};
pub use descent::{BatchGradients, CrossEntropy, Descent, GradientRule, cross_entropy, descend};
pub use feddyn::{FedDynRuleConfig, LocalFedDyn};
pub(crate) use fedgen::WithoutGenerator;
pub use fedgen::{FedGenRuleConfig, LocalFedGen};
pub use flat::edit_gradients;
pub use heterofl::{Absent, HeteroFlConfig, LocalHeteroFl, MaskedCrossEntropy};
pub(crate) use heterofl::{SharesOfWidth, WithoutAbsent, rows_of_absent};
pub use inclusive_fl::{InclusiveFlRuleConfig, LocalInclusiveFl};
pub(crate) use inclusive_fl::{SizesOfGroups, size_name};
pub(crate) use kept::Kept;
pub(crate) use members::member_name;
pub use moon::{LocalMoon, ModelContrast, MoonConfig};
pub use ntd::{LocalNtd, NotTrueDistillation, NtdConfig};
pub use personal::{
    Adaptation, Apfl, ApflConfig, Ditto, DittoConfig, FedBn, FedBnConfig, FedRep, FedRepConfig, PFedMe, PFedMeConfig,
    PersonalConfig,
};
pub use proximal::{LocalProximal, Proximal, ProximalConfig};
pub use scaffold::{ControlOption, LocalScaffold, ScaffoldRuleConfig};
pub use sgd::LocalSgd;
pub use sharpness::{Sharpened, SharpnessAwareConfig};
pub(crate) use split_mix::NetCycle;
pub use split_mix::{LocalSplitMix, SplitMixConfig};

use crate::{Diverged, LocalTraining, MemoryMeasurement};

/// A model that can be trained here: a classifier on `Autodiff<B>` whose inner module is one on `B`. Implemented for
/// every such type.
pub trait TrainModel<B: Backend>:
    Classifier<Autodiff<B>> + AutodiffModule<Autodiff<B>, InnerModule: Classifier<B>>
{
}

impl<B, M> TrainModel<B> for M
where
    B: Backend,
    M: Classifier<Autodiff<B>> + AutodiffModule<Autodiff<B>, InnerModule: Classifier<B>>,
{
}

/// The client half of an algorithm: one local training run from the global model. It belongs to one client.
///
/// # Laws
/// `train` is a function of the model, the run and the saved state. State changes only in a `train` that succeeds.
pub trait LocalRule<B: Backend, M: TrainModel<B>>: Send {
    /// Trains `model`, which holds the global parameters, on the run's data.
    ///
    /// # Errors
    /// [`TrainError`]; the model is then lost.
    fn train(&mut self, model: M, run: &LocalRun<'_, B>) -> Result<Trained<B, M>, TrainError>;

    /// The parameters that the client would use after receiving `global`: the global ones, or those of a personal model
    /// kept in the rule's state. The global ones by default.
    ///
    /// # Errors
    /// [`SchemaError`] where `global` is of another model than the state.
    fn deployed(&self, global: &ParamVector<B>) -> Result<ParamVector<B>, SchemaError> {
        Ok(global.clone())
    }

    /// What must survive until the client is next sampled: control variates, a model of its own. Nothing by default.
    fn state(&self) -> StateDict {
        StateDict::default()
    }

    /// Takes back what [`LocalRule::state`] gave.
    ///
    /// # Errors
    /// [`StateError`] where the state is not this rule's.
    fn restore(&mut self, state: StateDict) -> Result<(), StateError> {
        state.expect_empty()
    }
}

/// All that a rule may know of one local training run.
#[derive(Clone, Copy, Debug)]
pub struct LocalRun<'a, B: Backend> {
    /// Whose run it is.
    pub client: ClientId,
    /// The request: round, global vector, seed, side information.
    pub task: &'a TrainTask<B>,
    /// The client's training examples, at least one.
    pub data: &'a ClientData,
    /// The settings.
    pub training: &'a LocalTraining,
    /// Where the model is.
    pub device: &'a B::Device,
    /// What memory the run takes, where somebody wants to know; a rule that trains in parts says where one ends.
    pub memory: Option<&'a MemoryMeasurement>,
}

impl<'a, B: Backend> LocalRun<'a, B> {
    /// The mini-batches of the run, in an order drawn from `task.seed.index(0)`; other indices are free for noise.
    pub fn batches(&self) -> Batches<'a, B> {
        self.training.batches(self.data, self.task.seed.index(0), self.device)
    }

    /// The round's learning rate `r`: the client's own `r_0`, moved to `(1 - tau) r_0 + tau r_1` where the server sent
    /// [`SideInfo::RATE_BLEND`] `tau` and [`SideInfo::RATE_TARGET`] `r_1`.
    pub fn learning_rate(&self) -> f64 {
        let own = self.training.learning_rate(self.task.round);
        let sent = |name: &str| self.task.side.scalars.get(name).copied();
        match (sent(SideInfo::<B>::RATE_BLEND), sent(SideInfo::<B>::RATE_TARGET)) {
            (Some(tau), Some(target)) => (1.0 - tau) * own + tau * target,
            _ => own,
        }
    }

    /// The whole run: a step of the settings' optimiser for each batch, with the gradients that `rule` makes of it.
    ///
    /// # Errors
    /// [`TrainError::NonFinite`] where the loss became NaN or infinite.
    pub fn descend<M: TrainModel<B>>(
        &self,
        model: M,
        rule: &mut impl GradientRule<B, M>,
    ) -> Result<Trained<B, M>, TrainError> {
        let mut optimiser = self.training.optimiser();
        let Descent { model, loss, steps } =
            descend(model, self.batches(), rule, &mut optimiser, self.learning_rate()).map_err(|e| self.diverged(e))?;
        Ok(Trained { model, loss, steps, accumulation: self.accumulation(steps, 0.0), side: SideInfo::default() })
    }

    /// The 1-norm of the accumulation vector of `steps` steps with momentum `rho` and a proximal term `mu`: how many
    /// plain gradients they add up to. `c <- rho c + 1; a <- (1 - lr mu) a + c` for each step, from zero.
    ///
    /// Wang, Liu, Liang, Joshi and Poor, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated
    /// Optimization", NeurIPS 2020, arXiv:2007.07481.
    pub fn accumulation(&self, steps: usize, mu: f64) -> f64 {
        let (momentum, shrink) = (self.training.config().momentum, 1.0 - self.learning_rate() * mu);
        let step = |(a, c): (f64, f64), _| {
            let c = momentum * c + 1.0;
            (shrink * a + c, c)
        };
        (0..steps).fold((0.0, 0.0), step).0
    }

    /// The error of a vector that is not of the run's model.
    pub fn schema_error(&self, source: SchemaError) -> TrainError {
        TrainError::Schema { client: self.client, source }
    }

    /// The error of saved state that cannot be used.
    pub fn state_error(&self, source: StateError) -> TrainError {
        TrainError::State { client: self.client, source }
    }

    /// The error of a run that diverged.
    pub fn diverged(&self, source: Diverged) -> TrainError {
        TrainError::NonFinite { client: self.client, round: self.task.round, step: source.step }
    }
}

/// The outcome of a local run.
#[derive(Debug)]
pub struct Trained<B: Backend, M> {
    /// The model after training.
    pub model: M,
    /// Mean loss over the examples seen, each measured before its step; the weight is their number.
    pub loss: Mean,
    /// Steps taken.
    pub steps: usize,
    /// How many plain gradients the steps add up to, [`LocalRun::accumulation`].
    pub accumulation: f64,
    /// What the algorithm sends besides the model.
    pub side: SideInfo<B>,
}
