//! Which curves the pictures show, taken over seeds.

use std::collections::BTreeMap;

use fedburn::runtime::RoundRow;

use super::chart::{Axis, Chart, Mark, PALETTE, Scale, Series};
use crate::results::{ClientRow, ExperimentResults, SeedResults, SeedStatus};
use crate::{Metric, Spread};

/// A metric by round over the counted seeds: the rounds that all of them measured, or any while there is none.
pub(super) fn curve(results: &ExperimentResults, metric: Metric) -> Vec<(u64, Spread)> {
    let counted = results.counted();
    let mut values = BTreeMap::<u64, Vec<f64>>::new();
    for run in &counted {
        metric.series(run).for_each(|(round, value)| values.entry(round).or_default().push(value));
    }
    let all: Vec<_> = values.into_iter().filter_map(|(round, values)| Some((round, Spread::of(values)?))).collect();
    let common: Vec<_> = all.iter().copied().filter(|(_, spread)| spread.n == counted.len()).collect();
    if common.is_empty() { all } else { common }
}

/// Held-out accuracy by round with its range over seeds, unfinished seeds, and the baselines as levels.
pub(super) fn accuracy(results: &ExperimentResults) -> Chart<'static> {
    let mut series = over_seeds(results, Metric::Accuracy, "federated", 0);
    let baseline = |figure: fn(&SeedResults) -> Option<f64>| results.spread(figure).map(|spread| spread.mean);
    let centralised = baseline(|run| run.figures().baselines.centralised);
    let local_only = baseline(|run| run.figures().baselines.local_only_mean);
    series.extend(level("centralised", centralised, 1));
    series.extend(level("clients alone, mean", local_only, 2));
    rounds_chart("held-out accuracy", Scale::Share, series)
}

/// Held-out and training loss by round with their range over seeds, and the baselines as levels.
pub(super) fn loss(results: &ExperimentResults) -> Chart<'static> {
    let mut series = over_seeds(results, Metric::Loss, "held-out", 0);
    series.extend(over_seeds(results, Metric::TrainLoss, "local training", 3));
    let centralised = results.spread(|run| run.baselines.as_ref()?.centralised_final()?.loss);
    series.extend(level("centralised, held-out", centralised.map(|spread| spread.mean), 1));
    rounds_chart("loss", Scale::Number, series)
}

/// MiB sent and received by the server in each round, mean over seeds.
pub(super) fn traffic(results: &ExperimentResults) -> Chart<'static> {
    let mebibytes = |metric| {
        let points = trained_rounds(results, metric);
        points.map(|(round, bytes)| (round as f64, bytes.mean / f64::from(1 << 20))).collect()
    };
    // The two are often equal: dashes let the line below show.
    let up = Mark::Dashes(mebibytes(Metric::BytesUp));
    let up = Series { label: Some("from clients".into()), colour: PALETTE[1], mark: up };
    let series = vec![line("to clients", 0, mebibytes(Metric::BytesDown)), up];
    rounds_chart("traffic per round, MiB", Scale::Amount, series)
}

/// Seconds of each round with their range over seeds.
pub(super) fn seconds(results: &ExperimentResults) -> Chart<'static> {
    let points: Vec<_> = trained_rounds(results, Metric::Seconds).collect();
    rounds_chart(
        "seconds per round",
        Scale::Amount,
        spread_series(&points, "mean over seeds", 0, results.counted().len()),
    )
}

/// Clients that failed in each round, mean over seeds.
pub(super) fn failures(results: &ExperimentResults) -> Chart<'static> {
    let points = trained_rounds(results, Metric::Failures).map(|(round, count)| (round as f64, count.mean)).collect();
    rounds_chart("failed clients per round", Scale::Amount, vec![line("mean over seeds", 1, points)])
}

/// Each seed's clients by accuracy on their own held-out data, from the worst to the best.
pub(super) fn clients(results: &ExperimentResults) -> Chart<'static> {
    let seeds: Vec<_> = results.counted().into_iter().filter(|run| !run.clients.is_empty()).collect();
    let few = seeds.len() <= PALETTE.len();
    let series = seeds.iter().enumerate().map(|(index, run)| {
        let colour = if few { index } else { 0 };
        let points = quantiles(&sorted_accuracy(&run.clients));
        Series { label: few.then(|| format!("seed {}", run.seed)), ..line("", colour, points) }
    });
    Chart {
        alt: format!("Accuracy of the final model on each client's own held-out data, {}", results.name),
        x: Axis { label: "clients, from the lowest accuracy to the highest", scale: Scale::Share },
        y: Axis { label: "accuracy on own data", scale: Scale::Share },
        series: series.collect(),
    }
}

