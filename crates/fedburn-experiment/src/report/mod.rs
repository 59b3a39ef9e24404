//! What a reader sees of an experiment: one self-contained page over all seeds, and Markdown for a suite.

mod chart;
mod curves;
mod grid;
mod headline;
mod markdown;
mod mixing;
mod page;
mod partition;
mod sharpness;

use std::path::{Path, PathBuf};

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

/// Writes [`markdown`] of a suite to `<docs>/<suite>.md` and its curves to `<docs>/<suite>/*.svg`; returns the path of
/// the page.
///
/// # Errors
/// [`ResultsError::Write`].
pub fn write_markdown(
    docs: &Path,
    suite: &str,
    experiments: &[ExperimentResults],
    grids: &[Grid],
) -> Result<PathBuf, ResultsError> {
    let single = markdown::pictures(suite, experiments);
    for (name, svg) in single.into_iter().chain(grids.iter().flat_map(Grid::pictures)) {
        write_atomic(&docs.join(name), svg.as_bytes())?;
    }
    let path = docs.join(format!("{suite}.md"));
    write_atomic(&path, markdown(suite, experiments, grids).as_bytes())?;
    Ok(path)
}
