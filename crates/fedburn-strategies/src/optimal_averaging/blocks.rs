//! Plug-in weights for models: blocks of parameters, each with a weight of its own.

use std::ops::Range;

use fedburn_core::{MixingBlocks, MixingConfig, MixingEstimator, ParamEntry, ParamKind, ParamSchema};

use crate::StrategyConfigError;

/// Checked settings of mixing a local model `L` with a global one `G`.
///
/// The squared distance of the two models estimates `E[(L - G)^2]` without bias, so that a variance estimate `Vhat` is
/// all that is missing. For a block of `q` elements, with the client's own weight `w_0` in `G`:
///
/// ```text
/// plain : alpha = clip((1 - w_0) sum Vhat / sum (L - G)^2, 0, 1)
/// stein : alpha = clip((q - 2) / q * (1 - w_0) sum Vhat / sum (L - G)^2, 0, 1)
/// ```
///
/// The Stein form is positive-part James–Stein shrinkage of `L` towards `G` and better than `L` alone for Gaussian errors
/// of equal known variance. Weights for single elements have no such guarantee: each divides by a square that is often
/// tiny by chance.
///
/// W. James, C. Stein: "Estimation with Quadratic Loss", Berkeley Symposium 1961.
#[derive(Clone, Debug, PartialEq)]
pub struct Mixing {
    config: MixingConfig,
}

/// A mix of two models.
#[derive(Clone, Debug, PartialEq)]
pub struct Mixed {
    /// The parameters, in schema order.
    pub values: Vec<f32>,
    /// Names and weights of the global model in each block, `[0, 1]`; the mean over a tensor where each element has its
    /// own.
    pub weights: Vec<(String, f64)>,
    /// The weight of the global model, mean over weights.
    pub global_share: f64,
}

impl Mixing {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`StrategyConfigError::Value`]: `own_share` outside `[0, 1)`, fewer than two models for the variance, the Stein
    /// form for single elements.
    pub fn new(config: MixingConfig) -> Result<Self, StrategyConfigError> {
        let refuse =
            |field, value: String, expected| Err(StrategyConfigError::Value { kind: "mixing", field, value, expected });
        if !(0.0..1.0).contains(&config.own_share) {
            return refuse("own_share", config.own_share.to_string(), "a number in [0, 1)");
        }
        if config.variance.models() < 2 {
            return refuse("variance", config.variance.models().to_string(), "at least 2 parts or samples");
        }
        if (config.blocks, config.estimator) == (MixingBlocks::PerElement, MixingEstimator::Stein) {
            return refuse("estimator", "stein".to_owned(), "plain, as Stein's form needs blocks of three elements");
        }
        Ok(Self { config })
    }

    /// The settings that were checked.
    pub fn config(&self) -> &MixingConfig {
        &self.config
    }

    /// The weight of the global model in a block of `elements` elements with these sums of `Vhat` and `(L - G)^2`: 0
    /// where the models are equal, or where Stein's form is not defined.
    pub fn weight(&self, elements: usize, variance: f64, squared_distance: f64) -> f64 {
        let shrink = match self.config.estimator {
            MixingEstimator::Plain => 1.0,
            MixingEstimator::Stein => elements.saturating_sub(2) as f64 / elements.max(1) as f64,
        };
        if squared_distance <= 0.0 || shrink <= 0.0 {
            return 0.0;
        }
        (shrink * (1.0 - self.config.own_share) * variance / squared_distance).clamp(0.0, 1.0)
    }

    /// Mixes two models of `schema`, given the variance of the local one. Running statistics are the local model's,
    /// which describe the data that the mix will see.
    ///
    /// Where one of the models holds a number that is not finite, the result is the other one.
    pub fn mix(&self, schema: &ParamSchema, local: &[f32], variance: &[f32], global: &[f32]) -> Mixed {
        let is_finite = |values: &[f32]| values.iter().all(|v| v.is_finite());
        let blocks = blocks(schema, self.config.blocks);
        let elementwise = self.config.blocks == MixingBlocks::PerElement;
        let forced = match (is_finite(local) && is_finite(variance), is_finite(global)) {
            (_, false) => Some(0.0),
            (false, true) => Some(1.0),
            (true, true) => None,
        };
        let mut values = if forced == Some(1.0) { global.to_vec() } else { local.to_vec() };
        let (mut weights, mut share, mut count) = (Vec::with_capacity(blocks.len()), 0.0, 0);
        for block in blocks {
            let elements: usize = block.ranges.iter().map(Range::len).sum();
            let square = |i: usize| (f64::from(local[i]) - f64::from(global[i])).powi(2);
            let indices = || block.ranges.iter().cloned().flatten();
            let mut total = 0.0;
            let whole = forced.unwrap_or_else(|| {
                let sums = |of: &dyn Fn(usize) -> f64| indices().map(of).sum::<f64>();
                self.weight(elements, sums(&|i| f64::from(variance[i])), sums(&square))
            });
            for i in indices() {
                let own = || self.weight(1, f64::from(variance[i]), square(i));
                let alpha = if elementwise { forced.unwrap_or_else(own) } else { whole };
                if forced.is_none() {
                    values[i] = ((1.0 - alpha) * f64::from(local[i]) + alpha * f64::from(global[i])) as f32;
                }
                total += alpha;
            }
            let weight = if elementwise { total / elements as f64 } else { whole };
            weights.push((block.name, weight));
            (share, count) = (share + weight * elements as f64, count + elements);
        }
        Mixed { values, weights, global_share: share / (count.max(1) as f64) }
    }
}

