//! Two or more experiments side by side: a metric at one round, or what it cost to reach a value.

use std::fmt;

use serde::Serialize;

use crate::format::{mean_sd, mebibytes};
use crate::results::{ExperimentResults, SeedResults};
use crate::table::Table;
use crate::{Metric, Spread};

/// Where experiments are compared.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum CompareAt {
    /// The last round in which every seed of every experiment has the metric.
    LastCommonRound,
    /// A given round.
    Round {
        /// The round.
        round: u64,
    },
    /// The first round at which the metric reaches a value: at least it where more is better, else at most it.
    Reached {
        /// The value.
        target: f64,
    },
}

/// A table of experiments; its `Display` is aligned text, its JSON keeps every number.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// The metric.
    pub metric: Metric,
    /// Where it was taken.
    pub at: CompareAt,
    /// The round compared at; `None` where [`CompareAt::Reached`] is asked.
    pub round: Option<u64>,
    /// One row an experiment, in the order given.
    pub rows: Vec<ComparedRow>,
    /// What does not show in the numbers: unfinished seeds, missing measurements.
    pub notes: Vec<String>,
}

/// One experiment of a comparison.
#[derive(Clone, Debug, Serialize)]
pub struct ComparedRow {
    /// `suite/name`.
    pub experiment: String,
    /// The metric over seeds at the round; `None` where [`CompareAt::Reached`] is asked or no seed has it.
    pub value: Option<Spread>,
    /// Rounds over seeds until the target; `None` unless every seed reached it.
    pub rounds_to_target: Option<Spread>,
    /// Bytes over seeds, down and up, until the target; `None` unless every seed reached it.
    pub bytes_to_target: Option<Spread>,
    /// Every seed with rounds, ascending.
    pub seeds: Vec<ComparedSeed>,
}

/// One seed of a comparison.
#[derive(Clone, Debug, Serialize)]
pub struct ComparedSeed {
    /// The seed.
    pub seed: u64,
    /// The round the figures belong to; `None` where the target was not reached or the metric not measured.
    pub round: Option<u64>,
    /// The metric in that round.
    pub value: Option<f64>,
    /// Bytes down and up from the first round to that one.
    pub bytes: Option<u64>,
}

/// Experiments that cannot be compared.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CompareError {
    /// No round has the metric in every seed.
    #[error("no round has {metric} in every seed of {experiments}; name one with `--at-round`")]
    NoCommonRound {
        /// The metric.
        metric: Metric,
        /// The experiments.
        experiments: String,
    },
}

