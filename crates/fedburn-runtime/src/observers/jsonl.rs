//! `events.jsonl`: every event of a run, one JSON object a line.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use fedburn_core::{Event, Observer, RoundIndex, StopReason};

use super::{ObserverError, Outcome};
use fedburn_durable::{self as durable, Access};

/// Writes every event as one line of JSON. What a metric that is not finite was, is kept: as text (`"NaN"`).
///
/// Lines reach the operating system with every event but those of single clients, so that a killed process loses at
/// most the clients of a round that is run again anyway.
///
/// # Examples
///
/// ```
/// use fedburn_core::{Event, Observer, RoundIndex};
/// use fedburn_runtime::{EventLog, JsonLines};
///
/// let directory = tempfile::tempdir()?;
/// let path = directory.path().join("events.jsonl");
/// let mut events = JsonLines::create(&path)?;
/// let _ = events.on_event(&Event::RunEnded { round: RoundIndex(3), stopped: None });
/// events.finish()?;
/// let read: Vec<Event> = EventLog::open(&path)?.collect::<Result<_, _>>()?;
/// assert_eq!(read.len(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct JsonLines {
    file: BufWriter<File>,
    outcome: Outcome,
}

impl JsonLines {
    /// Begins a record at `path`; one that is there is emptied.
    ///
    /// # Errors
    /// [`ObserverError::Io`].
    pub fn create(path: impl AsRef<Path>) -> Result<Self, ObserverError> {
        let path = path.as_ref();
        let file = File::create(path).map_err(ObserverError::io(path))?;
        Ok(Self { file: BufWriter::new(file), outcome: Outcome::new(path) })
    }

    /// Goes on with the record at `path` for a run that goes on after the round `after`: events of later rounds, ends
    /// of runs, what clients measured after that round and a last line that a crash cut off are removed, in one step.
    /// Where the record is missing, or `after` is 0 and the run begins, a new one is begun.
    ///
    /// # Errors
    /// [`ObserverError::Damaged`] where a line is no event, [`ObserverError::Io`].
    pub fn resume(path: impl AsRef<Path>, after: RoundIndex) -> Result<Self, ObserverError> {
        let path = path.as_ref();
        if after == RoundIndex(0) || !path.exists() {
            return Self::create(path);
        }
        let mut log = EventLog::open(path)?;
        let mut kept = Vec::new();
        while let Some(event) = log.next().transpose()? {
            let again = match &event {
                Event::RunEnded { .. } => true,
                // Clients measure the model after the checkpoint of its round, so the run to come measures again.
                Event::ClientEvaluated { round, .. } => *round == after,
                _ => false,
            };
            if event.round() <= after && !again {
                kept.extend_from_slice(&log.line);
            }
        }
        durable::replace(path, &kept, Access::Anybody).map_err(ObserverError::io(path))?;
        let file = OpenOptions::new().append(true).open(path).map_err(ObserverError::io(path))?;
        Ok(Self { file: BufWriter::new(file), outcome: Outcome::new(path) })
    }

    /// Writes what is left, and gives back the first error of the record, if there was one.
    ///
    /// # Errors
    /// [`ObserverError::Io`].
    pub fn finish(mut self) -> Result<(), ObserverError> {
        // The outcome keeps the error; there is nobody left to stop.
        let _ = self.outcome.after(|| self.file.flush());
        self.outcome.finish()
    }
}

impl Observer for JsonLines {
    fn on_event(&mut self, event: &Event) -> ControlFlow<StopReason> {
        self.outcome.after(|| {
            write_line(&mut self.file, event)?;
            if is_of_one_client(event) { Ok(()) } else { self.file.flush() }
        })
    }
}

/// Reads a record of events, one after another. A last line that a crash cut off is passed over.
#[derive(Debug)]
pub struct EventLog {
    file: BufReader<File>,
    path: PathBuf,
    /// The line read last, with its end.
    line: Vec<u8>,
    number: usize,
}

impl EventLog {
    /// Opens the record at `path`.
    ///
    /// # Errors
    /// [`ObserverError::Io`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ObserverError> {
        let path = path.as_ref();
        let file = fs::File::open(path).map_err(ObserverError::io(path))?;
        Ok(Self { file: BufReader::new(file), path: path.to_owned(), line: Vec::new(), number: 0 })
    }
}

impl Iterator for EventLog {
    /// [`ObserverError::Damaged`] for a line that is no event, [`ObserverError::Io`].
    type Item = Result<Event, ObserverError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.line.clear();
        self.number += 1;
        match self.file.read_until(b'\n', &mut self.line) {
            Err(source) => Some(Err(ObserverError::io(&self.path)(source))),
            Ok(_) if !self.line.ends_with(b"\n") => None,
            Ok(_) => Some(serde_json::from_slice(&self.line).map_err(|e| ObserverError::Damaged {
                path: self.path.display().to_string(),
                line: self.number,
                reason: e.to_string(),
            })),
        }
    }
}

/// Writes an event as one line.
pub(super) fn write_line(out: &mut impl Write, event: &Event) -> io::Result<()> {
    serde_json::to_writer(&mut *out, event)?;
    out.write_all(b"\n")
}

/// Events that come by the cohort, too many to flush one by one.
pub(super) fn is_of_one_client(event: &Event) -> bool {
    matches!(event, Event::ClientTrained { .. } | Event::ClientFailed { .. } | Event::ClientEvaluated { .. })
}
