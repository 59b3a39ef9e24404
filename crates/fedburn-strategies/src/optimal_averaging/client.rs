//! The client that mixes its own model with the global one.

use burn::tensor::backend::Backend;
use fedburn_core::{
    Client, ClientInfo, LocalUpdate, Mean, Metrics, MixingConfig, ParamKind, ParamSchema, ParamVector, Resample,
    ResamplingClient, StateData, StateDict, StateError, StateTensor, TrainError, TrainTask, VarianceConfig,
};

use super::Mixing;

/// A client that keeps its own model and its variance, and uses a mix of its own model and the global one.
///
/// `train` sends what the inner client sends, unchanged: mixing costs nothing on the wire. It trains one more model for
/// each part or sample of the variance estimate, from the same start. `evaluate` measures the mix. Nothing is mixed (the
/// global model is used) before the client has trained, and where its variance is unknown: with fewer than two examples,
/// or where training on a part diverged.
///
/// Both models must lie in one basin, so the local one starts from the global one of its round. Where the model has batch
/// normalisation, the mix has mixed scales and shifts and the local running statistics; statistics of the mix itself,
/// from a pass over local data, are not computed.
#[derive(Debug)]
pub struct MixingClient<C> {
    inner: C,
    mixing: Mixing,
    own: Option<Own>,
}

/// What the client keeps of itself.
#[derive(Clone, Debug)]
struct Own {
    /// `L`.
    model: Vec<f32>,
    /// `Vhat`, where it is known.
    variance: Option<Vec<f32>>,
}

impl<C> MixingClient<C> {
    /// Share of the global model in the mix, among the metrics of `evaluate`: mean over weights.
    pub const GLOBAL_SHARE: &'static str = "global_share";

    /// Puts mixing around `inner`.
    pub fn new(inner: C, mixing: Mixing) -> Self {
        Self { inner, mixing, own: None }
    }

    /// The vector that the client would use after receiving `global`, and the weight of the global model in it.
    ///
    /// # Errors
    /// [`StateError::Shape`] where the client's model is of another schema.
    pub fn mixed<B: Backend>(&self, global: &ParamVector<B>) -> Result<(ParamVector<B>, f64), StateError> {
        let Some(Own { model, variance: Some(variance) }) = &self.own else { return Ok((global.clone(), 1.0)) };
        let (schema, expected) = (global.schema(), global.num_values());
        let wrong = |found: usize| StateError::Shape {
            name: MODEL.to_owned(),
            expected: format!("f32 [{expected}]"),
            found: format!("f32 [{found}]"),
        };
        if let Some(other) = [model.len(), variance.len()].into_iter().find(|len| *len != expected) {
            return Err(wrong(other));
        }
        let mixed = self.mixing.mix(schema, model, variance, &global.to_host());
        let values = ParamVector::from_host(mixed.values, schema.clone(), &global.device());
        Ok((values.map_err(|_| wrong(expected))?, mixed.global_share))
    }

