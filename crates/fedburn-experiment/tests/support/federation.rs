//! A server and its nodes as processes over loopback.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use serde_json::Value;

use super::Workplace;
use super::traces::Traces;

/// A server and its nodes, each a process in one folder of their own.
pub struct Federation<'a> {
    pub place: &'a Workplace,
    pub out: &'a str,
    pub settings: &'a str,
    /// 0 until the server has one.
    pub port: u16,
    /// Where processes send traces that are started from now on.
    pub collector: Option<String>,
}

/// What the processes said, where the test fails.
impl Drop for Federation<'_> {
    fn drop(&mut self) {
        let files = fs::read_dir(self.path("")).into_iter().flatten().flatten().map(|entry| entry.path());
        for log in files.filter(|_| std::thread::panicking()).filter(|path| path.extension() == Some("log".as_ref())) {
            eprintln!("{}:\n{}", log.display(), fs::read_to_string(&log).unwrap_or_default());
        }
    }
}

/// A process that ends with its owner.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Running {
    pub fn start(mut command: Command, log: PathBuf) -> Self {
        fs::create_dir_all(log.parent().unwrap()).unwrap();
        let log = File::options().create(true).append(true).open(log).unwrap();
        Self(command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap())
    }

    pub fn kill(&mut self) {
        self.0.kill().unwrap();
        assert_eq!(self.0.wait().unwrap().signal(), Some(9));
    }

    pub fn succeeds(&mut self) {
        let status = self.0.wait().unwrap();
        assert!(status.success(), "{status}");
    }

    pub fn has_ended(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }

    /// Waits until `is_reached`; `false` where the process ended first.
    pub fn until(&mut self, is_reached: impl Fn() -> bool) -> bool {
        while !is_reached() {
            if self.has_ended() {
                return is_reached();
            }
            // A breath between looks, so that the processes under test have the processor; nothing depends on its length.
            std::thread::park_timeout(Duration::from_micros(500));
        }
        true
    }
}

impl<'a> Federation<'a> {
    pub fn new(place: &'a Workplace, out: &'a str, settings: &'a str) -> Self {
        Self { place, out, settings, port: 0, collector: None }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.place.path(format!("{}-processes", self.out)).join(name)
    }

    pub fn dir(&self) -> PathBuf {
        self.place.seed(self.out, 3)
    }

    /// Starts the server and waits until it listens; started again, it listens where it did.
    pub fn serve(&mut self) -> Running {
        let (out, port, settings) = (self.out, self.port, self.settings);
        let mut command = self.command(&format!("serve suite --listen 127.0.0.1:{port} --out {out} {settings}"));
        command.arg("--state").arg(self.path("server")).arg("--join-file").arg(self.path("join"));
        fs::remove_file(self.path("join")).ok();
        let mut server = Running::start(command, self.path("server.log"));
        let (join, done) = (self.path("join"), self.dir().join("summary.json"));
        assert!(server.until(|| join.exists() || done.exists()), "{}", self.log("server"));
        if join.exists() {
            self.port = self.join_string().split(':').nth(2).unwrap().parse().unwrap();
        }
        server
    }

    fn command(&self, arguments: &str) -> Command {
        let mut command = self.place.command(arguments);
        if let Some(address) = &self.collector {
            command.env("OTEL_EXPORTER_OTLP_ENDPOINT", address);
            // Batches go at once, and however slow the machine is, a collector that takes them is not too slow.
            command.env("OTEL_BSP_SCHEDULE_DELAY", "50").env("OTEL_EXPORTER_OTLP_TIMEOUT", "60000");
        }
        command
    }

    pub fn join_string(&self) -> String {
        fs::read_to_string(self.path("join")).unwrap()
    }

    pub fn join_command(&self, node: &str, clients: &str) -> Command {
        let mut command = self.command(&format!("join --clients {clients} --workers 1 --longest-wait 1"));
        command.arg(format!("@{}", self.path("join").display())).arg("--state").arg(self.path(node));
        command
    }

    pub fn join(&self, node: &str, clients: &str) -> Running {
        Running::start(self.join_command(node, clients), self.path(&format!("{node}.log")))
    }

    /// Three nodes of two clients each.
    pub fn join_all(&self) -> Vec<Running> {
        (0..3).map(|node| self.join_again(node)).collect()
    }

    pub fn join_again(&self, node: usize) -> Running {
        self.join(&format!("node-{node}"), &format!("{}..{}", 2 * node, 2 * node + 2))
    }

    pub fn log(&self, name: &str) -> String {
        fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default()
    }

    /// Waits for the end of the server, then of the nodes, which it said goodbye to.
    pub fn finish(&self, mut server: Running, nodes: Vec<Running>) -> Traces {
        let status = server.0.wait().unwrap();
        assert!(status.success(), "{status}: {}", self.log("server"));
        nodes.into_iter().for_each(|mut node| node.succeeds());
        Traces::of(&self.dir())
    }

    pub fn events(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.dir().join("events.jsonl")).unwrap_or_default();
        // The last line may still be in the writing.
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }
}
