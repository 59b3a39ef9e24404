//! Frames and chunks over QUIC streams.

use bytes::Bytes;
use quinn::{Connection, ReadError, RecvStream, SendStream, VarInt, WriteError};
use thiserror::Error;

use crate::wire::limits::CHUNK_HEADER_LEN;
use crate::wire::{Body, ChunkError, ChunkHeader, CloseCode, Frame, FrameDecoder, FrameError, Message};

/// A stream that did not bring what it should.
#[derive(Debug, Error)]
pub(crate) enum StreamError {
    /// The other side does not keep to the protocol.
    #[error("{0}")]
    Frame(#[from] FrameError),
    /// A chunk is not what it should be.
    #[error("{0}")]
    Chunk(#[from] ChunkError),
    /// The stream ended early, was reset, or its connection is gone.
    #[error("{0}")]
    Lost(String),
    /// The other side does not want the rest.
    #[error("not wanted any more")]
    Unwanted,
    /// Nothing came, or nothing could be sent, for too long.
    #[error("no progress")]
    Slow,
}

impl From<ReadError> for StreamError {
    fn from(error: ReadError) -> Self {
        Self::Lost(error.to_string())
    }
}

impl From<WriteError> for StreamError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::Stopped(_) => Self::Unwanted,
            other => Self::Lost(other.to_string()),
        }
    }
}

impl From<quinn::ConnectionError> for StreamError {
    fn from(error: quinn::ConnectionError) -> Self {
        Self::Lost(error.to_string())
    }
}

/// Reads frames off a stream.
pub(crate) struct FrameReader {
    stream: RecvStream,
    decoder: FrameDecoder,
    /// What came behind the last frame.
    rest: Bytes,
}

impl FrameReader {
    pub(crate) fn new(stream: RecvStream) -> Self {
        Self { stream, decoder: FrameDecoder::new(), rest: Bytes::new() }
    }

    /// Gives the stream back; what came behind the last frame is lost.
    pub(crate) fn into_inner(self) -> RecvStream {
        self.stream
    }

    /// The next frame; `None` where the stream ended before one.
    pub(crate) async fn next(&mut self) -> Result<Option<Frame>, StreamError> {
        loop {
            let mut input: &[u8] = &self.rest;
            let frame = self.decoder.read(&mut input)?;
            let taken = self.rest.len() - input.len();
            self.rest = self.rest.split_off(taken);
            if frame.is_some() {
                return Ok(frame);
            }
            match self.stream.read_chunk(MAX_READ, true).await? {
                Some(chunk) => self.rest = chunk.bytes,
                None => {
                    self.decoder.finish()?;
                    return Ok(None);
                }
            }
        }
    }
}

/// Sends one message.
pub(crate) async fn send(stream: &mut SendStream, request: u32, message: &Message) -> Result<(), StreamError> {
    let frame = message.encode(request)?;
    Ok(stream.write_chunk(frame).await?)
}

/// Asks for something on a stream of its own and gives the first answer.
pub(crate) async fn ask<M: Body>(connection: &Connection, question: &M) -> Result<Message, StreamError> {
    let (mut sending, receiving) = connection.open_bi().await?;
    // Cannot fail: the stream was just opened.
    let _ = sending.set_priority(super::tuning::CONTROL_PRIORITY);
    sending.write_chunk(Frame::encode(REQUEST, question)?).await?;
    let _ = sending.finish();
    let answer = FrameReader::new(receiving).next().await?;
    let answer = answer.ok_or_else(|| StreamError::Lost("the stream ended without an answer".to_owned()))?;
    Ok(answer.message()?)
}

/// Reads a chunk's header.
pub(crate) async fn read_header(stream: &mut RecvStream) -> Result<ChunkHeader, StreamError> {
    let mut bytes = [0; CHUNK_HEADER_LEN];
    stream.read_exact(&mut bytes).await.map_err(|e| StreamError::Lost(e.to_string()))?;
    Ok(ChunkHeader::decode(&bytes)?)
}

/// Reads exactly the payload that a checked header announces, as it came off the wire, and tells of each part. The
/// stream counts as open until [`read_end`], so that no more come than are worked on.
pub(crate) async fn read_payload(
    stream: &mut RecvStream,
    header: &ChunkHeader,
    mut came: impl FnMut(usize),
) -> Result<Vec<Bytes>, StreamError> {
    let wrong = |found| ChunkError::Payload { index: header.index, expected: header.len, found };
    let (mut parts, mut small, mut found) = (Vec::new(), Vec::new(), 0);
    let mut next = [const { Bytes::new() }; READ_PARTS];
    while found < header.len as usize {
        let Some(count) = stream.read_chunks(&mut next).await? else { return Err(wrong(found).into()) };
        let len: usize = next[..count].iter().map(Bytes::len).sum();
        found += len;
        if found > header.len as usize {
            return Err(wrong(found).into());
        }
        came(len);
        for part in next[..count].iter_mut().map(std::mem::take) {
            match part.len() < MIN_PART {
                true => small.extend_from_slice(&part),
                false => {
                    parts.extend((!small.is_empty()).then(|| std::mem::take(&mut small).into()));
                    parts.push(part);
                }
            }
        }
    }
    parts.extend((!small.is_empty()).then(|| small.into()));
    Ok(parts)
}

/// Reads the end of a chunk's stream, behind which another may be opened.
pub(crate) async fn read_end(stream: &mut RecvStream, header: &ChunkHeader) -> Result<(), StreamError> {
    match stream.read_chunk(MAX_READ, true).await? {
        None => Ok(()),
        Some(more) => {
            let (index, expected) = (header.index, header.len);
            Err(ChunkError::Payload { index, expected, found: expected as usize + more.bytes.len() }.into())
        }
    }
}

/// Closes a connection and says why.
pub(crate) fn close(connection: &Connection, code: CloseCode, reason: &str) {
    let reason = &reason[..reason.floor_char_boundary(MAX_CLOSE_REASON)];
    connection.close(VarInt::from_u32(code as u32), reason.as_bytes());
}

/// Requests and answers have a stream to themselves, so that one number serves all.
pub(crate) const REQUEST: u32 = 0;
/// Packets taken off a chunk's stream at once.
const READ_PARTS: usize = 64;
/// Bytes below which a part is copied: it would keep all of the packets in memory that it came with.
const MIN_PART: usize = 1 << 10;
/// Bytes taken off a stream at once.
const MAX_READ: usize = 256 << 10;
/// Bytes of a close frame's reason, which must fit one packet.
const MAX_CLOSE_REASON: usize = 512;
