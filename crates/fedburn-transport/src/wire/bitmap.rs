//! Which chunks are there, and which are still wanted.

use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::bounded::{InOrder, Octets, Sorted};
use super::limits::{MAX_CHUNKS, MAX_RANGES};

/// A set of the chunks of one blob.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Packed", into = "Packed")]
pub struct Bitmap {
    len: u32,
    /// Eight chunks a byte, the lowest number in the lowest bit; bits beyond `len` are zero.
    bytes: Vec<u8>,
}

/// Neighbouring chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkRange {
    /// The first.
    pub first: u32,
    /// How many, at least one.
    pub count: u32,
}

/// Chunks as ranges in rising order that neither touch nor overlap, at most [`MAX_RANGES`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Ranges", into = "Ranges")]
pub struct ChunkRanges(Vec<ChunkRange>);

/// A set of chunks that no blob has.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ChunkSetError {
    /// More chunks than a blob may have.
    #[error("{len} chunks, at most {MAX_CHUNKS}")]
    TooMany {
        /// The number.
        len: u32,
    },
    /// The bytes of a bitmap are not as many as its length says, or a bit beyond it is set.
    #[error("{bytes} bytes do not hold exactly {len} bits")]
    Packing {
        /// Bits of the bitmap.
        len: u32,
        /// Bytes that came.
        bytes: usize,
    },
    /// A range is empty, touches the one before it, or ends beyond the last chunk.
    #[error("range of {count} chunks from {first} is empty, out of order or beyond chunk {chunks}")]
    Range {
        /// Its first chunk.
        first: u32,
        /// Its number of chunks.
        count: u32,
        /// Chunks of the blob, or the most that one may have.
        chunks: u32,
    },
}

impl Bitmap {
    /// None of `len` chunks.
    ///
    /// # Errors
    /// [`ChunkSetError::TooMany`].
    pub fn new(len: u32) -> Result<Self, ChunkSetError> {
        match len <= MAX_CHUNKS {
            true => Ok(Self { len, bytes: vec![0; len.div_ceil(8) as usize] }),
            false => Err(ChunkSetError::TooMany { len }),
        }
    }

    /// Number of chunks that can be in the set.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there is no chunk that could be in the set.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether chunk `index` is in the set.
    pub fn contains(&self, index: u32) -> bool {
        index < self.len && self.bytes[index as usize / 8] & (1 << (index % 8)) != 0
    }

    /// Adds chunk `index`; `true` where it was not there and can be.
    pub fn insert(&mut self, index: u32) -> bool {
        let new = index < self.len && !self.contains(index);
        if new {
            self.bytes[index as usize / 8] |= 1 << (index % 8);
        }
        new
    }

    /// Number of chunks in the set.
    pub fn count(&self) -> u32 {
        self.bytes.iter().map(|byte| byte.count_ones()).sum()
    }

    /// Whether every chunk is in the set.
    pub fn is_full(&self) -> bool {
        self.count() == self.len
    }

    /// The chunks that are not in the set, in rising order.
    pub fn missing(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.len).filter(|&index| !self.contains(index))
    }

    /// The chunks that are not in the set as ranges, the first [`MAX_RANGES`] of them.
    pub fn missing_ranges(&self) -> ChunkRanges {
        let mut ranges: Vec<ChunkRange> = Vec::new();
        for index in self.missing() {
            let full = ranges.len() == MAX_RANGES;
            match ranges.last_mut() {
                Some(last) if last.end() == u64::from(index) => last.count += 1,
                _ if full => break,
                _ => ranges.push(ChunkRange { first: index, count: 1 }),
            }
        }
        ChunkRanges(ranges)
    }
}

impl fmt::Debug for Bitmap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bitmap({} of {})", self.count(), self.len)
    }
}

impl ChunkRange {
    /// The number after the last chunk's.
    fn end(self) -> u64 {
        u64::from(self.first) + u64::from(self.count)
    }
}

impl InOrder for ChunkRange {
    fn precedes(&self, next: &Self) -> bool {
        self.end() < u64::from(next.first)
    }
}

