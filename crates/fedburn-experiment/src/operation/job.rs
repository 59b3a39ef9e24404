//! The runs that a server's folder knows.

use std::fs::{File, TryLockError};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fedburn::transport::quic::{IdentityError, page_token};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::{JobState, RunFacts, Snapshot};
use crate::results::{ResultsError, write_private_json};

/// A run that was served from a server's folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Which run.
    pub run: RunFacts,
    /// The last start of its server, seconds since 1970-01-01 UTC.
    pub started: u64,
    /// Where its page is, while it runs; `None` for a server without.
    pub page: Option<SocketAddr>,
}

/// The jobs of a server's folder: a file each in `jobs`, which only their owner may read.
#[derive(Clone, Debug)]
pub struct Jobs {
    state: PathBuf,
}

/// That this process serves a job; other processes see it until this is dropped, or the process is killed.
#[derive(Debug)]
pub struct Served(#[expect(dead_code, reason = "holds a lock")] File);

/// Jobs that cannot be read or asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum JobError {
    /// A file cannot be locked.
    #[error("cannot lock {}: {source}", path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A folder cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process serves the run.
    #[error("another process serves {name} seed {seed}; see `fedburn status`")]
    Taken {
        /// The experiment.
        name: String,
        /// The seed.
        seed: u64,
    },
    /// A file cannot be written.
    #[error("{source}")]
    Write {
        /// Which, and why.
        #[from]
        source: ResultsError,
    },
    /// The token of the page cannot be had.
    #[error("{source}")]
    Token {
        /// Why.
        #[from]
        source: IdentityError,
    },
}

impl Jobs {
    /// The jobs of the server's folder `state`.
    pub fn of(state: &Path) -> Self {
        Self { state: state.to_owned() }
    }

    /// Writes down that this process serves a job, in the place of an earlier start of the same run.
    ///
    /// # Errors
    /// [`JobError::Taken`], [`JobError::Write`].
    pub fn serve(&self, job: &Job) -> Result<Served, JobError> {
        let path = self.file(job, "lock");
        let failed = |source| JobError::Lock { path: path.clone(), source };
        let lock =
            std::fs::create_dir_all(self.dir()).and_then(|()| fedburn::durable::lock_file(&path)).map_err(failed)?;
        if !locked(&lock).map_err(failed)? {
            return Err(JobError::Taken { name: job.run.name.clone(), seed: job.run.seed });
        }
        write_private_json(&self.file(job, "json"), job)?;
        Ok(Served(lock))
    }

    /// Whether a process serves the job.
    fn is_served(&self, job: &Job) -> bool {
        File::open(self.file(job, "lock"))
            .is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    fn file(&self, job: &Job, extension: &str) -> PathBuf {
        self.dir().join(format!("{}.{extension}", job.run.hash))
    }

    /// Every job, the one that was started last first. One whose file is damaged is left out, with a warning.
    ///
    /// # Errors
    /// [`JobError::Read`].
    pub fn list(&self) -> Result<Vec<Job>, JobError> {
        let dir = self.dir();
        let failed = |source| JobError::Read { path: dir.clone(), source };
        let entries = match std::fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut jobs = Vec::new();
        for entry in entries {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                let job = std::fs::read(&path).and_then(|bytes| Ok(serde_json::from_slice::<Job>(&bytes)?));
                match job {
                    Ok(job) => jobs.push(job),
                    Err(error) => tracing::warn!(path = %path.display(), %error, "job.unreadable"),
                }
            }
        }
        jobs.sort_by(|a, b| (b.started, &b.run.name, b.run.seed).cmp(&(a.started, &a.run.name, a.run.seed)));
        Ok(jobs)
    }

    /// What a job is doing: what its server says, or its folder where no server of this run can be asked.
    ///
    /// # Errors
    /// [`JobError::Token`].
    pub fn snapshot(&self, job: &Job) -> Result<Snapshot, JobError> {
        let is_served = self.is_served(job);
        // Whoever listens there when the server is gone shall not see the token.
        let live = match job.page.filter(|_| is_served) {
            Some(page) => ask(page, &page_token(&self.state)?).filter(|live| live.run == job.run),
            None => None,
        };
        Ok(live.unwrap_or_else(|| Snapshot::of_folder(job, is_served)))
    }

    /// A job with how it stands.
    ///
    /// # Errors
    /// [`JobError::Token`].
    pub fn state(&self, job: &Job) -> Result<JobState, JobError> {
        Ok(self.snapshot(job)?.state)
    }

    fn dir(&self) -> PathBuf {
        self.state.join("jobs")
    }
}

