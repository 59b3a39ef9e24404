//! What a reader sees of an experiment: one self-contained page over all seeds, and Markdown for a suite.

mod chart;
mod curves;
mod grid;
mod headline;
mod markdown;
mod memory;
mod mixing;
mod page;
mod partition;
mod pictures;
mod sharpness;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use fedburn::runtime::RoundRow;
use maud::Markup;

use crate::Verdict;
use crate::results::{ExperimentResults, ResultsError, write_atomic};

pub use grid::Grid;
pub use headline::headline;
pub use markdown::markdown;
pub use page::html;

/// Writes [`html`] to `report.html` in the experiment's folder and returns its path.
///
/// # Errors
/// [`ResultsError::Write`].
pub fn write_html(results: &ExperimentResults, verdicts: &[Verdict]) -> Result<PathBuf, ResultsError> {
    let path = results.dir.join("report.html");
    write_atomic(&path, html(results, verdicts).as_bytes())?;
    Ok(path)
}

/// The curves of a run as it goes on.
pub(crate) fn live_figures(rounds: &[RoundRow]) -> Vec<Markup> {
    let captions = [
        "Accuracy of the global model on held-out data.",
        "Loss of the global model on held-out data, and of the cohort's local training.",
        "What models and updates weigh.",
        "From the choice of the cohort to the new model.",
    ];
    let charts = curves::of_rounds(rounds).into_iter().zip(captions);
    charts.map(|(chart, caption)| page::figure(&chart, "Nothing was measured yet.", caption)).collect()
}

/// The pages' style sheet.
pub(crate) const STYLE: &str = include_str!("style.css");

/// The line of a suite's page below which everything is written anew; an account of what the figures mean, written by
/// hand above it, stays.
pub const FIGURES: &str = "<!-- figures: written by fedburn experiment report -->";

/// Writes [`markdown`] of a suite to `<docs>/<suite>.md` and its curves to `<docs>/<suite>/*.svg`; returns the path of
/// the page. What stands above the line [`FIGURES`] of a page that is there already is kept.
///
/// # Errors
/// [`ResultsError::Read`], [`ResultsError::Write`].
pub fn write_markdown(
    docs: &Path,
    suite: &str,
    experiments: &[ExperimentResults],
    grids: &[Grid],
) -> Result<PathBuf, ResultsError> {
    let single = markdown::pictures(suite, experiments, grids);
    for (name, svg) in single.into_iter().chain(grids.iter().flat_map(Grid::pictures)) {
        write_atomic(&docs.join(name), svg.as_bytes())?;
    }
    let path = docs.join(format!("{suite}.md"));
    let account = match std::fs::read_to_string(&path) {
        Ok(page) => page.split_once(FIGURES).map(|(account, _)| account.to_owned()).unwrap_or_default(),
        Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
        Err(source) => return Err(ResultsError::Read { path, source }),
    };
    let page = markdown(suite, experiments, grids);
    let page = if account.is_empty() { page } else { format!("{account}{FIGURES}\n\n{page}") };
    write_atomic(&path, page.as_bytes())?;
    Ok(path)
}
