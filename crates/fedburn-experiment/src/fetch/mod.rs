//! Getting data sets: looked for on the system first, else downloaded, verified and put in place as a whole.

mod download;
mod known;

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;

use download::download;
use known::{KNOWN, Known, Origin, Packing};

/// Where data sets are kept: `$FEDBURN_DATA`, else `fedburn/data` in `$XDG_DATA_HOME` or `~/.local/share`, else `data`
/// in the working directory.
pub fn default_root() -> PathBuf {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let share = || folder("XDG_DATA_HOME").or_else(|| Some(folder("HOME")?.join(".local/share")));
    folder("FEDBURN_DATA").or_else(|| Some(share()?.join("fedburn/data"))).unwrap_or_else(|| "data".into())
}

/// The data sets that are known, one a line, and where each was found; `Display` is aligned text.
pub fn list(root: &Path) -> impl fmt::Display {
    let mut table = crate::table::Table::new(["name", "found in", "what it is"]);
    for known in KNOWN {
        let found = known.find(root).map_or("-".into(), |dir| dir.display().to_string());
        table.row([known.name.to_owned(), found, known.about.to_owned()]);
    }
    table
}

/// How a data set came to be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// It was on this machine already.
    Present {
        /// Its name.
        name: String,
        /// Where.
        dir: PathBuf,
    },
    /// It was downloaded and verified.
    Downloaded {
        /// Its name.
        name: String,
        /// Where it was put.
        dir: PathBuf,
    },
}

impl fmt::Display for Fetched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Present { name, dir } => write!(f, "{name} is already there: {}", dir.display()),
            Self::Downloaded { name, dir } => write!(f, "{name} downloaded and verified: {}", dir.display()),
        }
    }
}

/// A data set that cannot be fetched. Nothing is left behind in any case.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// Nobody knows the name.
    #[error("unknown data set `{name}`, expected one of {}", KNOWN.iter().map(|known| known.name).collect::<Vec<_>>().join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// It is not published as files.
    #[error("`{name}` cannot be downloaded; put it into {}: {how}", dir.display())]
    Made {
        /// The data set.
        name: String,
        /// Where it belongs.
        dir: PathBuf,
        /// How to make it.
        how: String,
    },
    /// No connection, or it broke.
    #[error("{url}: {reason}")]
    Network {
        /// The address.
        url: String,
        /// Why.
        reason: String,
    },
    /// The server answered with an error.
    #[error("{url}: the server answered with status {status}")]
    Status {
        /// The address.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// The file is shorter or longer than published.
    #[error("{url}: {found} bytes, expected {expected}")]
    Length {
        /// The address.
        url: String,
        /// How many came.
        found: String,
        /// How many should have.
        expected: u64,
    },
    /// The file is another one than published.
    #[error("{url}: SHA-256 is {found}, expected {expected}; the file was refused")]
    Checksum {
        /// The address.
        url: String,
        /// Of what came.
        found: String,
        /// Of what was published.
        expected: String,
    },
    /// The archive is damaged or lacks a file.
    #[error("{file}: {reason}")]
    Archive {
        /// The archive.
        file: String,
        /// What is wrong.
        reason: String,
    },
    /// The system refused to write, for example because the disk is full.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No mirror could deliver.
    #[error("no mirror delivered: {}; `--from <address>` names another", reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Mirrors {
        /// What each answered.
        reasons: Vec<FetchError>,
    },
}

/// Finds the data set `name` on this machine, else downloads it into `root/<name>`. `from`: a prefix of addresses that
/// replaces the usual mirrors; length and checksum are verified all the same.
///
/// # Errors
/// [`FetchError`]. What was downloaded goes to a temporary folder in `root` that is removed on any failure.
pub fn fetch(name: &str, root: &Path, from: Option<&str>) -> Result<Fetched, FetchError> {
    let plain = |name: &str| name.replace(['-', '_'], "").to_lowercase();
    let known = KNOWN.iter().find(|known| plain(known.name) == plain(name));
    known.ok_or_else(|| FetchError::Unknown { name: name.to_owned() })?.fetch(root, from)
}

impl Known {
    /// The folder that holds every wanted file.
    fn find(&self, root: &Path) -> Option<PathBuf> {
        let own = root.join(self.name);
        let below = self.below.iter().map(|folder| own.join(folder));
        let system = self.system.iter().map(PathBuf::from);
        let whole = |dir: &PathBuf| {
            self.wanted.iter().all(|file| dir.join(file).exists() || dir.join(format!("{file}.gz")).exists())
        };
        [own.clone()].into_iter().chain(below).chain(system).find(whole)
    }

