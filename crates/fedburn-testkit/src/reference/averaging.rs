//! Optimal model averaging.

/// `(1 - alpha) l + alpha g` for a block, with `alpha = clip(factor sum v / sum (l - g)^2, 0, 1)`, 0 for equal models;
/// `factor` is 1 for the plain form and `(q - 2) / q` for Stein's.
pub fn mixed_block(local: &[f64], global: &[f64], variance: &[f64], stein: bool) -> (f64, Vec<f64>) {
    let q = local.len() as f64;
    let factor = if stein { f64::max(0.0, (q - 2.0) / q) } else { 1.0 };
    let squares: f64 = local.iter().zip(global).map(|(l, g)| (l - g) * (l - g)).sum();
    let alpha = if squares == 0.0 { 0.0 } else { (factor * variance.iter().sum::<f64>() / squares).clamp(0.0, 1.0) };
    (alpha, local.iter().zip(global).map(|(l, g)| (1.0 - alpha) * l + alpha * g).collect())
}

/// Weights of least `sum_i w_i^2 V_i + norm(sum_i w_i (x_i - x_0))^2 / d` with `sum w = 1`, found by eliminating the
/// Lagrange conditions `[A 1; 1^T 0] [w; m] = [0; 1]` with pivots.
pub fn source_weights_for_first(models: &[Vec<f64>], variances: &[f64]) -> Vec<f64> {
    let (n, d) = (models.len(), models[0].len() as f64);
    let product = |i: usize, j: usize| {
        let terms = (0..models[0].len()).map(|k| (models[i][k] - models[0][k]) * (models[j][k] - models[0][k]));
        terms.sum::<f64>() / d
    };
    let entry = |i: usize, j: usize| product(i, j) + if i == j { variances[i] } else { 0.0 };
    let bordered = |i: usize| (0..n).map(|j| entry(i, j)).chain([1.0, 0.0]).collect();
    let mut rows: Vec<Vec<f64>> = (0..n).map(bordered).collect();
    rows.push([vec![1.0; n], vec![0.0, 1.0]].concat());
    for column in 0..=n {
        let pivot = (column..=n).max_by(|a, b| rows[*a][column].abs().total_cmp(&rows[*b][column].abs()));
        rows.swap(column, pivot.expect("there are rows left"));
        for row in (0..=n).filter(|row| *row != column) {
            let factor = rows[row][column] / rows[column][column];
            let taken: Vec<f64> = rows[column].iter().map(|value| factor * value).collect();
            rows[row].iter_mut().zip(taken).for_each(|(value, taken)| *value -= taken);
        }
    }
    (0..n).map(|i| rows[i][n + 1] / rows[i][i]).collect()
}
