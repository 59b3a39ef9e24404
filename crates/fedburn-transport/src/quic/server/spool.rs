//! Answers that were acknowledged for good, on disk until the round that they are of is.
//!
//! ```text
//! "fedburn answers 1\n", plan [32]                              the file's head
//! "fbA1" | synced u64 | head u32 | payload u64 | hash [32]      one record: the bytes that were on disk for sure when it
//! head, postcard | payload, f32 or a codec's                      was written, two lengths, BLAKE3 of all but the hash
//! ```
//!
//! Records are appended and synced together, as many as wait, before any of them is acknowledged. What a crash may leave
//! broken is therefore behind all that a whole record says was synced: there it is dropped, and anywhere else the file is
//! damaged and refused.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use fedburn_core::{ClientFailure, ClientId, ClientInfo};
use fedburn_durable as durable;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::super::QuicError;
use super::super::blob::Values;
use super::link::lock;
use super::tasks::{Arrived, ArrivedUpdate};
use crate::wire::limits::MAX_MANIFEST_BODY;
use crate::wire::{
    Failure, Hash, NamedMean, NamedValue, Report, TaskId, metrics_from_wire, metrics_to_wire, vector_bytes,
};

/// A file of answers.
pub(super) struct Spool {
    path: PathBuf,
    log: Mutex<Log>,
    waiting: Mutex<Waiting>,
}

/// An answer to keep, or that was kept.
pub(super) struct Entry {
    pub(super) task: TaskId,
    pub(super) client: ClientInfo,
    /// What tells a repetition of the answer from another one.
    pub(super) digest: Hash,
    pub(super) reply: Result<Arrived, ClientFailure>,
}

struct Log {
    file: durable::File,
    len: u64,
    known: BTreeMap<TaskId, Place>,
}

/// Where a record is, and what is asked of it without reading it.
#[derive(Clone, Copy)]
struct Place {
    start: u64,
    client: ClientInfo,
    digest: Hash,
}

#[derive(Default)]
struct Waiting {
    entries: Vec<(Entry, oneshot::Sender<io::Result<Entry>>)>,
    /// Whether somebody is writing.
    writing: bool,
}

/// An answer without its vectors.
#[derive(Serialize, Deserialize)]
struct Head {
    task: TaskId,
    client: ClientInfo,
    digest: Hash,
    answer: Answer,
}

#[derive(Serialize, Deserialize)]
enum Answer {
    Trained {
        /// Length of a vector; none where a codec wrote the payload.
        num_values: Option<u64>,
        names: Vec<String>,
        num_examples: u64,
        scalars: Vec<NamedValue>,
        report: Report,
        metrics: Vec<NamedMean>,
    },
    Evaluated(Vec<NamedMean>),
    Failed(Failure),
}

impl Spool {
    /// Opens the file of a run of `plan`, or makes it. What a crash left half-written at its end is dropped.
    ///
    /// # Errors
    /// [`QuicError::Unusable`] where it is damaged or of another plan.
    pub(super) fn open(path: PathBuf, plan: Hash) -> Result<Self, QuicError> {
        let failed = |e: io::Error| unusable(&path, &e.to_string());
        let head = [MAGIC, &plan.0].concat();
        let mut file = durable::File::append(&path).map_err(failed)?;
        let mut reader = BufReader::new(fs::File::open(&path).map_err(failed)?);
        let found = read_up_to(&mut reader, head.len()).map_err(failed)?;
        let len = reader.get_ref().metadata().map_err(failed)?.len();
        let (end, known) = if found == head {
            scan(&mut reader, len, &path)?
        } else if len <= head.len() as u64 {
            // Never synced with a head: there was no answer in it.
            file.truncate(0).and_then(|()| file.write(&head)).and_then(|()| file.sync()).map_err(failed)?;
            durable::sync_directory(path.parent().unwrap_or(Path::new("."))).map_err(failed)?;
            (head.len() as u64, BTreeMap::new())
        } else {
            return Err(unusable(&path, "holds answers of another run; delete it, or use another folder of results"));
        };
        if len > end {
            file.truncate(end).and_then(|()| file.sync()).map_err(failed)?;
        }
        Ok(Self { path, log: Mutex::new(Log { file, len: end, known }), waiting: Mutex::default() })
    }

