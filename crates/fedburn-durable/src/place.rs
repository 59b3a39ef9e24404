//! Files and directories as a whole: replaced, moved, removed.

use std::fs;
use std::io;
use std::path::Path;

use crate::{Access, File};

/// Replaces the content of `path`: written beside it, synced, then renamed. On error the old content is there, or all of
/// the new where only its name could not be put on disk for sure, and nothing beside it. What a process leaves there
/// that is killed in between, [`remove_unfinished`] removes.
///
/// # Errors
/// What the system says.
pub fn replace(path: &Path, bytes: &[u8], access: Access) -> io::Result<()> {
    replace_with(path, access, |file| file.write(bytes))
}

/// [`replace`] with what `write` writes, for content that is better not held in memory.
///
/// # Errors
/// What the system or `write` says.
pub fn replace_with(path: &Path, access: Access, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    // Two processes may write the same file: each beside it under its own name.
    name.push(format!(".{}.tmp", std::process::id()));
    let beside = Path::new(&name);
    let replaced = File::create(beside, access).and_then(|mut file| {
        write(&mut file)?;
        file.sync()?;
        rename(beside, path)
    });
    replaced.inspect_err(|_| {
        // The first error is the one to tell.
        let _ = remove_file(beside);
    })?;
    sync_directory(directory_of(path))
}

/// Removes what processes left in `directory` that were killed while they replaced a file of it. For a directory in which
/// nobody else replaces files now.
///
/// # Errors
/// What the system says.
pub fn remove_unfinished(directory: &Path) -> io::Result<()> {
    for entry in unless_missing(fs::read_dir(directory).map(Some))?.into_iter().flatten() {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".tmp")?.rsplit_once('.'));
        if name.is_some_and(|(name, process)| !name.is_empty() && process.parse::<u32>().is_ok()) {
            unless_missing(remove_file(&path))?;
        }
    }
    Ok(())
}

/// Writes a file that is on disk when this returns. Not whole before: for names that nothing reads yet.
///
/// # Errors
/// What the system says.
pub fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path, Access::Anybody)?;
    file.write(bytes)?;
    file.sync()
}

/// Puts what was made, renamed or removed inside `directory` on disk.
///
/// # Errors
/// What the system says.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    allow(Step::SyncDirectory, directory)?;
    fs::File::open(directory)?.sync_all()
}

/// Renames a file or directory, in the place of a file that is there.
///
/// # Errors
/// What the system says.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    allow(Step::Rename(from), to)?;
    fs::rename(from, to)
}

/// Makes a directory.
///
/// # Errors
/// What the system says.
pub fn create_dir(path: &Path) -> io::Result<()> {
    allow(Step::CreateDirectory, path)?;
    fs::create_dir(path)
}

/// Removes a file.
///
/// # Errors
/// What the system says.
pub fn remove_file(path: &Path) -> io::Result<()> {
    allow(Step::Remove, path)?;
    fs::remove_file(path)
}

/// Removes a directory with all that is in it.
///
/// # Errors
/// What the system says.
pub fn remove_dir_all(path: &Path) -> io::Result<()> {
    allow(Step::Remove, path)?;
    fs::remove_dir_all(path)
}

/// The directory that a path is in.
pub fn directory_of(path: &Path) -> &Path {
    // A relative path of one component has the empty path as parent.
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Treats what is not there as empty.
///
/// # Errors
/// Any other than that nothing is there.
pub fn unless_missing<T: Default>(result: io::Result<T>) -> io::Result<T> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(T::default()),
        other => other,
    }
}

/// What is about to be done to a path.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(any(test, feature = "crash")), expect(dead_code, reason = "looked at by tests that crash"))]
pub(crate) enum Step<'a> {
    Create,
    CreateDirectory,
    Write,
    Truncate,
    Sync,
    Rename(&'a Path),
    Remove,
    SyncDirectory,
}

/// Whether a step may be taken: always, unless a test has made it the last.
#[inline]
pub(crate) fn allow(step: Step<'_>, path: &Path) -> io::Result<()> {
    #[cfg(any(test, feature = "crash"))]
    return crate::crash::step(step, path);
    #[cfg(not(any(test, feature = "crash")))]
    {
        let _ = (step, path);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        replace(&path, b"old and long", Access::Owner).unwrap();
        replace(&path, b"new", Access::Owner).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
        assert!(replace(dir.path(), b"", Access::Anybody).is_err(), "a directory is in the way");
        let parent = dir.path().parent().unwrap();
        let left = format!("{}.{}.tmp", dir.path().display(), std::process::id());
        assert!(!parent.join(left).exists(), "nothing is left beside it after an error");
    }

    #[test]
    fn what_a_killed_process_left_unfinished_goes_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        remove_unfinished(&dir.path().join("no such folder")).unwrap();
        let watch = crate::crash::Watch::new(dir.path());
        watch.crash_at(2, crate::crash::Ending::Before);
        replace(&path, b"never whole", Access::Owner).unwrap_err();
        watch.restart().unwrap();
        let names = || {
            let names = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
            names.collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(names(), [format!("record.{}.tmp", std::process::id())].into());
        let others = ["record", "record.tmp", "record..tmp", "record.x1.tmp", ".12.tmp", "record.12.tmp.old"];
        for name in others.into_iter().chain(["record.12.tmp"]) {
            fs::write(dir.path().join(name), b"").unwrap();
        }
        remove_unfinished(dir.path()).unwrap();
        assert_eq!(names(), others.map(str::to_owned).into());
    }

    #[cfg(unix)]
    #[test]
    fn a_private_file_is_its_owners() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        fs::write(&path, b"open to all").unwrap();
        replace(&path, b"secret", Access::Owner).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        for (name, before) in [("new", None), ("old", Some(b"open to all"))] {
            let path = dir.path().join(name);
            before.into_iter().for_each(|bytes| fs::write(&path, bytes).unwrap());
            File::append(&path, Access::Owner).unwrap();
            assert_eq!(mode(&path), 0o600, "{name}");
        }
    }
}
