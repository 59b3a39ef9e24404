//! What training held of memory, beside what there was.

use std::collections::BTreeMap;

use fedburn::train::Bytes;
use maud::{Markup, html as markup};

use super::chart::{Axis, Chart, Mark, PALETTE, Scale, Series};
use super::page::{dash, figure};
use crate::Spread;
use crate::format::{mean_sd, percent};
use crate::memory::by_client;
use crate::results::{ExperimentResults, MemoryRow, SeedResults};

/// Clients that train the same parts with the same budget; all, where nobody counts memory.
struct Group<'a> {
    budget: Option<u64>,
    /// The parts of the client that held most, in the order of training.
    parts: Vec<&'a MemoryRow>,
    /// What clients held at most, ascending.
    held: Vec<u64>,
}

impl Group<'_> {
    fn planned(&self) -> Option<u64> {
        self.parts.iter().filter_map(|part| part.planned).max()
    }

    fn most(&self) -> u64 {
        self.held.last().copied().unwrap_or_default()
    }

    fn words(&self) -> String {
        match (self.budget, self.parts.len()) {
            (Some(budget), 1) => format!("{}, one part", Bytes(budget).rounded()),
            (Some(budget), n) => format!("{}, {n} parts", Bytes(budget).rounded()),
            (None, _) => "the whole model".to_owned(),
        }
    }
}

/// The groups of a run, those with the least first.
fn groups(run: &SeedResults) -> Vec<Group<'_>> {
    let mut clients = BTreeMap::<u64, Vec<&MemoryRow>>::new();
    run.memory.iter().for_each(|row| clients.entry(row.client).or_default().push(row));
    let mut groups = BTreeMap::<_, Vec<Vec<&MemoryRow>>>::new();
    for parts in clients.into_values() {
        let key = (parts[0].budget, parts.iter().map(|part| (part.first_block, part.last_block)).collect::<Vec<_>>());
        groups.entry(key).or_default().push(parts);
    }
    let most = |parts: &Vec<&MemoryRow>| parts.iter().map(|part| part.held).max().unwrap_or_default();
    let group = |((budget, _), mut clients): ((Option<u64>, _), Vec<Vec<_>>)| {
        clients.sort_by_key(most);
        let held = clients.iter().map(most).collect();
        Group { budget, parts: clients.pop().unwrap_or_default(), held }
    };
    groups.into_iter().map(group).collect()
}

/// What clients' training held beside their budgets, and part by part; nothing where nothing was measured.
pub(super) fn section(results: &ExperimentResults) -> Markup {
    let Some(run) = results.counted().into_iter().find(|run| !run.memory.is_empty()) else { return markup! {} };
    let groups = groups(run);
    markup! {
        section id="memory" {
            h2 { "Memory" }
            div class="pair" {
                (figure(&clients(run), "", "The most that each client's training held over all rounds, and the client's budget."))
                @if groups.iter().any(|group| group.parts.len() > 1) {
                    (figure(&update(&groups), "", "Over one local update, part by part, of the client of each group that held most. Dashes: the budget."))
                }
            }
            div class="wide" { table {
                thead { tr {
                    th { "budget" } th { "clients" } th { "parts" } th { "planned, at most" } th { "held, median" } th { "held, at most" } th { "of the budget" }
                } }
                tbody { @for group in &groups { tr {
                    td { (dash(group.budget.map(|budget| Bytes(budget).rounded()))) }
                    td { (group.held.len()) }
                    td { (group.parts.len()) }
                    td { (dash(group.planned().map(|planned| Bytes(planned).rounded()))) }
                    td { (Bytes(group.held[group.held.len() / 2]).rounded()) }
                    td { (Bytes(group.most()).rounded()) }
                    td { (dash(group.budget.map(|budget| percent(group.most() as f64 / budget.max(1) as f64)))) }
                } } }
            } }
            (each_client(run))
            p class="note" {
                "Counted by the program's allocator on the thread that trains (seed " (run.seed) "): the model, what is kept for the "
                "backward pass, gradients, the optimiser and what kernels work on; neither the received vector nor the client's examples."
            }
        }
    }
}

