//! A grid as Markdown: tables with a row for each choice of one axis and a column for each of another, and curves.

use std::fmt::Write;
use std::path::Path;

use super::chart::{Chart, Mark, PALETTE, Scale, Series};
use super::markdown::{HEIGHT, WIDTH, escaped};
use super::{curves, memory};
use plotters::style::RGBColor;

use crate::format::{mean_sd, mebibytes, percent};
use crate::results::{ExperimentResults, ResultsError, SeedResults, SeedStatus};
use crate::sweep::{Axis, Cell, Choice};
use crate::{Metric, Spread};

/// What the cells of a grid came to.
#[derive(Clone, Debug)]
pub struct Grid {
    name: String,
    title: String,
    axes: Vec<Axis>,
    /// In the order of [`Cell::all`]; `None` where nothing was run.
    cells: Vec<Option<ExperimentResults>>,
}

/// One table of a grid: a choice of every axis but two, by its words, and the cells by row and column.
struct Table<'a> {
    heading: String,
    /// What the logarithm of a column's number is called.
    across: String,
    rows: Vec<&'a str>,
    columns: Vec<&'a str>,
    cells: Vec<Vec<Option<&'a ExperimentResults>>>,
}

/// A figure of a run that a grid compares.
struct Measure {
    words: &'static str,
    of: fn(&SeedResults) -> Option<f64>,
    show: fn(f64) -> String,
    /// Which of two values is the better one.
    better: fn(f64, f64) -> f64,
    /// Left out where it is the same for all.
    only_if_different: bool,
}

const MEASURES: [Measure; 8] = [
    Measure {
        words: "Held-out accuracy after the last round",
        of: |run| Some(run.figures().final_accuracy?.value),
        show: percent,
        better: f64::max,
        only_if_different: false,
    },
    Measure {
        words: "Held-out accuracy, mean over the last tenth of the measured rounds",
        of: |run| Some(late_accuracy(run)?.mean),
        show: percent,
        better: f64::max,
        only_if_different: false,
    },
    Measure {
        words: "Standard deviation of the held-out accuracy over the last tenth of the measured rounds",
        of: |run| late_accuracy(run)?.sd,
        show: percent,
        better: f64::min,
        only_if_different: false,
    },
    Measure {
        words: "What clients use on their own held-out examples, mean over clients",
        of: SeedResults::own_accuracy,
        show: percent,
        better: f64::max,
        only_if_different: false,
    },
    Measure {
        words: "Largest eigenvalue of the loss's Hessian at the final model",
        of: |run| run.figures().top_eigenvalue,
        show: |value| format!("{value:.2}"),
        better: f64::min,
        only_if_different: false,
    },
    Measure {
        words: "Memory of the quarter of clients with the least, MiB",
        of: memory::least,
        show: |mebibytes| format!("{mebibytes:.2}"),
        better: f64::min,
        only_if_different: true,
    },
    Measure {
        words: "What clients sent in all",
        of: |run| Some(run.figures().bytes_up as f64),
        show: mebibytes,
        better: f64::min,
        only_if_different: true,
    },
    Measure {
        words: "What the server sent in all",
        of: |run| Some(run.figures().bytes_down as f64),
        show: mebibytes,
        better: f64::min,
        only_if_different: true,
    },
];

/// How far apart dots are that would lie on each other, in powers of ten.
const BESIDE: f64 = 0.04;

/// The end of the name of the pictures over what clients sent.
const TRAFFIC: &str = "traffic.svg";

/// The end of the name of the pictures over what the quarter of clients with the least held.
const MEMORY: &str = "memory.svg";

/// The end of the name of the picture over columns.
const ACROSS: &str = "clients.svg";

/// Names of axes whose choices are to be held against each other.
const COMPARED: [&str; 2] = ["method", "defence"];