    /// Keeps an answer and gives it back; it is on disk when this returns. Those that come while others are being
    /// written are synced together.
    ///
    /// # Errors
    /// What the system says. Nothing can be kept any more then.
    pub(super) async fn keep(self: &Arc<Self>, entry: Entry) -> io::Result<Entry> {
        let (sender, written) = oneshot::channel();
        let idle = {
            let mut waiting = lock(&self.waiting);
            waiting.entries.push((entry, sender));
            !std::mem::replace(&mut waiting.writing, true)
        };
        if idle {
            let spool = self.clone();
            tokio::task::spawn_blocking(move || spool.write());
        }
        written.await.unwrap_or_else(|_| Err(io::Error::other("the server is ending")))
    }

    /// Writes what waits until nothing does.
    fn write(&self) {
        loop {
            let mut waiting = lock(&self.waiting);
            let entries = std::mem::take(&mut waiting.entries);
            if entries.is_empty() {
                waiting.writing = false;
                return;
            }
            drop(waiting);
            let written = lock(&self.log).append(entries.iter().map(|(entry, _)| entry));
            for (entry, sender) in entries {
                let result = written.as_ref().map(|()| entry).map_err(|e| io::Error::new(e.kind(), e.to_string()));
                // Who asked may be gone.
                let _ = sender.send(result);
            }
        }
    }

    /// What an answer to this task is told by, where one was kept.
    pub(super) fn digest(&self, task: TaskId) -> Option<Hash> {
        lock(&self.log).known.get(&task).map(|place| place.digest)
    }

    /// The clients whose answers are kept, with the number of their examples.
    pub(super) fn clients(&self) -> BTreeMap<ClientId, u64> {
        lock(&self.log).known.values().map(|place| (place.client.id, place.client.num_examples)).collect()
    }

    /// Reads the answer to this task.
    ///
    /// # Errors
    /// What the system says, or that it is damaged or not there.
    pub(super) fn read(&self, task: TaskId) -> Result<Entry, QuicError> {
        let start = lock(&self.log).known.get(&task).map(|place| place.start);
        let start = start.ok_or_else(|| unusable(&self.path, "the answer is not there"))?;
        let read = || {
            let mut reader = BufReader::new(fs::File::open(&self.path)?);
            reader.seek(SeekFrom::Start(start))?;
            Record::read(&mut reader, u64::MAX)?.and_then(|record| record.entry(&mut reader).transpose()).transpose()
        };
        let entry = read().map_err(|e| unusable(&self.path, &e.to_string()))?;
        entry.ok_or_else(|| unusable(&self.path, &damage(start)))
    }

    /// Everything kept is of rounds that need no repetition any more.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn clear(&self) -> Result<(), QuicError> {
        let log = &mut *lock(&self.log);
        let head = (MAGIC.len() + 32) as u64;
        if log.len > head {
            // Not synced: what comes back after a crash is never asked for.
            log.file.truncate(head).map_err(|e| unusable(&self.path, &e.to_string()))?;
            log.len = head;
        }
        log.known.clear();
        Ok(())
    }
}

impl Log {
    fn append<'e>(&mut self, entries: impl Iterator<Item = &'e Entry>) -> io::Result<()> {
        let (mut end, mut new) = (self.len, Vec::new());
        for entry in entries {
            let Entry { task, client, digest, .. } = *entry;
            new.push((task, Place { start: end, client, digest }));
            for piece in encode(entry, self.len)? {
                self.file.write(&piece)?;
                end += piece.len() as u64;
            }
        }
        self.file.sync()?;
        self.len = end;
        self.known.extend(new);
        Ok(())
    }
}

