//! A clock that never goes back.

use std::time::{Instant, SystemTime};

/// The machine's clock as it was once, and what has passed since: whoever sets it changes no span's length.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    set: SystemTime,
    at: Instant,
}

impl Clock {
    /// Sets it to what the machine says.
    pub(super) fn set() -> Self {
        Self { set: SystemTime::now(), at: Instant::now() }
    }

    /// What it was set to.
    pub(super) fn began(self) -> SystemTime {
        self.set
    }

    /// What it says now.
    pub(super) fn now(self) -> SystemTime {
        self.set + self.at.elapsed()
    }
}
