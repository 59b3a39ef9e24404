//! Every message, by group; the kinds' numbers.

mod blobs;
mod compression;
mod discovery;
mod link;
mod slice;
mod trace;
mod upload;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use blobs::{BlobManifest, ChunksComing, GetChunks, GetManifest};
pub use compression::{COMPRESSION, codec_features, compression_from_wire, compression_to_wire};
pub use discovery::{
    Cancel, Decline, Failure, NamedBlob, NamedValue, ReportsWanted, RoundClosed, TaskKind, TaskOffer, Watch,
};
pub use discovery::{scalars_from_wire, scalars_to_wire, short_reason};
pub use link::{
    Announce, Announced, Bye, ClientEntry, CloseCode, Der, Enroll, Enrolled, Hello, Refusal, Refused, Renew,
    ServerLimits, Welcome,
};
pub use slice::{SLICE, slice_from_wire, slice_to_wire};
pub use trace::{TRACE, TraceParent};
pub use upload::{
    Busy, ClassCounts, CommitAck, CommitState, Measured, NamedMean, Payload, Report, UploadBegin, UploadCommit,
    UploadGrant, metrics_from_wire, metrics_to_wire,
};

use super::frame::{FrameError, decode_body};
use super::limits::{MAX_BODY, MAX_INLINE_BODY, MAX_MANIFEST_BODY};

/// A message that a frame can hold.
pub trait Body: Serialize + DeserializeOwned + Into<Message> {
    /// Its kind.
    const KIND: Kind;
}

/// Declares each message once: its number, its type and the bytes that its body may have.
macro_rules! messages {
    ($($(#[$doc:meta])* $number:literal $name:ident $limit:ident;)*) => {
        /// Which message a frame holds. The numbers may never change; the high byte is the group.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        #[repr(u16)]
        pub enum Kind {
            $($(#[$doc])* $name = $number,)*
        }

        impl Kind {
            /// Every kind, by number.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The kind of this number; `None` where there is none.
            pub fn from_number(number: u16) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// Bytes that the body may have.
            pub fn max_body(self) -> usize {
                match self {
                    $(Self::$name => $limit,)*
                }
            }
        }

        /// Any message.
        #[derive(Clone, Debug, PartialEq)]
        #[non_exhaustive]
        pub enum Message {
            $($(#[$doc])* $name($name),)*
        }

        impl Message {
            /// Which message this is.
            pub fn kind(&self) -> Kind {
                match self {
                    $(Self::$name(_) => Kind::$name,)*
                }
            }

            /// The bytes of a frame with this message.
            ///
            /// # Errors
            /// As [`Frame::encode`](super::Frame::encode).
            pub fn encode(&self, request: u32) -> Result<bytes::Bytes, FrameError> {
                match self {
                    $(Self::$name(message) => super::Frame::encode(request, message),)*
                }
            }

            /// Reads a message of this kind from all of `body`.
            ///
            /// # Errors
            /// [`FrameError::Malformed`], [`FrameError::Leftover`].
            pub fn decode(kind: Kind, body: &[u8]) -> Result<Self, FrameError> {
                match kind {
                    $(Kind::$name => decode_body(body).map(Self::$name),)*
                }
            }
        }

        $(
            impl Body for $name {
                const KIND: Kind = Kind::$name;
            }

            impl From<$name> for Message {
                fn from(message: $name) -> Self {
                    Self::$name(message)
                }
            }
        )*
    };
}

messages! {
    /// Client: the first message on a connection.
    0x0101 Hello MAX_BODY;
    /// Server, to `Hello`.
    0x0102 Welcome MAX_BODY;
    /// Client: which clients this node is, in parts.
    0x0103 Announce MAX_BODY;
    /// Server, to each part of an announcement.
    0x0104 Announced MAX_BODY;
    /// Client without a certificate: asks for its first.
    0x0105 Enroll MAX_BODY;
    /// Server, to `Enroll` and `Renew`.
    0x0106 Enrolled MAX_BODY;
    /// Client: asks for a certificate with a later end.
    0x0107 Renew MAX_BODY;
    /// Server, watch stream: there will be nothing more.
    0x0108 Bye MAX_BODY;
    /// Server, to anything that it does not do.
    0x0109 Refused MAX_BODY;
    /// Client: opens the stream on which the server says what there is to do.
    0x0201 Watch MAX_BODY;
    /// Server, watch stream: something to do.
    0x0202 TaskOffer MAX_BODY;
    /// Server, watch stream: a task is no longer wanted.
    0x0203 Cancel MAX_BODY;
    /// Server, watch stream: a round ended.
    0x0204 RoundClosed MAX_BODY;
    /// Client: a task will not be done.
    0x0205 Decline MAX_BODY;
    /// Client: asks how a blob is cut.
    0x0301 GetManifest MAX_BODY;
    /// Server, to `GetManifest`.
    0x0302 BlobManifest MAX_MANIFEST_BODY;
    /// Client: asks for chunks of a blob.
    0x0303 GetChunks MAX_BODY;
    /// Server, to `GetChunks`.
    0x0304 ChunksComing MAX_BODY;
    /// Client: wants to send an update in chunks.
    0x0401 UploadBegin MAX_BODY;
    /// Server, to `UploadBegin`.
    0x0402 UploadGrant MAX_BODY;
    /// Server, to anything that it will do later.
    0x0403 Busy MAX_BODY;
    /// Client: an update, complete.
    0x0404 UploadCommit MAX_INLINE_BODY;
    /// Server, to `UploadCommit`, `Measured` and `Decline`.
    0x0405 CommitAck MAX_BODY;
    /// Client: a measurement.
    0x0406 Measured MAX_BODY;
}
