//! The page: `report.html`.

use std::collections::BTreeSet;

use maud::{DOCTYPE, Markup, PreEscaped, html as markup};

use super::chart::Chart;
use super::{curves, memory, mixing, partition, pictures, sharpness};
use crate::format::{mean_sd, mebibytes, percent, points, seconds, utc};
use crate::results::{ClientRow, ExperimentResults, SeedResults, SeedStatus, Summary};
use crate::{Spread, Verdict};

/// One self-contained page about an experiment: no script, no font, no picture from elsewhere. What comes from files
/// is escaped. Works with any number of seeds, without baselines, and with failed or partial seeds, which are shown as
/// such and left out of the means while another seed is finished.
pub fn html(results: &ExperimentResults, verdicts: &[Verdict]) -> String {
    let title = results.title();
    let page = markup! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) " · fedburn" }
                style { (PreEscaped(super::STYLE)) }
            }
            body {
                header {
                    h1 { (title) }
                    p class="under" { (results.name) " · " (states(results)) }
                    p class="lead" { (sentence(results)) }
                }
                main {
                    (result(results))
                    (claims(verdicts))
                    (learning(results))
                    (mixing::section(results))
                    (pictures::section(results))
                    (partition::section(results))
                    (clients(results))
                    (sharpness::section(results))
                    (memory::section(results))
                    (cost(results))
                    (failures(results))
                    (repetition(results))
                    (configuration(results))
                }
            }
        }
    };
    page.into_string()
}

/// `3 seeds finished, 1 partial`.
fn states(results: &ExperimentResults) -> String {
    let count = |of: fn(&SeedStatus) -> bool| results.seeds.iter().filter(|run| of(&run.status())).count();
    let states = [
        (count(|status| matches!(status, SeedStatus::Finished)), "finished"),
        (count(|status| matches!(status, SeedStatus::Partial { .. })), "partial"),
        (count(|status| matches!(status, SeedStatus::Failed { .. })), "failed"),
        (count(|status| matches!(status, SeedStatus::Missing)), "missing"),
    ];
    let told = states.into_iter().filter(|(n, _)| *n > 0).enumerate();
    let told = told.map(|(index, (n, state))| match (index, n) {
        (0, 1) => format!("1 seed {state}"),
        (0, n) => format!("{n} seeds {state}"),
        (_, n) => format!("{n} {state}"),
    });
    told.collect::<Vec<_>>().join(", ")
}

/// The one sentence to remember.
fn sentence(results: &ExperimentResults) -> Markup {
    let figure = |of: fn(&Summary) -> Option<f64>| results.spread(|run| of(&run.figures()));
    let Some(accuracy) = figure(|s| Some(s.final_accuracy?.value)) else {
        return markup! { "No accuracy was measured yet." };
    };
    let lead = |baseline: Option<Spread>| baseline.map(|baseline| accuracy.mean - baseline.mean);
    let side = |lead: f64, other: &str| {
        let distance = points(lead.abs());
        format!("{} {} {other}", distance.trim_start_matches('+'), if lead < 0.0 { "below" } else { "above" })
    };
    let centralised = lead(figure(|s| s.baselines.centralised)).map(|lead| side(lead, "centralised training"));
    let alone =
        lead(figure(|s| s.baselines.local_only_mean)).map(|lead| side(lead, "the mean of clients trained alone"));
    let sides: Vec<_> = [centralised, alone].into_iter().flatten().collect();
    let seeds = if accuracy.n == 1 { "one seed".into() } else { format!("{} seeds", accuracy.n) };
    markup! {
        "Held-out accuracy " strong { (mean_sd(&accuracy, percent)) } " over " (seeds)
        @if !sides.is_empty() { ": " (sides.join(", ")) }
        "."
    }
}

