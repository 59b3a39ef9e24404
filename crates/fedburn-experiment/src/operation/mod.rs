//! Looking after a served federation: what it is doing, told in four ways.
//!
//! A [`Monitor`] watches the run and the network; a [`Snapshot`] is what it knows at one moment. `fedburn status`, the
//! page, `/status` and `/metrics` each show a snapshot and nothing else, so that they cannot contradict one another.

mod http;
mod job;
mod metrics;
mod monitor;
mod page;
mod show;
mod snapshot;
mod systemd;

pub use http::{PageServer, PageServerError};
pub use job::{Job, JobError, Jobs, Served};
pub use metrics::prometheus;
pub use monitor::Monitor;
pub use show::{jobs_table, status_text};
pub use snapshot::{Cohort, Failure, Histogram, JobState, Phase, RunFacts, Snapshot, Totals};
