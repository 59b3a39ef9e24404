//! What clients keep for themselves between rounds, at their own end of a network.
//!
//! ```text
//! lock                               held by the process that has the folder open
//! clients/000003/00000042.state      client 3 after training in round 42: a SHA-256, then the safetensors that it covers
//! clients/000003/stateless           before its oldest version the client kept no state
//! ```
//!
//! A version is written before its update is sent, because the client cannot know whether the update will count. The
//! server can, and says with each request which version it starts from ([`History`]). On a request to train, later
//! versions are of updates that did not count, or of a course of the run that the server has gone back on: they are
//! dropped, and the round is trained again. So nothing that either side may lose can lead to another state than that
//! of an undisturbed run.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use fedburn_core::{ClientId, History, RoundIndex, StateDict, StateError};
use sha2::{Digest, Sha256};

use fedburn_durable::{self as durable, Access};

/// The states of the clients that one process is, on disk by client and round; survives `kill -9` and power loss at any
/// point. Clients that keep no state cost one small file each.
///
/// # Examples
///
/// ```
/// use fedburn_core::{ClientId, History, RoundIndex, StateDict};
/// use fedburn_runtime::ClientStates;
///
/// let folder = tempfile::tempdir()?;
/// let states = ClientStates::open(folder.path())?;
/// let mut state = StateDict::new();
/// state.insert_u64("steps", 5);
///
/// assert_eq!(states.begin(ClientId(3), History::default())?, None);
/// states.keep(ClientId(3), RoundIndex(1), &state)?;
/// assert_eq!(states.load(ClientId(3), RoundIndex(1))?, Some(state));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct ClientStates {
    root: PathBuf,
    /// Locked; the operating system unlocks it however the process ends.
    _lock: File,
}

