//! Blobs on their way out: cut into chunks, each on a stream of its own.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use burn::tensor::backend::Backend;
use bytes::Bytes;
use fedburn_core::ParamVector;
use quinn::{Connection, SendStream};
use tokio::task::{JoinError, JoinHandle, JoinSet};

use super::receive::SMALL;
use super::stream::StreamError;
use super::tuning::{SEND_WINDOW, cut_window};
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
    /// Of all chunks, once it was needed.
    manifest: OnceLock<Manifest>,
    content: Content,
}

enum Content {
    /// The payload itself.
    Whole(Bytes),
    /// Vectors one after another. They stay where they are, so that a large model is in memory once, and what travels
    /// is cut out of them.
    Vectors { vectors: Vec<Box<dyn Values>>, num_values: usize },
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
            return Ok(Self::new(layout, Content::Vectors { vectors, num_values }));
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
        let hashes = (0..layout.num_chunks()).map(|_| OnceLock::new()).collect();
        Self { layout, hashes, manifest: OnceLock::new(), content }
    }

    /// The hashes of all chunks; those that nobody needed before are taken now.
    pub(crate) fn manifest(&self) -> &Manifest {
        self.manifest.get_or_init(|| {
            let hash = |(hash, index): (&OnceLock<Hash>, u32)| *hash.get_or_init(|| self.hash(index));
            let hashes = self.hashes.iter().zip(0..).map(hash).collect();
            Manifest::new(self.layout, hashes).expect("as many hashes as chunks")
        })
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

    /// The header of one chunk; `None` where there is no such chunk.
    pub(crate) fn header(&self, transfer: TransferId, index: u32) -> Option<ChunkHeader> {
        let hash = self.hashes.get(index as usize)?.get_or_init(|| self.hash(index));
        ChunkHeader::with_hash(transfer, &self.layout, index, *hash)
    }

    /// The hash of one of the layout's chunks.
    fn hash(&self, index: u32) -> Hash {
        let payload = self.content.cut(self.layout.range(index).unwrap_or_default());
        let header = ChunkHeader::of(TransferId::default(), &self.layout, index, &payload);
        header.expect("a chunk of the layout, as long as the layout says").hash
    }

    /// Whether a header is there, or as good as that.
    fn has_header(&self, index: u32) -> bool {
        let hashed = self.hashes.get(index as usize).is_none_or(|hash| hash.get().is_some());
        let small = self.layout.chunk_len(index).is_none_or(|len| len <= SMALL);
        hashed || small && matches!(self.content, Content::Whole(_))
    }
}

#[cfg(test)]
impl Blob {
    /// Header and payload of one chunk.
    pub(crate) fn chunk(&self, transfer: TransferId, index: u32) -> Option<(ChunkHeader, Bytes)> {
        Some((self.header(transfer, index)?, self.content.cut(self.layout.range(index)?)))
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Blob").field(&self.layout).finish()
    }
}

impl Content {
    /// Some of the payload, which must be within it.
    fn cut(&self, range: Range<u64>) -> Bytes {
        // Fits: what is in memory has places that are a `usize`.
        let (start, end) = (range.start as usize, range.end as usize);
        match self {
            Self::Whole(bytes) => bytes.slice(start..end),
            Self::Vectors { vectors, num_values } => {
                let num_values = *num_values;
                let (mut bytes, mut at) = (Vec::with_capacity(end - start), start / 4);
                while at < end / 4 {
                    let (vector, from) = (at / num_values, at % num_values);
                    // What a backend makes of a range is small enough to be in the processor's cache when it is copied.
                    let to = num_values.min(from + (end / 4 - at).min(CUT_PART));
                    vectors[vector].write(from..to, &mut bytes);
                    at += to - from;
                }
                bytes.into()
            }
        }
    }
}

/// How a transfer is sent.
pub(crate) struct Pace<'a> {
    /// Chunks that may travel at once.
    pub(crate) chunks_at_once: u32,
    /// In each such period ...
    pub(crate) period: Duration,
    /// ... at least so many bytes a second must leave.
    pub(crate) min_rate: u64,
    /// Counts the payload's bytes as they go.
    pub(crate) tally: &'a Arc<AtomicU64>,
}

/// Sends chunks of a blob in this order, some at a time.
///
/// # Errors
/// [`StreamError::Slow`] where the other side, or the path to it, takes less than [`Pace`] asks for. What is looked at is
/// what leaves the machine, which the other side has to acknowledge: a chunk may wait for others for long, and what is
/// written may wait in the window.
pub(crate) async fn send_chunks(
    connection: &Connection,
    blob: &Arc<Blob>,
    transfer: TransferId,
    indices: impl IntoIterator<Item = u32>,
    pace: Pace<'_>,
) -> Result<(), StreamError> {
    tokio::select! {
        biased;
        done = send_in_order(connection, blob, transfer, indices.into_iter(), &pace) => done,
        () = too_slow(connection, &pace) => Err(StreamError::Slow),
    }
}

/// Ends when less left in a period than the pace asks for.
async fn too_slow(connection: &Connection, pace: &Pace<'_>) {
    let left = || connection.stats().udp_tx.bytes;
    let (mut before, least) = (left(), pace.min_rate.saturating_mul(pace.period.as_secs()));
    loop {
        tokio::time::sleep(pace.period).await;
        let now = left();
        if now - before < least {
            return;
        }
        before = now;
    }
}

