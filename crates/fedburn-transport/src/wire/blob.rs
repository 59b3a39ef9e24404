//! Blobs: byte strings known by their hash, cut into chunks of one length.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::bounded::List;
use super::chunk::{ChunkError, ChunkHeader, Codec, Hash, TransferId};
use super::limits::{MAX_BLOB_LEN, MAX_CHUNK_LEN, MAX_CHUNKS};

/// A blob by name: who has a blob of this root has the right one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobRef {
    /// BLAKE3 over the hashes of the chunks, in their order.
    pub root: Hash,
    /// Bytes.
    pub len: u64,
    /// How its values are written.
    pub codec: Codec,
}

/// How a blob is cut: every chunk but the last is `chunk_len` bytes long, the last is not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Cut", into = "Cut")]
pub struct Layout {
    codec: Codec,
    len: u64,
    chunk_len: u32,
}

/// A blob's layout and the hashes of its chunks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Listed", into = "Listed")]
pub struct Manifest {
    layout: Layout,
    hashes: Vec<Hash>,
}

/// A blob that cannot be, or is not the one meant.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BlobError {
    /// The blob is beyond the limits.
    #[error("a blob of {len} bytes in chunks of {chunk_len}: at most {MAX_BLOB_LEN} bytes in {MAX_CHUNKS} chunks")]
    TooLarge {
        /// Its bytes, saturated.
        len: u64,
        /// Bytes of a chunk.
        chunk_len: u32,
    },
    /// Chunks of this length are not allowed.
    #[error("chunks of {chunk_len} bytes: expected a multiple of {element} from {element} to {MAX_CHUNK_LEN}")]
    ChunkLen {
        /// Bytes of a chunk.
        chunk_len: u32,
        /// Bytes of an element.
        element: u32,
    },
    /// The last element is cut off.
    #[error("{len} bytes are not a whole number of elements of {element} bytes")]
    CutElement {
        /// Bytes of the blob.
        len: u64,
        /// Bytes of an element.
        element: u32,
    },
    /// A manifest has too few or too many hashes.
    #[error("{found} chunk hashes for a blob of {expected} chunks")]
    Hashes {
        /// Chunks of the blob.
        expected: u32,
        /// Hashes of the manifest.
        found: usize,
    },
    /// The manifest is of another blob.
    #[error("manifest of blob {found:?}, expected {expected:?}")]
    Foreign {
        /// The blob that was asked for.
        expected: BlobRef,
        /// The blob that the manifest makes.
        found: BlobRef,
    },
    /// A chunk is not the blob's.
    #[error("{source}")]
    Chunk {
        /// What is wrong with it.
        #[from]
        source: ChunkError,
    },
    /// A payload is not as long as what it should hold.
    #[error("{found} bytes, expected {expected}")]
    Length {
        /// Bytes of what it should hold.
        expected: u64,
        /// Its bytes.
        found: usize,
    },
    /// Vectors that are not those of the payload.
    #[error("expected {expected_vectors} vectors of {expected_values} values, found {found}")]
    Vectors {
        /// Number of vectors.
        expected_vectors: usize,
        /// Length of each.
        expected_values: usize,
        /// What was found instead.
        found: String,
    },
}

impl Layout {
    /// The cut of `len` bytes into chunks of `chunk_len`.
    ///
    /// # Errors
    /// [`BlobError::ChunkLen`], [`BlobError::CutElement`], [`BlobError::TooLarge`].
    pub fn new(codec: Codec, len: u64, chunk_len: u32) -> Result<Self, BlobError> {
        let element = codec.element_len();
        if !(element..=MAX_CHUNK_LEN).contains(&chunk_len) || !chunk_len.is_multiple_of(element) {
            return Err(BlobError::ChunkLen { chunk_len, element });
        }
        if !len.is_multiple_of(u64::from(element)) {
            return Err(BlobError::CutElement { len, element });
        }
        if len > MAX_BLOB_LEN || len.div_ceil(u64::from(chunk_len)) > u64::from(MAX_CHUNKS) {
            return Err(BlobError::TooLarge { len, chunk_len });
        }
        Ok(Self { codec, len, chunk_len })
    }

    /// How values are written.
    pub fn codec(&self) -> Codec {
        self.codec
    }

    /// Bytes of the blob.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the blob has no byte, and so no chunk.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of chunks, at most [`MAX_CHUNKS`].
    pub fn num_chunks(&self) -> u32 {
        // Fits: the constructor bounds it.
        self.len.div_ceil(u64::from(self.chunk_len)) as u32
    }

