//! The figures of an experiment in a few lines of text.

use crate::format::{mean_sd, mebibytes, seconds};
use crate::results::ExperimentResults;
use crate::{Metric, SeedStatus};

/// What was measured, one `name, figure` a line: accuracy, loss, baselines, bytes and time, over finished seeds.
pub fn headline(results: &ExperimentResults) -> Vec<(&'static str, String)> {
    let accuracy = |value: f64| Metric::Accuracy.show(value);
    let figures = |pick: &dyn Fn(&crate::results::Summary) -> Option<f64>| results.spread(|seed| pick(&seed.figures()));
    let finished = results.seeds.iter().filter(|seed| seed.status() == SeedStatus::Finished).count();
    let mut lines = vec![("seeds finished", format!("{finished} of {}", results.seeds.len()))];
    let mut add = |name, spread: Option<crate::Spread>, show: &dyn Fn(f64) -> String| {
        lines.extend(spread.map(|spread| (name, mean_sd(&spread, show))));
    };
    add("final accuracy", figures(&|f| f.final_accuracy.as_ref().map(|m| m.value)), &accuracy);
    add("best accuracy", figures(&|f| f.best_accuracy.as_ref().map(|m| m.value)), &accuracy);
    add("centralised", figures(&|f| f.baselines.centralised), &accuracy);
    add("clients alone, mean", figures(&|f| f.baselines.local_only_mean), &accuracy);
    add("bytes down", figures(&|f| Some(f.bytes_down as f64)), &mebibytes);
    add("bytes up", figures(&|f| Some(f.bytes_up as f64)), &mebibytes);
    add("a round, median", figures(&|f| f.seconds_per_round), &seconds);
    lines
}
