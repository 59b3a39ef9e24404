//! Chunks: the pieces in which blobs travel, each with a header that says where it belongs and what it hashes to.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::blob::Layout;
use super::limits::{CHUNK_HEADER_LEN, MAX_CHUNK_LEN};

/// A BLAKE3 hash, 256 bits.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Hash(pub [u8; 32]);

/// A server's request to one client, 128 bits: whatever is repeated under the same number counts once.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TaskId(pub [u8; 16]);

/// What a chunk belongs to: the task of an upload, or the number that the asking side gave a download.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TransferId(pub [u8; 16]);

/// How values are written in a payload. The numbers are part of the protocol and may never change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
#[repr(u8)]
pub enum Codec {
    /// Bytes of any meaning, one an element.
    #[default]
    Opaque = 0,
    /// IEEE 754 single precision, little-endian, four bytes an element.
    F32 = 1,
}

impl Codec {
    /// Bytes of one element.
    pub fn element_len(self) -> u32 {
        match self {
            Self::Opaque => 1,
            Self::F32 => 4,
        }
    }

    fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Opaque),
            1 => Some(Self::F32),
            _ => None,
        }
    }
}

/// What precedes a chunk's payload on its stream, 64 bytes, integers little-endian:
/// `transfer 16 | index u32 | codec u8 | zero 3 | len u32 | elements u32 | hash 32`.
///
/// The hash covers the bytes from `index` to `elements` and the payload. The transfer is left out, so that a blob has
/// the same hashes whoever it is sent to; [`ChunkHeader::expect`] compares it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkHeader {
    /// What the chunk belongs to.
    pub transfer: TransferId,
    /// Its number in the blob, from 0.
    pub index: u32,
    /// How its values are written.
    pub codec: Codec,
    /// Bytes of payload that follow, `1..=`[`MAX_CHUNK_LEN`].
    pub len: u32,
    /// Number of values in the payload.
    pub elements: u32,
    /// BLAKE3 of the four fields above and the payload.
    pub hash: Hash,
}

/// A chunk that is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ChunkError {
    /// The codec's number is unknown.
    #[error("unknown chunk codec {codec}")]
    UnknownCodec {
        /// The number.
        codec: u8,
    },
    /// The three bytes after the codec are not zero.
    #[error("padding in a chunk header is not zero")]
    Padding,
    /// Lengths that no chunk has.
    #[error(
        "chunk {index} says {len} bytes and {elements} elements, which do not go together or are beyond the limits"
    )]
    Length {
        /// The chunk.
        index: u32,
        /// Bytes that it says.
        len: u32,
        /// Elements that it says.
        elements: u32,
    },
    /// The chunk is part of another transfer.
    #[error("chunk {index} is of transfer {found:?}, expected {expected:?}")]
    Transfer {
        /// The chunk.
        index: u32,
        /// The transfer under way.
        expected: TransferId,
        /// The transfer that it says.
        found: TransferId,
    },
    /// The blob has no such chunk, or one of another length or codec.
    #[error("chunk {index} of {len} bytes in {codec:?} does not fit a blob of {blob_len} bytes in {blob_codec:?}")]
    Misfit {
        /// The chunk.
        index: u32,
        /// Bytes that it says.
        len: u32,
        /// Codec that it says.
        codec: Codec,
        /// Bytes of the blob.
        blob_len: u64,
        /// Codec of the blob.
        blob_codec: Codec,
    },
    /// The payload is not as long as the header says.
    #[error("chunk {index} has {found} bytes, its header says {expected}")]
    Payload {
        /// The chunk.
        index: u32,
        /// Bytes that the header says.
        expected: u32,
        /// Bytes that came.
        found: usize,
    },
    /// Header or payload were changed on the way, or are not those of the manifest.
    #[error("chunk {index} hashes to {found:?}, expected {expected:?}")]
    Hash {
        /// The chunk.
        index: u32,
        /// The hash of header or manifest.
        expected: Hash,
        /// The hash of what came.
        found: Hash,
    },
}