impl ChunkRanges {
    /// Ranges in rising order that neither touch nor overlap.
    ///
    /// # Errors
    /// [`ChunkSetError::Range`], [`ChunkSetError::TooMany`] where there are more than [`MAX_RANGES`].
    pub fn new(ranges: Vec<ChunkRange>) -> Result<Self, ChunkSetError> {
        if ranges.len() > MAX_RANGES {
            return Err(ChunkSetError::TooMany { len: ranges.len() as u32 });
        }
        let ranges = Self(ranges);
        ranges.within(MAX_CHUNKS)?;
        match ranges.0.windows(2).find(|pair| !pair[0].precedes(&pair[1])) {
            None => Ok(ranges),
            Some(pair) => Err(ChunkSetError::Range { first: pair[1].first, count: pair[1].count, chunks: MAX_CHUNKS }),
        }
    }

    /// Checks the ranges against a blob of `chunks` chunks.
    ///
    /// # Errors
    /// [`ChunkSetError::Range`].
    pub fn within(&self, chunks: u32) -> Result<(), ChunkSetError> {
        match self.0.iter().find(|range| range.count == 0 || range.end() > u64::from(chunks)) {
            None => Ok(()),
            Some(range) => Err(ChunkSetError::Range { first: range.first, count: range.count, chunks }),
        }
    }

    /// The ranges, in rising order.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u32>> + '_ {
        // Cannot overflow: the constructors bound the end by `MAX_CHUNKS`.
        self.0.iter().map(|range| range.first..range.first + range.count)
    }

    /// The chunks, in rising order.
    pub fn indices(&self) -> impl Iterator<Item = u32> + '_ {
        self.ranges().flatten()
    }

    /// Whether no chunk is meant.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// [`Bitmap`] as it travels.
#[derive(Serialize, Deserialize)]
struct Packed {
    len: u32,
    #[serde(with = "Octets::<{ MAX_CHUNKS as usize / 8 }>")]
    bytes: Bytes,
}

impl TryFrom<Packed> for Bitmap {
    type Error = ChunkSetError;

    fn try_from(Packed { len, bytes }: Packed) -> Result<Self, ChunkSetError> {
        if len > MAX_CHUNKS {
            return Err(ChunkSetError::TooMany { len });
        }
        let spare = len.div_ceil(8) * 8 - len;
        let clean = bytes.last().is_none_or(|last| last.leading_zeros() >= spare);
        match bytes.len() == len.div_ceil(8) as usize && clean {
            true => Ok(Self { len, bytes: bytes.into() }),
            false => Err(ChunkSetError::Packing { len, bytes: bytes.len() }),
        }
    }
}

impl From<Bitmap> for Packed {
    fn from(bitmap: Bitmap) -> Self {
        Self { len: bitmap.len, bytes: bitmap.bytes.into() }
    }
}