/// The record of an answer, in pieces.
fn encode(entry: &Entry, synced: u64) -> io::Result<Vec<Cow<'_, [u8]>>> {
    let (answer, mut pieces) = match &entry.reply {
        Ok(Arrived::Trained(update)) => {
            let ArrivedUpdate { values, names, num_examples, scalars, report, metrics } = &**update;
            let (num_values, pieces) = match values {
                Values::Plain(vectors) => {
                    let num_values = vectors.first().map_or(0, Vec::len) as u64;
                    (Some(num_values), vectors.iter().map(|vector| vector_bytes(vector)).collect())
                }
                Values::Encoded(bytes) => (None, vec![Cow::Borrowed(bytes.as_slice())]),
            };
            let answer = Answer::Trained {
                num_values,
                names: names.clone(),
                num_examples: *num_examples,
                scalars: scalars.clone(),
                report: report.clone().into(),
                metrics: metrics_to_wire(metrics),
            };
            (answer, pieces)
        }
        Ok(Arrived::Evaluated(metrics)) => (Answer::Evaluated(metrics_to_wire(metrics)), Vec::new()),
        Err(failure) => (Answer::Failed(failure.clone().into()), Vec::new()),
    };
    let head = Head { task: entry.task, client: entry.client, digest: entry.digest, answer };
    let head = postcard::to_stdvec(&head).map_err(io::Error::other)?;
    let payload: usize = pieces.iter().map(|piece| piece.len()).sum();
    let lengths =
        [&synced.to_le_bytes()[..], &(head.len() as u32).to_le_bytes(), &(payload as u64).to_le_bytes()].concat();
    let mut hasher = blake3::Hasher::new();
    hasher.update(&lengths).update(&head);
    for piece in &pieces {
        hasher.update(piece);
    }
    pieces.insert(0, Cow::Owned([RECORD, &lengths, hasher.finalize().as_bytes(), &head].concat()));
    Ok(pieces)
}

/// A record as its first bytes describe it.
struct Record {
    lengths: [u8; 20],
    hash: Hash,
}

impl Record {
    /// The first bytes of a record; `None` where these are none, or it would not end within `left` bytes.
    fn read(reader: &mut impl Read, left: u64) -> io::Result<Option<Self>> {
        let bytes = read_up_to(reader, START)?;
        let Some(bytes) = bytes.strip_prefix(RECORD) else { return Ok(None) };
        let Some((lengths, hash)) = bytes.split_first_chunk() else { return Ok(None) };
        let Ok(hash) = hash.try_into() else { return Ok(None) };
        let record = Self { lengths: *lengths, hash: Hash(hash) };
        let fits = record.len().is_some_and(|len| len <= left) && record.head() <= MAX_HEAD;
        Ok(fits.then_some(record))
    }

    fn synced(&self) -> u64 {
        number(&self.lengths[..8])
    }

    fn head(&self) -> u64 {
        number(&self.lengths[8..12])
    }

    fn payload(&self) -> u64 {
        number(&self.lengths[12..])
    }

    /// Bytes of all of it.
    fn len(&self) -> Option<u64> {
        (START as u64 + self.head()).checked_add(self.payload())
    }

