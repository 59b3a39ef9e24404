//! Readers of foreign bytes that nobody outside calls, for fuzzing alone.

use std::fs;
use std::io::{self, BufReader, Seek, SeekFrom};
use std::path::Path;
use std::time::SystemTime;

use fedburn_core::RoundIndex;
use rustls::pki_types::CertificateDer;

use super::participation::Participation;
use super::record::{HEAD, Mark, Record, START, damage, number, scan, unusable};
use crate::quic::blob::{Form, Values, decode_inline};
use crate::quic::identity::{enrol, spki_hash, validity, wants_renewal};
use crate::quic::{IdentityError, NodeId, QuicError};
use crate::wire::{BlobError, Hash};

/// The plan that files are of.
const PLAN: Hash = Hash([7; 32]);
/// What tells records of the file of answers from anything else.
const MARK: &Mark = b"\xf7 answer's mark\xf7";

/// Writes `records` to `path`, each with the hash that it needs, and reads every answer; how many there are.
///
/// # Errors
/// [`QuicError::Unusable`].
pub fn answers(path: &Path, records: &[u8]) -> Result<usize, QuicError> {
    let failed = |e: io::Error| unusable(path, &e.to_string());
    let file = sealed(records);
    fs::write(path, &file).map_err(failed)?;
    let mut reader = BufReader::new(fs::File::open(path).map_err(failed)?);
    let places = scan(&mut reader, file.len() as u64, MARK, path)?.1;
    for place in places.values() {
        reader.seek(SeekFrom::Start(place.start)).map_err(failed)?;
        let record = Record::read(&mut reader, u64::MAX, MARK).map_err(failed)?;
        let entry = record.map(|record| record.entry(&mut reader)).transpose().map_err(failed)?.flatten();
        entry.ok_or_else(|| unusable(path, &damage(place.start)))?;
    }
    Ok(places.len())
}

/// A file of these records with the right hash wherever the one before ends.
fn sealed(records: &[u8]) -> Vec<u8> {
    let mut file = [&[0; HEAD], records].concat();
    let mut rest = &mut file[HEAD..];
    while let Some((start, body)) = rest.split_first_chunk_mut::<START>().filter(|(start, _)| start.starts_with(MARK)) {
        let (_, start) = start.split_at_mut(MARK.len());
        let (lengths, place) = start.split_at_mut(20);
        let len = number(&lengths[8..12]).saturating_add(number(&lengths[12..]));
        let Some((body, next)) = usize::try_from(len).ok().and_then(|len| body.split_at_mut_checked(len)) else {
            break;
        };
        place.copy_from_slice(blake3::Hasher::new().update(lengths).update(body).finalize().as_bytes());
        rest = next;
    }
    file
}

/// Reads the record of participations in `path` for a run that goes on after round 3.
///
/// # Errors
/// [`QuicError::Unusable`].
pub fn participation(path: &Path) -> Result<(), QuicError> {
    let mut record = Participation::open(path.to_owned(), PLAN, RoundIndex(3))?;
    record.checkpointed(RoundIndex(2));
    Ok(())
}

/// Reads an update of two vectors of three values that came inside its message, in chunks of eight bytes.
///
/// # Errors
/// [`BlobError`].
pub fn inline(payload: &[u8]) -> Result<Vec<Vec<f32>>, BlobError> {
    match decode_inline(payload, Form::Plain { num_values: 3, num_vectors: 2 }, 8)?.0 {
        Values::Plain(vectors) => Ok(vectors),
        Values::Encoded(_) => Ok(Vec::new()),
    }
}

/// Verifies a request for a certificate on a connection whose keying material is all ones.
///
/// # Errors
/// [`IdentityError::Enrolment`].
pub fn enrolment(request: &[u8]) -> Result<(), IdentityError> {
    enrol::verify_request(request, &[1; 32]).map(drop)
}

/// Reads a certificate (DER) that the other side showed: whose it is, of which authority, and until when it holds.
pub fn certificate(der: &[u8]) -> Option<NodeId> {
    let certificate = CertificateDer::from(der);
    wants_renewal(&certificate, SystemTime::UNIX_EPOCH);
    validity(&certificate).and(spki_hash(&certificate)).and(NodeId::of_certificate(&certificate))
}