impl Grid {
    /// Reads the cells below `experiment`, the folder that holds `sweep`. `None` where nothing was run.
    ///
    /// # Errors
    /// [`ResultsError`] where the results of a cell cannot be read.
    pub fn load(experiment: &Path, title: &str, axes: Vec<Axis>) -> Result<Option<Self>, ResultsError> {
        let read = |cell: Cell| match ExperimentResults::load(&cell.dir(experiment)) {
            Ok(results) => Ok(Some(results)),
            Err(ResultsError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        };
        let cells: Vec<_> = Cell::all(&axes).into_iter().map(read).collect::<Result<_, _>>()?;
        let parts: Vec<_> = experiment.iter().rev().take(2).map(|part| part.to_string_lossy()).collect();
        let name = parts.into_iter().rev().collect::<Vec<_>>().join("/");
        let any = cells.iter().any(Option::is_some);
        Ok(any.then(|| Self { name, title: title.to_owned(), axes, cells }))
    }

    /// The command, the tables of each measure that was taken, and links to the curves.
    pub(super) fn markdown(&self) -> String {
        let mut page = format!("\n## {}\n\n{}\n", escaped(&self.name), escaped(&self.title));
        let _ = write!(page, "\n```sh\ncargo xtask experiment sweep {}\n```\n", self.name);
        let pictures = self.pictures();
        for (index, table) in self.tables().iter().enumerate() {
            if !table.heading.is_empty() {
                let _ = write!(page, "\n### {}\n", escaped(&table.heading));
            }
            for measure in MEASURES.iter().filter(|measure| table.shows(measure)) {
                let _ = write!(page, "\n{}:\n\n{}", measure.words, table.markdown(measure));
            }
            let across = self.picture(index, ACROSS);
            if pictures.iter().any(|(name, _)| *name == across) {
                let _ = write!(page, "\n![What clients use on their own held-out examples, by column]({across})\n");
            }
            let prefix = self.picture(index, "");
            let others = pictures.iter().filter(|(name, _)| *name != across && name.starts_with(&prefix));
            for (name, _) in others {
                let column = name.trim_start_matches(&prefix);
                let of = [
                    (TRAFFIC, "by what clients sent in all"),
                    (MEMORY, "by the memory of the quarter of clients with the least"),
                    (".svg", "by round, mean over seeds"),
                ];
                let by = of.into_iter().find_map(|(end, by)| Some((column.strip_suffix(end)?, by)));
                let (column, by) = by.unwrap_or((column, "by round"));
                let column = column.trim_end_matches('-');
                let _ = write!(page, "\n![Held-out accuracy {by}: {column}]({name})\n");
            }
        }
        let unfinished: Vec<_> = self.cells.iter().flatten().flat_map(|cell| &cell.seeds).collect();
        let count = unfinished.iter().filter(|run| run.status() != SeedStatus::Finished).count();
        if count > 0 {
            let _ = write!(page, "\n{count} of {} runs are not finished.\n", unfinished.len());
        }
        page
    }

    /// Curves over rounds, a picture for each column of each table; where rows sent different amounts, accuracy by amount,
    /// and where clients of some have budgets, by memory; and over columns that are numbers what clients make of their
    /// models: their path relative to the page, and the SVG.
    pub(super) fn pictures(&self) -> Vec<(String, String)> {
        let mut pictures = Vec::new();
        for (index, table) in self.tables().iter().enumerate() {
            let across = table.own_accuracy().and_then(|chart| chart.svg(WIDTH, HEIGHT));
            pictures.extend(across.map(|svg| (self.picture(index, ACROSS), svg)));
            for (column, name) in table.columns.iter().enumerate() {
                let of_row = |(row, name): (usize, &&str)| Some(((*name).to_owned(), table.cells[row][column]?));
                let series: Vec<_> = table.rows.iter().enumerate().filter_map(of_row).collect();
                let chart = curves::overlay(&series, Metric::Accuracy);
                let svg = chart.and_then(|chart| chart.svg(WIDTH, HEIGHT));
                pictures.extend(svg.map(|svg| (self.picture(index, &format!("{name}.svg")), svg)));
                let svg = traffic(&series).and_then(|chart| chart.svg(WIDTH, HEIGHT));
                pictures.extend(svg.map(|svg| (self.picture(index, &format!("{name}-{TRAFFIC}")), svg)));
                // A line of numbers is in the picture of the whole suite.
                let budgets = self.line().is_none() && series.iter().any(|(_, cell)| memory::has_budgets(cell));
                let chart = budgets.then(|| memory::accuracy(&series, &[])).flatten();
                let svg = chart.and_then(|chart| chart.svg(WIDTH, HEIGHT));
                pictures.extend(svg.map(|svg| (self.picture(index, &format!("{name}-{MEMORY}")), svg)));
            }
        }
        pictures
    }

    /// Its name and its cells in order, where it has one axis and that is of numbers.
    pub(super) fn line(&self) -> Option<(String, Vec<&ExperimentResults>)> {
        let name = self.name.rsplit('/').next().unwrap_or_default().to_owned();
        let [axis] = self.axes.as_slice() else { return None };
        axis.choices
            .iter()
            .all(|choice| words(choice).parse::<f64>().is_ok())
            .then(|| (name, self.cells.iter().flatten().collect()))
    }

    fn picture(&self, table: usize, end: &str) -> String {
        let safe = |c: char| if c.is_ascii_alphanumeric() || ".-_".contains(c) { c } else { '_' };
        format!("{}-{table}-{}", self.name, end.chars().map(safe).collect::<String>())
    }

    /// The axis whose choices are compared gives the rows, else the one with the most choices; of the others the one with
    /// the most gives the columns.
    fn tables(&self) -> Vec<Table<'_>> {
        let mut by_length: Vec<usize> = (0..self.axes.len()).collect();
        let rank = |axis: &Axis| (!COMPARED.contains(&axis.name.as_str()), std::cmp::Reverse(axis.choices.len()));
        by_length.sort_by_key(|&axis| rank(&self.axes[axis]));
        let (row, column) = (by_length.first().copied(), by_length.get(1).copied());
        let labels = |axis: Option<usize>| match axis {
            Some(axis) => self.axes[axis].choices.iter().map(words).collect(),
            None => vec!["all"],
        };
        let mut tables: Vec<Table<'_>> = Vec::new();
        for (index, cell) in self.cells.iter().enumerate() {
            let places = self.places(index);
            let of =
                |axis: &usize| format!("{} {}", self.axes[*axis].name, words(&self.axes[*axis].choices[places[*axis]]));
            let mut others: Vec<usize> = by_length.iter().skip(2).copied().collect();
            others.sort_unstable();
            let heading = others.iter().map(of).collect::<Vec<_>>().join(", ");
            let place = tables.iter().position(|table| table.heading == heading).unwrap_or_else(|| {
                let (rows, columns) = (labels(row), labels(column));
                let cells = vec![vec![None; columns.len()]; rows.len()];
                let across = column.map_or_else(String::new, |axis| format!("log10 of {}", self.axes[axis].name));
                tables.push(Table { heading, across, rows, columns, cells });
                tables.len() - 1
            });
            let at = |axis: Option<usize>| axis.map_or(0, |axis| places[axis]);
            tables[place].cells[at(row)][at(column)] = cell.as_ref();
        }
        tables
    }

