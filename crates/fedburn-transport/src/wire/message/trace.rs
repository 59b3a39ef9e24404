//! Distributed traces as they travel: which span a task is, so that what its node does becomes part of the same trace.

use crate::wire::extension::{Extension, Extensions};

/// The extension of a [`TaskOffer`](super::TaskOffer) that names the task's span; absent where nobody traces:
/// `trace [16] | span [8] | flags u8`, the fields of a `traceparent` (W3C Trace Context, version 00) as bytes.
pub const TRACE: u16 = 2;

/// A span of a distributed trace, for others to be its children. Nothing of a task depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    /// The trace, not all zero.
    pub trace: [u8; 16],
    /// The span within it, not all zero.
    pub span: [u8; 8],
}

impl TraceParent {
    /// The extension that says it.
    pub fn to_wire(self) -> Extension {
        Extension { id: TRACE, data: [&self.trace[..], &self.span, &[SAMPLED]].concat().into() }
    }

    /// What the extensions of a task say; `None` where nobody records the trace, or where it is no `traceparent`.
    pub fn from_wire(extensions: &Extensions) -> Option<Self> {
        let (&trace, rest) = extensions.find(TRACE)?.split_first_chunk()?;
        let (&span, &[flags]) = rest.split_first_chunk()? else { return None };
        (trace != [0; 16] && span != [0; 8] && flags & SAMPLED != 0).then_some(Self { trace, span })
    }
}

/// The flag that says that the trace is recorded. Others are left out of account.
const SAMPLED: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: TraceParent = TraceParent { trace: [0x0a; 16], span: [0x0b; 8] };

    fn read(data: Vec<u8>) -> Option<TraceParent> {
        TraceParent::from_wire(&Extensions::new(vec![Extension { id: TRACE, data: data.into() }]))
    }

    #[test]
    fn what_is_said_is_read_and_flags_of_others_change_nothing() {
        let said = PARENT.to_wire().data.to_vec();
        assert_eq!(read(said.clone()), Some(PARENT));
        assert_eq!(read([&said[..24], &[0xff]].concat()), Some(PARENT));
    }

    #[test]
    fn what_is_no_recorded_span_says_nothing() {
        assert_eq!(TraceParent::from_wire(&Extensions::default()), None);
        let said = PARENT.to_wire().data.to_vec();
        for len in 0..said.len() {
            assert_eq!(read(said[..len].to_vec()), None, "{len} bytes");
        }
        assert_eq!(read([&said[..], &[0]].concat()), None, "a byte too many");
        assert_eq!(read([&[0; 16][..], &said[16..]].concat()), None, "no trace");
        assert_eq!(read([&said[..16], &[0; 8], &[1]].concat()), None, "no span");
        assert_eq!(read([&said[..24], &[0xfe]].concat()), None, "not recorded");
    }
}
