//! Which client has how much memory.

use std::fmt;

use fedburn_core::ClientId;
use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde::ser::{Serialize, Serializer};

use super::Bytes;
use super::machine::available;

/// The memory of clients: `"64 MiB"` for each, `["16 MiB", "64 MiB"]` for groups of clients,
/// `{ shares = [0.25, 0.5, 1.0] }` for groups whose budgets are shares of what training the whole model takes, or
/// `"machine"` for what the machine of each has to give.
///
/// Groups are as large as each other: client `i` of `N` is in group `floor(G i / N)` of `G`.
#[derive(Clone, Debug, PartialEq)]
pub enum MemoryConfig {
    /// The same for each client.
    Same(Bytes),
    /// What the client's machine could give without swapping when its process first asked; nothing where the machine does
    /// not tell, which only Linux does. Two runs may differ.
    Machine,
    /// One budget a group.
    Groups(Vec<Bytes>),
    /// One share a group, above 0.
    Shares(Vec<f64>),
}

impl MemoryConfig {
    /// Number of groups.
    pub fn groups(&self) -> usize {
        match self {
            Self::Same(_) | Self::Machine => 1,
            Self::Groups(budgets) => budgets.len(),
            Self::Shares(shares) => shares.len(),
        }
    }

    /// The group of `client`, one of `clients`.
    pub fn group(&self, client: ClientId, clients: usize) -> usize {
        group_of(self.groups(), client, clients)
    }

    /// The groups that so many clients are in, ascending: all, unless there are fewer clients than groups.
    pub fn groups_of(&self, clients: usize) -> impl Iterator<Item = usize> {
        let count = clients.min(self.groups());
        (0..count as u64).map(move |client| self.group(ClientId(client), count))
    }

    /// The budget of a group; nothing where there is no such group. `whole` is what training the whole model takes.
    pub fn budget(&self, group: usize, whole: Bytes) -> Bytes {
        match self {
            Self::Same(budget) => *budget,
            Self::Machine => available(),
            Self::Groups(budgets) => budgets.get(group).copied().unwrap_or_default(),
            // Casts of floats saturate.
            Self::Shares(shares) => Bytes(shares.get(group).map_or(0, |share| (share * whole.0 as f64) as u64)),
        }
    }

    /// Whether there is a group, and each has something.
    pub(crate) fn is_possible(&self) -> bool {
        self.groups() > 0
            && match self {
                Self::Same(_) | Self::Machine | Self::Groups(_) => true,
                Self::Shares(shares) => shares.iter().all(|share| *share > 0.0 && share.is_finite()),
            }
    }
}

/// The group of `client`, one of `clients`, where there are so many as large as each other: `floor(G i / N)`.
pub(crate) fn group_of(groups: usize, client: ClientId, clients: usize) -> usize {
    let group = client.0 as u128 * groups as u128 / clients.max(1) as u128;
    usize::try_from(group).unwrap_or(usize::MAX).min(groups.saturating_sub(1))
}

/// The text of [`MemoryConfig::Machine`].
const MACHINE: &str = "machine";

/// The table of [`MemoryConfig::Shares`].
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Shares {
    shares: Vec<f64>,
}

impl Serialize for MemoryConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Same(budget) => budget.serialize(serializer),
            Self::Machine => serializer.serialize_str(MACHINE),
            Self::Groups(budgets) => budgets.serialize(serializer),
            Self::Shares(shares) => Shares { shares: shares.clone() }.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for MemoryConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyForm)
    }
}

/// By hand, since an untagged enum could not say what is wrong with an amount.
struct AnyForm;

impl<'de> Visitor<'de> for AnyForm {
    type Value = MemoryConfig;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"64 MiB\", \"machine\", a list of such amounts, or { shares = [0.25, 0.5, 1.0] }")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<MemoryConfig, E> {
        match text {
            MACHINE => Ok(MemoryConfig::Machine),
            amount => amount.parse().map(MemoryConfig::Same).map_err(E::custom),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<MemoryConfig, A::Error> {
        Vec::deserialize(SeqAccessDeserializer::new(list)).map(MemoryConfig::Groups)
    }

    fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<MemoryConfig, A::Error> {
        Shares::deserialize(MapAccessDeserializer::new(table)).map(|table| MemoryConfig::Shares(table.shares))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[derive(Debug, serde::Serialize, serde::Deserialize)]
    struct File {
        memory: MemoryConfig,
    }

    #[test]
    fn all_forms_are_read_and_written() {
        for (text, expected) in [
            ("'64 MiB'", MemoryConfig::Same(Bytes(64 << 20))),
            ("'machine'", MemoryConfig::Machine),
            ("['1 KiB', '3 B']", MemoryConfig::Groups(vec![Bytes(1024), Bytes(3)])),
            ("{ shares = [0.25, 1.0] }", MemoryConfig::Shares(vec![0.25, 1.0])),
        ] {
            let file: File = toml::from_str(&format!("memory = {text}")).unwrap();
            assert_eq!(file.memory, expected);
            assert_eq!(toml::from_str::<File>(&toml::to_string(&file).unwrap()).unwrap().memory, expected);
        }
        for (wrong, word) in [
            ("64", "list of such amounts"),
            ("'64 MB'", "`64 MB` is no amount"),
            ("'machines'", "`machines` is no amount"),
            ("['64 MiB', '1']", "`1` is no amount"),
            ("{ share = [1.0] }", "unknown field `share`"),
        ] {
            let error = toml::from_str::<File>(&format!("memory = {wrong}")).unwrap_err().to_string();
            assert!(error.contains(word), "{wrong}: {error}");
        }
    }

    #[test]
    fn groups_are_as_large_as_each_other() {
        let memory = MemoryConfig::Shares(vec![0.25, 0.5, 1.0, 2.0]);
        let groups =
            |clients: usize| (0..clients as u64).map(|i| memory.group(ClientId(i), clients)).collect::<Vec<_>>();
        assert_eq!(groups(8), [0, 0, 1, 1, 2, 2, 3, 3]);
        assert_eq!(groups(5), [0, 0, 1, 2, 3]);
        assert_eq!(memory.group(ClientId(u64::MAX), 4), 3);
        for (clients, groups) in [(0, vec![]), (1, vec![0]), (3, vec![0, 1, 2]), (4, vec![0, 1, 2, 3])] {
            assert_eq!(memory.groups_of(clients).collect::<Vec<_>>(), groups, "{clients} clients");
        }
        for clients in 1..20 {
            let found: BTreeSet<usize> = (0..clients as u64).map(|i| memory.group(ClientId(i), clients)).collect();
            assert_eq!(memory.groups_of(clients).collect::<BTreeSet<_>>(), found, "{clients} clients");
        }
        let budgets: Vec<u64> = (0..4).map(|group| memory.budget(group, Bytes(1000)).0).collect();
        assert_eq!(budgets, [250, 500, 1000, 2000]);
        assert!(!MemoryConfig::Shares(vec![0.5, 0.0]).is_possible() && !MemoryConfig::Groups(vec![]).is_possible());
    }
}
