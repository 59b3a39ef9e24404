//! Reading a file of unknown honesty: nothing is allocated because a header says so.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use crate::DatasetError;

/// Deflate cannot expand by more than this (zlib technical notes).
const MAX_EXPANSION: u64 = 1032;

/// The bytes of a file, unpacked on the way if they are gzip.
pub(super) struct Source<'a> {
    reader: Box<dyn Read + 'a>,
    path: PathBuf,
    /// The most bytes that the file can hold.
    limit: u64,
}

impl<'a> Source<'a> {
    pub(super) fn new(bytes: &'a [u8], path: &Path) -> Self {
        let length = bytes.len() as u64;
        let (reader, limit): (Box<dyn Read>, u64) = if bytes.starts_with(&[0x1f, 0x8b]) {
            (Box::new(MultiGzDecoder::new(bytes)), length.saturating_mul(MAX_EXPANSION))
        } else {
            (Box::new(bytes), length)
        };
        Self { reader, path: path.to_owned(), limit }
    }

    /// The next `length` bytes.
    pub(super) fn take(&mut self, length: u64, what: &str) -> Result<Vec<u8>, DatasetError> {
        if length > self.limit {
            return Err(self.malformed(format!("{what} need {length} bytes, the file holds at most {}", self.limit)));
        }
        let mut bytes = Vec::new();
        match self.reader.by_ref().take(length).read_to_end(&mut bytes) {
            Err(error) => Err(self.malformed(format!("unreadable in {what}: {error}"))),
            Ok(found) if (found as u64) < length => {
                Err(self.malformed(format!("truncated in {what}: expected {length} bytes, found {found}")))
            }
            Ok(_) => Ok(bytes),
        }
    }

    /// The next four bytes as a big-endian number.
    pub(super) fn word(&mut self, what: &str) -> Result<u32, DatasetError> {
        let bytes = self.take(4, what)?;
        Ok(bytes.iter().fold(0, |word, &byte| word << 8 | u32::from(byte)))
    }

    /// Everything that is left.
    pub(super) fn rest(&mut self) -> Result<Vec<u8>, DatasetError> {
        let mut bytes = Vec::new();
        match self.reader.by_ref().take(self.limit).read_to_end(&mut bytes) {
            Err(error) => Err(self.malformed(format!("unreadable: {error}"))),
            Ok(_) => Ok(bytes),
        }
    }

    /// Refuses trailing bytes.
    pub(super) fn end(mut self) -> Result<(), DatasetError> {
        let mut byte = [0];
        match self.reader.read(&mut byte) {
            Ok(0) => Ok(()),
            Ok(_) => Err(self.malformed("bytes after the end of the data".into())),
            Err(error) => Err(self.malformed(format!("unreadable at the end: {error}"))),
        }
    }

    pub(super) fn malformed(&self, problem: String) -> DatasetError {
        malformed(&self.path, problem)
    }
}

/// An error about a file's content.
pub(super) fn malformed(path: &Path, problem: impl ToString) -> DatasetError {
    DatasetError::Malformed { path: path.to_owned(), problem: problem.to_string() }
}

/// The bytes of a file as they are on disk.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, DatasetError> {
    fs::read(path).map_err(|source| DatasetError::Read { path: path.to_owned(), source })
}

/// `directory/file`, or `directory/file.gz` where only that exists.
pub(super) fn plain_or_gz(directory: &Path, file: &str) -> Option<PathBuf> {
    [directory.join(file), directory.join(format!("{file}.gz"))].into_iter().find(|path| path.is_file())
}

/// The first of `directories` that holds `file`, plain or gzip.
pub(super) fn locate(name: &str, directories: &[PathBuf], file: &str) -> Result<PathBuf, DatasetError> {
    directories.iter().find(|directory| plain_or_gz(directory, file).is_some()).cloned().ok_or_else(|| {
        DatasetError::Missing {
            name: name.to_owned(),
            searched: directories.to_vec(),
            command: format!("cargo xtask data fetch {name}"),
        }
    })
}
