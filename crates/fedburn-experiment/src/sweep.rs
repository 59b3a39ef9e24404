//! A grid over any fields of a config.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::assemble::{Experiment, Run};
use crate::config::{ConfigError, ExperimentConfig};
use crate::format::mean_sd;
use crate::results::{ExperimentResults, Measured, ResultsError, Summary};
use crate::table::Table;
use crate::{Metric, Spread};

/// One dimension of a grid: a dotted field and the values it takes.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// The field, e.g. `client.lr`.
    pub field: String,
    /// Its values, at least one.
    pub values: Vec<toml::Value>,
}

/// One cell of a grid.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// `field=value` of each axis, in the grid's order.
    pub settings: Vec<String>,
}

impl Axis {
    /// Reads `field=value,value,…`, each value TOML or a bare word.
    ///
    /// # Errors
    /// [`ConfigError::Override`].
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let refuse = |reason: &str| ConfigError::Override { text: text.to_owned(), reason: reason.to_owned() };
        let (field, values) = text.split_once('=').ok_or_else(|| refuse("expected table.field=value,value"))?;
        let list: Result<toml::Table, _> = toml::from_str(&format!("v = [{values}]"));
        let values = match list.ok().and_then(|mut t| t.remove("v")) {
            Some(toml::Value::Array(values)) => values,
            _ => values.split(',').map(|v| toml::Value::String(v.trim().to_owned())).collect(),
        };
        if values.is_empty() {
            return Err(refuse("expected at least one value"));
        }
        Ok(Self { field: field.trim().to_owned(), values })
    }

    /// The axes of a config's `[sweep]` table, sorted by field.
    ///
    /// # Errors
    /// [`ConfigError::Value`] where an entry is not a list of at least one value.
    pub fn of_table(path: &Path, table: &toml::Table) -> Result<Vec<Self>, ConfigError> {
        let axis = |(field, values): (&String, &toml::Value)| match values.as_array().filter(|v| !v.is_empty()) {
            Some(values) => Ok(Self { field: field.clone(), values: values.clone() }),
            None => Err(ConfigError::Value {
                path: path.to_owned(),
                table: "sweep",
                reason: format!("\"{field}\" = {values}, expected a list of at least one value"),
            }),
        };
        table.iter().map(axis).collect()
    }
}

impl Cell {
    /// Every cell of the grid, the last axis varying fastest; one empty cell where there is no axis.
    pub fn all(axes: &[Axis]) -> Vec<Self> {
        axes.iter().fold(vec![Self { settings: Vec::new() }], |cells, axis| {
            let extend = |cell: &Self| -> Vec<Self> {
                let with = |value: &toml::Value| Self {
                    settings: cell.settings.iter().cloned().chain([format!("{}={value}", axis.field)]).collect(),
                };
                axis.values.iter().map(with).collect()
            };
            cells.iter().flat_map(extend).collect()
        })
    }

    /// The cell's folder under `experiment`.
    pub fn dir(&self, experiment: &Path) -> PathBuf {
        let label = self.settings.join(",");
        let safe = |c: char| if c.is_ascii_alphanumeric() || "=.,-_+".contains(c) { c } else { '_' };
        experiment.join("sweep").join(label.chars().map(safe).collect::<String>())
    }
}

/// A cell that was checked and can run.
#[derive(Clone, Debug)]
pub struct PlannedCell {
    /// What it varies.
    pub cell: Cell,
    /// One run a seed.
    pub runs: Vec<Run>,
}

/// Checks every cell of a grid over the experiment file at `path`, before any of them runs. `settings` hold for all
/// cells; `adjust` is applied to each config last.
///
/// # Errors
/// [`ConfigError`] of the first cell that cannot run.
pub fn plan(
    path: &Path,
    settings: &[String],
    axes: &[Axis],
    data_root: &Path,
    adjust: impl Fn(ExperimentConfig) -> ExperimentConfig,
) -> Result<Vec<PlannedCell>, ConfigError> {
    Cell::all(axes)
        .into_iter()
        .map(|cell| {
            let all: Vec<_> = settings.iter().chain(&cell.settings).cloned().collect();
            let config = adjust(ExperimentConfig::load(path, &all)?);
            // `adjust` may have replaced them.
            config.check_seeds(path)?;
            let seeds = config.seeds.clone();
            let experiment = Experiment::new(path, config, data_root)?;
            let runs = seeds.into_iter().map(|seed| experiment.run(seed)).collect::<Result<_, _>>()?;
            Ok(PlannedCell { cell, runs })
        })
        .collect()
}

