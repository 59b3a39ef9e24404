//! The figures that experiments are compared and checked by.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::results::{RoundRow, SeedResults};

/// A figure of one round of one run: a column of `rounds.csv`, or the federation's lead over a baseline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Accuracy on the server's held-out data, in `[0, 1]`.
    Accuracy,
    /// Loss on the server's held-out data.
    Loss,
    /// Mean loss over the cohort's local training.
    TrainLoss,
    /// Number of updates combined.
    Updates,
    /// Number of clients that failed.
    Failures,
    /// Bytes sent to clients in the round.
    BytesDown,
    /// Bytes received from clients in the round.
    BytesUp,
    /// Wall-clock seconds of the round.
    Seconds,
    /// Accuracy minus that of centralised training after its last epoch, as a fraction: 0.01 is one point.
    AccuracyOverCentralised,
    /// Accuracy minus the mean over clients trained alone, as a fraction: 0.01 is one point.
    AccuracyOverLocalOnly,
}

/// A metric name that nobody knows.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown metric `{name}`, expected one of {}", Metric::ALL.map(Metric::name).join(", "))]
pub struct MetricError {
    /// What was asked for.
    pub name: String,
}

impl Metric {
    /// All metrics.
    pub const ALL: [Self; 10] = [
        Self::Accuracy,
        Self::Loss,
        Self::TrainLoss,
        Self::Updates,
        Self::Failures,
        Self::BytesDown,
        Self::BytesUp,
        Self::Seconds,
        Self::AccuracyOverCentralised,
        Self::AccuracyOverLocalOnly,
    ];

    /// Its name in configs, on the command line and in `rounds.csv`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accuracy => "accuracy",
            Self::Loss => "loss",
            Self::TrainLoss => "train_loss",
            Self::Updates => "updates",
            Self::Failures => "failures",
            Self::BytesDown => "bytes_down",
            Self::BytesUp => "bytes_up",
            Self::Seconds => "seconds",
            Self::AccuracyOverCentralised => "accuracy_over_centralised",
            Self::AccuracyOverLocalOnly => "accuracy_over_local_only",
        }
    }

    /// Whether more is better.
    pub fn rises(self) -> bool {
        matches!(self, Self::Accuracy | Self::Updates | Self::AccuracyOverCentralised | Self::AccuracyOverLocalOnly)
    }

    /// Whether `value` is at least as good as `target`.
    pub fn reaches(self, value: f64, target: f64) -> bool {
        if self.rises() { value >= target } else { value <= target }
    }

    /// Its value in one round; `None` where it was not measured or the baseline is missing.
    pub fn value(self, run: &SeedResults, row: &RoundRow) -> Option<f64> {
        match self {
            Self::Accuracy => row.accuracy,
            Self::Loss => row.loss,
            Self::TrainLoss => row.train_loss,
            Self::Updates => Some(row.updates as f64),
            Self::Failures => Some(row.failures as f64),
            Self::BytesDown => Some(row.bytes_down as f64),
            Self::BytesUp => Some(row.bytes_up as f64),
            Self::Seconds => row.seconds,
            Self::AccuracyOverCentralised => {
                Some(row.accuracy? - run.baselines.as_ref()?.centralised_final()?.accuracy?)
            }
            Self::AccuracyOverLocalOnly => Some(row.accuracy? - run.baselines.as_ref()?.local_only_accuracy()?.mean),
        }
    }

    /// Its value after a round of one run.
    pub fn at(self, run: &SeedResults, round: u64) -> Option<f64> {
        let row = run.rounds.binary_search_by_key(&round, |row| row.round).ok()?;
        self.value(run, &run.rounds[row])
    }

    /// All rounds in which it was measured, ascending, with its values.
    pub fn series(self, run: &SeedResults) -> impl DoubleEndedIterator<Item = (u64, f64)> {
        run.rounds.iter().filter_map(move |row| Some((row.round, self.value(run, row)?)))
    }

    /// The value as a table shows it: shares in percent, bytes in MiB.
    pub fn show(self, value: f64) -> String {
        use crate::format::{mebibytes, percent, points, seconds};
        match self {
            Self::Accuracy => percent(value),
            Self::AccuracyOverCentralised | Self::AccuracyOverLocalOnly => points(value),
            Self::Loss | Self::TrainLoss => format!("{value:.4}"),
            Self::Updates | Self::Failures => format!("{value:.1}"),
            Self::BytesDown | Self::BytesUp => mebibytes(value),
            Self::Seconds => seconds(value),
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Metric {
    type Err = MetricError;

    fn from_str(name: &str) -> Result<Self, MetricError> {
        let found = Self::ALL.into_iter().find(|metric| metric.name() == name);
        found.ok_or_else(|| MetricError { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{BaselinePoint, Baselines, LocalOnly};

    #[test]
    fn names_are_read_back_and_unknown_ones_are_told() {
        for metric in Metric::ALL {
            assert_eq!(metric.name().parse(), Ok(metric));
            assert_eq!(serde_json::to_value(metric).unwrap(), metric.name());
        }
        let told = "acuracy".parse::<Metric>().unwrap_err().to_string();
        assert!(told.contains("`acuracy`") && told.contains("accuracy_over_local_only"), "{told}");
    }

    #[test]
    fn the_lead_over_a_baseline_needs_the_baseline() {
        let mut run = SeedResults {
            rounds: vec![RoundRow { round: 3, accuracy: Some(0.9), ..RoundRow::default() }],
            ..SeedResults::default()
        };
        assert_eq!(Metric::AccuracyOverLocalOnly.at(&run, 3), None);
        let alone = |client, accuracy| LocalOnly {
            client,
            num_examples: 5,
            accuracy: Some(accuracy),
            loss: None,
            own_accuracy: None,
        };
        run.baselines = Some(Baselines {
            centralised: Some(vec![BaselinePoint { epoch: 1, loss: None, accuracy: Some(0.95) }]),
            local_only: Some(vec![alone(0, 0.4), alone(1, 0.6)]),
        });
        assert!((Metric::AccuracyOverLocalOnly.at(&run, 3).unwrap() - 0.4).abs() < 1e-12);
        assert!((Metric::AccuracyOverCentralised.at(&run, 3).unwrap() + 0.05).abs() < 1e-12);
        assert_eq!(Metric::Accuracy.at(&run, 2), None);
    }
}