fn result(results: &ExperimentResults) -> Markup {
    let figures: Vec<_> = results.seeds.iter().map(|run| (run, run.figures())).collect();
    let (centralised, alone) = (
        figures.iter().any(|(_, figures)| figures.baselines.centralised.is_some()),
        figures.iter().any(|(_, figures)| figures.baselines.local_only_mean.is_some()),
    );
    let over = |of: fn(&Summary) -> Option<f64>, show: fn(f64) -> String| {
        dash(results.spread(|run| of(&run.figures())).map(|spread| mean_sd(&spread, show)))
    };
    markup! {
        section id="result" {
            h2 { "Result" }
            div class="wide" { table {
                thead { tr {
                    th { "seed" } th class="text" { "status" } th { "rounds" } th { "final accuracy" } th { "best accuracy (round)" } th { "final loss" }
                    @if centralised { th { "centralised" } }
                    @if alone { th { "clients alone: mean (range)" } }
                } }
                tbody {
                    @for (run, figures) in &figures { (seed_row(run, figures, centralised, alone)) }
                    @if results.counted().len() > 1 { tr class="total" {
                        td { "mean ± sd" } td {} td { (over(|s| Some(s.rounds as f64), |rounds| format!("{rounds:.0}")).replace(" ± 0", "")) }
                        td { (over(|s| Some(s.final_accuracy?.value), percent)) }
                        td { (over(|s| Some(s.best_accuracy?.value), percent)) }
                        td { (over(|s| Some(s.final_loss?.value), loss)) }
                        @if centralised { td { (over(|s| s.baselines.centralised, percent)) } }
                        @if alone { td { (over(|s| s.baselines.local_only_mean, percent)) } }
                    } }
                }
            } }
            p class="note" {
                "Accuracy and loss are measured on data that no client trains on. "
                "The best accuracy is picked by that same data, so it flatters; the final one does not."
            }
        }
    }
}

fn seed_row(run: &SeedResults, figures: &Summary, centralised: bool, alone: bool) -> Markup {
    let status = run.status();
    let baselines = &figures.baselines;
    let range = || {
        let (mean, low, high) = (baselines.local_only_mean?, baselines.local_only_min?, baselines.local_only_max?);
        Some(format!("{} ({:.2}–{:.2})", percent(mean), 100.0 * low, 100.0 * high))
    };
    let short = if let SeedStatus::Failed { .. } = status { "failed".into() } else { status.to_string() };
    markup! {
        tr {
            td { (run.seed) }
            td class=(if status == SeedStatus::Finished { "text" } else { "text bad" }) { (short) }
            td { (figures.rounds) }
            td { (dash(figures.final_accuracy.map(|m| percent(m.value)))) }
            td { (dash(figures.best_accuracy.map(|m| format!("{} ({})", percent(m.value), m.round)))) }
            td { (dash(figures.final_loss.map(|m| loss(m.value)))) }
            @if centralised { td { (dash(baselines.centralised.map(percent))) } }
            @if alone { td { (dash(range())) } }
        }
    }
}

fn claims(verdicts: &[Verdict]) -> Markup {
    markup! {
        @if !verdicts.is_empty() { section id="claims" {
            h2 { "Expectations" }
            table class="words" {
                thead { tr { th { "verdict" } th { "expected" } th { "measured" } } }
                tbody { @for verdict in verdicts { tr {
                    td { @if verdict.met { span class="good" { "✓ met" } } @else { span class="bad" { "✗ missed" } } }
                    td { (verdict.claim) }
                    td {
                        (verdict.shown.as_deref().unwrap_or("–"))
                        @if let Some(reason) = &verdict.reason { " (" (reason) ")" }
                    }
                } } }
            }
        } }
    }
}

fn learning(results: &ExperimentResults) -> Markup {
    markup! {
        section id="curves" {
            h2 { "Learning curves" }
            div class="pair" {
                (figure(&curves::accuracy(results), "No accuracy was measured yet.", "Accuracy of the global model on held-out data."))
                (figure(&curves::loss(results), "No loss was measured yet.", "Loss of the global model on held-out data, and of the cohort's local training."))
            }
        }
    }
}

fn clients(results: &ExperimentResults) -> Markup {
    let runs: Vec<_> = results.counted().into_iter().map(|run| curves::sorted_accuracy(&run.clients)).collect();
    let over = |of: fn(&[f64]) -> f64| Spread::of(runs.iter().filter(|run| !run.is_empty()).map(|run| of(run)));
    let tenth = |sorted: &[f64]| {
        let worst = &sorted[..sorted.len().div_ceil(10)];
        worst.iter().sum::<f64>() / worst.len() as f64
    };
    let rows = [
        ("mean over clients", over(|sorted| sorted.iter().sum::<f64>() / sorted.len() as f64)),
        ("median client", over(|sorted| sorted[sorted.len() / 2])),
        ("mean of the lowest tenth", over(tenth)),
        ("lowest", over(|sorted| sorted[0])),
        ("highest", over(|sorted| sorted[sorted.len() - 1])),
    ];
    markup! {
        section id="clients" {
            h2 { "Accuracy per client" }
            @if runs.iter().all(Vec::is_empty) { p class="note" { "Clients did not measure the final model." } }
            @else { div class="pair" {
                (figure(&curves::clients(results), "", "The final model on each client's own held-out data, clients in order of accuracy."))
                div {
                    table {
                        thead { tr { th { "final model, own data" } th { "mean ± sd over seeds" } } }
                        tbody { @for (name, spread) in rows { tr {
                            td { (name) } td { (dash(spread.map(|spread| mean_sd(&spread, percent)))) }
                        } } }
                    }
                    p class="note" { "Every client counts the same, whatever its number of examples." }
                }
            } }
            (personal(results))
        }
    }
}

