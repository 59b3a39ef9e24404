//! Which nodes may take part: a file that the server follows and the operator's commands change.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use fedburn_durable::{self as durable, Access};
use serde::{Deserialize, Serialize};

use super::stamp::{Stamp, stamp};
use super::{IdentityError, NodeId};

/// Whether a node may take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// It may.
    Allowed,
    /// It may not, whatever certificate it has.
    Revoked,
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allowed => "allowed",
            Self::Revoked => "revoked",
        })
    }
}

/// A node that the registry knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeRecord {
    /// Who it is.
    pub node: NodeId,
    /// Whether it may take part.
    pub standing: Standing,
    /// When that was decided, in seconds since 1970.
    pub since: u64,
    /// Why it did not take part when it was last here, in its owner's words.
    pub declined: Option<String>,
}

/// The nodes that a server knows, kept in one file.
///
/// Every process that has the registry open sees every change: a server looks at the file four times a second and closes
/// the connections of a node that was revoked.
///
/// # Examples
///
/// ```
/// use fedburn_transport::quic::{NodeRegistry, Standing};
///
/// let dir = tempfile::tempdir()?;
/// let node = "aebagbafaydqqcikbmga2dqpcaireeyuculbogazdinryhi6d4qa".parse()?;
/// NodeRegistry::open(dir.path())?.revoke(node)?;
/// assert_eq!(NodeRegistry::open(dir.path())?.list()[0].standing, Standing::Revoked);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct NodeRegistry(Arc<Registry>);

#[derive(Debug)]
struct Registry {
    path: PathBuf,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    nodes: BTreeMap<NodeId, Entry>,
    stamp: Option<Stamp>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    standing: Standing,
    since: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    declined: Option<String>,
}

impl NodeRegistry {
    /// Opens the registry in a server's identity directory; one that is not there yet is empty.
    ///
    /// # Errors
    /// [`IdentityError::File`], [`IdentityError::Content`].
    pub fn open(dir: &Path) -> Result<Self, IdentityError> {
        let registry = Self(Arc::new(Registry { path: dir.join("nodes.json"), known: Mutex::default() }));
        registry.refresh()?;
        Ok(registry)
    }

    /// Every node that was ever admitted or revoked, sorted by its identity.
    pub fn list(&self) -> Vec<NodeRecord> {
        let record = |(node, entry): (&NodeId, &Entry)| NodeRecord {
            node: *node,
            standing: entry.standing,
            since: entry.since,
            declined: entry.declined.clone(),
        };
        self.lock().nodes.iter().map(record).collect()
    }

    /// Lets a node take part, also one that was revoked.
    ///
    /// # Errors
    /// [`IdentityError::File`], [`IdentityError::Content`].
    pub fn allow(&self, node: NodeId) -> Result<(), IdentityError> {
        self.set(node, Standing::Allowed)
    }

    /// Shuts a node out, its live connections included.
    ///
    /// # Errors
    /// [`IdentityError::File`], [`IdentityError::Content`].
    pub fn revoke(&self, node: NodeId) -> Result<(), IdentityError> {
        self.set(node, Standing::Revoked)
    }

    /// What the registry says of a node; `None` where it does not know it.
    pub(crate) fn standing(&self, node: NodeId) -> Option<Standing> {
        self.lock().nodes.get(&node).map(|entry| entry.standing)
    }

    /// Reads the file again where it changed.
    pub(crate) fn refresh(&self) -> Result<(), IdentityError> {
        let stamp = self.stamp()?;
        let mut known = self.lock();
        if stamp != known.stamp {
            *known = Known { nodes: self.read()?, stamp };
        }
        Ok(())
    }

    /// Why the node did not take part when it was last here.
    pub(crate) fn declined(&self, node: NodeId) -> Option<String> {
        self.lock().nodes.get(&node)?.declined.clone()
    }

    /// Keeps why a node does not take part, or that it does.
    pub(crate) fn note_declined(&self, node: NodeId, reason: Option<String>) -> Result<(), IdentityError> {
        self.change(|nodes, now| {
            let entry = nodes.entry(node).or_insert(Entry { standing: Standing::Allowed, since: now, declined: None });
            entry.declined = reason;
        })
    }

    fn set(&self, node: NodeId, standing: Standing) -> Result<(), IdentityError> {
        self.change(|nodes, now| {
            if nodes.get(&node).is_none_or(|entry| entry.standing != standing) {
                nodes.insert(node, Entry { standing, since: now, declined: None });
            }
        })
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<NodeId, Entry>, u64)) -> Result<(), IdentityError> {
        let path = &self.0.path;
        let lock_path = path.with_extension("lock");
        let lock = durable::lock_file(&lock_path).and_then(|file| file.lock().map(|()| file));
        // Held until the end: the server and a command may write at the same time.
        let _lock = lock.map_err(|e| IdentityError::file(&lock_path, e))?;
        let mut nodes = self.read()?;
        let before = nodes.clone();
        change(&mut nodes, SystemTime::UNIX_EPOCH.elapsed().map_or(0, |d| d.as_secs()));
        if nodes != before {
            let text = serde_json::to_vec_pretty(&nodes).map_err(|e| IdentityError::content(path, e))?;
            durable::replace(path, &text, Access::Owner).map_err(|e| IdentityError::file(path, e))?;
        }
        *self.lock() = Known { nodes, stamp: self.stamp()? };
        Ok(())
    }

    fn read(&self) -> Result<BTreeMap<NodeId, Entry>, IdentityError> {
        let path = &self.0.path;
        let bytes = durable::unless_missing(fs::read(path)).map_err(|e| IdentityError::file(path, e))?;
        if bytes.is_empty() {
            return Ok(BTreeMap::new());
        }
        serde_json::from_slice(&bytes).map_err(|e| IdentityError::content(path, e))
    }

    fn stamp(&self) -> Result<Option<Stamp>, IdentityError> {
        stamp(&self.0.path)
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Nothing panics while it holds the lock.
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::keys::PrivateKey;
    use super::*;

    #[test]
    fn one_process_sees_what_another_decided() {
        let dir = tempfile::tempdir().unwrap();
        let (server, command) = (NodeRegistry::open(dir.path()).unwrap(), NodeRegistry::open(dir.path()).unwrap());
        let (a, b) = (PrivateKey::generate().unwrap().node_id(), PrivateKey::generate().unwrap().node_id());
        server.allow(a).unwrap();
        command.allow(b).unwrap();
        command.revoke(a).unwrap();
        server.refresh().unwrap();
        assert_eq!(server.standing(a), Some(Standing::Revoked));
        assert_eq!(server.standing(b), Some(Standing::Allowed));
        assert_eq!(server.list(), command.list());
        server.allow(a).unwrap();
        assert_eq!(server.standing(a), Some(Standing::Allowed));
    }

    #[test]
    fn a_damaged_registry_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("nodes.json"), "{\"x\": 1}").unwrap();
        assert!(NodeRegistry::open(dir.path()).is_err());
    }
}
