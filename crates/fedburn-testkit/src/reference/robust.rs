//! Byzantine-robust rules over whole rows in `f64`, each as its definition reads.

/// The median of each element; of an even number the mean of the two in the middle.
pub fn median(rows: &[Vec<f64>]) -> Vec<f64> {
    per_element(rows, |sorted| (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0)
}

/// The mean of each element without its `dropped` largest and smallest values.
pub fn trimmed_mean(rows: &[Vec<f64>], dropped: usize) -> Vec<f64> {
    per_element(rows, |sorted| mean(&sorted[dropped..sorted.len() - dropped]))
}

/// Krum's score of each row, `attackers` among them.
pub fn krum_scores(rows: &[Vec<f64>], attackers: usize) -> Vec<f64> {
    scores(rows, &(0..rows.len()).collect::<Vec<_>>(), rows.len() - attackers - 2)
}

/// The plain mean of the `select` rows with the lowest scores, and which they are.
pub fn multi_krum(rows: &[Vec<f64>], attackers: usize, select: usize) -> (Vec<usize>, Vec<f64>) {
    let scores = krum_scores(rows, attackers);
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by(|i, j| scores[*i].total_cmp(&scores[*j]));
    order.truncate(select);
    let chosen: Vec<_> = order.iter().map(|i| rows[*i].clone()).collect();
    (order, per_element(&chosen, mean))
}

/// Bulyan over Krum.
pub fn bulyan(rows: &[Vec<f64>], attackers: usize) -> Vec<f64> {
    let mut left: Vec<usize> = (0..rows.len()).collect();
    let mut chosen = Vec::new();
    while chosen.len() < rows.len() - 2 * attackers {
        let scores = scores(rows, &left, left.len().saturating_sub(attackers + 2).max(1));
        let best = (0..left.len()).min_by(|i, j| scores[*i].total_cmp(&scores[*j])).expect("some are left");
        chosen.push(rows[left.remove(best)].clone());
    }
    let keep = chosen.len() - 2 * attackers;
    per_element(&chosen, |sorted| {
        let middle = (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0;
        let mut by_distance = sorted.to_vec();
        by_distance.sort_by(|a, b| (a - middle).abs().total_cmp(&(b - middle).abs()));
        mean(&by_distance[..keep])
    })
}

/// So many Weiszfeld iterations from the weighted mean.
pub fn geometric_median(rows: &[(f64, Vec<f64>)], iterations: usize, smallest: f64) -> Vec<f64> {
    let mut center = super::weighted_mean(rows);
    for _ in 0..iterations {
        let pulled = rows.iter().map(|(a, x)| (a / norm(x, &center).max(smallest), x.clone()));
        center = super::weighted_mean(&pulled.collect::<Vec<_>>());
    }
    center
}

/// `x_t` plus the step to `x`, shortened to `bound`.
pub fn clip(global: &[f64], x: &[f64], bound: f64) -> Vec<f64> {
    let length = norm(x, global);
    let share = if length > bound { bound / length } else { 1.0 };
    global.iter().zip(x).map(|(g, x)| g + share * (x - g)).collect()
}

/// Euclidean distance.
pub fn norm(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt()
}

fn scores(rows: &[Vec<f64>], among: &[usize], neighbours: usize) -> Vec<f64> {
    let score = |i: &usize| {
        let mut distances: Vec<f64> =
            among.iter().filter(|j| *j != i).map(|j| norm(&rows[*i], &rows[*j]).powi(2)).collect();
        distances.sort_by(f64::total_cmp);
        distances.into_iter().take(neighbours).sum()
    };
    among.iter().map(score).collect()
}

fn per_element(rows: &[Vec<f64>], rule: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let column = |i: usize| {
        let mut values: Vec<f64> = rows.iter().map(|row| row[i]).collect();
        values.sort_by(f64::total_cmp);
        rule(&values)
    };
    (0..rows[0].len()).map(column).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}