impl ClientStates {
    /// Opens the folder `root`, which is made where it is missing.
    ///
    /// # Errors
    /// [`StateError::Store`] where the folder cannot be used, or another process has it open.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, StateError> {
        let root = root.into();
        let made = fs::create_dir_all(root.join(CLIENTS)).and_then(|()| durable::lock_file(&root.join("lock")));
        let lock = made.map_err(|e| failed(&root, &e))?;
        lock.try_lock().map_err(|e| match e {
            TryLockError::WouldBlock => {
                refused(&root, "another process is these clients already; end it or use another folder".to_owned())
            }
            TryLockError::Error(e) => failed(&root, &e),
        })?;
        Ok(Self { root, _lock: lock })
    }

    /// The state that a training request starts from. Drops the versions that the run cannot ask for again: later ones,
    /// and those older than the newest up to the durable round.
    ///
    /// # Errors
    /// As [`ClientStates::load`]; nothing but later versions is dropped then.
    pub fn begin(&self, client: ClientId, history: History) -> Result<Option<StateDict>, StateError> {
        let (counted, later): (Vec<_>, Vec<_>) =
            self.versions(client)?.into_iter().partition(|version| *version <= history.state_of);
        later.into_iter().try_for_each(|version| self.drop_version(client, version))?;
        let state = self.load(client, history.state_of)?;
        if let Some(needed) = counted.iter().rev().find(|version| **version <= history.durable) {
            let old = counted.iter().filter(|version| *version < needed);
            old.into_iter().try_for_each(|version| self.drop_version(client, *version))?;
        }
        Ok(state)
    }

    /// The client's state after its training in the round `of`; `None` for round 0 and for a client that keeps none.
    ///
    /// # Errors
    /// [`StateError::Store`] where that version is missing, damaged or cannot be read.
    pub fn load(&self, client: ClientId, of: RoundIndex) -> Result<Option<StateDict>, StateError> {
        if of == RoundIndex(0) {
            return Ok(None);
        }
        let path = self.path(client, of);
        match fs::read(&path) {
            Ok(bytes) => decode(&bytes).map(Some).map_err(|reason| refused(&path, reason)),
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed(&path, &e)),
            Err(_) if self.kept_none(client, of)? => Ok(None),
            Err(_) => Err(refused(
                &path,
                format!("the state after round {of} is missing; use the folder that client {client} trained in"),
            )),
        }
    }

    /// Keeps the state that the client has after training in `round`; it is on disk when this returns.
    ///
    /// # Errors
    /// [`StateError`] where it cannot be encoded or written.
    pub fn keep(&self, client: ClientId, round: RoundIndex, state: &StateDict) -> Result<(), StateError> {
        let directory = self.directory(client);
        let stateless = state.is_empty() && self.versions(client)?.is_empty();
        let path = if stateless { directory.join(STATELESS) } else { self.path(client, round) };
        if stateless && path.exists() {
            return Ok(());
        }
        let bytes = if stateless { Vec::new() } else { encode(state)? };
        let write = || -> io::Result<()> {
            if !directory.is_dir() {
                fs::create_dir_all(&directory)?;
                durable::sync_directory(&self.root.join(CLIENTS))?;
            }
            durable::replace(&path, &bytes, Access::Anybody)
        };
        write().map_err(|e| failed(&path, &e))
    }

    /// Whether the client had trained without a state to keep by the round `of`.
    fn kept_none(&self, client: ClientId, of: RoundIndex) -> Result<bool, StateError> {
        let oldest = self.versions(client)?.first().copied();
        Ok(oldest.is_none_or(|oldest| of < oldest) && self.directory(client).join(STATELESS).exists())
    }

    /// The rounds of the client's versions, oldest first.
    fn versions(&self, client: ClientId) -> Result<Vec<RoundIndex>, StateError> {
        let directory = self.directory(client);
        let list = || -> io::Result<Vec<RoundIndex>> {
            let names = fs::read_dir(&directory)?.map(|entry| Ok(entry?.file_name()));
            let round = |name: &str| name.strip_suffix(SUFFIX)?.parse().ok().map(RoundIndex);
            let mut rounds: Vec<_> = names
                .filter_map(|name| name.map(|name| round(name.to_str()?)).transpose())
                .collect::<io::Result<_>>()?;
            rounds.sort_unstable();
            Ok(rounds)
        };
        durable::unless_missing(list()).map_err(|e| failed(&directory, &e))
    }

    fn drop_version(&self, client: ClientId, version: RoundIndex) -> Result<(), StateError> {
        let path = self.path(client, version);
        durable::unless_missing(durable::remove_file(&path)).map_err(|e| failed(&path, &e))
    }

    fn directory(&self, client: ClientId) -> PathBuf {
        self.root.join(CLIENTS).join(format!("{:06}", client.0))
    }

    fn path(&self, client: ClientId, round: RoundIndex) -> PathBuf {
        self.directory(client).join(format!("{:08}{SUFFIX}", round.0))
    }
}

fn encode(state: &StateDict) -> Result<Vec<u8>, StateError> {
    let state = state.to_bytes()?;
    let mut bytes = Sha256::digest(&state).to_vec();
    bytes.extend_from_slice(&state);
    Ok(bytes)
}

fn decode(bytes: &[u8]) -> Result<StateDict, String> {
    let (sum, state) = bytes.split_at_checked(SUM_LEN).ok_or("damaged: cut short")?;
    if Sha256::digest(state).as_slice() != sum {
        return Err("damaged: its checksum is another".to_owned());
    }
    StateDict::from_bytes(state).map_err(|e| e.to_string())
}

fn failed(place: &Path, error: &io::Error) -> StateError {
    refused(place, error.to_string())
}

fn refused(place: &Path, reason: String) -> StateError {
    StateError::Store { place: place.display().to_string(), reason }
}

