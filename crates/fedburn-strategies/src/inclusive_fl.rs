//! InclusiveFL: one model for each size of client, which share layers, the larger of which teach the smaller.
//!
//! Ruixuan Liu, Fangzhao Wu, Chuhan Wu, Yanlin Wang, Lingjuan Lyu, Hong Chen, Xing Xie: "No One Left Behind: Inclusive
//! Federated Learning over Heterogeneous Devices", KDD 2022, arXiv 2202.08166. Code: `Rachelxuan11/InclusiveFL`.
//!
//! ```text
//! g_i      = sum over the clients k of size i of (x_t - x_k)
//! gbar_i   = mean of g_{i+1} of the last round over the layers from the top of size i to the top of size i + 1
//! g_i[top] <- beta gbar_i + (1 - beta) g_i[top]                              for every size but the largest
//! y_i      = x_t, one step of AdamW down g_i                                 for every size that sent something
//! x_{t+1}  = mean of y_i over the sizes that hold a value, by their examples; what none of them holds stays
//! ```
//!
//! | symbol | meaning | here |
//! |---|---|---|
//! | `x_t`, `x_k` | global vector, client k's after local training | `round.global`, the updates |
//! | size `i` | the net up to a depth, with the classifier there | [`Size`] |
//! | top | the last layer of a size before its classifier | the last of [`Size::layers`] |
//! | `beta` | weight of momentum distillation | [`InclusiveFlConfig::beta`] |
//!
//! Which size a client trained it says as [`SideInfo::SIZE`]; without, the largest. State between rounds, for each
//! size: AdamW's moments and the last gradients, from the first round in which it took part. Memory: three vectors of the
//! model for each size.
//!
//! Departures. Clients take local steps, whose sum stands for a gradient. Layers of one shape are averaged in `gbar_i`, so
//! that it is of the top's shape: all of a transformer, the blocks of one group of a residual net. The published code
//! assigns the mean in a loop in which the last layer wins; here it is the mean that the paper means. Top layers are
//! shared like others, which the code can leave out.

use burn::tensor::{Tensor, TensorData, backend::Backend};
use fedburn_core::{
    Aggregate, AggregateError, ParamEntry, ParamSchema, ParamVector, PerClientStrategy, Round, SideInfo, Size,
    StateDict, StateError, UpdateSet, is_below,
};
use serde::{Deserialize, Serialize};

use crate::StrategyConfigError;
use crate::adam::Adam;
use crate::server_step::LARGEST_STEP;

const KIND: &str = "inclusive_fl";

/// Settings of [`InclusiveFl`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InclusiveFlConfig {
    /// Learning rate of AdamW, positive.
    pub server_lr: f64,
    /// AdamW's decay of weights, at least 0.
    pub weight_decay: f64,
    /// Weight `beta` of what a larger model teaches a smaller one, in `[0, 1]`.
    pub beta: f64,
}

impl Default for InclusiveFlConfig {
    fn default() -> Self {
        Self { server_lr: 0.001, weight_decay: 0.0, beta: 0.5 }
    }
}

/// A model for each size of client.
#[derive(Clone, Debug)]
pub struct InclusiveFl<B: Backend> {
    config: InclusiveFlConfig,
    /// From the smallest to the largest.
    sizes: Vec<Size>,
    /// One a size, from the first round in which it took part.
    models: Vec<Option<SizeState<B>>>,
}

/// The sum of the gradients of a size's clients, and the number of their examples.
type Sum = (Vec<f64>, u64);

/// What is kept of a size.
#[derive(Clone, Debug)]
struct SizeState<B: Backend> {
    adam: Adam<B>,
    /// `g_i` of the last round in which it took part, zero where it holds nothing.
    gradient: ParamVector<B>,
}

impl<B: Backend> InclusiveFl<B> {
    /// For clients of these sizes, ascending.
    ///
    /// # Errors
    /// [`StrategyConfigError`] where a number is out of its range or there are no sizes.
    pub fn new(config: InclusiveFlConfig, sizes: Vec<Size>) -> Result<Self, StrategyConfigError> {
        StrategyConfigError::positive(KIND, "server_lr", config.server_lr)?;
        StrategyConfigError::not_negative(KIND, "weight_decay", config.weight_decay)?;
        let in_range = (0.0..=1.0).contains(&config.beta);
        StrategyConfigError::check(KIND, "beta", config.beta, in_range, "a number from 0 to 1")?;
        StrategyConfigError::check(KIND, "sizes", sizes.len(), !sizes.is_empty(), "a model of at least one size")?;
        let models = sizes.iter().map(|_| None).collect();
        Ok(Self { config, sizes, models })
    }