    /// `Vhat` from models trained on parts of the data, in `f64`.
    fn variance<B: Backend>(&mut self, task: &TrainTask<B>) -> Result<Option<Vec<f32>>, TrainError>
    where
        C: ResamplingClient<B>,
    {
        let examples = usize::try_from(self.inner.info().num_examples).unwrap_or(usize::MAX);
        if examples < 2 {
            return Ok(None);
        }
        let kind = self.mixing.config().variance;
        let models = match kind {
            VarianceConfig::Jackknife { parts } | VarianceConfig::Split { parts } => parts.min(examples),
            VarianceConfig::Bootstrap { samples } => samples,
        };
        let mut spread = Spread::new(task.global.num_values());
        for part in 0..models {
            let resample = match kind {
                VarianceConfig::Jackknife { .. } => Resample::AllBut { part, of: models },
                VarianceConfig::Split { .. } => Resample::Shard { part, of: models },
                VarianceConfig::Bootstrap { .. } => Resample::Bootstrap { index: part },
            };
            match self.inner.train_on(task, resample) {
                Ok(update) => spread.add(&update.params.to_host()),
                Err(TrainError::NonFinite { .. }) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        let m = models as f64;
        let factor = match kind {
            VarianceConfig::Jackknife { .. } => (m - 1.0) / m,
            VarianceConfig::Split { .. } => 1.0 / (m * (m - 1.0)),
            VarianceConfig::Bootstrap { .. } => 1.0 / (m - 1.0),
        };
        Ok(Some(spread.squares.into_iter().map(|square| (factor * square) as f32).collect()))
    }
}

impl<B: Backend, C: ResamplingClient<B>> Client<B> for MixingClient<C> {
    fn info(&self) -> ClientInfo {
        self.inner.info()
    }

    fn train(&mut self, task: &TrainTask<B>) -> Result<LocalUpdate<B>, TrainError> {
        let before = self.inner.state();
        let mut update = self.inner.train(task)?;
        let variance = match self.variance(task) {
            Ok(variance) => variance,
            Err(error) => {
                let client = self.inner.info().id;
                self.inner.restore(before).map_err(|source| TrainError::State { client, source })?;
                return Err(error);
            }
        };
        if let (true, Some(variance)) = (self.mixing.config().report_variance, &variance) {
            let mean = mean_over_weights(task.global.schema(), variance);
            update.side.scalars.insert(MixingConfig::VARIANCE.into(), mean);
        }
        self.own = Some(Own { model: update.params.to_host(), variance });
        Ok(update)
    }

    fn evaluate(&mut self, global: &ParamVector<B>) -> Result<Metrics, TrainError> {
        let client = self.inner.info().id;
        let (mixed, share) = self.mixed(global).map_err(|source| TrainError::State { client, source })?;
        Ok(self.inner.evaluate(&mixed)?.with(Self::GLOBAL_SHARE, Mean::new(share, 1.0)))
    }

    fn state(&self) -> StateDict {
        let mut state = StateDict::new();
        state.nest(INNER, self.inner.state());
        if let Some(own) = &self.own {
            let tensor = |v: &Vec<f32>| StateTensor { shape: vec![v.len()], data: StateData::F32(v.clone()) };
            state.insert(MODEL, tensor(&own.model));
            own.variance.iter().for_each(|variance| state.insert(VARIANCE, tensor(variance)));
        }
        state
    }

    fn restore(&mut self, mut state: StateDict) -> Result<(), StateError> {
        self.inner.restore(state.split_off(INNER))?;
        let mut take = |name: &str| match state.take(name) {
            Ok(StateTensor { data: StateData::F32(values), .. }) => Ok(Some(values)),
            Ok(StateTensor { shape, .. }) => Err(StateError::Shape {
                name: name.to_owned(),
                expected: "f32".to_owned(),
                found: format!("another type {shape:?}"),
            }),
            Err(_) => Ok(None),
        };
        let (model, variance) = (take(MODEL)?, take(VARIANCE)?);
        self.own = model.map(|model| Own { model, variance });
        state.expect_empty()
    }
}

const INNER: &str = "client";
const MODEL: &str = "mixing_model";
const VARIANCE: &str = "mixing_variance";

/// Sums of squared deviations from the mean, value by value (Welford's updates).
struct Spread {
    count: f64,
    means: Vec<f64>,
    squares: Vec<f64>,
}

impl Spread {
    fn new(len: usize) -> Self {
        Self { count: 0.0, means: vec![0.0; len], squares: vec![0.0; len] }
    }

    fn add(&mut self, values: &[f32]) {
        self.count += 1.0;
        for ((mean, square), value) in self.means.iter_mut().zip(&mut self.squares).zip(values) {
            let before = f64::from(*value) - *mean;
            *mean += before / self.count;
            *square += before * (f64::from(*value) - *mean);
        }
    }
}

fn mean_over_weights(schema: &ParamSchema, values: &[f32]) -> f64 {
    let weights = schema.entries().iter().filter(|e| e.kind == ParamKind::Weight);
    let sum: f64 = weights.map(|e| values[e.range()].iter().map(|v| f64::from(*v)).sum::<f64>()).sum();
    sum / schema.num_weights().max(1) as f64
}