/// Compares experiments by a metric.
///
/// # Errors
/// [`CompareError::NoCommonRound`] for [`CompareAt::LastCommonRound`] without one.
pub fn compare(experiments: &[ExperimentResults], metric: Metric, at: CompareAt) -> Result<Comparison, CompareError> {
    let round = match at {
        CompareAt::LastCommonRound => Some(last_common_round(experiments, metric)?),
        CompareAt::Round { round } => Some(round),
        CompareAt::Reached { .. } => None,
    };
    let rows: Vec<_> = experiments.iter().map(|experiment| row(experiment, metric, at, round)).collect();
    let mut notes = Vec::new();
    for (experiment, row) in experiments.iter().zip(&rows) {
        for run in &experiment.seeds {
            let status = run.status();
            if status != crate::SeedStatus::Finished {
                notes.push(format!("{} seed {}: {status}", experiment.name, run.seed));
            }
        }
        let lacking = row.seeds.iter().filter(|seed| seed.round.is_none()).count();
        if lacking > 0 {
            let what =
                if round.is_some() { format!("have no {metric} at that round") } else { "do not reach it".into() };
            notes.push(format!("{}: {lacking} of {} seeds {what}", experiment.name, row.seeds.len()));
        }
    }
    Ok(Comparison { metric, at, round, rows, notes })
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let metric = self.metric;
        let table = match self.at {
            CompareAt::Reached { target } => {
                let sign = if metric.rises() { "≥" } else { "≤" };
                writeln!(f, "until {metric} {sign} {}, mean ± sd over seeds\n", metric.show(target))?;
                let mut table = Table::new(["experiment", "rounds", "bytes", "per seed"]);
                for row in &self.rows {
                    let reached = row.seeds.iter().filter(|seed| seed.round.is_some()).count();
                    let not = || match row.seeds.len() {
                        seeds if reached == 0 || seeds == 0 => "not reached".to_owned(),
                        seeds => format!("not reached by {} of {seeds}", seeds - reached),
                    };
                    let per_seed = row.seeds.iter().map(|s| s.round.map_or("not reached".into(), |r| r.to_string()));
                    table.row([
                        row.experiment.clone(),
                        row.rounds_to_target.map_or_else(not, |rounds| mean_sd(&rounds, |value| format!("{value:.1}"))),
                        row.bytes_to_target.map_or_else(|| "-".into(), |bytes| mean_sd(&bytes, mebibytes)),
                        per_seed.collect::<Vec<_>>().join(", "),
                    ]);
                }
                table.to_string()
            }
            CompareAt::LastCommonRound | CompareAt::Round { .. } => {
                writeln!(f, "{metric} at round {}, mean ± sd over seeds\n", self.round.unwrap_or_default())?;
                let mut table = Table::new(["experiment", metric.name(), "min", "max", "seeds", "bytes so far"]);
                for row in &self.rows {
                    let show = |value: Option<f64>| value.map_or("-".into(), |value| metric.show(value));
                    let bytes = Spread::of(row.seeds.iter().filter_map(|seed| Some(seed.bytes? as f64)));
                    table.row([
                        row.experiment.clone(),
                        row.value.map_or("-".into(), |value| mean_sd(&value, |value| metric.show(value))),
                        show(row.value.map(|value| value.min)),
                        show(row.value.map(|value| value.max)),
                        row.value.map_or(0, |value| value.n).to_string(),
                        bytes.map_or("-".into(), |bytes| mebibytes(bytes.mean)),
                    ]);
                }
                table.to_string()
            }
        };
        write!(f, "{table}")?;
        if !self.notes.is_empty() {
            writeln!(f)?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "note: {note}"))
    }
}

fn last_common_round(experiments: &[ExperimentResults], metric: Metric) -> Result<u64, CompareError> {
    let runs: Vec<_> = experiments.iter().flat_map(with_rounds).collect();
    let common = runs.first().and_then(|first| {
        let rounds = metric.series(first).rev().map(|(round, _)| round);
        rounds.into_iter().find(|&round| runs.iter().all(|run| metric.at(run, round).is_some()))
    });
    common.ok_or_else(|| CompareError::NoCommonRound {
        metric,
        experiments: experiments.iter().map(|e| e.name.as_str()).collect::<Vec<_>>().join(", "),
    })
}

fn row(experiment: &ExperimentResults, metric: Metric, at: CompareAt, round: Option<u64>) -> ComparedRow {
    let seeds: Vec<_> = with_rounds(experiment).map(|run| seed(run, metric, at, round)).collect();
    let all_reached = round.is_none() && seeds.iter().all(|seed| seed.round.is_some());
    let over = |figure: fn(&ComparedSeed) -> Option<f64>| Spread::of(seeds.iter().filter_map(figure));
    ComparedRow {
        experiment: experiment.name.clone(),
        value: round.and_then(|_| over(|seed| seed.value)),
        rounds_to_target: all_reached.then(|| over(|seed| Some(seed.round? as f64))).flatten(),
        bytes_to_target: all_reached.then(|| over(|seed| Some(seed.bytes? as f64))).flatten(),
        seeds,
    }
}

fn seed(run: &SeedResults, metric: Metric, at: CompareAt, round: Option<u64>) -> ComparedSeed {
    let point = match (at, round) {
        (CompareAt::Reached { target }, _) => metric.series(run).find(|&(_, value)| metric.reaches(value, target)),
        (_, Some(round)) => metric.at(run, round).map(|value| (round, value)),
        (_, None) => None,
    };
    let bytes = point.map(|(last, _)| {
        run.rounds.iter().take_while(|row| row.round <= last).map(|row| row.bytes_down + row.bytes_up).sum()
    });
    ComparedSeed { seed: run.seed, round: point.map(|p| p.0), value: point.map(|p| p.1), bytes }
}

