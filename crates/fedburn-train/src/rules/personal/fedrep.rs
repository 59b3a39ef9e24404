//! FedRep: a shared body, a head of one's own.
//!
//! Collins, Hassani, Mokhtari and Shakkottai, "Exploiting Shared Representations for Personalized Federated Learning",
//! ICML 2021, arXiv:2102.07078.
//!
//! A local run of `E` epochs has two phases: the head alone for the first `E - E_rep`, the body frozen; then the body
//! alone for `E_rep`, the head frozen.
//!
//! | symbol | meaning | here |
//! |---|---|---|
//! | `E` | epochs of the run | `epochs` or `steps` of the client |
//! | `E_rep` | those that train the body | [`FedRepConfig::body`] |
//!
//! State: the head; a client that has none begins with the received one. Wire: full vectors, the head as it was received,
//! so that averages of heads are the common initial head. Memory: one vector.
//!
//! A client that has never taken part uses the initial head: train it for a round to give it a head. Running statistics
//! of the body are updated in both phases, as in the authors' code, and sent. The settings of that code are momentum 0.5
//! and weight decay 1e-4.

use burn::tensor::backend::Backend;
use fedburn_core::{ParamSchema, ParamVector, SchemaError, SideInfo, StateDict, StateError, TrainError, is_below};
use fedburn_data::Batch;
use serde::{Deserialize, Serialize};

use super::super::{CrossEntropy, GradientRule, LocalRule, LocalRun, TrainModel, Trained, descend};
use super::{Tensors, at, finite_params_of, only};

/// The numbers of [`FedRep`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FedRepConfig {
    /// Paths of the layers that are the head: each with all that is below it. Where empty, the last layer.
    pub head: Vec<String>,
    /// Epochs that train the body (steps, where the client's run is counted in steps): at least 1 and fewer than the run
    /// has.
    pub body: usize,
}

impl Default for FedRepConfig {
    fn default() -> Self {
        Self { head: Vec::new(), body: 1 }
    }
}

/// A head of one's own.
#[derive(Clone, Debug)]
pub struct FedRep {
    config: FedRepConfig,
    /// The head.
    own: Tensors,
}

impl FedRep {
    /// The rule without state. A [`crate::LocalTrainingConfig`] checks the numbers.
    pub fn new(config: FedRepConfig) -> Self {
        Self { config, own: Tensors::default() }
    }

    /// As [`LocalRule::train`] on the loss of `rule`.
    ///
    /// # Errors
    /// [`TrainError`]; [`TrainError::Unusable`] where the model has no such head, or nothing else.
    pub fn train_with<B: Backend, M: TrainModel<B>>(
        &mut self,
        model: M,
        run: &LocalRun<'_, B>,
        mut rule: impl GradientRule<B, M>,
    ) -> Result<Trained<B, M>, TrainError> {
        let (received, schema) = (&run.task.global, |e| run.schema_error(e));
        let unusable = |reason| TrainError::Unusable { client: run.client, reason };
        let prefixes = head(received.schema(), &self.config.head).map_err(unusable)?;
        let is_head = |path: &str| is_below(path, &prefixes);
        let start = self.own.put_into(received).map_err(schema)?;

        let mut batches = run.batches();
        let body = self.config.body.saturating_mul(run.training.batches_per_unit(run.data));
        let head = batches.len().saturating_sub(body);
        let lr = run.learning_rate();
        let mut phase = |model, batches: &mut dyn Iterator<Item = Batch<B>>| {
            descend(model, batches, &mut rule, &mut run.training.optimiser(), lr).map_err(|e| run.diverged(e))
        };
        let model = only(at(model, &start).map_err(schema)?, is_head);
        let first = phase(model, &mut batches.by_ref().take(head))?;
        let second = phase(only(first.model, |path| !is_head(path)), &mut batches)?;

        let trained = finite_params_of(&second.model, first.steps + second.steps, run)?;
        let sent = Tensors::of(received, is_head).put_into(&trained).map_err(schema)?;
        let model = at(second.model, &sent).map_err(schema)?;
        self.own = Tensors::of(&trained, is_head);
        let (mut loss, steps, side) = (first.loss, second.steps, SideInfo::default());
        loss.merge(second.loss);
        Ok(Trained { model, loss, steps, accumulation: run.accumulation(steps, 0.0), side })
    }
}

impl<B: Backend, M: TrainModel<B>> LocalRule<B, M> for FedRep {
    fn train(&mut self, model: M, run: &LocalRun<'_, B>) -> Result<Trained<B, M>, TrainError> {
        self.train_with(model, run, run.training.sharpened(CrossEntropy))
    }

    fn deployed(&self, global: &ParamVector<B>) -> Result<ParamVector<B>, SchemaError> {
        self.own.put_into(global)
    }

    fn state(&self) -> StateDict {
        self.own.state()
    }

    fn restore(&mut self, state: StateDict) -> Result<(), StateError> {
        self.own = Tensors::from_state(&state);
        Ok(())
    }
}

/// The paths of the head: those configured, or the last layer.
fn head(schema: &ParamSchema, configured: &[String]) -> Result<Vec<String>, String> {
    let last =
        || schema.entries().last().map(|entry| entry.path.rsplit_once('.').map_or(&*entry.path, |(layer, _)| layer));
    let prefixes =
        if configured.is_empty() { last().into_iter().map(str::to_owned).collect() } else { configured.to_vec() };
    let covers =
        |prefix: &String| schema.entries().iter().any(|entry| is_below(&entry.path, std::slice::from_ref(prefix)));
    if let Some(absent) = prefixes.iter().find(|prefix| !covers(prefix)) {
        return Err(format!("`personal.head` names `{absent}`, and the model has no such layer"));
    }
    match schema.entries().iter().all(|entry| is_below(&entry.path, &prefixes)) {
        true => Err("the head is the whole model, expected some layer besides it for the body".to_owned()),
        false => Ok(prefixes),
    }
}

#[cfg(test)]
mod tests {
    use fedburn_core::{ParamEntry, ParamKind};

    use super::*;

    #[test]
    fn the_head_is_the_last_layer_or_what_is_named() {
        let paths = ["a.weight", "b.0.weight", "b.1.weight", "b.1.bias", "bc.weight", "bc.bias"];
        let entry = |path: &&str| ParamEntry::new(*path, vec![1], ParamKind::Weight);
        let schema = ParamSchema::new(paths.iter().map(entry).collect()).unwrap();
        let of = |configured: &[&str]| {
            let configured: Vec<_> = configured.iter().map(|p| (*p).to_owned()).collect();
            let prefixes = head(&schema, &configured)?;
            Ok(paths.into_iter().filter(|p| is_below(p, &prefixes)).collect::<Vec<_>>())
        };
        assert_eq!(of(&[]), Ok(vec!["bc.weight", "bc.bias"]));
        assert_eq!(of(&["b"]), Ok(vec!["b.0.weight", "b.1.weight", "b.1.bias"]));
        assert_eq!(of(&["b.1", "a.weight"]), Ok(vec!["a.weight", "b.1.weight", "b.1.bias"]));
        let absent: Result<_, String> = of(&["c"]);
        assert!(absent.unwrap_err().contains("`c`"));
        assert!(of(&["a", "b", "bc"]).unwrap_err().contains("whole model"));
    }
}
