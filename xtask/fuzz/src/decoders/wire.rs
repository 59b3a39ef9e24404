//! What a peer sends: frames, each kind of message, chunks, and what a task says of compression.

use fedburn_core::{CompressionConfig, SliceName};
use fedburn_transport::wire::limits::*;
use fedburn_transport::wire::*;

use crate::Decoder;
use crate::decoder::Decoded;

pub(super) fn decoders() -> Vec<Decoder> {
    let message = |kind: Kind| {
        Decoder::new(format!("{kind:?}"), kind.max_body(), move |input| Ok(Message::decode(kind, input)?), message)
    };
    let others = [
        Decoder::new("frames", MAX_MANIFEST_BODY, |input| Ok(frames(input, input.len())?), in_pieces),
        Decoder::new("chunk", 4_096, verified, the_one_expected),
        Decoder::new("values", 4_096, placed, |input, places| {
            assert_eq!(places, if input.len() == 12 { 2 } else { 0 })
        }),
        Decoder::new("trace", MAX_EXTENSIONS_LEN, trace, |input, parent| {
            // Flags that are not known are not repeated.
            let written = parent.to_wire().data;
            assert_eq!(written[..24], input[..24]);
            assert_eq!((input.len(), written[24]), (25, input[24] & 1));
        }),
        Decoder::new("slice", MAX_EXTENSIONS_LEN, slice, |input, names| {
            assert_eq!(slice_to_wire(&names).expect("it was read").data, input);
        }),
        Decoder::new("compression", MAX_EXTENSIONS_LEN, compression, |input, read| {
            assert_eq!(compression_to_wire(&read).expect("it was read").data, input);
        }),
    ];
    Kind::ALL.iter().copied().map(message).chain(others).collect()
}

/// A message that is read is one that can be sent, and reads the same again.
fn message(input: &[u8], message: Message) {
    let frame = message.encode(0).expect("a message that was read can be sent");
    let again = Message::decode(message.kind(), &frame[FRAME_HEADER_LEN..]).expect("it can be read again");
    assert_eq!(again.encode(0).expect("and sent again"), frame, "not the same twice");
    assert!(frame.len() - FRAME_HEADER_LEN <= input.len(), "a sender writes the shortest form");
    if let Message::BlobManifest(manifest) = &message {
        // What its own hashes make is accepted, and then has the announced length.
        let blob = manifest.manifest.blob();
        if let Ok(Some(content)) = manifest.verify(&blob) {
            assert_eq!(content.len() as u64, blob.len);
        }
    }
}

/// The messages of a stream that comes in pieces of this length.
fn frames(input: &[u8], piece: usize) -> Result<Vec<Message>, FrameError> {
    let (mut decoder, mut messages) = (FrameDecoder::new(), Vec::new());
    for mut piece in input.chunks(piece.max(1)) {
        while !piece.is_empty() {
            if let Some(frame) = decoder.read(&mut piece)? {
                messages.push(frame.message()?);
            }
        }
    }
    decoder.finish().map(|()| messages)
}

/// The pieces in which bytes come change nothing.
fn in_pieces(input: &[u8], messages: Vec<Message>) {
    let bytes = |messages: &[Message]| messages.iter().map(|message| message.encode(0)).collect::<Result<Vec<_>, _>>();
    let again = frames(input, 1 + input.len() / 3).expect("as before");
    assert_eq!(bytes(&again), bytes(&messages), "the pieces make a difference");
}

/// A blob of two chunks, of which the second is expected, and the transfer that brings it.
fn expected() -> (Manifest, TransferId, Vec<u8>) {
    let payload: Vec<u8> = (0..12).collect();
    (Manifest::of(Codec::F32, &payload, 8).expect("a blob of two chunks"), TransferId([0xa0; 16]), payload)
}

fn verified(input: &[u8]) -> Decoded<ChunkHeader> {
    let (header, payload) = input.split_first_chunk::<CHUNK_HEADER_LEN>().ok_or("shorter than a header")?;
    let (manifest, transfer, _) = expected();
    let header = ChunkHeader::decode(header)?;
    manifest.expect(transfer, &header)?;
    header.verify(payload)?;
    Ok(header)
}

/// A chunk that is accepted is the one of the manifest, to the last bit.
fn the_one_expected(input: &[u8], header: ChunkHeader) {
    let (manifest, _, whole) = expected();
    let payload = &input[CHUNK_HEADER_LEN..];
    assert_eq!(header.encode(), input[..CHUNK_HEADER_LEN]);
    assert_eq!(Ok(payload), manifest.layout().slice(header.index, &whole), "another chunk was accepted");
}

/// In how many of three places a payload fits: it is read only where it has exactly the length of its chunk.
fn placed(input: &[u8]) -> Decoded<usize> {
    let payload = VectorPayload::new(2, 3, 12)?;
    let mut vectors = [[0.5f32; 2]; 3];
    let mut vectors: Vec<&mut [f32]> = vectors.iter_mut().map(|vector| &mut vector[..]).collect();
    let mut places = 0;
    for index in 0..2 {
        payload.decode_chunk(index, input, &mut vectors)?;
        places += 1;
    }
    assert!(payload.decode_chunk(2, input, &mut vectors).is_err(), "there is no third chunk");
    Ok(places)
}

fn compression(input: &[u8]) -> Decoded<CompressionConfig> {
    let extension = Extension { id: COMPRESSION, data: input.to_vec().into() };
    Ok(compression_from_wire(&Extensions::new(vec![extension]))?)
}

fn slice(input: &[u8]) -> Decoded<Vec<SliceName>> {
    let extension = Extension { id: SLICE, data: input.to_vec().into() };
    Ok(slice_from_wire(&Extensions::new(vec![extension]))?)
}

/// What a task says of its trace is read as far as it says anything.
fn trace(input: &[u8]) -> Decoded<TraceParent> {
    let extension = Extension { id: TRACE, data: input.to_vec().into() };
    Ok(TraceParent::from_wire(&Extensions::new(vec![extension])).ok_or("no trace")?)
}
