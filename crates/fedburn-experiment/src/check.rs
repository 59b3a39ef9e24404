//! Results against the claims of a config: every `[[expect]]` is met or missed, with the figures.

use std::fmt;

use serde::Serialize;

use crate::config::ExpectConfig;
use crate::format::mean_sd;
use crate::results::{ExperimentResults, SeedResults, SeedStatus};
use crate::{Metric, Spread};

/// What became of one `[[expect]]`.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// The claim in words: `accuracy at round 20 at least 91.00 %`.
    pub claim: String,
    /// The metric over seeds, where it was measured.
    pub measured: Option<Spread>,
    /// The measurement in words: `92.10 ± 0.31 % over 3 seeds`.
    pub shown: Option<String>,
    /// Whether the mean over all planned seeds fulfils the claim.
    pub met: bool,
    /// Why the claim is missed.
    pub reason: Option<String>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", if self.met { "met   " } else { "missed" }, self.claim)?;
        self.shown.iter().try_for_each(|shown| write!(f, ": {shown}"))?;
        self.reason.iter().try_for_each(|reason| write!(f, " ({reason})"))
    }
}

/// Holds results against claims. `planned`: the seeds that the config asks for; the mean is taken over them, and a
/// claim cannot be met while one of them lacks the measurement. `None` for results: nothing was run.
pub fn check(results: Option<&ExperimentResults>, planned: &[u64], claims: &[ExpectConfig]) -> Vec<Verdict> {
    claims.iter().map(|claim| verdict(results, planned, claim)).collect()
}

fn verdict(results: Option<&ExperimentResults>, planned: &[u64], claim: &ExpectConfig) -> Verdict {
    let metric: Metric = match claim.metric.parse() {
        Ok(metric) => metric,
        Err(error) => return missed(format!("{}, as configured", claim.metric), error.to_string()),
    };
    let words = in_words(metric, claim);
    let mut values = Vec::new();
    let mut lacking = Vec::new();
    for &seed in planned {
        let run = results.and_then(|results| results.seeds.iter().find(|run| run.seed == seed));
        match run.map_or(Err("missing".into()), |run| measured(metric, run, claim.at_round)) {
            Ok(value) => values.push(value),
            Err(reason) => lacking.push(format!("seed {seed} {reason}")),
        }
    }
    let Some(spread) = Spread::of(values) else {
        let reason = if planned.is_empty() { "no seed is planned".into() } else { lacking.join(", ") };
        return missed(words, reason);
    };
    let low = claim.at_least.is_some_and(|bound| spread.mean < bound);
    let high = claim.at_most.is_some_and(|bound| spread.mean > bound);
    let bounds = claim.at_least.is_some() || claim.at_most.is_some();
    let reason = match () {
        () if !lacking.is_empty() => Some(lacking.join(", ")),
        () if !bounds => Some("the claim has neither `at_least` nor `at_most`".into()),
        () if low => Some("below the claim".into()),
        () if high => Some("above the claim".into()),
        () => None,
    };
    let seeds = if spread.n == 1 { "1 seed".to_owned() } else { format!("{} seeds", spread.n) };
    let shown = format!("{} over {seeds}", mean_sd(&spread, |value| metric.show(value)));
    Verdict { claim: words, measured: Some(spread), shown: Some(shown), met: reason.is_none(), reason }
}

/// The value at a round, or at the last measured round of a finished run.
fn measured(metric: Metric, run: &SeedResults, at_round: Option<u64>) -> Result<f64, String> {
    let status = run.status();
    let value = match at_round {
        Some(round) => metric.at(run, round),
        None if status != SeedStatus::Finished => return Err(status.to_string()),
        None => metric.series(run).next_back().map(|(_, value)| value),
    };
    let unmeasured = || match (&status, at_round) {
        (SeedStatus::Finished, Some(round)) => format!("has no {metric} at round {round}"),
        (SeedStatus::Finished, None) => format!("has no {metric}"),
        _ => status.to_string(),
    };
    value.filter(|value| value.is_finite()).ok_or_else(unmeasured)
}

