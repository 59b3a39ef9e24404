//! The losses of FedFTG, as functions of scores alone, in the paper's form and in that of the published code.
//!
//! | symbol | meaning | shape |
//! |---|---|---|
//! | `s` | scores of the student, the global model `D` | `[batch, classes]` |
//! | `t_k` | scores of client `k`'s model `D_k` | `[batch, classes]` |
//! | `a_k` | ensemble weight of client `k` for each example's class, `a_k^{y_i}` | `[batch]` |
//! | `y` | the classes asked for, one at each example's class | `[batch, classes]` |

use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::{Tensor, backend::Backend};

use crate::teachers::{Taught, total};

// The paper's form.

/// `mean_i SUM_k a_k KL( D(x_i) || D_k(x_i) )`: how far the clients' models are from the global one.
pub(super) fn discrepancy<B: Backend>(s: &Tensor<B, 2>, taught: &[Taught<B>]) -> Tensor<B, 1> {
    let log_d = log_softmax(s.clone(), 1);
    let d = log_d.clone().exp();
    total(taught.iter().map(|t| {
        let per_example = (d.clone() * (log_d.clone() - log_softmax(t.scores.clone(), 1))).sum_dim(1);
        (per_example.squeeze_dim::<1>(1) * t.weights.clone()).mean()
    }))
}

/// `mean_i CE( SUM_k a_k t_k, y_i )`: whether the ensemble sees the class that was asked for.
pub(super) fn fidelity<B: Backend>(taught: &[Taught<B>], y: &Tensor<B, 2>) -> Tensor<B, 1> {
    let ensemble = total(taught.iter().map(|t| t.scores.clone() * per_row(&t.weights)));
    cross_entropy(ensemble, y)
}

/// `exp( -mean_{i,j} |x_i - x_j| |z_i - z_j| )`, Euclidean norms over all pairs: near 1 where different noise makes the
/// same picture.
pub(super) fn diversity<B: Backend>(x: &Tensor<B, 4>, z: &Tensor<B, 2>) -> Tensor<B, 1> {
    let norm = |t: Tensor<B, 2>| root_of_sum(pairwise(t).square());
    (norm(x.clone().flatten::<2>(1, 3)) * norm(z.clone())).mean().neg().exp()
}

// The published code's form.

/// `-mean_i( a_k mean_c |s_{i,c} - t_{k,i,c}| )` of one client: scores apart are rewarded.
pub(super) fn code_discrepancy<B: Backend>(s: &Tensor<B, 2>, t: &Taught<B>) -> Tensor<B, 1> {
    let apart = (s.clone() - t.scores.clone()).abs().mean_dim(1).squeeze_dim::<1>(1);
    (apart * t.weights.clone()).mean().neg()
}

/// `mean_i(a_k) mean_i CE(t_k, y_i)` of one client; the published code reduces before it weighs.
pub(super) fn code_fidelity<B: Backend>(t: &Taught<B>, y: &Tensor<B, 2>) -> Tensor<B, 1> {
    t.weights.clone().mean() * cross_entropy(t.scores.clone(), y)
}

/// `exp( mean_{i,j}( -mean|x_i - x_j| mean (z_i - z_j)^2 ) )`.
pub(crate) fn code_diversity<B: Backend>(x: &Tensor<B, 4>, z: &Tensor<B, 2>) -> Tensor<B, 1> {
    let x = pairwise(x.clone().flatten::<2>(1, 3)).abs().mean_dim(2);
    let z = pairwise(z.clone()).square().mean_dim(2);
    (x * z).mean().neg().exp()
}

/// `mean_{i,c}( -q_{i,c} log softmax(s_i)_c )` with `q_i = SUM_k a_k softmax(t_k)`: the mean over classes too makes the
/// step `classes` times smaller than a cross-entropy's.
pub(super) fn code_distillation<B: Backend>(s: &Tensor<B, 2>, taught: &[Taught<B>]) -> Tensor<B, 1> {
    let q = total(taught.iter().map(|t| softmax(t.scores.clone(), 1) * per_row(&t.weights)));
    (q * log_softmax(s.clone(), 1)).mean().neg()
}

fn cross_entropy<B: Backend>(scores: Tensor<B, 2>, y: &Tensor<B, 2>) -> Tensor<B, 1> {
    (log_softmax(scores, 1) * y.clone()).sum_dim(1).mean().neg()
}

fn per_row<B: Backend>(weights: &Tensor<B, 1>) -> Tensor<B, 2> {
    let [batch] = weights.dims();
    weights.clone().reshape([batch, 1])
}

/// `t_i - t_j` for all pairs, `[batch, batch, values]`, of `t` `[batch, values]`.
fn pairwise<B: Backend>(t: Tensor<B, 2>) -> Tensor<B, 3> {
    let [batch, values] = t.dims();
    t.clone().reshape([batch, 1, values]) - t.reshape([1, batch, values])
}

/// The root of the sum over the last axis. Its slope at 0, where an example meets itself, is taken as 0.
fn root_of_sum<B: Backend>(squares: Tensor<B, 3>) -> Tensor<B, 3> {
    let sum = squares.sum_dim(2);
    let zero = sum.clone().equal_elem(0.0);
    sum.mask_fill(zero.clone(), 1.0).sqrt().mask_fill(zero, 0.0)
}

