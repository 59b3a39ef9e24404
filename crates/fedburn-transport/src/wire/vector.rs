//! Parameter vectors as payloads: one after another, 32-bit floats, little-endian, in schema order, no headers.
//!
//! The length follows from the number of vectors and the model's number of values, both known before the first byte
//! comes; nothing that a sender says can change it.

use std::borrow::Cow;

use bytes::Bytes;

use super::blob::{BlobError, Layout};
use super::chunk::{ChunkError, Codec};

/// Bytes of one value.
const VALUE_LEN: usize = 4;

/// The payload of an update or a model: `num_vectors` vectors of `num_values` each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VectorPayload {
    num_values: usize,
    num_vectors: usize,
    layout: Layout,
}

impl VectorPayload {
    /// The payload of `num_vectors` vectors of `num_values`, in chunks of `chunk_len` bytes.
    ///
    /// # Errors
    /// [`BlobError::TooLarge`], [`BlobError::ChunkLen`].
    pub fn new(num_values: usize, num_vectors: usize, chunk_len: u32) -> Result<Self, BlobError> {
        let len = (num_values as u64).checked_mul(num_vectors as u64).and_then(|n| n.checked_mul(VALUE_LEN as u64));
        let len = len.ok_or(BlobError::TooLarge { len: u64::MAX, chunk_len })?;
        Ok(Self { num_values, num_vectors, layout: Layout::new(Codec::F32, len, chunk_len)? })
    }

    /// Exact length and cut.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Writes the vectors one after another.
    ///
    /// # Errors
    /// [`BlobError::Vectors`] where they are not as many or not as long as the payload's.
    pub fn encode(&self, vectors: &[&[f32]]) -> Result<Bytes, BlobError> {
        self.ensure(vectors.iter().map(|vector| vector.len()))?;
        let mut bytes = Vec::with_capacity(vectors.len() * self.num_values * VALUE_LEN);
        vectors.iter().for_each(|vector| bytes.extend_from_slice(&vector_bytes(vector)));
        Ok(bytes.into())
    }

    /// Reads chunk `index` into its place in `vectors`, `num_vectors` slices of `num_values`.
    ///
    /// Values are taken as they are, NaN and infinities too: to judge them is for who uses them.
    ///
    /// # Errors
    /// [`BlobError::Vectors`] where `vectors` are not the payload's, [`BlobError::Chunk`] where `chunk` is not exactly
    /// as long as that chunk is. Nothing is written then.
    pub fn decode_chunk(&self, index: u32, chunk: &[u8], vectors: &mut [&mut [f32]]) -> Result<(), BlobError> {
        self.ensure_len(index, chunk.len())?;
        let mut rest = chunk;
        for place in self.place(index, vectors)? {
            let (here, later) = rest.split_at(place.len());
            place.copy_from_slice(here);
            rest = later;
        }
        self.settle(index, vectors)
    }

    /// The chunk's place in `vectors`, as bytes: one piece for each vector that it reaches into.
    ///
    /// # Errors
    /// [`BlobError::Vectors`] where `vectors` are not the payload's.
    pub(crate) fn place<'a>(&self, index: u32, vectors: &'a mut [&mut [f32]]) -> Result<Vec<&'a mut [u8]>, BlobError> {
        self.ensure(vectors.iter().map(|vector| vector.len()))?;
        // Fits: the vectors are in memory, so the place of each of their bytes is a `usize`.
        let (range, len) = (self.layout.range(index).unwrap_or_default(), VALUE_LEN * self.num_values);
        let (start, end) = (range.start as usize, range.end as usize);
        let piece = |(begin, vector): (usize, &'a mut &mut [f32])| {
            let piece = start.clamp(begin, begin + len) - begin..end.clamp(begin, begin + len) - begin;
            (!piece.is_empty()).then(|| &mut bytemuck::cast_slice_mut(vector)[piece])
        };
        Ok((0..).step_by(len.max(1)).zip(vectors).filter_map(piece).collect())
    }

    /// Makes values of the bytes that were put into a chunk's [`VectorPayload::place`].
    ///
    /// # Errors
    /// As [`VectorPayload::place`].
    pub(crate) fn settle(&self, index: u32, vectors: &mut [&mut [f32]]) -> Result<(), BlobError> {
        if cfg!(target_endian = "big") {
            for value in self.place(index, vectors)?.into_iter().flat_map(|piece| piece.chunks_exact_mut(VALUE_LEN)) {
                value.reverse();
            }
        }
        Ok(())
    }

    fn ensure_len(&self, index: u32, len: usize) -> Result<(), BlobError> {
        let fits = self.layout.range(index).is_some_and(|range| range.end - range.start == len as u64);
        fits.then_some(()).ok_or_else(|| {
            let misfit = ChunkError::Misfit {
                index,
                len: u32::try_from(len).unwrap_or(u32::MAX),
                codec: Codec::F32,
                blob_len: self.layout.len(),
                blob_codec: Codec::F32,
            };
            misfit.into()
        })
    }

    fn ensure(&self, lens: impl Iterator<Item = usize> + Clone) -> Result<(), BlobError> {
        let error = |found: String| BlobError::Vectors {
            expected_vectors: self.num_vectors,
            expected_values: self.num_values,
            found,
        };
        match lens.clone().find(|&len| len != self.num_values) {
            Some(len) => Err(error(format!("one of {len} values"))),
            None if lens.clone().count() != self.num_vectors => Err(error(format!("{} vectors", lens.count()))),
            None => Ok(()),
        }
    }
}

