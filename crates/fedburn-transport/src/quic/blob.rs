//! Blobs on their way in: put together from chunks.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::wire::limits::MAX_CHUNK_LEN;
use crate::wire::{
    Bitmap, BlobError, ChunkError, ChunkHeader, Codec, Hash, Layout, Manifest, TransferId, VectorPayload, root_of,
};

/// What an update's payload is: known before the first byte of it comes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Form {
    /// Vectors of 32-bit floats.
    Plain { num_values: usize, num_vectors: usize },
    /// So many bytes: what a codec made of the parameters, then the other vectors.
    Encoded { len: usize },
}

impl Form {
    pub(crate) fn len(self) -> u64 {
        match self {
            Self::Plain { num_values, num_vectors } => 4 * num_values as u64 * num_vectors as u64,
            Self::Encoded { len } => len as u64,
        }
    }
}

/// An update's payload in the form that it has.
#[derive(Debug, PartialEq)]
pub(crate) enum Values {
    Plain(Vec<Vec<f32>>),
    Encoded(Vec<u8>),
}

/// A blob that is being put together from chunks, which come in any order and may come again.
pub(crate) struct Assembly {
    layout: Layout,
    /// What the chunks must hash to, where that is known before they come.
    manifest: Option<Manifest>,
    /// Of a chunk that has not come, anything may be in its place.
    content: Mutex<Content>,
    came: Mutex<Came>,
    /// Told of each chunk that came and held.
    pub(crate) changed: Notify,
}

/// What is in its place and verified.
struct Came {
    have: Bitmap,
    hashes: Vec<Hash>,
}

enum Content {
    Vectors(VectorPayload, Vec<Vec<f32>>),
    Bytes(Vec<u8>),
}

impl Assembly {
    /// An update, sent by somebody who tells the hashes with the chunks.
    pub(crate) fn of_update(form: Form, chunk_len: u32) -> Result<Self, BlobError> {
        let (layout, content) = match form {
            Form::Plain { num_values, num_vectors } => {
                let payload = VectorPayload::new(num_values, num_vectors, chunk_len)?;
                (*payload.layout(), Content::Vectors(payload, vec![vec![0.0; num_values]; num_vectors]))
            }
            Form::Encoded { len } => (Layout::new(Codec::Opaque, len as u64, chunk_len)?, Content::Bytes(vec![0; len])),
        };
        Self::new(layout, None, content)
    }

    /// The blob of a manifest: one vector of 32-bit floats, or bytes.
    pub(crate) fn of_manifest(manifest: Manifest) -> Result<Self, BlobError> {
        let layout = *manifest.layout();
        let content = match layout.codec() {
            Codec::F32 => {
                let num_values = (layout.len() / 4) as usize;
                let chunk_len = layout.chunk_len(0).unwrap_or(MAX_CHUNK_LEN);
                Content::Vectors(VectorPayload::new(num_values, 1, chunk_len)?, vec![vec![0.0; num_values]])
            }
            _ => Content::Bytes(vec![0; layout.len() as usize]),
        };
        Self::new(layout, Some(manifest), content)
    }

    fn new(layout: Layout, manifest: Option<Manifest>, content: Content) -> Result<Self, BlobError> {
        let too_large = |_| BlobError::TooLarge { len: layout.len(), chunk_len: MAX_CHUNK_LEN };
        let have = Bitmap::new(layout.num_chunks()).map_err(too_large)?;
        let hashes = vec![Hash::default(); layout.num_chunks() as usize];
        let (content, came) = (Mutex::new(content), Mutex::new(Came { have, hashes }));
        Ok(Self { layout, manifest, content, came, changed: Notify::new() })
    }

    /// Whether the chunk of this header belongs here, decided before its payload is read.
    pub(crate) fn expect(&self, transfer: TransferId, header: &ChunkHeader) -> Result<(), ChunkError> {
        match &self.manifest {
            Some(manifest) => manifest.expect(transfer, header),
            None => header.expect(transfer, &self.layout),
        }
    }

    /// Puts a chunk's payload, in parts one after another, in its place and verifies it there. One that is there already
    /// changes nothing. Chunks of one blob take turns; nobody who asks what has come waits for them.
    pub(crate) fn accept<P: AsRef<[u8]>>(&self, header: &ChunkHeader, parts: &[P]) -> Result<(), BlobError> {
        let mut content = lock(&self.content);
        if lock(&self.came).have.contains(header.index) {
            return Ok(());
        }
        match &mut *content {
            Content::Vectors(form, vectors) => {
                let mut slices: Vec<&mut [f32]> = vectors.iter_mut().map(Vec::as_mut_slice).collect();
                header.verify_into(parts, form.place(header.index, &mut slices)?)?;
                form.settle(header.index, &mut slices)?;
            }
            Content::Bytes(bytes) => {
                // Fits: the bytes are in memory. Where they were taken out, there is no place.
                let range = self.layout.range(header.index).unwrap_or_default();
                let place = bytes.get_mut(range.start as usize..range.end as usize).unwrap_or_default();
                header.verify_into(parts, vec![place])?;
            }
        }
        let mut came = lock(&self.came);
        came.have.insert(header.index);
        came.hashes[header.index as usize] = header.hash;
        drop((came, content));
        self.changed.notify_waiters();
        Ok(())
    }

    pub(crate) fn have(&self) -> Bitmap {
        lock(&self.came).have.clone()
    }

    pub(crate) fn is_full(&self) -> bool {
        lock(&self.came).have.is_full()
    }

    /// Waits until every chunk is there.
    pub(crate) async fn full(&self) {
        loop {
            let changed = self.changed.notified();
            if self.is_full() {
                return;
            }
            changed.await;
        }
    }

    /// The root of what came.
    pub(crate) fn root(&self) -> Hash {
        root_of(&lock(&self.came).hashes)
    }

    /// Takes all that came out; nothing is left.
    pub(crate) fn take(&self) -> Values {
        match &mut *lock(&self.content) {
            Content::Vectors(_, vectors) => Values::Plain(std::mem::take(vectors)),
            Content::Bytes(bytes) => Values::Encoded(std::mem::take(bytes)),
        }
    }

    /// Takes the bytes out; nothing is left.
    pub(crate) fn take_bytes(&self) -> Vec<u8> {
        match &mut *lock(&self.content) {
            Content::Bytes(bytes) => std::mem::take(bytes),
            Content::Vectors(..) => Vec::new(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is half written is not in the bitmap.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reads a payload that came inside a message, and its root. Makes no more room than the payload takes.
pub(crate) fn decode_inline(payload: &[u8], form: Form, chunk_len: u32) -> Result<(Values, Hash), BlobError> {
    // Before any room is made: names alone ask for a lot of it.
    if payload.len() as u64 != form.len() {
        return Err(BlobError::Length { expected: form.len(), found: payload.len() });
    }
    let assembly = Assembly::of_update(form, chunk_len)?;
    let layout = &assembly.layout;
    for index in 0..layout.num_chunks() {
        let chunk = layout.slice(index, payload)?;
        assembly.accept(&ChunkHeader::of(TransferId::default(), layout, index, chunk)?, &[chunk])?;
    }
    let root = assembly.root();
    Ok((assembly.take(), root))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_of_another_length_gets_no_room() {
        // More than any machine has: making room for it would end the process.
        for form in [Form::Plain { num_values: 1 << 40, num_vectors: 65 }, Form::Encoded { len: 1 << 50 }] {
            let error = decode_inline(&[], form, MAX_CHUNK_LEN).unwrap_err();
            assert_eq!(error, BlobError::Length { expected: form.len(), found: 0 });
        }
    }
}
