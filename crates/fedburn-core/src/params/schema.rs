//! Where each tensor of a model lies in its flat parameter vector.

use std::collections::BTreeSet;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::SchemaError;

/// What an entry of a model is, so that a rule can treat weights and running statistics differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParamKind {
    /// Trained by gradients.
    Weight,
    /// A running statistic (batch normalisation's mean and variance): averaged by example count unless a rule says otherwise.
    Buffer,
}

/// One tensor of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParamEntry {
    /// Module path, for example `blocks.0.conv1.weight`.
    pub path: String,
    /// Shape as the module has it; burn's linear weights are `[inputs, outputs]`.
    pub shape: Vec<usize>,
    /// Index of the entry's first value in the flat vector.
    pub offset: usize,
    /// Weight or running statistic.
    pub kind: ParamKind,
}

impl ParamEntry {
    /// An entry whose offset [`ParamSchema::new`] fills in.
    pub fn new(path: impl Into<String>, shape: Vec<usize>, kind: ParamKind) -> Self {
        Self { path: path.into(), shape, offset: 0, kind }
    }

    /// Number of values of this tensor.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the tensor holds no value (one of its dimensions is zero).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The entry's place in the flat vector.
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.len()
    }
}

/// Whether the parameter at `path` is one of those that `layers` name, each with all that is below it.
pub fn is_below(path: &str, layers: &[String]) -> bool {
    let below =
        |layer: &String| path.strip_prefix(&**layer).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    layers.iter().any(below)
}

/// The order, names, shapes and kinds of a model's tensors; the order is that of module traversal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParamSchema {
    entries: Vec<ParamEntry>,
    num_values: usize,
    fingerprint: u64,
}

impl ParamSchema {
    /// Lays the entries out one after another.
    ///
    /// # Errors
    /// [`SchemaError::DuplicatePath`] where two entries share a path, [`SchemaError::TooLarge`] where the total
    /// number of values overflows `usize`.
    pub fn new(mut entries: Vec<ParamEntry>) -> Result<Self, SchemaError> {
        let mut offset = 0usize;
        let mut hash = Fnv::new();
        let mut paths = BTreeSet::new();
        for entry in &mut entries {
            let too_large = || SchemaError::TooLarge { path: entry.path.clone() };
            let len = entry.shape.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim)).ok_or_else(too_large)?;
            let next = offset.checked_add(len).ok_or_else(too_large)?;
            if !paths.insert(entry.path.clone()) {
                return Err(SchemaError::DuplicatePath { path: entry.path.clone() });
            }
            entry.offset = offset;
            offset = next;
            hash.write(entry.path.as_bytes());
            hash.write_u64(entry.shape.len() as u64);
            entry.shape.iter().for_each(|&dim| hash.write_u64(dim as u64));
            hash.write_u64(match entry.kind {
                ParamKind::Weight => 0,
                ParamKind::Buffer => 1,
            });
        }
        Ok(Self { entries, num_values: offset, fingerprint: hash.0 })
    }

    /// The tensors in flat order.
    pub fn entries(&self) -> &[ParamEntry] {
        &self.entries
    }

    /// Where weights lie in the flat vector, neighbours joined: everything but running statistics.
    pub fn weight_ranges(&self) -> Vec<Range<usize>> {
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for entry in self.entries.iter().filter(|e| e.kind == ParamKind::Weight && !e.is_empty()) {
            match ranges.last_mut() {
                Some(last) if last.end == entry.offset => last.end = entry.range().end,
                _ => ranges.push(entry.range()),
            }
        }
        ranges
    }

    /// Length of the flat vector.
    pub fn num_values(&self) -> usize {
        self.num_values
    }

    /// Number of trained values, running statistics left out.
    pub fn num_weights(&self) -> usize {
        self.entries.iter().filter(|e| e.kind == ParamKind::Weight).map(ParamEntry::len).sum()
    }

    /// Stable hash of paths, shapes and kinds: equal on every machine and in every version. Guards exchanges and files.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Bytes of one vector of this schema on the wire, four a value.
    pub fn num_bytes(&self) -> u64 {
        4 * self.num_values as u64
    }

    /// The entry with this path.
    pub fn entry(&self, path: &str) -> Option<&ParamEntry> {
        self.entries.iter().find(|e| e.path == path)
    }

    /// The entry that holds the flat value `index`.
    pub fn entry_at(&self, index: usize) -> Option<&ParamEntry> {
        self.entries.iter().find(|e| e.range().contains(&index))
    }

    /// Checks that `found` is this schema and names the first difference where it is not.
    ///
    /// # Errors
    /// [`SchemaError::Mismatch`].
    pub fn ensure_same(&self, found: &ParamSchema) -> Result<(), SchemaError> {
        if self.fingerprint == found.fingerprint && self.num_values == found.num_values {
            return Ok(());
        }
        let describe = |e: Option<&ParamEntry>| match e {
            Some(e) => format!("`{}` {:?}", e.path, e.shape),
            None => "nothing".to_owned(),
        };
        let mut index = 0;
        loop {
            let (a, b) = (self.entries.get(index), found.entries.get(index));
            if a != b || a.is_none() {
                return Err(SchemaError::Mismatch { index, expected: describe(a), found: describe(b) });
            }
            index += 1;
        }
    }
}

