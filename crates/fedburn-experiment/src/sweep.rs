//! A grid over any fields of a config.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::assemble::{Experiment, Run};
use crate::config::{ConfigError, ExperimentConfig};
use crate::format::mean_sd;
use crate::layers::{self, Change};
use crate::library::Library;
use crate::results::{ExperimentResults, Measured, ResultsError, Summary};
use crate::table::Table;
use crate::{Metric, Spread};

/// One dimension of a grid: a dotted field and the values it takes, or a name and its choices.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// The field, e.g. `client.lr`, or the name, e.g. `method`.
    pub name: String,
    /// What it takes, at least one.
    pub choices: Vec<Choice>,
}

/// One place on an axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The value as TOML writes it, or the choice's name.
    pub label: String,
    /// What it does to the config.
    pub change: Change,
}

/// One cell of a grid.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    /// `field=value` or `name=choice` of each axis, in the grid's order.
    pub settings: Vec<String>,
    /// What each of them does to the config.
    pub changes: Vec<Change>,
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
        Ok(Self::of_values(field.trim(), &values))
    }

    fn of_values(field: &str, values: &[toml::Value]) -> Self {
        let choice = |value: &toml::Value| Choice {
            label: value.to_string(),
            change: Change::Set { field: field.to_owned(), value: value.clone() },
        };
        Self { name: field.to_owned(), choices: values.iter().map(choice).collect() }
    }

    /// The axis that `--grid` asks for: as [`Axis::parse`] has it, or those choices of an axis that `table`, the file's
    /// `[sweep]` table, gives by name.
    ///
    /// # Errors
    /// [`ConfigError::Override`], also for a choice that the file does not know.
    pub fn asked(text: &str, table: &toml::Table) -> Result<Self, ConfigError> {
        let axis = Self::parse(text)?;
        let Some(known) = table.get(&axis.name).and_then(toml::Value::as_table) else { return Ok(axis) };
        let refuse = |reason: String| ConfigError::Override { text: text.to_owned(), reason };
        let choices = axis.choices.into_iter().map(|choice| {
            let label = choice.label.trim_matches('"').to_owned();
            match known.get(&label).and_then(toml::Value::as_table) {
                Some(over) => Ok(Choice { label, change: Change::Overlay(over.clone()) }),
                None => {
                    let names: Vec<_> = known.keys().map(String::as_str).collect();
                    Err(refuse(format!("`{label}` is no choice of the file, expected one of {}", names.join(", "))))
                }
            }
        });
        Ok(Self { name: axis.name, choices: choices.collect::<Result<_, _>>()? })
    }

    /// The axes of a config's `[sweep]` table, sorted by field.
    ///
    /// # Errors
    /// [`ConfigError::Value`] where an entry is neither a list of at least one value nor a table of choices.
    pub fn of_table(path: &Path, table: &toml::Table) -> Result<Vec<Self>, ConfigError> {
        let axis = |(name, value): (&String, &toml::Value)| match value {
            toml::Value::Array(values) if !values.is_empty() => Ok(Self::of_values(name, values)),
            toml::Value::Table(choices) if !choices.is_empty() && choices.values().all(toml::Value::is_table) => {
                let choice = |(label, over): (&String, &toml::Value)| {
                    let change = Change::Overlay(over.as_table().cloned().unwrap_or_default());
                    Choice { label: label.clone(), change }
                };
                let mut choices: Vec<Choice> = choices.iter().map(choice).collect();
                // Tables are in the order of letters, which numbers are not.
                if choices.iter().all(|choice| choice.label.parse::<f64>().is_ok()) {
                    let number = |choice: &Choice| choice.label.parse().unwrap_or(f64::NAN);
                    choices.sort_by(|a, b| number(a).total_cmp(&number(b)));
                }
                Ok(Self { name: name.clone(), choices })
            }
            _ => Err(ConfigError::Value {
                path: path.to_owned(),
                table: "sweep",
                reason: format!(
                    "\"{name}\" = {value}, expected a list of at least one value, or a table of choices by name"
                ),
            }),
        };
        table.iter().map(axis).collect()
    }
}

