//! Whether a file is another one than before.

use std::fs;
use std::path::Path;
use std::time::SystemTime;

use fedburn_durable as durable;

use super::IdentityError;

/// What differs between two versions of a file: when it was written, its length, and which file it is, since two writes
/// may come within one tick of the file system's clock.
pub(super) type Stamp = (SystemTime, u64, u64);

/// The stamp of the file at `path`; `None` where there is none.
pub(super) fn stamp(path: &Path) -> Result<Option<Stamp>, IdentityError> {
    #[cfg(unix)]
    let number = |m: &fs::Metadata| std::os::unix::fs::MetadataExt::ino(m);
    #[cfg(not(unix))]
    let number = |_: &fs::Metadata| 0;
    let stamp = fs::metadata(path).and_then(|m| Ok(Some((m.modified()?, m.len(), number(&m)))));
    durable::unless_missing(stamp).map_err(|e| IdentityError::file(path, e))
}
