//! The bytes of every message, of a chunk and of a manifest, as committed in `tests/golden/wire`.
//!
//! **These files never change.** Peers of every version since the first read and write these bytes; a difference means
//! that the code no longer speaks `fedburn/1`, and it is the code that has to be put right. A new message, variant or
//! case adds a file; no file is ever edited or removed.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use fedburn_transport::wire::limits::CHUNK_HEADER_LEN;
use fedburn_transport::wire::{ChunkHeader, Codec, Frame, FrameDecoder, Hash, Kind, Message, TransferId};

use crate::samples;

/// The request number of every committed frame.
pub const REQUEST: u32 = 0x0102_0304;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/wire")
}

/// The file of one case: the kind's number, its name, the case.
fn file(message: &Message, case: &str) -> String {
    format!("{:04x}-{:?}-{case}.hex", message.kind() as u16, message.kind())
}

fn hex(bytes: &[u8]) -> String {
    let lines = bytes.chunks(32).map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    lines.collect::<Vec<_>>().join("\n")
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<char> = text.chars().filter(|c| !c.is_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(&pair.iter().collect::<String>(), 16).unwrap()).collect()
}

/// The committed bytes of a case.
fn committed(file: &str, made: &[u8]) -> Vec<u8> {
    match fs::read_to_string(folder().join(file)) {
        Ok(text) => unhex(&text),
        Err(error) => panic!("tests/golden/wire/{file}: {error}; a new case needs this file:\n{}", hex(made)),
    }
}

#[test]
fn every_message_has_its_committed_bytes() {
    for (case, message) in samples::messages() {
        let file = file(&message, case);
        let made = message.encode(REQUEST).unwrap();
        let bytes = committed(&file, &made);
        assert_eq!(hex(&made), hex(&bytes), "{file}: the protocol changed");
        let frame = FrameDecoder::new().read(&mut &bytes[..]).unwrap().unwrap();
        assert_eq!((frame.kind, frame.request), (message.kind(), REQUEST), "{file}");
        assert_eq!(frame.message().unwrap(), message, "{file}");
    }
}

#[test]
fn every_kind_has_a_file_and_every_file_a_case() {
    let made: BTreeSet<String> = samples::messages().iter().map(|(case, message)| file(message, case)).collect();
    assert_eq!(made.len(), samples::messages().len(), "two cases share a file");
    let kinds: BTreeSet<Kind> = samples::messages().iter().map(|(_, message)| message.kind()).collect();
    let without: Vec<&Kind> = Kind::ALL.iter().filter(|kind| !kinds.contains(kind)).collect();
    assert!(without.is_empty(), "no committed bytes of {without:?}");
    let committed = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let strange: Vec<String> = committed.filter(|name| !made.contains(name) && name != "chunk.hex").collect();
    assert!(strange.is_empty(), "files whose case is gone: {strange:?}");
}

#[test]
fn a_chunk_has_its_committed_bytes() {
    let made = samples::chunk();
    let bytes = committed("chunk.hex", &made);
    assert_eq!(hex(&made), hex(&bytes), "chunk.hex: the protocol changed");
    let (header, payload) = bytes.split_first_chunk::<CHUNK_HEADER_LEN>().unwrap();
    let header = ChunkHeader::decode(header).unwrap();
    header.expect(TransferId(std::array::from_fn(|i| 0xa0 + i as u8)), samples::manifest().layout()).unwrap();
    header.verify(payload).unwrap();
    assert_eq!((header.index, header.codec, header.len, header.elements), (1, Codec::F32, 4, 1));
    // The rule of the protocol, written out: everything between the transfer and the hash, then the payload.
    assert_eq!(header.hash, Hash(*blake3::hash(&[&bytes[16..32], payload].concat()).as_bytes()));
}

#[test]
fn a_message_is_the_bytes_that_the_rules_make_by_hand() {
    // Cancel: header of length, kind, flags, request; task as it is; length and text; no extensions.
    let mut bytes = vec![25, 0, 0, 0, 0x03, 0x02, 0, 0, 4, 3, 2, 1];
    bytes.extend(0xa0..0xb0);
    bytes.push(7);
    bytes.extend(b"because");
    bytes.push(0);
    assert_eq!(committed("0203-Cancel-plain.hex", &[]), bytes);
    let frame: Frame = FrameDecoder::new().read(&mut &bytes[..]).unwrap().unwrap();
    assert_eq!(frame.kind, Kind::Cancel);
}

#[test]
fn the_examples_of_the_documentation_are_committed_bytes() {
    let text = include_str!("../../../../docs/protocol.md");
    let page: String = text.split_whitespace().collect();
    for file in ["0302-BlobManifest-inline.hex", "0404-UploadCommit-inline.hex", "chunk.hex"] {
        let bytes: String = fs::read_to_string(folder().join(file)).unwrap().split_whitespace().collect();
        assert!(page.contains(&bytes), "docs/protocol.md does not show {file}");
    }
}
