//! Ending a run before its last round.

use std::ops::ControlFlow;

use fedburn_core::{Event, Metrics, Observer, StopReason};
use serde::{Deserialize, Serialize};

use super::ObserverError;

/// When a run ends early, the `[early_stop]` table of a config file.
///
/// Evaluations are on the server's held-out data: where that is the test data of a reported figure, stopping on it is
/// choosing by test data; give the run a validation split then.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EarlyStopConfig {
    /// What is watched.
    pub metric: StopMetric,
    /// Ends the run once the metric is this good; finite.
    pub target: Option<f64>,
    /// Ends the run after this many evaluations in a row without a new best; at least 1.
    pub patience: Option<u64>,
    /// By how much an evaluation must be better to count as a new best; finite, not negative.
    pub min_delta: f64,
}

/// The metric that decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StopMetric {
    /// [`Metrics::ACCURACY`], higher is better.
    #[default]
    Accuracy,
    /// [`Metrics::LOSS`], lower is better.
    Loss,
}

impl EarlyStopConfig {
    /// Checks the fields.
    ///
    /// # Errors
    /// [`ObserverError::Field`].
    pub fn build(self) -> Result<EarlyStop, ObserverError> {
        let refuse =
            |field, value: f64, expected| Err(ObserverError::Field { field, value: value.to_string(), expected });
        match self {
            Self { target: Some(target), .. } if !target.is_finite() => refuse("target", target, "a finite number"),
            Self { patience: Some(0), .. } => refuse("patience", 0.0, "at least 1 evaluation"),
            Self { min_delta, .. } if !(min_delta.is_finite() && min_delta >= 0.0) => {
                refuse("min_delta", min_delta, "a finite number, 0 or more")
            }
            config => Ok(EarlyStop { config, best: None, without_best: 0 }),
        }
    }
}

/// Asks for a stop when the target is reached or the metric stops getting better. An evaluation that lacks the metric,
/// or where it is NaN, is no new best.
///
/// A run that goes on from a checkpoint shows it the events of the rounds before (see [`crate::EventLog`]), so that it
/// ends where an uninterrupted run would.
///
/// # Examples
///
/// ```
/// use fedburn_core::{Event, Mean, Metrics, Observer, RoundIndex};
/// use fedburn_runtime::EarlyStopConfig;
///
/// let mut stop = EarlyStopConfig { target: Some(0.9), ..Default::default() }.build()?;
/// let mut measured = |round, accuracy| {
///     let metrics = Metrics::new().with(Metrics::ACCURACY, Mean::new(accuracy, 360.0));
///     stop.on_event(&Event::Evaluated { round: RoundIndex(round), metrics }).is_break()
/// };
/// assert!(!measured(1, 0.8));
/// assert!(measured(2, 0.95));
/// # Ok::<(), fedburn_runtime::ObserverError>(())
/// ```
#[derive(Clone, Debug)]
pub struct EarlyStop {
    config: EarlyStopConfig,
    /// Higher is better, whatever the metric.
    best: Option<f64>,
    without_best: u64,
}

impl Observer for EarlyStop {
    fn on_event(&mut self, event: &Event) -> ControlFlow<StopReason> {
        let Event::Evaluated { metrics, .. } = event else {
            return ControlFlow::Continue(());
        };
        let (name, sign) = match self.config.metric {
            StopMetric::Accuracy => (Metrics::ACCURACY, 1.0),
            StopMetric::Loss => (Metrics::LOSS, -1.0),
        };
        let value = metrics.get(name).filter(|value| !value.is_nan());
        if let (Some(value), Some(target)) = (value, self.config.target)
            && sign * value >= sign * target
        {
            return ControlFlow::Break(StopReason(format!("{name} {value:.4} reached the target {target}")));
        }
        match value.map(|value| sign * value) {
            Some(value) if self.best.is_none_or(|best| value > best + self.config.min_delta) => {
                self.best = Some(value);
                self.without_best = 0;
            }
            _ => self.without_best += 1,
        }
        match self.config.patience {
            Some(patience) if self.without_best >= patience => {
                let best = self.best.map_or("none".to_owned(), |best| format!("{:.4}", sign * best));
                let reason = format!("no better {name} in {patience} evaluations; the best was {best}");
                ControlFlow::Break(StopReason(reason))
            }
            _ => ControlFlow::Continue(()),
        }
    }
}
