//! What an open round has of its clients, on disk, so that a server that was killed asks only the others again.
//!
//! ```text
//! "fedburn open round 1\n" | len u64 | what is told of the clients, JSON | sums, f64 | SHA-256 of all before
//! ```
//!
//! The file is replaced as a whole. Which round it is of says whether it is of any use: that of a round that ended is not.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use fedburn_core::{ClientId, Metrics, RoundIndex, SideName};
use fedburn_durable::{self as durable, Access};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::ExactSum;
use crate::gather::{ClientScalars, Sums};

/// Where open rounds of one run are kept, and when the next writing is due.
pub(crate) struct OpenRounds {
    path: PathBuf,
    config_hash: String,
    pace: Pace,
}

/// An open round but for its sums.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Begun {
    pub(crate) round: RoundIndex,
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

impl OpenRounds {
    pub(crate) fn new(path: PathBuf, config_hash: &str) -> Self {
        Self { path, config_hash: config_hash.to_owned(), pace: Pace::default() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A round with so many updates begins, or goes on.
    pub(crate) fn begin(&mut self, updates: usize, now: Duration) {
        self.pace = Pace { written: updates, at: now };
    }

    /// Whether a round with so many updates should be written now.
    pub(crate) fn is_due(&mut self, updates: usize, now: Duration) -> bool {
        self.pace.is_due(updates, now)
    }

    /// Writes an open round; it is on disk when this returns.
    pub(crate) fn write(&self, begun: Begun, sums: &Sums<'_>) -> io::Result<()> {
        let head = Head {
            config_hash: self.config_hash.clone(),
            len: sums.first().map_or(0, |(_, sum)| sum.len()),
            sums: sums.iter().map(|(name, sum)| (name.clone(), sum.weight())).collect(),
            begun,
        };
        let head = serde_json::to_vec(&head)?;
        durable::replace_with(&self.path, Access::Anybody, |file| {
            let mut out = BufWriter::with_capacity(BUFFER, Hashed { inner: &mut *file, hash: Sha256::new() });
            out.write_all(MAGIC)?;
            out.write_all(&(head.len() as u64).to_le_bytes())?;
            out.write_all(&head)?;
            sums.iter().try_for_each(|(_, sum)| sum.write(&mut out))?;
            let hash = out.into_inner().map_err(|e| e.into_error())?.hash;
            file.write(&hash.finalize())
        })
    }

    /// The round that was begun after `finished` rounds of this run, if one was left.
    ///
    /// # Errors
    /// That it is damaged, or what the system says.
    pub(crate) fn find(&self, finished: RoundIndex) -> io::Result<Option<Found>> {
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
        if head.config_hash != self.config_hash || head.begun.round != finished.next() {
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

    /// The round is over.
    pub(crate) fn forget(&self) -> io::Result<()> {
        durable::unless_missing(durable::remove_file(&self.path))
    }
}

fn read(reader: &mut impl Read, len: u64) -> io::Result<(Head, Vec<ExactSum>)> {
    let damaged = || io::Error::other("not an open round");
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

/// When an open round is written again: after so many updates, or some after so long. Time enters as a number.
#[derive(Default)]
struct Pace {
    /// Updates in what was written, and when it was.
    written: usize,
    at: Duration,
}

impl Pace {
    fn is_due(&mut self, updates: usize, now: Duration) -> bool {
        let new = updates.saturating_sub(self.written);
        let due = new >= UPDATES || new > 0 && now.saturating_sub(self.at) >= PERIOD;
        if due {
            *self = Self { written: updates, at: now };
        }
        due
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

const MAGIC: &[u8] = b"fedburn open round 1\n";
/// Bytes of a SHA-256.
const SUM_LEN: u64 = 32;
const BUFFER: usize = 1 << 20;
/// Updates that a killed server may have to ask for again.
const UPDATES: usize = 64;
/// Time after which fewer are written too.
const PERIOD: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_is_written_each_so_many_updates_or_so_often() {
        let second = Duration::from_secs;
        let mut pace = Pace { written: 3, at: second(10) };
        assert!(!pace.is_due(66, second(69)));
        assert!(pace.is_due(67, second(11)), "64 more");
        assert!(!pace.is_due(67, second(1000)), "nothing is new");
        assert!(pace.is_due(68, second(71)), "one after a minute");
        assert!(!pace.is_due(69, second(130)));
        assert!(pace.is_due(69, second(131)));
    }

    fn begun() -> Begun {
        let sent: ClientScalars = serde_json::from_str(r#"{"num_examples": 5, "scalars": {"steps": 0.1}}"#).unwrap();
        let metrics: Metrics = [("loss".into(), fedburn_core::Mean::new(f64::NAN, 2.0))].into_iter().collect();
        Begun {
            round: RoundIndex(4),
            available: 6,
            population: 9,
            cohort: [1, 2, 5].map(ClientId).into(),
            folded: [(ClientId(2), Folded { sent, metrics, bytes_up: 24 })].into(),
        }
    }

    #[test]
    fn what_was_written_is_found_in_its_round_and_damage_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let rounds = OpenRounds::new(dir.path().join("open"), "hash");
        assert!(rounds.find(RoundIndex(3)).unwrap().is_none());
        let (mut params, mut side) = (ExactSum::new(3), ExactSum::new(3));
        params.add(&[1.0, 1e30, -0.0], 5).unwrap();
        side.add(&[0.5, 1.0, 2.0], 5).unwrap();
        rounds.write(begun(), &vec![(None, &params), (Some("control".into()), &side)]).unwrap();
        let found = rounds.find(RoundIndex(3)).unwrap().unwrap();
        assert_eq!(format!("{:?}", found.begun), format!("{:?}", begun()));
        assert_eq!(found.params.mean().unwrap(), params.mean().unwrap());
        assert_eq!(found.side["control"].mean().unwrap(), side.mean().unwrap());
        assert!(rounds.find(RoundIndex(4)).unwrap().is_none(), "of an earlier round");
        assert!(OpenRounds::new(dir.path().join("open"), "other").find(RoundIndex(3)).unwrap().is_none());
        let whole = fs::read(&rounds.path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&rounds.path, &bytes).unwrap();
            assert!(rounds.find(RoundIndex(3)).is_err(), "byte {at}");
            fs::write(&rounds.path, &whole[..at]).unwrap();
            assert!(rounds.find(RoundIndex(3)).is_err(), "cut at {at}");
        }
        rounds.forget().unwrap();
        assert!(rounds.find(RoundIndex(3)).unwrap().is_none());
    }
}
