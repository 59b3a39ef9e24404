//! What an open round has of its clients, on disk, so that a server that was killed asks only the others again.
//!
//! ```text
//! "fedburn open round 2\n" | len u64 | what is told of the clients, JSON | sums, f64 | SHA-256 of all before
//! ```
//!
//! The file is replaced as a whole. Which round it is of, and which model that began from, says whether it is of any use:
//! neither is that of a round that ended, nor that of one which a run begins again from another model because a checkpoint
//! was damaged.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use burn::tensor::backend::Backend;
use fedburn_core::{ClientId, Metrics, ParamVector, RoundIndex, SideName};
use fedburn_durable::{self as durable, Access};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::gather::{ClientScalars, Sums};
use crate::{Coordinator, ExactSum};

/// The file that holds the open round of a run, and when the next writing is due.
pub(crate) struct OpenRoundFile {
    path: PathBuf,
    config_hash: String,
    pace: Pace,
}

/// An open round but for its sums.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Begun {
    pub(crate) round: RoundIndex,
    /// What [`fingerprint`] says of the global vector that it began from.
    pub(crate) model: String,
    /// Clients that could be reached when it began.
    pub(crate) available: u64,
    pub(crate) population: u64,
    pub(crate) cohort: BTreeSet<ClientId>,
    /// Whose updates are in the sums.
    pub(crate) folded: BTreeMap<ClientId, Folded>,
}

/// A client whose update is in the sums.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Folded {
    pub(crate) sent: ClientScalars,
    pub(crate) metrics: Metrics,
    pub(crate) bytes_up: u64,
}

/// An open round that another process left.
pub(crate) struct Found {
    pub(crate) begun: Begun,
    pub(crate) params: ExactSum,
    pub(crate) side: BTreeMap<SideName, ExactSum>,
}

/// The file's own account of itself.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    config_hash: String,
    len: usize,
    /// Name and weight of each sum; that of the parameters has no name and comes first.
    sums: Vec<(Option<SideName>, u64)>,
    begun: Begun,
}

