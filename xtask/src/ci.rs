//! Every check, cheapest first; stops at the first failure.

use std::process::ExitCode;

use crate::cargo::{self, Cargo};
use crate::examples;
use crate::step::{self, Step};
use crate::workspace::{self, entries, name};

/// Runs the checks and prints a table of steps and times.
///
/// # Errors
/// The failed step and the command that repeats it.
pub fn run(fast: bool) -> Result<ExitCode, String> {
    let steps = steps(fast)?;
    let count = steps.len();
    let mut done = Vec::with_capacity(count);
    for (number, step) in (1..).zip(steps) {
        let mut step = step.run(number, count)?;
        let failure = step.failure.take();
        done.push(step);
        if let Some(failure) = failure {
            println!("\n{}", step::summary(&done));
            return Err(failure);
        }
    }
    println!("\n{}", step::summary(&done));
    Ok(ExitCode::SUCCESS)
}

fn steps(fast: bool) -> Result<Vec<Step>, String> {
    let nextest = cargo::has_subcommand("nextest");
    let mut steps = vec![
        Step::call("format", Cargo::line("fmt --all --check")),
        Step::call("tidy", Cargo::line("xtask tidy")),
        if cargo::has_subcommand("deny") {
            // Advisories need a database from the network; the hosted workflow checks them in a job of their own.
            Step::call("dependencies", Cargo::line("deny --workspace check bans licenses sources"))
        } else {
            Step::skip("dependencies", "cargo-deny is not installed (`cargo install cargo-deny --locked`)")
        },
        Step::call("lints", Cargo::line("clippy --workspace --all-targets -- -D warnings")),
    ];
    for package in library_crates()? {
        let call = Cargo::new(["check", "--quiet", "--package", &package]);
        steps.push(Step::call(format!("{package} builds alone"), call));
    }
    steps.push(Step::tests("tests", workspace_tests(nextest)));
    steps.push(Step::tests("doctests", Cargo::line("test --workspace --doc")));
    for example in examples::names()? {
        steps.push(Step::call(format!("example {example}"), examples::call(&example)));
    }
    if !fast {
        steps.push(Step::call("documentation", Cargo::doc()));
        steps.push(Step::call("cuda type-checks", Cargo::line("check -p fedburn-experiment --features cuda")));
        steps.push(Step::call("fuzzing type-checks", Cargo::line("check -p fedburn-fuzz --features libfuzzer")));
        steps.push(Step::tests("parity on wgpu, traces", extras(nextest)));
        steps.push(Step::call("quickstart", Cargo::line("xtask experiment run quickstart --smoke --fresh")));
    }
    Ok(steps)
}

fn workspace_tests(nextest: bool) -> Cargo {
    Cargo::line(if nextest { "nextest run --workspace" } else { "test --workspace --lib --bins --tests" })
}

/// What is off by default, in one build: a few steps on a just-in-time compiled backend must agree with flex, where there
/// is an adapter; and what a collector gets of a federation's traces.
fn extras(nextest: bool) -> Cargo {
    let runner = if nextest { "nextest run" } else { "test" };
    Cargo::line(&format!("{runner} -p fedburn-experiment --features wgpu,otel --test parity --test otel"))
}

fn library_crates() -> Result<Vec<String>, String> {
    let folders = entries(&workspace::root().join("crates"))?;
    Ok(folders.iter().filter(|folder| folder.join("src/lib.rs").is_file()).map(|folder| name(folder)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::Work;

    fn lines(fast: bool) -> Vec<String> {
        let line = |step: Step| match step.work {
            Work::Call(call) | Work::Tests(call) => Some(call.shown()),
            Work::Skip(_) => None,
        };
        steps(fast).unwrap().into_iter().filter_map(line).collect()
    }

    #[test]
    fn the_cheapest_checks_come_first() {
        assert_eq!(lines(false)[..2], ["cargo fmt --all --check", "cargo xtask tidy"]);
    }

    #[test]
    fn every_library_crate_is_built_alone() {
        let lines = lines(true);
        for package in ["fedburn-core", "fedburn-strategies", "fedburn"] {
            let call = format!("cargo check --quiet --package {package}");
            assert!(lines.contains(&call), "{call} is not among {lines:?}");
        }
    }

    #[test]
    fn fast_leaves_out_what_is_slow_and_nothing_else() {
        let (all, fast) = (lines(false), lines(true));
        let left_out: Vec<&String> = all.iter().filter(|line| !fast.contains(line)).collect();
        assert_eq!(left_out.len(), 5, "{left_out:?}");
        for word in ["doc --workspace --no-deps", "cuda", "fuzz", "wgpu,otel", "quickstart"] {
            assert!(left_out.iter().any(|line| line.contains(word)), "{word} is not among {left_out:?}");
        }
        assert!(fast.iter().all(|line| all.contains(line)));
    }
}