/// One vector as a payload, without a copy where the machine's byte order is the payload's.
pub fn encode_vector(values: Vec<f32>) -> Bytes {
    if cfg!(target_endian = "little") {
        return Bytes::from_owner(Values(values));
    }
    vector_bytes(&values).into_owned().into()
}

/// The values as they travel, without a copy where the machine's byte order is the protocol's.
pub fn vector_bytes(values: &[f32]) -> Cow<'_, [u8]> {
    if cfg!(target_endian = "little") {
        Cow::Borrowed(bytemuck::cast_slice(values))
    } else {
        Cow::Owned(values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }
}

/// A vector seen as bytes.
struct Values(Vec<f32>);

impl AsRef<[u8]> for Values {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::{ChunkHeader, Hash, TransferId};

    fn bits(vectors: &[Vec<f32>]) -> Vec<Vec<u32>> {
        vectors.iter().map(|vector| vector.iter().map(|value| value.to_bits()).collect()).collect()
    }

    fn slices(vectors: &mut [Vec<f32>]) -> Vec<&mut [f32]> {
        vectors.iter_mut().map(Vec::as_mut_slice).collect()
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_to_the_bit_in_any_order_of_chunks(
            (values, count) in (0usize..40, 1usize..4),
            (chunk_values, part) in (1u32..50, 1usize..20),
            patterns in prop::collection::vec(any::<u32>(), 160),
            backwards: bool,
        ) {
            let payload = VectorPayload::new(values, count, 4 * chunk_values).unwrap();
            let vectors: Vec<Vec<f32>> = (0..count)
                .map(|i| patterns[i * values..(i + 1) * values].iter().map(|bits| f32::from_bits(*bits)).collect())
                .collect();
            let bytes = payload.encode(&vectors.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
            // The rule of the protocol: little-endian, one after another.
            let expected: Vec<u8> = patterns[..values * count].iter().flat_map(|bits| bits.to_le_bytes()).collect();
            prop_assert_eq!(&bytes[..], &expected[..]);
            prop_assert_eq!(bytes.len() as u64, payload.layout().len());
            let zeros = || vec![vec![0.0; values]; count];
            let (mut decoded, mut joined, mut spoilt) = (zeros(), zeros(), zeros());
            let mut order: Vec<u32> = (0..payload.layout().num_chunks()).collect();
            if backwards {
                order.reverse();
            }
            for index in order {
                let chunk = payload.layout().slice(index, &bytes).unwrap();
                payload.decode_chunk(index, chunk, &mut slices(&mut decoded)).unwrap();
                let parts: Vec<&[u8]> = chunk.chunks(part).collect();
                let header = ChunkHeader::of(TransferId::default(), payload.layout(), index, chunk).unwrap();
                let mut joined = slices(&mut joined);
                header.verify_into(&parts, payload.place(index, &mut joined).unwrap()).unwrap();
                payload.settle(index, &mut joined).unwrap();
                let wrong = ChunkHeader { hash: Hash([7; 32]), ..header };
                let refused = wrong.verify_into(&parts, payload.place(index, &mut slices(&mut spoilt)).unwrap());
                prop_assert!(matches!(refused, Err(ChunkError::Hash { .. })), "{:?}", refused);
            }
            prop_assert_eq!(bits(&joined), bits(&vectors), "cut anywhere");
            prop_assert_eq!(bits(&decoded), bits(&vectors));
        }

        #[test]
        fn a_vector_that_is_not_copied_has_the_same_bytes(values in prop::collection::vec(any::<f32>(), 0..50)) {
            let payload = VectorPayload::new(values.len(), 1, 4096).unwrap();
            prop_assert_eq!(payload.encode(&[&values]).unwrap(), encode_vector(values));
        }

        #[test]
        fn a_chunk_of_another_length_changes_nothing(len in 0usize..40, index in 0u32..5) {
            let payload = VectorPayload::new(5, 2, 16).unwrap();
            let mut decoded = vec![vec![0.5; 5]; 2];
            let fits = payload.layout().chunk_len(index) == Some(len as u32);
            prop_assert_eq!(payload.decode_chunk(index, &vec![0; len], &mut slices(&mut decoded)).is_ok(), fits);
            if !fits {
                prop_assert_eq!(decoded, vec![vec![0.5; 5]; 2]);
            }
        }
    }

    #[test]
    fn vectors_that_are_not_the_payloads_are_refused() {
        let payload = VectorPayload::new(2, 2, 16).unwrap();
        for vectors in [&[&[0.0, 0.0][..]][..], &[&[0.0, 0.0], &[0.0]], &[&[0.0; 2], &[0.0; 2], &[0.0; 2]], &[]] {
            assert!(matches!(payload.encode(vectors), Err(BlobError::Vectors { .. })), "{vectors:?}");
            let mut decoded: Vec<Vec<f32>> = vectors.iter().map(|vector| vector.to_vec()).collect();
            let result = payload.decode_chunk(0, &[0; 16], &mut slices(&mut decoded));
            assert!(matches!(result, Err(BlobError::Vectors { .. })), "{vectors:?}");
        }
    }

    #[test]
    fn lengths_that_overflow_are_refused() {
        for (values, count) in [(usize::MAX, 1), (usize::MAX, usize::MAX), (1 << 34, 1 << 28), (1 << 34, 2)] {
            assert!(matches!(VectorPayload::new(values, count, 4096), Err(BlobError::TooLarge { .. })));
        }
    }
}