/// FNV-1a, 64 bits: the fingerprint must not depend on the standard library's seeded hasher.
struct Fnv(u64);

impl Fnv {
    fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    fn write(&mut self, bytes: &[u8]) {
        self.write_u64(bytes.len() as u64);
        bytes.iter().for_each(|&b| self.byte(b));
    }

    fn write_u64(&mut self, value: u64) {
        value.to_le_bytes().into_iter().for_each(|b| self.byte(b));
    }

    fn byte(&mut self, byte: u8) {
        self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, shape: &[usize]) -> ParamEntry {
        ParamEntry::new(path, shape.to_vec(), ParamKind::Weight)
    }

    #[test]
    fn offsets_follow_the_order() {
        let schema = ParamSchema::new(vec![entry("a", &[2, 3]), entry("b", &[]), entry("c", &[4])]).unwrap();
        let ranges: Vec<_> = schema.entries().iter().map(ParamEntry::range).collect();
        assert_eq!(ranges, [0..6, 6..7, 7..11]);
        assert_eq!(schema.num_values(), 11);
        assert_eq!(schema.entry_at(6).map(|e| e.path.as_str()), Some("b"));
        assert_eq!(schema.entry_at(11), None);
    }

    #[test]
    fn fingerprint_is_pinned_and_sees_every_part() {
        let base = ParamSchema::new(vec![entry("a", &[2, 3])]).unwrap();
        assert_eq!(base.fingerprint(), 0xadf9_4b12_48cd_163c, "the fingerprint guards files: it may never change");
        let buffer = ParamSchema::new(vec![ParamEntry::new("a", vec![2, 3], ParamKind::Buffer)]).unwrap();
        for other in [
            ParamSchema::new(vec![entry("b", &[2, 3])]).unwrap(),
            ParamSchema::new(vec![entry("a", &[3, 2])]).unwrap(),
            buffer,
        ] {
            assert_ne!(base.fingerprint(), other.fingerprint());
            assert!(base.ensure_same(&other).is_err());
        }
    }

    #[test]
    fn repeated_paths_and_overflow_are_refused() {
        assert!(matches!(
            ParamSchema::new(vec![entry("a", &[1]), entry("a", &[1])]),
            Err(SchemaError::DuplicatePath { .. })
        ));
        assert!(matches!(ParamSchema::new(vec![entry("a", &[usize::MAX, 2])]), Err(SchemaError::TooLarge { .. })));
    }

    #[test]
    fn a_mismatch_names_the_first_difference() {
        let a = ParamSchema::new(vec![entry("x", &[1]), entry("w", &[2])]).unwrap();
        let b = ParamSchema::new(vec![entry("x", &[1]), entry("w", &[3])]).unwrap();
        let message = a.ensure_same(&b).unwrap_err().to_string();
        assert!(message.contains("`w` [2]") && message.contains("`w` [3]"), "{message}");
    }
}
