//! FedBN: normalisation layers of one's own.
//!
//! Li, Jiang, Zhang, Kamp and Dou, "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization", ICLR
//! 2021, arXiv:2102.07623.
//!
//! Everything but the batch normalisation layers (scales, shifts and statistics) is trained and averaged as ever; those
//! stay with the client.
//!
//! State: the layers' values beside the inner rule's; a client that has none begins with the received ones, which are the
//! common initial ones. Wire: full vectors, the layers as they were received. Memory: one vector.
//!
//! The inner rule is told a global model that has the client's own layers, so that its pulls and corrections are about
//! what it trains. A client that has never taken part uses the initial layers. Layers are found by the type of their
//! module, never by their name. Departure: the authors' server averages clients alike; here the strategy decides.

use std::collections::BTreeSet;

use burn::backend::Autodiff;
use burn::module::{ModuleVisitor, Param};
use burn::tensor::{Tensor, backend::Backend};
use fedburn_core::{ParamVector, SchemaError, StateDict, StateError, TrainError, TrainTask};
use serde::{Deserialize, Serialize};

use super::super::{LocalRule, LocalRun, TrainModel, Trained};
use super::{Tensors, at, finite_params_of};

/// The choice of [`FedBn`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FedBnConfig {
    /// Types of the modules that stay with the client, by the names of their structs.
    pub layers: Vec<String>,
}

impl Default for FedBnConfig {
    fn default() -> Self {
        Self { layers: vec!["BatchNorm".to_owned()] }
    }
}

/// Layers of one's own around any rule.
pub struct FedBn<B: Backend, M> {
    inner: Box<dyn LocalRule<B, M>>,
    config: FedBnConfig,
    /// The layers' values.
    own: Tensors,
}

impl<B: Backend, M: TrainModel<B>> FedBn<B, M> {
    /// Layers of one's own around `inner`.
    pub fn new(inner: Box<dyn LocalRule<B, M>>, config: FedBnConfig) -> Self {
        Self { inner, config, own: Tensors::default() }
    }
}

impl<B: Backend, M: TrainModel<B>> LocalRule<B, M> for FedBn<B, M> {
    fn train(&mut self, model: M, run: &LocalRun<'_, B>) -> Result<Trained<B, M>, TrainError> {
        let (received, schema) = (&run.task.global, |e| run.schema_error(e));
        let kept = tensors_in(&model, &self.config.layers);
        if kept.is_empty() {
            let reason = format!("`personal.layers` is {:?}, and the model has no such layer", self.config.layers);
            return Err(TrainError::Unusable { client: run.client, reason });
        }
        let start = self.own.put_into(received).map_err(schema)?;
        let model = at(model, &start).map_err(schema)?;
        let task = TrainTask { global: start, ..run.task.clone() };
        let before = self.inner.state();
        let trained = self.inner.train(model, &LocalRun { task: &task, ..*run })?;
        match finite_params_of(&trained.model, trained.steps, run) {
            Ok(params) => {
                let is_kept = |path: &str| kept.contains(path);
                let sent = Tensors::of(received, is_kept).put_into(&params).map_err(schema)?;
                let model = at(trained.model, &sent).map_err(schema)?;
                self.own = Tensors::of(&params, is_kept);
                let Trained { loss, steps, accumulation, side, .. } = trained;
                Ok(Trained { model, loss, steps, accumulation, side })
            }
            Err(error) => {
                self.inner.restore(before).map_err(|e| run.state_error(e))?;
                Err(error)
            }
        }
    }

    fn deployed(&self, global: &ParamVector<B>) -> Result<ParamVector<B>, SchemaError> {
        self.inner.deployed(&self.own.put_into(global)?)
    }

    fn state(&self) -> StateDict {
        let mut state = StateDict::new();
        state.nest("layers", self.own.state());
        state.nest("inner", self.inner.state());
        state
    }

    fn restore(&mut self, mut state: StateDict) -> Result<(), StateError> {
        let (layers, inner) = (state.split_off("layers"), state.split_off("inner"));
        state.expect_empty()?;
        self.inner.restore(inner)?;
        self.own = Tensors::from_state(&layers);
        Ok(())
    }
}

/// Paths of the tensors, statistics included, in modules of these types.
fn tensors_in<B: Backend, M: TrainModel<B>>(model: &M, layers: &[String]) -> BTreeSet<String> {
    let mut finder = Find { path: Vec::new(), layers, found: BTreeSet::new() };
    model.visit(&mut finder);
    finder.found
}

struct Find<'a> {
    /// Fields on the way, each with whether its container is one of `layers`.
    path: Vec<(String, bool)>,
    layers: &'a [String],
    found: BTreeSet<String>,
}

impl<B: Backend> ModuleVisitor<Autodiff<B>> for Find<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        // As in schemas: the variant of an enum is no part of a path.
        if !container.starts_with("Enum:") {
            let kind = container.strip_prefix("Struct:");
            self.path.push((name.to_owned(), kind.is_some_and(|kind| self.layers.iter().any(|layer| layer == kind))));
        }
    }

    fn exit_module(&mut self, _name: &str, container: &str) {
        if !container.starts_with("Enum:") {
            self.path.pop();
        }
    }

    fn visit_float<const D: usize>(&mut self, _param: &Param<Tensor<Autodiff<B>, D>>) {
        if self.path.iter().any(|(_, is_kept)| *is_kept) {
            let names: Vec<&str> = self.path.iter().map(|(name, _)| name.as_str()).collect();
            self.found.insert(names.join("."));
        }
    }
}
