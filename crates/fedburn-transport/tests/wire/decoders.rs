//! Everything that reads bytes of a peer, each with inputs to begin with and what must hold for any other.

use fedburn_transport::wire::limits::*;
use fedburn_transport::wire::*;

use crate::allocation::peak;
use crate::{golden, samples};

/// A decoder under test. `read` panics where a law is broken and says whether the input was accepted.
pub struct Decoder {
    pub name: String,
    pub seeds: Vec<Vec<u8>>,
    /// Bytes that an input may have; longer ones cannot reach the decoder.
    pub longest: usize,
    pub read: Box<dyn Fn(&[u8]) -> bool>,
}

/// A decoder may hold so many times the limit of what it decodes.
const FACTOR: usize = 4;

/// All of them: the frames of a stream, each kind of message, a chunk, and what a chunk is put into.
pub fn decoders() -> Vec<Decoder> {
    let bodies = golden::bodies();
    let messages = Kind::ALL.iter().map(|&kind| Decoder {
        name: format!("{kind:?}"),
        seeds: bodies.iter().filter(|(of, _)| *of == kind).map(|(_, body)| body.clone()).collect(),
        longest: kind.max_body(),
        read: Box::new(move |input| message(kind, input)),
    });
    let frames = samples::messages().into_iter().map(|(_, message)| message.encode(7).unwrap().to_vec()).collect();
    let frames = Decoder { name: "frames".to_owned(), seeds: frames, longest: 256 << 10, read: Box::new(frames_of) };
    let seeds = vec![samples::chunk()];
    let chunk = Decoder { name: "chunk".to_owned(), seeds, longest: 4_096, read: Box::new(chunk) };
    let seeds = vec![samples::payload().to_vec()];
    let values = Decoder { name: "values".to_owned(), seeds, longest: 4_096, read: Box::new(values) };
    messages.chain([frames, chunk, values]).collect()
}

fn bounded<T>(limit: usize, call: impl FnOnce() -> T) -> T {
    let (result, held) = peak(call);
    assert!(held <= FACTOR * limit, "{held} bytes were held, at most {FACTOR} x {limit} may be");
    result
}

/// A message that is read is one that can be sent, and reads the same again.
fn message(kind: Kind, input: &[u8]) -> bool {
    let Ok(message) = bounded(kind.max_body(), || Message::decode(kind, input)) else { return false };
    let frame = message.encode(0).unwrap();
    let again = Message::decode(kind, &frame[FRAME_HEADER_LEN..]).unwrap();
    assert_eq!(again.encode(0).unwrap(), frame, "not the same twice");
    assert!(frame.len() - FRAME_HEADER_LEN <= input.len(), "a sender writes the shortest form");
    if let Message::BlobManifest(manifest) = &message {
        // What its own hashes make is accepted, and then has the announced length.
        let blob = manifest.manifest.blob();
        if let Ok(Some(content)) = manifest.verify(&blob) {
            assert_eq!(content.len() as u64, blob.len);
        }
    }
    true
}

/// The pieces in which bytes come change nothing; the longest kind bounds the memory.
fn frames_of(input: &[u8]) -> bool {
    let read = |pieces: usize| {
        let (mut decoder, mut frames) = (FrameDecoder::new(), Vec::new());
        for mut piece in input.chunks(pieces) {
            while !piece.is_empty() {
                match bounded(MAX_MANIFEST_BODY, || decoder.read(&mut piece)) {
                    Ok(frame) => frames.extend(frame),
                    Err(error) => return (frames, Err(error)),
                }
            }
        }
        (frames, decoder.finish())
    };
    let whole = read(input.len().max(1));
    assert_eq!(read(1 + input.len() / 3), whole, "the pieces make a difference");
    let (frames, end) = whole;
    let readable = frames.iter().filter(|frame| frame.message().is_ok()).count();
    end.is_ok() && readable == frames.len()
}

/// A chunk that is accepted is the one of the manifest, to the last bit.
fn chunk(input: &[u8]) -> bool {
    let (manifest, good) = (samples::manifest(), samples::chunk());
    let transfer = TransferId(std::array::from_fn(|i| good[i]));
    let Some((header, payload)) = input.split_first_chunk::<CHUNK_HEADER_LEN>() else { return false };
    let accepted = bounded(CHUNK_HEADER_LEN, || {
        let header = ChunkHeader::decode(header)?;
        manifest.expect(transfer, &header)?;
        header.verify(payload).map(|()| header)
    });
    let Ok(header) = accepted else { return false };
    let expected = [&header.encode()[..], payload].concat();
    assert_eq!(expected, input);
    let whole = samples::payload();
    assert_eq!(payload, manifest.layout().slice(header.index, &whole).unwrap(), "another chunk was accepted");
    true
}

/// A payload of any length is read only where it has exactly that of its chunk.
fn values(input: &[u8]) -> bool {
    let payload = VectorPayload::new(2, 3, 12).unwrap();
    let mut place = [[0.5f32; 2]; 3];
    let mut place: Vec<&mut [f32]> = place.iter_mut().map(|vector| &mut vector[..]).collect();
    let read = (0..3).filter(|&index| bounded(1, || payload.decode_chunk(index, input, &mut place)).is_ok()).count();
    assert_eq!(read, if input.len() == 12 { 2 } else { 0 });
    read > 0
}
