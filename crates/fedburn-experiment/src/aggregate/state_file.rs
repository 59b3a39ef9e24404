//! What is kept between calls: the round, the strategy's state, and what it remembers of each client.

use std::collections::BTreeSet;
use std::path::Path;

use fedburn::core::{ClientId, RoundIndex, StateDict, StateError};

use super::{AggregateFilesError, read, refuse};

/// The content of a state file. Entries: `round`, `schema` (the model's fingerprint), `strategy.<name>`, the
/// strategy's state under `state`, that of client 7 under `client.7`.
pub(super) struct StateFile {
    /// The last finished round.
    pub(super) round: RoundIndex,
    /// The strategy's state.
    pub(super) strategy: StateDict,
    /// What it remembers of clients.
    pub(super) clients: Vec<(ClientId, StateDict)>,
}

impl StateFile {
    pub(super) fn into_bytes(self, strategy: &str, fingerprint: u64) -> Result<Vec<u8>, StateError> {
        let mut dict = StateDict::new();
        dict.insert_u64("round", self.round.0);
        dict.insert_u64("schema", fingerprint);
        dict.insert_u64(format!("strategy.{strategy}"), 1);
        dict.nest("state", self.strategy);
        for (client, state) in self.clients {
            dict.nest(&format!("client.{client}"), state);
        }
        dict.to_bytes()
    }

    /// Reads the state of `strategy` for the model with this fingerprint.
    pub(super) fn read(path: &Path, strategy: &str, fingerprint: u64) -> Result<Self, AggregateFilesError> {
        let damaged = |e: StateError| refuse(path, e.to_string());
        let mut dict = StateDict::from_bytes(&read(path)?).map_err(damaged)?;
        let state = dict.split_off("state");
        let mut of_clients = dict.split_off("client");
        let round = RoundIndex(dict.take_u64("round").map_err(damaged)?);
        if dict.take_u64("schema").map_err(damaged)? != fingerprint {
            return Err(refuse(path, "is the state of another model; give another --state file".to_owned()));
        }
        if dict.take_u64(&format!("strategy.{strategy}")).is_err() {
            let reason = format!("is the state of another strategy than `{strategy}`; give another --state file");
            return Err(refuse(path, reason));
        }
        let prefixes = of_clients.iter().filter_map(|(name, _)| Some(name.split_once('.')?.0.to_owned()));
        let prefixes: BTreeSet<_> = prefixes.collect();
        let mut clients = Vec::new();
        for prefix in prefixes {
            let state = of_clients.split_off(&prefix);
            let id = prefix.parse().map_err(|_| refuse(path, format!("`{prefix}` is no client's number")))?;
            clients.push((ClientId(id), state));
        }
        of_clients.expect_empty().map_err(damaged)?;
        dict.expect_empty().map_err(damaged)?;
        Ok(Self { round, strategy: state, clients })
    }
}
