//! What ends of a connection may be able to do besides version 1.0, one bit each; a connection has what both ends have.

/// The node knows the acknowledgement [`CommitState::Durable`](super::CommitState::Durable).
pub const DURABLE: u64 = 1 << 0;

/// The node knows the codecs 1 to 6 ([`codec_features`](super::codec_features)).
pub const CODECS: u64 = 0b111_1110;

/// All that this code can do.
pub const ALL: u64 = DURABLE | CODECS;
