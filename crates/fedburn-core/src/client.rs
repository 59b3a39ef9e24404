//! One participant of a federation.

use std::fmt;

use burn::tensor::backend::Backend;
use serde::{Deserialize, Serialize};

use crate::{
    CompressionConfig, LocalUpdate, Metrics, ParamVector, Reports, RoundIndex, Seed, SideInfo, SliceName, StateDict,
    StateError, TrainError,
};

/// A client's stable number within a run. Clients are ordered by it wherever order matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClientId(pub u64);

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What the server knows of a client before asking it to train.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientInfo {
    /// The client.
    pub id: ClientId,
    /// Number of its training examples, `n_k`.
    pub num_examples: u64,
}

/// One request to train.
#[derive(Clone, Debug)]
pub struct TrainTask<B: Backend> {
    /// The round, from 1.
    pub round: RoundIndex,
    /// The vector to start from: the model `x_t`, or the part of it that [`TrainTask::slice`] names. The update is of
    /// the same schema.
    pub global: ParamVector<B>,
    /// Names of the parts of the model that the client holds, which share no tensor; none: all of it.
    pub slice: Vec<SliceName>,
    /// The client's own randomness in this round.
    pub seed: Seed,
    /// What the algorithm sends besides the model.
    pub side: SideInfo<B>,
    /// What the algorithm wants to know besides parameters.
    pub reports: Reports,
    /// How the update is sent. Clients need not look at it: [`crate::Answerer`] does.
    pub compression: CompressionConfig,
}

/// One participant: its data, its state kept across rounds, its way of training.
///
/// # Laws
/// `train` is a function of the task and the saved state: the same task after `restore(state())` gives the same bits.
/// State changes only in `train`. A failed `train` leaves the state as it was.
pub trait Client<B: Backend>: Send {
    /// Who this is and how much data it has.
    fn info(&self) -> ClientInfo;

    /// Trains from `task.global` on the client's own data.
    ///
    /// # Errors
    /// [`TrainError`]: no data, a loss that became non-finite, a vector of another model.
    fn train(&mut self, task: &TrainTask<B>) -> Result<LocalUpdate<B>, TrainError>;

    /// Measures what this client would use after receiving `global` (the global model, or a personalised one) on the
    /// client's held-out examples.
    ///
    /// # Errors
    /// [`TrainError`].
    fn evaluate(&mut self, global: &ParamVector<B>) -> Result<Metrics, TrainError>;

    /// What must survive until the client is next sampled. Nothing by default.
    fn state(&self) -> StateDict {
        StateDict::default()
    }

    /// Takes back what [`Client::state`] gave.
    ///
    /// # Errors
    /// [`StateError`] where the state is not this client's.
    fn restore(&mut self, state: StateDict) -> Result<(), StateError> {
        state.expect_empty()
    }
}

/// Which of a client's training examples a model is trained on instead of all, to learn how much the model depends on
/// them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resample {
    /// All but the `part`-th of `of` shards (leave-one-shard-out, the jackknife).
    AllBut {
        /// The shard left out, from 0.
        part: usize,
        /// Number of shards, at least 2.
        of: usize,
    },
    /// The `part`-th of `of` disjoint shards alone.
    Shard {
        /// The shard, from 0.
        part: usize,
        /// Number of shards, at least 2.
        of: usize,
    },
    /// As many examples as the client has, drawn with replacement.
    Bootstrap {
        /// Which of the draws, from 0.
        index: usize,
    },
}

/// A client that can also train on parts of its data, so that the variance of its model can be estimated.
///
/// # Laws
/// `train_on` leaves the client's state as it was and is a function of task, state and part. The shards of one task are
/// disjoint, make up all of the data and differ in size by one at most.
pub trait ResamplingClient<B: Backend>: Client<B> {
    /// Trains as [`Client::train`] would, on the examples that `part` names.
    ///
    /// # Errors
    /// [`TrainError`], where the part is empty too.
    fn train_on(&mut self, task: &TrainTask<B>, part: Resample) -> Result<LocalUpdate<B>, TrainError>;
}

impl<B: Backend, C: Client<B> + ?Sized> Client<B> for Box<C> {
    fn info(&self) -> ClientInfo {
        (**self).info()
    }

    fn train(&mut self, task: &TrainTask<B>) -> Result<LocalUpdate<B>, TrainError> {
        (**self).train(task)
    }

    fn evaluate(&mut self, global: &ParamVector<B>) -> Result<Metrics, TrainError> {
        (**self).evaluate(global)
    }

    fn state(&self) -> StateDict {
        (**self).state()
    }

    fn restore(&mut self, state: StateDict) -> Result<(), StateError> {
        (**self).restore(state)
    }
}

impl<B: Backend, C: ResamplingClient<B> + ?Sized> ResamplingClient<B> for Box<C> {
    fn train_on(&mut self, task: &TrainTask<B>, part: Resample) -> Result<LocalUpdate<B>, TrainError> {
        (**self).train_on(task, part)
    }
}