/// How many clients the table shows.
const MOST_CLIENTS: usize = 200;

fn each_client(run: &SeedResults) -> Markup {
    let most = by_client(&run.memory);
    let budget = |client: u64| run.memory.iter().find(|row| row.client == client)?.budget;
    let planned =
        |client: u64| run.memory.iter().filter(|row| row.client == client).filter_map(|row| row.planned).max();
    markup! {
        @if most.len() <= MOST_CLIENTS { details {
            summary { "Every client" }
            div class="wide" { table {
                thead { tr { th { "client" } th { "budget" } th { "planned, at most" } th { "held, at most" } } }
                tbody { @for (client, held) in &most { tr {
                    td { (client) }
                    td { (dash(budget(*client).map(|budget| Bytes(budget).rounded()))) }
                    td { (dash(planned(*client).map(|planned| Bytes(planned).rounded()))) }
                    td { (Bytes(*held).rounded()) }
                } } }
            } }
        } }
    }
}

const MEBIBYTE: f64 = (1 << 20) as f64;

/// By client: a dot for what it held, a line for its budget.
fn clients(run: &SeedResults) -> Chart<'static> {
    let held = by_client(&run.memory).into_iter().map(|(client, held)| (client as f64, held as f64 / MEBIBYTE));
    let mut budget = Vec::new();
    let rows = run.memory.iter().filter(|row| row.part == 1).filter_map(|row| Some((row.client, row.budget?)));
    for (client, bytes) in rows {
        // A step between two clients of different budgets.
        let (x, y) = (client as f64, bytes as f64 / MEBIBYTE);
        budget.extend([(x - 0.5, y), (x + 0.5, y)]);
    }
    let mut series =
        vec![Series { label: Some("held".into()), colour: PALETTE[0], mark: Mark::Points(held.collect()) }];
    if !budget.is_empty() {
        series.push(Series { label: Some("budget".into()), colour: PALETTE[1], mark: Mark::Dashes(budget) });
    }
    Chart {
        alt: "The most memory that each client's training held, and its budget".to_owned(),
        x: Axis { label: "client", scale: Scale::Count },
        y: Axis { label: "MiB", scale: Scale::Amount },
        series,
    }
}

