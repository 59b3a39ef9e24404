//! The theory for one number: exact risks and weights, where variances and biases are known.

/// A local estimator `L` without bias and a global one `G` with bias, of the same number.
///
/// # Examples
///
/// ```
/// use fedburn_strategies::Averaging;
/// let peers = Averaging::independent(0.1, 0.01, 0.5);
/// assert!((peers.optimal_weight() - 0.27777778).abs() < 1e-8);
/// // A bit of averaging helps, too much of it harms.
/// assert!(peers.benefit(0.5) > 0.0 && peers.benefit(0.6) < 0.0);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Averaging {
    /// `V_l`, variance of the local estimator, at least 0.
    pub local_variance: f64,
    /// `V_g`, variance of the global estimator, at least 0.
    pub global_variance: f64,
    /// `b`, bias of the global estimator.
    pub bias: f64,
    /// `C`, their covariance; at most `sqrt(V_l V_g)` in size.
    pub covariance: f64,
}

impl Averaging {
    /// Estimators from separate data: no covariance.
    pub fn independent(local_variance: f64, global_variance: f64, bias: f64) -> Self {
        Self { local_variance, global_variance, bias, covariance: 0.0 }
    }

    /// `D = E[(L - G)^2]`, never below 0.
    pub fn distance(&self) -> f64 {
        let distance = self.local_variance + self.global_variance + self.bias * self.bias - 2.0 * self.covariance;
        distance.max(0.0)
    }

    /// `alpha*`, the weight of the global estimator that minimises the risk: above 0 exactly where `C < V_l`. Not
    /// clipped. 0 where `L` and `G` are always equal, since then any weight is as good.
    pub fn optimal_weight(&self) -> f64 {
        match self.distance() {
            0.0 => 0.0,
            distance => (self.local_variance - self.covariance) / distance,
        }
    }

    /// `E(alpha)`, expected squared error of `(1 - alpha) L + alpha G`.
    pub fn risk(&self, alpha: f64) -> f64 {
        let rest = 1.0 - alpha;
        rest * rest * self.local_variance
            + alpha * alpha * (self.global_variance + self.bias * self.bias)
            + 2.0 * alpha * rest * self.covariance
    }

    /// `B(alpha) = E(0) - E(alpha)`: what averaging saves; positive exactly between 0 and [`Averaging::break_even`].
    pub fn benefit(&self, alpha: f64) -> f64 {
        self.distance() * alpha * (2.0 * self.optimal_weight() - alpha)
    }

    /// The benefit at the optimal weight, `alpha* (V_l - C)`.
    pub fn max_benefit(&self) -> f64 {
        self.benefit(self.optimal_weight())
    }

    /// `2 alpha*`: beyond this weight averaging harms.
    pub fn break_even(&self) -> f64 {
        2.0 * self.optimal_weight()
    }

    /// From a global estimator of the peers alone to `w_0 L + (1 - w_0) P`, in which the client has the weight
    /// `own_share`. The optimal weight becomes `alpha* / (1 - w_0)`, which may exceed 1; the least risk stays.
    #[must_use]
    pub fn including_self(&self, own_share: f64) -> Self {
        let (own, peers) = (own_share, 1.0 - own_share);
        Self {
            local_variance: self.local_variance,
            global_variance: own * own * self.local_variance
                + peers * peers * self.global_variance
                + 2.0 * own * peers * self.covariance,
            bias: peers * self.bias,
            covariance: own * self.local_variance + peers * self.covariance,
        }
    }

    /// The inverse of [`Averaging::including_self`], for `own_share` below 1.
    #[must_use]
    pub fn peers_only(&self, own_share: f64) -> Self {
        let (own, peers) = (own_share, 1.0 - own_share);
        let variance = self.global_variance + own * own * self.local_variance - 2.0 * own * self.covariance;
        Self {
            local_variance: self.local_variance,
            global_variance: variance / (peers * peers),
            bias: self.bias / peers,
            covariance: (self.covariance - own * self.local_variance) / peers,
        }
    }
}

/// Weights of several estimators of one number.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceWeights {
    /// `w*`, in the order of the sources; they sum to one, some may be negative.
    pub weights: Vec<f64>,
    /// Expected squared error of the weighted mean.
    pub risk: f64,
}

