//! What a client sends back.

use std::borrow::Cow;
use std::collections::BTreeMap;

use burn::tensor::backend::Backend;
use serde::{Deserialize, Serialize};

use crate::{ClientId, Metrics, ParamVector};

/// The name of a piece of side information, unique among an algorithm's pieces.
pub type SideName = Cow<'static, str>;

/// What an algorithm sends besides the model, either way: control variates, a round's learning rate. Empty for most.
#[derive(Clone, Debug)]
pub struct SideInfo<B: Backend> {
    /// Vectors: a client's are of the model's schema, the server's of one that both know ([`Schemas`](crate::Schemas)).
    pub vectors: BTreeMap<SideName, ParamVector<B>>,
    /// Numbers.
    pub scalars: BTreeMap<SideName, f64>,
}

impl<B: Backend> Default for SideInfo<B> {
    fn default() -> Self {
        Self { vectors: BTreeMap::new(), scalars: BTreeMap::new() }
    }
}

impl<B: Backend> SideInfo<B> {
    /// Scalar from the server: how far, in `[0, 1]`, the round's learning rate moves from the client's own towards
    /// [`SideInfo::RATE_TARGET`] (cyclic rates of stochastic weight averaging).
    pub const RATE_BLEND: &'static str = "rate_blend";
    /// Scalar from the server: the learning rate that [`SideInfo::RATE_BLEND`] leads to.
    pub const RATE_TARGET: &'static str = "rate_target";
    /// Vector from the server: its control variate, `c` of SCAFFOLD.
    pub const CONTROL: &'static str = "control";
    /// Vector from the client: how its control variate changed in the round, `c_k+ - c_k` of SCAFFOLD.
    pub const CONTROL_DELTA: &'static str = "control_delta";
    /// Scalar from the server: the strength of the regulariser, positive, `alpha` of FedDyn.
    pub const ALPHA: &'static str = "alpha";
    /// Scalar from the client: which size of model it trained, from 0, the smallest, of InclusiveFL.
    pub const SIZE: &'static str = "size";
    /// Vector from the server: its generator of features, of a schema of its own, `G` of FedGen.
    pub const GENERATOR: &'static str = "generator";

    /// Bytes of this information on the wire: four a vector value, eight a scalar.
    pub fn num_bytes(&self) -> u64 {
        self.vectors.values().map(|v| v.schema().num_bytes()).sum::<u64>() + 8 * self.scalars.len() as u64
    }
}

/// What a strategy asks clients to report besides parameters. Each item is personal data; nothing by default. Clients
/// may keep their class counts to themselves; without the rest, an update is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reports {
    /// Number of training examples of each class.
    pub class_counts: bool,
    /// How much the client's steps add up to (FedNova).
    pub accumulation: bool,
    /// Number of local steps.
    pub steps: bool,
}

/// What a client reported, as far as it was asked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClientReport {
    /// Number of training examples of each class, by class: in all those of the update, which is refused otherwise.
    pub class_counts: Option<Vec<u64>>,
    /// The 1-norm of the accumulation vector of the local steps, `a_k` of FedNova: their number for plain SGD, more with
    /// momentum, less with a proximal term.
    pub accumulation: Option<f64>,
    /// Number of local steps, `tau_k`.
    pub steps: Option<u64>,
}

/// What a client returns; becomes a [`ClientUpdate`] once checked. The sender's identity comes from the transport,
/// never from the message.
#[derive(Clone, Debug)]
pub struct LocalUpdate<B: Backend> {
    /// The client's parameters after local training, `x_k`: parameters, not a difference, so that nothing is lost.
    pub params: ParamVector<B>,
    /// Number of examples trained on, `n_k`.
    pub num_examples: u64,
    /// What the algorithm sends besides the model.
    pub side: SideInfo<B>,
    /// What the strategy asked for.
    pub report: ClientReport,
    /// Training metrics, weighted by examples.
    pub metrics: Metrics,
}

/// One client's answer, already validated: the schema matches, the values are finite, there is at least one example.
#[derive(Clone, Debug)]
pub struct ClientUpdate<B: Backend> {
    /// Who sent it.
    pub client: ClientId,
    /// What it sent.
    pub local: LocalUpdate<B>,
}
