//! What holds for every message and every frame.

use fedburn_core::{ClientFailure, ClientReport, Mean, Metrics, Reports};
use fedburn_meter::{Counting, peak};
use fedburn_transport::wire::limits::*;
use fedburn_transport::wire::*;
use proptest::prelude::*;

use crate::generate::Draw;

#[global_allocator]
static COUNTING: Counting = Counting;

/// Feeds bytes in pieces that end at `cuts` and gives every frame.
fn read_in_pieces(bytes: &[u8], mut cuts: Vec<usize>) -> Result<Vec<Frame>, FrameError> {
    cuts.extend([0, bytes.len()]);
    cuts.iter_mut().for_each(|cut| *cut = (*cut).min(bytes.len()));
    cuts.sort();
    let (mut decoder, mut frames) = (FrameDecoder::new(), Vec::new());
    for pair in cuts.windows(2) {
        let mut piece = &bytes[pair[0]..pair[1]];
        while !piece.is_empty() {
            frames.extend(decoder.read(&mut piece)?);
        }
    }
    decoder.finish()?;
    Ok(frames)
}

/// A header followed by nothing.
fn header(len: u32, kind: u16, flags: u16) -> Vec<u8> {
    [&len.to_le_bytes()[..], &kind.to_le_bytes(), &flags.to_le_bytes(), &[9, 0, 0, 0]].concat()
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop::sample::select(Kind::ALL)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn what_is_sent_arrives_in_whatever_pieces(
        kinds in prop::collection::vec((kinds(), any::<u64>(), any::<u32>()), 1..4),
        cuts in prop::collection::vec(0usize..300, 0..8),
    ) {
        let messages: Vec<(u32, Message)> =
            kinds.into_iter().map(|(kind, seed, request)| (request, Draw::new(seed).message(kind))).collect();
        let bytes = messages.iter().map(|(request, message)| message.encode(*request).unwrap()).collect::<Vec<_>>().concat();
        let frames = read_in_pieces(&bytes, cuts).unwrap();
        prop_assert_eq!(frames.len(), messages.len());
        for (frame, (request, message)) in frames.iter().zip(&messages) {
            prop_assert_eq!((frame.request, frame.kind), (*request, message.kind()));
            // Compared as bytes, because a NaN does not equal itself.
            let again = frame.message().unwrap();
            prop_assert_eq!(again.encode(*request).unwrap(), message.encode(*request).unwrap());
        }
    }

    #[test]
    fn a_body_that_is_cut_or_goes_on_is_no_message(kind in kinds(), seed: u64, cut: prop::sample::Index) {
        let body = Draw::new(seed).message(kind).encode(0).unwrap().slice(FRAME_HEADER_LEN..);
        let cut = Message::decode(kind, &body[..cut.index(body.len())]);
        let named = matches!(cut, Err(FrameError::Malformed { kind: named, .. }) if named == kind);
        prop_assert!(named);
        let longer = [&body[..], &[0]].concat();
        prop_assert_eq!(Message::decode(kind, &longer), Err(FrameError::Leftover { kind, len: 1 }));
    }

    #[test]
    fn a_stream_that_ends_within_a_frame_is_noticed(kind in kinds(), seed: u64, cut: prop::sample::Index) {
        let bytes = Draw::new(seed).message(kind).encode(0).unwrap();
        let cut = 1 + cut.index(bytes.len() - 1);
        let expected = if cut < FRAME_HEADER_LEN { FRAME_HEADER_LEN } else { bytes.len() };
        prop_assert_eq!(
            read_in_pieces(&bytes[..cut], vec![]),
            Err(FrameError::Truncated { expected, found: cut })
        );
    }

    #[test]
    fn a_header_is_judged_before_its_body_is_taken(
        len in prop_oneof![0u32..2 << 20, any::<u32>()],
        number in prop_oneof![kinds().prop_map(|kind| kind as u16), any::<u16>()],
        flags in prop_oneof![Just(0u16), (0..16u16).prop_map(|bit| 1 << bit), any::<u16>()]) {
        let bytes = [&header(len, number, flags)[..], &[0; 8]].concat();
        let mut input = &bytes[..];
        let result = FrameDecoder::new().read(&mut input);
        match Kind::from_number(number) {
            None => prop_assert_eq!(result, Err(FrameError::UnknownKind { kind: number })),
            Some(kind) if flags != 0 => prop_assert_eq!(result, Err(FrameError::Flags { kind, flags })),
            Some(kind) if len as usize > kind.max_body() => {
                prop_assert_eq!(result, Err(FrameError::TooLong { kind, len: len as usize, limit: kind.max_body() }));
                prop_assert_eq!(input.len(), 8);
            }
            Some(_) => prop_assert!(result.is_ok()),
        }
    }
}

