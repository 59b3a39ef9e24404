//! Adam over a flat vector, so that its moments can be saved.

use burn::tensor::{Tensor, backend::Backend};
use fedburn_core::{ParamVector, SchemaError, StateDict, StateError};

/// Adam's moments.
///
/// D. P. Kingma, J. Ba: "Adam: A Method for Stochastic Optimization", ICLR 2015, arXiv 1412.6980, with its numbers:
/// `m <- 0.9 m + 0.1 g`, `v <- 0.999 v + 0.001 g^2`, `x <- x - lr (m / (1 - 0.9^n)) / (sqrt(v / (1 - 0.999^n)) + 1e-8)`.
/// What has no gradient stays as it is.
#[derive(Clone, Debug)]
pub(crate) struct Adam<B: Backend> {
    /// `n`.
    steps: u64,
    mean: ParamVector<B>,
    square: ParamVector<B>,
}

impl<B: Backend> Adam<B> {
    /// Before the first step on vectors like `params`.
    pub(crate) fn new(params: &ParamVector<B>) -> Self {
        let zeros = || ParamVector::zeros(params.schema().clone(), &params.device());
        Self { steps: 0, mean: zeros(), square: zeros() }
    }

    /// `params` one step further down `gradient` `[num_values]`.
    pub(crate) fn step(
        &mut self,
        params: &ParamVector<B>,
        gradient: Tensor<B, 1>,
        lr: f64,
    ) -> Result<ParamVector<B>, SchemaError> {
        let mean = self.mean.values().clone() * BETA1 + gradient.clone() * (1.0 - BETA1);
        let square = self.square.values().clone() * BETA2 + gradient.square() * (1.0 - BETA2);
        // Beyond 2^31 steps the powers are zero anyway.
        let steps = i32::try_from(self.steps + 1).unwrap_or(i32::MAX);
        let corrected = square.clone() / (1.0 - BETA2.powi(steps));
        let change = mean.clone() / (corrected.sqrt() + EPSILON) * (lr / (1.0 - BETA1.powi(steps)));
        let moved = params.with_values(params.values().clone() - change)?;
        (self.mean, self.square) = (self.mean.with_values(mean)?, self.square.with_values(square)?);
        self.steps += 1;
        Ok(moved)
    }

    pub(crate) fn state(&self) -> StateDict {
        let mut state = StateDict::new();
        state.insert_u64("steps", self.steps);
        state.insert_params("mean", &self.mean);
        state.insert_params("square", &self.square);
        state
    }

    /// Takes back what [`Adam::state`] gave, for vectors like `params`.
    pub(crate) fn restore(mut state: StateDict, params: &ParamVector<B>) -> Result<Self, StateError> {
        let (schema, device) = (params.schema(), params.device());
        let adam = Self {
            steps: state.take_u64("steps")?,
            mean: state.take_params("mean", schema, &device)?,
            square: state.take_params("square", schema, &device)?,
        };
        state.expect_empty()?;
        Ok(adam)
    }
}

const BETA1: f64 = 0.9;
const BETA2: f64 = 0.999;
const EPSILON: f64 = 1e-8;

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};
    use fedburn_testkit::{schema, vector};

    use super::*;

    #[test]
    fn two_steps_by_hand() {
        let mut x = vector::<Flex>(&[1.0, -2.0, 5.0], &schema(&[3]), &FlexDevice);
        let mut adam = Adam::new(&x);
        let (mut m, mut v, mut expected) = ([0.0f64; 3], [0.0f64; 3], [1.0f64, -2.0, 5.0]);
        for (n, g) in [[0.5f64, -4.0, 0.0], [-1.0, -1.0, 0.0]].iter().enumerate() {
            for i in 0..3 {
                m[i] = 0.9 * m[i] + 0.1 * g[i];
                v[i] = 0.999 * v[i] + 0.001 * g[i] * g[i];
                let n = n as i32 + 1;
                expected[i] -=
                    0.01 * (m[i] / (1.0 - 0.9f64.powi(n))) / ((v[i] / (1.0 - 0.999f64.powi(n))).sqrt() + 1e-8);
            }
            let gradient = Tensor::from_data(g.map(|g| g as f32), &FlexDevice);
            x = adam.step(&x, gradient, 0.01).unwrap();
        }
        for (found, expected) in x.to_host().iter().zip(expected) {
            assert!((f64::from(*found) - expected).abs() < 1e-6, "{found}, expected {expected}");
        }
        assert_eq!(x.to_host()[2], 5.0, "no gradient, no change");

        let mut resumed = Adam::restore(adam.state(), &x).unwrap();
        let gradient = || Tensor::from_data([1.0, 2.0, 3.0], &FlexDevice);
        let next = adam.step(&x, gradient(), 0.01).unwrap().to_host();
        assert_eq!(resumed.step(&x, gradient(), 0.01).unwrap().to_host(), next);
    }
}
