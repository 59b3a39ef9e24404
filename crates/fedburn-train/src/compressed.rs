//! Clients that compress their updates and send later what compression left out.
//!
//! Wang, Lin and Chen, "Communication-Efficient Adaptive Federated Learning" (FedCAMS), ICML 2022, arXiv:2205.02719.
//! Error feedback: Karimireddy, Rebjock, Stich and Jaggi, "Error Feedback Fixes SignSGD and other Gradient Compression
//! Schemes", ICML 2019, arXiv:1901.09847.
//!
//! ```text
//! c_k = Comp(x_k - x_t + e_k);   e_k <- x_k - x_t + e_k - c_k;   send x_t + c_k
//! scaled sign:  Comp(v) = norm_1(v) / d  sign(v)
//! top k:        Comp(v) = v where abs(v) is among the k largest, 0 elsewhere
//! ```
//!
//! | symbol | meaning |
//! |---|---|
//! | `x_t`, `x_k` | the global model, the client's after training |
//! | `e_k` | what compression has left out so far |
//! | `d` | number of weights |
//!
//! State: `e_k`, zeros for a client that has none, beside the inner client's. Memory: a few vectors on the host while it compresses.
//!
//! Weights are compressed as one vector; running statistics and side information are sent as they are. What is sent is
//! still a full vector of parameters: this is what compression does to learning, not yet what it saves on the wire.

use burn::tensor::backend::Backend;
use fedburn_core::{
    Client, ClientInfo, LocalUpdate, Metrics, ParamVector, SchemaError, StateDict, StateError, TrainError, TrainTask,
};
use serde::{Deserialize, Serialize};

use crate::rules::Kept;

/// The `compression` of a `[client]` table.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum CompressionConfig {
    /// One size for all values: their signs, times the mean of their absolute values. The sign of 0 is 0.
    ScaledSign {},
    /// The values of largest size, and no others; of equal ones the first.
    TopK {
        /// Share of the values that are kept, in `(0, 1]`, rounded up. The paper tries 1/64, 1/128 and 1/256.
        #[serde(default = "default_share")]
        share: f64,
    },
}

fn default_share() -> f64 {
    1.0 / 64.0
}

impl CompressionConfig {
    /// `Comp(values)`.
    fn compress(self, values: &[f32]) -> Vec<f32> {
        match self {
            Self::ScaledSign {} => {
                let size: f64 = values.iter().map(|v| f64::from(v.abs())).sum::<f64>() / values.len().max(1) as f64;
                let sign = |v: f32| if v == 0.0 { 0.0 } else { (size as f32).copysign(v) };
                values.iter().map(|&v| sign(v)).collect()
            }
            Self::TopK { share } => {
                let count = ((share * values.len() as f64).ceil() as usize).min(values.len());
                let mut sizes: Vec<f32> = values.iter().map(|v| v.abs()).collect();
                let Some(last) = count.checked_sub(1) else { return vec![0.0; values.len()] };
                let smallest = *sizes.select_nth_unstable_by(last, |a, b| b.total_cmp(a)).1;
                let mut equal = count - values.iter().filter(|v| v.abs() > smallest).count();
                let keep = |&v: &f32| match v.abs() {
                    size if size > smallest => v,
                    size if size == smallest && equal > 0 => {
                        equal -= 1;
                        v
                    }
                    _ => 0.0,
                };
                values.iter().map(keep).collect()
            }
        }
    }
}

/// Any client whose updates are compressed with error feedback.
pub struct Compressed<B: Backend, C> {
    client: C,
    config: CompressionConfig,
    /// `e_k`.
    error: Kept<B>,
}

impl<B: Backend, C: Client<B>> Compressed<B, C> {
    /// `client` with its updates compressed; `config` is one that [`crate::LocalTrainingConfig::build`] accepted.
    pub fn new(client: C, config: CompressionConfig) -> Self {
        Self { client, config, error: Kept::new("error") }
    }

    /// What to send in place of `params`, and what is left out.
    fn compress(
        &self,
        global: &ParamVector<B>,
        params: &ParamVector<B>,
        error: &ParamVector<B>,
    ) -> Result<(ParamVector<B>, ParamVector<B>), SchemaError> {
        let (schema, device) = (global.schema(), global.device());
        let moved = params.minus(global)?.into_values() + error.values().clone();
        let meant = global.with_values(moved)?.to_host();
        let ranges = schema.weight_ranges();
        let weights: Vec<f32> = ranges.iter().flat_map(|range| &meant[range.clone()]).copied().collect();
        let compressed = self.config.compress(&weights);
        let (mut delta, mut left) = (vec![0.0; meant.len()], vec![0.0; meant.len()]);
        for (place, sent) in ranges.into_iter().flatten().zip(compressed) {
            delta[place] = sent;
            left[place] = meant[place] - sent;
        }
        let delta = ParamVector::<B>::from_host(delta, schema.clone(), &device)?.into_values();
        let sent = global.with_values(global.values().clone() + delta)?.with_buffers_of(params)?;
        Ok((sent, ParamVector::from_host(left, schema.clone(), &device)?))
    }
}

impl<B: Backend, C: Client<B>> Client<B> for Compressed<B, C> {
    fn info(&self) -> ClientInfo {
        self.client.info()
    }

    fn train(&mut self, task: &TrainTask<B>) -> Result<LocalUpdate<B>, TrainError> {
        let client = self.info().id;
        let error = self.error.recall(&task.global).map_err(|source| TrainError::State { client, source })?;
        let update = self.client.train(task)?;
        let compressed = self.compress(&task.global, &update.params, &error);
        let (params, error) = compressed.map_err(|source| TrainError::Schema { client, source })?;
        self.error.keep(error);
        Ok(LocalUpdate { params, ..update })
    }

    fn evaluate(&mut self, global: &ParamVector<B>) -> Result<Metrics, TrainError> {
        self.client.evaluate(global)
    }

    fn state(&self) -> StateDict {
        let mut state = self.error.state();
        state.nest("client", self.client.state());
        state
    }

    fn restore(&mut self, mut state: StateDict) -> Result<(), StateError> {
        let inner = state.split_off("client");
        let mut error = self.error.clone();
        error.restore(state)?;
        self.client.restore(inner)?;
        self.error = error;
        Ok(())
    }
}