#[test]
fn kinds_and_their_numbers_are_one_to_one() {
    let known: Vec<Kind> = (0..=u16::MAX).filter_map(Kind::from_number).collect();
    assert_eq!(known, Kind::ALL);
    assert!(Kind::ALL.iter().all(|kind| Kind::from_number(*kind as u16) == Some(*kind)));
}

#[test]
fn each_limit_of_a_header_is_its_last_accepted_length() {
    for &kind in Kind::ALL {
        let len = kind.max_body() as u32;
        assert_eq!(FrameDecoder::new().read(&mut &header(len, kind as u16, 0)[..]), Ok(None), "{kind:?}");
        let refused = FrameDecoder::new().read(&mut &header(len + 1, kind as u16, 0)[..]);
        assert!(matches!(refused, Err(FrameError::TooLong { .. })), "{kind:?}");
    }
}

#[test]
fn another_message_than_expected_is_named() {
    let bytes = Frame::encode(1, &Watch::default()).unwrap();
    let frame = FrameDecoder::new().read(&mut &bytes[..]).unwrap().unwrap();
    let expected = FrameError::Unexpected { expected: Kind::Hello, found: Kind::Watch };
    assert_eq!(frame.decode::<Hello>(), Err(expected));
}

/// Both sides refuse: the sender its own message, the receiver the same bytes from one who does not.
fn refused<M: Body>(message: &M, bytes: &[u8]) {
    assert!(matches!(Frame::encode(0, message), Err(FrameError::Unsendable { .. })), "{:?} was sent", M::KIND);
    assert!(matches!(Message::decode(M::KIND, bytes), Err(FrameError::Malformed { .. })), "{:?} was read", M::KIND);
}

fn raw(value: &impl serde::Serialize) -> Vec<u8> {
    postcard::to_stdvec(value).unwrap()
}

/// An empty list, text or byte string; no extensions.
const NONE: u8 = 0;

#[test]
fn long_texts_are_refused() {
    let reason = "x".repeat(MAX_REASON + 1);
    refused(&Bye { reason: reason.clone(), ..Bye::default() }, &raw(&(&reason, NONE)));
    let software = "x".repeat(MAX_LABEL + 1);
    refused(&Hello { software: software.clone(), ..Hello::default() }, &raw(&(0u16, 0u64, NONE, &software, NONE)));
}

#[test]
fn lists_that_are_long_or_out_of_order_are_refused() {
    let label = |i: usize| format!("{i:03}");
    let many: Vec<String> = (0..=MAX_LABELS).map(label).collect();
    let long = vec!["x".repeat(MAX_LABEL + 1)];
    for labels in [many, long, vec![label(2), label(1)], vec![label(1), label(1)]] {
        let bytes = raw(&(0u16, 0u64, &labels, "", NONE));
        refused(&Hello { labels, ..Hello::default() }, &bytes);
    }
    let entry = |id| ClientEntry { id: fedburn_core::ClientId(id), num_examples: 1 };
    for clients in [(0..=MAX_ANNOUNCED as u64).map(entry).collect(), vec![entry(2), entry(1)]] {
        let bytes = raw(&(&clients, 0u64, [0u8; 32], 0u32, 1u32, NONE));
        refused(&Announce { clients, ..Announce::default() }, &bytes);
    }
    let der = Der(vec![0; MAX_DER + 1].into());
    let plain = vec![Vec::<u8>::new(); MAX_CHAIN + 1];
    refused(
        &Enrolled { chain: vec![Der::default(); MAX_CHAIN + 1], ..Enrolled::default() },
        &raw(&(plain, NONE, NONE)),
    );
    refused(&Enrolled { ca: der, ..Enrolled::default() }, &raw(&(NONE, vec![0u8; MAX_DER + 1], NONE)));
}