impl Cell {
    /// Every cell of the grid, the last axis varying fastest; one empty cell where there is no axis.
    pub fn all(axes: &[Axis]) -> Vec<Self> {
        axes.iter().fold(vec![Self { settings: Vec::new(), changes: Vec::new() }], |cells, axis| {
            let extend = |cell: &Self| -> Vec<Self> {
                let with = |choice: &Choice| {
                    let mut cell = cell.clone();
                    cell.settings.push(format!("{}={}", axis.name, choice.label));
                    cell.changes.push(choice.change.clone());
                    cell
                };
                axis.choices.iter().map(with).collect()
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
    let mut library = Library::new(data_root);
    Cell::all(axes)
        .into_iter()
        .map(|cell| {
            let own = settings.iter().map(|text| Change::parse(text));
            let changes = own.chain(cell.changes.iter().cloned().map(Ok)).collect::<Result<Vec<_>, _>>()?;
            let config = adjust(ExperimentConfig::of_table(path, layers::read(path)?, &changes)?);
            // `adjust` may have replaced them.
            config.check_seeds(path)?;
            let seeds = config.seeds.clone();
            let experiment = Experiment::with_library(path, config, &mut library)?;
            let runs = seeds.into_iter().map(|seed| experiment.run(seed)).collect::<Result<_, _>>()?;
            Ok(PlannedCell { cell, runs })
        })
        .collect()
}

/// What one cell came to.
#[derive(Clone, Debug, Serialize)]
pub struct CellFigures {
    /// `field=value` or `name=choice` of each axis.
    pub settings: Vec<String>,
    /// Number of finished seeds.
    pub seeds: usize,
    /// Accuracy at the last evaluated round over seeds.
    pub final_accuracy: Option<Spread>,
    /// Highest accuracy over seeds.
    pub best_accuracy: Option<Spread>,
    /// Accuracy of what clients use on their own held-out examples, mean over clients, over seeds.
    pub own_accuracy: Option<Spread>,
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
            own_accuracy: results.spread(|seed| seed.own_accuracy()),
        })
    };
    cells.iter().map(of_cell).collect()
}

/// [`figures`] side by side.
///
/// # Errors
/// As [`figures`].
pub fn table(cells: &[PlannedCell], experiment: &Path) -> Result<String, ResultsError> {
    let mut table = Table::new(["cell", "seeds", "final accuracy", "best accuracy", "clients' own data"]);
    for cell in figures(cells, experiment)? {
        let shown = |spread: Option<Spread>| {
            spread.map_or("-".to_owned(), |spread| mean_sd(&spread, |value| Metric::Accuracy.show(value)))
        };
        let [last, best, own] = [cell.final_accuracy, cell.best_accuracy, cell.own_accuracy].map(shown);
        table.row([cell.settings.join(" "), cell.seeds.to_string(), last, best, own]);
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
    fn choices_have_names_and_can_be_asked_for() {
        let text = "[method.plain]\nstrategy = { kind = 'fedavg' }\n[method.fast]\nclient = { lr = 1.0 }\n";
        let table: toml::Table = toml::from_str(text).unwrap();
        let axes = Axis::of_table(Path::new("x.toml"), &table).unwrap();
        let cells = Cell::all(&axes);
        assert_eq!(cells.iter().map(|c| c.settings.join(" ")).collect::<Vec<_>>(), ["method=fast", "method=plain"]);
        assert_eq!(Axis::asked("method=plain", &table).unwrap().choices, axes[0].choices[1..]);
        assert_eq!(Axis::asked("client.lr=1,2", &table).unwrap(), Axis::parse("client.lr=1,2").unwrap());
        let error = Axis::asked("method=slow", &table).unwrap_err().to_string();
        assert!(error.contains("`slow`") && error.contains("fast, plain"), "{error}");
        let numbers: toml::Table = toml::from_str("[alpha.100]\n[alpha.2]\n[alpha.\"0.5\"]\n").unwrap();
        let axes = Axis::of_table(Path::new("x.toml"), &numbers).unwrap();
        assert_eq!(axes[0].choices.iter().map(|c| c.label.as_str()).collect::<Vec<_>>(), ["0.5", "2", "100"]);
        let wrong: toml::Table = toml::from_str("method = { plain = 3 }").unwrap();
        assert!(Axis::of_table(Path::new("x.toml"), &wrong).is_err());
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
