//! Blobs: models, side information and the plan, on their way to a client.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::wire::bitmap::ChunkRanges;
use crate::wire::blob::{BlobError, BlobRef, Manifest};
use crate::wire::bounded::Octets;
use crate::wire::chunk::{Hash, TransferId};
use crate::wire::extension::Extensions;
use crate::wire::limits::MAX_INLINE;

/// Asks how a blob is cut, and for the blob itself where it is small.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetManifest {
    /// The blob.
    pub root: Hash,
    /// Additions.
    pub ext: Extensions,
}

/// How a blob is cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobManifest {
    /// Layout and hashes.
    pub manifest: Manifest,
    /// The blob itself, or nothing where it is to be asked for in chunks.
    #[serde(with = "Octets::<MAX_INLINE>")]
    pub inline: Bytes,
    /// Additions.
    pub ext: Extensions,
}

impl BlobManifest {
    /// The manifest of a blob, and the blob with it where it has at most `inline_len` bytes.
    pub fn new(manifest: Manifest, blob: &Bytes, inline_len: usize) -> Self {
        let inline = if blob.len() <= inline_len { blob.clone() } else { Bytes::new() };
        Self { manifest, inline, ext: Extensions::default() }
    }

    /// Checks everything against the blob that was asked for and takes the blob out where it came along.
    ///
    /// # Errors
    /// [`BlobError::Foreign`], [`BlobError::Chunk`].
    pub fn verify(&self, blob: &BlobRef) -> Result<Option<Bytes>, BlobError> {
        self.manifest.verify(blob)?;
        if self.inline.is_empty() && blob.len > 0 {
            return Ok(None);
        }
        let layout = self.manifest.layout();
        for header in (0..layout.num_chunks()).filter_map(|index| self.manifest.header(TransferId::default(), index)) {
            header.verify(layout.slice(header.index, &self.inline)?)?;
        }
        match self.inline.len() as u64 == blob.len {
            true => Ok(Some(self.inline.clone())),
            false => {
                Err(BlobError::Foreign { expected: *blob, found: BlobRef { len: self.inline.len() as u64, ..*blob } })
            }
        }
    }
}

/// Asks for chunks of a blob, each on a stream of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetChunks {
    /// The blob.
    pub root: Hash,
    /// Which chunks.
    pub ranges: ChunkRanges,
    /// What their headers are to carry: a number that this client uses for nothing else under way.
    pub transfer: TransferId,
    /// Additions.
    pub ext: Extensions,
}

/// The chunks that were asked for will come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunksComing {
    /// How many.
    pub chunks: u32,
    /// Additions.
    pub ext: Extensions,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::chunk::Codec;

    fn sample() -> (BlobManifest, BlobRef) {
        let blob = Bytes::from_static(b"a plan of a few words");
        let manifest = Manifest::of(Codec::Opaque, &blob, 8).unwrap();
        let name = manifest.blob();
        (BlobManifest::new(manifest, &blob, 64), name)
    }

    #[test]
    fn a_small_blob_comes_along_and_a_large_one_does_not() {
        let (answer, name) = sample();
        assert_eq!(answer.verify(&name).unwrap().unwrap(), &b"a plan of a few words"[..]);
        let without = BlobManifest::new(answer.manifest.clone(), &answer.inline, 20);
        assert_eq!(without.verify(&name), Ok(None));
    }

    #[test]
    fn an_empty_blob_is_there_at_once() {
        let manifest = Manifest::of(Codec::F32, &[], 8).unwrap();
        let name = manifest.blob();
        assert_eq!(BlobManifest::new(manifest, &Bytes::new(), 0).verify(&name), Ok(Some(Bytes::new())));
    }

    #[test]
    fn another_blob_in_its_place_is_noticed() {
        let (answer, name) = sample();
        for at in 0..answer.inline.len() {
            let mut bytes = answer.inline.to_vec();
            bytes[at] ^= 1;
            let changed = BlobManifest { inline: bytes.into(), ..answer.clone() };
            assert!(matches!(changed.verify(&name), Err(BlobError::Chunk { .. })), "byte {at}");
        }
        let cut = BlobManifest { inline: answer.inline.slice(..20), ..answer.clone() };
        assert!(cut.verify(&name).is_err());
        let other = BlobRef { root: Hash([1; 32]), ..name };
        assert!(matches!(answer.verify(&other), Err(BlobError::Foreign { .. })));
        let empty = BlobManifest::new(Manifest::of(Codec::Opaque, &[], 8).unwrap(), &Bytes::from_static(b"x"), 64);
        assert!(empty.verify(&empty.manifest.blob()).is_err());
    }
}
