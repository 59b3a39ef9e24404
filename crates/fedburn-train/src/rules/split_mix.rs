//! SplitMix: a wide net is several narrow ones, of which each client trains as many as it can.
//!
//! Junyuan Hong, Haotao Wang, Zhangyang Wang, Jiayu Zhou, "Efficient Split-Mix Federated Learning for On-Demand and
//! In-Situ Customization", ICLR 2022, arXiv:2203.09747; published code illidanlab/SplitMix.
//!
//! ```text
//! client of n nets:  receive n of the B nets
//!                    for each: the run's epochs of SGD on CE(f_i(x), y), by itself
//! server:            each net is the mean over the clients that trained it; one that nobody trained stays
//! prediction:        the mean of the scores of all nets
//! ```
//!
//! Which nets: the first from a cycle in which each client comes past every net, the others at random, without
//! repetition. The cycle is a new order of all nets after every `B` rounds; in round `t` the client `k` is at place
//! `(t + k) mod B` of it, so that clients of a round spread over the nets.
//!
//! State: none, at either end. Memory: that of one narrow net, and the values of the others.
//!
//! Departure: the published server keeps one cycle and deals the next net to the next client; here the place follows from
//! round and client, so that a run which is resumed goes on with the same nets.

use burn::nn::loss::CrossEntropyLoss;
use burn::optim::GradientsParams;
use burn::tensor::{Tensor, backend::Backend};
use fedburn_core::{ClientId, Mean, Mode, RoundIndex, Seed, SideInfo, SliceName, SubModels, TrainError, is_below};
use fedburn_data::Batch;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::flat::only;
use super::members::{held, member_name};
use super::{BatchGradients, GradientRule, LocalRule, LocalRun, TrainModel, Trained, descend};
use crate::Diverged;
use crate::depth::group_of;

/// The numbers of [`LocalSplitMix`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitMixConfig {
    /// How many nets each group of clients trains in a round, at least 1; more than there are makes all. Client `i` of
    /// `N` is in group `floor(G i / N)` of `G`.
    pub nets: Vec<usize>,
}

/// The server's half: which nets a client trains.
#[derive(Clone, Debug)]
pub(crate) struct NetCycle {
    pub(crate) config: SplitMixConfig,
    pub(crate) clients: usize,
    /// Number of nets.
    pub(crate) nets: usize,
    /// What orders are drawn from.
    pub(crate) seed: Seed,
}

impl NetCycle {
    /// The nets that `client` trains in `round`, the first from the cycle.
    fn nets(&self, round: RoundIndex, client: ClientId) -> Vec<usize> {
        let wanted = self.config.nets.get(group_of(self.config.nets.len(), client, self.clients));
        let (count, len) = (wanted.copied().unwrap_or(self.nets), self.nets as u64);
        let mut cycle: Vec<usize> = (0..self.nets).collect();
        cycle.shuffle(&mut self.seed.index(round.0 / len.max(1)).rng());
        let place = (round.0 % len.max(1) + client.0 % len.max(1)) % len.max(1);
        cycle.rotate_left(usize::try_from(place).unwrap_or(0));
        if let Some((_, others)) = cycle.split_first_mut() {
            others.shuffle(&mut self.seed.round(round).client(client).rng());
        }
        cycle.truncate(count);
        cycle
    }
}

impl SubModels for NetCycle {
    fn held(&self, round: RoundIndex, client: ClientId) -> Vec<SliceName> {
        let mut nets = self.nets(round, client);
        nets.sort_unstable();
        if nets.len() == self.nets { Vec::new() } else { nets.into_iter().map(member_name).collect() }
    }
}

/// Local SGD of one net after another.
#[derive(Clone, Copy, Debug)]
pub struct LocalSplitMix;

