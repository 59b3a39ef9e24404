//! Experiments in a temporary folder, and the program run on them as a user would.

#![allow(dead_code, reason = "each test file uses a part of it")]

#[cfg(unix)]
pub mod federation;
pub mod traces;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use tempfile::TempDir;

/// A small federation with nothing that can fail: a second of work.
pub const STEADY: &str = r#"
title = "A steady federation"
seeds = [0]
data = { kind = "digits" }
partition = { kind = "dirichlet", clients = 6, alpha = 0.5, min_examples = 10 }
evaluation = { client_holdout = 0.2 }
model = { kind = "softmax" }
client = { rule = "sgd", epochs = 1, batch_size = 32, lr = 0.1 }
strategy = { kind = "fedavg" }
sampler = { kind = "uniform", per_round = 3 }
server = { rounds = 4, checkpoint_every = 3 }
"#;

/// A folder with experiment files, in which the program runs.
pub struct Workplace {
    dir: TempDir,
}

/// What a call of the program left.
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Workplace {
    /// With one experiment, `suite/name`.
    pub fn new(config: &str) -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        place.write("benches/experiments/suite/name.toml", config);
        place
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// The folder of a seed of `suite/name` under the results in `out`.
    pub fn seed(&self, out: &str, seed: u64) -> PathBuf {
        self.path(out).join(format!("suite/name/seed-{seed}"))
    }

    /// The program with `arguments`, split at spaces; an argument with spaces goes into [`Command::arg`].
    pub fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fedburn"));
        command.args(arguments.split_whitespace()).current_dir(self.dir.path());
        let from_outside = |name: &str| {
            name == "FEDBURN_LOG" || name.starts_with("OTEL_") || name.to_ascii_uppercase().ends_with("_PROXY")
        };
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(from_outside)) {
            command.env_remove(name);
        }
        command.env("FEDBURN_DATA", self.path("data")).stdin(Stdio::null());
        command
    }

    pub fn call(&self, arguments: &str) -> Finished {
        Finished::of(self.command(arguments))
    }

    /// A call that must succeed.
    pub fn succeed(&self, arguments: &str) -> Finished {
        let finished = self.call(arguments);
        assert!(finished.status.success(), "{arguments}: {}\n{}", finished.status, finished.stderr);
        finished
    }

    /// Every file and folder under `name`, with the files' bytes, sorted; empty where there is nothing.
    pub fn everything(&self, name: &str) -> Vec<(PathBuf, Vec<u8>)> {
        let mut found = Vec::new();
        collect(&self.path(name), &mut found);
        found.sort();
        found
    }
}

fn collect(dir: &Path, found: &mut Vec<(PathBuf, Vec<u8>)>) {
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let Ok(path) = entry.map(|entry| entry.path()) else { continue };
        if path.is_dir() {
            collect(&path, found);
            found.push((path, Vec::new()));
        } else {
            // Of a program that still runs, a temporary file may be gone by now.
            found.extend(fs::read(&path).ok().map(|bytes| (path, bytes)));
        }
    }
}

impl Finished {
    pub fn of(mut command: Command) -> Self {
        let output = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self { status: output.status, stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Asserts that the call was refused with a message that holds every one of `words`.
    pub fn assert_refused(&self, words: &[&str]) {
        let stderr = &self.stderr;
        assert!(matches!(self.status.code(), Some(1 | 2)), "{}: {stderr}", self.status);
        assert!(stderr.starts_with("error: ") && !stderr.contains("panicked"), "{stderr}");
        assert_eq!(self.stdout, "");
        words.iter().for_each(|word| assert!(stderr.contains(word), "`{word}` is not in: {stderr}"));
    }

    /// Standard output, which must be one JSON value a line.
    pub fn json_lines(&self) -> Vec<serde_json::Value> {
        self.stdout.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
    }
}

pub fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap()
}
