//! The next-character model for Shakespeare.

use burn::module::{Initializer, Module, Param};
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig};
use burn::tensor::activation::{sigmoid, tanh};
use burn::tensor::{Int, Tensor, backend::Backend};
use fedburn_core::{Classifier, Mode, Split};
use fedburn_ops::Kernels;

use crate::error::{at_least, check_shape, refuse};
use crate::family::impl_family;
use crate::projection::{Features, project};
use crate::{InitScheme, ModelError, Projection};

/// Embedding of 8 numbers, two LSTM layers of 256 units, and a linear layer from the last step's output to the symbols.
///
/// Brendan McMahan, Eider Moore, Daniel Ramage, Seth Hampson, Blaise Agüera y Arcas: Communication-Efficient Learning of
/// Deep Networks from Decentralized Data, AISTATS 2017, arXiv:1602.05629, section 3; Sebastian Caldas and others: LEAF:
/// A Benchmark for Federated Settings, 2018, arXiv:1812.01097, whose alphabet has 80 symbols. With PyTorch's two biases
/// per layer that makes 819,920 parameters.
///
/// Inputs are `[batch, 1, 1, length]`, each value the number of a symbol below the number of classes.
#[derive(Module, Debug)]
pub struct CharLstm<B: Backend> {
    /// `[symbols, 8]`.
    pub embedding: Embedding<B>,
    /// The layers, from the embedding upwards.
    pub lstm: Vec<LstmCell<B>>,
    /// Between features and head, where asked for.
    pub projection: Option<Projection<B>>,
    /// `[256, symbols]`.
    pub head: Linear<B>,
}

/// One LSTM layer, as PyTorch's: gates in the order input, forget, cell, output, each `hidden` columns wide.
///
/// Sepp Hochreiter, Jürgen Schmidhuber: Long Short-Term Memory, Neural Computation 9(8), 1997, with the forget gate of
/// Felix Gers and others, 2000.
#[derive(Module, Debug)]
pub struct LstmCell<B: Backend> {
    /// `[inputs, 4 hidden]`.
    pub weight_ih: Param<Tensor<B, 2>>,
    /// `[hidden, 4 hidden]`.
    pub weight_hh: Param<Tensor<B, 2>>,
    /// `[4 hidden]`.
    pub bias_ih: Param<Tensor<B, 1>>,
    /// `[4 hidden]`.
    pub bias_hh: Param<Tensor<B, 1>>,
}

/// Recipe of [`CharLstm`].
#[derive(Clone, Debug)]
pub struct CharLstmFamily {
    symbols: usize,
    hidden: usize,
    pub(crate) features: Features,
}

/// Width of the embedding.
const EMBEDDING: usize = 8;

impl CharLstmFamily {
    /// For inputs `[1, 1, length]` of symbols numbered from 0 to `classes - 1`, with `hidden` units in either layer, the
    /// papers' 256.
    ///
    /// # Errors
    /// [`ModelError`] for inputs of another shape, or a size that is zero or absurd.
    pub fn new(input: [usize; 3], classes: usize, hidden: usize) -> Result<Self, ModelError> {
        check_shape("char_lstm", input, 1, classes)?;
        at_least("char_lstm", "hidden", hidden, 1)?;
        match input {
            [1, 1, _] => Ok(Self { symbols: classes, hidden, features: Features::new(hidden) }),
            _ => refuse("char_lstm", "input shape", format!("{input:?}"), "[1, 1, length], a sequence of symbols"),
        }
    }

    pub(crate) fn build<B: Backend>(&self, device: &B::Device) -> CharLstm<B> {
        let layers = [EMBEDDING, self.hidden].map(|inputs| LstmCell::new(inputs, self.hidden, device));
        CharLstm {
            embedding: EmbeddingConfig::new(self.symbols, EMBEDDING).init(device),
            lstm: layers.into(),
            projection: self.features.build(device),
            head: LinearConfig::new(self.features.len(), self.symbols).init(device),
        }
    }
}

impl_family!(CharLstmFamily, CharLstm, InitScheme::PyTorch);

impl<B: Kernels> Split<B> for CharLstm<B> {
    fn features(&self, inputs: Tensor<B, 4>, _mode: Mode) -> Tensor<B, 2> {
        let [batch, _, _, length] = inputs.dims();
        let symbols: Tensor<B, 2, Int> = inputs.reshape([batch, length]).int();
        // Steps stay apart: taking one out of a stacked sequence would cost its gradient a sequence of zeros.
        let embed = |step: usize| {
            let vectors = self.embedding.forward(symbols.clone().slice([0..batch, step..step + 1]));
            vectors.reshape([batch, EMBEDDING])
        };
        let steps = (0..length).map(embed).collect();
        let mut outputs = self.lstm.iter().fold(steps, |steps, layer| layer.forward(steps));
        let hidden = self.lstm.last().map_or(0, |layer| layer.weight_hh.dims()[0]);
        let last = outputs.pop().unwrap_or_else(|| Tensor::zeros([batch, hidden], &symbols.device()));
        project(&self.projection, last)
    }

    fn head(&self, features: Tensor<B, 2>) -> Tensor<B, 2> {
        self.head.forward(features)
    }
}