#[cfg(test)]
mod tests {
    use burn::backend::Autodiff;
    use burn_flex::{Flex, FlexDevice};
    use burn_ndarray::NdArray;

    use super::*;

    #[track_caller]
    fn assert_value<B: Backend>(found: Tensor<B, 1>, expected: f64) {
        let found: f64 = burn::tensor::ElementConversion::elem(found.into_scalar());
        assert!((found - expected).abs() < 1e-6, "{found}, expected {expected}");
    }

    fn one_sample<B: Backend>(device: &B::Device) -> (Tensor<B, 2>, Vec<Taught<B>>, Tensor<B, 2>) {
        let taught = |scores: [f32; 3], weight: f32| Taught {
            scores: Tensor::from_data([scores], device),
            weights: Tensor::from_data([weight], device),
        };
        let s = Tensor::from_data([[1.0, 0.5, 0.0]], device);
        let y = Tensor::from_data([[1.0, 0.0, 0.0]], device);
        (s, vec![taught([2.0, 0.0, 0.0], 0.8), taught([0.0, 1.0, 1.0], 0.2)], y)
    }

    fn golden<B: Backend>(device: &B::Device) {
        let (s, taught, y) = one_sample::<B>(device);
        assert_value(discrepancy(&s, &taught), 0.23477089);
        assert_value(fidelity(&taught, &y), 0.40091740);
        assert_value(code_discrepancy(&s, &taught[0]), -0.4);
        assert_value(code_discrepancy(&s, &taught[1]), -0.16666667);
        assert_value(code_fidelity(&taught[0], &y), 0.8 * 0.23954477);
        assert_value(code_fidelity(&taught[1], &y), 0.2 * 1.86199480);
        assert_value(code_distillation(&s, &taught), 0.31159123);
        let z = Tensor::<B, 2>::from_data([[0.0, 0.0], [1.0, 1.0]], device);
        let x = Tensor::<B, 2>::from_data([[0.0, 2.0], [2.0, 2.0]], device).reshape([2, 1, 1, 2]);
        assert_value(diversity(&x, &z), 0.24311673);
        assert_value(code_diversity(&x, &z), 0.60653066);
    }

    #[test]
    fn golden_vectors() {
        golden::<Flex>(&FlexDevice);
        golden::<NdArray>(&Default::default());
    }

    /// The slopes of every loss, in `f64`, against central differences.
    #[test]
    fn slopes_agree_with_finite_differences() {
        type Wide = Autodiff<NdArray<f64>>;
        let device = Default::default();
        let wave = |len: usize, phase: f64| (0..len).map(|i| ((i as f64 + 1.0) * phase).sin()).collect::<Vec<f64>>();
        let (batch, classes, noise, pixels) = (3, 4, 2, 5);
        let tensor = |values: &[f64], columns: usize| {
            Tensor::<Wide, 1>::from_data(values, &device).reshape([values.len() / columns, columns])
        };
        let y = tensor(&[1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0], classes);
        let z = tensor(&wave(batch * noise, 0.7), noise);
        // What is varied: the student's scores, those of two teachers, the pictures.
        let point: Vec<f64> = wave(3 * batch * classes + batch * pixels, 1.3);
        let losses = |values: Tensor<Wide, 1>| -> Vec<Tensor<Wide, 1>> {
            let part = |index: usize| values.clone().narrow(0, index * 12, 12).reshape([batch, classes]);
            let weights = |w: [f64; 3]| Tensor::from_data(w, &device);
            let taught = [
                Taught { scores: part(1), weights: weights([0.3, 1.0, 0.0]) },
                Taught { scores: part(2), weights: weights([0.7, 0.0, 1.0]) },
            ];
            let (s, x) = (part(0), values.clone().narrow(0, 36, batch * pixels).reshape([batch, 1, 1, pixels]));
            vec![
                discrepancy(&s, &taught),
                fidelity(&taught, &y),
                diversity(&x, &z),
                code_discrepancy(&s, &taught[0]),
                code_fidelity(&taught[1], &y),
                code_diversity(&x, &z),
                code_distillation(&s, &taught),
            ]
        };
        let at = |values: &[f64]| losses(Tensor::from_data(values, &device));
        let number = |t: Tensor<Wide, 1>| t.into_data().to_vec::<f64>().unwrap()[0];
        for (index, name) in [
            "discrepancy",
            "fidelity",
            "diversity",
            "code_discrepancy",
            "code_fidelity",
            "code_diversity",
            "code_distillation",
        ]
        .into_iter()
        .enumerate()
        {
            let leaf = Tensor::<Wide, 1>::from_data(point.as_slice(), &device).require_grad();
            let slopes = losses(leaf.clone()).swap_remove(index).backward();
            let found: Vec<f64> = leaf.grad(&slopes).unwrap().into_data().to_vec().unwrap();
            for (i, found) in found.into_iter().enumerate() {
                let moved = |by: f64| {
                    let mut values = point.clone();
                    values[i] += by;
                    number(at(&values).swap_remove(index))
                };
                let expected = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                assert!((found - expected).abs() < 1e-8, "{name}, value {i}: {found}, expected {expected}");
            }
        }
    }
}