    /// `g_i` of each size that sent something, and its examples.
    fn gradients(&self, global: &[f32], updates: &UpdateSet<B>) -> Result<Vec<Option<Sum>>, String> {
        let mut gradients: Vec<Option<Sum>> = self.sizes.iter().map(|_| None).collect();
        for update in updates.iter() {
            let last = self.sizes.len() - 1;
            let size = update.local.side.scalars.get(SideInfo::<B>::SIZE).copied().unwrap_or(last as f64);
            let place = (0..=last).find(|place| *place as f64 == size).and_then(|place| gradients.get_mut(place));
            let Some(place) = place else {
                return Err(format!("client {} is of size {size}, expected 0 to {last}", update.client));
            };
            let (sum, examples) = place.get_or_insert_with(|| (vec![0.0; global.len()], 0));
            let trained = update.local.params.to_host();
            let change = global.iter().zip(&trained).map(|(x, y)| f64::from(*x) - f64::from(*y));
            sum.iter_mut().zip(change).for_each(|(sum, change)| *sum += change);
            *examples += update.local.num_examples;
        }
        Ok(gradients)
    }

    /// Mixes into the top layer of the size `size` what the next larger one's gradients of the last round were.
    fn distil(&self, size: usize, own: &mut [f64], schema: &ParamSchema) {
        let larger = self.models.get(size + 1).and_then(Option::as_ref).zip(self.sizes.get(size + 1));
        let (Some((larger, next)), Some(top)) = (larger, self.sizes[size].layers.last()) else { return };
        let layers: Vec<&String> = std::iter::once(top).chain(&next.layers).collect();
        let gradient = larger.gradient.to_host();
        for entry in below(schema, top) {
            let name = &entry.path[top.len()..];
            let same = |layer: &&String| schema.entry(&format!("{layer}{name}")).filter(|of| of.shape == entry.shape);
            let teachers: Vec<&ParamEntry> = layers.iter().filter_map(same).collect();
            for (index, own) in own[entry.range()].iter_mut().enumerate() {
                let sum: f64 = teachers.iter().map(|teacher| f64::from(gradient[teacher.offset + index])).sum();
                *own = self.config.beta * sum / teachers.len() as f64 + (1.0 - self.config.beta) * *own;
            }
        }
    }
}

/// The tensors of a layer.
fn below<'a>(schema: &'a ParamSchema, layer: &'a String) -> impl Iterator<Item = &'a ParamEntry> {
    schema.entries().iter().filter(move |entry| is_below(&entry.path, std::slice::from_ref(layer)))
}