    /// The bytes of chunk `index`; `None` where there is no such chunk.
    pub fn range(&self, index: u32) -> Option<Range<u64>> {
        let start = u64::from(index) * u64::from(self.chunk_len);
        (start < self.len).then(|| start..self.len.min(start + u64::from(self.chunk_len)))
    }

    /// Bytes of chunk `index`; `None` where there is no such chunk.
    pub fn chunk_len(&self, index: u32) -> Option<u32> {
        // Fits: a range is no longer than a chunk.
        self.range(index).map(|range| (range.end - range.start) as u32)
    }

    /// The payload of chunk `index` within the whole blob.
    ///
    /// # Errors
    /// [`ChunkError::Misfit`] where there is no such chunk or `blob` is not [`Layout::len`] bytes long.
    pub fn slice<'a>(&self, index: u32, blob: &'a [u8]) -> Result<&'a [u8], ChunkError> {
        let misfit = ChunkError::Misfit {
            index,
            len: 0,
            codec: self.codec,
            blob_len: blob.len() as u64,
            blob_codec: self.codec,
        };
        match self.range(index) {
            Some(range) if blob.len() as u64 == self.len => Ok(&blob[range.start as usize..range.end as usize]),
            _ => Err(misfit),
        }
    }
}

impl Manifest {
    /// Cuts and hashes a blob.
    ///
    /// # Errors
    /// As [`Layout::new`].
    pub fn of(codec: Codec, blob: &[u8], chunk_len: u32) -> Result<Self, BlobError> {
        let layout = Layout::new(codec, blob.len() as u64, chunk_len)?;
        let hash = |index| ChunkHeader::of(TransferId::default(), &layout, index, layout.slice(index, blob)?);
        let hashes = (0..layout.num_chunks()).map(|index| hash(index).map(|header| header.hash));
        Ok(Self { layout, hashes: hashes.collect::<Result<_, ChunkError>>()? })
    }

    /// A manifest of hashes that were taken one by one.
    ///
    /// # Errors
    /// [`BlobError::Hashes`] where there is not one for each chunk.
    pub fn new(layout: Layout, hashes: Vec<Hash>) -> Result<Self, BlobError> {
        match hashes.len() == layout.num_chunks() as usize {
            true => Ok(Self { layout, hashes }),
            false => Err(BlobError::Hashes { expected: layout.num_chunks(), found: hashes.len() }),
        }
    }

    /// How the blob is cut.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The chunks' hashes in their order.
    pub fn hashes(&self) -> &[Hash] {
        &self.hashes
    }

    /// The blob that this manifest makes.
    pub fn blob(&self) -> BlobRef {
        BlobRef { root: root_of(&self.hashes), len: self.layout.len, codec: self.layout.codec }
    }

    /// Checks that this is the manifest of `blob`.
    ///
    /// # Errors
    /// [`BlobError::Foreign`].
    pub fn verify(&self, blob: &BlobRef) -> Result<(), BlobError> {
        let found = self.blob();
        match found == *blob {
            true => Ok(()),
            false => Err(BlobError::Foreign { expected: *blob, found }),
        }
    }

    /// The header of chunk `index`, without hashing again; `None` where there is no such chunk.
    pub fn header(&self, transfer: TransferId, index: u32) -> Option<ChunkHeader> {
        ChunkHeader::with_hash(transfer, &self.layout, index, *self.hashes.get(index as usize)?)
    }

    /// Checks that a chunk whose header came is the blob's, before its payload is read.
    ///
    /// # Errors
    /// [`ChunkError::Transfer`], [`ChunkError::Misfit`], [`ChunkError::Hash`].
    pub fn expect(&self, transfer: TransferId, header: &ChunkHeader) -> Result<(), ChunkError> {
        header.expect(transfer, &self.layout)?;
        match self.hashes.get(header.index as usize) {
            Some(hash) if *hash == header.hash => Ok(()),
            hash => Err(ChunkError::Hash {
                index: header.index,
                expected: hash.copied().unwrap_or_default(),
                found: header.hash,
            }),
        }
    }
}

/// The root of a blob whose chunks have these hashes: BLAKE3 over them, one after another.
pub fn root_of(hashes: &[Hash]) -> Hash {
    let mut hasher = blake3::Hasher::new();
    hashes.iter().for_each(|hash| {
        hasher.update(&hash.0);
    });
    Hash(*hasher.finalize().as_bytes())
}

/// [`Layout`] as it travels.
#[derive(Serialize, Deserialize)]
struct Cut {
    codec: Codec,
    len: u64,
    chunk_len: u32,
}

impl TryFrom<Cut> for Layout {
    type Error = BlobError;

    fn try_from(cut: Cut) -> Result<Self, BlobError> {
        Self::new(cut.codec, cut.len, cut.chunk_len)
    }
}

