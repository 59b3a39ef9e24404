//! Frames: twelve bytes of header, then a message.

use bytes::Bytes;
use thiserror::Error;

use super::limits::FRAME_HEADER_LEN;
use super::message::{Body, Kind, Message};

/// A frame as it came: its header is checked, its body is not read yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Which message the body is.
    pub kind: Kind,
    /// A number for the sender's own records; the stream says what answers what.
    pub request: u32,
    /// The message, encoded.
    pub body: Bytes,
}

/// Bytes that are no frame of this protocol. The connection is closed with
/// [`CloseCode::Protocol`](super::CloseCode::Protocol).
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The kind is unknown.
    #[error("unknown message kind {kind:#06x}")]
    UnknownKind {
        /// The number.
        kind: u16,
    },
    /// A flag is set; this version has none.
    #[error("{kind:?} with flags {flags:#06x}, expected none")]
    Flags {
        /// The message.
        kind: Kind,
        /// The flags.
        flags: u16,
    },
    /// The body is, or would be, longer than its kind may be.
    #[error("{kind:?} of {len} bytes, at most {limit}")]
    TooLong {
        /// The message.
        kind: Kind,
        /// Bytes of its body.
        len: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The stream ended within a frame.
    #[error("the stream ended after {found} of {expected} bytes of a frame")]
    Truncated {
        /// Bytes of header and body, as far as known.
        expected: usize,
        /// Bytes that came.
        found: usize,
    },
    /// The body is no message of its kind.
    #[error("{kind:?} is malformed or beyond a limit: {reason}")]
    Malformed {
        /// The message.
        kind: Kind,
        /// What the decoder said.
        reason: String,
    },
    /// Bytes are left after the message.
    #[error("{kind:?} is followed by {len} bytes that belong to nothing")]
    Leftover {
        /// The message.
        kind: Kind,
        /// Bytes left.
        len: usize,
    },
    /// Another message than can come here.
    #[error("{found:?} where {expected:?} was expected")]
    Unexpected {
        /// What can come.
        expected: Kind,
        /// What came.
        found: Kind,
    },
    /// A message of our own breaks the protocol's rules: a limit, or the order of a list.
    #[error("{kind:?} cannot be sent: {reason}")]
    Unsendable {
        /// The message.
        kind: Kind,
        /// What the encoder said.
        reason: String,
    },
}

impl Frame {
    /// The bytes of a frame with this message.
    ///
    /// # Errors
    /// [`FrameError::Unsendable`] where a field breaks a limit or a list its order, [`FrameError::TooLong`].
    pub fn encode<M: Body>(request: u32, message: &M) -> Result<Bytes, FrameError> {
        let kind = M::KIND;
        let mut frame = postcard::to_extend(message, vec![0; FRAME_HEADER_LEN])
            .map_err(|e| FrameError::Unsendable { kind, reason: e.to_string() })?;
        let (len, limit) = (frame.len() - FRAME_HEADER_LEN, kind.max_body());
        if len > limit {
            return Err(FrameError::TooLong { kind, len, limit });
        }
        // Fits: every limit is far below 4 GiB.
        frame[..4].copy_from_slice(&(len as u32).to_le_bytes());
        frame[4..6].copy_from_slice(&(kind as u16).to_le_bytes());
        frame[8..FRAME_HEADER_LEN].copy_from_slice(&request.to_le_bytes());
        Ok(frame.into())
    }

    /// Reads the body as the one message that can come here.
    ///
    /// # Errors
    /// [`FrameError::Unexpected`], [`FrameError::Malformed`], [`FrameError::Leftover`].
    pub fn decode<M: Body>(&self) -> Result<M, FrameError> {
        match self.kind == M::KIND {
            true => decode_body(&self.body),
            false => Err(FrameError::Unexpected { expected: M::KIND, found: self.kind }),
        }
    }

    /// Reads the body, whatever message it is.
    ///
    /// # Errors
    /// [`FrameError::Malformed`], [`FrameError::Leftover`].
    pub fn message(&self) -> Result<Message, FrameError> {
        Message::decode(self.kind, &self.body)
    }
}

