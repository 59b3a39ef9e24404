//! A federation on this machine: a server and its clients as processes of their own that talk over loopback.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use clap::Args;

use crate::launch;
use crate::workspace;

/// Arguments of `cargo xtask federation`.
#[derive(Args)]
pub struct Federation {
    /// An experiment: suite/name or a .toml file.
    target: String,
    /// Number of clients; replaces the file's.
    #[arg(long)]
    clients: usize,
    /// Number of processes that play them [default: one a client].
    #[arg(long)]
    processes: Option<usize>,
    /// Folder of logs, keys and clients' states.
    #[arg(long, default_value = "target/federation")]
    dir: PathBuf,
    /// More for `fedburn serve`, behind `--`: `-- --seed 0 --set client.lr=0.1 --fresh`.
    #[arg(last = true)]
    serve: Vec<String>,
}

impl Federation {
    /// Builds the program, runs server and clients, and ends all of them whatever happens.
    ///
    /// # Errors
    /// What could not be started, or which process failed.
    pub fn run(self) -> Result<ExitCode, String> {
        let processes = self.processes.unwrap_or(self.clients);
        if self.clients == 0 || !(1..=self.clients).contains(&processes) {
            return Err(format!(
                "{} clients in {processes} processes: expected at least one client and at most as many processes",
                self.clients
            ));
        }
        let program = launch::build("fedburn-experiment", "fedburn", launch::backend_feature(&self.serve))?;
        let dir = workspace::root().join(&self.dir);
        fs::create_dir_all(&dir).map_err(|e| format!("cannot make {}: {e}", dir.display()))?;
        let join = dir.join("join");
        // One of an earlier server would send the clients to nobody.
        let _ = fs::remove_file(&join);

        let interrupts = Arc::new(AtomicUsize::new(0));
        let counted = interrupts.clone();
        let handler = move || {
            counted.fetch_add(1, Ordering::Relaxed);
        };
        ctrlc::set_handler(handler).map_err(|e| format!("cannot listen for interrupts: {e}"))?;

        let mut server = Process::start("server", self.server(&program, &dir, &join), None)?;
        let mut nodes = Vec::new();
        let mut told = 0;
        loop {
            if let Some(status) = server.ended()? {
                // Clients end by themselves on the server's goodbye, the others when they are dropped.
                return Ok(code(status));
            }
            if nodes.is_empty() && join.exists() {
                nodes = self.nodes(&program, &dir, &join, processes)?;
            }
            for node in &mut nodes {
                if let Some(status) = node.ended()?.filter(|status| !status.success()) {
                    return Err(format!("{} failed ({status}); see {}", node.name, dir.display()));
                }
            }
            match interrupts.load(Ordering::Relaxed) {
                0 => {}
                1 if told == 0 => {
                    told = 1;
                    server.interrupt();
                }
                1 => {}
                _ => return Ok(ExitCode::from(130)),
            }
            thread::sleep(LOOK);
        }
    }

    fn server(&self, program: &Path, dir: &Path, join: &Path) -> Command {
        let mut command = Command::new(program);
        command.args(["serve", &self.target, "--listen", "127.0.0.1:0", "--wait-for", &self.clients.to_string()]);
        command.arg("--set").arg(format!("partition.clients={}", self.clients));
        command.arg("--state").arg(dir.join("server")).arg("--join-file").arg(join).args(&self.serve);
        command
    }

    fn nodes(&self, program: &Path, dir: &Path, join: &Path, processes: usize) -> Result<Vec<Process>, String> {
        let start = |(index, (first, end)): (usize, (usize, usize))| {
            let name = format!("node-{index}");
            let mut command = Command::new(program);
            command.arg("join").arg(format!("@{}", join.display())).args(["--workers", "1"]);
            command.arg("--clients").arg(format!("{first}..{end}")).arg("--state").arg(dir.join(&name));
            let log = dir.join(format!("{name}.log"));
            Process::start(&name, command, Some(&log))
        };
        shares(self.clients, processes).into_iter().enumerate().map(start).collect()
    }
}

/// Contiguous shares of `clients` that differ in size by one at most, as first and end.
fn shares(clients: usize, processes: usize) -> Vec<(usize, usize)> {
    (0..processes).map(|i| (i * clients / processes, (i + 1) * clients / processes)).collect()
}

/// A child process, ended when dropped.
struct Process {
    name: String,
    child: Child,
}

impl Process {
    /// Starts `command` in the workspace's top folder, its output in `log` where there is one.
    fn start(name: &str, mut command: Command, log: Option<&Path>) -> Result<Self, String> {
        command.current_dir(workspace::root()).stdin(Stdio::null());
        if let Some(path) = log {
            let file = File::create(path).and_then(|file| Ok((file.try_clone()?, file)));
            let (out, err) = file.map_err(|e| format!("cannot write {}: {e}", path.display()))?;
            command.stdout(out).stderr(err);
        }
        // The terminal's interrupt must reach only this process: the server needs its clients to finish the round.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = command.spawn().map_err(|e| format!("cannot start {name}: {e}"))?;
        Ok(Self { name: name.to_owned(), child })
    }

    /// How it ended, if it has.
    fn ended(&mut self) -> Result<Option<ExitStatus>, String> {
        self.child.try_wait().map_err(|e| format!("{}: {e}", self.name))
    }

    /// Asks for an orderly end.
    fn interrupt(&mut self) {
        let sent = Command::new("kill").arg("-INT").arg(self.child.id().to_string()).status();
        if !sent.is_ok_and(|status| status.success()) {
            // Without signals there is no way to ask.
            let _ = self.child.kill();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that has ended already cannot be ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn code(status: ExitStatus) -> ExitCode {
    status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// How long an ended process or an interrupt may go unseen.
const LOOK: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_cover_every_client_once() {
        assert_eq!(shares(10, 3), [(0, 3), (3, 6), (6, 10)]);
        assert_eq!(shares(2, 2), [(0, 1), (1, 2)]);
        for processes in 1..=17 {
            let shares = shares(17, processes);
            assert!(shares.iter().all(|(first, end)| first < end));
            assert_eq!((shares[0].0, shares[processes - 1].1), (0, 17));
            assert!(shares.windows(2).all(|pair| pair[0].1 == pair[1].0));
        }
    }

    #[test]
    fn a_process_is_ended_with_its_owner() {
        let mut command = Command::new("cat");
        command.stdout(Stdio::null());
        let process = Process::start("cat", command, None).unwrap();
        let id = process.child.id();
        drop(process);
        assert!(!Path::new(&format!("/proc/{id}")).exists());
    }
}