    fn fetch(&self, root: &Path, from: Option<&str>) -> Result<Fetched, FetchError> {
        let name = self.name.to_owned();
        if let Some(dir) = self.find(root) {
            return Ok(Fetched::Present { name, dir });
        }
        let dir = root.join(self.name);
        let (mirrors, files, packing) = match &self.origin {
            Origin::Made { how } => return Err(FetchError::Made { name, dir, how: how.replace("<name>", self.name) }),
            Origin::Download { mirrors, files, packing } => (*mirrors, *files, *packing),
        };
        let write = |path: &Path| {
            let path = path.to_owned();
            move |source| FetchError::Write { path, source }
        };
        // Not there yet, and then to be removed again should anything fail.
        let made = [root, &dir].map(|folder| (folder.to_owned(), !folder.exists()));
        fs::create_dir_all(root).map_err(write(root))?;
        let fetched = || {
            let staging = tempfile::Builder::new().prefix(".fetch-").tempdir_in(root).map_err(write(root))?;
            let ready = staging.path().join("ready");
            fs::create_dir(&ready).map_err(write(&ready))?;
            for remote in files {
                let to =
                    if packing == Packing::Plain { ready.join(remote.name) } else { staging.path().join(remote.name) };
                first_of(from.as_slice(), mirrors, |prefix| download(prefix, remote, &to))?;
                self.unpack(packing, &to, &ready)?;
            }
            self.put(&ready, &dir)
        };
        let outcome = fetched();
        if outcome.is_err() {
            // `remove_dir` takes empty folders only.
            made.iter().rev().filter(|(_, new)| *new).for_each(|(folder, _)| drop(fs::remove_dir(folder)));
        }
        outcome.map(|()| Fetched::Downloaded { name, dir })
    }

    /// Takes the wanted files out of an archive, wherever in it they lie. Only their names count and nothing else is
    /// written, so no entry can reach outside `ready`.
    fn unpack(&self, packing: Packing, archive: &Path, ready: &Path) -> Result<(), FetchError> {
        let file = archive.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let damaged = |error: &dyn fmt::Display| FetchError::Archive { file: file.clone(), reason: error.to_string() };
        let take = |path: &Path, from: &mut dyn Read| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if !self.wanted.contains(&name.trim_end_matches(".gz")) {
                return Ok(());
            }
            let to = ready.join(name);
            let mut to_file = File::create(&to).map_err(|source| FetchError::Write { path: to.clone(), source })?;
            copy(from, &mut to_file, &to, &damaged)
        };
        let opened = File::open(archive).map_err(|error| damaged(&error))?;
        match packing {
            Packing::Plain => return Ok(()),
            Packing::TarGz => {
                let mut archive = tar::Archive::new(GzDecoder::new(opened));
                for entry in archive.entries().map_err(|error| damaged(&error))? {
                    let mut entry = entry.map_err(|error| damaged(&error))?;
                    if entry.header().entry_type().is_file() {
                        let path = entry.path().map_err(|error| damaged(&error))?.into_owned();
                        take(&path, &mut entry)?;
                    }
                }
            }
            Packing::Zip => {
                let mut archive = zip::ZipArchive::new(opened).map_err(|error| damaged(&error))?;
                for index in 0..archive.len() {
                    let mut entry = archive.by_index(index).map_err(|error| damaged(&error))?;
                    if entry.is_file() {
                        let path = PathBuf::from(entry.name());
                        take(&path, &mut entry)?;
                    }
                }
            }
        }
        let there = |file: &&str| ready.join(file).exists() || ready.join(format!("{file}.gz")).exists();
        match self.wanted.iter().find(|file| !there(file)) {
            None => Ok(()),
            Some(lacking) => Err(damaged(&format!("`{lacking}` is not in the archive"))),
        }
    }

    /// Renames the folder into place; where the place is taken by an incomplete data set, file by file.
    fn put(&self, ready: &Path, dir: &Path) -> Result<(), FetchError> {
        let write = |source| FetchError::Write { path: dir.to_owned(), source };
        if !dir.exists() {
            return fs::rename(ready, dir).map_err(write);
        }
        for entry in fs::read_dir(ready).map_err(write)? {
            let entry = entry.map_err(write)?;
            fs::rename(entry.path(), dir.join(entry.file_name())).map_err(write)?;
        }
        Ok(())
    }
}

/// The first mirror that delivers; the given ones alone, where any is given.
fn first_of(
    given: &[&str],
    mirrors: &[&str],
    mut attempt: impl FnMut(&str) -> Result<(), FetchError>,
) -> Result<(), FetchError> {
    let mut reasons = Vec::new();
    for prefix in if given.is_empty() { mirrors } else { given } {
        match attempt(prefix) {
            Ok(()) => return Ok(()),
            // A full disk is full for every mirror.
            Err(error @ FetchError::Write { .. }) => return Err(error),
            Err(error) => reasons.push(error),
        }
    }
    Err(FetchError::Mirrors { reasons })
}

