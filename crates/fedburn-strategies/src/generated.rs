//! What strategies with a generator share: batches that it is asked for, and what of it outlives a round.

use std::sync::Arc;

use burn::tensor::{Tensor, TensorData, backend::Backend};
use fedburn_core::{GeneratorFamily, ParamVector, SchemaError, Seed, StateDict, StateError, schema_of};
use rand_distr::{Distribution, StandardNormal};

use crate::adam::Adam;

/// One iteration's batch: noise, classes as ones and zeros, and each client's weights `a_k` for them.
pub(crate) struct Batch<B: Backend> {
    pub z: Tensor<B, 2>,
    pub y: Tensor<B, 2>,
    pub weights: Vec<Tensor<B, 1>>,
}

impl<B: Backend> Batch<B> {
    /// For `weights` `[teachers][classes]`.
    pub(crate) fn new(
        labels: &[usize],
        classes: usize,
        weights: &[Vec<f32>],
        noise: usize,
        seed: Seed,
        device: &B::Device,
    ) -> Self {
        let mut rng = seed.rng();
        let z: Vec<f32> = (0..labels.len() * noise).map(|_| StandardNormal.sample(&mut rng)).collect();
        let mut y = vec![0.0; labels.len() * classes];
        labels.iter().enumerate().for_each(|(i, label)| y[i * classes + label] = 1.0);
        let of_labels = |client: &Vec<f32>| {
            let values: Vec<f32> = labels.iter().map(|label| client[*label]).collect();
            Tensor::from_data(TensorData::new(values, [labels.len()]), device)
        };
        Self {
            z: Tensor::from_data(TensorData::new(z, [labels.len(), noise]), device),
            y: Tensor::from_data(TensorData::new(y, [labels.len(), classes]), device),
            weights: weights.iter().map(of_labels).collect(),
        }
    }
}

/// What of a generator outlives a round.
#[derive(Clone, Debug)]
pub(crate) struct Made<B: Backend> {
    pub generator: ParamVector<B>,
    /// Where its moments are kept.
    pub adam: Option<Adam<B>>,
}

impl<B: Backend> Made<B> {
    /// Adds it to a strategy's state.
    pub(crate) fn save(&self, state: &mut StateDict) {
        state.insert_params("generator", &self.generator);
        if let Some(adam) = &self.adam {
            state.nest("adam", adam.state());
        }
    }

    /// Takes out of `state` what [`Made::save`] added for a generator of `family`; nothing where nothing was.
    pub(crate) fn restore<G: GeneratorFamily<B>>(
        state: &mut StateDict,
        family: &G,
        device: &B::Device,
    ) -> Result<Option<Self>, StateError> {
        let adam = state.split_off("adam");
        if state.is_empty() {
            adam.expect_empty()?;
            return Ok(None);
        }
        let module = family.init(Seed::new(0), device);
        let damaged = |e: SchemaError| StateError::Damaged { reason: e.to_string() };
        let schema = Arc::new(schema_of::<B, _>(&module).map_err(damaged)?);
        let generator = state.take_params("generator", &schema, device)?;
        let adam = if adam.is_empty() { None } else { Some(Adam::restore(adam, &generator)?) };
        Ok(Some(Self { generator, adam }))
    }
}
