//! Results worth keeping, as Markdown: `docs/results/<suite>.md`.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::{Grid, curves, memory, sharpness};
use crate::Metric;
use crate::format::{mean_sd, mebibytes, percent, seconds, utc};
use crate::results::{ExperimentResults, RunInfo, SeedStatus, Summary};

/// One page for a suite: of single experiments a table of final figures (mean ± sd over seeds), the curves, and for each experiment its
/// baselines, versions and command; of grids their tables and curves. Pictures are linked relative to the page, as `<suite>/<picture>.svg`;
/// [`super::write_markdown`] writes them. What comes from files is escaped.
pub fn markdown(suite: &str, experiments: &[ExperimentResults], grids: &[Grid]) -> String {
    let pictures = pictures(suite, experiments, grids);
    let linked = |prefix: &str| {
        let links = pictures.iter().filter(|(name, _)| name.starts_with(prefix));
        links.map(|(name, _)| format!("![{}]({name})\n", name.trim_end_matches(".svg"))).collect::<String>()
    };
    let mut page = format!("# Results: {}\n\n", escaped(suite));
    page += "Mean ± standard deviation over seeds, measured on data that no client trains on.\n\n";
    if !experiments.is_empty() {
        let sharp = experiments.iter().any(|results| results.seeds.iter().any(|run| run.sharpness.is_some()));
        let measured = experiments.iter().any(|results| memory::range(results).is_some());
        page += "| experiment | seeds | rounds | final accuracy | best accuracy | final loss | centralised | clients alone | traffic | time |";
        page += if measured { " clients' memory, MiB |" } else { "" };
        page += if sharp { " largest eigenvalue |\n" } else { "\n" };
        page += "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|";
        page += &"---:|".repeat(usize::from(measured) + usize::from(sharp));
        page += "\n";
        experiments.iter().for_each(|results| page += &line(results, measured, sharp));
        let _ = write!(page, "\n{}", linked(&format!("{suite}/all-")));
    }
    grids.iter().for_each(|grid| page += &grid.markdown());
    for results in experiments {
        let _ = write!(page, "\n## {}\n\n{}\n", escaped(&results.name), escaped(&results.title()));
        for run in results.seeds.iter().filter(|run| run.status() != SeedStatus::Finished) {
            let _ = write!(page, "\nSeed {}: {}.\n", run.seed, escaped(&run.status().to_string()));
        }
        let _ = write!(page, "\n{}", linked(&format!("{}-", results.name)));
        let infos: Vec<&RunInfo> = results.seeds.iter().filter_map(|run| run.run.as_ref()).collect();
        if let Some(info) = infos.first() {
            let _ = write!(
                page,
                "\nfedburn {}{}, burn {}, rustc {}; {} on {}, {} cores, {}; {}.\n\n```sh\n",
                escaped(&info.fedburn_version),
                info.revision.as_ref().map(|revision| format!(" ({})", escaped(revision))).unwrap_or_default(),
                escaped(&info.burn_version),
                escaped(info.rustc_version.trim_start_matches("rustc ")),
                escaped(&info.backend),
                escaped(&info.device),
                info.cores,
                escaped(&info.os),
                utc(info.started),
            );
            let commands: BTreeSet<_> = infos.iter().map(|info| info.command.replace("```", "")).collect();
            commands.iter().for_each(|command| page += &format!("{command}\n"));
            page += "```\n";
        }
    }
    page
}

/// The pictures of a suite's page: their path relative to it, and the SVG.
pub(super) fn pictures(suite: &str, experiments: &[ExperimentResults], grids: &[Grid]) -> Vec<(String, String)> {
    let mut pictures = Vec::new();
    let named: Vec<_> = experiments.iter().map(|results| (last_part(&results.name), results)).collect();
    for metric in [Metric::Accuracy, Metric::Loss] {
        let overlay = curves::overlay(&named, metric).and_then(|chart| chart.svg(WIDTH, HEIGHT));
        pictures.extend(overlay.map(|svg| (format!("{suite}/all-{metric}.svg"), svg)));
    }
    let lines: Vec<_> = grids.iter().filter_map(Grid::line).collect();
    let by_memory = memory::accuracy(&named, &lines).and_then(|chart| chart.svg(WIDTH, HEIGHT));
    pictures.extend(by_memory.map(|svg| (format!("{suite}/all-accuracy-by-memory.svg"), svg)));
    for results in experiments {
        let update = memory::update_chart(results).and_then(|chart| chart.svg(WIDTH, HEIGHT));
        pictures.extend(update.map(|svg| (format!("{}-memory.svg", results.name), svg)));
        let charts = [
            ("accuracy", curves::accuracy(results)),
            ("loss", curves::loss(results)),
            ("sharpness", sharpness::curve(results)),
        ];
        for (metric, chart) in charts {
            pictures.extend(chart.svg(WIDTH, HEIGHT).map(|svg| (format!("{}-{metric}.svg", results.name), svg)));
        }
    }
    pictures
}