/// What clients gain by keeping something for themselves; nothing where they use the global model.
fn personal(results: &ExperimentResults) -> Markup {
    let Some(chart) = curves::personal(results) else { return markup! {} };
    let mean = |values: Vec<f64>| (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64);
    let over = |of: fn(&SeedResults) -> Vec<f64>| {
        dash(Spread::of(results.counted().into_iter().filter_map(|run| mean(of(run)))).map(|s| mean_sd(&s, percent)))
    };
    let gains = |run: &SeedResults| -> Vec<f64> {
        let better = |client: &ClientRow| Some(f64::from(u8::from(client.accuracy? > client.global_accuracy?)));
        run.clients.iter().filter_map(better).collect()
    };
    markup! {
        div class="pair" {
            (figure(&chart, "", "What clients use, the global model, and models trained alone, on each client's own held-out data; each curve in its own order."))
            div {
                table {
                    thead { tr { th { "on own data, mean over clients" } th { "mean ± sd over seeds" } } }
                    tbody {
                        tr { td { "what clients use" } td { (over(|run| run.clients.iter().filter_map(|c| c.accuracy).collect())) } }
                        tr { td { "the global model" } td { (over(|run| run.clients.iter().filter_map(|c| c.global_accuracy).collect())) } }
                        tr { td { "clients alone" } td { (over(alone)) } }
                        tr { td { "clients that gain over the global model" } td { (over(gains)) } }
                    }
                }
            }
        }
    }
}

/// Accuracy on their own data of clients trained alone.
fn alone(run: &SeedResults) -> Vec<f64> {
    let clients = run.baselines.as_ref().and_then(|baselines| baselines.local_only.as_ref());
    clients.into_iter().flatten().filter_map(|client| client.own_accuracy).collect()
}

fn cost(results: &ExperimentResults) -> Markup {
    let over = |of: fn(&Summary) -> f64| results.spread(|run| Some(of(&run.figures())));
    let traffic = over(|figures| (figures.bytes_down + figures.bytes_up) as f64);
    let time = over(|figures| figures.seconds);
    let round = results.spread(|run| run.figures().seconds_per_round);
    markup! {
        section id="cost" {
            h2 { "Traffic and time" }
            @if let (Some(traffic), Some(time), Some(round)) = (traffic, time, round) { p {
                "A run moved " (mean_sd(&traffic, mebibytes)) " in all and trained for " (seconds(time.mean))
                ", " (seconds(round.mean)) " in the median round; mean over seeds."
            } }
            div class="pair" {
                (figure(&curves::traffic(results), "No round is finished yet.", "Bytes between the server and all clients of a round."))
                (figure(&curves::seconds(results), "No round is finished yet.", "Wall-clock seconds from the choice of the cohort to the new model."))
            }
        }
    }
}

fn failures(results: &ExperimentResults) -> Markup {
    let total: u64 = results.seeds.iter().map(|run| run.figures().failures).sum();
    let failed = results.seeds.iter().filter_map(|run| match run.status() {
        SeedStatus::Failed { cause } => Some((run.seed, cause)),
        _ => None,
    });
    let failed: Vec<_> = failed.collect();
    let problems = || results.seeds.iter().flat_map(|run| run.problems.iter().map(move |problem| (run.seed, problem)));
    let incidents =
        || results.seeds.iter().flat_map(|run| run.incidents.iter().map(move |(what, n)| (run.seed, what, n)));
    markup! {
        section id="failures" {
            h2 { "Failures" }
            @for (seed, cause) in &failed { p { span class="bad" { "Seed " (seed) " failed: " } (cause) } }
            @for (seed, problem) in problems() { p { span class="bad" { "Seed " (seed) ", damaged file: " } (problem) } }
            @if total == 0 && incidents().next().is_none() { p class="note" { "No client failed in any round." } }
            @else { div class="pair" {
                (figure(&curves::failures(results), "", "Clients that were asked and did not deliver."))
                div class="wide" { table class="words" {
                    thead { tr { th { "seed" } th { "times" } th { "what happened" } } }
                    tbody { @for (seed, what, times) in incidents().take(MOST_INCIDENTS) { tr {
                        td { (seed) } td { (times) } td { (what) }
                    } } }
                }
                @if incidents().count() > MOST_INCIDENTS { p class="note" { "More are in the seeds' events.jsonl." } }
                }
            } }
        }
    }
}