    /// What the record says but for its payload, which goes to `take` piece by piece, whole values each; `None` where
    /// it is not what was written.
    fn check(&self, reader: &mut impl Read, mut take: impl FnMut(&Head, &[u8])) -> io::Result<Option<Head>> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.lengths);
        let head = read_up_to(reader, self.head() as usize)?;
        hasher.update(&head);
        let Ok(head) = postcard::from_bytes(&head) else { return Ok(None) };
        let (mut left, mut buffer) = (self.payload(), vec![0; PIECE]);
        while left > 0 {
            let piece = &mut buffer[..PIECE.min(usize::try_from(left).unwrap_or(PIECE))];
            reader.read_exact(piece)?;
            hasher.update(piece);
            take(&head, piece);
            left -= piece.len() as u64;
        }
        let whole = hasher.finalize() == blake3::Hash::from(self.hash.0);
        Ok(whole.then_some(head))
    }

    /// Its answer; `None` where it is not what was written.
    fn entry(&self, reader: &mut impl Read) -> io::Result<Option<Entry>> {
        let (mut values, mut encoded) = (Vec::new(), Vec::new());
        let take = |head: &Head, piece: &[u8]| match head.answer {
            Answer::Trained { num_values: None, .. } => encoded.extend_from_slice(piece),
            _ => values.extend(piece.as_chunks().0.iter().map(|value| f32::from_le_bytes(*value))),
        };
        let Some(Head { task, client, digest, answer }) = self.check(reader, take)? else { return Ok(None) };
        let reply = match answer {
            Answer::Evaluated(metrics) => Ok(Arrived::Evaluated(metrics_from_wire(metrics))),
            Answer::Failed(failure) => Err(failure.into()),
            Answer::Trained { num_values, names, num_examples, scalars, report, metrics } => {
                let values = match num_values {
                    Some(num_values) => {
                        let mut vectors: Vec<_> = (1..=names.len())
                            .rev()
                            .map(|vector| values.split_off(values.len().min(vector * num_values as usize)))
                            .collect();
                        vectors.push(values);
                        vectors.reverse();
                        Values::Plain(vectors)
                    }
                    None => Values::Encoded(encoded),
                };
                let (report, metrics) = (report.into(), metrics_from_wire(metrics));
                Ok(Arrived::Trained(Box::new(ArrivedUpdate { values, names, num_examples, scalars, report, metrics })))
            }
        };
        Ok(Some(Entry { task, client, digest, reply }))
    }
}

/// The end of the last whole record, and where each record is.
fn scan(reader: &mut BufReader<fs::File>, len: u64, path: &Path) -> Result<(u64, BTreeMap<TaskId, Place>), QuicError> {
    let failed = |e: io::Error| unusable(path, &e.to_string());
    let mut start = (MAGIC.len() + 32) as u64;
    let (mut known, mut end, mut broken) = (BTreeMap::new(), start, None::<u64>);
    while start < len {
        reader.seek(SeekFrom::Start(start)).map_err(failed)?;
        let record = Record::read(reader, len - start).map_err(failed)?;
        let head = record.as_ref().map(|record| record.check(reader, |_, _| {})).transpose().map_err(failed)?.flatten();
        match (record, head) {
            (Some(record), Some(Head { task, client, digest, .. })) => {
                if let Some(broken) = broken.filter(|broken| *broken < record.synced()) {
                    return Err(unusable(path, &damage(broken)));
                }
                known.insert(task, Place { start, client, digest });
                start += record.len().unwrap_or(len);
                if broken.is_none() {
                    end = start;
                }
            }
            _ => {
                broken.get_or_insert(start);
                start = next_record(reader, start + 1).map_err(failed)?.unwrap_or(len);
            }
        }
    }
    // Behind a break nothing was acknowledged: it is asked for again.
    known.retain(|_, place: &mut Place| place.start < end);
    Ok((end, known))
}

/// Where the next record may begin, from `from` on.
fn next_record(reader: &mut BufReader<fs::File>, from: u64) -> io::Result<Option<u64>> {
    let mut at = reader.seek(SeekFrom::Start(from))?;
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok(None);
        }
        let skipped = buffer.iter().position(|byte| *byte == RECORD[0]).unwrap_or(buffer.len());
        reader.consume(skipped);
        at += skipped as u64;
        if read_up_to(reader, RECORD.len())? == RECORD {
            return Ok(Some(at));
        }
        at = reader.seek(SeekFrom::Start(at + 1))?;
    }
}

