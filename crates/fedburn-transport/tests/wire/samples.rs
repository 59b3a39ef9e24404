//! One message of each kind and more where a kind has variants: what the committed bytes were made of.

use bytes::Bytes;
use fedburn_core::{ClientId, CompressionConfig, Mean, RoundIndex, Seed};
use fedburn_transport::wire::*;

/// Hashes and numbers that can be told apart in hex.
fn hash(byte: u8) -> Hash {
    Hash([byte; 32])
}

fn task() -> TaskId {
    TaskId(std::array::from_fn(|i| 0xa0 + i as u8))
}

fn blob(byte: u8, len: u64, codec: Codec) -> BlobRef {
    BlobRef { root: hash(byte), len, codec }
}

fn value(name: &str, value: f64) -> NamedValue {
    NamedValue { name: name.to_owned(), value }
}

fn mean(name: &str, sum: f64, weight: f64) -> NamedMean {
    NamedMean { name: name.to_owned(), mean: Mean::from_sum(sum, weight) }
}

fn extensions() -> Extensions {
    let extension = |id, data: &'static [u8]| Extension { id, data: Bytes::from_static(data) };
    Extensions::new(vec![extension(1, b"one"), extension(0x1234, b"")])
}

/// That of the specification's example, `00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01`.
pub fn trace_parent() -> TraceParent {
    let trace = 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes();
    TraceParent { trace, span: 0xb7ad_6b71_6920_3331_u64.to_be_bytes() }
}

/// A vector of three values.
pub fn payload() -> Bytes {
    VectorPayload::new(3, 1, 4096).unwrap().encode(&[&[1.0, -2.5, f32::NAN]]).unwrap()
}

/// The payload of an update: parameters and one vector more.
fn update() -> Bytes {
    VectorPayload::new(3, 2, 4096).unwrap().encode(&[&[1.0, -2.5, f32::NAN], &[0.0, -0.0, 1e-40]]).unwrap()
}

/// A manifest of two chunks.
pub fn manifest() -> Manifest {
    Manifest::of(Codec::F32, &payload(), 8).unwrap()
}

/// A chunk as it travels: the second one of [`manifest`].
pub fn chunk() -> Vec<u8> {
    let header = manifest().header(TransferId(task().0), 1).unwrap();
    [&header.encode()[..], &payload()[8..]].concat()
}

