//! Personalisation: what a client keeps for itself, around what it does for the federation.
//!
//! | kind | the client uses | the federation averages | around |
//! |---|---|---|---|
//! | [`Ditto`] | a model of its own, held near the global one | models of any rule | any rule |
//! | [`Apfl`] | a mix of its own model and the global one, of learned weight | models of plain SGD | plain SGD |
//! | [`FedRep`] | the global body with a head of its own | bodies | plain SGD |
//! | [`PFedMe`] | the minimiser of its loss and a pull to the global model | Moreau envelopes | plain SGD |
//! | [`FedBn`] | the global model with normalisation layers of its own | everything else | any rule |
//!
//! All send full vectors; what stays with the client is sent as it was received, so that any average keeps it.

mod apfl;
mod ditto;
mod fedbn;
mod fedrep;
mod pfedme;

use std::collections::BTreeMap;

use burn::tensor::{Tensor, TensorData, backend::Backend};
use fedburn_core::{
    MixingConfig, ParamEntry, ParamVector, SchemaError, StateData, StateDict, StateTensor, TrainError, flatten,
    load_to_train,
};
use serde::{Deserialize, Serialize};

pub use apfl::{Adaptation, Apfl, ApflConfig};
pub use ditto::{Ditto, DittoConfig};
pub use fedbn::{FedBn, FedBnConfig};
pub use fedrep::{FedRep, FedRepConfig};
pub use pfedme::{PFedMe, PFedMeConfig};

use super::flat::only;
use super::{LocalRule, LocalRun, TrainModel};
use crate::config::check;
use crate::{Diverged, LocalTrainingConfig, RuleConfig, TrainingConfigError};

/// The `personal` of a `[client]` table: what a client keeps for itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[non_exhaustive]
pub enum PersonalConfig {
    /// [`Ditto`].
    Ditto(DittoConfig),
    /// [`Apfl`].
    Apfl(ApflConfig),
    /// [`FedRep`].
    #[serde(rename = "fedrep")]
    FedRep(FedRepConfig),
    /// [`PFedMe`].
    #[serde(rename = "pfedme")]
    PFedMe(PFedMeConfig),
    /// [`FedBn`].
    #[serde(rename = "fedbn")]
    FedBn(FedBnConfig),
    /// Optimal model averaging. No local rule but a client around a client, `fedburn_strategies::MixingClient`: whoever
    /// builds the population puts it there ([`crate::SupervisedPopulation::with_wrapper`]); here it changes nothing.
    Mixing(MixingConfig),
}

impl PersonalConfig {
    /// Checks the numbers, and that they go with how the client trains.
    pub(crate) fn check(&self, training: &LocalTrainingConfig) -> Result<(), TrainingConfigError> {
        let at_least_0 = |v: f64| v >= 0.0 && v.is_finite();
        match self {
            Self::Ditto(DittoConfig { lambda }) => {
                let expected = "a number of at least 0 and below 1 / `lr`, beyond which steps overshoot";
                check("personal.lambda", *lambda, |v| at_least_0(v) && v * training.lr < 1.0, expected)?;
            }
            Self::Apfl(ApflConfig { alpha, .. }) => {
                check("personal.alpha", *alpha, |v| (0.0..=1.0).contains(&v), "a number in [0, 1]")?;
            }
            Self::FedRep(FedRepConfig { body, .. }) => {
                let units = training.epochs.or(training.steps).unwrap_or(0);
                let expected = "at least 1 and less than `epochs` or `steps`, so that the head is trained too";
                check("personal.body", *body, |v| v >= 1 && v < units, expected)?;
            }
            Self::PFedMe(PFedMeConfig { lambda, personal_lr, inner_steps }) => {
                let expected = "a number above 0 and at most 1 / `lr`, beyond which the global model overshoots";
                check("personal.lambda", *lambda, |v| v > 0.0 && v * training.lr <= 1.0, expected)?;
                let expected = "a number above 0 and below 2 / `personal.lambda`, beyond which inner steps diverge";
                check("personal.personal_lr", *personal_lr, |v| v > 0.0 && v * lambda < 2.0, expected)?;
                check("personal.inner_steps", *inner_steps, |v| v >= 1, "at least 1")?;
                let expected = "0 with `personal` pfedme, whose inner steps are plain";
                check("momentum", training.momentum, |v| v == 0.0, expected)?;
            }
            Self::FedBn(FedBnConfig { layers }) => {
                check("personal.layers", layers.len(), |v| v >= 1, "at least one type of layer")?;
            }
            Self::Mixing(_) => {}
        }
        // These three train in their own way, which no other rule can be put into.
        let replaces_the_rule = matches!(self, Self::Apfl(_) | Self::FedRep(_) | Self::PFedMe(_));
        let name = match training.rule {
            RuleConfig::Sgd => "sgd",
            RuleConfig::Depthwise(_) => "depthwise",
            RuleConfig::HeteroFl(_) => "heterofl",
            RuleConfig::SplitMix(_) => "split_mix",
            RuleConfig::DepthFl(_) => "depth_fl",
            RuleConfig::InclusiveFl(_) => "inclusive_fl",
            _ => "another",
        };
        let expected = "another rule with `personal`, whose models are whole and which no budget of memory counts";
        check(
            "rule",
            name,
            |v| !["depthwise", "heterofl", "split_mix", "depth_fl", "inclusive_fl"].contains(&v),
            expected,
        )?;
        check("rule", name, |v| !replaces_the_rule || v == "sgd", "sgd with this kind of `personal`")
    }