/// What one cell came to.
#[derive(Clone, Debug, Serialize)]
pub struct CellFigures {
    /// `field=value` of each axis.
    pub settings: Vec<String>,
    /// Number of finished seeds.
    pub seeds: usize,
    /// Accuracy at the last evaluated round over seeds.
    pub final_accuracy: Option<Spread>,
    /// Highest accuracy over seeds.
    pub best_accuracy: Option<Spread>,
}

/// The figures of all cells; `experiment` is the folder that holds `sweep`.
///
/// # Errors
/// [`ResultsError`] where the results of a cell cannot be read.
pub fn figures(cells: &[PlannedCell], experiment: &Path) -> Result<Vec<CellFigures>, ResultsError> {
    let of_cell = |PlannedCell { cell, .. }: &PlannedCell| {
        let results = ExperimentResults::load(&cell.dir(experiment))?;
        let spread = |figure: fn(Summary) -> Option<Measured>| {
            results.spread(|seed| figure(seed.figures()).map(|measured| measured.value))
        };
        Ok(CellFigures {
            settings: cell.settings.clone(),
            seeds: results.counted().len(),
            final_accuracy: spread(|figures| figures.final_accuracy),
            best_accuracy: spread(|figures| figures.best_accuracy),
        })
    };
    cells.iter().map(of_cell).collect()
}

/// [`figures`] side by side.
///
/// # Errors
/// As [`figures`].
pub fn table(cells: &[PlannedCell], experiment: &Path) -> Result<String, ResultsError> {
    let mut table = Table::new(["cell", "seeds", "final accuracy", "best accuracy"]);
    for cell in figures(cells, experiment)? {
        let shown = |spread: Option<Spread>| {
            spread.map_or("-".to_owned(), |spread| mean_sd(&spread, |value| Metric::Accuracy.show(value)))
        };
        let (last, best) = (shown(cell.final_accuracy), shown(cell.best_accuracy));
        table.row([cell.settings.join(" "), cell.seeds.to_string(), last, best]);
    }
    Ok(table.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_is_the_product_of_its_axes() {
        let axes = [Axis::parse("client.lr=0.1,0.01").unwrap(), Axis::parse("strategy.kind=fedavg,ewwa").unwrap()];
        let cells: Vec<_> = Cell::all(&axes).into_iter().map(|c| c.settings.join(" ")).collect();
        assert_eq!(
            cells,
            [
                "client.lr=0.1 strategy.kind=\"fedavg\"",
                "client.lr=0.1 strategy.kind=\"ewwa\"",
                "client.lr=0.01 strategy.kind=\"fedavg\"",
                "client.lr=0.01 strategy.kind=\"ewwa\"",
            ]
        );
        assert_eq!(Cell::all(&[]).len(), 1);
    }

    #[test]
    fn folders_are_safe_and_differ() {
        let axes = [Axis::parse("a.b=[1, 2],\"x/../y\"").unwrap()];
        let dirs: Vec<_> = Cell::all(&axes).iter().map(|c| c.dir(Path::new("out"))).collect();
        assert!(dirs.iter().all(|d| d.parent() == Some(Path::new("out/sweep"))), "{dirs:?}");
        assert_ne!(dirs[0], dirs[1]);
    }

    #[test]
    fn an_axis_without_values_is_refused() {
        assert!(Axis::parse("client.lr").is_err());
        assert!(Axis::parse("client.lr=").is_err());
        let table: toml::Table = toml::from_str("\"client.lr\" = 0.1").unwrap();
        assert!(Axis::of_table(Path::new("x.toml"), &table).unwrap_err().to_string().contains("client.lr"));
    }
}