    /// The place of a cell on each axis; the last axis varies fastest.
    fn places(&self, mut index: usize) -> Vec<usize> {
        let mut places = vec![0; self.axes.len()];
        for (place, axis) in places.iter_mut().zip(&self.axes).rev() {
            *place = index % axis.choices.len();
            index /= axis.choices.len();
        }
        places
    }
}

impl Table<'_> {
    fn shows(&self, measure: &Measure) -> bool {
        let mut means = self.cells.iter().flatten().flatten().filter_map(|cell| Some(cell.spread(measure.of)?.mean));
        match means.next() {
            Some(first) => {
                !measure.only_if_different || means.any(|mean| (measure.show)(mean) != (measure.show)(first))
            }
            None => false,
        }
    }

    /// What clients use on their own examples, over columns that are positive numbers, on a logarithmic axis: mean over
    /// seeds, and a band of one standard deviation.
    fn own_accuracy(&self) -> Option<Chart<'_>> {
        let number = |name: &&str| name.parse::<f64>().ok().filter(|value| *value > 0.0 && value.is_finite());
        let at: Vec<f64> = self.columns.iter().map(number).collect::<Option<_>>()?;
        let mut series = Vec::new();
        for (row, (name, colour)) in self.rows.iter().zip(PALETTE).enumerate() {
            let spread = |column: usize| self.cells[row][column]?.spread(SeedResults::own_accuracy);
            let mut points: Vec<_> =
                at.iter().enumerate().filter_map(|(column, x)| Some((x.log10(), spread(column)?))).collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            let band = points.iter().filter_map(|(x, s)| Some((*x, s.mean - s.sd?, s.mean + s.sd?))).collect();
            let line = points.iter().map(|(x, spread)| (*x, spread.mean)).collect();
            series.push(Series { label: None, colour, mark: Mark::Band(band) });
            series.push(Series { label: Some((*name).to_owned()), colour, mark: Mark::Line(line) });
        }
        let several = at.len() > 1 && self.rows.len() <= PALETTE.len();
        several.then(|| Chart {
            alt: format!("Accuracy of clients on their own held-out examples, by {}", self.across),
            x: super::chart::Axis { label: &self.across, scale: Scale::Number },
            y: super::chart::Axis { label: "clients' own accuracy", scale: Scale::Share },
            series,
        })
    }

    /// The best of each column is set in bold.
    fn markdown(&self, measure: &Measure) -> String {
        let spreads: Vec<Vec<Option<Spread>>> = self
            .cells
            .iter()
            .map(|row| row.iter().map(|cell| cell.as_ref().and_then(|cell| cell.spread(measure.of))).collect())
            .collect();
        let best = |column: usize| spreads.iter().filter_map(|row| Some(row[column]?.mean)).reduce(measure.better);
        let names: Vec<_> = self.columns.iter().map(|name| escaped(name)).collect();
        let mut table = format!("| | {} |\n|---|{}\n", names.join(" | "), "---:|".repeat(names.len()));
        for (name, row) in self.rows.iter().zip(&spreads) {
            let cell = |(column, spread): (usize, &Option<Spread>)| match spread {
                Some(spread) if best(column) == Some(spread.mean) => format!("**{}**", mean_sd(spread, measure.show)),
                Some(spread) => mean_sd(spread, measure.show),
                None => "–".to_owned(),
            };
            let cells: Vec<_> = row.iter().enumerate().map(cell).collect();
            let _ = writeln!(table, "| {} | {} |", escaped(name), cells.join(" | "));
        }
        table
    }
}