fn repetition(results: &ExperimentResults) -> Markup {
    let commands: BTreeSet<_> = results.seeds.iter().filter_map(|run| Some(&run.run.as_ref()?.command)).collect();
    markup! {
        section id="repeat" {
            h2 { "How to repeat it" }
            @for command in &commands { pre { code { (command) } } }
            div class="wide" { table class="words" {
                thead { tr {
                    th { "seed" } th { "versions" } th { "machine" } th { "started" } th { "ended" } th { "configuration" } th { "final model" }
                } }
                tbody { @for run in &results.seeds { @if let Some(info) = &run.run { tr {
                    td { (run.seed) }
                    td {
                        "fedburn " (info.fedburn_version)
                        @if let Some(revision) = &info.revision { " (" (brief(revision)) ")" }
                        ", burn " (info.burn_version) ", rustc " (info.rustc_version.trim_start_matches("rustc "))
                    }
                    td { (info.backend) " on " (info.device) ", " (info.cores) " cores, " (info.os) }
                    td { (utc(info.started)) }
                    td { (dash(info.ended.map(utc))) }
                    td { code { (brief(&info.config_hash)) } }
                    td { code { (dash(run.summary.as_ref().and_then(|s| Some(brief(s.model_hash.as_deref()?))))) } }
                } } } }
            } }
            p class="note" {
                "On the CPU backends the same configuration, backend and seed give the same final model, bit for bit; "
                "the last column is the beginning of its SHA-256."
            }
        }
    }
}

fn configuration(results: &ExperimentResults) -> Markup {
    let config = results.seeds.iter().find_map(|run| Some((run.seed, run.config.as_deref()?)));
    markup! {
        section id="configuration" {
            h2 { "Configuration" }
            @if let Some((seed, config)) = config {
                p class="note" { "As resolved for seed " (seed) ", every default written out." }
                pre { code { (config.trim_end()) } }
            } @else { p class="note" { "No configuration was written." } }
        }
    }
}

pub(super) fn figure(chart: &Chart<'_>, otherwise: &str, caption: &str) -> Markup {
    markup! {
        figure {
            @match chart.svg(560, 330) {
                Some(svg) => { (PreEscaped(svg)) figcaption { (caption) } }
                None => p class="note" { (otherwise) }
            }
        }
    }
}

/// How many different failures the page lists.
const MOST_INCIDENTS: usize = 30;

fn loss(value: f64) -> String {
    format!("{value:.4}")
}

pub(super) fn dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "–".into())
}