/// Locks a file; `false` where another process serves by it. Who only looks holds it for a moment.
fn locked(file: &File) -> io::Result<bool> {
    for _ in 0..LOOKERS {
        match file.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOOK),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Ok(false)
}

/// Asks a server; `None` where there is none, or another than the token is for.
fn ask(page: SocketAddr, token: &str) -> Option<Snapshot> {
    let agent: ureq::Agent = ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).proxy(None).build().into();
    let asked =
        agent.get(format!("http://{}/status", reachable(page))).header("Authorization", format!("Bearer {token}"));
    let text = asked.call().ok()?.body_mut().read_to_string().ok()?;
    serde_json::from_str(&text).ok()
}

/// An address of this machine at which a server that listens at `page` is reached.
fn reachable(page: SocketAddr) -> SocketAddr {
    match page {
        SocketAddr::V4(address) if address.ip().is_unspecified() => ([127, 0, 0, 1], address.port()).into(),
        SocketAddr::V6(address) if address.ip().is_unspecified() => (std::net::Ipv6Addr::LOCALHOST, page.port()).into(),
        address => address,
    }
}

/// How often a lock is tried that may be held by one who looks, and how long such a look may take.
const LOOKERS: usize = 10;
const LOOK: Duration = Duration::from_millis(20);
/// Time for a server of this machine to answer.
const PATIENCE: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    fn job(dir: &Path, hash: &str, started: u64) -> Job {
        let run = RunFacts {
            name: "suite/a".to_owned(),
            title: "a".to_owned(),
            seed: 3,
            hash: hash.to_owned(),
            backend: "flex".to_owned(),
            results: dir.join("results"),
        };
        Job { run, started, page: Some(([127, 0, 0, 1], 9).into()) }
    }

    #[test]
    fn jobs_are_kept_and_one_that_nobody_serves_is_told_from_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        let jobs = Jobs::of(dir.path());
        assert_eq!(jobs.list().unwrap(), []);
        let (old, new) = (job(dir.path(), "aa", 1), job(dir.path(), "bb", 2));
        let serving = jobs.serve(&old).unwrap();
        assert!(jobs.serve(&old).unwrap_err().to_string().contains("another process serves suite/a seed 3"));
        drop(serving);
        drop((jobs.serve(&new).unwrap(), jobs.serve(&old).unwrap()));
        assert_eq!(jobs.list().unwrap(), [new.clone(), old.clone()]);
        assert_eq!(jobs.state(&old).unwrap(), JobState::Interrupted, "nothing is known of it");

        let mut info = fixture::finished(&[Some(0.5)]).run.unwrap();
        for (status, state) in [
            (crate::results::RunStatus::Running {}, JobState::Interrupted),
            (crate::results::RunStatus::Finished {}, JobState::Finished),
            (
                crate::results::RunStatus::Failed { cause: vec!["a".into(), "b".into()] },
                JobState::Failed { cause: "a: b".to_owned() },
            ),
        ] {
            info.status = status;
            crate::results::write_json(&old.run.results.join("run.json"), &info).unwrap();
            assert_eq!(jobs.state(&old).unwrap(), state);
        }
        std::fs::write(dir.path().join("jobs/cc.json"), "{").unwrap();
        assert_eq!(jobs.list().unwrap(), [new, old], "a damaged one hides no other");
    }

    #[test]
    fn a_server_that_has_no_page_is_running_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let jobs = Jobs::of(dir.path());
        let job = Job { page: None, ..job(dir.path(), "aa", 1) };
        let _serving = jobs.serve(&job).unwrap();
        let snapshot = jobs.snapshot(&job).unwrap();
        assert_eq!((snapshot.state, snapshot.phase), (JobState::Running, crate::operation::Phase::Unknown));
    }

    #[test]
    fn a_token_is_shown_to_nobody_who_took_the_place_of_a_server() {
        let dir = tempfile::tempdir().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let jobs = Jobs::of(dir.path());
        let job = Job { page: Some(listener.local_addr().unwrap()), ..job(dir.path(), "aa", 1) };
        drop(jobs.serve(&job).unwrap());
        assert_eq!(jobs.state(&job).unwrap(), JobState::Interrupted);
        listener.set_nonblocking(true).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock, "nobody was asked");
    }

    #[cfg(unix)]
    #[test]
    fn a_job_is_its_owners_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        Jobs::of(dir.path()).serve(&job(dir.path(), "aa", 1)).unwrap();
        let mode = std::fs::metadata(dir.path().join("jobs/aa.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