/// Held-out accuracy after the last round by what clients sent in all, a dot for each row with one standard deviation
/// over seeds, those that sent the same side by side; `None` where all did, or they are more than can be told apart.
fn traffic(rows: &[(String, &ExperimentResults)]) -> Option<Chart<'static>> {
    let at = |results: &ExperimentResults| {
        let bytes = results.spread(|run| Some(run.figures().bytes_up as f64)).filter(|bytes| bytes.mean > 0.0)?;
        Some((bytes.mean / f64::from(1 << 20), results.spread(|run| Some(run.figures().final_accuracy?.value))?))
    };
    let points: Vec<_> = rows.iter().filter_map(|(name, results)| Some((name, at(results)?))).collect();
    let different = points.windows(2).any(|pair| pair[0].1.0 != pair[1].1.0);
    let dot = |(index, colour): (usize, RGBColor)| {
        let (name, (sent, accuracy)) = &points[index];
        let before = points[..index].iter().filter(|(_, (other, _))| other == sent).count();
        let (at, sd) = (sent.log10() + BESIDE * before as f64, accuracy.sd.unwrap_or_default());
        let mark = Mark::Dot(at, accuracy.mean - sd, accuracy.mean, accuracy.mean + sd);
        Series { label: Some((*name).clone()), colour, mark }
    };
    (different && points.len() <= PALETTE.len()).then(|| Chart {
        alt: "Held-out accuracy after the last round by what clients sent in all".to_owned(),
        x: super::chart::Axis { label: "MiB that clients sent in all", scale: Scale::Decades },
        y: super::chart::Axis { label: "held-out accuracy", scale: Scale::Share },
        series: (0..points.len()).zip(PALETTE).map(dot).collect(),
    })
}

/// A choice as a reader calls it: words without the quotes of TOML.
fn words(choice: &Choice) -> &str {
    choice.label.trim_matches('"')
}

