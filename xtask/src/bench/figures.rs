//! Rounds against clients, cores and parameters, as pictures.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use clap::builder::RangedU64ValueParser;
use serde_json::{Value, json};

use super::jobs::Participant;
use super::machine::Machine;
use super::measure::run;
use super::peers::{ours, python};
use super::plot::{Axis, Line, Plot, Scale, Style};
use super::python::{Peer, Python};
use super::statistics::Spread;
use super::{target, write};
use crate::workspace::{self, read};

/// How to measure, and where the pictures go.
#[derive(Args)]
pub struct Figures {
    /// Runs of each point, of which the median is drawn.
    #[arg(long, default_value_t = 3, value_parser = RangedU64ValueParser::<usize>::new().range(1..))]
    runs: usize,
    /// Rounds of a run; the first is a warm-up.
    #[arg(long, default_value_t = 4, value_parser = RangedU64ValueParser::<usize>::new().range(2..))]
    rounds: usize,
    /// The Python that has PyTorch [default: $FEDBURN_PEERS_PYTHON, else python3]; without it fedburn is drawn alone.
    #[arg(long)]
    python: Option<PathBuf>,
    /// Draw what was measured before.
    #[arg(long)]
    redraw: bool,
    /// Folder of the pictures [default: docs/figures].
    #[arg(long)]
    out: Option<PathBuf>,
}

const TWO_NN: &str = "benches/experiments/fashion/fedavg-2nn.toml";
const CNN: &str = "benches/experiments/fashion/fedavg-cnn.toml";
const SETS: [&str; 3] = ["server.eval_every=0", "server.checkpoint_every=0", "server.min_updates=1"];
/// Examples of a round of ten clients.
const EXAMPLES: f64 = 6000.0;
const COHORTS: [usize; 6] = [1, 5, 10, 20, 50, 100];
const HIDDEN: [usize; 5] = [25, 100, 200, 400, 1600];

const PARAMETERS_OF_CNN: f64 = 1_663_370.0;

/// A point of a picture: who plays, and where it lies.
struct Point {
    picture: &'static str,
    line: String,
    x: f64,
    examples: f64,
    participant: Participant,
}

