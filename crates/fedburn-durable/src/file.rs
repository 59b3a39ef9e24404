//! A file that is written to, and what may go wrong with each step.

use std::fs;
use std::io::{self, Seek, SeekFrom, Write};
#[cfg(unix)]
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
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
    /// Makes a file; it is for whom this says from the first moment on.
    fn make(self, path: &Path, options: &mut fs::OpenOptions) -> io::Result<fs::File> {
        #[cfg(unix)]
        if self == Self::Owner {
            options.mode(OWNER);
        }
        let file = options.create_new(true).open(path)?;
        #[cfg(unix)]
        in_the_name_of_the_folders_owner(&file, path)?;
        Ok(file)
    }

    /// Makes a file, or opens the one that is there.
    fn make_or_open(self, path: &Path, options: &mut fs::OpenOptions) -> io::Result<fs::File> {
        match self.make(path, &mut options.clone()) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => open_existing(path, options),
            made => made,
        }
    }
}

/// A file that root makes in another user's folder becomes that user's: what an operator changes, a service has to read.
#[cfg(unix)]
fn in_the_name_of_the_folders_owner(file: &fs::File, path: &Path) -> io::Result<()> {
    let folder = fs::metadata(crate::directory_of(path))?;
    match file.metadata()?.uid() == ROOT && folder.uid() != ROOT {
        true => fchown(file, Some(folder.uid()), Some(folder.gid())),
        false => Ok(()),
    }
}

/// Opens a file that is there. Whoever owns the folder may have put another file of root's under its name, for root to
/// change: links are not followed, and what is root's in another user's folder is refused.
fn open_existing(path: &Path, options: &mut fs::OpenOptions) -> io::Result<fs::File> {
    // Nor is a pipe waited for.
    #[cfg(unix)]
    options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
    let file = options.open(path)?;
    let found = file.metadata()?;
    let refused = |what| io::Error::new(io::ErrorKind::PermissionDenied, format!("is {what}; remove it"));
    if !found.is_file() {
        return Err(refused("no regular file"));
    }
    #[cfg(unix)]
    if found.uid() == ROOT && fs::metadata(crate::directory_of(path))?.uid() != ROOT {
        return Err(refused("root's in another user's folder"));
    }
    Ok(file)
}

/// Opens the file by which processes exclude one another; it is made where it is missing, and stays.
///
/// # Errors
/// What the system says. A link in its place is refused, as is what is no regular file.
pub fn lock_file(path: &Path) -> io::Result<fs::File> {
    Access::Owner.make_or_open(path, fs::File::options().write(true))
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
        let file = access.make(path, fs::File::options().write(true))?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Opens a file to go on behind what it holds; it is made where it is missing. One that more could read is its
    /// owner's from now on, where `access` says so.
    ///
    /// # Errors
    /// What the system says. A link in its place is refused, as is what is no regular file.
    pub fn append(path: &Path, access: Access) -> io::Result<Self> {
        allow(Step::Create, path)?;
        let file = access.make_or_open(path, fs::File::options().read(true).append(true))?;
        #[cfg(unix)]
        if access == Access::Owner {
            file.set_permissions(fs::Permissions::from_mode(OWNER))?;
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
const ROOT: u32 = 0;

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};
    use std::process::Command;

    use super::*;

    const OTHER: u32 = 4_321;

    /// Opens each kind of file that may be there already.
    fn open_all(path: &Path) -> [io::Result<()>; 3] {
        let append = |access| File::append(path, access).map(drop);
        [lock_file(path).map(drop), append(Access::Owner), append(Access::Anybody)]
    }

    #[test]
    fn a_file_elsewhere_is_not_changed_through_a_name_that_leads_there() {
        let (theirs, mine) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (secret, missing) = (mine.path().join("secret"), mine.path().join("missing"));
        fs::write(&secret, b"").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o640)).unwrap();
        let found = || fs::metadata(&secret).map(|found| (found.uid(), found.gid(), found.mode())).unwrap();
        // By root alone: another user's folder, and a second name of a file of root's.
        let is_anothers = chown(theirs.path(), Some(OTHER), Some(OTHER)).is_ok();
        let before = found();

        let names = ["to secret", "to missing", "pipe", "hard"].map(|name| theirs.path().join(name));
        symlink(&secret, &names[0]).unwrap();
        symlink(&missing, &names[1]).unwrap();
        assert!(Command::new("mkfifo").arg(&names[2]).status().unwrap().success());
        fs::hard_link(&secret, &names[3]).unwrap();
        for name in &names[..if is_anothers { 4 } else { 3 }] {
            for opened in open_all(name) {
                opened.expect_err(&name.display().to_string());
            }
        }
        assert_eq!(found(), before);
        assert!(!missing.exists());
    }

    #[test]
    fn what_root_makes_in_anothers_folder_is_the_others() {
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
            assert!(open_all(&path).iter().all(Result::is_ok), "opened again");
            let found = fs::metadata(&path).unwrap();
            assert_eq!((found.uid(), found.gid()), (OTHER, OTHER), "{}", path.display());
        }
    }
}