/// Over one local update: what each part held, and the budget as dashes.
fn update(groups: &[Group<'_>]) -> Chart<'static> {
    let mut series = Vec::new();
    for (group, colour) in groups.iter().zip(PALETTE) {
        let (mut step, mut points) = (0, Vec::new());
        for part in &group.parts {
            let held = part.held as f64 / MEBIBYTE;
            points.push((step as f64, held));
            step += part.steps;
            points.push((step as f64, held));
        }
        let budget = group.budget.map(|budget| budget as f64 / MEBIBYTE).filter(|budget| budget.is_finite());
        let dashes = budget.map(|budget| Mark::Dashes(vec![(0.0, budget), (step as f64, budget)]));
        series.extend(dashes.map(|mark| Series { label: None, colour, mark }));
        series.push(Series { label: Some(group.words()), colour, mark: Mark::Line(points) });
    }
    Chart {
        alt: "Memory that a local update held, part by part".to_owned(),
        x: Axis { label: "steps of the local update", scale: Scale::Count },
        y: Axis { label: "MiB", scale: Scale::Amount },
        series,
    }
}

/// The picture of [`update`] for a suite's page; `None` where no client trains in parts.
pub(super) fn update_chart(results: &ExperimentResults) -> Option<Chart<'static>> {
    let run = results.counted().into_iter().find(|run| !run.memory.is_empty())?;
    let groups = groups(run);
    groups.iter().any(|group| group.parts.len() > 1).then(|| update(&groups))
}

/// Whether clients had budgets.
pub(super) fn has_budgets(results: &ExperimentResults) -> bool {
    results.counted().into_iter().flat_map(|run| &run.memory).any(|row| row.budget.is_some())
}

/// What the quarter of clients with the least held at most, in MiB: a client with fewer examples than a batch does not stand
/// for what training takes.
pub(super) fn least(run: &SeedResults) -> Option<f64> {
    let mut held: Vec<u64> = by_client(&run.memory).into_values().collect();
    held.sort_unstable();
    held.get(held.len().div_ceil(4).saturating_sub(1)).map(|held| *held as f64 / MEBIBYTE)
}

/// What the client with the most held, in MiB.
pub(super) fn most(run: &SeedResults) -> Option<f64> {
    by_client(&run.memory).into_values().max().map(|held| held as f64 / MEBIBYTE)
}

/// `1.23 ± 0.01 to 2.34`, of the quarter of clients with the least and the client with the most.
pub(super) fn range(results: &ExperimentResults) -> Option<String> {
    let mebibytes = |spread: Spread| mean_sd(&spread, |value| format!("{value:.2}"));
    let (least, most) = (results.spread(least)?, results.spread(most)?);
    Some(if least.mean == most.mean { mebibytes(most) } else { format!("{:.2} to {:.2}", least.mean, most.mean) })
}

/// Final accuracy by what the quarter of clients with the least held, mean over seeds: a dot for each experiment, a line for each
/// grid of one axis with a band of one standard deviation; `None` where an experiment was not measured.
pub(super) fn accuracy(
    singles: &[(String, &ExperimentResults)],
    grids: &[(String, Vec<&ExperimentResults>)],
) -> Option<Chart<'static>> {
    let at = |results: &ExperimentResults| {
        Some((results.spread(least)?.mean, results.spread(|run| Some(run.figures().final_accuracy?.value))?))
    };
    let mut series = Vec::new();
    for ((name, cells), colour) in grids.iter().zip(PALETTE) {
        let mut points: Vec<_> = cells.iter().filter_map(|cell| at(cell)).collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let band = points.iter().filter_map(|(x, s)| Some((*x, s.mean - s.sd?, s.mean + s.sd?))).collect();
        let line = points.iter().map(|(x, accuracy)| (*x, accuracy.mean)).collect();
        series.push(Series { label: None, colour, mark: Mark::Band(band) });
        series.push(Series { label: Some(name.clone()), colour, mark: Mark::Line(line) });
    }
    for (name, results) in singles {
        let (x, accuracy) = at(results)?;
        series.push(Series { label: None, colour: PALETTE[6], mark: Mark::Named((x, accuracy.mean), name.clone()) });
    }
    (series.len() > 1).then(|| Chart {
        alt: "Held-out accuracy after the last round by what the quarter of clients with the least held".to_owned(),
        x: Axis { label: "memory of the quarter of clients with the least, MiB", scale: Scale::Amount },
        y: Axis { label: "held-out accuracy", scale: Scale::Share },
        series,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{experiment, finished};

    /// Two clients of three parts in 4 MiB, and one that trains the whole in 9 MiB.
    fn measured() -> SeedResults {
        let mebibytes = |n: f64| (n * MEBIBYTE) as u64;
        let row = |client, part: u64, parts: u64, budget: f64, held: f64| MemoryRow {
            client,
            part,
            first_block: Some(1 + (part - 1) * 9 / parts),
            last_block: Some(part * 9 / parts),
            steps: 10,
            budget: Some(mebibytes(budget)),
            planned: Some(mebibytes(0.95 * budget)),
            held: mebibytes(held),
        };
        let parts = [(0, 3.5), (1, 3.75)]
            .into_iter()
            .flat_map(|(client, held)| [1, 2, 3].map(|part| row(client, part, 3, 4.0, held - 0.5 * (part - 1) as f64)));
        let memory = parts.chain([row(2, 1, 1, 9.0, 8.0)]).collect();
        SeedResults { memory, ..finished(&[Some(0.5)]) }
    }

    #[test]
    fn a_client_of_few_examples_does_not_stand_for_what_training_takes() {
        let row = |client: u64| MemoryRow { client, held: (client + 1) << 20, ..measured().memory.remove(0) };
        let of = |clients| SeedResults { memory: (0..clients).map(row).collect(), ..finished(&[Some(0.5)]) };
        let quarters: Vec<_> = [0, 1, 4, 5, 8, 40].map(|clients| least(&of(clients))).into();
        assert_eq!(quarters, [None, Some(1.0), Some(1.0), Some(2.0), Some(2.0), Some(10.0)]);
        assert_eq!(most(&of(8)), Some(8.0));
    }

    #[test]
    fn clients_are_held_against_their_budgets() {
        let results = experiment("s/n", vec![measured()]);
        let page = section(&results).into_string();
        assert_eq!(page.matches("<figure>").count(), 2);
        for text in [
            "<td>4.00 MiB</td><td>2</td><td>3</td><td>3.80 MiB</td><td>3.75 MiB</td><td>3.75 MiB</td><td>93.75 %</td>",
            "<td>9.00 MiB</td><td>1</td><td>1</td><td>8.55 MiB</td><td>8.00 MiB</td><td>8.00 MiB</td><td>88.89 %</td>",
            "<td>0</td><td>4.00 MiB</td><td>3.80 MiB</td><td>3.50 MiB</td>",
        ] {
            assert!(page.contains(text), "{text} is not in {page}");
        }
        assert_eq!(range(&results).unwrap(), "3.50 to 8.00");
        let chart = update_chart(&results).unwrap();
        let line = chart.series.iter().find_map(|series| match &series.mark {
            Mark::Line(points) if points.len() > 2 => Some(points.clone()),
            _ => None,
        });
        let expected = [(0.0, 3.75), (10.0, 3.75), (10.0, 3.25), (20.0, 3.25), (20.0, 2.75), (30.0, 2.75)];
        assert_eq!(line.unwrap(), expected, "of the client that held most");
    }

    #[test]
    fn clients_without_budgets_are_one_group_and_nothing_measured_is_no_section() {
        let without = |row: &MemoryRow| MemoryRow {
            part: 1,
            first_block: None,
            last_block: None,
            budget: None,
            planned: None,
            ..row.clone()
        };
        let run = measured();
        let memory = run.memory.iter().filter(|row| row.part == 1).map(without).collect();
        let results = experiment("s/n", vec![SeedResults { memory, ..finished(&[Some(0.5)]) }]);
        let page = section(&results).into_string();
        assert_eq!(page.matches("<figure>").count(), 1);
        let group = "<td>–</td><td>3</td><td>1</td><td>–</td><td>3.75 MiB</td><td>8.00 MiB</td><td>–</td>";
        assert!(page.contains(group), "{page}");
        assert!(update_chart(&results).is_none());
        let nothing = experiment("s/n", vec![finished(&[Some(0.5)])]);
        assert_eq!((section(&nothing).into_string(), range(&nothing)), (String::new(), None));
    }

    #[test]
    fn accuracy_by_memory_needs_every_experiment_measured() {
        let (one, other) = (experiment("s/a", vec![measured()]), experiment("s/b", vec![measured()]));
        let named = |results| (String::from("n"), results);
        let chart = accuracy(&[named(&one), named(&other)], &[(String::from("line"), vec![&one, &other])]).unwrap();
        assert!(chart.svg(640, 360).unwrap().contains("line"));
        let nothing = experiment("s/n", vec![finished(&[Some(0.5)])]);
        assert!(accuracy(&[named(&one), named(&nothing)], &[]).is_none());
    }
}