impl Figures {
    /// Measures, unless that was done before, and draws.
    pub fn run(self) -> Result<ExitCode, String> {
        let record = target().join("bench/figures.json");
        if !self.redraw {
            self.measure(|measured| write(&record, &format!("{measured:#}\n")))?;
        }
        let text = read(&record).map_err(|error| format!("{error}; measure first, without --redraw"))?;
        let record = serde_json::from_str(&text).map_err(|error| format!("{}: {error}", record.display()))?;
        let folder = self.out.unwrap_or_else(|| workspace::root().join("docs/figures"));
        for (name, plot) in pictures(&record) {
            let svg = plot.svg().ok_or_else(|| format!("nothing was measured for {name}"))?;
            write(&folder.join(format!("{name}.svg")), &svg)?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Tells `keep` all that there is after each turn, so that a run that is broken off has not been in vain.
    fn measure(&self, keep: impl Fn(Value) -> Result<(), String>) -> Result<(), String> {
        let ours = ours()?;
        let python = python(self.python.clone(), &[Peer::Torch]);
        let python = match &python {
            Ok(python) if python.missing.is_empty() => Some(python),
            Ok(python) => {
                python.missing.iter().for_each(|line| eprintln!("note: {line}"));
                None
            }
            Err(error) => {
                eprintln!("note: PyTorch is left out: {error}");
                None
            }
        };
        let machine = Machine::now();
        machine.warning().iter().for_each(|line| eprintln!("note: {line}"));
        let points = points(&ours.experiments, python, machine.cores, self.rounds);
        let mut seconds = vec![Vec::new(); points.len()];
        for turn in 1..=self.runs {
            for (point, seconds) in points.iter().zip(&mut seconds) {
                eprintln!("{}, turn {turn} of {}: {} at {}", point.picture, self.runs, point.line, point.x);
                seconds.push(run(&point.participant)?.per(point.examples));
            }
            let measured = points.iter().zip(&seconds).map(|(point, seconds)| {
                let median = Spread::of(seconds.iter().copied()).map(|spread| spread.median);
                json!({ "picture": point.picture, "line": point.line, "x": point.x, "seconds": seconds, "median": median })
            });
            let measured: Vec<Value> = measured.collect();
            keep(json!({ "machine": machine.json(), "points": measured }))?;
        }
        Ok(())
    }
}

/// Everything that is measured, fedburn before PyTorch.
fn points(fedburn: &std::path::Path, python: Option<&Python>, cores: usize, rounds: usize) -> Vec<Point> {
    let mut points = Vec::new();
    let ours = |file: &str, set: &str, workers: usize| {
        let sets = [&SETS[..], &[set]].concat();
        Participant::experiment(fedburn, file, &sets, workers, rounds)
    };
    let torch = |python: &Python, words: &[&str]| {
        Participant::script("PyTorch loop", python, "torch_loop.py", words, 1, rounds)
    };
    let mut ways = vec![1, cores];
    ways.dedup();
    let mut add = |picture, line: Option<&str>, x: f64, examples: f64, participant: Participant| {
        let line = line.map_or_else(|| participant.label(), str::to_owned);
        points.push(Point { picture, line, x, examples, participant });
    };
    for cohort in COHORTS {
        let (x, set, examples) =
            (cohort as f64, format!("sampler.per_round={cohort}"), EXAMPLES / 10.0 * cohort as f64);
        ways.iter().for_each(|&workers| add("clients", None, x, examples, ours(TWO_NN, &set, workers)));
        if let Some(python) = python {
            add("clients", None, x, examples, torch(python, &["--job", "2nn", "--per-round", &cohort.to_string()]));
        }
    }
    for (name, file) in [("2NN", TWO_NN), ("FedAvg CNN", CNN)] {
        for workers in 1..=cores {
            add("cores", Some(name), workers as f64, EXAMPLES, ours(file, "sampler.per_round=10", workers));
        }
    }
    for hidden in HIDDEN {
        let (x, set) = (parameters(hidden), format!("model.hidden={hidden}"));
        ways.iter().for_each(|&workers| add("parameters", None, x, EXAMPLES, ours(TWO_NN, &set, workers)));
        if let Some(python) = python {
            add("parameters", None, x, EXAMPLES, torch(python, &["--job", "2nn", "--hidden", &hidden.to_string()]));
        }
    }
    let cnn = ours(CNN, "sampler.per_round=10", cores);
    add("parameters", Some(&format!("FedAvg CNN, {}", cnn.label())), PARAMETERS_OF_CNN, EXAMPLES, cnn);
    if let Some(python) = python {
        let cnn = torch(python, &["--job", "cnn"]);
        add("parameters", Some(&format!("FedAvg CNN, {}", cnn.label())), PARAMETERS_OF_CNN, EXAMPLES, cnn);
    }
    points
}

/// Parameters of a 2NN.
fn parameters(hidden: usize) -> f64 {
    (784 * hidden + hidden + hidden * hidden + hidden + 10 * hidden + 10) as f64
}

/// The pictures of a record, by the name of their file.
fn pictures(record: &Value) -> Vec<(&'static str, Plot)> {
    let axis = |label: &str, scale| Axis { label: label.to_owned(), scale };
    let log = Scale::Logarithmic;
    let time = || axis("seconds a round", log);
    let mut speedup = lines(record, "cores");
    for line in &mut speedup {
        let one = line.points.first().map_or(f64::NAN, |point| point.1);
        line.points.iter_mut().for_each(|point| point.1 = one / point.1);
    }
    let cores = speedup.iter().flat_map(|line| &line.points).map(|point| point.0).fold(1.0, f64::max);
    let ideal = vec![(1.0, 1.0), (cores, cores)];
    speedup.push(Line { label: "in proportion".to_owned(), points: ideal, style: Style::Dashed });
    vec![
        (
            "clients",
            Plot {
                title: "A round of FedAvg with the 2NN on Fashion-MNIST".to_owned(),
                x: axis("clients a round, 600 examples each on average", log),
                y: time(),
                lines: lines(record, "clients"),
            },
        ),
        (
            "cores",
            Plot {
                title: "A round of ten clients on more than one core".to_owned(),
                x: axis("worker threads", Scale::Count),
                y: axis("times as fast as one", Scale::Linear),
                lines: speedup,
            },
        ),
        (
            "parameters",
            Plot {
                title: "A round of ten clients: the 2NN with more and more units, and the CNN".to_owned(),
                x: axis("parameters", log),
                y: time(),
                lines: lines(record, "parameters"),
            },
        ),
    ]
}

/// The lines of a picture, in the order of their first points.
fn lines(record: &Value, picture: &str) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    let points = record["points"].as_array().into_iter().flatten().filter(|point| point["picture"] == picture);
    for point in points {
        let (Some(label), Some(x), Some(y)) = (point["line"].as_str(), point["x"].as_f64(), point["median"].as_f64())
        else {
            continue;
        };
        match lines.iter_mut().find(|line| line.label == label) {
            Some(line) => line.points.push((x, y)),
            None => lines.push(Line { label: label.to_owned(), points: vec![(x, y)], style: Style::Solid }),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_2nn_has_as_many_parameters_as_the_paper_says() {
        assert_eq!(parameters(200), 199_210.0);
    }

    #[test]
    fn pytorch_is_drawn_where_it_is_installed() {
        let python = Python { program: "python3".into(), peers: vec![Peer::Torch], missing: vec![] };
        let labels = |python| points("fedburn".as_ref(), python, 2, 2).into_iter().map(|p| p.line).collect::<Vec<_>>();
        assert!(labels(Some(&python)).contains(&"PyTorch loop, 1 thread".to_owned()));
        assert!(labels(None).iter().all(|label| !label.contains("PyTorch")));
    }

    #[test]
    fn more_cores_are_shown_against_one() {
        let point = |x, median| json!({ "picture": "cores", "line": "2NN", "x": x, "median": median });
        let record = json!({ "points": [point(1, 0.06), point(2, 0.03)] });
        let pictures = pictures(&record);
        let (_, cores) = pictures.iter().find(|(name, _)| *name == "cores").unwrap();
        assert_eq!(cores.lines[0].points, [(1.0, 1.0), (2.0, 2.0)]);
        assert_eq!(cores.lines[1].points.last(), Some(&(2.0, 2.0)));
    }
}
