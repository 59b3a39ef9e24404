//! A figure over several seeds or clients.

use serde::Serialize;

/// Mean, deviation and range of one figure over seeds or clients.
///
/// # Examples
///
/// ```
/// use fedburn_experiment::Spread;
/// let spread = Spread::of([0.9, 0.92, 0.94]).expect("three values");
/// assert!((spread.mean - 0.92).abs() < 1e-12 && (spread.sd.expect("more than one") - 0.02).abs() < 1e-12);
/// assert!(Spread::of([]).is_none());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Number of values.
    pub n: usize,
    /// Their mean.
    pub mean: f64,
    /// Their sample standard deviation (divisor `n - 1`); `None` for one value.
    pub sd: Option<f64>,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Spread {
    /// The spread of the finite values; `None` where there is none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        let n = values.len();
        let mean = values.iter().sum::<f64>() / n as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let sd = (n > 1).then(|| (squares / (n - 1) as f64).sqrt());
        let min = values.iter().copied().reduce(f64::min)?;
        let max = values.iter().copied().reduce(f64::max)?;
        Some(Self { n, mean, sd, min, max })
    }
}