/// Accuracy on clients' own held-out data of what they use, of the plain global model and of models trained alone, each
/// from the worst to the best over the clients of all seeds; `None` where clients use the global model.
pub(super) fn personal(results: &ExperimentResults) -> Option<Chart<'static>> {
    let clients: Vec<&ClientRow> = results.counted().into_iter().flat_map(|run| &run.clients).collect();
    if clients.iter().all(|client| client.accuracy == client.global_accuracy) {
        return None;
    }
    let alone = results.counted().into_iter().filter_map(|run| run.baselines.as_ref()?.local_only.as_ref()).flatten();
    let kinds = [
        ("what clients use", clients.iter().filter_map(|client| client.accuracy).collect::<Vec<_>>()),
        ("the global model", clients.iter().filter_map(|client| client.global_accuracy).collect()),
        ("clients alone", alone.filter_map(|client| client.own_accuracy).collect()),
    ];
    let series = kinds.into_iter().enumerate().filter(|(_, (_, values))| !values.is_empty());
    let series = series.map(|(colour, (label, mut values))| {
        values.sort_by(f64::total_cmp);
        line(label, colour, quantiles(&values))
    });
    Some(Chart {
        alt: format!("Accuracy on each client's own data: personal, global and local models, {}", results.name),
        x: Axis { label: "clients, from the lowest accuracy to the highest", scale: Scale::Share },
        y: Axis { label: "accuracy on own data", scale: Scale::Share },
        series: series.collect(),
    })
}

/// One experiment's mean curve each under its name, to be laid over one another, the second half of many dashed; `None`
/// for fewer than two or more than can be told apart.
pub(super) fn overlay(experiments: &[(String, &ExperimentResults)], metric: Metric) -> Option<Chart<'static>> {
    let (label, scale) = match metric {
        Metric::Accuracy => ("held-out accuracy", Scale::Share),
        _ => (metric.name(), Scale::Number),
    };
    let series = experiments.iter().enumerate().filter(|_| (2..=2 * PALETTE.len()).contains(&experiments.len()));
    let series = series.map(|(index, (name, results))| {
        let points = curve(results, metric).iter().map(|(round, spread)| (*round as f64, spread.mean)).collect();
        let mark = if index < PALETTE.len() { Mark::Line(points) } else { Mark::Dashes(points) };
        Series { label: Some(name.clone()), colour: PALETTE[index % PALETTE.len()], mark }
    });
    let series: Vec<_> = series.collect();
    (!series.is_empty()).then(|| rounds_chart(label, scale, series))
}

