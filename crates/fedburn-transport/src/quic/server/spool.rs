//! Answers that were acknowledged for good, on disk until the round that they are of is.
//!
//! Records are appended and synced together, as many as wait, before any of them is acknowledged.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufReader, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use fedburn_core::ClientId;
use fedburn_durable::{self as durable, Access};
use tokio::sync::oneshot;

use super::super::QuicError;
use super::link::lock;
use super::record::{Entry, HEAD, MAGIC, Mark, Place, Record, damage, encode, read_up_to, scan, unusable};
use crate::wire::{Hash, TaskId};

/// A file of answers.
pub(super) struct Spool {
    path: PathBuf,
    log: Mutex<Log>,
    waiting: Mutex<Waiting>,
}

struct Log {
    file: durable::File,
    mark: Mark,
    len: u64,
    /// A write failed: what is on disk behind `len` is unknown, and nothing is written any more.
    failed: bool,
    known: BTreeMap<TaskId, Place>,
}

#[derive(Default)]
struct Waiting {
    entries: Vec<(Entry, oneshot::Sender<io::Result<Entry>>)>,
    /// Whether somebody is writing.
    writing: bool,
}

impl Spool {
    /// Opens the file of a run of `plan`, or makes it, with this random mark. What a crash left half-written at its end is
    /// dropped.
    ///
    /// # Errors
    /// [`QuicError::Unusable`] where it is damaged or of another plan.
    pub(super) fn open(path: PathBuf, plan: Hash, new: Mark) -> Result<Self, QuicError> {
        let failed = |e: io::Error| unusable(&path, &e.to_string());
        let start = [MAGIC, &plan.0].concat();
        let mut file = durable::File::append(&path, Access::Owner).map_err(failed)?;
        let mut reader = BufReader::new(fs::File::open(&path).map_err(failed)?);
        let found = read_up_to(&mut reader, HEAD).map_err(failed)?;
        let len = reader.get_ref().metadata().map_err(failed)?.len();
        let (mark, end, known) = if len <= HEAD as u64 {
            // No answer is in it, and perhaps not all of a head.
            file.truncate(0).and_then(|()| file.write(&[&start[..], &new].concat())).map_err(failed)?;
            (new, HEAD as u64, BTreeMap::new())
        } else if let Some(mark) = found.strip_prefix(&start[..]).and_then(|mark| mark.try_into().ok()) {
            let (end, known) = scan(&mut reader, len, &mark, &path)?;
            if len > end {
                file.truncate(end).map_err(failed)?;
            }
            (mark, end, known)
        } else {
            return Err(unusable(
                &path,
                match found.starts_with(MAGIC) {
                    true => "holds answers of another run; delete it, or use another folder of results",
                    false => "holds no answers as this version writes them; delete it, and clients are asked again",
                },
            ));
        };
        // Whoever wrote what was found may have been killed before it was on disk.
        file.sync().and_then(|()| durable::sync_directory(durable::directory_of(&path))).map_err(failed)?;
        Ok(Self {
            path,
            log: Mutex::new(Log { file, mark, len: end, failed: false, known }),
            waiting: Mutex::default(),
        })
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
        let found = {
            let log = lock(&self.log);
            log.known.get(&task).map(|place| (place.start, log.mark))
        };
        let (start, mark) = found.ok_or_else(|| unusable(&self.path, "the answer is not there"))?;
        let read = || {
            let mut reader = BufReader::new(fs::File::open(&self.path)?);
            reader.seek(SeekFrom::Start(start))?;
            Record::read(&mut reader, u64::MAX, &mark)?
                .and_then(|record| record.entry(&mut reader).transpose())
                .transpose()
        };
        let entry = read().map_err(|e| unusable(&self.path, &e.to_string()))?;
        entry.ok_or_else(|| unusable(&self.path, &damage(start)))
    }

    /// Everything kept is of rounds that need no repetition any more.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn clear(&self) -> Result<(), QuicError> {
        lock(&self.log).clear().map_err(|e| unusable(&self.path, &e.to_string()))
    }
}