impl<B: Backend> PerClientStrategy<B> for InclusiveFl<B> {
    fn name(&self) -> &'static str {
        KIND
    }

    fn aggregate(&mut self, round: &Round<'_, B>, updates: &UpdateSet<B>) -> Result<Aggregate<B>, AggregateError> {
        let unusable = |reason| AggregateError::Unusable { round: round.index, strategy: KIND, reason };
        let schema_error = |source| AggregateError::Schema { round: round.index, source };
        let (x, schema) = (round.global.to_host(), round.global.schema());
        let (mut sums, mut weights) = (vec![0.0f64; x.len()], vec![0.0f64; x.len()]);
        let mut models = self.models.clone();
        for (place, gradient) in self.gradients(&x, updates).map_err(unusable)?.into_iter().enumerate() {
            let Some((mut gradient, examples)) = gradient else { continue };
            let sent = gradient.clone();
            self.distil(place, &mut gradient, schema);
            let host = |values: Vec<f64>| -> Vec<f32> {
                values.into_iter().map(|value| value.clamp(-LARGEST_STEP, LARGEST_STEP) as f32).collect()
            };
            let mut adam =
                self.models[place].as_ref().map_or_else(|| Adam::new(round.global), |kept| kept.adam.clone());
            let gradient = Tensor::from_data(TensorData::new(host(gradient), [x.len()]), &round.global.device());
            let moved = adam.step(round.global, gradient, self.config.server_lr).map_err(schema_error)?.to_host();
            let decay = self.config.server_lr * self.config.weight_decay;
            for entry in schema.entries().iter().filter(|entry| is_below(&entry.path, &self.sizes[place].paths)) {
                for index in entry.range() {
                    sums[index] += examples as f64 * (f64::from(moved[index]) - decay * f64::from(x[index]));
                    weights[index] += examples as f64;
                }
            }
            let sent = ParamVector::from_host(host(sent), schema.clone(), &round.global.device());
            models[place] = Some(SizeState { adam, gradient: sent.map_err(schema_error)? });
        }
        let shared = x.iter().zip(sums.iter().zip(&weights));
        let next = shared.map(|(x, (sum, weight))| if *weight > 0.0 { (sum / weight) as f32 } else { *x }).collect();
        let next = ParamVector::from_host(next, schema.clone(), &round.global.device()).map_err(schema_error)?;
        self.models = models;
        Ok(next.into())
    }

    fn state(&self) -> StateDict {
        let mut state = StateDict::new();
        for (place, kept) in self.models.iter().enumerate().filter_map(|(place, kept)| Some((place, kept.as_ref()?))) {
            state.nest(&format!("adam {place}"), kept.adam.state());
            state.insert_params(format!("gradient {place}"), &kept.gradient);
        }
        state
    }

    fn restore(&mut self, mut state: StateDict, like: &ParamVector<B>) -> Result<(), StateError> {
        let mut models = Vec::new();
        for place in 0..self.sizes.len() {
            let adam = state.split_off(&format!("adam {place}"));
            models.push(match adam.is_empty() {
                true => None,
                false => Some(SizeState {
                    adam: Adam::restore(adam, like)?,
                    gradient: state.take_params(&format!("gradient {place}"), like.schema(), &like.device())?,
                }),
            });
        }
        state.expect_empty()?;
        self.models = models;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use burn_flex::{Flex, FlexDevice};
    use burn_ndarray::NdArray;
    use fedburn_core::{ClientUpdate, ParamKind, RoundIndex, Strategy};
    use fedburn_testkit::{Convexity, combine, strategy_laws, update};

    use super::*;

    fn paths(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    /// Size 0: `stem`, `b0`, `c0`; size 1: `stem`, `b0`, `b1`, `c1`. `b1` has a tensor that `b0` lacks.
    fn sizes() -> Vec<Size> {
        vec![
            Size { paths: paths(&["stem", "b0", "c0"]), layers: paths(&["stem", "b0"]) },
            Size { paths: paths(&["stem", "b0", "b1", "c1"]), layers: paths(&["b1"]) },
        ]
    }

    fn net() -> Arc<ParamSchema> {
        let entry = |(path, len)| ParamEntry::new(path, vec![len], ParamKind::Weight);
        let entries = [("stem.w", 1), ("b0.w", 2), ("b1.w", 2), ("b1.v", 1), ("c0.w", 1), ("c1.w", 1)].map(entry);
        Arc::new(ParamSchema::new(entries.into()).unwrap())
    }

    fn vector(values: [f32; 8]) -> ParamVector<Flex> {
        ParamVector::from_host(values.to_vec(), net(), &FlexDevice).unwrap()
    }

    fn sent(client: u64, examples: u64, size: f64, values: [f32; 8]) -> ClientUpdate<Flex> {
        let mut update = update(client, examples, vector(values));
        update.local.side.scalars.insert(SideInfo::<Flex>::SIZE.into(), size);
        update
    }

    fn strategy(config: InclusiveFlConfig) -> InclusiveFl<Flex> {
        InclusiveFl::new(config, sizes()).unwrap()
    }

    #[test]
    fn momentum_distillation_by_hand() {
        let mut strategy = strategy(InclusiveFlConfig::default());
        // The last gradients of the larger size: [0.4, 0.1] at `b0`, [0, 0.3] at `b1`.
        let gradient = vector([9.0, 0.4, 0.1, 0.0, 0.3, 9.0, 9.0, 9.0]);
        strategy.models[1] = Some(SizeState { adam: Adam::new(&gradient), gradient });
        let mut own = [5.0, 0.2, -0.1, 0.0, 0.0, 0.0, 5.0, 0.0];
        strategy.distil(0, &mut own, &net());
        assert!((own[1] - 0.2).abs() < 1e-7 && (own[2] - 0.05).abs() < 1e-7, "{own:?}");
        assert_eq!((own[0], own[6]), (5.0, 5.0), "the top alone");
        let mut largest = [1.0; 8];
        strategy.distil(1, &mut largest, &net());
        assert_eq!(largest, [1.0; 8], "nobody teaches the largest");
    }

    #[test]
    fn sizes_step_alone_and_share_layers_by_their_examples() {
        let config = InclusiveFlConfig { server_lr: 0.1, weight_decay: 0.0, beta: 0.0 };
        let mut strategy = Strategy::PerClient(Box::new(strategy(config)));
        let start = vector([1.0; 8]);
        // Adam's first step is by the learning rate against the sign.
        let small = sent(0, 1, 0.0, [2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 0.0, 1.0]);
        let large = sent(1, 3, 1.0, [0.0, 2.0, 1.0, 2.0, 2.0, 0.0, 1.0, 0.0]);
        let next = combine(&mut strategy, RoundIndex(1), &start, &[small, large]).unwrap().global.to_host();
        let shared = [(1.1 + 3.0 * 0.9) / 4.0, 1.1, (1.1 + 3.0) / 4.0];
        for (found, expected) in next.iter().zip(shared.into_iter().chain([1.1, 1.1, 0.9, 0.9, 0.9])) {
            assert!((f64::from(*found) - expected).abs() < 1e-6, "{next:?}");
        }
    }

    #[test]
    fn what_nobody_holds_stays_and_strangers_are_refused() {
        let config = InclusiveFlConfig { server_lr: 0.1, weight_decay: 0.5, beta: 0.5 };
        let mut strategy = Strategy::PerClient(Box::new(strategy(config)));
        let start = vector([1.0; 8]);
        let small = sent(0, 1, 0.0, [1.0; 8]);
        let next = combine(&mut strategy, RoundIndex(1), &start, &[small]).unwrap().global.to_host();
        // No gradient: weights decay by 0.1 x 0.5 where the size holds them.
        assert_eq!(next, [0.95, 0.95, 0.95, 1.0, 1.0, 1.0, 0.95, 1.0]);
        for size in [2.0, -1.0, 0.5, f64::NAN] {
            let stranger = [sent(4, 1, size, [1.0; 8])];
            let error = combine(&mut strategy, RoundIndex(1), &start, &stranger).unwrap_err().to_string();
            assert!(error.contains("client 4 is of size") && error.contains("expected 0 to 1"), "{error}");
        }
    }

    #[test]
    fn the_laws_of_strategies_hold() {
        fn check<B: Backend>() {
            // The only tensor of the laws' model.
            let make = || {
                let whole = Size { paths: paths(&["t0"]), layers: paths(&["t0"]) };
                let strategy = InclusiveFl::<B>::new(InclusiveFlConfig::default(), vec![whole]).unwrap();
                Strategy::PerClient(Box::new(strategy) as Box<dyn PerClientStrategy<B>>)
            };
            strategy_laws::<B>(make, Convexity::Free, &B::Device::default());
        }
        check::<Flex>();
        check::<NdArray>();
    }

    #[test]
    fn impossible_settings_are_refused() {
        let build = |change: fn(&mut InclusiveFlConfig)| {
            let mut config = InclusiveFlConfig::default();
            change(&mut config);
            InclusiveFl::<Flex>::new(config, sizes()).map(drop).map_err(|e| e.to_string())
        };
        assert!(build(|_| ()).is_ok());
        assert!(build(|c| c.beta = 1.5).unwrap_err().contains("beta = 1.5, expected a number from 0 to 1"));
        assert!(build(|c| c.server_lr = 0.0).unwrap_err().contains("server_lr"));
        assert!(build(|c| c.weight_decay = -1.0).unwrap_err().contains("weight_decay"));
        let none = InclusiveFl::<Flex>::new(InclusiveFlConfig::default(), Vec::new()).unwrap_err();
        assert!(none.to_string().contains("at least one size"));
    }
}
