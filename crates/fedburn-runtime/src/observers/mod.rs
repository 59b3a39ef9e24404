//! Watching a run: records on disk, progress for people, a rule that ends it early.
//!
//! An observer that cannot write keeps its first error, asks for a stop with the error as reason, and writes nothing
//! more; `finish` gives the error back.

mod console;
mod csv;
mod early_stop;
mod jsonl;

pub use console::{Console, ConsoleMode};
pub use csv::{RoundRow, RoundsCsv};
pub use early_stop::{EarlyStop, EarlyStopConfig, StopMetric};
pub use jsonl::{EventLog, JsonLines};

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use fedburn_core::StopReason;
use thiserror::Error;

/// An observer that cannot be set up, or could not keep its record.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ObserverError {
    /// A record could not be written or read.
    #[error("record {path}: {source}")]
    Io {
        /// The file, or `terminal`.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// A line of a record is damaged, and it is not a last line that a crash cut off.
    #[error("record {path}, line {line}: {reason}; delete the file to begin a new one")]
    Damaged {
        /// The file.
        path: String,
        /// The line's number, from 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A field of a config has an impossible value.
    #[error("`{field}` is {value}, expected {expected}")]
    Field {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
}

impl ObserverError {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + '_ {
        |source| Self::Io { path: path.display().to_string(), source }
    }
}

/// Where a record goes, and the first error of writing it.
#[derive(Debug)]
struct Outcome {
    path: PathBuf,
    error: Option<io::Error>,
}

impl Outcome {
    fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), error: None }
    }

    /// Runs `write` unless an earlier one failed; asks for a stop from the first failure on.
    fn after(&mut self, write: impl FnOnce() -> io::Result<()>) -> ControlFlow<StopReason> {
        if self.error.is_none() {
            self.error = write().err();
        }
        match &self.error {
            None => ControlFlow::Continue(()),
            Some(e) => ControlFlow::Break(StopReason(format!("cannot write {}: {e}", self.path.display()))),
        }
    }

    fn finish(self) -> Result<(), ObserverError> {
        self.error.map_or(Ok(()), |source| Err(ObserverError::io(&self.path)(source)))
    }
}