impl<B: Kernels> Classifier<B> for CharLstm<B> {
    fn forward(&self, inputs: Tensor<B, 4>, mode: Mode) -> Tensor<B, 2> {
        self.head(self.features(inputs, mode))
    }

    fn split(&self) -> Option<&dyn Split<B>> {
        Some(self)
    }
}

impl<B: Backend> LstmCell<B> {
    /// A layer of `hidden` units over `inputs` numbers a step, its weights left to [`seeded`](crate::seeded) to draw.
    pub fn new(inputs: usize, hidden: usize, device: &B::Device) -> Self {
        let bias = || Initializer::Zeros.init([4 * hidden], device);
        Self {
            weight_ih: Initializer::Zeros.init([inputs, 4 * hidden], device),
            weight_hh: Initializer::Zeros.init([hidden, 4 * hidden], device),
            bias_ih: bias(),
            bias_hh: bias(),
        }
    }

    /// The outputs `[batch, hidden]` of all steps from their inputs `[batch, inputs]`, starting from zeros.
    pub fn forward(&self, steps: Vec<Tensor<B, 2>>) -> Vec<Tensor<B, 2>> {
        let (weight_ih, weight_hh) = (self.weight_ih.val(), self.weight_hh.val());
        let bias = (self.bias_ih.val() + self.bias_hh.val()).unsqueeze::<2>();
        let [hidden, _] = weight_hh.dims();
        let mut state: Option<(Tensor<B, 2>, Tensor<B, 2>)> = None;
        let mut outputs = Vec::with_capacity(steps.len());
        for x in steps {
            let [batch, _] = x.dims();
            let (output, cell) = state.unwrap_or_else(|| {
                let zeros = Tensor::zeros([batch, hidden], &x.device());
                (zeros.clone(), zeros)
            });
            let gates = x.matmul(weight_ih.clone()) + output.matmul(weight_hh.clone()) + bias.clone();
            let gate = |k: usize| gates.clone().slice([0..batch, k * hidden..(k + 1) * hidden]);
            let cell = sigmoid(gate(1)) * cell + sigmoid(gate(0)) * tanh(gate(2));
            let output = sigmoid(gate(3)) * tanh(cell.clone());
            outputs.push(output.clone());
            state = Some((output, cell));
        }
        outputs
    }
}

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};
    use fedburn_core::Seed;

    use super::*;

    /// PyTorch's equations, unit by unit in `f64`.
    fn reference(weights: [&[f32]; 4], inputs: usize, hidden: usize, steps: &[Vec<f32>]) -> Vec<Vec<f64>> {
        let [weight_ih, weight_hh, bias_ih, bias_hh] = weights;
        let (mut h, mut c) = (vec![0.0f64; hidden], vec![0.0f64; hidden]);
        let mut outputs = Vec::new();
        for x in steps {
            let gate = |gate: usize, unit: usize| {
                let column = gate * hidden + unit;
                let from_x: f64 =
                    (0..inputs).map(|i| f64::from(x[i]) * f64::from(weight_ih[i * 4 * hidden + column])).sum();
                let from_h: f64 = (0..hidden).map(|i| h[i] * f64::from(weight_hh[i * 4 * hidden + column])).sum();
                from_x + from_h + f64::from(bias_ih[column]) + f64::from(bias_hh[column])
            };
            let sigmoid = |v: f64| 1.0 / (1.0 + (-v).exp());
            let cell: Vec<f64> =
                (0..hidden).map(|u| sigmoid(gate(1, u)) * c[u] + sigmoid(gate(0, u)) * gate(2, u).tanh()).collect();
            let output = (0..hidden).map(|u| sigmoid(gate(3, u)) * cell[u].tanh()).collect();
            (h, c) = (output, cell);
            outputs.push(h.clone());
        }
        outputs
    }

    #[test]
    fn a_layer_follows_pytorchs_equations() {
        let (inputs, hidden) = (2, 3);
        let layer: LstmCell<Flex> =
            crate::seeded(LstmCell::new(inputs, hidden, &FlexDevice), Seed::new(1), InitScheme::PyTorch);
        let host = |t: Tensor<Flex, 2>| t.into_data().to_vec::<f32>().unwrap();
        let bias = |p: &Param<Tensor<Flex, 1>>| host(p.val().unsqueeze());
        let weights =
            [host(layer.weight_ih.val()), host(layer.weight_hh.val()), bias(&layer.bias_ih), bias(&layer.bias_hh)];
        let steps: Vec<Vec<f32>> = (0..4).map(|t| vec![0.5 * t as f32 - 1.0, 1.5 - t as f32]).collect();
        let tensors = steps.iter().map(|x| Tensor::<Flex, 1>::from_floats(x.as_slice(), &FlexDevice).unsqueeze());
        let found = layer.forward(tensors.collect());
        let expected = reference(weights.each_ref().map(Vec::as_slice), inputs, hidden, &steps);
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.into_iter().zip(expected) {
            for (a, b) in host(found).into_iter().zip(expected) {
                assert!((f64::from(a) - b).abs() < 1e-6, "{a}, expected {b}");
            }
        }
    }
}
