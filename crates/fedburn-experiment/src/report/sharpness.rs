//! How sharp the minimum is that the final model lies in.

use maud::{Markup, html as markup};

use super::chart::{Axis, Chart, Mark, PALETTE, Scale, Series};
use super::page::{dash, figure};
use crate::format::mean_sd;
use crate::results::{ExperimentResults, SeedResults};

/// The Hessian's largest eigenvalue and the loss along a random direction; nothing where no seed measured them.
pub(super) fn section(results: &ExperimentResults) -> Markup {
    let runs: Vec<_> = results.seeds.iter().filter_map(|run| Some((run, run.sharpness.as_ref()?))).collect();
    let over = results.spread(|run| run.figures().top_eigenvalue);
    markup! {
        @if !runs.is_empty() { section id="sharpness" {
            h2 { "Sharpness" }
            div class="pair" {
                (figure(&curve(results), "No loss was finite.", "Loss of the final model moved along a random direction, one for each seed."))
                div {
                    table {
                        thead { tr { th { "seed" } th { "largest eigenvalue" } th { "products" } } }
                        tbody {
                            @for (run, sharpness) in &runs { tr {
                                td { (run.seed) }
                                td { (dash(sharpness.top_eigenvalue.map(number))) @if !sharpness.converged { " (not settled)" } }
                                td { (sharpness.products) }
                            } }
                            @if let Some(spread) = over.filter(|spread| spread.n > 1) { tr class="total" {
                                td { "mean ± sd" } td { (mean_sd(&spread, number)) } td {}
                            } }
                        }
                    }
                    p class="note" { "Of the Hessian of the mean cross-entropy; smaller is flatter." }
                }
            }
        } }
    }
}

/// The loss by distance, a line for each seed.
pub(super) fn curve(results: &ExperimentResults) -> Chart<'static> {
    let points = |run: &SeedResults| {
        let curve = run.sharpness.iter().flat_map(|sharpness| &sharpness.curve);
        curve.filter_map(|at| Some((at.distance, at.loss?))).collect::<Vec<_>>()
    };
    let runs = results.counted().into_iter().filter(|run| run.sharpness.is_some()).enumerate();
    let series = runs.map(|(index, run)| Series {
        label: (index < PALETTE.len()).then(|| format!("seed {}", run.seed)),
        colour: PALETTE[index.min(PALETTE.len() - 1)],
        mark: Mark::Line(points(run)),
    });
    Chart {
        alt: format!("loss along a random direction from the final model, {}", results.name),
        x: Axis { label: "distance, in norms of the weights", scale: Scale::Number },
        y: Axis { label: "loss", scale: Scale::Number },
        series: series.collect(),
    }
}

fn number(value: f64) -> String {
    format!("{value:.2}")
}