impl OpenRoundFile {
    pub(crate) fn new(path: PathBuf, config_hash: &str) -> Self {
        Self { path, config_hash: config_hash.to_owned(), pace: Pace::default() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A round with so many updates begins, or goes on.
    pub(crate) fn begin(&mut self, updates: usize, now: Duration) {
        self.pace = Pace { written: updates, at: now, ..self.pace };
    }

    /// Writes the open round of `coordinator` where that is due; it is on disk when this returns.
    pub(crate) fn follow<B: Backend>(
        &mut self,
        coordinator: &mut Coordinator<B>,
        clock: impl Fn() -> Duration,
    ) -> io::Result<()> {
        let (updates, began) = (coordinator.accepted(), clock());
        if self.pace.is_due(updates, began) {
            if let Some((begun, sums)) = coordinator.begun().map_err(io::Error::other)? {
                self.write(begun, &sums)?;
            }
            let at = clock();
            self.pace = Pace { written: updates, at, took: at.saturating_sub(began) };
        }
        Ok(())
    }

    fn write(&self, begun: Begun, sums: &Sums<'_>) -> io::Result<()> {
        let head = Head {
            config_hash: self.config_hash.clone(),
            len: sums.first().map_or(0, |(_, sum)| sum.len()),
            sums: sums.iter().map(|(name, sum)| (name.clone(), sum.weight())).collect(),
            begun,
        };
        let head = serde_json::to_vec(&head)?;
        durable::replace_with(&self.path, Access::Owner, |file| {
            let mut out = BufWriter::with_capacity(BUFFER, Hashed { inner: &mut *file, hash: Sha256::new() });
            out.write_all(MAGIC)?;
            out.write_all(&(head.len() as u64).to_le_bytes())?;
            out.write_all(&head)?;
            sums.iter().try_for_each(|(_, sum)| sum.write(&mut out))?;
            let hash = out.into_inner().map_err(|e| e.into_error())?.hash;
            file.write(&hash.finalize())
        })
    }

    /// The round that was begun from `global` after `finished` rounds of this run, if one was left. What else is there is
    /// removed.
    ///
    /// # Errors
    /// That it is damaged, or what the system says.
    pub(crate) fn find<B: Backend>(&self, finished: RoundIndex, global: &ParamVector<B>) -> io::Result<Option<Found>> {
        durable::remove_unfinished(durable::directory_of(&self.path))?;
        let file = match fs::File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let len = file.metadata()?.len().saturating_sub(SUM_LEN);
        let mut reader = Hashed { inner: BufReader::with_capacity(BUFFER, file).take(len), hash: Sha256::new() };
        // Only what has the right sum is believed; a wrong number before costs no more than the file is long.
        let found = read(&mut reader, len);
        io::copy(&mut reader, &mut io::sink())?;
        let (mut sum, Hashed { inner, hash }) = (Vec::new(), reader);
        inner.into_inner().read_to_end(&mut sum)?;
        if hash.finalize().as_slice() != sum {
            return Err(io::Error::other("damaged; delete it, and its clients are asked again"));
        }
        let (head, sums) = found?;
        let (config, round, model) = (&head.config_hash, head.begun.round, &head.begun.model);
        if *config != self.config_hash || round != finished.next() || *model != fingerprint(global) {
            self.forget()?;
            return Ok(None);
        }
        let (mut side, mut params) = (BTreeMap::new(), None);
        for ((name, _), sum) in head.sums.into_iter().zip(sums) {
            match name {
                Some(name) => drop(side.insert(name, sum)),
                None => params = Some(sum),
            }
        }
        Ok(params.map(|params| Found { begun: head.begun, params, side }))
    }

    /// The round is over. Not synced: what comes back after a crash is of another round.
    pub(crate) fn forget(&self) -> io::Result<()> {
        durable::unless_missing(durable::remove_file(&self.path))
    }
}

fn read(reader: &mut impl Read, len: u64) -> io::Result<(Head, Vec<ExactSum>)> {
    let damaged = || io::Error::other("not an open round as this version writes it; delete it");
    let mut start = [0; MAGIC.len() + 8];
    reader.read_exact(&mut start)?;
    let (magic, head_len) = start.split_at(MAGIC.len());
    let head_len = u64::from_le_bytes(head_len.try_into().map_err(|_| damaged())?);
    if magic != MAGIC || head_len > len {
        return Err(damaged());
    }
    let mut head = Vec::new();
    reader.take(head_len).read_to_end(&mut head)?;
    let head: Head = serde_json::from_slice(&head)?;
    if (head.len as u64).saturating_mul(16 * head.sums.len() as u64) > len {
        return Err(damaged());
    }
    let sums = head.sums.iter().map(|(_, weight)| ExactSum::read(head.len, *weight, reader));
    let sums = sums.collect::<io::Result<_>>()?;
    Ok((head, sums))
}

/// SHA-256 of a vector's values, in hexadecimal.
pub(crate) fn fingerprint<B: Backend>(vector: &ParamVector<B>) -> String {
    let (len, mut hash) = (vector.num_values(), Sha256::new());
    for start in (0..len).step_by(BUFFER) {
        let range = start..len.min(start + BUFFER);
        vector.with_range(range, |values| hash.update(bytemuck::cast_slice(values)));
    }
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// When an open round is written again: after so many updates, or some after so long. Time enters as a number.
#[derive(Clone, Copy, Default)]
struct Pace {
    /// Updates in what was written, when it was there, and how long that had taken.
    written: usize,
    at: Duration,
    took: Duration,
}

impl Pace {
    fn is_due(&self, updates: usize, now: Duration) -> bool {
        let new = updates.saturating_sub(self.written);
        let period = PERIOD.max(self.took.saturating_mul(REST));
        new >= UPDATES || new > 0 && now.saturating_sub(self.at) >= period
    }
}

/// Hashes what passes.
struct Hashed<T> {
    inner: T,
    hash: Sha256,
}

impl Write for Hashed<&mut durable::File> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner.write(bytes)?;
        self.hash.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(bytes)?;
        self.hash.update(&bytes[..read]);
        Ok(read)
    }
}

const MAGIC: &[u8] = b"fedburn open round 2\n";
/// Bytes of a SHA-256.
const SUM_LEN: u64 = 32;
const BUFFER: usize = 1 << 20;
/// Updates that a killed server may have to ask for again.
const UPDATES: usize = 64;
/// Time after which fewer are written too.
const PERIOD: Duration = Duration::from_secs(60);
/// At least so many times as long as a writing takes, none follows because of the time; one because of the updates does,
/// since they are what is asked for again.
const REST: u32 = 10;

#[cfg(test)]
mod tests {
    use burn_flex::{Flex, FlexDevice};
    use fedburn_core::{
        Aggregate, AggregateError, ClientInfo, ClientReport, LocalUpdate, MeanStrategy, Outcome, Reply, Round,
        RoundMean, Seed, SideInfo, Strategy,
    };
    use fedburn_durable::crash::{Ending, Watch};