#[test]
fn metrics_and_counts_beyond_the_limits_are_refused() {
    let metric = |i: usize| NamedMean { name: format!("{i:03}"), mean: Mean::new(1.0, 1.0) };
    let metrics: Vec<NamedMean> = (0..=MAX_METRICS).map(metric).collect();
    let bytes = raw(&([0u8; 16], &metrics, NONE));
    refused(&Measured { metrics, ..Measured::default() }, &bytes);
    let report = Report { class_counts: Some(ClassCounts(vec![0; MAX_CLASSES + 1])), ..Report::default() };
    let commit = UploadCommit {
        task: TaskId::default(),
        root: Hash::default(),
        payload: Payload::Chunks,
        num_examples: 1,
        side_scalars: vec![],
        report,
        metrics: vec![],
        ext: Extensions::default(),
    };
    // task and root, chunks, one example, no scalars; then the counts; neither of the others, no metric.
    let counts = vec![0u8; MAX_CLASSES + 1];
    refused(&commit, &raw(&(([0u8; 16], [0u8; 32], 0u8, 1u8, 0u8), Some(counts), 0u8, 0u8, 0u8, NONE)));
}

#[test]
fn extensions_are_bounded_and_in_order() {
    let entry = |id, len: usize| Extension { id, data: vec![0; len].into() };
    let many = (0..=MAX_EXTENSIONS as u16).map(|id| entry(id, 0)).collect();
    let large = vec![entry(1, MAX_EXTENSIONS_LEN), entry(2, 1)];
    for entries in [many, large, vec![entry(2, 0), entry(1, 0)], vec![entry(1, 0), entry(1, 0)]] {
        let bytes = raw(&entries);
        refused(&Watch { ext: Extensions::new(entries) }, &bytes);
    }
    let full = Extensions::new(vec![entry(1, MAX_EXTENSIONS_LEN)]);
    let frame = Frame::encode(0, &Watch { ext: full.clone() }).unwrap();
    assert_eq!(Message::decode(Kind::Watch, &frame[FRAME_HEADER_LEN..]), Ok(Watch { ext: full }.into()));
}

#[test]
fn the_parts_of_an_announcement_are_all_clients_in_order() {
    for (count, parts) in [(0, 1), (1, 1), (MAX_ANNOUNCED, 1), (MAX_ANNOUNCED + 1, 2), (3 * MAX_ANNOUNCED, 3)] {
        let info = |id| fedburn_core::ClientInfo { id: fedburn_core::ClientId(id), num_examples: 2 * id };
        let clients: Vec<_> = (0..count as u64).map(info).collect();
        let announced = Announce::parts(&clients, 5, Hash([6; 32]));
        assert_eq!(
            announced.iter().map(|a| (a.part, a.parts)).collect::<Vec<_>>(),
            (0..parts).map(|i| (i, parts)).collect::<Vec<_>>()
        );
        let joined: Vec<_> = announced.iter().flat_map(|a| &a.clients).map(|&entry| entry.into()).collect();
        assert_eq!(clients, joined);
        assert!(announced.iter().all(|announce| Frame::encode(0, announce).is_ok()));
    }
}

#[test]
fn a_full_part_of_an_announcement_fits_a_frame() {
    let entry = |i| ClientEntry { id: fedburn_core::ClientId(u64::MAX - i), num_examples: u64::MAX };
    let clients = (0..MAX_ANNOUNCED as u64).rev().map(entry).collect();
    let data = vec![0; MAX_EXTENSIONS_LEN].into();
    // Half the extensions: 20 bytes a client leave so much.
    let announce = Announce { clients, schema: u64::MAX, part: u32::MAX, parts: u32::MAX, ..Announce::default() };
    assert!(Frame::encode(0, &announce).unwrap().len() + 16 <= MAX_BODY);
    let extended = Announce { ext: Extensions::new(vec![Extension { id: 0, data }]), ..announce };
    assert!(matches!(Frame::encode(0, &extended), Err(FrameError::TooLong { .. })));
}

