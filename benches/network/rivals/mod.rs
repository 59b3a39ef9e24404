//! Other ways to send many bytes: bare QUIC and gRPC, each to this process from one of its own.

mod grpc;
mod quic;

use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use bytes::Bytes;
use clap::{Args, ValueEnum};
use fedburn_benches::{Stopwatch, Took};
use tokio::runtime::{Builder, Runtime};

/// What carries the bytes.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub enum Kind {
    /// QUIC as a federation has it, and nothing on it.
    Quinn,
    /// gRPC over TLS, one stream of messages.
    Grpc,
}

/// One way to send bytes, both its ends at work.
pub struct Rival {
    process: Child,
    orders: ChildStdin,
    reports: BufReader<ChildStdout>,
}

/// What a receiver waits for, and whether it keeps it.
#[derive(Clone, Copy)]
struct Receiver {
    keep: bool,
    bytes: usize,
}

/// What a receiver makes of the bytes of one update.
#[derive(Clone)]
enum Update {
    /// Its values, in memory of their own, as a federation's server has them.
    Kept(Arc<Mutex<Vec<f32>>>),
    Dropped,
}

impl Update {
    fn new(keep: bool, bytes: usize) -> Self {
        if keep { Self::Kept(Arc::new(Mutex::new(vec![0.0; bytes / 4]))) } else { Self::Dropped }
    }

    /// Puts bytes where they belong, on a thread for work.
    async fn put(&self, mut at: usize, parts: Vec<Bytes>) {
        let Self::Kept(values) = self.clone() else { return };
        let work = move || {
            let mut values = values.lock().unwrap_or_else(PoisonError::into_inner);
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut values);
            for part in parts {
                bytes[at..at + part.len()].copy_from_slice(&part);
                at += part.len();
            }
        };
        // Fails only where the process ends.
        let _ = tokio::task::spawn_blocking(work).await;
    }
}

/// Certificates and keys: those of the federation in its directory.
struct Keys<'a>(&'a Path);

impl Keys<'_> {
    fn server(&self) -> PathBuf {
        self.0.join("server")
    }

    fn node(&self) -> PathBuf {
        self.0.join("node0")
    }

    fn read(path: PathBuf) -> Result<String, Box<dyn Error>> {
        fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()).into())
    }
}

impl Rival {
    /// Starts receiver and sender; the receiver keeps what comes, or drops it. `dir` is that of a federation, whose node 0
    /// is enrolled.
    pub fn start(kind: Kind, keep: bool, mib: usize, dir: &Path) -> Result<Self, Box<dyn Error>> {
        let (runtime, receiver) = (runtime()?, Receiver { keep, bytes: mib << 20 });
        let to = match kind {
            Kind::Quinn => quic::listen(&runtime, &Keys(dir), receiver)?,
            Kind::Grpc => grpc::listen(&runtime, &Keys(dir), receiver)?,
        };
        thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
        let mut process = Command::new(std::env::current_exe()?)
            .args(["send", kind.name(), &to, &mib.to_string()])
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (orders, reports) = (process.stdin.take(), process.stdout.take());
        let (Some(orders), Some(reports)) = (orders, reports) else { return Err("the child has no pipes".into()) };
        Ok(Self { process, orders, reports: BufReader::new(reports) })
    }

    /// Sends everything once; what it took until the receiver has said that it came.
    pub fn upload(&mut self) -> Result<Took, Box<dyn Error>> {
        let (began, mut line) = (Stopwatch::start([self.process.id()])?, String::new());
        writeln!(self.orders, "send")?;
        self.reports.read_line(&mut line)?;
        match line.trim() {
            "sent" => Ok(began.stop()?),
            _ => Err("the sender ended".into()),
        }
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Quinn => "quinn",
            Self::Grpc => "grpc",
        }
    }
}

/// The process that sends.
#[derive(Args)]
pub struct Sender {
    kind: Kind,
    to: String,
    mib: usize,
    dir: PathBuf,
}

impl Sender {
    /// Sends everything once for each order.
    pub fn work(self) -> Result<(), Box<dyn Error>> {
        let payload = Bytes::from(vec![0_u8; self.mib << 20]);
        let (runtime, keys) = (runtime()?, Keys(&self.dir));
        match self.kind {
            Kind::Quinn => {
                let connection = runtime.block_on(quic::connect(&self.to, &keys))?;
                each_order(|| runtime.block_on(quic::send(&connection, &payload)))
            }
            Kind::Grpc => {
                let channel = runtime.block_on(grpc::connect(&self.to, &keys))?;
                each_order(|| runtime.block_on(grpc::send(&channel, &payload)))
            }
        }
    }
}

fn each_order(mut send: impl FnMut() -> Result<(), Box<dyn Error>>) -> Result<(), Box<dyn Error>> {
    for order in std::io::stdin().lines() {
        order?;
        send()?;
        println!("sent");
    }
    Ok(())
}

/// One thread, as a federation's server and nodes have.
fn runtime() -> Result<Runtime, Box<dyn Error>> {
    Ok(Builder::new_current_thread().enable_all().build()?)
}

/// Bytes of a chunk, and of a message.
const CHUNK: usize = 4 << 20;
