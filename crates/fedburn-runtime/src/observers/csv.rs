//! `rounds.csv`: one row a round.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::Path;

use fedburn_core::{Event, Metrics, Observer, RoundIndex, StopReason};
use serde::{Deserialize, Serialize};

use super::{ObserverError, Outcome};
use fedburn_durable::{self as durable, Access};

/// One round as a row of `rounds.csv`. Round 0 is the model before training, if it was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoundRow {
    /// The round.
    pub round: RoundIndex,
    /// Updates that went into the global vector; 0 where the round was abandoned.
    pub updates: u64,
    /// Clients that failed.
    pub failures: u64,
    /// Mean loss of local training; empty where no client reported one.
    pub train_loss: Option<f64>,
    /// Loss on the server's held-out data; empty where the round was not evaluated.
    pub loss: Option<f64>,
    /// Accuracy on the server's held-out data, in `[0, 1]`; empty where the round was not evaluated.
    pub accuracy: Option<f64>,
    /// Bytes sent to clients.
    pub bytes_down: u64,
    /// Bytes received from clients.
    pub bytes_up: u64,
    /// Wall-clock seconds of the round.
    pub seconds: f64,
}

/// Writes one row a round.
///
/// A row is in the file from the moment its round ends, and is written again in its place when the round's evaluation
/// comes; it is therefore complete before the round's checkpoint is saved, and a run that goes on from there lacks no
/// row. Metrics that are not finite stand as `NaN`, `inf` and `-inf`.
///
/// # Examples
///
/// ```
/// use fedburn_core::{Event, Mean, Metrics, Observer, RoundIndex};
/// use fedburn_runtime::RoundsCsv;
///
/// let directory = tempfile::tempdir()?;
/// let path = directory.path().join("rounds.csv");
/// let mut rounds = RoundsCsv::create(&path)?;
/// let metrics = Metrics::new().with(Metrics::ACCURACY, Mean::new(0.1, 360.0));
/// let _ = rounds.on_event(&Event::Evaluated { round: RoundIndex(0), metrics });
/// rounds.finish()?;
/// assert_eq!(RoundsCsv::read(&path)?[0].accuracy, Some(0.1));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct RoundsCsv {
    file: File,
    /// The last row, and where it begins.
    last: Option<(RoundRow, u64)>,
    end: u64,
    outcome: Outcome,
}

impl RoundsCsv {
    /// Begins a table at `path`; one that is there is emptied.
    ///
    /// # Errors
    /// [`ObserverError::Io`].
    pub fn create(path: impl AsRef<Path>) -> Result<Self, ObserverError> {
        Self::begin(path.as_ref(), &[])
    }

    /// Goes on with the table at `path` for a run that goes on after the round `after`: rows of later rounds and a
    /// last line that a crash cut off are removed, in one step. Where the table is missing, or `after` is 0 and the run
    /// begins, a new one is begun.
    ///
    /// # Errors
    /// [`ObserverError::Damaged`] where a line is no row, [`ObserverError::Io`].
    pub fn resume(path: impl AsRef<Path>, after: RoundIndex) -> Result<Self, ObserverError> {
        let path = path.as_ref();
        if after == RoundIndex(0) || !path.exists() {
            return Self::create(path);
        }
        let mut rows = Self::read(path)?;
        rows.retain(|row| row.round <= after);
        Self::begin(path, &rows)
    }

    /// The rows of the table at `path`. A last line that a crash cut off is passed over.
    ///
    /// # Errors
    /// [`ObserverError::Damaged`] where a line is no row, [`ObserverError::Io`].
    pub fn read(path: impl AsRef<Path>) -> Result<Vec<RoundRow>, ObserverError> {
        let path = path.as_ref();
        let bytes = fs::read(path).map_err(ObserverError::io(path))?;
        let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let mut reader = csv::Reader::from_reader(&bytes[..whole]);
        let row = |(index, row): (usize, Result<RoundRow, csv::Error>)| {
            row.map_err(|e| ObserverError::Damaged {
                path: path.display().to_string(),
                line: index + 2,
                reason: e.to_string(),
            })
        };
        reader.deserialize().enumerate().map(row).collect()
    }

    /// Gives back the first error of the table, if there was one.
    ///
    /// # Errors
    /// [`ObserverError::Io`].
    pub fn finish(self) -> Result<(), ObserverError> {
        self.outcome.finish()
    }

    fn begin(path: &Path, rows: &[RoundRow]) -> Result<Self, ObserverError> {
        let open = || -> io::Result<Self> {
            let mut text = HEADER.as_bytes().to_vec();
            let mut last = None;
            for row in rows {
                last = Some((row.clone(), text.len() as u64));
                text.extend(line(row)?);
            }
            durable::replace(path, &text, Access::Anybody)?;
            let file = OpenOptions::new().write(true).open(path)?;
            Ok(Self { file, last, end: text.len() as u64, outcome: Outcome::new(path) })
        };
        open().map_err(ObserverError::io(path))
    }

    /// Writes a row behind the others, or over the last where it is of the same round.
    fn write(&mut self, row: RoundRow) -> ControlFlow<StopReason> {
        let start = match &self.last {
            Some((last, start)) if last.round == row.round => *start,
            _ => self.end,
        };
        let flow = self.outcome.after(|| {
            let line = line(&row)?;
            self.file.seek(SeekFrom::Start(start))?;
            // One write of a row that is no shorter than the one below it: a kill leaves one of them.
            self.file.write_all(&line)?;
            self.end = start + line.len() as u64;
            self.file.set_len(self.end)
        });
        self.last = Some((row, start));
        flow
    }
}

impl Observer for RoundsCsv {
    fn on_event(&mut self, event: &Event) -> ControlFlow<StopReason> {
        match RoundRow::after(self.last.as_ref().map(|(row, _)| row), event) {
            Some(row) => self.write(row),
            None => self.outcome.after(|| Ok(())),
        }
    }
}

impl RoundRow {
    /// The row that `event` begins, or completes where `last` is of the same round; `None` where it tells nothing of a
    /// row.
    pub fn after(last: Option<&Self>, event: &Event) -> Option<Self> {
        Some(match event {
            Event::RoundCommitted { round, updates, failures, metrics, bytes_down, bytes_up, seconds } => Self {
                round: *round,
                updates: *updates,
                failures: *failures,
                train_loss: metrics.get(Metrics::TRAIN_LOSS),
                loss: None,
                accuracy: None,
                bytes_down: *bytes_down,
                bytes_up: *bytes_up,
                seconds: *seconds,
            },
            Event::RoundAbandoned { round, failures, bytes_down, bytes_up, seconds, .. } => Self {
                round: *round,
                failures: *failures,
                bytes_down: *bytes_down,
                bytes_up: *bytes_up,
                seconds: *seconds,
                ..Self::default()
            },
            Event::Evaluated { round, metrics } => Self {
                round: *round,
                loss: metrics.get(Metrics::LOSS),
                accuracy: metrics.get(Metrics::ACCURACY),
                ..last.filter(|row| row.round == *round).cloned().unwrap_or_default()
            },
            _ => return None,
        })
    }
}

fn line(row: &RoundRow) -> io::Result<Vec<u8>> {
    let mut writer = csv::WriterBuilder::new().has_headers(false).from_writer(Vec::new());
    writer.serialize(row).map_err(io::Error::other)?;
    writer.into_inner().map_err(|e| io::Error::other(e.to_string()))
}

const HEADER: &str = "round,updates,failures,train_loss,loss,accuracy,bytes_down,bytes_up,seconds\n";
