//! Client state on disk.
//!
//! ```text
//! lock                                            held by the process that has the store open
//! openings.json                                   the rounds after which the run began or went on, oldest first
//! staged/000123-00000042.safetensors              not decided yet
//! clients/7b/000123/00000042-00003.safetensors    client 123 after round 42, written in the store's opening 3
//! ```
//!
//! **Why nothing more is needed for a commit to be safe.** Committing a round renames one file a client, and a crash
//! may come between two renames. It does no harm, because a version does not count on its own: a store is opened with
//! the round after which the run goes on, and whatever an earlier opening wrote for later rounds is dead from then on
//! (the opening's number in the file name tells). A round that was cut off in the middle of its commit was not
//! checkpointed, since checkpoints follow commits; the run therefore goes on from before it, its versions are dead,
//! whole or in part, and the round is run again. The same rule keeps a repeated round that goes another way (another
//! client times out) from mixing with what the first attempt left.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use fedburn_core::{ClientId, RoundIndex, StateDict, StateError, StateStore};

use fedburn_durable::{self as durable, Access};

/// Keeps client state on disk, one safetensors file a client and version; survives `kill -9` and power loss at any
/// point. Memory does not depend on the number of clients.
///
/// # Examples
///
/// ```
/// use fedburn_core::{ClientId, RoundIndex, StateDict, StateStore};
/// use fedburn_runtime::DiskStore;
///
/// let directory = tempfile::tempdir()?;
/// let mut state = StateDict::new();
/// state.insert_u64("steps", 5);
///
/// let store = DiskStore::open(directory.path(), RoundIndex(0))?;
/// store.stage(ClientId(3), RoundIndex(1), state.clone())?;
/// store.commit(RoundIndex(1), &[ClientId(3)])?;
/// drop(store);
///
/// // The run goes on after round 1.
/// let store = DiskStore::open(directory.path(), RoundIndex(1))?;
/// assert_eq!(store.load(ClientId(3), RoundIndex(2))?, Some(state));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct DiskStore {
    root: PathBuf,
    /// The round after which each opening of the store went on; the last is this one.
    openings: Vec<RoundIndex>,
    open: Mutex<Open>,
    /// Locked; the operating system unlocks it however the process ends.
    _lock: File,
}

/// What changes while the store is open.
#[derive(Debug, Default)]
struct Open {
    staged: BTreeMap<RoundIndex, BTreeSet<ClientId>>,
    /// Clients with versions that a later checkpoint may make superfluous.
    grown: BTreeSet<ClientId>,
}

/// A version's name in its client's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version {
    round: RoundIndex,
    opening: usize,
}

impl DiskStore {
    /// Opens the store in the directory `root`, which is made where it is missing, for a run that goes on after the
    /// round `after`: 0 for one that begins. What was staged and not committed is dropped, and what was committed for
    /// rounds later than `after` does not count any more.
    ///
    /// # Errors
    /// [`StateError::Store`] where the directory cannot be used, or another process has it open.
    pub fn open(root: impl Into<PathBuf>, after: RoundIndex) -> Result<Self, StateError> {
        let root = root.into();
        let made = fs::create_dir_all(root.join(CLIENTS)).and_then(|()| durable::lock_file(&root.join("lock")));
        let lock = made.map_err(|e| failed(&root, &e))?;
        lock.try_lock().map_err(|e| match e {
            TryLockError::WouldBlock => StateError::Store {
                place: root.display().to_string(),
                reason: "another run has this store open; wait for its end or use another directory".to_owned(),
            },
            TryLockError::Error(e) => failed(&root, &e),
        })?;
        let staged = root.join(STAGED);
        durable::unless_missing(fs::remove_dir_all(&staged))
            .and_then(|()| fs::create_dir(&staged))
            .map_err(|e| failed(&staged, &e))?;

        let path = root.join("openings.json");
        let known = durable::unless_missing(fs::read(&path)).map_err(|e| failed(&path, &e))?;
        let damaged = |e: serde_json::Error| failed(&path, &io::Error::other(e));
        let mut openings: Vec<RoundIndex> =
            if known.is_empty() { Vec::new() } else { serde_json::from_slice(&known).map_err(damaged)? };
        openings.push(after);
        let bytes = serde_json::to_vec(&openings).map_err(damaged)?;
        durable::replace(&path, &bytes, Access::Anybody).map_err(|e| failed(&path, &e))?;
        Ok(Self { root, openings, open: Mutex::default(), _lock: lock })
    }

