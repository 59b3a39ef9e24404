//! Calls of cargo: built once, shown as a line to repeat, run in the workspace's top folder.

use std::ffi::{OsStr, OsString};
use std::process::{Command, Stdio};

use crate::workspace;

/// One call of cargo.
#[derive(Clone)]
pub struct Cargo {
    args: Vec<OsString>,
    env: Vec<(&'static str, String)>,
}

impl Cargo {
    /// `cargo` followed by `args`.
    pub fn new<S: Into<OsString>>(args: impl IntoIterator<Item = S>) -> Self {
        Self { args: args.into_iter().map(Into::into).collect(), env: Vec::new() }
    }

    /// A call written as one line, words divided by spaces.
    pub fn line(line: &str) -> Self {
        Self::new(line.split_whitespace())
    }

    /// The documentation of every crate, warnings denied.
    pub fn doc() -> Self {
        Self::line("doc --workspace --no-deps").env("RUSTDOCFLAGS", "-D warnings")
    }

    /// Adds arguments.
    pub fn args<S: Into<OsString>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.env.push((name, value.into()));
        self
    }

    /// The line that repeats the call in a shell.
    pub fn shown(&self) -> String {
        let env = self.env.iter().map(|(name, value)| format!("{name}={}", quoted(value.as_ref())));
        let args = self.args.iter().map(|arg| quoted(arg));
        env.chain(["cargo".to_owned()]).chain(args).collect::<Vec<_>>().join(" ")
    }

    /// The call, ready to be run in the workspace's top folder.
    pub fn command(&self) -> Command {
        let mut command = Command::new("cargo");
        command
            .args(&self.args)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .current_dir(workspace::root());
        command
    }

    /// Runs the call and says whether it succeeded.
    pub fn status(&self) -> Result<bool, String> {
        let status = self.command().status().map_err(|error| format!("cannot run `{}`: {error}", self.shown()))?;
        Ok(status.success())
    }
}

/// Whether `cargo <subcommand>` is installed.
pub fn has_subcommand(subcommand: &str) -> bool {
    let call =
        Command::new("cargo").args([subcommand, "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    call.is_ok_and(|status| status.success())
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    if word.contains([' ', '"', '*', '$']) { format!("'{word}'") } else { word.into_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_shown_as_a_shell_would_take_it() {
        assert_eq!(Cargo::doc().shown(), "RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps");
    }

    #[test]
    fn what_is_not_installed_is_noticed() {
        assert!(!has_subcommand("no-such-subcommand-of-cargo"));
    }
}
