//! Blobs on their way out: cut into chunks, each on a stream of its own.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use burn::tensor::backend::Backend;
use bytes::Bytes;
use fedburn_core::ParamVector;
use quinn::Connection;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::receive::SMALL;
use super::stream::StreamError;
use super::tuning::CHUNKS_IN_FLIGHT;
use crate::wire::limits::MAX_CHUNK_LEN;
use crate::wire::{
    BlobError, BlobRef, ChunkHeader, Codec, Hash, Layout, Manifest, TransferId, VectorPayload, encode_vector,
    vector_bytes,
};

/// A blob to send, shared by everybody it is sent to.
pub(crate) struct Blob {
    pub(crate) layout: Layout,
    /// Of each chunk once it was needed: an update is on its way before all of it is hashed.
    hashes: Vec<OnceLock<Hash>>,
    content: Content,
}

enum Content {
    /// The payload itself.
    Whole(Bytes),
    /// Vectors one after another. They stay where they are, so that a large model is in memory once, and what travels
    /// is cut out of them.
    Vectors {
        vectors: Vec<Box<dyn Values>>,
        num_values: usize,
        cut: Mutex<BTreeMap<u32, Weak<Chunk>>>,
        pool: Arc<Pool>,
    },
}

/// A vector that stays where it is.
trait Values: Send + Sync {
    /// Writes the values of a range as they travel.
    fn write(&self, range: Range<usize>, to: &mut Vec<u8>);
}

impl<B: Backend> Values for ParamVector<B> {
    fn write(&self, range: Range<usize>, to: &mut Vec<u8>) {
        self.with_range(range, |values| to.extend_from_slice(&vector_bytes(values)));
    }
}

impl Blob {
    /// A blob of bytes of any meaning.
    pub(crate) fn of_bytes(bytes: Bytes, chunk_len: u32) -> Result<Self, BlobError> {
        Ok(Self::new(Layout::new(Codec::Opaque, bytes.len() as u64, chunk_len)?, Content::Whole(bytes)))
    }

    /// The blob of a model or an update: its vectors, all of one schema, one after another.
    pub(crate) fn of_vectors<B: Backend>(mut vectors: Vec<ParamVector<B>>, chunk_len: u32) -> Result<Self, BlobError> {
        let num_values = vectors.first().map_or(0, ParamVector::num_values);
        let form = VectorPayload::new(num_values, vectors.len(), chunk_len)?;
        let layout = *form.layout();
        // What is nobody else's travels from where it is.
        let alone = vectors.len() == 1 && !vectors[0].is_shared();
        if layout.len() > MAX_WHOLE && !alone {
            let vectors = vectors.into_iter().map(|vector| Box::new(vector) as Box<dyn Values>).collect();
            let (cut, pool) = (Mutex::default(), Arc::default());
            return Ok(Self::new(layout, Content::Vectors { vectors, num_values, cut, pool }));
        }
        let bytes = match vectors.len() {
            1 => encode_vector(vectors.swap_remove(0).into_host()),
            _ => {
                let vectors: Vec<Vec<f32>> = vectors.into_iter().map(ParamVector::into_host).collect();
                form.encode(&vectors.iter().map(Vec::as_slice).collect::<Vec<_>>())?
            }
        };
        Ok(Self::new(layout, Content::Whole(bytes)))
    }

    fn new(layout: Layout, content: Content) -> Self {
        Self { layout, hashes: (0..layout.num_chunks()).map(|_| OnceLock::new()).collect(), content }
    }

    /// The hashes of all chunks; those that nobody needed before are taken now.
    pub(crate) fn manifest(&self) -> Manifest {
        let hash = |index| self.hashes[index as usize].get().copied().or_else(|| Some(self.cut(index)?.1));
        // There is one for each chunk of the layout.
        let hashes = (0..self.layout.num_chunks()).map(|index| hash(index).unwrap_or_default()).collect();
        Manifest::new(self.layout, hashes).expect("as many hashes as chunks")
    }

    /// What the blob is called, which takes all its hashes.
    pub(crate) fn name(&self) -> BlobRef {
        self.manifest().blob()
    }

    /// All of the payload, where it has at most `len` bytes.
    pub(crate) fn inline(&self, len: u32) -> Option<&Bytes> {
        match &self.content {
            Content::Whole(bytes) if bytes.len() <= len as usize => Some(bytes),
            _ => None,
        }
    }

