//! Everything that reads bytes of a peer, each with inputs to begin with and what must hold for any other.

use fedburn_core::{CompressionConfig, Seed};
use fedburn_transport::wire::limits::*;
use fedburn_transport::wire::*;

use crate::allocation::peak;
use crate::generate::Draw;
use crate::{golden, samples};

/// A decoder under test.
pub struct Decoder {
    pub name: String,
    pub seeds: Vec<Vec<u8>>,
    /// The limit of what is decoded, in bytes: no input is longer, and memory is held to a multiple of it.
    pub limit: usize,
    pub read: Read,
}

/// Reads an input; panics where a law is broken.
pub type Read = Box<dyn Fn(&[u8]) -> Verdict>;

/// What became of an input.
pub struct Verdict {
    pub accepted: bool,
    /// Bytes that decoding held at most.
    pub held: usize,
}

/// Seeds are at most so long: longer ones only make fewer inputs in the same time.
const LONGEST_SEED: usize = 2_048;
/// Drawn messages of each kind among the seeds.
const DRAWN: u64 = 16;

/// All of them: the frames of a stream, each kind of message, a chunk, and what a chunk is put into.
pub fn decoders() -> Vec<Decoder> {
    let committed = golden::bodies();
    let body = |message: &Message| message.encode(0).unwrap()[FRAME_HEADER_LEN..].to_vec();
    let messages = Kind::ALL.iter().map(|&kind| {
        let committed = committed.iter().filter(|(of, _)| *of == kind).map(|(_, body)| body.clone());
        let drawn = (0..DRAWN).map(|seed| body(&Draw::new(seed).message(kind)));
        Decoder {
            name: format!("{kind:?}"),
            seeds: committed.chain(drawn.filter(|body| body.len() <= LONGEST_SEED)).collect(),
            limit: kind.max_body(),
            read: Box::new(move |input| message(kind, input)),
        }
    });
    let frames = samples::messages().into_iter().map(|(_, message)| message.encode(7).unwrap().to_vec()).collect();
    let others: [(&str, Vec<Vec<u8>>, usize, Read); 3] = [
        ("frames", frames, MAX_MANIFEST_BODY, Box::new(frames_of)),
        ("chunk", vec![samples::chunk()], 4_096, Box::new(chunk)),
        ("values", vec![samples::payload().to_vec()], 4_096, Box::new(values)),
    ];
    let others = others.map(|(name, seeds, limit, read)| Decoder { name: name.to_owned(), seeds, limit, read });
    messages.chain(others).chain(CODECS.map(coded)).chain([compression(), trace()]).collect()
}

/// A codec's payload; what is read is written again in as many bytes and reads the same, where nothing is rounded anew.
fn coded(codec: fedburn_core::Codec) -> Decoder {
    let (seed, num_values) = (Seed::new(1), 300);
    let values: Vec<f32> = (0..num_values).map(|i| (i as f32 - 100.0) * 1e-3).collect();
    let read = move |input: &[u8]| {
        let (values, held) = peak(|| codec.decode(input, num_values));
        let Ok(values) = values else { return Verdict { accepted: false, held } };
        assert!(values.len() == num_values && values.iter().all(|value| value.is_finite()));
        assert_eq!(codec.encode(&values, seed).unwrap().len(), input.len());
        Verdict { accepted: true, held }
    };
    let seeds = vec![codec.encode(&values, seed).unwrap()];
    Decoder { name: format!("values {}", codec.name()), seeds, limit: 4 * num_values, read: Box::new(read) }
}

const CODECS: [fedburn_core::Codec; 7] = [
    fedburn_core::Codec::F32 {},
    fedburn_core::Codec::F16 {},
    fedburn_core::Codec::Bf16 {},
    fedburn_core::Codec::Int8 {},
    fedburn_core::Codec::Int4 {},
    fedburn_core::Codec::ScaledSign {},
    fedburn_core::Codec::TopK { ratio: 0.1 },
];

