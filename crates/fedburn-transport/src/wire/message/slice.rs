//! Sub-models as they travel: the names of the parts that a task is about.

use std::borrow::Cow;

use fedburn_core::SliceName;

use super::Kind;
use crate::wire::extension::{Extension, Extensions};
use crate::wire::frame::FrameError;
use crate::wire::limits::{MAX_NAME, MAX_SLICE_NAMES};

/// The extension of a [`TaskOffer`](super::TaskOffer) that names the parts of the model that the task is about, which
/// both ends know from the plan; absent where it is about the whole: for each `length u16 | name`, little-endian.
pub const SLICE: u16 = 3;

/// The extension that says it; `None` for the whole model. Names beyond the limits are refused where it is read.
pub fn slice_to_wire(names: &[SliceName]) -> Option<Extension> {
    let name = |name: &SliceName| {
        let len = u16::try_from(name.len()).unwrap_or(u16::MAX);
        [&len.to_le_bytes()[..], name.as_bytes()].concat()
    };
    let data: Vec<u8> = names.iter().flat_map(name).collect();
    (!names.is_empty()).then(|| Extension { id: SLICE, data: data.into() })
}

/// What the extensions of a task say of it.
///
/// # Errors
/// [`FrameError::Malformed`] where it is not what a sender writes.
pub fn slice_from_wire(extensions: &Extensions) -> Result<Vec<SliceName>, FrameError> {
    let Some(data) = extensions.find(SLICE) else { return Ok(Vec::new()) };
    let malformed =
        || FrameError::Malformed { kind: Kind::TaskOffer, reason: "names of parts of the model".to_owned() };
    let (mut rest, mut names) = (&data[..], Vec::new());
    while let Some((len, more)) = rest.split_first_chunk() {
        let len = usize::from(u16::from_le_bytes(*len));
        let (name, more) =
            more.split_at_checked(len).filter(|_| (1..=MAX_NAME).contains(&len)).ok_or_else(malformed)?;
        if names.len() == MAX_SLICE_NAMES {
            return Err(malformed());
        }
        names.push(Cow::Owned(str::from_utf8(name).map_err(|_| malformed())?.to_owned()));
        rest = more;
    }
    if names.is_empty() || !rest.is_empty() { Err(malformed()) } else { Ok(names) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(data: &[u8]) -> Result<Vec<SliceName>, FrameError> {
        slice_from_wire(&Extensions::new(vec![Extension { id: SLICE, data: data.to_vec().into() }]))
    }

    #[test]
    fn names_come_as_they_went() {
        let names: Vec<SliceName> = vec!["group.0".into(), "netz.ü".into()];
        let sent = slice_to_wire(&names).unwrap();
        assert_eq!(sent.data[..], b"\x07\0group.0\x07\0netz.\xc3\xbc"[..]);
        assert_eq!(slice_from_wire(&Extensions::new(vec![sent])).unwrap(), names);
        assert!(slice_to_wire(&[]).is_none());
        assert!(slice_from_wire(&Extensions::default()).unwrap().is_empty());
    }

    #[test]
    fn what_no_sender_writes_is_refused() {
        let long = [&257u16.to_le_bytes()[..], &[b'x'; 257]].concat();
        let many = b"\x01\0a".repeat(MAX_SLICE_NAMES + 1);
        assert!(read(&many[3..]).is_ok());
        for data in [&b""[..], &many, b"\x01", b"\0\0", b"\x02\0a", b"\x01\0ab", b"\x01\0\xff", &long] {
            assert!(matches!(read(data), Err(FrameError::Malformed { .. })), "{data:?}");
        }
    }
}
