//! The micro benchmarks, run by criterion.

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Args;

use super::{baseline, target};
use crate::cargo::Cargo;

/// What to run, and what to hold it against.
#[derive(Args)]
pub struct Micro {
    /// Run only benchmarks whose name holds this.
    filter: Option<String>,
    /// Keep the results under this name.
    #[arg(long, value_name = "NAME", value_parser = name, conflicts_with = "baseline")]
    save_baseline: Option<String>,
    /// Compare with the results kept under this name; fails where a benchmark became slower.
    #[arg(long, value_name = "NAME", value_parser = name)]
    baseline: Option<String>,
    /// Changes of less than so many percent count as noise.
    #[arg(long, value_name = "PERCENT", default_value_t = 5.0, value_parser = percent)]
    noise: f64,
    /// Further words for criterion.
    #[arg(last = true)]
    words: Vec<OsString>,
}

impl Micro {
    /// Runs the benchmarks; the exit code tells regressions.
    pub fn run(self) -> Result<ExitCode, String> {
        let results = target().join("criterion");
        if let Some(name) = &self.baseline {
            baseline::check_kept(&results, name)?;
        }
        let began = SystemTime::now();
        let call = self.call();
        if !call.status()? {
            return Err(format!("the benchmarks failed; repeat them with:\n\n    {}\n", call.shown()));
        }
        let Some(name) = &self.baseline else { return Ok(ExitCode::SUCCESS) };
        let changes = baseline::changes(&results, name, began)?;
        print!("\n{}", baseline::table(&changes, self.noise / 100.0));
        let slower = changes.iter().filter(|change| change.is_slower(self.noise / 100.0)).count();
        if slower > 0 {
            return Err(format!("{slower} of {} benchmarks became slower than in `{name}`", changes.len()));
        }
        Ok(ExitCode::SUCCESS)
    }

    fn call(&self) -> Cargo {
        let keep = |flag: &str, name: &Option<String>| {
            name.iter().flat_map(|name| [OsString::from(flag), OsString::from(name)]).collect::<Vec<_>>()
        };
        Cargo::line("bench --package fedburn-benches --")
            .args(self.filter.as_ref())
            .args(keep("--save-baseline", &self.save_baseline))
            .args(keep("--baseline-lenient", &self.baseline))
            .args(self.words.clone())
    }
}

/// The name of a run, which becomes the name of a folder.
fn name(text: &str) -> Result<String, String> {
    let plain = !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    match text {
        "new" | "base" | "change" | "report" => Err("is a folder of criterion's own, expected another name".to_owned()),
        _ if plain && !text.starts_with('.') => Ok(text.to_owned()),
        _ => Err("expected letters, digits, `-`, `_` and `.`".to_owned()),
    }
}

fn percent(text: &str) -> Result<f64, String> {
    let wanted = || format!("`{text}` is not a percentage, expected a number of at least 0");
    text.parse().ok().filter(|percent| (0.0..f64::INFINITY).contains(percent)).ok_or_else(wanted)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        micro: Micro,
    }

    fn shown(line: &str) -> Result<String, String> {
        let words = ["x"].into_iter().chain(line.split_whitespace());
        Line::try_parse_from(words).map(|line| line.micro.call().shown()).map_err(|error| error.to_string())
    }

    #[test]
    fn words_reach_criterion() {
        let plain = "cargo bench --package fedburn-benches --";
        assert_eq!(shown("").unwrap(), plain);
        assert_eq!(shown("sgd_step --save-baseline main").unwrap(), format!("{plain} sgd_step --save-baseline main"));
        assert_eq!(shown("--baseline main -- --quick").unwrap(), format!("{plain} --baseline-lenient main --quick"));
    }

    #[test]
    fn a_run_has_a_name_that_can_be_a_folder() {
        for wrong in ["--save-baseline new", "--baseline ../x", "--baseline .x", "--baseline a --save-baseline b"] {
            assert!(shown(wrong).is_err(), "{wrong}");
        }
        for wrong in ["--noise -1", "--noise x", "--noise NaN"] {
            assert!(shown(wrong).is_err(), "{wrong}");
        }
    }
}
