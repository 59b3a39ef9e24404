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
        let file = options.open(path)?;
        #[cfg(unix)]
        in_the_name_of_the_folders_owner(&file, path)?;
        Ok(file)
    }
}

/// A file that root makes in another user's folder becomes that user's: what an operator changes, a service has to read.
#[cfg(unix)]
fn in_the_name_of_the_folders_owner(file: &fs::File, path: &Path) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, fchown};
    const ROOT: u32 = 0;
    if file.metadata()?.uid() != ROOT {
        return Ok(());
    }
    let folder = fs::metadata(crate::directory_of(path))?;
    if folder.uid() == ROOT { Ok(()) } else { fchown(file, Some(folder.uid()), Some(folder.gid())) }
}

/// Opens the file by which processes exclude one another; it is made where it is missing, and stays.
///
/// # Errors
/// What the system says.
pub fn lock_file(path: &Path) -> io::Result<fs::File> {
    Access::Owner.open(path, fs::File::options().write(true).create(true).truncate(false))
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

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, chown};

    use super::*;

    #[test]
    fn what_root_makes_in_anothers_folder_is_the_others() {
        const OTHER: u32 = 4_321;
        let dir = tempfile::tempdir().unwrap();
        if chown(dir.path(), Some(OTHER), Some(OTHER)).is_err() {
            eprintln!("skipped: only root can give files away");
            return;
        }
        let (record, log, lock) = (dir.path().join("record"), dir.path().join("log"), dir.path().join("lock"));
        crate::replace(&record, b"new", Access::Owner).unwrap();
        File::append(&log, Access::Anybody).unwrap();
        lock_file(&lock).unwrap();
        for path in [record, log, lock] {
            let found = fs::metadata(&path).unwrap();
            assert_eq!((found.uid(), found.gid()), (OTHER, OTHER), "{}", path.display());
        }
    }
}