/// The best weights of independent estimators with these variances (above 0) and biases: with
/// `A = diag(V) + delta delta^T`, `w* = A^-1 1 / (1^T A^-1 1)`. `None` where there are none, or as many biases as
/// variances are lacking, or a variance is not positive.
///
/// For losses instead of numbers, `w_i` is the weight of source i's average loss (weighted empirical risk
/// minimisation).
pub fn source_weights(variances: &[f64], biases: &[f64]) -> Option<SourceWeights> {
    if variances.len() != biases.len() {
        return None;
    }
    let row = |(i, variance): (usize, &f64)| {
        let entry = |(j, bias): (usize, &f64)| biases[i] * bias + if i == j { *variance } else { 0.0 };
        biases.iter().enumerate().map(entry).collect()
    };
    least_risk(variances.iter().enumerate().map(row).collect())
}

/// Minimises `w^T A w` under `sum w = 1` for a symmetric positive definite `A`, by Cholesky's decomposition; `None`
/// where `A` is not such a matrix.
pub(super) fn least_risk(mut a: Vec<Vec<f64>>) -> Option<SourceWeights> {
    let n = a.len();
    for i in 0..n {
        for j in 0..=i {
            let inner: f64 = (0..j).map(|k| a[i][k] * a[j][k]).sum();
            let rest = a[i][j] - inner;
            a[i][j] =
                if i == j { Some(rest.sqrt()).filter(|root| *root > 0.0 && root.is_finite())? } else { rest / a[j][j] };
        }
    }
    let mut x = vec![1.0; n];
    for i in 0..n {
        let known: f64 = (0..i).map(|k| a[i][k] * x[k]).sum();
        x[i] = (x[i] - known) / a[i][i];
    }
    for i in (0..n).rev() {
        let known: f64 = (i + 1..n).map(|k| a[k][i] * x[k]).sum();
        x[i] = (x[i] - known) / a[i][i];
    }
    let total: f64 = x.iter().sum();
    let weights = SourceWeights { weights: x.iter().map(|x| x / total).collect(), risk: 1.0 / total };
    (n > 0 && weights.risk.is_finite() && weights.weights.iter().all(|w| w.is_finite())).then_some(weights)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-8, "{found}, expected {expected}");
    }

    #[test]
    fn the_scalar_example() {
        let peers = Averaging::independent(0.1, 0.01, 0.5);
        close(peers.distance(), 0.36);
        close(peers.optimal_weight(), 0.277_777_777_8);
        let risks = [(0.0, 0.1), (peers.optimal_weight(), 0.072_222_222_2), (0.5, 0.09), (0.6, 0.1096), (1.0, 0.26)];
        risks.into_iter().for_each(|(alpha, risk)| close(peers.risk(alpha), risk));
        close(peers.benefit(0.5), 0.01);
        close(peers.break_even(), 0.555_555_555_6);
    }

    #[test]
    fn the_scalar_example_with_the_client_in_the_average() {
        let global = Averaging::independent(0.1, 0.01, 0.5).including_self(1.0 / 11.0);
        close(global.bias, 0.454_545_454_5);
        close(global.global_variance, 0.009_090_909_1);
        close(global.covariance, 0.009_090_909_1);
        close(global.distance(), 0.297_520_661_2);
        close(global.optimal_weight(), 0.305_555_555_6);
        close(global.risk(global.optimal_weight()), 0.072_222_222_2);
        close(global.risk(1.0), 0.215_702_479_3);
    }

    #[test]
    fn three_sources() {
        let found = source_weights(&[0.1, 0.01, 0.02], &[0.0, 0.5, -0.2]).unwrap();
        let expected = [0.097_222_222_2, 0.277_777_777_8, 0.625];
        found.weights.iter().zip(expected).for_each(|(w, e)| close(*w, e));
        close(found.risk, 0.009_722_222_2);
    }

    #[test]
    fn degenerate_cases_have_an_answer() {
        assert_eq!(Averaging::independent(0.0, 0.3, 0.1).optimal_weight(), 0.0, "nothing to gain");
        let equal = Averaging { local_variance: 0.2, global_variance: 0.2, bias: 0.0, covariance: 0.2 };
        assert_eq!((equal.optimal_weight(), equal.max_benefit()), (0.0, 0.0), "L = G");
        assert_eq!(Averaging::independent(0.1, 0.0, 0.0).optimal_weight(), 1.0, "a perfect global estimator");
        assert_eq!(source_weights(&[], &[]), None);
        assert_eq!(source_weights(&[0.1, 0.0], &[0.0, 0.0]), None);
        assert_eq!(source_weights(&[0.1], &[0.0, 0.0]), None);
        assert_eq!(source_weights(&[0.1], &[7.0]).unwrap().weights, [1.0]);
    }

    prop_compose! {
        fn averaging()(v in 1e-3f64..10.0, g in 1e-3f64..10.0, b in -3f64..3.0, r in -0.9f64..0.9) -> Averaging {
            Averaging { local_variance: v, global_variance: g, bias: b, covariance: r * (v * g).sqrt() }
        }
    }

    proptest! {
        #[test]
        fn closed_forms_agree_with_the_risk(a in averaging(), alpha in -1f64..2.0) {
            let tolerance = 1e-9 * (1.0 + a.risk(alpha).abs());
            prop_assert!((a.benefit(alpha) - (a.risk(0.0) - a.risk(alpha))).abs() < tolerance);
            prop_assert!(a.risk(alpha) >= a.risk(a.optimal_weight()) - tolerance);
            prop_assert!((a.max_benefit() - a.optimal_weight() * (a.local_variance - a.covariance)).abs() < 1e-9 * (1.0 + a.max_benefit()));
            let even = a.break_even();
            prop_assert!((a.risk(even) - a.risk(0.0)).abs() < 1e-9 * (1.0 + a.risk(0.0)));
        }

        #[test]
        fn taking_part_in_the_average_changes_the_weight_and_not_the_least_risk(a in averaging(), own in 0f64..0.95) {
            let global = a.including_self(own);
            let (weight, expected) = (global.optimal_weight(), a.optimal_weight() / (1.0 - own));
            prop_assert!((weight - expected).abs() < 1e-6 * (1.0 + expected.abs()));
            prop_assert!((global.risk(weight) - a.risk(a.optimal_weight())).abs() < 1e-6 * (1.0 + a.local_variance));
            let back = global.peers_only(own);
            for (x, y) in [(back.global_variance, a.global_variance), (back.bias, a.bias), (back.covariance, a.covariance)] {
                prop_assert!((x - y).abs() < 1e-6 * (1.0 + y.abs()) / (1.0 - own).powi(2));
            }
        }

        #[test]
        fn two_sources_are_the_scalar_case(v in 1e-3f64..10.0, g in 1e-3f64..10.0, b in -3f64..3.0) {
            let (two, one) = (source_weights(&[v, g], &[0.0, b]).unwrap(), Averaging::independent(v, g, b));
            prop_assert!((two.weights[1] - one.optimal_weight()).abs() < 1e-9);
            prop_assert!((two.risk - one.risk(one.optimal_weight())).abs() < 1e-9);
        }

        #[test]
        fn no_other_weights_have_less_risk(
            sources in prop::collection::vec((1e-2f64..5.0, -2f64..2.0), 1..6),
            other in prop::collection::vec(-1f64..1.0, 6),
        ) {
            let (variances, biases): (Vec<_>, Vec<_>) = sources.into_iter().unzip();
            let best = source_weights(&variances, &biases).unwrap();
            prop_assert!((best.weights.iter().sum::<f64>() - 1.0).abs() < 1e-9);
            let shift = other[..variances.len()].iter().sum::<f64>() / variances.len() as f64;
            let moved: Vec<f64> = best.weights.iter().zip(&other).map(|(w, o)| w + o - shift).collect();
            let bias: f64 = moved.iter().zip(&biases).map(|(w, b)| w * b).sum();
            let risk = bias * bias + moved.iter().zip(&variances).map(|(w, v)| w * w * v).sum::<f64>();
            prop_assert!(risk >= best.risk - 1e-9);
        }
    }
}
