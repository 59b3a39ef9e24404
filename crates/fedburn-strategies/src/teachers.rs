//! The clients' models as teachers: a few networks in memory, whatever the number of clients.

use std::ops::Range;

use burn::backend::Autodiff;
use burn::tensor::{Tensor, backend::Backend};
use fedburn_core::{Classifier, Mode, ModelFamily, ParamVector, SchemaError, load_frozen};

use crate::network::blank;

/// One client's scores `t_k` `[batch, classes]` with its weights `a_k` `[batch]`.
#[derive(Clone, Debug)]
pub(crate) struct Taught<B: Backend> {
    pub scores: Tensor<B, 2>,
    pub weights: Tensor<B, 1>,
}

/// The sum of at least one client's term.
pub(crate) fn total<B: Backend, const D: usize>(mut terms: impl Iterator<Item = Tensor<B, D>>) -> Tensor<B, D> {
    let first = terms.next().expect("a round has at least one client");
    terms.fold(first, |sum, term| sum + term)
}

/// Networks that hold vectors to be asked for scores, never trained. Nothing of a vector changes by being asked: its
/// running statistics are read, not followed, and no gradient reaches its weights.
pub(crate) struct Teachers<'a, B: Backend, F: ModelFamily<B>> {
    family: &'a F,
    models: Vec<&'a ParamVector<B>>,
    device: B::Device,
    /// The first clients keep a network each; the others share the last one.
    slots: Vec<Option<(usize, F::TrainModel)>>,
}

impl<'a, B: Backend, F: ModelFamily<B>> Teachers<'a, B, F> {
    /// The `models`, one at least, with at most `resident` networks in memory, at least one.
    pub(crate) fn new(family: &'a F, models: Vec<&'a ParamVector<B>>, resident: usize, device: B::Device) -> Self {
        let slots = (0..resident.clamp(1, models.len())).map(|_| None).collect();
        Self { family, models, device, slots }
    }

    pub(crate) fn len(&self) -> usize {
        self.models.len()
    }

    /// The network with the model of the `k`-th client.
    pub(crate) fn network(&mut self, k: usize) -> Result<&F::TrainModel, SchemaError> {
        let place = k.min(self.slots.len() - 1);
        let network = match self.slots[place].take() {
            Some((held, network)) if held == k => network,
            other => {
                let network = other.map_or_else(|| blank(self.family, &self.device), |(_, network)| network);
                load_frozen(network, self.models[k])?
            }
        };
        Ok(&self.slots[place].insert((k, network)).1)
    }

    /// Scores `[batch, classes]` of the `k`-th client's model for `x` `[batch, channels, height, width]`, through which
    /// gradients flow to `x` where it asks for them.
    pub(crate) fn scores(
        &mut self,
        k: usize,
        x: Tensor<Autodiff<B>, 4>,
    ) -> Result<Tensor<Autodiff<B>, 2>, SchemaError> {
        Ok(self.network(k)?.forward(x, Mode::Evaluate))
    }

    /// What the clients of `group` say of `x` `[batch, channels, height, width]`, with their `weights` `[batch]`, which
    /// are those of all teachers.
    pub(crate) fn taught(
        &mut self,
        group: Range<usize>,
        weights: &[Tensor<B, 1>],
        x: &Tensor<B, 4>,
    ) -> Result<Vec<Taught<Autodiff<B>>>, SchemaError> {
        let one = |k: usize| {
            let scores = self.scores(k, Tensor::from_inner(x.clone()))?;
            Ok(Taught { scores, weights: Tensor::from_inner(weights[k].clone()) })
        };
        group.map(one).collect()
    }
}

#[cfg(test)]
mod tests {
    use burn::module::AutodiffModule;
    use burn_flex::{Flex, FlexDevice};
    use fedburn_core::{Seed, flatten, load};
    use fedburn_models::{Zoo, ZooConfig};

    use super::*;

    /// Asked as often as one likes and however many networks there are, with batch normalisation that would follow what
    /// it sees in training.
    #[test]
    fn teachers_say_what_they_always_say_and_keep_every_bit() {
        let config: ZooConfig = toml::from_str("kind = 'resnet'\ndepth = 8\nnorm = 'batch'").unwrap();
        let family: Zoo = config.build([1, 4, 4], 3).unwrap();
        let init = |seed| ModelFamily::<Flex>::init(&family, Seed::new(seed), &FlexDevice);
        let models = [1, 2, 3].map(|seed| flatten(&init(seed)).unwrap());
        let x = Tensor::<Flex, 1, burn::tensor::Int>::arange(0..96, &FlexDevice).float().sin().reshape([6, 1, 4, 4]);
        let said = |k: usize| load(init(0), &models[k]).unwrap().forward(x.clone(), Mode::Evaluate).into_data();
        for resident in [1, 2, 3] {
            let mut teachers = Teachers::new(&family, models.iter().collect(), resident, FlexDevice);
            for k in [0, 1, 2, 2, 0, 1] {
                let scores = teachers.scores(k, Tensor::from_inner(x.clone()).require_grad()).unwrap();
                assert_eq!(scores.clone().inner().into_data(), said(k), "teacher {k}");
                scores.sum().backward();
                let network = teachers.network(k).unwrap();
                assert_eq!(flatten(&network.valid()).unwrap().to_host(), models[k].to_host());
            }
        }
    }
}
