//! What a served run has on disk of a round that is not over.

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use fedburn::durable::{Access, File, remove_file};
use serde::{Deserialize, Serialize};

/// What a served run has on disk of a round that is not over. A finished round is always on disk; whatever is chosen, a
/// killed server goes on with the same bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// Nothing: clients send their answers again.
    Round,
    /// The sums of the open round, after each 64 updates or a minute: at most so many clients send again. As `update`
    /// where single updates are looked at.
    Accumulator,
    /// Each answer, before it is acknowledged: no client sends again, and none has to come back.
    Update,
    /// `update` where that takes at most a tenth of the round's time, else `accumulator`.
    #[default]
    Auto,
}

/// What a round asks of the disk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Bytes of the cohort's updates.
    pub bytes: u64,
    /// The round's deadline.
    pub deadline: Duration,
    /// Whether somebody looks at single updates: a strategy, or attackers.
    pub looks_at_single: bool,
}

impl Durability {
    /// What is kept: anything but [`Durability::Auto`]. `dir` is on the disk in question.
    ///
    /// # Errors
    /// What the system says on writing there.
    pub(crate) fn decide(self, dir: &Path, load: Load) -> io::Result<Self> {
        let chosen = match self {
            Self::Auto => Self::by_rate(bytes_per_second(dir)?, load),
            chosen => chosen,
        };
        Ok(if chosen == Self::Accumulator && load.looks_at_single { Self::Update } else { chosen })
    }

    fn by_rate(bytes_per_second: f64, load: Load) -> Self {
        let allowed = SHARE * load.deadline.as_secs_f64() * bytes_per_second;
        if load.bytes as f64 <= allowed { Self::Update } else { Self::Accumulator }
    }
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Round => "round",
            Self::Accumulator => "accumulator",
            Self::Update => "update",
            Self::Auto => "auto",
        })
    }
}

/// How fast the disk of `dir` takes bytes, synced.
fn bytes_per_second(dir: &Path) -> io::Result<f64> {
    fs::create_dir_all(dir)?;
    let (path, bytes) = (dir.join("disk-rate"), vec![1; SAMPLE]);
    let began = Instant::now();
    let mut file = File::create(&path, Access::Owner)?;
    file.write(&bytes)?;
    file.sync()?;
    let took = began.elapsed();
    remove_file(&path)?;
    Ok(SAMPLE as f64 / took.as_secs_f64().max(1e-6))
}

/// Of a round's time, for writing its updates.
const SHARE: f64 = 0.1;
/// Bytes that are written to learn the disk's rate.
const SAMPLE: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_disk_keeps_sums_and_single_updates_are_kept_whole() {
        let dir = tempfile::tempdir().unwrap();
        let load = |seconds| Load { bytes: 1_000, deadline: Duration::from_secs(seconds), looks_at_single: false };
        assert_eq!(Durability::by_rate(100.0, load(100)), Durability::Update);
        assert_eq!(Durability::by_rate(100.0, load(99)), Durability::Accumulator);
        let single = Load { looks_at_single: true, ..load(1) };
        for (asked, plain, looked_at) in [
            (Durability::Round, Durability::Round, Durability::Round),
            (Durability::Accumulator, Durability::Accumulator, Durability::Update),
            (Durability::Update, Durability::Update, Durability::Update),
            (Durability::Auto, Durability::Update, Durability::Update),
        ] {
            assert_eq!(asked.decide(dir.path(), load(3600)).unwrap(), plain);
            assert_eq!(asked.decide(dir.path(), single).unwrap(), looked_at);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
