//! Builds the experiment binary in release and hands over to it.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::cargo::Cargo;
use crate::workspace;

/// Backends that are compiled in only when asked for: `--backend cuda` adds the feature `cuda`.
const BACKENDS_BY_FEATURE: [&str; 3] = ["cuda", "wgpu", "tch"];

/// A build that is up to date is done sooner; any other deserves a word.
const PATIENCE: Duration = Duration::from_secs(1);

/// Runs `fedburn <area> <words>` in the workspace's top folder; its input, output and exit code are ours.
///
/// # Errors
/// Where the binary cannot be built or started; cargo has then printed why.
pub fn fedburn(area: &str, words: Vec<OsString>) -> Result<ExitCode, String> {
    let binary = build("fedburn-experiment", "fedburn", backend_feature(&words))?;
    let mut command = Command::new(&binary);
    command.arg(area).args(words).current_dir(workspace::root());
    hand_over(command).map_err(|error| format!("cannot run {}: {error}", binary.display()))
}

/// Replaces this process, so that signals and the exit code need no forwarding.
#[cfg(unix)]
fn hand_over(mut command: Command) -> std::io::Result<ExitCode> {
    use std::os::unix::process::CommandExt;
    Err(command.exec())
}

#[cfg(not(unix))]
fn hand_over(mut command: Command) -> std::io::Result<ExitCode> {
    let code = command.status()?.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Builds a binary in release, quiet unless that takes time or fails, and says where it lies.
///
/// # Errors
/// Where the build fails; cargo has then printed why.
pub fn build(package: &str, name: &str, feature: Option<&str>) -> Result<PathBuf, String> {
    let feature = feature.map(|feature| ["--features", feature]).into_iter().flatten();
    built(Cargo::line("build --release").args(["-p", package, "--bin", name]).args(feature), name)
}

/// [`build`] by any call of `cargo build`.
///
/// # Errors
/// As [`build`].
pub fn built(call: Cargo, name: &str) -> Result<PathBuf, String> {
    let call = call.args(["--quiet", "--message-format", "json-render-diagnostics"]);
    let failed = |error: std::io::Error| format!("cannot run `{}`: {error}", call.shown());
    let mut child = call.command().stdout(Stdio::piped()).spawn().map_err(failed)?;
    let (finished, waiting) = mpsc::channel::<()>();
    let announcer = thread::spawn(move || {
        if waiting.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("building (the first time takes minutes)");
        }
    });
    let messages = child.stdout.take().map(BufReader::new).into_iter().flat_map(BufRead::lines);
    let binary = messages.map_while(Result::ok).filter_map(|line| executable(&line, name)).last();
    let status = child.wait().map_err(failed)?;
    drop(finished);
    // It prints a line at most; there is nothing to learn from how it ended.
    let _ = announcer.join();
    if !status.success() {
        return Err(format!("the build failed; repeat it with:\n\n    {}\n", call.shown()));
    }
    binary.ok_or_else(|| format!("cargo named no binary `{name}`"))
}

/// The path in cargo's message that the binary is ready.
fn executable(message: &str, name: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(message).ok()?;
    let ours = message["reason"] == "compiler-artifact" && message["target"]["name"] == name;
    message["executable"].as_str().filter(|_| ours).map(PathBuf::from)
}

/// The cargo feature that the words ask for by `--backend`.
pub fn backend_feature(words: &[impl AsRef<OsStr>]) -> Option<&'static str> {
    let mut words = words.iter().map(AsRef::as_ref);
    let backend = loop {
        let word = words.next()?;
        if word == "--backend" {
            break words.next()?;
        }
        if let Some(backend) = word.to_str().and_then(|word| word.strip_prefix("--backend=")) {
            break OsStr::new(backend);
        }
    };
    BACKENDS_BY_FEATURE.into_iter().find(|feature| backend == OsStr::new(feature))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feature(line: &str) -> Option<&'static str> {
        backend_feature(&line.split_whitespace().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn a_backend_that_is_not_built_in_adds_its_feature() {
        assert_eq!(feature("run quickstart --backend cuda --smoke"), Some("cuda"));
        assert_eq!(feature("run quickstart --backend=wgpu"), Some("wgpu"));
        assert_eq!(feature("run quickstart --backend flex"), None);
        assert_eq!(feature("run cuda"), None);
        assert_eq!(feature("run quickstart --backend"), None);
    }

    #[test]
    fn only_the_finished_binary_is_taken_from_cargos_messages() {
        let artifact = |name: &str| {
            format!(r#"{{"reason":"compiler-artifact","target":{{"name":"{name}"}},"executable":"/t/release/{name}"}}"#)
        };
        assert_eq!(executable(&artifact("fedburn"), "fedburn"), Some(PathBuf::from("/t/release/fedburn")));
        assert_eq!(executable(&artifact("build-script"), "fedburn"), None);
        assert_eq!(
            executable(r#"{"reason":"compiler-artifact","target":{"name":"fedburn"},"executable":null}"#, "fedburn"),
            None
        );
        assert_eq!(executable("not json", "fedburn"), None);
    }
}