    /// Header and payload of one chunk; `None` where there is no such chunk.
    pub(crate) fn chunk(&self, transfer: TransferId, index: u32) -> Option<(ChunkHeader, Bytes)> {
        let (payload, hash) = self.cut(index)?;
        Some((ChunkHeader::with_hash(transfer, &self.layout, index, hash)?, payload))
    }

    /// A chunk and its hash.
    fn cut(&self, index: u32) -> Option<(Bytes, Hash)> {
        let payload = self.content.payload(&self.layout, index)?;
        let hash = match self.hashes[index as usize].get() {
            Some(hash) => *hash,
            None => {
                let header = ChunkHeader::of(TransferId::default(), &self.layout, index, &payload).ok()?;
                *self.hashes[index as usize].get_or_init(|| header.hash)
            }
        };
        Some((payload, hash))
    }

    /// Whether a chunk is ready, or as good as that.
    fn is_ready(&self, index: u32) -> bool {
        let hashed = self.hashes.get(index as usize).is_none_or(|hash| hash.get().is_some());
        let small = self.layout.chunk_len(index).is_none_or(|len| len <= SMALL);
        matches!(self.content, Content::Whole(_)) && (hashed || small)
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Blob").field(&self.layout).finish()
    }
}

impl Content {
    fn payload(&self, layout: &Layout, index: u32) -> Option<Bytes> {
        let range = layout.range(index)?;
        // Fits: what is in memory has places that are a `usize`.
        let (start, end) = (range.start as usize, range.end as usize);
        match self {
            Self::Whole(bytes) => Some(bytes.slice(start..end)),
            Self::Vectors { vectors, num_values, cut, pool } => {
                // Nothing panics while it holds the lock.
                let mut cut = lock(cut);
                // Who asks while others are being sent the chunk shares it.
                let chunk = cut.get(&index).and_then(Weak::upgrade).unwrap_or_else(|| {
                    let mut bytes = pool.take();
                    cut_out(vectors, *num_values, start / 4..end / 4, &mut bytes);
                    let chunk = Arc::new(Chunk { bytes, pool: pool.clone() });
                    cut.retain(|_, chunk| chunk.strong_count() > 0);
                    cut.insert(index, Arc::downgrade(&chunk));
                    chunk
                });
                Some(Bytes::from_owner(Shared(chunk)))
            }
        }
    }
}

/// Appends the values of a range of all the vectors, as they travel.
fn cut_out(vectors: &[Box<dyn Values>], num_values: usize, range: Range<usize>, bytes: &mut Vec<u8>) {
    bytes.reserve_exact(4 * range.len());
    let mut at = range.start;
    while at < range.end {
        let (vector, from) = (at / num_values, at % num_values);
        // What a backend makes of a range is small enough to be in the processor's cache when it is copied.
        let to = num_values.min(from + (range.end - at).min(CUT_PART));
        vectors[vector].write(from..to, bytes);
        at += to - from;
    }
}

/// A chunk that several are being sent; its memory is used again.
struct Chunk {
    bytes: Vec<u8>,
    pool: Arc<Pool>,
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.bytes));
    }
}

/// One of those who are being sent a chunk.
struct Shared(Arc<Chunk>);

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.0.bytes
    }
}

/// Memory of chunks that were sent. Freed and got anew with every chunk, it would stay with the system's allocator, a
/// chunk or more for each thread that ever cut one.
#[derive(Default)]
struct Pool(Mutex<Vec<Vec<u8>>>);

impl Pool {
    fn take(&self) -> Vec<u8> {
        lock(&self.0).pop().unwrap_or_default()
    }

