//! A file that is written to, and what may go wrong with each step.

use std::fs;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::place::{Step, allow};

/// Who may read a new file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Whoever the system lets by default.
    Anybody,
    /// Its owner alone.
    Owner,
}

impl Access {
    /// Opens a file; one that is made is for whom this says from the first moment on.
    fn open(self, path: &Path, options: &mut fs::OpenOptions) -> io::Result<fs::File> {
        #[cfg(unix)]
        if self == Self::Owner {
            std::os::unix::fs::OpenOptionsExt::mode(options, OWNER);
        }
        options.open(path)
    }
}

/// A file that is written to. Nothing is on disk for sure before [`File::sync`].
#[derive(Debug)]
pub struct File {
    file: fs::File,
    path: PathBuf,
}

impl File {
    /// Makes an empty file in the place of whatever was there.
    ///
    /// # Errors
    /// What the system says.
    pub fn create(path: &Path, access: Access) -> io::Result<Self> {
        allow(Step::Create, path)?;
        // Removed first: what is there may have been open to more readers.
        crate::unless_missing(fs::remove_file(path))?;
        let file = access.open(path, fs::File::options().write(true).create_new(true))?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Opens a file to go on behind what it holds; it is made where it is missing. One that more could read is its
    /// owner's from now on, where `access` says so.
    ///
    /// # Errors
    /// What the system says.
    pub fn append(path: &Path, access: Access) -> io::Result<Self> {
        allow(Step::Create, path)?;
        let file = access.open(path, fs::File::options().read(true).append(true).create(true))?;
        #[cfg(unix)]
        if access == Access::Owner {
            file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(OWNER))?;
        }
        Ok(Self { file, path: path.to_owned() })
    }

    /// Writes all of `bytes`.
    ///
    /// # Errors
    /// What the system says; a part may have been written.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match allow(Step::Write, &self.path) {
            Ok(()) => self.file.write_all(bytes),
            Err(error) => {
                #[cfg(any(test, feature = "crash"))]
                self.file.write_all(&bytes[..crate::crash::torn(&self.path, bytes.len())])?;
                Err(error)
            }
        }
    }

    /// Drops what is behind the first `len` bytes.
    ///
    /// # Errors
    /// What the system says.
    pub fn truncate(&mut self, len: u64) -> io::Result<()> {
        allow(Step::Truncate, &self.path)?;
        self.file.set_len(len)?;
        self.file.seek(SeekFrom::End(0)).map(drop)
    }

    /// Puts all that was written on disk. After an error nothing is known of what is there: do not try again.
    ///
    /// # Errors
    /// What the system says.
    pub fn sync(&self) -> io::Result<()> {
        allow(Step::Sync, &self.path)?;
        self.file.sync_data()
    }
}

/// Permissions of a file that is its owner's.
#[cfg(unix)]
const OWNER: u32 = 0o600;