pub(super) const WIDTH: u32 = 640;
pub(super) const HEIGHT: u32 = 360;

fn last_part(name: &str) -> String {
    name.rsplit('/').next().unwrap_or_default().to_owned()
}

/// A row of the table; `measured` adds the least and the most that clients' training held, `sharp` the Hessian's largest
/// eigenvalue.
fn line(results: &ExperimentResults, measured: bool, sharp: bool) -> String {
    let over = |of: fn(&Summary) -> Option<f64>, show: fn(f64) -> String| {
        results.spread(|run| of(&run.figures())).map_or_else(|| "–".into(), |spread| mean_sd(&spread, show))
    };
    let mut cells = vec![
        escaped(&results.name),
        format!(
            "{} of {}",
            results.seeds.iter().filter(|run| run.status() == SeedStatus::Finished).count(),
            results.seeds.len()
        ),
        over(|s| Some(s.rounds as f64), |rounds| format!("{rounds:.0}")).replace(" ± 0", ""),
        over(|s| Some(s.final_accuracy?.value), percent),
        over(|s| Some(s.best_accuracy?.value), percent),
        over(|s| Some(s.final_loss?.value), |loss| format!("{loss:.4}")),
        over(|s| s.baselines.centralised, percent),
        over(|s| s.baselines.local_only_mean, percent),
        over(|s| Some((s.bytes_down + s.bytes_up) as f64), mebibytes),
        results.spread(|run| Some(run.figures().seconds)).map_or_else(|| "–".into(), |spread| seconds(spread.mean)),
    ];
    cells.extend(measured.then(|| memory::range(results).unwrap_or_else(|| "–".into())));
    cells.extend(sharp.then(|| over(|s| s.top_eigenvalue, |value| format!("{value:.2}"))));
    format!("| {} |\n", cells.join(" | "))
}

/// Text that Markdown shows as it is.
pub(super) fn escaped(text: &str) -> String {
    let mut shown = String::new();
    for c in text.chars() {
        match c {
            '<' => shown += "&lt;",
            '&' => shown += "&amp;",
            '\n' | '\r' => shown.push(' '),
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '#' => shown.extend(['\\', c]),
            c => shown.push(c),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{baselines, experiment, finished, interrupt};

    #[test]
    fn every_linked_picture_is_made_and_every_made_one_linked() {
        let run = || finished(&[Some(0.3), Some(0.6), Some(0.7)]);
        let experiments = [experiment("suite/a", vec![run(), run()]), experiment("suite/b", vec![run()])];
        let dir = tempfile::tempdir().unwrap();
        let page = super::super::write_markdown(dir.path(), "suite", &experiments, &[]).unwrap();
        let text = std::fs::read_to_string(page).unwrap();
        let links: Vec<_> = text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()).collect();
        assert_eq!(links.len(), 6);
        links.iter().for_each(|link| assert!(dir.path().join(link).is_file(), "{link}"));
        assert_eq!(std::fs::read_dir(dir.path().join("suite")).unwrap().count(), 6);
        assert!(text.contains("| suite/a | 2 of 2 | 3 | 70.00 ± 0.00 % |"), "{text}");
    }

    #[test]
    fn an_account_above_the_line_stays() {
        let dir = tempfile::tempdir().unwrap();
        let write = |runs: usize| {
            let runs = (0..runs).map(|_| finished(&[Some(0.3), Some(0.6)])).collect();
            let page = super::super::write_markdown(dir.path(), "s", &[experiment("s/a", runs)], &[]).unwrap();
            (std::fs::read_to_string(&page).unwrap(), page)
        };
        let (plain, path) = write(1);
        assert!(plain.starts_with("# Results: s\n") && !plain.contains(super::super::FIGURES));
        std::fs::write(&path, format!("# Mine\n\nSo it is.\n\n{}\nold", super::super::FIGURES)).unwrap();
        let (first, second) = (write(1).0, write(2).0);
        assert!(first.starts_with("# Mine\n\nSo it is.\n\n<!--") && first.ends_with(&plain), "{first}");
        assert!(second.contains("So it is.") && second.contains("| s/a | 2 of 2 |") && !second.contains("old"));
    }

    #[test]
    fn text_from_files_stays_text() {
        let mut run = finished(&[Some(0.3), None]);
        run.config = Some("title = \"<b>*|x|*</b>\"".into());
        run.run.as_mut().unwrap().command = "run ``` out".into();
        run.baselines = Some(baselines(0.9, &[0.1]));
        interrupt(&mut run, 1);
        let text = markdown("s", &[experiment("s/n", vec![run])], &[]);
        assert!(
            text.contains("&lt;b>\\*\\|x\\|\\*&lt;/b>") && text.contains("Seed 0: partial (round 1 of 2)."),
            "{text}"
        );
        assert_eq!(text.matches("```").count(), 2);
        assert!(!text.contains("NaN"));
    }

    #[test]
    fn no_experiment_is_no_table() {
        assert_eq!(markdown("s", &[], &[]).matches('|').count(), 0);
    }
}
