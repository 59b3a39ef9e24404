//! The link: greeting, announcement, certificates, goodbye.

use bytes::Bytes;
use fedburn_core::{ClientId, ClientInfo};
use serde::{Deserialize, Serialize};

use crate::wire::blob::BlobRef;
use crate::wire::bounded::{InOrder, List, Names, Octets, Sorted, Text};
use crate::wire::chunk::Hash;
use crate::wire::extension::Extensions;
use crate::wire::limits::{
    CHUNKS_IN_FLIGHT, MAX_ANNOUNCED, MAX_CHAIN, MAX_CHUNK_LEN, MAX_DER, MAX_INLINE, MAX_LABEL, MAX_LABELS, MAX_REASON,
};

/// The first message of a client.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The newest minor version that the client speaks.
    pub minor: u16,
    /// What the client can do besides, one bit a [feature](crate::wire::features); version 1.0 defines none.
    pub features: u64,
    /// What the node's operator calls it, sorted.
    #[serde(with = "Names::<MAX_LABELS, MAX_LABEL>")]
    pub labels: Vec<String>,
    /// Name and version of the client's software, for people.
    #[serde(with = "Text::<MAX_LABEL>")]
    pub software: String,
    /// Additions.
    pub ext: Extensions,
}

/// The answer to [`Hello`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The minor version of this connection: the lower one of the two ends.
    pub minor: u16,
    /// Features of this connection: those that both ends have.
    pub features: u64,
    /// The server's clock, milliseconds since 1970-01-01 UTC.
    pub server_time: u64,
    /// Another number than before means that the server forgot unfinished uploads.
    pub epoch: u64,
    /// What the server takes.
    pub limits: ServerLimits,
    /// What is to be trained, as text.
    pub plan: BlobRef,
    /// Additions.
    pub ext: Extensions,
}

/// What a server takes and gives, within the protocol's own limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerLimits {
    /// Bytes of a chunk of an upload, a multiple of four, at most [`MAX_CHUNK_LEN`].
    pub chunk_len: u32,
    /// Bytes of payload that may travel inside a message, at most [`MAX_INLINE`].
    pub inline_len: u32,
    /// Chunks that a client may have under way at once, at most [`CHUNKS_IN_FLIGHT`] of which are.
    pub chunks_in_flight: u32,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self { chunk_len: MAX_CHUNK_LEN, inline_len: MAX_INLINE as u32, chunks_in_flight: CHUNKS_IN_FLIGHT }
    }
}

/// One part of the list of clients that a node is. The parts of one list come in order, on one connection, and agree in
/// everything but the clients.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announce {
    /// Clients, sorted by id; those of a later part come after those of an earlier one.
    #[serde(with = "Sorted::<ClientEntry, MAX_ANNOUNCED>")]
    pub clients: Vec<ClientEntry>,
    /// Fingerprint of the model's schema ([`fedburn_core::ParamSchema::fingerprint`]).
    pub schema: u64,
    /// The hash of the plan that the node works by.
    pub plan: Hash,
    /// Number of this part, from 0.
    pub part: u32,
    /// Number of parts, `1..=`[`MAX_PARTS`](crate::wire::limits::MAX_PARTS).
    pub parts: u32,
    /// Additions.
    pub ext: Extensions,
}

impl Announce {
    /// The announcement of `clients`, sorted by id, in as many parts as it takes; of none, in one.
    pub fn parts(clients: &[ClientInfo], schema: u64, plan: Hash) -> Vec<Self> {
        let parts = clients.len().div_ceil(MAX_ANNOUNCED).max(1) as u32;
        let part = |part| {
            let clients = clients.iter().skip(part as usize * MAX_ANNOUNCED).take(MAX_ANNOUNCED);
            let clients = clients.map(|client| ClientEntry::from(*client)).collect();
            Self { clients, schema, plan, part, parts, ext: Extensions::default() }
        };
        (0..parts).map(part).collect()
    }
}

/// One client of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientEntry {
    /// The client.
    pub id: ClientId,
    /// Number of its training examples.
    pub num_examples: u64,
}

impl From<ClientInfo> for ClientEntry {
    fn from(info: ClientInfo) -> Self {
        Self { id: info.id, num_examples: info.num_examples }
    }
}

impl From<ClientEntry> for ClientInfo {
    fn from(entry: ClientEntry) -> Self {
        Self { id: entry.id, num_examples: entry.num_examples }
    }
}