/// What a task says of compression: read as it was written, or refused.
fn compression() -> Decoder {
    let ext = |data: &[u8]| Extensions::new(vec![Extension { id: COMPRESSION, data: data.to_vec().into() }]);
    let wire = |up, down| {
        let compression = CompressionConfig { up, down, ..Default::default() };
        compression_to_wire(&compression).map(|extension| extension.data.to_vec())
    };
    let read = move |input: &[u8]| {
        let ext = ext(input);
        let (compression, held) = peak(|| compression_from_wire(&ext));
        let Ok(compression) = compression else { return Verdict { accepted: false, held } };
        assert_eq!(compression_to_wire(&compression).unwrap().data, input);
        Verdict { accepted: true, held }
    };
    let seeds = CODECS.into_iter().filter_map(|up| wire(up, fedburn_core::Codec::F16 {})).collect();
    Decoder { name: "compression".to_owned(), seeds, limit: MAX_EXTENSIONS_LEN, read: Box::new(read) }
}

/// What a task says of its trace: read as far as it says anything, never refused.
fn trace() -> Decoder {
    let read = |input: &[u8]| {
        let ext = Extensions::new(vec![Extension { id: TRACE, data: input.to_vec().into() }]);
        let (parent, held) = peak(|| TraceParent::from_wire(&ext));
        let Some(parent) = parent else { return Verdict { accepted: false, held } };
        // Flags that are not known are not repeated.
        let written = parent.to_wire().data;
        assert_eq!(written[..24], input[..24]);
        assert_eq!((input.len(), written[24]), (25, input[24] & 1));
        Verdict { accepted: true, held }
    };
    let seeds = vec![samples::trace_parent().to_wire().data.to_vec()];
    Decoder { name: "trace".to_owned(), seeds, limit: MAX_EXTENSIONS_LEN, read: Box::new(read) }
}

/// A message that is read is one that can be sent, and reads the same again.
fn message(kind: Kind, input: &[u8]) -> Verdict {
    let (message, held) = peak(|| Message::decode(kind, input));
    let Ok(message) = message else { return Verdict { accepted: false, held } };
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
    Verdict { accepted: true, held }
}

/// The pieces in which bytes come change nothing.
fn frames_of(input: &[u8]) -> Verdict {
    let mut held = 0;
    let mut read = |pieces: usize| {
        let (mut decoder, mut frames) = (FrameDecoder::new(), Vec::new());
        for mut piece in input.chunks(pieces) {
            while !piece.is_empty() {
                let (frame, once) = peak(|| decoder.read(&mut piece));
                held = held.max(once);
                match frame {
                    Ok(frame) => frames.extend(frame),
                    Err(error) => return (frames, Err(error)),
                }
            }
        }
        (frames, decoder.finish())
    };
    let (frames, end) = read(input.len().max(1));
    assert_eq!(read(1 + input.len() / 3), (frames.clone(), end.clone()), "the pieces make a difference");
    let readable = frames.iter().all(|frame| frame.message().is_ok());
    Verdict { accepted: end.is_ok() && readable, held }
}

/// A chunk that is accepted is the one of the manifest, to the last bit.
fn chunk(input: &[u8]) -> Verdict {
    let (manifest, good) = (samples::manifest(), samples::chunk());
    let transfer = TransferId(std::array::from_fn(|i| good[i]));
    let Some((header, payload)) = input.split_first_chunk::<CHUNK_HEADER_LEN>() else {
        return Verdict { accepted: false, held: 0 };
    };
    let (header, held) = peak(|| {
        let header = ChunkHeader::decode(header)?;
        manifest.expect(transfer, &header)?;
        header.verify(payload).map(|()| header)
    });
    let Ok(header) = header else { return Verdict { accepted: false, held } };
    assert_eq!([&header.encode()[..], payload].concat(), input);
    let whole = samples::payload();
    assert_eq!(payload, manifest.layout().slice(header.index, &whole).unwrap(), "another chunk was accepted");
    Verdict { accepted: true, held }
}

/// A payload of any length is read only where it has exactly that of its chunk.
fn values(input: &[u8]) -> Verdict {
    let payload = VectorPayload::new(2, 3, 12).unwrap();
    let mut place = [[0.5f32; 2]; 3];
    let mut place: Vec<&mut [f32]> = place.iter_mut().map(|vector| &mut vector[..]).collect();
    let (read, held) = peak(|| (0..3).filter(|&index| payload.decode_chunk(index, input, &mut place).is_ok()).count());
    assert_eq!(read, if input.len() == 12 { 2 } else { 0 });
    Verdict { accepted: read > 0, held }
}