fn in_words(metric: Metric, claim: &ExpectConfig) -> String {
    let at = claim.at_round.map_or("at the last round".into(), |round| format!("at round {round}"));
    let bound = |word: &str, bound: Option<f64>| bound.map(|bound| format!(" {word} {}", metric.show(bound)));
    let bounds = [bound("at least", claim.at_least), bound("at most", claim.at_most)];
    format!("{metric} {at}{}", bounds.into_iter().flatten().collect::<Vec<_>>().join(" and"))
}

fn missed(claim: String, reason: String) -> Verdict {
    Verdict { claim, measured: None, shown: None, met: false, reason: Some(reason) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    fn claim(metric: &str, at_round: Option<u64>, at_least: Option<f64>, at_most: Option<f64>) -> ExpectConfig {
        ExpectConfig { metric: metric.into(), at_round, at_least, at_most }
    }

    fn run(accuracies: &[&[Option<f64>]]) -> ExperimentResults {
        fixture::experiment("suite/name", accuracies.iter().map(|accuracy| fixture::finished(accuracy)).collect())
    }

    #[test]
    fn the_mean_over_seeds_decides() {
        let results = run(&[&[Some(0.5), Some(0.80)], &[Some(0.6), Some(0.90)]]);
        let claims = [
            claim("accuracy", Some(2), Some(0.84), None),
            claim("accuracy", None, Some(0.86), None),
            claim("accuracy", Some(1), None, Some(0.54)),
            claim("accuracy", Some(1), Some(0.5), Some(0.6)),
        ];
        let verdicts = check(Some(&results), &[0, 1], &claims);
        assert_eq!(verdicts.iter().map(|v| v.met).collect::<Vec<_>>(), [true, false, false, true]);
        assert_eq!(verdicts[0].to_string(), "met    accuracy at round 2 at least 84.00 %: 85.00 ± 7.07 % over 2 seeds");
        assert_eq!(verdicts[1].reason.as_deref(), Some("below the claim"));
        assert_eq!(verdicts[2].reason.as_deref(), Some("above the claim"));
    }

    #[test]
    fn missing_results_are_a_miss_with_a_reason() {
        let claims = [claim("accuracy", Some(2), Some(0.1), None)];
        let reason = |results: Option<&ExperimentResults>, seeds: &[u64]| {
            let verdict = check(results, seeds, &claims).remove(0);
            assert!(!verdict.met);
            verdict.reason.unwrap()
        };
        assert_eq!(reason(None, &[0, 1]), "seed 0 missing, seed 1 missing");
        assert_eq!(reason(None, &[]), "no seed is planned");
        let results = run(&[&[Some(0.5), Some(0.8)]]);
        assert_eq!(reason(Some(&results), &[0, 1]), "seed 1 missing");
        assert_eq!(reason(Some(&run(&[&[Some(0.5), None]])), &[0]), "seed 0 has no accuracy at round 2");
        let mut partial = results;
        fixture::interrupt(&mut partial.seeds[0], 1);
        assert_eq!(reason(Some(&partial), &[0]), "seed 0 partial (round 1 of 2)");
    }

    #[test]
    fn a_claim_that_says_nothing_is_missed() {
        let results = run(&[&[Some(0.5)]]);
        let claims = [claim("accuracy", None, None, None), claim("acuracy", None, Some(0.1), None)];
        let verdicts = check(Some(&results), &[0], &claims);
        assert!(verdicts.iter().all(|verdict| !verdict.met));
        assert!(verdicts[1].reason.as_ref().unwrap().contains("unknown metric"));
    }

    #[test]
    fn leads_over_baselines_are_claims_too() {
        let mut results = run(&[&[Some(0.5), Some(0.9)]]);
        let claims = [
            claim("accuracy_over_centralised", None, Some(-0.03), None),
            claim("accuracy_over_local_only", None, Some(0.0), None),
        ];
        assert!(check(Some(&results), &[0], &claims).iter().all(|v| !v.met), "there is no baseline");
        results.seeds[0].baselines = Some(fixture::baselines(0.92, &[0.5, 0.7]));
        let verdicts = check(Some(&results), &[0], &claims);
        assert!(verdicts.iter().all(|verdict| verdict.met));
        assert_eq!(verdicts[0].shown.as_deref(), Some("-2.00 points over 1 seed"));
    }
}