    use super::*;
    use crate::{All, Input};

    #[test]
    fn a_round_is_written_each_so_many_updates_or_so_often() {
        let second = Duration::from_secs;
        let pace = Pace { written: 3, at: second(10), took: second(1) };
        assert!(!pace.is_due(3, second(1000)), "nothing is new");
        assert!(!pace.is_due(4, second(69)) && pace.is_due(4, second(70)), "one after a minute");
        assert!(!pace.is_due(66, second(69)) && pace.is_due(67, second(10)), "64 more");
        let slow = Pace { took: second(90), ..pace };
        assert!(!slow.is_due(4, second(909)) && slow.is_due(4, second(910)), "a tenth of the time is spent on it");
        assert!(slow.is_due(67, second(10)));
    }

    #[test]
    fn a_slow_disk_is_not_written_to_without_a_rest() {
        let dir = tempfile::tempdir().unwrap();
        let mut rounds = OpenRoundFile::new(dir.path().join("open"), "hash");
        let strategy = Strategy::Mean(Box::new(Unused));
        let mut coordinator = Coordinator::<Flex>::new(strategy, Box::new(All), global(1.0), Seed::new(1), 1);
        let clients: Vec<_> = (0..30).map(|k| ClientInfo { id: ClientId(k), num_examples: 1 }).collect();
        coordinator.step(Input::Begin(&clients), Duration::ZERO).unwrap();
        // An answer each ten seconds; a look at the clock while the round is written is 80 seconds later than the last.
        let (now, mut written) = (std::cell::Cell::new(Duration::ZERO), Vec::new());
        rounds.begin(0, now.get());
        for client in 0..29 {
            let reply = Ok(Reply::Trained(LocalUpdate {
                params: global(client as f32),
                num_examples: 1,
                side: SideInfo::default(),
                report: ClientReport::default(),
                metrics: Metrics::new(),
            }));
            now.set(now.get() + Duration::from_secs(10));
            coordinator.step(Input::Outcome(Outcome { client: ClientId(client), reply }), Duration::ZERO).unwrap();
            let first = std::cell::Cell::new(true);
            let clock = || {
                now.set(now.get() + if first.replace(false) { Duration::ZERO } else { Duration::from_secs(80) });
                now.get()
            };
            rounds.follow(&mut coordinator, clock).unwrap();
            if rounds.pace.written as u64 == client + 1 {
                written.push(client + 1);
            }
        }
        assert_eq!(written, [6], "and not with each of those that follow");
        assert_eq!(rounds.find(RoundIndex(0), &global(1.0)).unwrap().unwrap().begun.folded.len(), 6);
    }

    /// A strategy whose round never ends.
    struct Unused;

    impl MeanStrategy<Flex> for Unused {
        fn name(&self) -> &'static str {
            "unused"
        }

        fn step(&mut self, _: &Round<'_, Flex>, mean: &RoundMean<Flex>) -> Result<Aggregate<Flex>, AggregateError> {
            Ok(mean.params.clone().into())
        }
    }

