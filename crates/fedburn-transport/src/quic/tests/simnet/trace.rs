//! What happened in a world, in order: two runs of one seed must write the same.

use std::fmt;
use std::time::Duration;

/// One line an event, with the virtual time at which it happened.
#[derive(Default)]
pub(super) struct Trace {
    lines: Vec<String>,
    /// Whether lines are printed as they are written.
    printed: bool,
}

impl Trace {
    pub(super) fn new(printed: bool) -> Self {
        Self { lines: Vec::new(), printed }
    }

    pub(super) fn note(&mut self, at: Duration, what: fmt::Arguments<'_>) {
        let line = format!("{:>12.6} {what}", at.as_secs_f64());
        if self.printed {
            eprintln!("{line}");
        }
        self.lines.push(line);
    }

    pub(super) fn lines(&self) -> &[String] {
        &self.lines
    }

    /// The same for two traces exactly where their lines are.
    pub(super) fn hash(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        self.lines.iter().for_each(|line| {
            hasher.update(line.as_bytes()).update(b"\n");
        });
        hasher.finalize()
    }
}
