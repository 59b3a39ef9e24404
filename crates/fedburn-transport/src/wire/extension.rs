//! What later minor versions add to a message.

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

use super::bounded::{InOrder, Octets, Sorted};
use super::limits::{MAX_EXTENSIONS, MAX_EXTENSIONS_LEN};

/// Additions to a message, by rising id. Who does not know an id leaves it out of account.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extensions(Vec<Extension>);

/// One addition to a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extension {
    /// What it is.
    pub id: u16,
    /// Its content.
    #[serde(with = "Octets::<MAX_EXTENSIONS_LEN>")]
    pub data: Bytes,
}

impl Extensions {
    /// Additions to a message. That they are in the order of their ids and within the limits is checked as they are
    /// sent.
    pub fn new(entries: Vec<Extension>) -> Self {
        Self(entries)
    }

    /// Adds one to a message.
    pub fn add(&mut self, extension: Extension) {
        let place = self.0.partition_point(|earlier| earlier.id < extension.id);
        self.0.insert(place, extension);
    }

    /// The addition with this id.
    pub fn find(&self, id: u16) -> Option<&Bytes> {
        self.0.iter().find(|extension| extension.id == id).map(|extension| &extension.data)
    }

    fn is_bounded(&self) -> bool {
        self.0.iter().map(|extension| extension.data.len()).sum::<usize>() <= MAX_EXTENSIONS_LEN
    }
}

impl InOrder for Extension {
    fn precedes(&self, next: &Self) -> bool {
        self.id < next.id
    }
}

impl Serialize for Extensions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if !self.is_bounded() {
            return Err(ser::Error::custom(format_args!("extensions of more than {MAX_EXTENSIONS_LEN} bytes")));
        }
        Sorted::<Extension, MAX_EXTENSIONS>::serialize(&self.0, serializer)
    }
}

impl<'de> Deserialize<'de> for Extensions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let extensions = Self(Sorted::<Extension, MAX_EXTENSIONS>::deserialize(deserializer)?);
        match extensions.is_bounded() {
            true => Ok(extensions),
            false => Err(de::Error::custom(format_args!("extensions of more than {MAX_EXTENSIONS_LEN} bytes"))),
        }
    }
}