    fn global(value: f32) -> ParamVector<Flex> {
        fedburn_testkit::vector(&[value; 3], &fedburn_testkit::schema(&[3]), &FlexDevice)
    }

    fn begun() -> Begun {
        let sent: ClientScalars = serde_json::from_str(r#"{"num_examples": 5, "scalars": {"steps": 0.1}}"#).unwrap();
        let metrics: Metrics = [("loss".into(), fedburn_core::Mean::new(f64::NAN, 2.0))].into_iter().collect();
        Begun {
            round: RoundIndex(4),
            model: fingerprint(&global(1.0)),
            available: 6,
            population: 9,
            cohort: [1, 2, 5].map(ClientId).into(),
            folded: [(ClientId(2), Folded { sent, metrics, bytes_up: 24 })].into(),
        }
    }

    #[test]
    fn what_was_written_is_found_in_its_round_and_damage_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let rounds = OpenRoundFile::new(dir.path().join("open"), "hash");
        assert!(rounds.find(RoundIndex(3), &global(1.0)).unwrap().is_none());
        let (mut params, mut side) = (ExactSum::new(3), ExactSum::new(3));
        params.add(&[1.0, 1e30, -0.0], 5).unwrap();
        side.add(&[0.5, 1.0, 2.0], 5).unwrap();
        let sums = vec![(None, &params), (Some("control".into()), &side)];
        rounds.write(begun(), &sums).unwrap();
        let whole = fs::read(&rounds.path).unwrap();
        let found = rounds.find(RoundIndex(3), &global(1.0)).unwrap().unwrap();
        assert_eq!(format!("{:?}", found.begun), format!("{:?}", begun()));
        assert_eq!(found.params.mean().unwrap(), params.mean().unwrap());
        assert_eq!(found.side["control"].mean().unwrap(), side.mean().unwrap());
        let other = OpenRoundFile::new(rounds.path.clone(), "other");
        for (rounds, finished, model, what) in [
            (&rounds, 4, 1.0, "an earlier round"),
            (&rounds, 3, 2.0, "the round from another model"),
            (&other, 3, 1.0, "another run"),
        ] {
            fs::write(&rounds.path, &whole).unwrap();
            assert!(rounds.find(RoundIndex(finished), &global(model)).unwrap().is_none(), "of {what}");
            assert!(!rounds.path.exists(), "it is of no use any more");
        }
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&rounds.path, &bytes).unwrap();
            assert!(rounds.find(RoundIndex(3), &global(1.0)).is_err(), "byte {at}");
            fs::write(&rounds.path, &whole[..at]).unwrap();
            assert!(rounds.find(RoundIndex(3), &global(1.0)).is_err(), "cut at {at}");
        }
        rounds.forget().unwrap();
        assert!(rounds.find(RoundIndex(3), &global(1.0)).unwrap().is_none());
    }

    #[test]
    fn a_server_that_is_killed_while_it_writes_leaves_the_old_round_and_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let rounds = OpenRoundFile::new(dir.path().join("open"), "hash");
        let mut params = ExactSum::new(3);
        params.add(&[1.0, 1e30, -0.0], 5).unwrap();
        let sums = vec![(None, &params)];
        rounds.write(begun(), &sums).unwrap();
        let watch = Watch::new(dir.path());
        rounds.write(begun(), &sums).unwrap();
        for (step, ending) in (0..watch.steps()).flat_map(|step| [(step, Ending::Torn), (step, Ending::PowerCut)]) {
            watch.restart().unwrap();
            watch.crash_at(step, ending);
            rounds.write(begun(), &sums).unwrap_err();
            watch.restart().unwrap();
            assert!(rounds.find(RoundIndex(3), &global(1.0)).unwrap().is_some(), "{ending:?} at {step}");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "{ending:?} at {step}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn open_rounds_are_for_the_owner_alone() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let rounds = OpenRoundFile::new(dir.path().join("open"), "hash");
        let mut params = ExactSum::new(3);
        params.add(&[1.0; 3], 5).unwrap();
        rounds.write(begun(), &vec![(None, &params)]).unwrap();
        assert_eq!(fs::metadata(&rounds.path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