/// [`ChunkRanges`] as they travel.
#[derive(Serialize, Deserialize)]
struct Ranges(#[serde(with = "Sorted::<ChunkRange, MAX_RANGES>")] Vec<ChunkRange>);

impl TryFrom<Ranges> for ChunkRanges {
    type Error = ChunkSetError;

    fn try_from(Ranges(ranges): Ranges) -> Result<Self, ChunkSetError> {
        Self::new(ranges)
    }
}

impl From<ChunkRanges> for Ranges {
    fn from(ranges: ChunkRanges) -> Self {
        Self(ranges.0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn of(len: u32, chunks: &BTreeSet<u32>) -> Bitmap {
        let mut bitmap = Bitmap::new(len).unwrap();
        chunks.iter().for_each(|&index| assert_eq!(bitmap.insert(index), index < len));
        bitmap
    }

    fn packed(len: u32, bytes: &[u8]) -> Result<Bitmap, postcard::Error> {
        postcard::from_bytes(&postcard::to_stdvec(&(len, bytes)).unwrap())
    }

    proptest! {
        #[test]
        fn a_bitmap_is_a_set(len in 0u32..300, chunks in prop::collection::btree_set(0u32..320, 0..40)) {
            let bitmap = of(len, &chunks);
            let inside: BTreeSet<u32> = chunks.range(..len).copied().collect();
            let outside: Vec<u32> = (0..len).filter(|index| !inside.contains(index)).collect();
            prop_assert_eq!(bitmap.count() as usize, inside.len());
            prop_assert_eq!(bitmap.missing().collect::<Vec<_>>(), outside.clone());
            prop_assert_eq!(bitmap.missing_ranges().indices().collect::<Vec<_>>(), outside.clone());
            prop_assert_eq!(bitmap.is_full(), outside.is_empty());
            prop_assert!((0..400).all(|index| bitmap.contains(index) == inside.contains(&index)));
            let again = inside.iter().any(|&index| bitmap.clone().insert(index));
            prop_assert!(!again, "nothing is added twice");
        }

        #[test]
        fn ranges_of_what_is_missing_are_ranges(len in 0u32..300, chunks in prop::collection::btree_set(0u32..300, 0..300)) {
            let ranges = of(len, &chunks).missing_ranges();
            prop_assert_eq!(ChunkRanges::new(ranges.0.clone()), Ok(ranges.clone()));
            prop_assert_eq!(ranges.within(len), Ok(()));
            prop_assert_eq!(ranges.is_empty(), ranges.indices().next().is_none());
        }

        #[test]
        fn what_is_read_can_be_written_again(len in 0u32..40, bytes in prop::collection::vec(any::<u8>(), 0..6)) {
            let clean = bytes.len() == len.div_ceil(8) as usize
                && (len..bytes.len() as u32 * 8).all(|bit| bytes[bit as usize / 8] >> (bit % 8) & 1 == 0);
            let bitmap = packed(len, &bytes);
            prop_assert_eq!(bitmap.is_ok(), clean);
            if let Ok(bitmap) = bitmap {
                prop_assert_eq!(postcard::to_stdvec(&bitmap).unwrap(), postcard::to_stdvec(&(len, &bytes[..])).unwrap());
            }
        }
    }

    #[test]
    fn no_bitmap_is_larger_than_a_blob() {
        assert!(Bitmap::new(MAX_CHUNKS).is_ok());
        assert_eq!(Bitmap::new(MAX_CHUNKS + 1), Err(ChunkSetError::TooMany { len: MAX_CHUNKS + 1 }));
        assert!(packed(MAX_CHUNKS, &[0xff; MAX_CHUNKS as usize / 8]).unwrap().is_full());
        assert!(packed(MAX_CHUNKS + 1, &[0; MAX_CHUNKS as usize / 8 + 1]).is_err());
    }

    #[test]
    fn more_ranges_than_a_request_holds_are_asked_for_later() {
        let even = (0..MAX_CHUNKS).step_by(2).collect();
        let mut bitmap = of(MAX_CHUNKS, &even);
        let mut requests = 0;
        while !bitmap.is_full() {
            let ranges = bitmap.missing_ranges();
            assert_eq!(ranges.indices().count(), MAX_RANGES);
            ranges.indices().for_each(|index| assert!(bitmap.insert(index)));
            requests += 1;
        }
        assert_eq!(requests, MAX_CHUNKS as usize / 2 / MAX_RANGES);
    }

    #[test]
    fn ranges_that_touch_overlap_or_leave_the_blob_are_refused() {
        let range = |first, count| ChunkRange { first, count };
        for ranges in [
            vec![range(0, 0)],
            vec![range(0, 2), range(2, 1)],
            vec![range(0, 3), range(1, 5)],
            vec![range(5, 1), range(1, 1)],
            vec![range(MAX_CHUNKS, 1)],
            vec![range(u32::MAX, u32::MAX)],
        ] {
            assert!(matches!(ChunkRanges::new(ranges.clone()), Err(ChunkSetError::Range { .. })), "{ranges:?}");
            assert!(postcard::from_bytes::<ChunkRanges>(&postcard::to_stdvec(&ranges).unwrap()).is_err(), "{ranges:?}");
        }
        let many: Vec<ChunkRange> = (0..=MAX_RANGES as u32).map(|i| range(2 * i, 1)).collect();
        assert!(matches!(ChunkRanges::new(many), Err(ChunkSetError::TooMany { .. })));
        assert!(ChunkRanges::new(vec![range(0, 4)]).unwrap().within(3).is_err());
    }
}