#[test]
fn the_most_that_a_message_may_hold_is_bounded() {
    let text = |len| "x".repeat(len);
    let counts = ClassCounts(vec![1; MAX_CLASSES]);
    let commit = UploadCommit {
        task: TaskId::default(),
        root: Hash::default(),
        payload: Payload::Inline { vectors: vec![], data: vec![0; MAX_INLINE].into() },
        num_examples: 1,
        side_scalars: (0..100).map(|i| NamedValue { name: format!("{i:03}{}", text(100)), value: 1.0 }).collect(),
        report: Report { class_counts: Some(counts), ..Report::default() },
        metrics: (0..MAX_METRICS).map(|i| NamedMean { name: format!("{i:03}"), mean: Mean::new(1.0, 1.0) }).collect(),
        ext: Extensions::default(),
    };
    let entry = |id| ClientEntry { id: fedburn_core::ClientId(id), num_examples: 1 };
    let announce = Announce { clients: (0..MAX_ANNOUNCED as u64).map(entry).collect(), ..Announce::default() };
    let layout = Layout::new(Codec::F32, MAX_BLOB_LEN, MAX_CHUNK_LEN).unwrap();
    let manifest = Manifest::new(layout, vec![Hash::default(); MAX_CHUNKS as usize]).unwrap();
    let manifest = BlobManifest { manifest, inline: vec![0; MAX_INLINE].into(), ext: Extensions::default() };
    let drawn = Kind::ALL.iter().flat_map(|&kind| (0..100).map(move |seed| Draw::new(seed).message(kind)));
    for message in drawn.chain([commit.into(), announce.into(), manifest.into()]) {
        let frame = message.encode(0).unwrap();
        let limit = message.kind().max_body();
        // In pieces, so that the frame's own buffer grows step by step.
        let (read, held) = peak(|| read_in_pieces(&frame, (0..frame.len()).step_by(1_000).collect()));
        assert_eq!(read.unwrap().len(), 1);
        assert!(held <= 4 * limit, "{:?}: {held} bytes held for a frame", message.kind());
        let (read, held) = peak(|| Message::decode(message.kind(), &frame[FRAME_HEADER_LEN..]));
        assert!(read.is_ok() && held <= 4 * limit, "{:?}: {held} bytes held for a message", message.kind());
    }
}

#[test]
fn a_length_that_is_only_claimed_costs_nothing() {
    // A list, a text and bytes of any claimed length, with next to nothing behind it.
    for claimed in (0..64).map(|bit| 1u64 << bit) {
        let (labels, reason) = (raw(&(0u16, 0u64, claimed)), raw(&claimed));
        for (kind, body) in
            [(Kind::Hello, &labels), (Kind::Announce, &reason), (Kind::Bye, &reason), (Kind::Renew, &reason)]
        {
            let (read, held) = peak(|| Message::decode(kind, body));
            assert!(read.is_err() && held < 256, "{kind:?}, {claimed}: {held} bytes held");
        }
    }
}

#[test]
fn a_manifest_of_the_largest_blob_fits_a_frame() {
    let layout = Layout::new(Codec::F32, MAX_BLOB_LEN, MAX_CHUNK_LEN).unwrap();
    let manifest = Manifest::new(layout, vec![Hash::default(); MAX_CHUNKS as usize]).unwrap();
    let message = BlobManifest { manifest, inline: vec![0; MAX_INLINE].into(), ext: Extensions::default() };
    assert!(Frame::encode(0, &message).is_ok());
}

#[test]
fn the_cores_types_survive_to_the_last_bit() {
    let means = [("a", Mean::from_sum(-0.0, f64::MIN_POSITIVE)), ("b", Mean::from_sum(f64::NAN, 0.1))];
    let metrics: Metrics = means.iter().map(|(name, mean)| ((*name).into(), *mean)).collect();
    let back = metrics_from_wire(metrics_to_wire(&metrics));
    assert_eq!(raw(&back), raw(&metrics));
    assert_eq!(raw(&back)[3..11], (-0.0f64).to_le_bytes());
    let scalars = [("x".into(), -0.0), ("y".into(), f64::NEG_INFINITY)].into();
    assert_eq!(raw(&scalars_from_wire(scalars_to_wire(&scalars))), raw(&scalars));
    let report = ClientReport { class_counts: Some(vec![3, 0]), accumulation: Some(-0.0), steps: None };
    assert_eq!(ClientReport::from(Report::from(report.clone())), report);
    let reports = Reports { class_counts: true, accumulation: false, steps: true };
    assert_eq!(Reports::from(ReportsWanted::from(reports)), reports);
    for failure in [
        ClientFailure::TimedOut,
        ClientFailure::Disconnected,
        ClientFailure::NoData,
        ClientFailure::Refused { reason: "r".to_owned() },
        ClientFailure::Malformed { reason: "m".to_owned() },
        ClientFailure::Failed { reason: "f".to_owned() },
    ] {
        assert_eq!(ClientFailure::from(Failure::from(failure.clone())), failure);
    }
}

#[test]
fn a_long_reason_is_cut_between_characters() {
    let failure = ClientFailure::Failed { reason: "ü".repeat(MAX_REASON) };
    let Failure::Failed { reason } = Failure::from(failure) else { panic!("another failure") };
    assert_eq!(reason, "ü".repeat(MAX_REASON / 2));
}

#[test]
fn close_codes_have_the_numbers_of_the_protocol() {
    for (number, code) in CloseCode::ALL.iter().enumerate() {
        assert_eq!(CloseCode::from_number(number as u64), Some(*code));
    }
    assert_eq!(CloseCode::from_number(CloseCode::ALL.len() as u64), None);
}