const CLIENTS: &str = "clients";
const SUFFIX: &str = ".state";
const STATELESS: &str = "stateless";
/// Bytes of a SHA-256.
const SUM_LEN: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: ClientId = ClientId(3);

    fn state(value: u64) -> StateDict {
        let mut state = StateDict::new();
        state.insert_u64("value", value);
        state
    }

    fn history(state_of: u64, durable: u64) -> History {
        History { state_of: RoundIndex(state_of), durable: RoundIndex(durable) }
    }

    fn with_versions(rounds: &[u64]) -> (tempfile::TempDir, ClientStates) {
        let folder = tempfile::tempdir().unwrap();
        let states = ClientStates::open(folder.path()).unwrap();
        rounds.iter().for_each(|&round| states.keep(CLIENT, RoundIndex(round), &state(round)).unwrap());
        (folder, states)
    }

    fn rounds(states: &ClientStates) -> Vec<u64> {
        states.versions(CLIENT).unwrap().into_iter().map(|round| round.0).collect()
    }

    #[test]
    fn a_request_starts_from_the_version_that_counts_and_later_ones_are_gone() {
        let (_folder, states) = with_versions(&[1, 4, 6]);
        assert_eq!(states.load(CLIENT, RoundIndex(6)).unwrap(), Some(state(6)), "an evaluation changes nothing");
        assert_eq!(states.begin(CLIENT, history(4, 0)).unwrap(), Some(state(4)));
        assert_eq!(rounds(&states), [1, 4]);
        assert_eq!(states.begin(CLIENT, history(0, 0)).unwrap(), None);
        assert_eq!(rounds(&states), Vec::<u64>::new());
    }

    #[test]
    fn old_versions_go_once_the_server_cannot_go_back_to_them() {
        let (_folder, states) = with_versions(&[1, 4, 6]);
        states.begin(CLIENT, history(6, 5)).unwrap();
        assert_eq!(rounds(&states), [4, 6], "a server that goes back to round 5 asks for that of round 4");
        states.begin(CLIENT, history(6, 6)).unwrap();
        assert_eq!(rounds(&states), [6]);
    }

    #[test]
    fn what_did_not_count_does_not_push_out_what_did() {
        let (_folder, states) = with_versions(&[3, 5]);
        assert_eq!(states.begin(CLIENT, history(3, 7)).unwrap(), Some(state(3)));
        assert_eq!(rounds(&states), [3]);
    }

    #[test]
    fn a_missing_version_is_an_error_that_names_it() {
        let (_folder, states) = with_versions(&[1]);
        let error = states.begin(CLIENT, history(2, 0)).unwrap_err().to_string();
        assert!(error.contains("000003") && error.contains("after round 2 is missing"), "{error}");
        let empty = with_versions(&[]);
        assert!(empty.1.load(CLIENT, RoundIndex(2)).is_err(), "nothing says that this client keeps no state");
    }

    #[test]
    fn damage_is_an_error_wherever_it_is() {
        let (_folder, states) = with_versions(&[1]);
        let path = states.path(CLIENT, RoundIndex(1));
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&path, &bytes).unwrap();
            assert!(states.load(CLIENT, RoundIndex(1)).is_err(), "byte {at}");
            fs::write(&path, &whole[..at]).unwrap();
            assert!(states.load(CLIENT, RoundIndex(1)).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn clients_without_state_cost_one_file_and_may_begin_to_keep_one() {
        let (_folder, states) = with_versions(&[]);
        for round in 1..4 {
            states.keep(CLIENT, RoundIndex(round), &StateDict::new()).unwrap();
        }
        assert_eq!(fs::read_dir(states.directory(CLIENT)).unwrap().count(), 1);
        assert_eq!(states.begin(CLIENT, history(3, 2)).unwrap(), None);
        states.keep(CLIENT, RoundIndex(4), &state(4)).unwrap();
        states.keep(CLIENT, RoundIndex(5), &StateDict::new()).unwrap();
        assert_eq!(states.load(CLIENT, RoundIndex(3)).unwrap(), None);
        assert_eq!(states.load(CLIENT, RoundIndex(4)).unwrap(), Some(state(4)));
        assert_eq!(states.load(CLIENT, RoundIndex(5)).unwrap(), Some(StateDict::new()));
    }

    #[test]
    fn a_folder_is_one_processs() {
        let (folder, _states) = with_versions(&[]);
        let error = ClientStates::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("another process"), "{error}");
    }
}