/// Messages with the names of their cases.
pub fn messages() -> Vec<(&'static str, Message)> {
    let ext = Extensions::default();
    let labels = vec!["hospital".to_owned(), "zürich".to_owned()];
    let entry = |id, num_examples| ClientEntry { id: ClientId(id), num_examples };
    let der = |text: &'static [u8]| Der(Bytes::from_static(text));
    let mut have = Bitmap::new(19).unwrap();
    [0, 1, 9, 18].into_iter().for_each(|index| assert!(have.insert(index)));
    let range = |first, count| ChunkRange { first, count };
    let offer = |kind| TaskOffer {
        task: task(),
        client: ClientId(7),
        round: RoundIndex(300),
        model: blob(0x11, 407_080, Codec::F32),
        kind,
        state_of: RoundIndex(298),
        durable: RoundIndex(290),
        remaining_ms: 60_000,
        ext: Extensions::default(),
    };
    let train = TaskKind::Train {
        seed: Seed::new(7),
        side_vectors: vec![NamedBlob { name: "control".to_owned(), blob: blob(0x22, 407_080, Codec::F32) }],
        side_scalars: vec![value("alpha", 0.1), value("rate_blend", -0.0)],
        reports: ReportsWanted { class_counts: false, accumulation: true, steps: true },
    };
    // A vector of another network than the model has a length of its own.
    let generator = TaskKind::Train {
        seed: Seed::new(7),
        side_vectors: vec![NamedBlob { name: "generator".to_owned(), blob: blob(0x88, 80_000, Codec::F32) }],
        side_scalars: Vec::new(),
        reports: ReportsWanted { class_counts: true, accumulation: false, steps: false },
    };
    let compressed = |up, down, error_feedback| {
        let compression = compression_to_wire(&CompressionConfig { up, down, error_feedback });
        TaskOffer { ext: Extensions::new(compression.into_iter().collect()), ..offer(train.clone()) }
    };
    let part = |mut offer: TaskOffer| {
        slice_to_wire(&["head".into(), "nets.3".into()]).into_iter().for_each(|names| offer.ext.add(names));
        offer
    };
    let traced = |mut offer: TaskOffer| {
        offer.ext.add(trace_parent().to_wire());
        offer
    };
    let (top_k, plain) = (fedburn_core::Codec::TopK { ratio: 0.01 }, fedburn_core::Codec::F32 {});
    let (int8, f16) = (fedburn_core::Codec::Int8 {}, fedburn_core::Codec::F16 {});
    let decline = |failure| Decline { task: task(), failure, ext: Extensions::default() };
    let reason = || "because".to_owned();
    let commit = |payload, report| UploadCommit {
        task: task(),
        root: Manifest::of(Codec::F32, &update(), limits::MAX_CHUNK_LEN).unwrap().blob().root,
        payload,
        num_examples: 600,
        side_scalars: vec![value("steps", 12.0)],
        report,
        metrics: vec![mean("accuracy", 540.0, 600.0), mean("train_loss", f64::INFINITY, 600.0)],
        ext: Extensions::default(),
    };
    let report = Report { class_counts: Some(ClassCounts(vec![1, 0, 300])), accumulation: Some(1.5), steps: Some(12) };
    let inline = Payload::Inline { vectors: vec!["control_delta".to_owned()], data: update() };
    let ack = |state| CommitAck { state, ext: Extensions::default() };
    vec![
        ("plain", Hello { minor: 0, features: 5, labels, software: "fedburn 0.1.0".to_owned(), ext }.into()),
        ("extended", Hello { ext: extensions(), ..Hello::default() }.into()),
        (
            "plain",
            Welcome {
                minor: 0,
                features: 1,
                server_time: 1_700_000_000_000,
                epoch: 3,
                limits: ServerLimits { chunks_in_flight: 8, ..ServerLimits::default() },
                plan: blob(0x33, 2_048, Codec::Opaque),
                ext: Extensions::default(),
            }
            .into(),
        ),
        (
            "plain",
            Announce {
                clients: vec![entry(0, 600), entry(1, 0), entry(u64::MAX, 128)],
                schema: 0xadf9_4b12_48cd_163c,
                plan: hash(0x44),
                part: 0,
                parts: 1,
                ext: Extensions::default(),
            }
            .into(),
        ),
        ("plain", Announced::default().into()),
        ("plain", Enroll { csr: Bytes::from_static(b"csr"), mac: hash(0x55), ext: Extensions::default() }.into()),
        (
            "plain",
            Enrolled { chain: vec![der(b"leaf"), der(b"middle")], ca: der(b"root"), ..Enrolled::default() }.into(),
        ),
        ("plain", Renew { csr: Bytes::from_static(b"csr"), ..Renew::default() }.into()),
        ("plain", Bye { reason: "finished".to_owned(), ..Bye::default() }.into()),
        ("plain", Refused { code: Refusal::NotAllowed, reason: reason(), ext: Extensions::default() }.into()),
        ("last", Refused { code: Refusal::Internal, reason: String::new(), ext: Extensions::default() }.into()),
        ("plain", Watch::default().into()),
        ("train", offer(train.clone()).into()),
        ("generator", offer(generator).into()),
        ("evaluate", offer(TaskKind::Evaluate).into()),
        ("compressed", compressed(int8, f16, true).into()),
        ("compressed-top-k", compressed(top_k, plain, false).into()),
        ("traced", traced(offer(train.clone())).into()),
        ("part", traced(part(compressed(int8, f16, true))).into()),
        ("compressed-traced", traced(compressed(int8, f16, true)).into()),
        ("plain", Cancel { task: task(), reason: reason(), ..Cancel::default() }.into()),
        ("plain", RoundClosed { round: RoundIndex(300), ..RoundClosed::default() }.into()),
        ("timed-out", decline(Failure::TimedOut).into()),
        ("disconnected", decline(Failure::Disconnected).into()),
        ("no-data", decline(Failure::NoData).into()),
        ("refused", decline(Failure::Refused { reason: reason() }).into()),
        ("malformed", decline(Failure::Malformed { reason: reason() }).into()),
        ("failed", decline(Failure::Failed { reason: reason() }).into()),
        ("plain", GetManifest { root: hash(0x66), ..GetManifest::default() }.into()),
        ("chunks", BlobManifest::new(manifest(), &payload(), 0).into()),
        ("inline", BlobManifest::new(manifest(), &payload(), limits::MAX_INLINE).into()),
        (
            "plain",
            GetChunks {
                root: hash(0x66),
                ranges: ChunkRanges::new(vec![range(0, 2), range(5, 1_000)]).unwrap(),
                transfer: TransferId([0x77; 16]),
                ext: Extensions::default(),
            }
            .into(),
        ),
        ("plain", ChunksComing { chunks: 1_002, ..ChunksComing::default() }.into()),
        (
            "plain",
            UploadBegin {
                task: task(),
                num_values: 101_770,
                vectors: vec!["control_delta".to_owned()],
                ext: Extensions::default(),
            }
            .into(),
        ),
        ("plain", UploadGrant { have, ext: Extensions::default() }.into()),
        ("plain", Busy { retry_after_ms: 500, ..Busy::default() }.into()),
        ("chunks", commit(Payload::Chunks, Report::default()).into()),
        ("inline", commit(inline, report).into()),
        ("committed", ack(CommitState::Committed).into()),
        ("superseded", ack(CommitState::Superseded).into()),
        ("rejected", ack(CommitState::Rejected { reason: reason() }).into()),
        ("durable", ack(CommitState::Durable).into()),
        ("plain", Measured { task: task(), metrics: vec![mean("loss", 0.1, 3.0)], ..Measured::default() }.into()),
    ]
}
