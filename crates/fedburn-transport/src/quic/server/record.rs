//! Answers as records of a file.
//!
//! ```text
//! "fedburn answers 2\n", plan [32], mark [16]                   the file's head
//! mark | synced u64 | head u32 | payload u64 | hash [32]        one record: the bytes that were on disk for sure when it
//! head, postcard | payload, f32 or a codec's                      was written, two lengths, BLAKE3 of all but the hash
//! ```
//!
//! What a crash may leave broken is behind all that a whole record says was synced: there it is dropped, and anywhere
//! else the file is damaged and refused. The mark is random and told to nobody: no payload can hold what looks like a
//! record.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use fedburn_core::{ClientFailure, ClientInfo};
use serde::{Deserialize, Serialize};

use super::super::QuicError;
use super::super::blob::Values;
use super::tasks::{Arrived, ArrivedUpdate};
use crate::wire::limits::MAX_MANIFEST_BODY;
use crate::wire::{
    Failure, Hash, NamedMean, NamedValue, Report, TaskId, metrics_from_wire, metrics_to_wire, vector_bytes,
};

/// An answer to keep, or that was kept.
pub(super) struct Entry {
    pub(super) task: TaskId,
    pub(super) client: ClientInfo,
    /// What tells a repetition of the answer from another one.
    pub(super) digest: Hash,
    pub(super) reply: Result<Arrived, ClientFailure>,
}

/// Where a record is, and what is asked of it without reading it.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) start: u64,
    pub(super) client: ClientInfo,
    pub(super) digest: Hash,
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

/// The record of an answer, in pieces.
pub(super) fn encode<'e>(entry: &'e Entry, synced: u64, mark: &Mark) -> io::Result<Vec<Cow<'e, [u8]>>> {
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
    pieces.insert(0, Cow::Owned([&mark[..], &lengths, hasher.finalize().as_bytes(), &head].concat()));
    Ok(pieces)
}

/// A record as its first bytes describe it.
pub(super) struct Record {
    lengths: [u8; 20],
    hash: Hash,
}

impl Record {
    /// The first bytes of a record; `None` where these are none, or it would not end within `left` bytes.
    pub(super) fn read(reader: &mut impl Read, left: u64, mark: &Mark) -> io::Result<Option<Self>> {
        let bytes = read_up_to(reader, START)?;
        let Some(bytes) = bytes.strip_prefix(mark) else { return Ok(None) };
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
    pub(super) fn entry(&self, reader: &mut impl Read) -> io::Result<Option<Entry>> {
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
                        let len = num_values as usize;
                        let mut vectors: Vec<_> = (1..=names.len())
                            .rev()
                            .map(|vector| values.split_off(values.len().min(len.saturating_mul(vector))))
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
pub(super) fn scan(
    reader: &mut BufReader<fs::File>,
    len: u64,
    mark: &Mark,
    path: &Path,
) -> Result<(u64, BTreeMap<TaskId, Place>), QuicError> {
    let failed = |e: io::Error| unusable(path, &e.to_string());
    let mut start = HEAD as u64;
    let (mut known, mut end, mut broken) = (BTreeMap::new(), start, None::<u64>);
    while start < len {
        reader.seek(SeekFrom::Start(start)).map_err(failed)?;
        let record = Record::read(reader, len - start, mark).map_err(failed)?;
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
                start = next_record(reader, start + 1, mark).map_err(failed)?.unwrap_or(len);
            }
        }
    }
    // Behind a break nothing was acknowledged: it is asked for again.
    known.retain(|_, place: &mut Place| place.start < end);
    Ok((end, known))
}

/// Where the next record may begin, from `from` on.
fn next_record(reader: &mut BufReader<fs::File>, from: u64, mark: &Mark) -> io::Result<Option<u64>> {
    let mut at = reader.seek(SeekFrom::Start(from))?;
    loop {
        let buffer = reader.fill_buf()?;
        if buffer.is_empty() {
            return Ok(None);
        }
        let skipped = buffer.iter().position(|byte| *byte == mark[0]).unwrap_or(buffer.len());
        reader.consume(skipped);
        at += skipped as u64;
        let found = read_up_to(reader, mark.len())?;
        if found == mark {
            return Ok(Some(at));
        }
        // What is in the buffer is not read again.
        at += u64::from(!found.is_empty());
        reader.seek_relative(found.len().min(1) as i64 - found.len() as i64)?;
    }
}

pub(super) fn read_up_to(reader: &mut impl Read, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(len as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

pub(super) fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

pub(super) fn damage(at: u64) -> String {
    format!("damaged at byte {at}; delete it, and clients are asked again for what it held")
}

pub(super) fn unusable(path: &Path, reason: &str) -> QuicError {
    QuicError::Unusable { what: "file of answers", reason: format!("{}: {reason}", path.display()) }
}

/// Tells a record from anything that a node could have written.
pub(super) type Mark = [u8; 16];

pub(super) const MAGIC: &[u8] = b"fedburn answers 2\n";
/// Bytes of the file's head.
pub(super) const HEAD: usize = MAGIC.len() + 32 + size_of::<Mark>();
/// Bytes of a record before its head.
pub(super) const START: usize = size_of::<Mark>() + 20 + 32;
/// Bytes of a head: not more than the largest message.
const MAX_HEAD: u64 = MAX_MANIFEST_BODY as u64;
/// Bytes of a payload that are looked at at a time.
const PIECE: usize = 64 << 10;
