//! Every bound of the protocol, in one place: both sides refuse what is beyond them.

/// The protocol's name and major version as TLS negotiates it (ALPN).
pub const PROTOCOL: &[u8] = b"fedburn/1";
/// The newest minor version this code speaks; a connection speaks the lower one of its two ends.
pub const MINOR: u16 = 0;

/// Bytes of a frame's header.
pub const FRAME_HEADER_LEN: usize = 12;
/// Bytes of an ordinary frame's body.
pub const MAX_BODY: usize = 64 << 10;
/// Bytes of payload that may travel inside a message instead of in chunks.
pub const MAX_INLINE: usize = 64 << 10;
/// Bytes of a frame's body where the message may carry a payload.
pub const MAX_INLINE_BODY: usize = MAX_BODY + MAX_INLINE;
/// Bytes of the body of a frame that lists a blob's chunks.
pub const MAX_MANIFEST_BODY: usize = 1 << 20;

/// Bytes of a chunk's header.
pub const CHUNK_HEADER_LEN: usize = 64;
/// Bytes of a chunk's payload, at most and unless the server says less.
pub const MAX_CHUNK_LEN: u32 = 4 << 20;
/// Chunks that travel at once on a connection, each on a stream of its own, unless the server says less: enough that some
/// are under way while one is verified, since more would only take memory.
pub const CHUNKS_IN_FLIGHT: u32 = 4;
/// Chunks of a blob.
pub const MAX_CHUNKS: u32 = 16_384;
/// Bytes of a blob: 64 GiB.
pub const MAX_BLOB_LEN: u64 = MAX_CHUNK_LEN as u64 * MAX_CHUNKS as u64;
/// Ranges of chunks in one request; who misses more asks again.
pub const MAX_RANGES: usize = 1_024;

/// Entries of a message's extensions.
pub const MAX_EXTENSIONS: usize = 16;
/// Bytes of all the extensions of a message together, ids and lengths left out.
pub const MAX_EXTENSIONS_LEN: usize = 4 << 10;

/// Bytes of a name: of a piece of side information, a metric.
pub const MAX_NAME: usize = 256;
/// Parts of the model that one task names.
pub const MAX_SLICE_NAMES: usize = 64;
/// Bytes of a reason for people; senders cut longer ones.
pub const MAX_REASON: usize = 1 << 10;
/// Labels of a node.
pub const MAX_LABELS: usize = 64;
/// Bytes of a label, and of the name of the software.
pub const MAX_LABEL: usize = 128;
/// Vectors beside the model, either way.
pub const MAX_SIDE_VECTORS: usize = 64;
/// Numbers beside the model, either way.
pub const MAX_SIDE_SCALARS: usize = 256;
/// Metrics of a result.
pub const MAX_METRICS: usize = 256;
/// Classes whose examples a client counts.
pub const MAX_CLASSES: usize = 32_768;
/// Clients in one part of an announcement; so many always fit a frame.
pub const MAX_ANNOUNCED: usize = 3_072;
/// Parts of an announcement.
pub const MAX_PARTS: u32 = 1_024;
/// Bytes of a certificate or a request for one, DER.
pub const MAX_DER: usize = 8 << 10;
/// Certificates of a chain.
pub const MAX_CHAIN: usize = 4;
