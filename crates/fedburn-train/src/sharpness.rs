//! How sharp the minimum is that a model lies in: curvature, and the loss around it.
//!
//! The largest eigenvalue of the loss's Hessian, by power iteration; products of the Hessian with a vector are central
//! differences of gradients, `H v ~ (grad f(x + r v) - grad f(x - r v)) / 2 r` with `norm(v) = 1`. As a measure of
//! sharpness: Keskar, Mudigere, Nocedal, Smelyanskiy and Tang, "On Large-Batch Training for Deep Learning:
//! Generalization Gap and Sharp Minima", ICLR 2017, arXiv:1609.04836. Power iteration on neural networks: Yao, Gholami,
//! Keutzer and Mahoney, "PyHessian: Neural Networks Through the Lens of the Hessian", 2020, arXiv:1912.07145.
//!
//! The loss along a random direction follows Li, Xu, Taylor, Studer and Goldstein, "Visualizing the Loss Landscape of
//! Neural Nets", NeurIPS 2018, arXiv:1712.09913, but the direction as a whole is scaled to the norm of the weights, not
//! filter by filter.

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::nn::loss::CrossEntropyLoss;
use burn::optim::GradientsParams;
use burn::tensor::{ElementConversion, Tensor, backend::Backend};
use fedburn_core::{
    Classifier, EvaluateError, Metrics, Mode, ModelFamily, ParamKind, ParamVector, SchemaError, Seed, flat_gradients,
};
use fedburn_data::{Batches, ClientData};
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};

use crate::{ResidentModel, TrainingConfigError, evaluate_classifier};

/// How sharpness is measured. [`SharpnessConfig::build`] checks it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SharpnessConfig {
    /// Examples that the loss is taken over, at least 1; all of them where there are fewer.
    pub examples: usize,
    /// Most rounds of power iteration, at least 1; each costs two gradients over the examples.
    pub iterations: usize,
    /// Length `r` of the finite differences, above 0.
    pub step: f64,
    /// How far to go along the random direction, either way, in norms of the weights; above 0.
    pub radius: f64,
    /// Points along the direction, odd and at least 3, so that the model itself is one.
    pub points: usize,
}

impl Default for SharpnessConfig {
    fn default() -> Self {
        Self { examples: 1000, iterations: 30, step: 0.01, radius: 0.5, points: 21 }
    }
}

impl SharpnessConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// [`TrainingConfigError::Invalid`] with the first field that cannot be used.
    pub fn build(self) -> Result<Self, TrainingConfigError> {
        let invalid = |field, value: String, expected| Err(TrainingConfigError::Invalid { field, value, expected });
        for (field, value) in [("examples", self.examples), ("iterations", self.iterations)] {
            if value == 0 {
                return invalid(field, value.to_string(), "at least 1");
            }
        }
        for (field, value) in [("step", self.step), ("radius", self.radius)] {
            if !(value > 0.0 && value.is_finite()) {
                return invalid(field, value.to_string(), "a number above 0");
            }
        }
        match self.points {
            points if points >= 3 && points % 2 == 1 => Ok(self),
            points => invalid("points", points.to_string(), "an odd number of at least 3"),
        }
    }
}

/// How sharp a minimum is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sharpness {
    /// The largest eigenvalue of the Hessian of the mean cross-entropy; `None` where gradients are not finite.
    pub top_eigenvalue: Option<f64>,
    /// Products with the Hessian that it took.
    pub products: usize,
    /// Whether the last two estimates agree to one part in a thousand.
    pub converged: bool,
    /// Examples that the loss was taken over.
    pub examples: usize,
    /// The loss along a random direction, in order of the distance.
    pub curve: Vec<LossAt>,
}

/// The loss at a distance from a model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossAt {
    /// Distance along the direction in norms of the model's weights, negative on the other side.
    pub distance: f64,
    /// Mean cross-entropy there; `None` where it is not finite.
    pub loss: Option<f64>,
}

/// Measures the sharpness of models of one family on examples that belong to the server. Normalisation layers use their
/// running statistics, which stay as they are, as do the models.
#[derive(Debug)]
pub struct SharpnessEvaluator<B: Backend, F: ModelFamily<B>> {
    config: SharpnessConfig,
    data: ClientData,
    resident: ResidentModel<B, F>,
}

impl<B: Backend, F: ModelFamily<B>> SharpnessEvaluator<B, F> {
    /// Examples in one pass.
    const BATCH_SIZE: usize = 256;