    /// The configured rule around `rule`, without state.
    pub(crate) fn around<B: Backend, M: TrainModel<B> + 'static>(
        &self,
        rule: Box<dyn LocalRule<B, M>>,
    ) -> Box<dyn LocalRule<B, M>> {
        match self {
            Self::Ditto(config) => Box::new(Ditto::new(rule, *config)),
            Self::Apfl(config) => Box::new(Apfl::new(*config)),
            Self::FedRep(config) => Box::new(FedRep::new(config.clone())),
            Self::PFedMe(config) => Box::new(PFedMe::new(*config)),
            Self::FedBn(config) => Box::new(FedBn::new(rule, config.clone())),
            Self::Mixing(_) => rule,
        }
    }
}

/// The parameters of a model in training, as a vector like `like`; pending running statistics are folded in.
fn params_of<B: Backend, M: TrainModel<B>>(model: &M, like: &ParamVector<B>) -> Result<ParamVector<B>, SchemaError> {
    like.with_values(flatten(&model.valid())?.into_values())
}

/// The parameters of a model after `steps` steps of `run`, refused where one is not finite.
fn finite_params_of<B: Backend, M: TrainModel<B>>(
    model: &M,
    steps: usize,
    run: &LocalRun<'_, B>,
) -> Result<ParamVector<B>, TrainError> {
    let params = params_of(model, &run.task.global).map_err(|e| run.schema_error(e))?;
    match params.is_finite() {
        true => Ok(params),
        false => Err(run.diverged(Diverged { step: steps.saturating_sub(1) })),
    }
}

/// `model` at `params`, every weight to be trained.
fn at<B: Backend, M: TrainModel<B>>(model: M, params: &ParamVector<B>) -> Result<M, SchemaError> {
    // Folds in what is pending, which would come back after the loaded statistics otherwise.
    model.valid();
    load_to_train(model, params)
}

/// Tensors that stay with a client, by path.
#[derive(Clone, Debug, Default)]
struct Tensors(BTreeMap<String, StateTensor>);

impl Tensors {
    /// Those tensors of `params` whose path is kept.
    fn of<B: Backend>(params: &ParamVector<B>, is_kept: impl Fn(&str) -> bool) -> Self {
        let values = params.to_host();
        let kept = params.schema().entries().iter().filter(|entry| is_kept(&entry.path));
        let tensor = |entry: &ParamEntry| StateTensor {
            shape: entry.shape.clone(),
            data: StateData::F32(values[entry.range()].to_vec()),
        };
        Self(kept.map(|entry| (entry.path.clone(), tensor(entry))).collect())
    }

    /// `params` with these tensors in place of its own.
    fn put_into<B: Backend>(&self, params: &ParamVector<B>) -> Result<ParamVector<B>, SchemaError> {
        let mut values = params.values().clone();
        for (path, tensor) in &self.0 {
            let entry = params.schema().entry(path).ok_or_else(|| SchemaError::UnknownPath { path: path.clone() })?;
            let (expected, len) = (entry.len(), tensor.shape.iter().product());
            match &tensor.data {
                StateData::F32(own) if own.len() == expected && expected > 0 => {
                    let own = Tensor::from_data(TensorData::new(own.clone(), [len]), &params.device());
                    values = values.slice_assign([entry.range()], own);
                }
                _ if expected == 0 => {}
                _ => return Err(SchemaError::Length { expected, found: len }),
            }
        }
        params.with_values(values)
    }

    fn state(&self) -> StateDict {
        let mut state = StateDict::new();
        self.0.iter().for_each(|(path, tensor)| state.insert(path.clone(), tensor.clone()));
        state
    }

    /// Takes back any state; what does not fit the model is found when it is put into one.
    fn from_state(state: &StateDict) -> Self {
        Self(state.iter().map(|(path, tensor)| (path.to_owned(), tensor.clone())).collect())
    }
}