    fn open_state(&self) -> MutexGuard<'_, Open> {
        // The sets only say what to look at; a panic elsewhere cannot make them wrong.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn staged_path(&self, client: ClientId, round: RoundIndex) -> PathBuf {
        self.root.join(STAGED).join(format!("{:06}-{:08}.safetensors", client.0, round.0))
    }

    fn directory(&self, client: ClientId) -> PathBuf {
        // 256 directories keep each short; ids are dense, so that their low bits spread them evenly.
        self.root.join(CLIENTS).join(format!("{:02x}", client.0 & 0xff)).join(format!("{:06}", client.0))
    }

    /// Whether the run that has the store open builds on this version: no later opening went back behind it.
    fn counts(&self, version: Version) -> bool {
        self.openings.iter().skip(version.opening + 1).all(|after| version.round <= *after)
    }

    /// The client's versions, oldest first, dead ones included.
    fn versions(&self, client: ClientId) -> Result<Vec<Version>, StateError> {
        let directory = self.directory(client);
        let list = || -> io::Result<Vec<Version>> {
            let names = fs::read_dir(&directory)?.map(|entry| Ok(entry?.file_name()));
            let mut versions: Vec<Version> = names
                .filter_map(|name| name.map(|name| Version::parse(name.to_str()?)).transpose())
                .collect::<io::Result<_>>()?;
            versions.sort_unstable();
            Ok(versions)
        };
        durable::unless_missing(list()).map_err(|e| failed(&directory, &e))
    }

    /// Renames one staged file to its version.
    fn keep(&self, client: ClientId, round: RoundIndex) -> io::Result<()> {
        let version = Version { round, opening: self.openings.len() - 1 };
        let (staged, directory) = (self.staged_path(client, round), self.directory(client));
        if !directory.is_dir() {
            fs::create_dir_all(&directory)?;
            directory.ancestors().skip(1).take(2).try_for_each(durable::sync_directory)?;
        }
        durable::rename(&staged, &directory.join(version.file_name()))?;
        durable::sync_directory(&directory)
    }

    /// Drops the client's versions that a run going on after `floor` or later cannot ask for. Says whether a later
    /// call may find more.
    fn prune(&self, client: ClientId, floor: RoundIndex) -> Result<bool, StateError> {
        let versions = self.versions(client)?;
        let needed = versions.iter().rev().find(|version| version.round <= floor && self.counts(**version)).copied();
        let (kept, dropped): (Vec<_>, Vec<_>) =
            versions.into_iter().partition(|version| self.counts(*version) && Some(*version) >= needed);
        let directory = self.directory(client);
        for version in dropped {
            let path = directory.join(version.file_name());
            durable::unless_missing(durable::remove_file(&path)).map_err(|e| failed(&path, &e))?;
        }
        Ok(kept.len() > 1)
    }
}

impl StateStore for DiskStore {
    fn load(&self, client: ClientId, round: RoundIndex) -> Result<Option<StateDict>, StateError> {
        let versions = self.versions(client)?;
        let usable = |version: &&Version| version.round < round && self.counts(**version);
        let Some(version) = versions.iter().rev().find(usable) else {
            return Ok(None);
        };
        let path = self.directory(client).join(version.file_name());
        let bytes = fs::read(&path).map_err(|e| failed(&path, &e))?;
        StateDict::from_bytes(&bytes).map(Some).map_err(|e| failed(&path, &io::Error::other(e)))
    }

    fn stage(&self, client: ClientId, round: RoundIndex, state: StateDict) -> Result<(), StateError> {
        let path = self.staged_path(client, round);
        durable::write_synced(&path, &state.to_bytes()?).map_err(|e| failed(&path, &e))?;
        self.open_state().staged.entry(round).or_default().insert(client);
        Ok(())
    }

    fn commit(&self, round: RoundIndex, clients: &[ClientId]) -> Result<(), StateError> {
        let mut open = self.open_state();
        // A client that answered after its round's end left something for an earlier round.
        let later = open.staged.split_off(&round.next());
        for (staged_in, staged) in std::mem::replace(&mut open.staged, later) {
            for client in staged {
                if staged_in == round && clients.contains(&client) {
                    self.keep(client, round).map_err(|e| failed(&self.directory(client), &e))?;
                    open.grown.insert(client);
                } else {
                    let path = self.staged_path(client, staged_in);
                    durable::unless_missing(durable::remove_file(&path)).map_err(|e| failed(&path, &e))?;
                }
            }
        }
        Ok(())
    }

    fn checkpointed(&self, round: RoundIndex) -> Result<(), StateError> {
        let mut open = self.open_state();
        for client in std::mem::take(&mut open.grown) {
            if self.prune(client, round)? {
                open.grown.insert(client);
            }
        }
        Ok(())
    }
}

impl Version {
    fn file_name(self) -> String {
        format!("{:08}-{:05}.safetensors", self.round.0, self.opening)
    }

    fn parse(name: &str) -> Option<Self> {
        let (round, opening) = name.strip_suffix(".safetensors")?.split_once('-')?;
        Some(Self { round: RoundIndex(round.parse().ok()?), opening: opening.parse().ok()? })
    }
}

fn failed(place: &Path, error: &io::Error) -> StateError {
    StateError::Store { place: place.display().to_string(), reason: error.to_string() }
}

const STAGED: &str = "staged";
const CLIENTS: &str = "clients";
