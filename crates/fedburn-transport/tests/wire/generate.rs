//! Messages of any kind, with any content that the protocol allows, from a number.

use bytes::Bytes;
use fedburn_core::{ClientId, Mean, RoundIndex, Seed};
use fedburn_transport::wire::limits::*;
use fedburn_transport::wire::*;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// Draws numbers that are small as often as they are large.
pub struct Draw(ChaCha8Rng);

impl Draw {
    pub fn new(seed: u64) -> Self {
        Self(Seed::new(seed).rng())
    }

    pub fn any(&mut self) -> u64 {
        let bits = self.0.next_u64() % 65;
        self.0.next_u64().checked_shr(bits as u32).unwrap_or(0)
    }

    /// A number below `end`, evenly.
    pub fn below(&mut self, end: usize) -> usize {
        (self.0.next_u64() % end.max(1) as u64) as usize
    }

    fn number(&mut self) -> f64 {
        f64::from_bits(self.0.next_u64())
    }

    fn octets<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.0.fill_bytes(&mut bytes);
        bytes
    }

    fn hash(&mut self) -> Hash {
        Hash(self.octets())
    }

    /// Up to `most` bytes, mostly few, sometimes all.
    fn bytes(&mut self, most: usize) -> Bytes {
        let len = self.len(most);
        let mut bytes = vec![0; len];
        self.0.fill_bytes(&mut bytes);
        bytes.into()
    }

    fn len(&mut self, most: usize) -> usize {
        match self.below(20) {
            0 => most,
            1..4 => 0,
            _ => self.below(most.min(12) + 1),
        }
    }

    /// Text of at most `most` bytes, some of its characters longer than one.
    fn text(&mut self, most: usize) -> String {
        let len = self.len(most);
        let mut text = String::new();
        while text.len() < len {
            text.push(['a', 'k', 'z', '_', 'ü', '漢', '🔥'][self.below(7)]);
        }
        text.truncate(text.floor_char_boundary(len));
        text
    }

    /// Names in their order, none twice; few, because many long ones do not fit a frame.
    fn names(&mut self, most: usize, len: usize) -> Vec<String> {
        let count = self.below(most.min(20) + 1);
        let mut names: Vec<String> = (0..count).map(|_| self.text(len)).collect();
        names.sort();
        names.dedup();
        names
    }

    fn ext(&mut self) -> Extensions {
        let count = self.len(MAX_EXTENSIONS);
        let mut ids: Vec<u16> = (0..count).map(|_| self.any() as u16).collect();
        ids.sort();
        ids.dedup();
        let data = |draw: &mut Self| draw.bytes(MAX_EXTENSIONS_LEN / MAX_EXTENSIONS);
        Extensions::new(ids.into_iter().map(|id| Extension { id, data: data(self) }).collect())
    }

    fn codec(&mut self) -> Codec {
        [Codec::Opaque, Codec::F32][self.below(2)]
    }

    fn blob(&mut self) -> BlobRef {
        BlobRef { root: self.hash(), len: self.any(), codec: self.codec() }
    }

    fn values(&mut self) -> Vec<NamedValue> {
        let names = self.names(MAX_SIDE_SCALARS, MAX_NAME);
        names.into_iter().map(|name| NamedValue { name, value: self.number() }).collect()
    }

    fn means(&mut self) -> Vec<NamedMean> {
        let names = self.names(MAX_METRICS, MAX_NAME);
        let mean = |draw: &mut Self| Mean::from_sum(draw.number(), draw.number());
        names.into_iter().map(|name| NamedMean { name, mean: mean(self) }).collect()
    }

    fn flag(&mut self) -> bool {
        self.below(2) == 0
    }

    fn option<T>(&mut self, value: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.flag().then(|| value(self))
    }

    fn clients(&mut self) -> Vec<ClientEntry> {
        let count = self.len(MAX_ANNOUNCED);
        let mut ids: Vec<u64> = (0..count).map(|_| self.any()).collect();
        ids.sort();
        ids.dedup();
        ids.into_iter().map(|id| ClientEntry { id: ClientId(id), num_examples: self.any() }).collect()
    }

    fn bitmap(&mut self) -> Bitmap {
        let len = self.below(MAX_CHUNKS as usize + 1) as u32;
        let mut bitmap = Bitmap::new(len).unwrap();
        for _ in 0..self.below(64) {
            bitmap.insert(self.below(len as usize) as u32);
        }
        bitmap
    }

    fn ranges(&mut self) -> ChunkRanges {
        self.bitmap().missing_ranges()
    }

    fn manifest(&mut self) -> Manifest {
        let (chunks, chunk_len) = (self.len(MAX_CHUNKS as usize) as u64, 4 * (1 + self.below(1_000)) as u32);
        let layout = Layout::new(self.codec(), chunks * u64::from(chunk_len), chunk_len).unwrap();
        let hashes = (0..chunks).map(|_| self.hash()).collect();
        Manifest::new(layout, hashes).unwrap()
    }

    fn failure(&mut self) -> Failure {
        let reason = self.text(MAX_REASON);
        match self.below(6) {
            0 => Failure::TimedOut,
            1 => Failure::Disconnected,
            2 => Failure::NoData,
            3 => Failure::Refused { reason },
            4 => Failure::Malformed { reason },
            _ => Failure::Failed { reason },
        }
    }

    fn kind(&mut self) -> TaskKind {
        if self.flag() {
            return TaskKind::Evaluate;
        }
        let names = self.names(MAX_SIDE_VECTORS, MAX_NAME);
        TaskKind::Train {
            seed: Seed::new(self.any()),
            side_vectors: names.into_iter().map(|name| NamedBlob { name, blob: self.blob() }).collect(),
            side_scalars: self.values(),
            reports: ReportsWanted { class_counts: self.flag(), accumulation: self.flag(), steps: self.flag() },
        }
    }

    fn payload(&mut self) -> Payload {
        match self.flag() {
            true => Payload::Chunks,
            false => Payload::Inline { vectors: self.names(MAX_SIDE_VECTORS, MAX_NAME), data: self.bytes(MAX_INLINE) },
        }
    }

    fn report(&mut self) -> Report {
        Report {
            class_counts: self.option(|draw| ClassCounts((0..draw.below(100)).map(|_| draw.any()).collect())),
            accumulation: self.option(Self::number),
            steps: self.option(Self::any),
        }
    }

    fn refusal(&mut self) -> Refusal {
        use Refusal::*;
        let all = [
            NotAllowed,
            Enrolment,
            ClientTaken,
            WrongPlan,
            WrongSchema,
            UnknownTask,
            UnknownBlob,
            Invalid,
            Limit,
            Draining,
            Internal,
        ];
        all[self.below(all.len())]
    }

    fn state(&mut self) -> CommitState {
        match self.below(4) {
            0 => CommitState::Committed,
            1 => CommitState::Superseded,
            2 => CommitState::Durable,
            _ => CommitState::Rejected { reason: self.text(MAX_REASON) },
        }
    }

    /// A message of this kind.
    pub fn message(&mut self, kind: Kind) -> Message {
        let (task, ext) = (TaskId(self.octets()), self.ext());
        match kind {
            Kind::Hello => Hello {
                minor: self.any() as u16,
                features: self.any(),
                labels: self.names(MAX_LABELS, MAX_LABEL),
                software: self.text(MAX_LABEL),
                ext,
            }
            .into(),
            Kind::Welcome => Welcome {
                minor: self.any() as u16,
                features: self.any(),
                server_time: self.any(),
                epoch: self.any(),
                limits: ServerLimits {
                    chunk_len: self.any() as u32,
                    inline_len: self.any() as u32,
                    chunks_in_flight: self.any() as u32,
                },
                plan: self.blob(),
                ext,
            }
            .into(),
            Kind::Announce => Announce {
                clients: self.clients(),
                schema: self.any(),
                plan: self.hash(),
                part: self.any() as u32,
                parts: self.any() as u32,
                ext,
            }
            .into(),
            Kind::Announced => Announced { ext }.into(),
            Kind::Enroll => Enroll { csr: self.bytes(MAX_DER), mac: self.hash(), ext }.into(),
            Kind::Enrolled => {
                let chain = (0..self.below(MAX_CHAIN + 1)).map(|_| Der(self.bytes(MAX_DER))).collect();
                Enrolled { chain, ca: Der(self.bytes(MAX_DER)), ext }.into()
            }
            Kind::Renew => Renew { csr: self.bytes(MAX_DER), ext }.into(),
            Kind::Bye => Bye { reason: self.text(MAX_REASON), ext }.into(),
            Kind::Refused => Refused { code: self.refusal(), reason: self.text(MAX_REASON), ext }.into(),
            Kind::Watch => Watch { ext }.into(),
            Kind::TaskOffer => TaskOffer {
                task,
                client: ClientId(self.any()),
                round: RoundIndex(self.any()),
                model: self.blob(),
                kind: self.kind(),
                state_of: RoundIndex(self.any()),
                durable: RoundIndex(self.any()),
                remaining_ms: self.any(),
                ext,
            }
            .into(),
            Kind::Cancel => Cancel { task, reason: self.text(MAX_REASON), ext }.into(),
            Kind::RoundClosed => RoundClosed { round: RoundIndex(self.any()), ext }.into(),
            Kind::Decline => Decline { task, failure: self.failure(), ext }.into(),
            Kind::GetManifest => GetManifest { root: self.hash(), ext }.into(),
            Kind::BlobManifest => {
                BlobManifest { manifest: self.manifest(), inline: self.bytes(MAX_INLINE), ext }.into()
            }
            Kind::GetChunks => {
                let transfer = TransferId(self.octets());
                GetChunks { root: self.hash(), ranges: self.ranges(), transfer, ext }.into()
            }
            Kind::ChunksComing => ChunksComing { chunks: self.any() as u32, ext }.into(),
            Kind::UploadBegin => {
                let vectors = self.names(MAX_SIDE_VECTORS, MAX_NAME);
                UploadBegin { task, num_values: self.any(), vectors, ext }.into()
            }
            Kind::UploadGrant => UploadGrant { have: self.bitmap(), ext }.into(),
            Kind::Busy => Busy { retry_after_ms: self.any(), ext }.into(),
            Kind::UploadCommit => UploadCommit {
                task,
                root: self.hash(),
                payload: self.payload(),
                num_examples: self.any(),
                side_scalars: self.values(),
                report: self.report(),
                metrics: self.means(),
                ext,
            }
            .into(),
            Kind::CommitAck => CommitAck { state: self.state(), ext }.into(),
            Kind::Measured => Measured { task, metrics: self.means(), ext }.into(),
            other => panic!("{other:?} has no generator; add one"),
        }
    }
}