impl InOrder for ClientEntry {
    fn precedes(&self, next: &Self) -> bool {
        self.id < next.id
    }
}

/// The answer to each part of an [`Announce`]; after the last one the clients may be asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announced {
    /// Additions.
    pub ext: Extensions,
}

/// Asks for a first certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enroll {
    /// The node's public key (SubjectPublicKeyInfo, DER) and its signature over key and TLS connection.
    #[serde(with = "Octets::<MAX_DER>")]
    pub csr: Bytes,
    /// Proof that the node knows the enrolment secret, bound to this TLS connection.
    pub mac: Hash,
    /// Additions.
    pub ext: Extensions,
}

/// A certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolled {
    /// The node's certificate and those between it and the authority, in this order.
    #[serde(with = "List::<Der, MAX_CHAIN>")]
    pub chain: Vec<Der>,
    /// The authority's certificate.
    pub ca: Der,
    /// Additions.
    pub ext: Extensions,
}

/// A certificate, X.509 in DER.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Der(#[serde(with = "Octets::<MAX_DER>")] pub Bytes);

/// Asks for a certificate with a later end, over a connection that has one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renew {
    /// As in [`Enroll`].
    #[serde(with = "Octets::<MAX_DER>")]
    pub csr: Bytes,
    /// Additions.
    pub ext: Extensions,
}

/// There will be nothing more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bye {
    /// Why, for people.
    #[serde(with = "Text::<MAX_REASON>")]
    pub reason: String,
    /// Additions.
    pub ext: Extensions,
}

/// The answer to a request that is not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Why, for programs.
    pub code: Refusal,
    /// Why, for people.
    #[serde(with = "Text::<MAX_REASON>")]
    pub reason: String,
    /// Additions.
    pub ext: Extensions,
}

/// Why a request was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Refusal {
    /// The connection may not ask this: no certificate, no greeting, no announcement before.
    NotAllowed,
    /// The enrolment secret is wrong or used up, or the signing request is unusable.
    Enrolment,
    /// Another node is this client.
    ClientTaken,
    /// The node works by another plan.
    WrongPlan,
    /// The node's model has another schema.
    WrongSchema,
    /// The task is not known, or is another node's.
    UnknownTask,
    /// The blob is not known.
    UnknownBlob,
    /// A field contradicts what both sides know: a length, a part's number.
    Invalid,
    /// A limit of the protocol or the server is exceeded.
    Limit,
    /// The server is about to close.
    Draining,
    /// The server failed.
    Internal,
}

/// Why a connection is closed: the application error code of QUIC. The numbers may never change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
#[repr(u32)]
pub enum CloseCode {
    /// All is done.
    Ok = 0,
    /// No greeting came in time.
    HelloTimeout = 1,
    /// No common version.
    Version = 2,
    /// No certificate, and nothing that may be done without one.
    Unauthenticated = 3,
    /// The node was revoked, or is not on the list of those allowed.
    Revoked = 4,
    /// Bytes that are not this protocol.
    Protocol = 5,
    /// A limit was exceeded.
    Limit = 6,
    /// Too slow.
    Slow = 7,
    /// The server is about to end.
    Draining = 8,
    /// The other side failed.
    Internal = 9,
    /// Another connection of the same node took its place.
    Replaced = 10,
    /// Client: the data's owner does not permit the plan; the reason says what.
    Declined = 11,
}

impl CloseCode {
    /// Every code, by number.
    pub const ALL: &[Self] = &[
        Self::Ok,
        Self::HelloTimeout,
        Self::Version,
        Self::Unauthenticated,
        Self::Revoked,
        Self::Protocol,
        Self::Limit,
        Self::Slow,
        Self::Draining,
        Self::Internal,
        Self::Replaced,
        Self::Declined,
    ];

    /// The code of this number; `None` where there is none.
    pub fn from_number(number: u64) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| *code as u64 == number)
    }

    /// Its name in figures and logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::HelloTimeout => "hello_timeout",
            Self::Version => "version",
            Self::Unauthenticated => "unauthenticated",
            Self::Revoked => "revoked",
            Self::Protocol => "protocol",
            Self::Limit => "limit",
            Self::Slow => "slow",
            Self::Draining => "draining",
            Self::Internal => "internal",
            Self::Replaced => "replaced",
            Self::Declined => "declined",
        }
    }
}