impl ChunkHeader {
    /// The header of one chunk of a blob.
    ///
    /// # Errors
    /// [`ChunkError::Payload`] or [`ChunkError::Misfit`] where `payload` is not as long as that chunk is.
    pub fn of(transfer: TransferId, layout: &Layout, index: u32, payload: &[u8]) -> Result<Self, ChunkError> {
        let len = layout.chunk_len(index).unwrap_or_default();
        let mut header = Self {
            transfer,
            index,
            codec: layout.codec(),
            len,
            elements: len / layout.codec().element_len(),
            hash: Hash::default(),
        };
        header.expect(transfer, layout)?;
        header.ensure_len(&[payload])?;
        header.hash = header.hash_of(payload);
        Ok(header)
    }

    /// The header of one chunk of a blob whose hash is known; `None` where there is no such chunk.
    pub fn with_hash(transfer: TransferId, layout: &Layout, index: u32, hash: Hash) -> Option<Self> {
        let (codec, len) = (layout.codec(), layout.chunk_len(index)?);
        Some(Self { transfer, index, codec, len, elements: len / codec.element_len(), hash })
    }

    /// The 64 bytes that go before the payload.
    pub fn encode(&self) -> [u8; CHUNK_HEADER_LEN] {
        let mut bytes = [0; CHUNK_HEADER_LEN];
        bytes[..16].copy_from_slice(&self.transfer.0);
        bytes[16..32].copy_from_slice(&self.hashed_fields());
        bytes[32..].copy_from_slice(&self.hash.0);
        bytes
    }