    /// Measures on as many examples of `data` as `config` asks, drawn evenly; `config` is one that
    /// [`SharpnessConfig::build`] accepted.
    pub fn new(family: F, config: SharpnessConfig, data: &ClientData, device: B::Device) -> Self {
        let count = config.examples.min(data.len());
        let spaced = (0..count).map(|i| data.indices()[i * data.len() / count]).collect();
        // Indices of a view are indices of its examples.
        let view = ClientData::new(data.examples().clone(), spaced).unwrap_or_else(|_| data.clone());
        let data = match data.transform() {
            Some(transform) => view.with_transform(transform.clone()),
            None => view,
        };
        Self { config, data, resident: ResidentModel::new(family, device) }
    }

    /// Measures `params`; the start of power iteration and the direction are drawn from `seed`.
    ///
    /// # Errors
    /// [`EvaluateError`] where there are no examples or the vector is of another model.
    pub fn measure(&mut self, params: &ParamVector<B>, seed: Seed) -> Result<Sharpness, EvaluateError> {
        if self.data.is_empty() {
            return Err(EvaluateError::NoData);
        }
        let SharpnessConfig { iterations, step, radius, points, .. } = self.config;
        let start = direction(params, seed.index(0))?;
        let times_hessian = |v: &Tensor<B, 1>| {
            let mut at =
                |r: f64| self.gradient(&params.with_values(params.values().clone() + v.clone().mul_scalar(r))?);
            Ok((at(step)? - at(-step)?).div_scalar(2.0 * step))
        };
        let top = top_eigenvalue::<B, SchemaError>(times_hessian, start, iterations)?;
        let scale = norm(&params.weight_values());
        let direction = direction(params, seed.index(1))?.mul_scalar(if scale > 0.0 { scale } else { 1.0 });
        let middle = (points / 2) as f64;
        let curve = (0..points).map(|i| {
            let distance = radius * (i as f64 - middle) / middle;
            let there = params.with_values(params.values().clone() + direction.clone().mul_scalar(distance))?;
            Ok(LossAt { distance, loss: self.loss(&there)? })
        });
        let curve = curve.collect::<Result<_, SchemaError>>()?;
        let Dominant { value, products, converged, .. } = top;
        let top_eigenvalue = value.is_finite().then_some(value);
        Ok(Sharpness { top_eigenvalue, products, converged, examples: self.data.len(), curve })
    }

    /// The gradient of the mean cross-entropy, `[num_values]`, zero for running statistics.
    fn gradient(&mut self, at: &ParamVector<B>) -> Result<Tensor<B, 1>, SchemaError> {
        let model = self.resident.load(at)?;
        let device = self.resident.device();
        let mut total = at.values().zeros_like();
        for batch in Batches::<B>::in_order(&self.data, Self::BATCH_SIZE, device) {
            let share = batch.labels.dims()[0] as f64 / self.data.len() as f64;
            let logits = model.forward(Tensor::<Autodiff<B>, 4>::from_inner(batch.inputs), Mode::Evaluate);
            let loss = CrossEntropyLoss::new(None, device).forward(logits, Tensor::from_inner(batch.labels));
            let gradients = GradientsParams::from_grads(loss.backward(), &model);
            total = total + flat_gradients(&model, &gradients).mul_scalar(share);
        }
        self.resident.keep(model);
        Ok(total)
    }

    fn loss(&mut self, at: &ParamVector<B>) -> Result<Option<f64>, SchemaError> {
        let model = self.resident.load(at)?.valid();
        let metrics = evaluate_classifier(&model, &self.data, Self::BATCH_SIZE, self.resident.device());
        Ok(metrics.get(Metrics::LOSS).filter(|loss| loss.is_finite()))
    }
}

/// A random direction over the weights, of norm 1; zero for running statistics.
fn direction<B: Backend>(like: &ParamVector<B>, seed: Seed) -> Result<Tensor<B, 1>, SchemaError> {
    let mut rng = seed.rng();
    let entries = like.schema().entries().iter();
    let draw = |kind| match kind {
        ParamKind::Weight => StandardNormal.sample(&mut rng),
        ParamKind::Buffer => 0.0f32,
    };
    let values = entries.flat_map(|e| std::iter::repeat_n(e.kind, e.len())).map(draw).collect();
    let direction = ParamVector::<B>::from_host(values, like.schema().clone(), &like.device())?.into_values();
    let length = norm(&direction);
    Ok(direction.div_scalar(length))
}

/// The outcome of power iteration.
struct Dominant<B: Backend> {
    value: f64,
    vector: Tensor<B, 1>,
    products: usize,
    converged: bool,
}

