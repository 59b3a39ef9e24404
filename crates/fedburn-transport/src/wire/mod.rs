//! The protocol `fedburn/1`: frames, messages, chunks, blobs. Bytes in, values out; no input or output, no threads.
//!
//! Whatever comes from the other side is bounded before it is read: a decoder never panics, and never allocates more
//! than four times the limit of what it decodes ([`limits`]). `docs/protocol.md` describes every byte.
//!
//! - [`Frame`] and [`FrameDecoder`]: twelve bytes of header, then one [`Message`].
//! - [`ChunkHeader`]: what precedes a chunk on its stream, and how a chunk is verified.
//! - [`Manifest`], [`BlobRef`], [`Layout`]: blobs, known by their hash, and how they are cut into chunks.
//! - [`Bitmap`], [`ChunkRanges`]: which chunks are there, and which are asked for.
//! - [`features`]: what a connection may have besides version 1.0.
//! - [`VectorPayload`]: parameter vectors as payloads.

mod bitmap;
mod blob;
mod bounded;
mod chunk;
mod extension;
pub mod features;
mod frame;
pub mod limits;
mod message;
mod vector;

pub use bitmap::{Bitmap, ChunkRange, ChunkRanges, ChunkSetError};
pub use blob::{BlobError, BlobRef, Layout, Manifest, root_of};
pub use chunk::{ChunkError, ChunkHeader, Codec, Hash, TaskId, TransferId};
pub use extension::{Extension, Extensions};
pub use frame::{Frame, FrameDecoder, FrameError};
pub use message::*;
pub use vector::{VectorPayload, encode_vector, vector_bytes};