impl Log {
    fn append<'e>(&mut self, entries: impl Iterator<Item = &'e Entry>) -> io::Result<()> {
        self.begin()?;
        let (mut end, mut new) = (self.len, Vec::new());
        for entry in entries {
            let Entry { task, client, digest, .. } = *entry;
            new.push((task, Place { start: end, client, digest }));
            for piece in encode(entry, self.len, &self.mark)? {
                self.file.write(&piece)?;
                end += piece.len() as u64;
            }
        }
        self.file.sync()?;
        (self.len, self.failed) = (end, false);
        self.known.extend(new);
        Ok(())
    }

    fn clear(&mut self) -> io::Result<()> {
        if self.len > HEAD as u64 {
            self.begin()?;
            // Not synced: what comes back after a crash is never asked for.
            self.file.truncate(HEAD as u64)?;
            (self.len, self.failed) = (HEAD as u64, false);
        }
        self.known.clear();
        Ok(())
    }

    /// A change of the file begins, and has failed unless it ends well.
    fn begin(&mut self) -> io::Result<()> {
        match std::mem::replace(&mut self.failed, true) {
            true => Err(io::Error::other("an earlier write failed")),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use fedburn_core::{ClientFailure, ClientInfo, ClientReport, Mean, Metrics};
    use fedburn_durable::crash::{Ending, Watch};
    use tokio::runtime::{Builder, Runtime};

    use super::super::super::blob::Values;
    use super::super::tasks::{Arrived, ArrivedUpdate};
    use super::*;
    use crate::wire::NamedValue;

    const PLAN: Hash = Hash([3; 32]);
    const MARK: Mark = *b"told to nobody..";

    fn runtime() -> Runtime {
        Builder::new_current_thread().max_blocking_threads(1).build().unwrap()
    }

    fn open(dir: &tempfile::TempDir) -> Result<Arc<Spool>, QuicError> {
        Spool::open(dir.path().join("answers"), PLAN, MARK).map(Arc::new)
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
        let refused = |plan| Spool::open(dir.path().join("answers"), plan, MARK).err().unwrap().to_string();
        assert!(refused(Hash([4; 32])).contains("another run"));
        drop(spool);
        let mut earlier = fs::read(dir.path().join("answers")).unwrap();
        earlier[MAGIC.len() - 2] = b'1';
        fs::write(dir.path().join("answers"), earlier).unwrap();
        assert!(refused(PLAN).contains("as this version writes them"));
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
            for filling in [None, Some(0), Some(MARK[0])] {
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
        for at in HEAD..first {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&path, &bytes).unwrap();
            let error = open(&dir).err().unwrap_or_else(|| panic!("byte {at}")).to_string();
            assert!(error.contains("answers: damaged at byte 66; delete it"), "{error}");
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
    fn what_cannot_be_synced_is_not_kept_and_nothing_after_it() {
        let none = || Err(ClientFailure::NoData);
        for (step, ending) in [(0, Ending::Torn), (1, Ending::Before), (1, Ending::PowerCut)] {
            let dir = tempfile::tempdir().unwrap();
            let spool = open(&dir).unwrap();
            keep(&spool, entry(1, none()));
            let watch = Watch::new(dir.path());
            watch.crash_at(step, ending);
            assert!(runtime().block_on(spool.keep(entry(2, none()))).is_err());
            // As good as new, but nobody knows what is there.
            watch.restart().unwrap();
            assert!(runtime().block_on(spool.keep(entry(3, none()))).is_err());
            assert!(spool.clear().is_err());
            assert_eq!([2, 3].map(|task| spool.digest(TaskId([task; 16]))), [None; 2]);
            drop(spool);
            assert!(open(&dir).unwrap().digest(TaskId([1; 16])).is_some());
        }
    }

    #[test]
    fn what_a_killed_server_had_not_synced_is_on_disk_before_it_counts() {
        let dir = tempfile::tempdir().unwrap();
        let watch = Watch::new(dir.path());
        let life = |step: Option<u64>, ending, task: Option<u8>| {
            let begun = watch.steps();
            step.into_iter().for_each(|step| watch.crash_at(begun + step, ending));
            let known = open(&dir).map(|spool| {
                let known = [1, 2, 3].map(|task| spool.digest(TaskId([task; 16])).is_some());
                task.into_iter().for_each(|task| {
                    let entry = entry(task, Err(ClientFailure::NoData));
                    assert_eq!(runtime().block_on(spool.keep(entry)).is_err(), watch.has_crashed());
                });
                known
            });
            (known.ok(), watch.has_crashed())
        };
        // Killed before the directory knew of the file; then between write and sync of its first answer.
        assert_eq!(life(Some(4), Ending::Before, None), (None, true));
        watch.restart().unwrap();
        assert_eq!(life(Some(6), Ending::Before, Some(1)), (Some([false; 3]), true));
        watch.restart().unwrap();
        // It counts now, so that a power cut must not take it, nor the next one be behind a hole.
        assert_eq!(life(Some(4), Ending::PowerCut, Some(2)), (Some([true, false, false]), true));
        watch.restart().unwrap();
        assert_eq!(life(None, Ending::Before, Some(3)), (Some([true, false, false]), false));
        assert_eq!(life(None, Ending::Before, None), (Some([true, false, true]), false));
    }

    #[test]
    fn a_payload_that_looks_like_a_record_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let (path, spool) = (dir.path().join("answers"), open(&dir).unwrap());
        keep(&spool, entry(1, Ok(update(&[1.0]))));
        let kept = fs::metadata(&path).unwrap().len() as usize;
        // It says that all before it was synced, as if the break were damage.
        let forged = encode(&entry(9, Err(ClientFailure::NoData)), u64::MAX, &[7; 16]).unwrap().concat();
        keep(&spool, entry(2, Ok(trained(Values::Encoded([&forged[..], &[0; 99]].concat())))));
        drop(spool);
        let whole = fs::read(&path).unwrap();
        for cut in [kept + 1, whole.len() - 1] {
            fs::write(&path, &whole[..cut]).unwrap();
            let spool = open(&dir).unwrap();
            assert_eq!([1, 2, 9].map(|task| spool.digest(TaskId([task; 16])).is_some()), [true, false, false]);
        }
        // Were the mark known, the file would be refused.
        let forged = encode(&entry(9, Err(ClientFailure::NoData)), u64::MAX, &MARK).unwrap().concat();
        fs::write(&path, [&whole[..kept + 1], &forged].concat()).unwrap();
        assert!(open(&dir).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn answers_are_for_the_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        drop(open(&dir).unwrap());
        assert_eq!(fs::metadata(dir.path().join("answers")).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