/// The largest eigenvalue of a symmetric matrix that is known by its products with vectors of norm 1. Power iteration
/// finds the one of largest size; where that is negative, the matrix is shifted by it and the largest comes out on top.
fn top_eigenvalue<B: Backend, E>(
    mut times: impl FnMut(&Tensor<B, 1>) -> Result<Tensor<B, 1>, E>,
    start: Tensor<B, 1>,
    iterations: usize,
) -> Result<Dominant<B>, E> {
    let first = dominant(&mut times, start.clone(), iterations)?;
    if first.value >= 0.0 {
        return Ok(first);
    }
    let shift = -first.value;
    let mut shifted = |v: &Tensor<B, 1>| Ok(times(v)? + v.clone().mul_scalar(shift));
    let second = dominant(&mut shifted, start, iterations)?;
    Ok(Dominant { value: second.value - shift, products: first.products + second.products, ..second })
}

/// The eigenvalue of largest size.
fn dominant<B: Backend, E>(
    times: &mut impl FnMut(&Tensor<B, 1>) -> Result<Tensor<B, 1>, E>,
    start: Tensor<B, 1>,
    iterations: usize,
) -> Result<Dominant<B>, E> {
    // Of the residual, not of the value's change, which is also small where two eigenvalues are close.
    const TOLERANCE: f64 = 5e-3;
    let mut found = Dominant { value: 0.0, vector: start, products: 0, converged: false };
    while found.products < iterations && !found.converged {
        let product = times(&found.vector)?;
        let value = (product.clone() * found.vector.clone()).sum().into_scalar().elem::<f64>();
        let length = norm(&product);
        found.products += 1;
        // Also met by a vector that the matrix sends to zero: all eigenvalues that the start has a part in are zero.
        let residual = norm(&(product.clone() - found.vector.clone().mul_scalar(value)));
        found.converged = residual <= TOLERANCE * value.abs();
        found.value = value;
        if length > 0.0 {
            found.vector = product.div_scalar(length);
        }
    }
    Ok(found)
}

fn norm<B: Backend>(vector: &Tensor<B, 1>) -> f64 {
    (vector.clone() * vector.clone()).sum().into_scalar().elem::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use burn_flex::{Flex, FlexDevice};
    use proptest::prelude::*;

    use super::*;

    fn diagonal(entries: [f32; 4]) -> (f64, bool) {
        let matrix = Tensor::<Flex, 1>::from_floats(entries, &FlexDevice);
        let start = Tensor::<Flex, 1>::from_floats([0.5, 0.5, -0.5, 0.5], &FlexDevice);
        let top = top_eigenvalue::<Flex, Infallible>(|v| Ok(matrix.clone() * v.clone()), start, 5000).unwrap();
        (top.value, top.converged)
    }

    #[test]
    fn the_largest_is_found_also_below_one_of_larger_size() {
        for (entries, expected) in [
            ([1.0, 4.0, 2.0, 0.5], 4.0),
            ([1.0, -4.0, 2.0, 0.5], 2.0),
            ([-1.0, -4.0, -2.0, -3.0], -1.0),
            ([0.0, 0.0, 0.0, 0.0], 0.0),
        ] {
            let (found, converged) = diagonal(entries);
            assert!(converged && (found - expected).abs() < 0.02, "{entries:?}: {found}");
        }
    }

    #[test]
    fn too_few_iterations_are_told() {
        let matrix = Tensor::<Flex, 1>::from_floats([1.0, 3.0], &FlexDevice);
        let start = Tensor::<Flex, 1>::from_floats([0.8, 0.6], &FlexDevice);
        let top = top_eigenvalue::<Flex, Infallible>(|v| Ok(matrix.clone() * v.clone()), start, 2).unwrap();
        assert!(!top.converged && top.products == 2);
    }

    #[test]
    fn every_impossible_value_is_refused_by_name() {
        type Change = fn(&mut SharpnessConfig);
        let cases: [(&str, Change); 7] = [
            ("examples", |c| c.examples = 0),
            ("iterations", |c| c.iterations = 0),
            ("step", |c| c.step = 0.0),
            ("step", |c| c.step = f64::NAN),
            ("radius", |c| c.radius = f64::INFINITY),
            ("points", |c| c.points = 1),
            ("points", |c| c.points = 20),
        ];
        assert!(SharpnessConfig::default().build().is_ok());
        for (name, change) in cases {
            let mut config = SharpnessConfig::default();
            change(&mut config);
            assert!(config.build().unwrap_err().to_string().starts_with(&format!("`{name}` is ")), "{name}");
        }
    }

    proptest! {
        #[test]
        fn positive_matrices(entries in prop::array::uniform4(0.1..5.0f32)) {
            let top = f64::from(entries.iter().copied().fold(0.0, f32::max));
            let (found, _) = diagonal(entries);
            prop_assert!(found <= top * 1.0001 && found >= top * 0.95, "{found} of {top}");
        }
    }
}
