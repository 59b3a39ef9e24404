//! One file over HTTP, accepted only with the right length and checksum.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};

use super::FetchError;
use super::known::Remote;

/// Downloads `prefix + remote.name` to `to`. A partial file may be left at `to` on failure.
pub(super) fn download(prefix: &str, remote: &Remote, to: &Path) -> Result<(), FetchError> {
    let url = format!("{}/{}", prefix.trim_end_matches('/'), remote.name);
    let network = |reason: String| FetchError::Network { url: url.clone(), reason };
    let agent = ureq::Agent::config_builder()
        .timeout_connect(Some(PATIENCE))
        .timeout_recv_response(Some(PATIENCE))
        .timeout_per_read(Some(PATIENCE))
        .build()
        .new_agent();
    let response = agent.get(&url).call().map_err(|error| match error {
        ureq::Error::StatusCode(status) => FetchError::Status { url: url.clone(), status },
        error => network(error.to_string()),
    })?;
    let write = |source| FetchError::Write { path: to.to_owned(), source };
    let mut file = BufWriter::new(File::create(to).map_err(write)?);
    let bar = bar(remote);
    // One byte more than expected shows that the file is longer; no more is ever taken.
    let mut body = bar.wrap_read(response.into_body().into_reader().take(remote.bytes + 1));
    let (mut hasher, mut length, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 16]);
    loop {
        let read = match body.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(network(format!("broke off after {length} of {} bytes: {error}", remote.bytes))),
        };
        hasher.update(&buffer[..read]);
        file.write_all(&buffer[..read]).map_err(write)?;
        length += read as u64;
    }
    bar.finish_and_clear();
    if length != remote.bytes {
        let found = if length > remote.bytes { format!("more than {}", remote.bytes) } else { length.to_string() };
        return Err(FetchError::Length { url, found, expected: remote.bytes });
    }
    let found: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if found != remote.sha256 {
        return Err(FetchError::Checksum { url, found, expected: remote.sha256.to_owned() });
    }
    file.into_inner().map_err(|error| write(error.into_error()))?.sync_all().map_err(write)
}

/// How long a silent server is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Hidden where the standard error is no terminal.
fn bar(remote: &Remote) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(remote.bytes).with_style(style).with_message(remote.name.to_owned())
}