/// Accuracies in ascending order, clients without one left out.
pub(super) fn sorted_accuracy(clients: &[ClientRow]) -> Vec<f64> {
    let mut sorted: Vec<f64> = clients.iter().filter_map(|client| client.accuracy).collect();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// `(share of clients, accuracy)`, at most 401 points: a million clients draw the same curve as these.
fn quantiles(sorted: &[f64]) -> Vec<(f64, f64)> {
    let points = sorted.len().min(401);
    let share = |point: usize| if points > 1 { point as f64 / (points - 1) as f64 } else { 0.5 };
    (0..points)
        .map(|point| (share(point), sorted[(share(point) * (sorted.len() - 1) as f64).round() as usize]))
        .collect()
}

/// A run as it goes on: held-out accuracy, losses, bytes and seconds by round, of at most so many rounds as a picture can
/// show. The pictures are those of a report of one seed.
pub(super) fn of_rounds(rows: &[RoundRow]) -> [Chart<'static>; 4] {
    let step = rows.len().div_ceil(SHOWN_ROUNDS).max(1);
    // The last round is always shown.
    let shown: Vec<_> = rows.iter().rev().step_by(step).rev().collect();
    let points = |value: fn(&RoundRow) -> Option<f64>| {
        shown.iter().filter_map(|row| Some((row.round.0 as f64, value(row)?))).collect::<Vec<_>>()
    };
    let trained = |value: fn(&RoundRow) -> f64| {
        shown.iter().filter(|row| row.round.0 > 0).map(|row| (row.round.0 as f64, value(row))).collect::<Vec<_>>()
    };
    let mebibytes = f64::from(1 << 20);
    let up = Mark::Dashes(trained(|row| row.bytes_up as f64).into_iter().map(|(x, y)| (x, y / mebibytes)).collect());
    let up = Series { label: Some("from clients".into()), colour: PALETTE[1], mark: up };
    let down = trained(|row| row.bytes_down as f64).into_iter().map(|(x, y)| (x, y / mebibytes)).collect();
    [
        rounds_chart("held-out accuracy", Scale::Share, vec![line("federated", 0, points(|row| row.accuracy))]),
        rounds_chart(
            "loss",
            Scale::Number,
            vec![line("held-out", 0, points(|row| row.loss)), line("local training", 3, points(|row| row.train_loss))],
        ),
        rounds_chart("traffic per round, MiB", Scale::Amount, vec![line("to clients", 0, down), up]),
        rounds_chart("seconds per round", Scale::Amount, vec![line("round", 0, trained(|row| row.seconds))]),
    ]
}

/// Rounds of one picture.
const SHOWN_ROUNDS: usize = 400;

fn rounds_chart(label: &'static str, scale: Scale, series: Vec<Series>) -> Chart<'static> {
    let names: Vec<_> = series.iter().filter_map(|series| series.label.as_deref()).collect();
    let alt = format!("{label} by round: {}", names.join(", "));
    Chart { alt, x: Axis { label: "round", scale: Scale::Count }, y: Axis { label, scale }, series }
}

fn over_seeds(results: &ExperimentResults, metric: Metric, label: &str, colour: usize) -> Vec<Series> {
    let points = curve(results, metric);
    let mut series = spread_series(&points, label, colour, results.counted().len());
    let unfinished = results.seeds.iter().filter(|run| run.status() != SeedStatus::Finished);
    let faint =
        unfinished.map(|run| metric.series(run).map(|(round, value)| (round as f64, value)).collect::<Vec<_>>());
    for (index, points) in faint.filter(|points| !points.is_empty()).enumerate() {
        let label = (index == 0 && metric != Metric::TrainLoss).then(|| "unfinished seeds".into());
        series.push(Series { label, colour: PALETTE[6], mark: Mark::Faint(points) });
    }
    series
}

fn spread_series(points: &[(u64, Spread)], label: &str, colour: usize, seeds: usize) -> Vec<Series> {
    let mut series = vec![line(label, colour, points.iter().map(|(x, spread)| (*x as f64, spread.mean)).collect())];
    if points.iter().any(|(_, spread)| spread.n > 1) && points.len() > 1 {
        let band = points.iter().map(|(x, spread)| (*x as f64, spread.min, spread.max)).collect();
        let label = Some(format!("range of {seeds} seeds"));
        series.push(Series { label, colour: PALETTE[colour], mark: Mark::Band(band) });
    }
    series
}

fn trained_rounds(results: &ExperimentResults, metric: Metric) -> impl Iterator<Item = (u64, Spread)> {
    curve(results, metric).into_iter().filter(|(round, _)| *round > 0)
}

fn line(label: &str, colour: usize, points: Vec<(f64, f64)>) -> Series {
    Series { label: Some(label.into()), colour: PALETTE[colour], mark: Mark::Line(points) }
}

fn level(label: &str, value: Option<f64>, colour: usize) -> Option<Series> {
    let mark = Mark::Level(value?);
    Some(Series { label: Some(label.into()), colour: PALETTE[colour], mark })
}

#[cfg(test)]
mod tests {
    use fedburn::core::RoundIndex;

    use super::*;
    use crate::fixture::{experiment, finished, interrupt};

    #[test]
    fn the_mean_is_over_finished_seeds_only() {
        let runs = vec![finished(&[Some(0.2), None, Some(0.6)]), finished(&[Some(0.4), Some(0.5), Some(0.8)])];
        let mut results = experiment("s/n", runs);
        let rounds = |results: &ExperimentResults| {
            curve(results, Metric::Accuracy).iter().map(|(round, s)| (*round, s.n)).collect::<Vec<_>>()
        };
        assert_eq!(rounds(&results), [(1, 2), (3, 2)], "round 2 was not measured by all");
        interrupt(&mut results.seeds[0], 1);
        assert_eq!(rounds(&results), [(1, 1), (2, 1), (3, 1)]);
        assert_eq!(accuracy(&results).series.iter().filter(|s| matches!(s.mark, Mark::Faint(_))).count(), 1);
        interrupt(&mut results.seeds[1], 2);
        assert_eq!(rounds(&results), [(1, 2)], "while none is finished, all count");
    }

    #[test]
    fn of_many_rounds_the_last_is_shown_and_no_more_than_a_picture_holds() {
        let rows = |n: u64| {
            let row = |round| RoundRow { round: RoundIndex(round), accuracy: Some(0.5), ..RoundRow::default() };
            (0..n).map(row).collect::<Vec<_>>()
        };
        for n in [1, 2, 400, 401, 10_000] {
            let [accuracy, ..] = of_rounds(&rows(n));
            let Mark::Line(points) = &accuracy.series[0].mark else { panic!("a line") };
            assert!(points.len() <= SHOWN_ROUNDS && points.is_sorted_by(|a, b| a.0 < b.0));
            assert_eq!(points.last().unwrap().0, (n - 1) as f64);
        }
    }

    #[test]
    fn a_million_clients_and_one_client_have_a_curve() {
        let many: Vec<f64> = (0..1_000_000).map(|i| f64::from(i) / 999_999.0).collect();
        let points = quantiles(&many);
        assert_eq!(points.len(), 401);
        assert!(points.iter().all(|(share, accuracy)| (share - accuracy).abs() < 1e-5));
        assert_eq!(quantiles(&[0.7]), [(0.5, 0.7)]);
        assert!(quantiles(&[]).is_empty());
    }
}