/// The beginning of a hash, enough to tell it from others.
fn brief(hash: &str) -> String {
    hash.chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::check;
    use crate::config::ExpectConfig;
    use crate::fixture::{baselines, clients, experiment, finished, interrupt, partition as partition_of};
    use crate::results::RunStatus;

    const SECTIONS: [&str; 8] =
        ["result", "curves", "partition", "clients", "cost", "failures", "repeat", "configuration"];

    /// The page's parts and the balance of its tags; void elements stand alone.
    fn page(results: &ExperimentResults, verdicts: &[Verdict]) -> String {
        let page = html(results, verdicts);
        for section in SECTIONS {
            assert_eq!(page.matches(&format!("<section id=\"{section}\">")).count(), 1, "{section}");
        }
        let mut open = Vec::new();
        for tag in page.split('<').skip(1) {
            let (tag, _) = tag.split_once('>').unwrap();
            let name: String = tag.chars().take_while(|c| c.is_ascii_alphanumeric() || "/!".contains(*c)).collect();
            match name.strip_prefix('/') {
                Some(name) => assert_eq!(open.pop().as_deref(), Some(name)),
                None if name.starts_with('!') || name == "meta" || tag.ends_with('/') => {}
                None => open.push(name),
            }
        }
        assert_eq!(open, Vec::<String>::new());
        assert!(!page.contains("NaN") && !page.contains("inf "));
        let elsewhere = page.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
        assert!(!elsewhere.contains("http:") && !elsewhere.contains("https:"));
        assert!(!page.contains("<script") && !page.contains("<link") && !page.contains("src="));
        page
    }

    fn run(last: f64) -> SeedResults {
        let mut run = finished(&[Some(0.2), Some(0.6), None, Some(last)]);
        run.baselines = Some(baselines(0.95, &[0.3, 0.5, 0.7]));
        run.clients = clients([0.9, 0.4, 1.0]);
        run.partition = Some(partition_of(3));
        run
    }

    #[test]
    fn one_seed_and_five_seeds_have_every_section() {
        let one = page(&experiment("s/n", vec![run(0.9)]), &[]);
        assert!(one.contains("90.00 %") && !one.contains("mean ± sd</td>"));
        assert!(one.contains("5.00 points below centralised training"));
        assert!(one.contains("50.00 % (30.00–70.00)"));
        let five = page(&experiment("s/n", [0.8, 0.82, 0.84, 0.86, 0.88].map(run).to_vec()), &[]);
        assert!(five.contains("84.00 ± 3.16 %") && five.contains("range of 5 seeds"));
        assert!(
            five.contains("seed 4") && five.contains("<td>0, 1, 2, 3, 4</td>"),
            "the split that all share is one row"
        );
    }

    #[test]
    fn without_baselines_clients_or_measurements_it_says_so() {
        let bare = page(&experiment("s/n", vec![finished(&[None, None])]), &[]);
        assert!(bare.contains("No accuracy was measured yet.") && bare.contains("Clients did not measure"));
        assert!(bare.contains("The partition's figures were not written."));
        assert!(!bare.contains("centralised</th>") && !bare.contains("<tr class=\"total\">"));
        page(&experiment("s/n", vec![finished(&[])]), &[]);
        page(&experiment("s/n", vec![SeedResults::default()]), &[]);
    }

    #[test]
    fn partial_and_failed_seeds_are_shown_as_such() {
        let mut runs = vec![run(0.9), run(0.5), run(0.1)];
        interrupt(&mut runs[1], 2);
        runs[2].run.as_mut().unwrap().status =
            RunStatus::Failed { cause: vec!["round 4".into(), "disk <full>".into()] };
        runs[2].problems.push("rounds.csv: line 3".into());
        let page = page(&experiment("s/n", runs), &[]);
        assert!(page.contains("1 seed finished, 1 partial, 1 failed"));
        assert!(page.contains("partial (round 2 of 4)") && page.contains("round 4: disk &lt;full&gt;"));
        assert!(page.contains("damaged file: </span>rounds.csv: line 3"));
        assert!(page.contains("<strong>90.00 %</strong> over one seed"), "only the finished seed counts");
    }

    #[test]
    fn what_comes_from_files_is_escaped() {
        let mut run = run(0.9);
        let attack = "</pre><script>alert(1)</script>&\"";
        run.config = Some(format!("title = '{attack}'"));
        let info = run.run.as_mut().unwrap();
        (info.command, info.device, info.revision) = (attack.into(), attack.into(), Some(attack.into()));
        run.incidents.insert(attack.into(), 3);
        run.problems.push(attack.into());
        page(&experiment("s/<b>n", vec![run]), &[]);
    }

    #[test]
    fn sharpness_is_shown_where_it_was_measured() {
        let mut runs = vec![run(0.9), run(0.8), run(0.7)];
        runs[0].sharpness = Some(crate::fixture::sharpness(3.5));
        runs[2].sharpness = Some(crate::fixture::sharpness(4.5));
        let page = page(&experiment("s/n", runs), &[]);
        assert!(page.contains("<section id=\"sharpness\">") && page.contains("4.00 ± 0.71"), "{page}");
        assert!(page.contains("loss along a random direction"));
    }

    #[test]
    fn what_clients_keep_is_held_against_the_global_model() {
        let plain = experiment("s/n", vec![run(0.9)]);
        assert!(!page(&plain, &[]).contains("what clients use"), "everybody uses the global model");
        let mut runs = vec![run(0.9), run(0.8)];
        for run in &mut runs {
            run.clients = crate::fixture::clients([0.9, 0.7, 0.5, 0.8]);
            run.clients.iter_mut().zip([0.8, 0.6, 0.6, 0.7]).for_each(|(c, global)| c.global_accuracy = Some(global));
            run.baselines = Some(crate::fixture::baselines(0.95, &[0.4, 0.6]));
        }
        let page = page(&experiment("s/n", runs), &[]);
        for figure in ["72.50", "67.50", "50.00", "75.00"] {
            assert!(page.contains(figure), "{figure}");
        }
    }

    #[test]
    fn verdicts_are_shown() {
        let results = experiment("s/n", vec![run(0.9)]);
        let claim = |at_least| ExpectConfig {
            metric: "accuracy".into(),
            at_round: None,
            at_least: Some(at_least),
            at_most: None,
        };
        let page = page(&results, &check(Some(&results), &[0], &[claim(0.8), claim(0.95)]));
        assert!(page.contains("✓ met") && page.contains("✗ missed") && page.contains("below the claim"));
    }
}
