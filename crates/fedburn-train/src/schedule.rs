//! The learning rate over rounds.

use std::f64::consts::PI;

use fedburn_core::RoundIndex;
use serde::{Deserialize, Serialize};

/// How the learning rate changes from round to round, as a factor of the configured rate.
///
/// Rounds count from 1, so round 1 always has factor 1. Within a round the rate stays the same.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ScheduleConfig {
    /// The same in every round.
    Constant {},
    /// `decay^(round - 1)`.
    Exponential {
        /// Factor from one round to the next, in `(0, 1]`.
        decay: f64,
    },
    /// `decay^floor((round - 1) / every)`.
    Step {
        /// Factor at each drop, in `(0, 1]`.
        decay: f64,
        /// Rounds between drops, at least 1.
        every: u64,
    },
    /// `floor + (1 - floor) (1 + cos(pi (round - 1) / rounds)) / 2`, and `floor` after `rounds` rounds: SGDR without
    /// restarts (Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017,
    /// arXiv:1608.03983).
    Cosine {
        /// Rounds from the full rate to the floor, at least 1; usually the rounds of the run.
        rounds: u64,
        /// Factor at the end, in `[0, 1]`.
        #[serde(default)]
        floor: f64,
    },
}

impl Default for ScheduleConfig {
    fn default() -> Self {
        Self::Constant {}
    }
}

impl ScheduleConfig {
    /// The factor of `round`, in `[0, 1]` for a schedule that [`crate::LocalTrainingConfig::build`] accepted.
    pub fn factor(&self, round: RoundIndex) -> f64 {
        let passed = round.0.saturating_sub(1);
        match *self {
            Self::Constant {} => 1.0,
            Self::Exponential { decay } => decay.powf(passed as f64),
            Self::Step { decay, every } => decay.powf((passed / every.max(1)) as f64),
            Self::Cosine { rounds, floor } => {
                let done = (passed as f64 / rounds.max(1) as f64).min(1.0);
                floor + (1.0 - floor) * (1.0 + (PI * done).cos()) / 2.0
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn factors(schedule: ScheduleConfig, rounds: [u64; 4]) -> [f64; 4] {
        rounds.map(|round| schedule.factor(RoundIndex(round)))
    }

    #[track_caller]
    fn assert_close(found: [f64; 4], expected: [f64; 4]) {
        assert!(found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 1e-12), "{found:?}, expected {expected:?}");
    }

    #[test]
    fn golden_factors() {
        assert_close(factors(ScheduleConfig::Constant {}, [1, 2, 3, 1000]), [1.0; 4]);
        let exponential = ScheduleConfig::Exponential { decay: 0.5 };
        assert_close(factors(exponential, [1, 2, 3, 11]), [1.0, 0.5, 0.25, 0.000_976_562_5]);
        let step = ScheduleConfig::Step { decay: 0.1, every: 3 };
        assert_close(factors(step, [1, 3, 4, 7]), [1.0, 1.0, 0.1, 0.01]);
        let cosine = ScheduleConfig::Cosine { rounds: 4, floor: 0.0 };
        assert_close(factors(cosine, [1, 2, 3, 5]), [1.0, 0.853_553_390_593_273_8, 0.5, 0.0]);
        let floor = ScheduleConfig::Cosine { rounds: 4, floor: 0.2 };
        assert_close(factors(floor, [1, 3, 5, 9]), [1.0, 0.6, 0.2, 0.2]);
    }

    #[test]
    fn round_zero_and_far_rounds_are_defined() {
        let exponential = ScheduleConfig::Exponential { decay: 0.5 };
        assert_close(factors(exponential, [0, 1, 2, u64::MAX]), [1.0, 1.0, 0.5, 0.0]);
    }
}