/// Parameters that share a weight.
struct Block {
    name: String,
    ranges: Vec<Range<usize>>,
}

/// Weights alone, in schema order. For weights of single elements the blocks are tensors, which name the results.
fn blocks(schema: &ParamSchema, kind: MixingBlocks) -> Vec<Block> {
    let entries: Vec<_> = schema.entries().iter().filter(|e| e.kind == ParamKind::Weight && !e.is_empty()).collect();
    let block = |entry: &&ParamEntry| Block { name: entry.path.clone(), ranges: vec![entry.range()] };
    match kind {
        MixingBlocks::PerModel if entries.is_empty() => Vec::new(),
        MixingBlocks::PerModel => vec![Block { name: "*".to_owned(), ranges: schema.weight_ranges() }],
        MixingBlocks::PerElement => entries.iter().map(block).collect(),
        MixingBlocks::PerTensor => {
            let (large, small): (Vec<&ParamEntry>, Vec<_>) = entries.iter().partition(|e| e.len() >= FEWEST);
            let mut blocks: Vec<Block> = large.iter().map(block).collect();
            let mut lonely = Block { name: "*".to_owned(), ranges: Vec::new() };
            for entry in small {
                let nearest = large.iter().enumerate().rev().max_by_key(|(_, other)| shared(&entry.path, &other.path));
                nearest.map_or(&mut lonely, |(index, _)| &mut blocks[index]).ranges.push(entry.range());
            }
            blocks.extend(Some(lonely).filter(|block| !block.ranges.is_empty()));
            blocks
        }
    }
}

/// The fewest elements for which Stein's form is defined.
const FEWEST: usize = 3;