fn with_rounds(experiment: &ExperimentResults) -> impl Iterator<Item = &SeedResults> {
    experiment.seeds.iter().filter(|run| !run.rounds.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{experiment, finished, interrupt};

    fn pair() -> [ExperimentResults; 2] {
        let slow = vec![finished(&[Some(0.2), None, Some(0.5)]), finished(&[Some(0.3), None, Some(0.7)])];
        [experiment("s/slow", slow), experiment("s/quick", vec![finished(&[Some(0.6), Some(0.7), Some(0.8)])])]
    }

    #[test]
    fn the_last_common_round_is_compared() {
        let compared = compare(&pair(), Metric::Accuracy, CompareAt::LastCommonRound).unwrap();
        assert_eq!(compared.round, Some(3));
        assert!((compared.rows[0].value.unwrap().mean - 0.6).abs() < 1e-12);
        let text = compared.to_string();
        assert!(text.contains("s/slow") && text.contains("60.00 ± 14.14 %") && text.contains("80.00 %"), "{text}");
        assert!(compared.notes.is_empty());
    }

    #[test]
    fn a_partial_seed_pulls_the_common_round_back_and_is_noted() {
        let mut pair = pair();
        interrupt(&mut pair[1].seeds[0], 2);
        let compared = compare(&pair, Metric::Accuracy, CompareAt::LastCommonRound).unwrap();
        assert_eq!(compared.round, Some(1));
        assert_eq!(compared.notes, ["s/quick seed 0: partial (round 2 of 3)"]);
    }

    #[test]
    fn an_unmeasured_round_is_told() {
        let compared = compare(&pair(), Metric::Accuracy, CompareAt::Round { round: 2 }).unwrap();
        assert!(compared.rows[0].value.is_none() && compared.rows[1].value.is_some());
        assert_eq!(compared.notes, ["s/slow: 2 of 2 seeds have no accuracy at that round"]);
        let unmeasured = [experiment("s/none", vec![finished(&[None])])];
        assert!(compare(&unmeasured, Metric::Accuracy, CompareAt::LastCommonRound).is_err());
    }

    #[test]
    fn the_cost_of_a_target_counts_rounds_and_bytes() {
        let compared = compare(&pair(), Metric::Accuracy, CompareAt::Reached { target: 0.6 }).unwrap();
        let [slow, quick] = &compared.rows[..] else { panic!("two rows") };
        assert!(slow.rounds_to_target.is_none(), "one seed of two does not reach it");
        assert_eq!(slow.seeds.iter().map(|seed| seed.round).collect::<Vec<_>>(), [None, Some(3)]);
        assert_eq!((quick.rounds_to_target.unwrap().mean, quick.seeds[0].round), (1.0, Some(1)));
        let per_round = pair()[1].seeds[0].rounds[0].bytes_down + pair()[1].seeds[0].rounds[0].bytes_up;
        assert_eq!(slow.seeds[1].bytes, Some(3 * per_round));
        let text = compared.to_string();
        assert!(text.contains("not reached by 1 of 2") && text.contains("until accuracy ≥ 60.00 %"), "{text}");
    }

    #[test]
    fn a_loss_is_reached_from_above() {
        let compared = compare(&pair(), Metric::Loss, CompareAt::Reached { target: 0.45 }).unwrap();
        // The fixture's loss is one minus the accuracy.
        assert_eq!(compared.rows[1].seeds[0].round, Some(1));
    }

    #[test]
    fn json_keeps_the_numbers() {
        let compared = compare(&pair(), Metric::Accuracy, CompareAt::LastCommonRound).unwrap();
        let json = serde_json::to_value(&compared).unwrap();
        assert_eq!(json["rows"][1]["value"]["mean"], 0.8);
        assert_eq!(json["metric"], "accuracy");
    }
}
