//! Softmax regression in `f64`, written from its definition.

use burn_flex::{Flex, FlexDevice};
use fedburn_data::ClientData;

use super::{CLASSES, FEATURES};

/// Mean cross-entropy of softmax regression over all examples, and its gradient: for one example with probabilities `p`,
/// `dL/dW[i][j] = x_i (p_j - [j = y])` and `dL/db[j] = p_j - [j = y]`. Parameters are `W` by rows, then `b`.
pub fn loss_and_gradient(params: &[f64], data: &ClientData) -> (f64, Vec<f64>) {
    let (mut loss, mut gradient) = (0.0, vec![0.0; params.len()]);
    for (x, y) in rows(data) {
        let bias = FEATURES * CLASSES;
        let scores = scores(params, &x);
        let sum: f64 = scores.iter().map(|s| s.exp()).sum();
        loss += sum.ln() - scores[y];
        for j in 0..CLASSES {
            let error = scores[j].exp() / sum - f64::from(u8::from(j == y));
            gradient[bias + j] += error;
            (0..FEATURES).for_each(|i| gradient[i * CLASSES + j] += error * x[i]);
        }
    }
    let n = data.len() as f64;
    gradient.iter_mut().for_each(|g| *g /= n);
    (loss / n, gradient)
}

/// Each example's features and label.
pub fn rows(data: &ClientData) -> Vec<(Vec<f64>, usize)> {
    let row = |position: usize| {
        let x = data.batch::<Flex>(&[position], &FlexDevice).inputs.into_data().iter().collect();
        (x, data.examples().labels()[data.indices()[position]].0 as usize)
    };
    (0..data.len()).map(row).collect()
}

/// The logits of one example.
pub fn scores(params: &[f64], x: &[f64]) -> Vec<f64> {
    let score =
        |j: usize| params[FEATURES * CLASSES + j] + (0..FEATURES).map(|i| x[i] * params[i * CLASSES + j]).sum::<f64>();
    (0..CLASSES).map(score).collect()
}

/// The values of a vector of 32-bit floats.
pub fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

pub fn norm(vector: &[f64]) -> f64 {
    vector.iter().map(|v| v * v).sum::<f64>().sqrt()
}

#[track_caller]
pub fn assert_close(found: &[f32], expected: &[f64], tolerance: f64) {
    let worst = found.iter().zip(expected).map(|(f, e)| (f64::from(*f) - e).abs()).fold(0.0, f64::max);
    assert!(found.len() == expected.len() && worst < tolerance, "off by {worst}:\n{found:?}\n{expected:?}");
}