impl From<Layout> for Cut {
    fn from(layout: Layout) -> Self {
        Self { codec: layout.codec, len: layout.len, chunk_len: layout.chunk_len }
    }
}

/// [`Manifest`] as it travels.
#[derive(Serialize, Deserialize)]
struct Listed {
    layout: Layout,
    #[serde(with = "List::<Hash, { MAX_CHUNKS as usize }>")]
    hashes: Vec<Hash>,
}

impl TryFrom<Listed> for Manifest {
    type Error = BlobError;

    fn try_from(listed: Listed) -> Result<Self, BlobError> {
        Self::new(listed.layout, listed.hashes)
    }
}

impl From<Manifest> for Listed {
    fn from(manifest: Manifest) -> Self {
        Self { layout: manifest.layout, hashes: manifest.hashes }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn chunks_make_up_the_blob_in_order(blob in prop::collection::vec(any::<u8>(), 0..500), chunk_len in 1u32..600) {
            let manifest = Manifest::of(Codec::Opaque, &blob, chunk_len).unwrap();
            let layout = manifest.layout();
            let chunks: Vec<&[u8]> = (0..layout.num_chunks()).map(|i| layout.slice(i, &blob).unwrap()).collect();
            prop_assert_eq!(chunks.concat(), blob.clone());
            prop_assert!(chunks.iter().rev().skip(1).all(|chunk| chunk.len() == chunk_len as usize));
            prop_assert!(chunks.last().is_none_or(|chunk| !chunk.is_empty()));
            prop_assert_eq!(layout.chunk_len(layout.num_chunks()), None);
            prop_assert_eq!(manifest.verify(&manifest.blob()), Ok(()));
        }

        #[test]
        fn any_change_of_a_blob_changes_its_root(
            blob in prop::collection::vec(any::<u8>(), 1..200),
            at: prop::sample::Index,
            flip in 1u8..,
        ) {
            let reference = Manifest::of(Codec::Opaque, &blob, 64).unwrap().blob();
            let mut changed = blob.clone();
            changed[at.index(blob.len())] ^= flip;
            let longer = [&blob[..], &[0]].concat();
            for other in [&changed[..], &longer, &blob[1..]] {
                let manifest = Manifest::of(Codec::Opaque, other, 64).unwrap();
                prop_assert_ne!(manifest.blob().root, reference.root);
                let is_foreign = matches!(manifest.verify(&reference), Err(BlobError::Foreign { .. }));
                prop_assert!(is_foreign);
            }
        }
    }

    #[test]
    fn the_root_is_the_hash_of_the_hashes() {
        let manifest = Manifest::of(Codec::Opaque, b"three chunks", 5).unwrap();
        let hashes: Vec<u8> = manifest.hashes().iter().flat_map(|hash| hash.0).collect();
        assert_eq!(hashes.len(), 3 * 32);
        assert_eq!(manifest.blob().root.0, *blake3::hash(&hashes).as_bytes());
        assert_eq!(root_of(&[]).0, *blake3::hash(b"").as_bytes());
    }

    #[test]
    fn layouts_beyond_the_limits_are_refused() {
        assert!(Layout::new(Codec::F32, MAX_BLOB_LEN, MAX_CHUNK_LEN).is_ok());
        for (len, chunk_len) in
            [(MAX_BLOB_LEN + 4, MAX_CHUNK_LEN), (4 * u64::from(MAX_CHUNKS) + 4, 4), (u64::MAX - 3, 4)]
        {
            assert_eq!(Layout::new(Codec::F32, len, chunk_len), Err(BlobError::TooLarge { len, chunk_len }));
        }
        for chunk_len in [0, 1, 6, MAX_CHUNK_LEN + 4] {
            assert_eq!(Layout::new(Codec::F32, 0, chunk_len), Err(BlobError::ChunkLen { chunk_len, element: 4 }));
        }
        assert_eq!(Layout::new(Codec::F32, 7, 8), Err(BlobError::CutElement { len: 7, element: 4 }));
    }

    #[test]
    fn a_manifest_without_a_hash_for_each_chunk_is_refused() {
        let manifest = Manifest::of(Codec::Opaque, &[0; 100], 40).unwrap();
        for hashes in [&manifest.hashes()[..2], &[Hash::default(); 4]] {
            let bytes = postcard::to_stdvec(&(manifest.layout(), hashes)).unwrap();
            assert!(postcard::from_bytes::<Manifest>(&bytes).is_err());
            let error = Manifest::new(*manifest.layout(), hashes.to_vec());
            assert_eq!(error, Err(BlobError::Hashes { expected: 3, found: hashes.len() }));
        }
    }
}