/// Over the last tenth of the measured rounds.
fn late_accuracy(run: &SeedResults) -> Option<Spread> {
    let measured: Vec<f64> = Metric::Accuracy.series(run).map(|(_, value)| value).collect();
    let late = &measured[measured.len() - measured.len().div_ceil(10)..];
    Spread::of(late.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{experiment, finished};
    use crate::results::MemoryRow;

    fn axis(text: &str) -> Axis {
        Axis::parse(text).unwrap()
    }

    fn grid(axes: Vec<Axis>) -> Grid {
        let cell = |index: usize| experiment("g", vec![finished(&[Some(0.1), Some(index as f64 / 100.0)])]);
        let cells = (0..Cell::all(&axes).len()).map(|index| (index != 1).then(|| cell(index))).collect();
        Grid { name: "suite/g".to_owned(), title: "A grid".to_owned(), axes, cells }
    }

    #[test]
    fn the_longest_axis_gives_the_rows_and_further_ones_tables() {
        let page = grid(vec![axis("data=iid,skewed"), axis("method=a,b,c"), axis("model=x,y")]).markdown();
        assert!(page.contains("### model x\n"), "{page}");
        // Cells in order: (iid, a, x), (iid, a, y), (iid, b, x), …, (skewed, c, y).
        assert!(page.contains("| | iid | skewed |\n|---|---:|---:|\n| a | 0.00 % | 6.00 % |\n"), "{page}");
        assert!(page.contains("| c | **4.00 %** | **10.00 %** |"), "{page}");
        assert!(page.contains("| a | – | 7.00 % |"), "nothing was run there: {page}");
        assert_eq!(page.matches("after the last round:").count(), 2);
        assert!(!page.contains("own held-out"), "clients held nothing out");
    }

    #[test]
    fn methods_are_rows_however_few() {
        let page = grid(vec![axis("alpha=1,2,3"), axis("method=a,b")]).markdown();
        assert!(page.contains("| | 1 | 2 | 3 |") && page.contains("| b | – | **3.00 %** | **5.00 %** |"), "{page}");
    }

    #[test]
    fn one_axis_is_one_column_and_every_link_has_its_picture() {
        let grid = grid(vec![axis("method=a,b,c")]);
        let page = grid.markdown();
        assert!(
            page.contains("| | all |") && page.contains("| b | – |") && page.contains("| c | **2.00 %** |"),
            "{page}"
        );
        let pictures = grid.pictures();
        assert_eq!(pictures.len(), 1);
        assert!(pictures.iter().all(|(name, _)| page.contains(&format!("]({name})"))), "{page}");
    }

    #[test]
    fn what_clients_use_is_drawn_over_columns_that_are_numbers() {
        let with_clients = |axes: &str| {
            let mut grid = grid(vec![axis(axes), axis("method=a,b")]);
            for run in grid.cells.iter_mut().flatten().flat_map(|cell| &mut cell.seeds) {
                run.config = Some("evaluation = { client_holdout = 0.2 }".to_owned());
                run.clients = crate::fixture::clients([0.5, 0.7]);
            }
            grid
        };
        let numbers = with_clients("alpha=0.1,1,10");
        let link = "](suite/g-0-clients.svg)";
        assert!(numbers.markdown().contains(link) && numbers.markdown().contains("own held-out"));
        assert!(numbers.pictures().iter().any(|(name, svg)| link.contains(name) && svg.contains("log10 of alpha")));
        for words in ["alpha=low,high", "alpha=0,1"] {
            assert!(!with_clients(words).markdown().contains(link), "{words}");
        }
    }

    #[test]
    fn accuracy_is_drawn_by_memory_where_clients_have_budgets() {
        let link = "by the memory of the quarter of clients with the least: all](suite/g-0-all-memory.svg)";
        let measured = |axis_text: &str, budget| {
            let mut grid = grid(vec![axis(axis_text)]);
            for (held, cell) in grid.cells.iter_mut().enumerate() {
                let row = MemoryRow {
                    client: 0,
                    part: 1,
                    first_block: None,
                    last_block: None,
                    steps: 1,
                    budget,
                    planned: None,
                    held: (1 + held as u64) << 20,
                };
                cell.iter_mut().flat_map(|cell| &mut cell.seeds).for_each(|run| run.memory = vec![row.clone()]);
            }
            grid
        };
        let grid = measured("method=a,b,c", Some(4 << 20));
        assert!(grid.markdown().contains(link), "{}", grid.markdown());
        assert!(grid.pictures().iter().any(|(name, svg)| link.contains(name) && svg.contains("MiB")));
        assert!(!measured("method=a,b,c", None).markdown().contains(link), "all have what they need");
        let numbers = measured("share=0.5,0.7,1.0", Some(4 << 20));
        assert!(!numbers.markdown().contains(link) && numbers.line().is_some(), "a line of the suite's picture");
        assert!(grid.line().is_none());
    }

    #[test]
    fn accuracy_is_drawn_by_what_clients_sent_where_that_differs() {
        let (same, link) = (grid(vec![axis("codec=f32,f16,int8")]), "](suite/g-0-all-traffic.svg)");
        assert!(!same.markdown().contains(link) && !same.markdown().contains("sent in all"));
        let mut grid = same;
        let smaller = grid.cells[2].iter_mut().flat_map(|cell| &mut cell.seeds).flat_map(|run| &mut run.rounds);
        smaller.for_each(|row| row.bytes_up /= 4);
        let page = grid.markdown();
        assert!(page.contains(link) && page.contains("\nWhat clients sent in all:\n"), "{page}");
        assert!(!page.contains("What the server sent in all"), "it sent the same to all: {page}");
        let pictures = grid.pictures();
        let (_, svg) = pictures.iter().find(|(name, _)| link.contains(name.as_str())).unwrap();
        assert!(svg.contains("MiB that clients sent") && svg.contains("f32") && svg.contains("int8"), "{svg}");
    }

    #[test]
    fn late_accuracy_is_over_a_tenth_of_what_was_measured() {
        let accuracy: Vec<_> = (1..=20).map(|round| Some(f64::from(round) / 100.0)).collect();
        let late = late_accuracy(&finished(&accuracy)).unwrap();
        assert!((late.mean - 0.195).abs() < 1e-12 && late.n == 2);
        assert_eq!(late_accuracy(&finished(&[None])), None);
    }
}
