//! Crashes on purpose: a folder whose disk stops at a chosen step, with what a kill or a power cut leaves.
//!
//! Steps are counted for each folder that is watched, whatever thread takes them. From the chosen one on nothing below
//! the folder changes any more, as if the process were gone; the test then drops what it was testing and begins anew.
//! A kill leaves all that was written, synced or not: the system still has it, and a later power cut takes it after all.
//! A power cut takes back what was not synced: bytes of files, and what was made, renamed or removed in directories.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::place::Step;

/// What the last step leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Nothing of it: the process was killed before.
    Before,
    /// A write leaves its first half; any other step nothing.
    Torn,
    /// As `Before`, and what was not synced is lost: the power was cut.
    PowerCut,
}

/// A folder that is watched until this is dropped.
#[derive(Debug)]
pub struct Disk {
    dir: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    steps: u64,
    last: Option<(u64, Ending)>,
    /// The step was taken: nothing changes any more.
    ended: Option<Ending>,
    /// Bytes of each file that are on disk for sure, where not all are.
    unsynced: BTreeMap<PathBuf, u64>,
    /// What directories have not been told for sure, oldest first.
    unnamed: Vec<Unnamed>,
}

#[derive(Debug)]
enum Unnamed {
    Made(PathBuf),
    Renamed { from: PathBuf, to: PathBuf, old: Option<Vec<u8>> },
    Removed { path: PathBuf, was: Was },
}

/// What is on disk of what was removed.
#[derive(Debug)]
enum Was {
    File(Vec<u8>),
    Directory(Vec<(PathBuf, Was)>),
}

static WATCHED: Mutex<Vec<Arc<Disk>>> = Mutex::new(Vec::new());

/// Keeps a folder watched.
#[derive(Debug)]
pub struct Watch(Arc<Disk>);

impl Watch {
    /// Watches the folder `dir`, which must exist. Paths are compared as they are written.
    pub fn new(dir: &Path) -> Self {
        let disk = Arc::new(Disk { dir: dir.to_owned(), state: Mutex::default() });
        lock(&WATCHED).push(disk.clone());
        Self(disk)
    }

    /// The steps taken since the beginning or the last restart.
    pub fn steps(&self) -> u64 {
        lock(&self.0.state).steps
    }

    /// Makes the step of this number, counted from 0 since the last restart, the last one.
    pub fn crash_at(&self, step: u64, ending: Ending) {
        lock(&self.0.state).last = Some((step, ending));
    }

    /// Whether the chosen step was come to.
    pub fn has_crashed(&self) -> bool {
        lock(&self.0.state).ended.is_some()
    }

    /// The process may begin anew: takes back what a power cut takes, and lets all steps pass.
    ///
    /// # Errors
    /// What the system says.
    pub fn restart(&self) -> io::Result<()> {
        let mut state = lock(&self.0.state);
        let before = std::mem::take(&mut *state);
        match before.ended {
            Some(Ending::PowerCut) => before.take_back()?,
            // What was not synced still is not.
            _ => *state = State { unsynced: before.unsynced, unnamed: before.unnamed, ..State::default() },
        }
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        lock(&WATCHED).retain(|disk| !Arc::ptr_eq(disk, &self.0));
    }
}

impl State {
    fn take_back(self) -> io::Result<()> {
        for (path, len) in self.unsynced {
            crate::unless_missing(fs::File::options().write(true).open(&path).and_then(|file| file.set_len(len)))?;
        }
        for unnamed in self.unnamed.into_iter().rev() {
            match unnamed {
                Unnamed::Made(path) if path.is_dir() => fs::remove_dir_all(&path)?,
                Unnamed::Made(path) => crate::unless_missing(fs::remove_file(&path))?,
                Unnamed::Renamed { from, to, old } => {
                    crate::unless_missing(fs::rename(&to, &from))?;
                    if let Some(old) = old {
                        fs::write(&to, old)?;
                    }
                }
                // Nothing where its directory is not there any more either.
                Unnamed::Removed { path, was } => crate::unless_missing(was.put_back(&path))?,
            }
        }
        Ok(())
    }

    fn take(&mut self, step: Step<'_>, path: &Path) {
        let inside = |path: &Path, dir: &Path| path.parent() == Some(dir);
        match step {
            Step::Create if path.exists() => {}
            Step::Create => {
                self.unnamed.push(Unnamed::Made(path.to_owned()));
                self.unsynced.insert(path.to_owned(), 0);
            }
            Step::CreateDirectory => self.unnamed.push(Unnamed::Made(path.to_owned())),
            Step::SyncDirectory => self.unnamed.retain(|unnamed| match unnamed {
                Unnamed::Made(made) => !inside(made, path),
                Unnamed::Renamed { to, .. } => !inside(to, path),
                Unnamed::Removed { path: removed, .. } => !inside(removed, path),
            }),
            Step::Write => self.unsynced_from_here(path),
            // Taken as done at once, which is the harder case for what was to be dropped.
            Step::Truncate => {
                self.unsynced.insert(path.to_owned(), 0);
            }
            Step::Sync => {
                self.unsynced.remove(path);
            }
            Step::Rename(from) => {
                let old = fs::read(path).ok();
                if let Some(len) = self.unsynced.remove(from) {
                    self.unsynced.insert(path.to_owned(), len);
                }
                self.unnamed.push(Unnamed::Renamed { from: from.to_owned(), to: path.to_owned(), old });
            }
            Step::Remove => {
                if let Some(was) = Was::of(path, &self.unsynced) {
                    self.unnamed.push(Unnamed::Removed { path: path.to_owned(), was });
                }
                self.unsynced.retain(|file, _| !file.starts_with(path));
            }
        }
    }

