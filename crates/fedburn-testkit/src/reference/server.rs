//! Server rules as the papers write them.

/// How a second moment follows squares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AdaptiveMoment {
    /// `v + d^2`.
    Adagrad,
    /// `beta2 v + (1 - beta2) d^2`.
    Adam {
        /// Its decay.
        beta2: f64,
    },
    /// `v - (1 - beta2) d^2 sign(v - d^2)`.
    Yogi {
        /// Its decay.
        beta2: f64,
    },
    /// As Adam, with the largest so far under the root and no `tau`.
    Ams {
        /// Its decay.
        beta2: f64,
    },
}

/// A server optimiser over rounds.
#[derive(Clone, Debug)]
pub struct ServerOptimiser {
    /// The global vector.
    pub x: Vec<f64>,
    m: Vec<f64>,
    v: Vec<f64>,
    vmax: Vec<f64>,
    rounds: i32,
}

impl ServerOptimiser {
    /// From `x`, with second moments `v0`, the largest of them `vmax0`.
    pub fn new(x: Vec<f64>, v0: f64, vmax0: f64) -> Self {
        let len = x.len();
        Self { x, m: vec![0.0; len], v: vec![v0; len], vmax: vec![vmax0; len], rounds: 0 }
    }

    /// FedAvgM: `v <- beta v - gain (mean - x)`, `x <- x - lr v`.
    pub fn momentum(&mut self, mean: &[f64], beta: f64, gain: f64, lr: f64) {
        for (i, mean) in mean.iter().enumerate() {
            self.m[i] = beta * self.m[i] - gain * (mean - self.x[i]);
            self.x[i] -= lr * self.m[i];
        }
    }

    /// FedAdagrad, FedAdam, FedYogi and FedAMS, with or without bias correction.
    pub fn adaptive(&mut self, mean: &[f64], moment: AdaptiveMoment, beta1: f64, tau: f64, lr: f64, correct: bool) {
        self.rounds += 1;
        for (i, mean) in mean.iter().enumerate() {
            let delta = mean - self.x[i];
            let square = delta * delta;
            self.m[i] = beta1 * self.m[i] + (1.0 - beta1) * delta;
            let v = self.v[i];
            let (next, second_correction) = match moment {
                AdaptiveMoment::Adagrad => (v + square, 1.0),
                AdaptiveMoment::Adam { beta2 } | AdaptiveMoment::Ams { beta2 } => {
                    (beta2 * v + (1.0 - beta2) * square, 1.0 - beta2.powi(self.rounds))
                }
                AdaptiveMoment::Yogi { beta2 } => {
                    let sign = if v > square {
                        1.0
                    } else if v < square {
                        -1.0
                    } else {
                        0.0
                    };
                    (v - (1.0 - beta2) * square * sign, 1.0 - beta2.powi(self.rounds))
                }
            };
            self.v[i] = next;
            self.vmax[i] = self.vmax[i].max(next);
            let denominator = match moment {
                AdaptiveMoment::Ams { .. } => self.vmax[i].sqrt(),
                _ => next.sqrt() + tau,
            };
            let rate = if correct { lr * second_correction.sqrt() / (1.0 - beta1.powi(self.rounds)) } else { lr };
            self.x[i] += rate * self.m[i] / denominator;
        }
    }
}

/// FedNova's `tau_eff sum_k p_k (x_k - x) / a_k` over clients `(p_k, a_k, steps_k, x_k)` who all took a step.
pub fn fednova_step(x: &[f64], clients: &[(f64, f64, f64, Vec<f64>)]) -> Vec<f64> {
    let total: f64 = clients.iter().map(|(p, ..)| p).sum();
    let effective: f64 = clients.iter().map(|(p, _, steps, _)| p / total * steps).sum();
    let element = |i: usize| clients.iter().map(|(p, a, _, x_k)| p / total * (x_k[i] - x[i]) / a).sum::<f64>();
    (0..x.len()).map(|i| effective * element(i)).collect()
}

/// SCAFFOLD's server: the next `(x, c)` from clients `(y, dc)` among `population`.
pub fn scaffold_round(
    x: &[f64],
    c: &[f64],
    clients: &[(Vec<f64>, Vec<f64>)],
    population: f64,
    lr: f64,
) -> (Vec<f64>, Vec<f64>) {
    let m = clients.len() as f64;
    let next = |i: usize| x[i] + lr * clients.iter().map(|(y, _)| y[i] - x[i]).sum::<f64>() / m;
    let control = |i: usize| c[i] + clients.iter().map(|(_, dc)| dc[i]).sum::<f64>() / population;
    ((0..x.len()).map(next).collect(), (0..x.len()).map(control).collect())
}

/// FedDyn's server: the next `(x, h)` from the clients' vectors.
pub fn feddyn_round(x: &[f64], h: &[f64], clients: &[Vec<f64>], population: f64, alpha: f64) -> (Vec<f64>, Vec<f64>) {
    let m = clients.len() as f64;
    let drift = |i: usize| clients.iter().map(|y| y[i] - x[i]).sum::<f64>();
    let h: Vec<f64> = (0..x.len()).map(|i| h[i] - alpha / population * drift(i)).collect();
    let next = (0..x.len()).map(|i| clients.iter().map(|y| y[i]).sum::<f64>() / m - h[i] / alpha).collect();
    (next, h)
}

/// The mean of `models`, or `copy` while there is none: what stochastic weight averaging evaluates.
pub fn swa_round(copy: &[f64], models: &[Vec<f64>]) -> Vec<f64> {
    if models.is_empty() {
        return copy.to_vec();
    }
    (0..copy.len()).map(|i| models.iter().map(|x| x[i]).sum::<f64>() / models.len() as f64).collect()
}