fn read_up_to(reader: &mut impl Read, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(len as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

fn damage(at: u64) -> String {
    format!("damaged at byte {at}; delete it, and clients are asked again for what it held")
}

fn unusable(path: &Path, reason: &str) -> QuicError {
    QuicError::Unusable { what: "file of answers", reason: format!("{}: {reason}", path.display()) }
}

const MAGIC: &[u8] = b"fedburn answers 1\n";
const RECORD: &[u8] = b"fbA1";
/// Bytes of a record before its head.
const START: usize = 4 + 20 + 32;
/// Bytes of a head: not more than the largest message.
const MAX_HEAD: u64 = MAX_MANIFEST_BODY as u64;
/// Bytes of a payload that are looked at at a time.
const PIECE: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use fedburn_core::{ClientReport, Mean, Metrics};
    use fedburn_durable::crash::{Ending, Watch};
    use tokio::runtime::{Builder, Runtime};

    use super::*;

    const PLAN: Hash = Hash([3; 32]);

    fn runtime() -> Runtime {
        Builder::new_current_thread().max_blocking_threads(1).build().unwrap()
    }

    fn open(dir: &tempfile::TempDir) -> Result<Arc<Spool>, QuicError> {
        Spool::open(dir.path().join("answers"), PLAN).map(Arc::new)
    }

    fn entry(task: u8, reply: Result<Arrived, ClientFailure>) -> Entry {
        let client = ClientInfo { id: ClientId(u64::from(task)), num_examples: 7 };
        Entry { task: TaskId([task; 16]), client, digest: Hash([task; 32]), reply }
    }

    fn metrics() -> Metrics {
        [("loss".into(), Mean::new(f64::NAN, 2.0))].into_iter().collect()
    }

    fn update(values: &[f32]) -> Arrived {
        trained(Values::Plain(vec![values.to_vec(), vec![-0.0; values.len()]]))
    }

    fn trained(values: Values) -> Arrived {
        Arrived::Trained(Box::new(ArrivedUpdate {
            values,
            names: vec!["control".to_owned()],
            num_examples: 5,
            scalars: vec![NamedValue { name: "steps".to_owned(), value: 0.1 }],
            report: ClientReport { class_counts: Some(vec![1, 0]), accumulation: Some(1.5), steps: None },
            metrics: metrics(),
        }))
    }

    fn keep(spool: &Arc<Spool>, entry: Entry) {
        assert!(runtime().block_on(spool.keep(entry)).is_ok());
    }

    /// Everything that an answer says, as text: NaN equals itself there.
    fn told(entry: &Entry) -> String {
        let Entry { task, client, digest, reply } = entry;
        let reply = match reply {
            Ok(Arrived::Trained(update)) => {
                let ArrivedUpdate { values, names, num_examples, scalars, report, metrics } = &**update;
                let bits = |vector: &Vec<f32>| vector.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                let values = match values {
                    Values::Plain(vectors) => format!("{:?}", vectors.iter().map(bits).collect::<Vec<_>>()),
                    Values::Encoded(bytes) => format!("{bytes:02x?}"),
                };
                format!("{values} {names:?} {num_examples} {scalars:?} {report:?} {metrics:?}")
            }
            Ok(Arrived::Evaluated(metrics)) => format!("{metrics:?}"),
            Err(failure) => format!("{failure:?}"),
        };
        format!("{task} {client:?} {digest} {reply}")
    }

    fn read(spool: &Spool, task: u8) -> String {
        told(&spool.read(TaskId([task; 16])).unwrap())
    }

    #[test]
    fn answers_come_back_to_the_bit_until_they_are_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let large: Vec<f32> = (0..40_000).map(|i| i as f32).collect();
        let answers = || {
            let failed = Err(ClientFailure::Malformed { reason: "no".to_owned() });
            let encoded = Ok(trained(Values::Encoded((0..70_001).map(|i| i as u8).collect())));
            [Ok(update(&[1.0, f32::NAN])), Ok(Arrived::Evaluated(metrics())), failed, Ok(update(&large)), encoded]
        };
        let spool = open(&dir).unwrap();
        (1..).zip(answers()).for_each(|(task, reply)| keep(&spool, entry(task, reply)));
        drop(spool);
        let spool = open(&dir).unwrap();
        for (task, reply) in (1..).zip(answers()) {
            assert_eq!(read(&spool, task), told(&entry(task, reply)));
            assert_eq!(spool.digest(TaskId([task; 16])), Some(Hash([task; 32])));
        }
        assert_eq!(spool.clients().into_iter().collect::<Vec<_>>(), [1, 2, 3, 4, 5].map(|k| (ClientId(k), 7)));
        spool.clear().unwrap();
        keep(&spool, entry(9, Err(ClientFailure::NoData)));
        drop(spool);
        let spool = open(&dir).unwrap();
        assert_eq!(spool.digest(TaskId([1; 16])), None);
        assert_eq!(read(&spool, 9), told(&entry(9, Err(ClientFailure::NoData))));
        assert!(Spool::open(dir.path().join("answers"), Hash([4; 32])).is_err(), "another plan");
    }

    /// A file of the answers 1 and 2: its folder, its path, where the first ends, all of it.
    fn two_answers() -> (tempfile::TempDir, PathBuf, usize, Vec<u8>) {
        let dir = tempfile::tempdir().unwrap();
        let (path, spool) = (dir.path().join("answers"), open(&dir).unwrap());
        keep(&spool, entry(1, Ok(update(&[1.0]))));
        let first = fs::metadata(&path).unwrap().len() as usize;
        keep(&spool, entry(2, Ok(update(&[2.0]))));
        let whole = fs::read(&path).unwrap();
        (dir, path, first, whole)
    }

    #[test]
    fn a_torn_end_is_dropped_wherever_it_tears() {
        let (dir, path, first, whole) = two_answers();
        let one = told(&entry(1, Ok(update(&[1.0]))));
        for cut in 0..whole.len() {
            for filling in [None, Some(0), Some(RECORD[0])] {
                let mut bytes = whole[..cut].to_vec();
                bytes.extend(filling.into_iter().flat_map(|byte| std::iter::repeat_n(byte, whole.len() - cut)));
                if cut < first && bytes.len() > first || bytes == whole {
                    // What is broken then was synced.
                    continue;
                }
                fs::write(&path, &bytes).unwrap();
                let spool = open(&dir).unwrap_or_else(|e| panic!("cut at {cut}: {e}"));
                assert_eq!(spool.digest(TaskId([2; 16])), None, "cut at {cut}");
                assert_eq!(spool.digest(TaskId([1; 16])).is_some(), cut >= first, "cut at {cut}");
                keep(&spool, entry(3, Ok(update(&[3.0]))));
                drop(spool);
                let spool = open(&dir).unwrap();
                assert_eq!(read(&spool, 3), told(&entry(3, Ok(update(&[3.0])))), "cut at {cut}");
                assert!(cut < first || read(&spool, 1) == one, "cut at {cut}");
            }
        }
    }

    #[test]
    fn damage_of_what_was_synced_is_refused_with_its_place() {
        let (dir, path, first, whole) = two_answers();
        for at in MAGIC.len() + 32..first {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&path, &bytes).unwrap();
            let error = open(&dir).err().unwrap_or_else(|| panic!("byte {at}")).to_string();
            assert!(error.contains("answers: damaged at byte 50; delete it"), "{error}");
        }
    }

    #[test]
    fn answers_that_wait_are_synced_together() {
        let dir = tempfile::tempdir().unwrap();
        let spool = open(&dir).unwrap();
        let watch = Watch::new(dir.path());
        runtime().block_on(async {
            let keeping = (0..50).map(|task| {
                let spool = spool.clone();
                tokio::spawn(async move { spool.keep(entry(task, Err(ClientFailure::NoData))).await.is_ok() })
            });
            for kept in keeping.collect::<Vec<_>>() {
                assert!(kept.await.unwrap());
            }
        });
        // A write each; the first may be alone, the others came while it was written.
        assert!((51..=53).contains(&watch.steps()), "{} steps", watch.steps());
    }

    #[test]
    fn what_cannot_be_synced_is_not_kept() {
        for (step, ending) in [(0, Ending::Torn), (1, Ending::Before), (1, Ending::PowerCut)] {
            let dir = tempfile::tempdir().unwrap();
            let spool = open(&dir).unwrap();
            keep(&spool, entry(1, Err(ClientFailure::NoData)));
            let watch = Watch::new(dir.path());
            watch.crash_at(step, ending);
            assert!(runtime().block_on(spool.keep(entry(2, Err(ClientFailure::NoData)))).is_err());
            assert_eq!(spool.digest(TaskId([2; 16])), None);
            drop(spool);
            watch.restart().unwrap();
            assert!(open(&dir).unwrap().digest(TaskId([1; 16])).is_some());
        }
    }
}
