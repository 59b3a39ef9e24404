//! Files of results: written as a whole, read leniently.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use fedburn::durable::{self, Access};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Results that cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResultsError {
    /// Nothing was run here.
    #[error("{} holds no results; `cargo xtask experiment run` makes them", path.display())]
    Missing {
        /// The folder of the experiment.
        path: PathBuf,
    },
    /// The system refused to read.
    #[error("{} cannot be read", path.display())]
    Read {
        /// What was read.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The system refused to write.
    #[error("{} cannot be written", path.display())]
    Write {
        /// What was to be written.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Replaces a file as a whole: readers see the old bytes or all the new ones, also after a crash.
///
/// # Errors
/// [`ResultsError::Write`]; the old file is then untouched and nothing is left beside it.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), ResultsError> {
    replace(path, bytes, Access::Anybody).map_err(|source| ResultsError::Write { path: path.to_owned(), source })
}

/// [`write_atomic`] for a file that only its owner may read.
///
/// # Errors
/// As [`write_atomic`].
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), ResultsError> {
    replace(path, bytes, Access::Owner).map_err(|source| ResultsError::Write { path: path.to_owned(), source })
}

/// Writes a value as indented JSON with [`write_atomic`].
///
/// # Errors
/// As [`write_atomic`].
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), ResultsError> {
    write_atomic(path, &json(path, value)?)
}

/// [`write_json`] for a file that only its owner may read.
///
/// # Errors
/// As [`write_atomic`].
pub fn write_private_json(path: &Path, value: &impl Serialize) -> Result<(), ResultsError> {
    write_private(path, &json(path, value)?)
}

fn json(path: &Path, value: &impl Serialize) -> Result<Vec<u8>, ResultsError> {
    let error = |e: serde_json::Error| ResultsError::Write { path: path.to_owned(), source: e.into() };
    let mut text = serde_json::to_vec_pretty(value).map_err(error)?;
    text.push(b'\n');
    Ok(text)
}

/// Writes rows with a header line as CSV with [`write_atomic`].
///
/// # Errors
/// As [`write_atomic`].
pub fn write_csv<R: Serialize>(path: &Path, rows: &[R]) -> Result<(), ResultsError> {
    let error = |source| ResultsError::Write { path: path.to_owned(), source };
    let mut writer = csv::Writer::from_writer(Vec::new());
    rows.iter().try_for_each(|row| writer.serialize(row)).map_err(|e| error(io::Error::other(e)))?;
    write_atomic(path, &writer.into_inner().map_err(|e| error(io::Error::other(e.to_string())))?)
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

fn replace(path: &Path, bytes: &[u8], access: Access) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    durable::replace(path, bytes, access)
}

/// The file decoded, `None` where there is none; the error names the file.
pub(crate) fn optional<T>(
    dir: &Path,
    name: &str,
    decode: impl Fn(Vec<u8>) -> Result<T, Cause>,
) -> Result<Option<T>, String> {
    match fs::read(dir.join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!("{name}: {error}")),
        Ok(bytes) => decode(bytes).map(Some).map_err(|error| format!("{name}: {error}")),
    }
}

pub(crate) fn read_json<T: DeserializeOwned>(dir: &Path, name: &str) -> Result<Option<T>, String> {
    optional(dir, name, |bytes| Ok(serde_json::from_slice(&bytes)?))
}

/// The rows up to the first damaged one: a killed run may leave half a line at the end.
pub(crate) fn read_csv<R: DeserializeOwned>(dir: &Path, name: &str, problems: &mut Vec<String>) -> Vec<R> {
    let Some(bytes) = noted(problems, optional(dir, name, Ok)) else { return Vec::new() };
    let mut rows = Vec::new();
    for row in csv::Reader::from_reader(bytes.as_slice()).deserialize() {
        match row {
            Ok(row) => rows.push(row),
            Err(error) => {
                problems.push(format!("{name}: {error}"));
                break;
            }
        }
    }
    rows
}

pub(crate) fn open(dir: &Path, name: &str) -> Result<Option<fs::File>, String> {
    match fs::File::open(dir.join(name)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        file => file.map(Some).map_err(|error| format!("{name}: {error}")),
    }
}

pub(crate) fn noted<T>(problems: &mut Vec<String>, read: Result<Option<T>, String>) -> Option<T> {
    read.unwrap_or_else(|problem| {
        problems.push(problem);
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_replaced_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b.json");
        write_json(&path, &[1, 2, 3]).unwrap();
        write_json(&path, &[4]).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "[\n  4\n]\n");
        assert_eq!(fs::read_dir(dir.path().join("a")).unwrap().count(), 1, "nothing is left beside it");
        assert!(matches!(write_json(dir.path(), &1), Err(ResultsError::Write { .. })), "a folder is in the way");
    }

    #[cfg(unix)]
    #[test]
    fn a_private_file_is_its_owners() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        write_private(&path, b"secret").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