/// Reads one message to the last byte.
pub(super) fn decode_body<M: Body>(body: &[u8]) -> Result<M, FrameError> {
    let kind = M::KIND;
    let (message, rest) =
        postcard::take_from_bytes(body).map_err(|e| FrameError::Malformed { kind, reason: e.to_string() })?;
    match rest.len() {
        0 => Ok(message),
        len => Err(FrameError::Leftover { kind, len }),
    }
}

/// Puts frames together from bytes as they come.
///
/// Memory grows with what has come, at most to twice the limit of the frame's kind; a header that breaks a rule is
/// refused before a byte of its body is taken.
///
/// # Examples
///
/// ```
/// use fedburn_transport::wire::{Frame, FrameDecoder, GetManifest};
///
/// let bytes = Frame::encode(7, &GetManifest::default())?;
/// let mut decoder = FrameDecoder::new();
/// let (mut first, mut rest) = bytes.split_at(5);
/// assert_eq!(decoder.read(&mut first)?, None);
/// let frame = decoder.read(&mut rest)?.expect("the frame is complete");
/// assert_eq!((frame.request, frame.decode::<GetManifest>()?), (7, GetManifest::default()));
/// decoder.finish()?;
/// # Ok::<(), fedburn_transport::wire::FrameError>(())
/// ```
#[derive(Debug, Default)]
pub struct FrameDecoder {
    header: [u8; FRAME_HEADER_LEN],
    /// Bytes of the header that have come.
    filled: usize,
    body: Vec<u8>,
}

/// What a checked header says.
struct Header {
    kind: Kind,
    request: u32,
    len: usize,
}

impl FrameDecoder {
    /// A decoder at the beginning of a frame.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes off the front of `input`: all of them, or those up to the end of a frame, which is then given.
    ///
    /// # Errors
    /// [`FrameError::UnknownKind`], [`FrameError::Flags`], [`FrameError::TooLong`]; again at each later call.
    pub fn read(&mut self, input: &mut &[u8]) -> Result<Option<Frame>, FrameError> {
        let place = &mut self.header[self.filled..];
        let taken = take(input, place.len());
        place[..taken.len()].copy_from_slice(taken);
        self.filled += taken.len();
        if self.filled < FRAME_HEADER_LEN {
            return Ok(None);
        }
        let Header { kind, request, len } = self.checked_header()?;
        self.body.extend_from_slice(take(input, len - self.body.len()));
        if self.body.len() < len {
            return Ok(None);
        }
        self.filled = 0;
        Ok(Some(Frame { kind, request, body: std::mem::take(&mut self.body).into() }))
    }

    /// Says whether the stream may end here.
    ///
    /// # Errors
    /// [`FrameError::Truncated`] within a frame.
    pub fn finish(&self) -> Result<(), FrameError> {
        if self.filled == 0 {
            return Ok(());
        }
        let body = if self.filled == FRAME_HEADER_LEN { self.checked_header()?.len } else { 0 };
        Err(FrameError::Truncated { expected: FRAME_HEADER_LEN + body, found: self.filled + self.body.len() })
    }

    fn checked_header(&self) -> Result<Header, FrameError> {
        let [l0, l1, l2, l3, k0, k1, f0, f1, r0, r1, r2, r3] = self.header;
        let number = u16::from_le_bytes([k0, k1]);
        let kind = Kind::from_number(number).ok_or(FrameError::UnknownKind { kind: number })?;
        let flags = u16::from_le_bytes([f0, f1]);
        if flags != 0 {
            return Err(FrameError::Flags { kind, flags });
        }
        let (len, limit) = (u32::from_le_bytes([l0, l1, l2, l3]) as usize, kind.max_body());
        match len <= limit {
            true => Ok(Header { kind, request: u32::from_le_bytes([r0, r1, r2, r3]), len }),
            false => Err(FrameError::TooLong { kind, len, limit }),
        }
    }
}

fn take<'a>(input: &mut &'a [u8], most: usize) -> &'a [u8] {
    let (taken, rest) = input.split_at(input.len().min(most));
    *input = rest;
    taken
}
