//! InclusiveFL, the client half: a model of the client's size, which is a net up to a depth with the classifier there.
//!
//! Ruixuan Liu, Fangzhao Wu, Chuhan Wu, Yanlin Wang, Lingjuan Lyu, Hong Chen, Xing Xie, "No One Left Behind: Inclusive
//! Federated Learning over Heterogeneous Devices", KDD 2022, arXiv:2202.08166.
//!
//! ```text
//! client of size i:  receive the net up to the depth of the classifier i, and this classifier
//!                    the run's epochs of SGD on CE(o_i, y)
//! ```
//!
//! State: none. The client says its size, [`SideInfo::SIZE`]; what larger models teach smaller ones is the affair of the
//! strategy `inclusive_fl`. Departure: the paper's clients send the gradient of a step, ours what an ordinary run changes.

use burn::tensor::backend::Backend;
use fedburn_core::{ClientId, RoundIndex, SideInfo, SliceName, SubModels, TrainError};
use serde::{Deserialize, Serialize};

use super::members::held;
use super::split_mix::MemberLoss;
use super::{LocalRule, LocalRun, TrainModel, Trained};
use crate::depth::group_of;

/// The numbers of [`LocalInclusiveFl`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InclusiveFlRuleConfig {
    /// Which size each group of clients trains, from 1, the smallest; more than there are makes the largest. Client `i`
    /// of `N` is in group `floor(G i / N)` of `G`.
    pub sizes: Vec<usize>,
}

/// The name of the model of a size, from 0, as a part of the whole.
pub(crate) fn size_name(size: usize) -> SliceName {
    format!("size {size}").into()
}

/// The server's half of who trains what: each client holds the model of its group's size.
#[derive(Clone, Debug)]
pub(crate) struct SizesOfGroups {
    pub(crate) config: InclusiveFlRuleConfig,
    pub(crate) clients: usize,
    /// Number of sizes.
    pub(crate) sizes: usize,
}

impl SubModels for SizesOfGroups {
    fn held(&self, _round: RoundIndex, client: ClientId) -> Vec<SliceName> {
        let size = self.config.sizes.get(group_of(self.config.sizes.len(), client, self.clients));
        vec![size_name(size.map_or(self.sizes, |size| *size.min(&self.sizes)).saturating_sub(1))]
    }
}

/// Local SGD of the model of the client's size.
#[derive(Clone, Copy, Debug)]
pub struct LocalInclusiveFl;

impl<B: Backend, M: TrainModel<B>> LocalRule<B, M> for LocalInclusiveFl {
    fn train(&mut self, model: M, run: &LocalRun<'_, B>) -> Result<Trained<B, M>, TrainError> {
        let (members, _) = held(&model, run, "inclusive_fl", "depth_fl", true)?;
        let named = (0..members.len()).find(|&size| run.task.slice.contains(&size_name(size)));
        let member = named.unwrap_or(members.len().saturating_sub(1));
        let mut trained = run.descend(model, &mut run.training.sharpened(MemberLoss { member }))?;
        trained.side.scalars.insert(SideInfo::<B>::SIZE.into(), member as f64);
        Ok(trained)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_hold_models_of_their_size() {
        let config = InclusiveFlRuleConfig { sizes: vec![1, 1, 2, 9] };
        let sizes = SizesOfGroups { config, clients: 4, sizes: 3 };
        let held: Vec<_> = (0..4).flat_map(|client| sizes.held(RoundIndex(1), ClientId(client))).collect();
        assert_eq!(held, ["size 0", "size 0", "size 1", "size 2"]);
    }
}