    /// Reads a header. Nothing of the payload has to be there yet.
    ///
    /// # Errors
    /// [`ChunkError::UnknownCodec`], [`ChunkError::Padding`], [`ChunkError::Length`].
    pub fn decode(bytes: &[u8; CHUNK_HEADER_LEN]) -> Result<Self, ChunkError> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let mut header = Self {
            transfer: TransferId::default(),
            index: word(16),
            codec: Codec::from_number(bytes[20]).ok_or(ChunkError::UnknownCodec { codec: bytes[20] })?,
            len: word(24),
            elements: word(28),
            hash: Hash::default(),
        };
        header.transfer.0.copy_from_slice(&bytes[..16]);
        header.hash.0.copy_from_slice(&bytes[32..]);
        if bytes[21..24] != [0; 3] {
            return Err(ChunkError::Padding);
        }
        let fits = (1..=MAX_CHUNK_LEN).contains(&header.len)
            && u64::from(header.elements) * u64::from(header.codec.element_len()) == u64::from(header.len);
        match fits {
            true => Ok(header),
            false => Err(ChunkError::Length { index: header.index, len: header.len, elements: header.elements }),
        }
    }

    /// Checks that this is a chunk of the blob under way, with exactly the length that the blob gives it: before a byte
    /// of payload is read.
    ///
    /// # Errors
    /// [`ChunkError::Transfer`], [`ChunkError::Misfit`].
    pub fn expect(&self, transfer: TransferId, layout: &Layout) -> Result<(), ChunkError> {
        if self.transfer != transfer {
            return Err(ChunkError::Transfer { index: self.index, expected: transfer, found: self.transfer });
        }
        if self.codec != layout.codec() || layout.chunk_len(self.index) != Some(self.len) {
            return Err(ChunkError::Misfit {
                index: self.index,
                len: self.len,
                codec: self.codec,
                blob_len: layout.len(),
                blob_codec: layout.codec(),
            });
        }
        Ok(())
    }

    /// Checks the payload against the header.
    ///
    /// # Errors
    /// [`ChunkError::Payload`], [`ChunkError::Hash`].
    pub fn verify(&self, payload: &[u8]) -> Result<(), ChunkError> {
        self.ensure_len(&[payload])?;
        self.ensure_hash(self.hash_of(payload))
    }

    /// Copies a payload that came in parts, cut anywhere, into its place, whose pieces are in order, and checks it there.
    ///
    /// # Errors
    /// [`ChunkError::Payload`], also where the place is not as large as the payload; nothing is written then.
    /// [`ChunkError::Hash`]: what is in the place is not the chunk.
    pub fn verify_into<P: AsRef<[u8]>>(&self, parts: &[P], mut place: Vec<&mut [u8]>) -> Result<(), ChunkError> {
        self.ensure_len(parts)?;
        self.ensure_len(&place)?;
        let (mut hasher, mut parts) = (blake3::Hasher::new(), parts.iter().map(AsRef::as_ref));
        hasher.update(&self.hashed_fields());
        let (mut rest, mut block): (&[u8], usize) = (&[], HASH_BLOCK - self.hashed_fields().len());
        for piece in &mut place {
            let mut piece = &mut piece[..];
            while !piece.is_empty() {
                // Packets are too small for the wide instructions; blocks of many that stay in the cache are not.
                let (run, later) = piece.split_at_mut(piece.len().min(block));
                let mut at = 0;
                while at < run.len() {
                    if rest.is_empty() {
                        // There are as many bytes as were counted.
                        rest = parts.next().unwrap_or_default();
                        continue;
                    }
                    let (here, behind) = rest.split_at(rest.len().min(run.len() - at));
                    run[at..at + here.len()].copy_from_slice(here);
                    (rest, at) = (behind, at + here.len());
                }
                hasher.update(run);
                (piece, block) = (later, HASH_BLOCK);
            }
        }
        self.ensure_hash(Hash(*hasher.finalize().as_bytes()))
    }

    fn ensure_len<P: AsRef<[u8]>>(&self, parts: &[P]) -> Result<(), ChunkError> {
        let found: usize = parts.iter().map(|part| part.as_ref().len()).sum();
        match found as u64 == u64::from(self.len) {
            true => Ok(()),
            false => Err(ChunkError::Payload { index: self.index, expected: self.len, found }),
        }
    }

    fn ensure_hash(&self, found: Hash) -> Result<(), ChunkError> {
        match found == self.hash {
            true => Ok(()),
            false => Err(ChunkError::Hash { index: self.index, expected: self.hash, found }),
        }
    }

    fn hashed_fields(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&self.index.to_le_bytes());
        bytes[4] = self.codec as u8;
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..].copy_from_slice(&self.elements.to_le_bytes());
        bytes
    }

    fn hash_of(&self, payload: &[u8]) -> Hash {
        Hash(*blake3::Hasher::new().update(&self.hashed_fields()).update(payload).finalize().as_bytes())
    }
}

impl From<TaskId> for TransferId {
    fn from(task: TaskId) -> Self {
        Self(task.0)
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

impl fmt::Debug for TransferId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        hex(&self.0, f)
    }
}

fn hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

