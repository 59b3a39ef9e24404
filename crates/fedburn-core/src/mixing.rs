//! How much each client counted.

use serde::{Deserialize, Serialize};

use crate::ClientId;

/// How much each client counted in a round's result, tensor by tensor: the mean over a tensor's elements where the
/// weights differ within it, one row named `*` where they are the same for the whole model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MixingWeights {
    /// The clients, sorted.
    pub clients: Vec<ClientId>,
    /// Paths of the model's tensors in schema order, or `*` alone.
    pub tensors: Vec<String>,
    /// `weights[tensor][client]`; the weights of a tensor usually add up to one.
    pub weights: Vec<Vec<f64>>,
}

impl MixingWeights {
    /// The same weight everywhere in the model.
    pub fn whole(clients: Vec<ClientId>, weights: Vec<f64>) -> Self {
        Self { clients, tensors: vec!["*".to_owned()], weights: vec![weights] }
    }
}