/// Number of path components that two tensors have in common from the start: how close their layers are.
fn shared(a: &str, b: &str) -> usize {
    a.split('.').zip(b.split('.')).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use fedburn_core::VarianceConfig;

    use super::*;

    fn schema(entries: &[(&str, usize)]) -> ParamSchema {
        let kind = |path: &str| if path.contains("running") { ParamKind::Buffer } else { ParamKind::Weight };
        let entries = entries.iter().map(|(path, len)| ParamEntry::new(*path, vec![*len], kind(path)));
        ParamSchema::new(entries.collect()).unwrap()
    }

    fn mixing(blocks: MixingBlocks, estimator: MixingEstimator) -> Mixing {
        Mixing::new(MixingConfig { blocks, estimator, ..MixingConfig::default() }).unwrap()
    }

    const LOCAL: [f32; 3] = [1.0, 2.0, 3.0];
    const GLOBAL: [f32; 3] = [0.75, 2.25, 3.45];
    const VARIANCE: [f32; 3] = [0.02; 3];

    fn expect(mixed: &Mixed, weights: &[f64], values: [f32; 3]) {
        assert!(mixed.weights.iter().zip(weights).all(|((_, w), e)| (w - e).abs() < 1e-6), "{mixed:?}");
        assert!(mixed.values.iter().zip(values).all(|(v, e)| (v - e).abs() < 1e-5), "{mixed:?}");
    }

    #[test]
    fn the_example_for_a_tensor() {
        let schema = schema(&[("w", 3)]);
        let mix = |blocks, estimator| mixing(blocks, estimator).mix(&schema, &LOCAL, &VARIANCE, &GLOBAL);
        let plain = mix(MixingBlocks::PerTensor, MixingEstimator::Plain);
        expect(&plain, &[0.183_206_11], [0.954_198_5, 2.045_801_5, 3.082_442_8]);
        let stein = mix(MixingBlocks::PerTensor, MixingEstimator::Stein);
        expect(&stein, &[0.061_068_70], [0.984_732_8, 2.015_267_2, 3.027_480_9]);
        let each = mix(MixingBlocks::PerElement, MixingEstimator::Plain);
        expect(&each, &[(0.32 + 0.32 + 0.098_765_43) / 3.0], [0.92, 2.08, 3.044_444_4]);
    }

    #[test]
    fn small_tensors_join_the_nearest_layer() {
        let names = |entries: &[(&str, usize)]| {
            let blocks = blocks(&schema(entries), MixingBlocks::PerTensor);
            blocks.into_iter().map(|b| (b.name, b.ranges)).collect::<Vec<_>>()
        };
        let found = names(&[("a.weight", 4), ("a.bias", 1), ("b.running_mean", 2), ("b.c.weight", 6), ("b.bias", 2)]);
        assert_eq!(found, [("a.weight".into(), vec![0..4, 4..5]), ("b.c.weight".into(), vec![7..13, 13..15])]);
        assert_eq!(names(&[("a", 1), ("b", 2)]), [("*".into(), vec![0..1, 1..3])]);
    }

    #[test]
    fn blocks_are_independent_and_running_statistics_are_the_clients() {
        let schema = schema(&[("a", 3), ("n.running_mean", 1), ("b", 3)]);
        let mixing = mixing(MixingBlocks::PerTensor, MixingEstimator::Plain);
        let local = [0.0, 0.0, 0.0, 5.0, 0.0, 0.0, 0.0];
        let global = [1.0, 1.0, 1.0, 9.0, 2.0, 2.0, 2.0];
        let mixed = mixing.mix(&schema, &local, &[0.5; 7], &global);
        assert_eq!(mixed.values, [0.5, 0.5, 0.5, 5.0, 0.25, 0.25, 0.25]);
        assert_eq!(mixed.weights, [("a".to_owned(), 0.5), ("b".to_owned(), 0.125)]);
        assert_eq!(mixed.global_share, 0.3125);
    }

    #[test]
    fn odd_models_have_an_answer() {
        let schema = schema(&[("w", 3)]);
        let mixing = mixing(MixingBlocks::PerTensor, MixingEstimator::Stein);
        assert_eq!(mixing.mix(&schema, &LOCAL, &VARIANCE, &LOCAL).weights[0].1, 0.0, "equal models");
        let broken = [f32::NAN, 0.0, 0.0];
        assert_eq!(mixing.mix(&schema, &broken, &VARIANCE, &GLOBAL).values, GLOBAL);
        assert_eq!(mixing.mix(&schema, &LOCAL, &VARIANCE, &broken).values, LOCAL);
        assert_eq!(mixing.mix(&schema, &LOCAL, &[f32::INFINITY; 3], &GLOBAL).values, GLOBAL);
        assert_eq!(mixing.mix(&schema, &LOCAL, &[9.0; 3], &GLOBAL).values, GLOBAL, "noise without end");
        assert_eq!(mixing.weight(2, 1.0, 1.0), 0.0, "not defined, so local");
    }

    /// Shrinking towards the peers, `P = (G - w_0 L) / (1 - w_0)`, is the same mix.
    #[test]
    fn the_own_share_is_the_conversion_between_peers_and_all() {
        let own_share = 0.25;
        let config = MixingConfig { own_share, ..MixingConfig::default() };
        let all = Mixing::new(config).unwrap().mix(&schema(&[("w", 3)]), &LOCAL, &VARIANCE, &GLOBAL);
        let peers: Vec<f32> = LOCAL.iter().zip(GLOBAL).map(|(l, g)| (g - 0.25 * l) / 0.75).collect();
        let alone = mixing(MixingBlocks::PerTensor, MixingEstimator::Stein);
        let alone = alone.mix(&schema(&[("w", 3)]), &LOCAL, &VARIANCE, &peers);
        assert!((all.weights[0].1 - alone.weights[0].1 / 0.75).abs() < 1e-6);
        assert!(all.values.iter().zip(&alone.values).all(|(a, b)| (a - b).abs() < 1e-6));
    }

    #[test]
    fn meaningless_settings_are_refused_by_name() {
        let cases = [
            ("own_share", MixingConfig { own_share: 1.0, ..MixingConfig::default() }),
            ("own_share", MixingConfig { own_share: f64::NAN, ..MixingConfig::default() }),
            ("variance", MixingConfig { variance: VarianceConfig::Split { parts: 1 }, ..MixingConfig::default() }),
            ("estimator", MixingConfig { blocks: MixingBlocks::PerElement, ..MixingConfig::default() }),
        ];
        for (field, config) in cases {
            let message = Mixing::new(config).unwrap_err().to_string();
            assert!(message.contains(&format!("strategy `mixing`: {field} = ")), "{message}");
        }
    }
}
