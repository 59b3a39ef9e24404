//! EWWA-FL, both forms, element by element in `f64`.

use std::collections::BTreeMap;

/// The reference with its moments: per client in the form of the paper, under `None` in the form of the code.
#[derive(Clone, Debug)]
pub struct Ewwa {
    /// Factor of the scores.
    pub alpha: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Floor of the denominator.
    pub eps: f64,
    /// The next second moment from the last one, the squared pseudo-gradient and `beta2`.
    pub second: fn(f64, f64, f64) -> f64,
    moments: BTreeMap<Option<u64>, (i32, Vec<[f64; 2]>)>,
}

/// What a round gives.
#[derive(Clone, Debug)]
pub struct Mixed {
    /// The next global vector.
    pub values: Vec<f64>,
    /// Weight of each client, in the order given, for each element.
    pub weights: Vec<Vec<f64>>,
    /// Sum of the weights of each element before they were divided by it.
    pub totals: Vec<f64>,
}

impl Ewwa {
    /// The published defaults and one of the rules [`adam`], [`adagrad`], [`yogi`].
    pub fn new(second: fn(f64, f64, f64) -> f64) -> Self {
        Self { alpha: 1.0, beta1: 0.9, beta2: 0.999, eps: 1e-8, second, moments: BTreeMap::new() }
    }

    /// A round of the paper's form over `(id, vector)` of each client.
    pub fn softmax(&mut self, global: &[f64], clients: &[(u64, Vec<f64>)]) -> Mixed {
        let mut scores = Vec::new();
        for (client, local) in clients {
            let mut moments = self.moments.remove(&Some(*client)).unwrap_or((0, vec![[0.0; 2]; global.len()]));
            moments.0 += 1;
            self.feed(&mut moments.1, global, local);
            let (one, two) = (1.0 - self.beta1.powi(moments.0), 1.0 - self.beta2.powi(moments.0));
            let score = |[m, v]: &[f64; 2]| self.alpha * (m / one) / ((v / two).sqrt() + self.eps);
            scores.push(moments.1.iter().map(score).collect::<Vec<_>>());
            self.moments.insert(Some(*client), moments);
        }
        let top = |i: usize| scores.iter().map(|s| s[i]).fold(f64::NEG_INFINITY, f64::max);
        let raw = scores.iter().map(|s| (0..global.len()).map(|i| (s[i] - top(i)).exp()).collect()).collect();
        mix(raw, clients)
    }

    /// A round of the published code's form over `(id, vector)` of each client, in this order.
    pub fn log_share(&mut self, global: &[f64], clients: &[(u64, Vec<f64>)]) -> Mixed {
        let mut moments = self.moments.remove(&None).unwrap_or((0, vec![[0.0; 2]; global.len()]));
        moments.0 += 1;
        let factor = self.alpha * (1.0 - self.beta2.powi(moments.0)).sqrt() / (1.0 - self.beta1.powi(moments.0));
        let mut scores = Vec::new();
        for (_, local) in clients {
            self.feed(&mut moments.1, global, local);
            scores.push(moments.1.iter().map(|[m, v]| factor * m / (v.sqrt() + self.eps)).collect::<Vec<_>>());
        }
        self.moments.insert(None, moments);
        let low = scores.iter().flatten().copied().fold(f64::INFINITY, f64::min);
        let raw = scores.iter().map(|s| s.iter().map(|b| (b - low + 1.0).ln() + 1e-8).collect()).collect();
        mix(raw, clients)
    }

    fn feed(&self, moments: &mut [[f64; 2]], global: &[f64], local: &[f64]) {
        for (i, [m, v]) in moments.iter_mut().enumerate() {
            let g = global[i] - local[i];
            *m = self.beta1 * *m + (1.0 - self.beta1) * g;
            *v = (self.second)(*v, g * g, self.beta2);
        }
    }
}

/// Exponential mean.
pub fn adam(v: f64, square: f64, beta2: f64) -> f64 {
    beta2 * v + (1.0 - beta2) * square
}

/// Sum.
pub fn adagrad(v: f64, square: f64, _beta2: f64) -> f64 {
    v + square
}

/// A step towards the square.
pub fn yogi(v: f64, square: f64, beta2: f64) -> f64 {
    let sign = if v > square {
        1.0
    } else if v < square {
        -1.0
    } else {
        0.0
    };
    v - (1.0 - beta2) * square * sign
}

fn mix(raw: Vec<Vec<f64>>, clients: &[(u64, Vec<f64>)]) -> Mixed {
    let len = clients[0].1.len();
    let totals: Vec<f64> = (0..len).map(|i| raw.iter().map(|w| w[i]).sum()).collect();
    let weights: Vec<Vec<f64>> = raw.iter().map(|w| (0..len).map(|i| w[i] / totals[i]).collect()).collect();
    let value = |i: usize| weights.iter().zip(clients).map(|(w, (_, x))| w[i] * x[i]).sum();
    Mixed { values: (0..len).map(value).collect(), weights, totals }
}