impl<B: Backend, M: TrainModel<B>> LocalRule<B, M> for LocalSplitMix {
    fn train(&mut self, mut model: M, run: &LocalRun<'_, B>) -> Result<Trained<B, M>, TrainError> {
        let (nets, held) = held(&model, run, "split_mix", "split_mix", false)?;
        let (mut loss, mut steps, mut accumulation) = (Mean::default(), 0, 0.0);
        for (index, net) in held.into_iter().enumerate() {
            let mut rule = run.training.sharpened(MemberLoss { member: net });
            let batches = run.training.batches(run.data, run.task.seed.index(index as u64), run.device);
            let (alone, mut optimiser) = (only(model, |path| is_below(path, &nets[net])), run.training.optimiser());
            let trained = descend(alone, batches, &mut rule, &mut optimiser, run.learning_rate())
                .map_err(|e| run.diverged(Diverged { step: steps + e.step }))?;
            model = trained.model;
            loss.merge(trained.loss);
            steps += trained.steps;
            accumulation += run.accumulation(trained.steps, 0.0);
        }
        Ok(Trained { model, loss, steps, accumulation, side: SideInfo::default() })
    }
}

/// A gradient rule: the cross-entropy of one member of an ensemble alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct MemberLoss {
    pub(super) member: usize,
}

impl<B: Backend, M: TrainModel<B>> GradientRule<B, M> for MemberLoss {
    fn gradients(&mut self, model: M, batch: Batch<B>) -> BatchGradients<B, M> {
        let inputs = Tensor::from_inner(batch.inputs);
        let alone = model.ensemble().and_then(|all| all.logits(&[self.member], inputs.clone(), Mode::Train).pop());
        let logits = alone.unwrap_or_else(|| model.forward(inputs, Mode::Train));
        let loss = CrossEntropyLoss::new(None, &logits.device()).forward(logits, Tensor::from_inner(batch.labels));
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        BatchGradients { model, gradients, loss: loss.inner() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn cycle(nets: &[usize], of: usize) -> NetCycle {
        NetCycle { config: SplitMixConfig { nets: nets.to_vec() }, clients: 4, nets: of, seed: Seed::new(5) }
    }

    #[test]
    fn every_client_comes_past_every_net_and_no_net_comes_twice() {
        let cycle = cycle(&[1, 3], 5);
        for client in (0..4).map(ClientId) {
            for begin in [5, 10, 35] {
                let first = |round| cycle.nets(RoundIndex(round), client)[0];
                assert_eq!((begin..begin + 5).map(first).collect::<BTreeSet<_>>().len(), 5, "{client}, from {begin}");
            }
        }
        for round in (1..30).map(RoundIndex) {
            assert_eq!(cycle.nets(round, ClientId(1)).len(), 1);
            let nets = cycle.nets(round, ClientId(2));
            assert_eq!((nets.len(), BTreeSet::from_iter(nets).len()), (3, 3));
            let firsts = (0..4).map(|client| cycle.nets(round, ClientId(client))[0]);
            assert_eq!(BTreeSet::from_iter(firsts).len(), 4, "clients of a round are spread over the nets");
        }
    }

    #[test]
    fn who_holds_all_nets_holds_the_whole() {
        let cycle = cycle(&[2, 9], 2);
        assert!((0..4).all(|client| cycle.held(RoundIndex(3), ClientId(client)).is_empty()));
        let held = self::cycle(&[2, 4], 4).held(RoundIndex(3), ClientId(0));
        assert_eq!(held.len(), 2);
        assert!(held.is_sorted() && held.iter().all(|name| name.starts_with("member ")), "{held:?}");
    }

    #[test]
    fn the_order_is_drawn_from_the_seed() {
        let order = |seed| {
            let cycle = NetCycle { seed: Seed::new(seed), ..cycle(&[3], 8) };
            (1..17).map(|round| cycle.nets(RoundIndex(round), ClientId(0))).collect::<Vec<_>>()
        };
        assert_eq!(order(1), order(1));
        assert_ne!(order(1), order(2));
        assert_ne!(order(1)[..8], order(1)[8..], "a new order after all nets");
    }
}
