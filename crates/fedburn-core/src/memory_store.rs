//! State of clients in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{ClientId, RoundIndex, StateDict, StateError, StateStore};

/// Keeps the state of clients in memory: fast, and gone with the process. A run that must survive a restart, or whose
/// clients do not fit, uses `fedburn_runtime::DiskStore`.
///
/// # Examples
///
/// ```
/// use fedburn_core::{ClientId, MemoryStore, RoundIndex, StateDict, StateStore};
///
/// let store = MemoryStore::new();
/// let mut state = StateDict::new();
/// state.insert_u64("steps", 5);
/// store.stage(ClientId(3), RoundIndex(1), state.clone())?;
/// assert_eq!(store.load(ClientId(3), RoundIndex(2))?, None);
/// store.commit(RoundIndex(1), &[ClientId(3)])?;
/// assert_eq!(store.load(ClientId(3), RoundIndex(2))?, Some(state));
/// # Ok::<(), fedburn_core::StateError>(())
/// ```
#[derive(Debug, Default)]
pub struct MemoryStore {
    states: Mutex<States>,
}

#[derive(Debug, Default)]
struct States {
    committed: BTreeMap<ClientId, BTreeMap<RoundIndex, StateDict>>,
    staged: BTreeMap<RoundIndex, BTreeMap<ClientId, StateDict>>,
    /// Clients with versions that a later checkpoint may make superfluous.
    grown: BTreeSet<ClientId>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// The newest committed state of every client, sorted by client.
    pub fn newest(&self) -> Vec<(ClientId, StateDict)> {
        let newest = |(client, versions): (&ClientId, &BTreeMap<RoundIndex, StateDict>)| {
            versions.last_key_value().map(|(_, state)| (*client, state.clone()))
        };
        self.states().committed.iter().filter_map(newest).collect()
    }

    fn states(&self) -> MutexGuard<'_, States> {
        // No method leaves the maps half changed, so that a panic elsewhere does not spoil them.
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StateStore for MemoryStore {
    fn load(&self, client: ClientId, round: RoundIndex) -> Result<Option<StateDict>, StateError> {
        let states = self.states();
        let newest = states.committed.get(&client).and_then(|versions| versions.range(..round).next_back());
        Ok(newest.map(|(_, state)| state.clone()))
    }

    fn stage(&self, client: ClientId, round: RoundIndex, state: StateDict) -> Result<(), StateError> {
        self.states().staged.entry(round).or_default().insert(client, state);
        Ok(())
    }

    fn commit(&self, round: RoundIndex, clients: &[ClientId]) -> Result<(), StateError> {
        let States { committed, staged, grown } = &mut *self.states();
        let mut of_round = staged.remove(&round).unwrap_or_default();
        // A client that answered after its round's end left something for an earlier round.
        staged.retain(|staged_in, _| *staged_in > round);
        for client in clients {
            if let Some(state) = of_round.remove(client) {
                let versions = committed.entry(*client).or_default();
                versions.insert(round, state);
                grown.insert(*client);
            }
        }
        Ok(())
    }

    fn checkpointed(&self, round: RoundIndex) -> Result<(), StateError> {
        let States { committed, grown, .. } = &mut *self.states();
        grown.retain(|client| {
            let Some(versions) = committed.get_mut(client) else { return false };
            let needed = versions.range(..=round).next_back().map(|(newest, _)| *newest);
            versions.retain(|version, _| Some(*version) >= needed);
            versions.len() > 1
        });
        Ok(())
    }
}