/// Copies an entry of an archive, telling a damaged archive from a disk that refuses.
fn copy(
    from: &mut dyn Read,
    to: &mut File,
    path: &Path,
    damaged: &dyn Fn(&dyn fmt::Display) -> FetchError,
) -> Result<(), FetchError> {
    let write = |source| FetchError::Write { path: path.to_owned(), source };
    let mut buffer = vec![0; 1 << 16];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return to.sync_all().map_err(write),
            Ok(read) => to.write_all(&buffer[..read]).map_err(write)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(damaged(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use sha2::{Digest, Sha256};

    use super::known::Remote;
    use super::*;

    const BODY: &[u8] = b"the examples of a small data set";

    /// Answers `requests` connections with `response` and ends; gives the address prefix.
    fn serve(requests: usize, response: Vec<u8>) -> (String, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let prefix = format!("http://{}", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            for _ in 0..requests {
                let (mut stream, _) = listener.accept().unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
                stream.write_all(&response).unwrap();
            }
        });
        (prefix, server)
    }

    fn whole(body: &[u8]) -> Vec<u8> {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        [head.as_bytes(), body].concat()
    }

    fn chunked(body: &[u8]) -> Vec<u8> {
        let mut response = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n".to_vec();
        body.iter().for_each(|byte| response.extend([b"1\r\n".as_slice(), &[*byte], b"\r\n"].concat()));
        response.extend(b"0\r\n\r\n");
        response
    }

    fn sha256(bytes: &[u8]) -> &'static str {
        Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>().leak()
    }

    /// A data set of one file; what is published has the length and checksum of `published`.
    fn known(wanted: &'static str, file: &'static str, published: &[u8], packing: Packing) -> Known {
        let files = vec![Remote { name: file, bytes: published.len() as u64, sha256: sha256(published) }].leak();
        let origin = Origin::Download { mirrors: &[], files, packing };
        Known { name: "small", about: "", system: &[], below: &[], wanted: vec![wanted].leak(), origin }
    }

    /// Fetches over HTTP with this response, and what is in the root afterwards.
    fn attempt(known: &Known, response: Vec<u8>) -> (Result<Fetched, FetchError>, Vec<String>, tempfile::TempDir) {
        let home = tempfile::tempdir().unwrap();
        let (prefix, server) = serve(1, response);
        let outcome = known.fetch(&home.path().join("data"), Some(&prefix));
        server.join().unwrap();
        let left = fs::read_dir(home.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        (outcome, left, home)
    }

    fn refused(known: &Known, response: Vec<u8>) -> FetchError {
        let (outcome, left, _home) = attempt(known, response);
        assert_eq!(left, Vec::<String>::new(), "nothing is left behind");
        match outcome.unwrap_err() {
            FetchError::Mirrors { mut reasons } => reasons.remove(0),
            error => error,
        }
    }

    #[test]
    fn a_good_file_is_put_in_place_and_not_fetched_again() {
        let known = known("a.bin", "a.bin", BODY, Packing::Plain);
        for response in [whole(BODY), chunked(BODY)] {
            let (outcome, _, home) = attempt(&known, response);
            let dir = home.path().join("data/small");
            assert_eq!(outcome.unwrap(), Fetched::Downloaded { name: "small".into(), dir: dir.clone() });
            assert_eq!(fs::read(dir.join("a.bin")).unwrap(), BODY);
            assert_eq!(fs::read_dir(home.path().join("data")).unwrap().count(), 1, "no temporary folder is left");
            // No server answers any more.
            let again = known.fetch(&home.path().join("data"), Some("http://127.0.0.1:1")).unwrap();
            assert_eq!(again, Fetched::Present { name: "small".into(), dir });
        }
    }

    #[test]
    fn whatever_is_wrong_is_told_and_leaves_nothing() {
        let known = known("a.bin", "a.bin", BODY, Packing::Plain);
        let other: Vec<u8> = BODY.iter().rev().copied().collect();
        assert!(matches!(refused(&known, whole(&other)), FetchError::Checksum { .. }));
        assert!(matches!(refused(&known, whole(&BODY[..9])), FetchError::Length { found, .. } if found == "9"));
        assert!(matches!(refused(&known, whole(&[BODY, b"!"].concat())), FetchError::Length { .. }));
        let cut = whole(BODY);
        let broken = refused(&known, cut[..cut.len() - 5].to_vec());
        assert!(matches!(&broken, FetchError::Network { reason, .. } if reason.contains("broke off")), "{broken}");
        let cut = chunked(BODY);
        assert!(matches!(refused(&known, cut[..cut.len() - 40].to_vec()), FetchError::Network { .. }));
        let missing = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec();
        assert!(matches!(refused(&known, missing), FetchError::Status { status: 404, .. }));
    }

    #[test]
    fn without_a_server_the_reason_and_the_way_out_are_told() {
        let home = tempfile::tempdir().unwrap();
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let known = known("a.bin", "a.bin", BODY, Packing::Plain);
        let told = known.fetch(home.path(), Some(&format!("http://{free}"))).unwrap_err().to_string();
        assert!(told.contains(&free.to_string()) && told.contains("--from"), "{told}");
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_unwritable_root_is_told() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join("file"), "").unwrap();
        let known = known("a.bin", "a.bin", BODY, Packing::Plain);
        let refused = known.fetch(&home.path().join("file/data"), Some("http://127.0.0.1:1")).unwrap_err();
        assert!(matches!(refused, FetchError::Write { .. }), "{refused}");
    }

    fn tar_gz(name: &str) -> Vec<u8> {
        let mut header = tar::Header::new_gnu();
        // Set byte by byte: the library refuses to write names that climb out.
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(BODY.len() as u64);
        header.set_cksum();
        let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        archive.append(&header, BODY).unwrap();
        archive.into_inner().unwrap().finish().unwrap()
    }

    #[test]
    fn wanted_files_are_taken_out_of_archives_wherever_they_lie() {
        let mut zip = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
        zip.start_file("gzip/a.bin", zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(BODY).unwrap();
        let zip = zip.finish().unwrap().into_inner();
        for (archive, packing) in
            [(tar_gz("folder/a.bin"), Packing::TarGz), (tar_gz("../../a.bin"), Packing::TarGz), (zip, Packing::Zip)]
        {
            let (outcome, left, home) = attempt(&known("a.bin", "packed", &archive, packing), whole(&archive));
            outcome.unwrap();
            assert_eq!(left, ["data"], "nothing climbed out");
            let files: Vec<_> = fs::read_dir(home.path().join("data/small")).unwrap().collect();
            assert_eq!(files.len(), 1, "the archive itself is not kept");
            assert_eq!(fs::read(home.path().join("data/small/a.bin")).unwrap(), BODY);
        }
    }

    #[test]
    fn archives_that_are_damaged_or_lack_a_file_are_refused() {
        let other = tar_gz("folder/b.bin");
        let lacking = refused(&known("a.bin", "packed", &other, Packing::TarGz), whole(&other));
        assert!(lacking.to_string().contains("`a.bin` is not in the archive"), "{lacking}");
        for packing in [Packing::TarGz, Packing::Zip] {
            let refused = refused(&known("a.bin", "packed", BODY, packing), whole(BODY));
            assert!(matches!(refused, FetchError::Archive { .. }), "{refused}");
        }
    }

    #[test]
    fn a_data_set_on_the_system_is_found_and_an_incomplete_one_completed() {
        let home = tempfile::tempdir().unwrap();
        let system = home.path().join("system");
        fs::create_dir_all(&system).unwrap();
        fs::write(system.join("a.bin.gz"), BODY).unwrap();
        let folder: &'static str = system.to_str().unwrap().to_owned().leak();
        let found = Known { system: vec![folder].leak(), ..known("a.bin", "a.bin", BODY, Packing::Plain) };
        let present = found.fetch(&home.path().join("data"), Some("http://127.0.0.1:1")).unwrap();
        assert_eq!(present, Fetched::Present { name: "small".into(), dir: system });

        let dir = home.path().join("data/small");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("notes"), "mine").unwrap();
        let (prefix, server) = serve(1, whole(BODY));
        known("a.bin", "a.bin", BODY, Packing::Plain).fetch(&home.path().join("data"), Some(&prefix)).unwrap();
        server.join().unwrap();
        assert_eq!(fs::read(dir.join("a.bin")).unwrap(), BODY);
        assert_eq!(fs::read(dir.join("notes")).unwrap(), b"mine");
    }

    #[test]
    fn names_are_forgiving_and_made_ones_say_how() {
        let home = tempfile::tempdir().unwrap();
        let told = fetch("femnist", home.path(), None).unwrap_err().to_string();
        assert!(told.contains("data/femnist/preprocess.sh"), "{told}");
        let told = fetch("nmist", home.path(), None).unwrap_err().to_string();
        assert!(told.contains("`nmist`") && told.contains("fashion-mnist"), "{told}");
        let listed = list(home.path()).to_string();
        assert!(KNOWN.iter().all(|known| listed.contains(known.name)));
        fs::create_dir_all(home.path().join("cifar-100/cifar-100-binary")).unwrap();
        for file in ["train.bin", "test.bin"] {
            fs::write(home.path().join("cifar-100/cifar-100-binary").join(file), "").unwrap();
        }
        assert!(matches!(fetch("CIFAR100", home.path(), None), Ok(Fetched::Present { .. })));
    }
}