/// Streams are opened in the order of their chunks, and a header is on its way before anything else of its chunk: the
/// other side sees a stream as soon as one behind it is opened, and waits for its header.
async fn send_in_order(
    connection: &Connection,
    blob: &Arc<Blob>,
    transfer: TransferId,
    mut indices: impl Iterator<Item = u32>,
    pace: &Pace<'_>,
) -> Result<(), StreamError> {
    connection.set_send_window(match &blob.content {
        // What waits in the window is where it was before.
        Content::Whole(_) => SEND_WINDOW,
        Content::Vectors { .. } => cut_window(connection.rtt()),
    });
    // While chunks travel, the next one is hashed.
    let mut next_header = || {
        let blob = blob.clone();
        indices.next().map(|index| match blob.has_header(index) {
            true => Header::There(blob.header(transfer, index)),
            false => Header::Coming(tokio::task::spawn_blocking(move || blob.header(transfer, index))),
        })
    };
    let (mut header, mut sending) = (next_header(), JoinSet::new());
    while let Some(found) = header {
        let Some(now) = found.get().await? else { return Ok(()) };
        header = next_header();
        while sending.len() >= pace.chunks_at_once as usize {
            ended(sending.join_next().await)?;
        }
        let mut stream = connection.open_uni().await?;
        stream.write_all(&now.encode()).await?;
        // One after another: while the first is verified the others are under way. There are at most 16,384.
        let _ = stream.set_priority(-(now.index as i32));
        sending.spawn(send_payload(stream, blob.clone(), now.index, pace.tally.clone()));
    }
    while let Some(done) = sending.join_next().await {
        ended(Some(done))?;
    }
    Ok(())
}

/// A header, or the thread that makes it.
enum Header {
    There(Option<ChunkHeader>),
    Coming(JoinHandle<Option<ChunkHeader>>),
}

impl Header {
    async fn get(self) -> Result<Option<ChunkHeader>, StreamError> {
        match self {
            Self::There(header) => Ok(header),
            Self::Coming(header) => header.await.map_err(|_| the_end()),
        }
    }
}

/// Sends a chunk's payload, part by part.
async fn send_payload(
    mut stream: SendStream,
    blob: Arc<Blob>,
    index: u32,
    tally: Arc<AtomicU64>,
) -> Result<(), StreamError> {
    let Range { start, end } = blob.layout.range(index).unwrap_or_default();
    for at in (start..end).step_by(PART) {
        let range = at..end.min(at + PART as u64);
        let mut part = match &blob.content {
            Content::Whole(_) => blob.content.cut(range),
            Content::Vectors { .. } => at_work(&blob, move |blob| blob.content.cut(range)).await?,
        };
        while !part.is_empty() {
            let written = stream.write_chunks(std::slice::from_mut(&mut part)).await?;
            tally.fetch_add(written.bytes as u64, Ordering::Relaxed);
        }
    }
    let _ = stream.finish();
    Ok(())
}

fn ended(sent: Option<Result<Result<(), StreamError>, JoinError>>) -> Result<(), StreamError> {
    sent.unwrap_or(Ok(Ok(()))).unwrap_or_else(|_| Err(the_end()))
}

/// What a blob is called. Of chunks that nobody needed, because the other side had them, the hashes are still to be taken.
pub(crate) async fn name_of(blob: &Arc<Blob>) -> Result<BlobRef, StreamError> {
    match (0..blob.layout.num_chunks()).all(|index| blob.has_header(index)) {
        true => Ok(blob.name()),
        false => at_work(blob, Blob::name).await,
    }
}

/// Does what takes time on a thread for work.
async fn at_work<T: Send + 'static>(
    blob: &Arc<Blob>,
    work: impl FnOnce(&Blob) -> T + Send + 'static,
) -> Result<T, StreamError> {
    let blob = blob.clone();
    tokio::task::spawn_blocking(move || work(&blob)).await.map_err(|_| the_end())
}

fn the_end() -> StreamError {
    StreamError::Lost("the event loop ends".to_owned())
}

/// Bytes of a blob of vectors that is encoded at once, because it is sent whole and often.
const MAX_WHOLE: u64 = MAX_CHUNK_LEN as u64;
/// Values that a backend is asked for at once.
const CUT_PART: usize = 16 << 10;
/// Bytes that are cut out at once.
const PART: usize = 256 << 10;

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
        }
        assert!(blob.header(TransferId::default(), manifest.layout().num_chunks()).is_none());
        assert_eq!(*blob.manifest(), manifest);
        let unsent = Blob::of_vectors(host.iter().map(vector).collect(), MAX_CHUNK_LEN).unwrap();
        assert_eq!(unsent.name(), manifest.blob(), "also where no chunk was needed before");
    }

    #[test]
    fn what_is_cut_out_of_vectors_is_what_they_encode_to() {
        chunks_are_the_encoded_payload::<Flex>(&FlexDevice);
        chunks_are_the_encoded_payload::<NdArray>(&NdArrayDevice::Cpu);
    }
}