    /// What is written to the file from now on is not on disk for sure.
    fn unsynced_from_here(&mut self, path: &Path) {
        let len = fs::metadata(path).map_or(0, |file| file.len());
        self.unsynced.entry(path.to_owned()).or_insert(len);
    }
}

impl Was {
    /// What is on disk for sure of what is at `path`, where something is.
    fn of(path: &Path, unsynced: &BTreeMap<PathBuf, u64>) -> Option<Self> {
        if !path.is_dir() {
            let mut bytes = fs::read(path).ok()?;
            bytes.truncate(unsynced.get(path).map_or(usize::MAX, |len| *len as usize));
            return Some(Self::File(bytes));
        }
        let inside = fs::read_dir(path).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
        Some(Self::Directory(inside.filter_map(|path| Some((path.clone(), Self::of(&path, unsynced)?))).collect()))
    }

    fn put_back(self, path: &Path) -> io::Result<()> {
        match self {
            Self::File(bytes) => fs::write(path, bytes),
            Self::Directory(inside) => {
                fs::create_dir(path)?;
                inside.into_iter().try_for_each(|(path, was)| was.put_back(&path))
            }
        }
    }
}

pub(crate) fn step(step: Step<'_>, path: &Path) -> io::Result<()> {
    let Some(disk) = of(path) else { return Ok(()) };
    let mut state = lock(&disk.state);
    if state.ended.is_none() && state.last.is_some_and(|(last, _)| last == state.steps) {
        state.ended = state.last.map(|(_, ending)| ending);
    } else if state.ended.is_none() {
        state.steps += 1;
        state.take(step, path);
        return Ok(());
    }
    Err(io::Error::other("crashed on purpose"))
}

/// Bytes that a write leaves which was not let pass.
pub(crate) fn torn(path: &Path, len: usize) -> usize {
    let Some(disk) = of(path) else { return 0 };
    let mut state = lock(&disk.state);
    // Only the last step itself leaves something.
    if state.ended != Some(Ending::Torn) || state.last.take().is_none() {
        return 0;
    }
    state.unsynced_from_here(path);
    len / 2
}

fn of(path: &Path) -> Option<Arc<Disk>> {
    lock(&WATCHED).iter().find(|disk| path.starts_with(&disk.dir)).cloned()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What they guard is whole after every operation.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Access, File, replace};

    #[test]
    fn a_replaced_file_is_old_or_new_after_any_crash() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let watch = Watch::new(dir.path());
        replace(&path, b"old content", Access::Anybody).unwrap();
        let steps = watch.steps();
        assert_eq!(steps, 5, "create, write, sync, rename, sync of the directory");
        for ending in [Ending::Before, Ending::Torn, Ending::PowerCut] {
            for step in 0..=steps {
                replace(&path, b"old content", Access::Anybody).unwrap();
                watch.restart().unwrap();
                watch.crash_at(step, ending);
                let done = replace(&path, b"the new one", Access::Anybody).is_ok();
                assert_eq!((done, watch.has_crashed()), (step == steps, step < steps), "{ending:?} at {step}");
                watch.restart().unwrap();
                let found = fs::read(&path).unwrap();
                let new = found == b"the new one";
                assert!(new || found == b"old content", "{ending:?} at {step}: {found:?}");
                assert!(new || !done, "{ending:?} at {step}: what was done is lost");
            }
        }
    }

    #[test]
    fn a_power_cut_takes_what_was_not_synced_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let watch = Watch::new(dir.path());
        let mut log = File::append(&path, Access::Anybody).unwrap();
        crate::sync_directory(dir.path()).unwrap();
        log.write(b"first").unwrap();
        log.sync().unwrap();
        log.write(b"second").unwrap();
        watch.crash_at(watch.steps(), Ending::PowerCut);
        assert!(log.sync().is_err());
        assert!(log.write(b"third").is_err(), "a dead process writes nothing");
        assert_eq!(fs::read(&path).unwrap(), b"firstsecond");
        watch.restart().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"first");
    }

    #[test]
    fn what_a_kill_left_unsynced_a_later_power_cut_takes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let watch = Watch::new(dir.path());
        let mut log = File::append(&path, Access::Anybody).unwrap();
        log.write(b"one").unwrap();
        log.sync().unwrap();
        crate::sync_directory(dir.path()).unwrap();
        log.write(b"two").unwrap();
        watch.crash_at(watch.steps(), Ending::Torn);
        assert!(log.write(b"three").is_err());
        watch.restart().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"onetwoth", "the system has it");
        watch.crash_at(0, Ending::PowerCut);
        assert!(log.sync().is_err());
        watch.restart().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one");
    }

    #[test]
    fn a_power_cut_brings_back_what_was_removed_until_the_directory_is_synced() {
        for synced in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let (file, folder) = (dir.path().join("file"), dir.path().join("folder"));
            let inside = folder.join("inside");
            let watch = Watch::new(dir.path());
            replace(&file, b"content", Access::Anybody).unwrap();
            crate::create_dir(&folder).unwrap();
            crate::write_synced(&inside, b"inside").unwrap();
            crate::sync_directory(&folder).unwrap();
            crate::sync_directory(dir.path()).unwrap();
            crate::remove_file(&file).unwrap();
            crate::remove_dir_all(&folder).unwrap();
            if synced {
                crate::sync_directory(dir.path()).unwrap();
            }
            watch.crash_at(watch.steps(), Ending::PowerCut);
            assert!(crate::create_dir(&folder).is_err());
            assert!(!file.exists() && !folder.exists());
            watch.restart().unwrap();
            let found = [&file, &inside].map(|path| fs::read(path).ok());
            let expected = [&b"content"[..], b"inside"].map(|bytes| (!synced).then(|| bytes.to_vec()));
            assert_eq!(found, expected);
        }
    }
}