/// Bytes that are hashed at once where a payload is in parts; a power of two, which the hash's tree is made of.
const HASH_BLOCK: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::super::blob::Manifest;
    use super::*;

    const TRANSFER: TransferId = TransferId([7; 16]);

    /// Everything that a receiver checks, in its order.
    fn accept(bytes: &[u8], manifest: &Manifest) -> Result<u32, ChunkError> {
        let (header, payload) = bytes.split_first_chunk().unwrap();
        let header = ChunkHeader::decode(header)?;
        header.expect(TRANSFER, manifest.layout())?;
        header.verify(payload)?;
        Ok(header.index)
    }

    fn sent(manifest: &Manifest, index: u32, blob: &[u8]) -> Vec<u8> {
        let payload = manifest.layout().slice(index, blob).unwrap();
        let header = ChunkHeader::of(TRANSFER, manifest.layout(), index, payload).unwrap();
        assert_eq!(manifest.header(TRANSFER, index), Some(header));
        [&header.encode()[..], payload].concat()
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let blob: Vec<u8> = (0..100).collect();
        for codec in [Codec::Opaque, Codec::F32] {
            let manifest = Manifest::of(codec, &blob, 40).unwrap();
            for index in 0..3 {
                let good = sent(&manifest, index, &blob);
                assert_eq!(accept(&good, &manifest), Ok(index));
                for bit in 0..8 * good.len() {
                    let mut bad = good.clone();
                    bad[bit / 8] ^= 1 << (bit % 8);
                    assert!(accept(&bad, &manifest).is_err(), "{codec:?}, chunk {index}, bit {bit}");
                }
            }
        }
    }

    #[test]
    fn a_payload_that_is_cut_or_goes_on_is_noticed() {
        let blob: Vec<u8> = (0..100).collect();
        let manifest = Manifest::of(Codec::Opaque, &blob, 40).unwrap();
        let good = sent(&manifest, 2, &blob);
        let longer = [&good[..], &[0]].concat();
        for bad in (CHUNK_HEADER_LEN..good.len()).map(|cut| &good[..cut]).chain([&longer[..]]) {
            assert!(matches!(accept(bad, &manifest), Err(ChunkError::Payload { index: 2, expected: 20, .. })));
        }
    }

    #[test]
    fn a_good_chunk_of_another_transfer_blob_or_place_is_refused() {
        let (blob, other): (Vec<u8>, Vec<u8>) = ((0..100).collect(), (1..101).collect());
        let manifest = Manifest::of(Codec::Opaque, &blob, 40).unwrap();
        let other = Manifest::of(Codec::Opaque, &other, 40).unwrap();
        let header = other.header(TRANSFER, 0).unwrap();
        assert_eq!(manifest.expect(TRANSFER, &manifest.header(TRANSFER, 0).unwrap()), Ok(()));
        assert!(matches!(manifest.expect(TRANSFER, &header), Err(ChunkError::Hash { index: 0, .. })));
        let foreign = ChunkHeader { transfer: TransferId([8; 16]), ..header };
        assert!(matches!(manifest.expect(TRANSFER, &foreign), Err(ChunkError::Transfer { .. })));
        // Chunks 0 and 2 have different lengths, and there is no chunk 3.
        for index in [2, 3, u32::MAX] {
            let moved = ChunkHeader { index, ..header };
            assert!(matches!(manifest.expect(TRANSFER, &moved), Err(ChunkError::Misfit { .. })), "{index}");
        }
    }

    #[test]
    fn the_same_bytes_have_other_hashes_elsewhere() {
        let blob = [0; 80];
        let hashes = |codec| Manifest::of(codec, &blob, 40).unwrap().hashes().to_vec();
        let (opaque, floats) = (hashes(Codec::Opaque), hashes(Codec::F32));
        assert_ne!(opaque[0], opaque[1], "place");
        assert_ne!(opaque[0], floats[0], "codec");
    }

    #[test]
    fn headers_that_no_chunk_has_are_refused() {
        let manifest = Manifest::of(Codec::F32, &[0; 8], 8).unwrap();
        let good = manifest.header(TRANSFER, 0).unwrap().encode();
        let with = |at: usize, bytes: &[u8]| {
            let mut bad = good;
            bad[at..at + bytes.len()].copy_from_slice(bytes);
            ChunkHeader::decode(&bad)
        };
        assert_eq!(with(20, &[2]), Err(ChunkError::UnknownCodec { codec: 2 }));
        assert_eq!(with(22, &[1]), Err(ChunkError::Padding));
        for (len, elements) in [(0, 0), (8, 3), (MAX_CHUNK_LEN + 4, MAX_CHUNK_LEN / 4 + 1), (4, 1 << 30 | 1)] {
            let bytes = [len.to_le_bytes(), elements.to_le_bytes()].concat();
            assert_eq!(with(24, &bytes), Err(ChunkError::Length { index: 0, len, elements }));
        }
    }
}