    fn give_back(&self, mut bytes: Vec<u8>) {
        let mut free = lock(&self.0);
        if free.len() < CHUNKS_IN_FLIGHT as usize {
            bytes.clear();
            free.push(bytes);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it holds one of these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends chunks of a blob in this order, some at a time. Each part of them must go within `progress`; `tally` counts the
/// payload's bytes as they go.
pub(crate) async fn send_chunks(
    connection: &Connection,
    blob: &Arc<Blob>,
    transfer: TransferId,
    indices: impl IntoIterator<Item = u32>,
    progress: Duration,
    tally: &Arc<AtomicU64>,
) -> Result<(), StreamError> {
    let (mut waiting, mut sending) = (indices.into_iter(), JoinSet::new());
    let streams = Arc::new(Semaphore::new(CHUNKS_IN_FLIGHT as usize));
    loop {
        while sending.len() < CHUNKS_IN_FLIGHT as usize + CUT_AHEAD
            && let Some(index) = waiting.next()
        {
            let (connection, blob, tally, streams) = (connection.clone(), blob.clone(), tally.clone(), streams.clone());
            sending.spawn(async move {
                let Some((header, payload)) = cut(blob, transfer, index).await else { return Ok(()) };
                // Never closed.
                let _stream = streams.acquire().await;
                send_chunk(&connection, &header, payload, progress, &tally).await
            });
        }
        match sending.join_next().await {
            None => return Ok(()),
            Some(Ok(sent)) => sent?,
            Some(Err(_)) => return Err(StreamError::Lost("the event loop ends".to_owned())),
        }
    }
}

/// Header and payload of one chunk, on a thread for work where it has to be made.
async fn cut(blob: Arc<Blob>, transfer: TransferId, index: u32) -> Option<(ChunkHeader, Bytes)> {
    match blob.is_ready(index) {
        true => blob.chunk(transfer, index),
        false => tokio::task::spawn_blocking(move || blob.chunk(transfer, index)).await.ok()?,
    }
}

/// Sends one chunk on a stream of its own. Each part of it must go within `progress`.
async fn send_chunk(
    connection: &Connection,
    header: &ChunkHeader,
    payload: Bytes,
    progress: Duration,
    tally: &AtomicU64,
) -> Result<(), StreamError> {
    let within = |_| StreamError::Slow;
    let mut stream = timeout(progress, connection.open_uni()).await.map_err(within)??;
    // One after another: while the first is verified the others are under way. There are at most 16,384.
    let _ = stream.set_priority(-(header.index as i32));
    stream.write_all(&header.encode()).await?;
    let mut rest = payload;
    while !rest.is_empty() {
        let part = rest.split_to(rest.len().min(WRITE_PART));
        let len = part.len() as u64;
        timeout(progress, stream.write_chunk(part)).await.map_err(within)??;
        tally.fetch_add(len, Ordering::Relaxed);
    }
    let _ = stream.finish();
    Ok(())
}

/// Bytes of a blob of vectors that is encoded at once, because it is sent whole and often.
const MAX_WHOLE: u64 = MAX_CHUNK_LEN as u64;
/// Values that are cut out at once.
const CUT_PART: usize = 16 << 10;
/// Chunks that are made while as many as may travel do.
const CUT_AHEAD: usize = 1;
/// Bytes of a chunk for which progress is looked at.
const WRITE_PART: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};
    use burn_ndarray::{NdArray, NdArrayDevice};

    use super::*;

    /// Two vectors that meet within a chunk, cut where they are and encoded at once.
    fn chunks_are_the_encoded_payload<B: Backend>(device: &B::Device) {
        let num_values = (3 * MAX_CHUNK_LEN / 8) as usize + 1;
        let schema = fedburn_testkit::schema(&[num_values]);
        let host: Vec<Vec<f32>> = (0..2).map(|k| (0..num_values).map(|i| (i * (k + 1)) as f32).collect()).collect();
        let vector = |values: &Vec<f32>| ParamVector::<B>::from_host(values.clone(), schema.clone(), device).unwrap();
        let blob = Blob::of_vectors(host.iter().map(vector).collect(), MAX_CHUNK_LEN).unwrap();
        assert!(matches!(blob.content, Content::Vectors { .. }), "larger than what is encoded at once");

        let form = VectorPayload::new(num_values, 2, MAX_CHUNK_LEN).unwrap();
        let bytes = form.encode(&[&host[0], &host[1]]).unwrap();
        let manifest = Manifest::of(Codec::F32, &bytes, MAX_CHUNK_LEN).unwrap();
        for index in 0..manifest.layout().num_chunks() {
            let (header, payload) = blob.chunk(TransferId::default(), index).unwrap();
            assert_eq!(payload, manifest.layout().slice(index, &bytes).unwrap());
            header.verify(&payload).unwrap();
            let (_, again) = blob.chunk(TransferId::default(), index).unwrap();
            assert_eq!(again.as_ptr(), payload.as_ptr(), "who asks meanwhile shares it");
        }
        assert!(blob.chunk(TransferId::default(), manifest.layout().num_chunks()).is_none());
        assert_eq!(blob.manifest(), manifest);
        let unsent = Blob::of_vectors(host.iter().map(vector).collect(), MAX_CHUNK_LEN).unwrap();
        assert_eq!(unsent.name(), manifest.blob(), "also where no chunk was needed before");
    }

    #[test]
    fn what_is_cut_out_of_vectors_is_what_they_encode_to() {
        chunks_are_the_encoded_payload::<Flex>(&FlexDevice);
        chunks_are_the_encoded_payload::<NdArray>(&NdArrayDevice::Cpu);
    }
}
