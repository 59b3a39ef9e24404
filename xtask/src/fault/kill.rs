//! `kill -9` of a federation's server again and again, in each way of keeping an open round.
//!
//! Real processes on loopback: a server, and four nodes that are twenty clients each and live throughout. The server
//! tells what happens as lines of JSON; after so many of them, drawn from the seed, it is killed and started again. The
//! run must end with the model and the rounds of the same experiment in one process.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::launch;
use crate::workspace;

#[derive(Args)]
pub struct Kill {
    /// What the server keeps of an open round; each in turn where it is not said.
    #[arg(long)]
    mode: Option<Mode>,
    /// Kills in each mode.
    #[arg(long, default_value_t = 100)]
    kills: u32,
    /// Rounds of the run.
    #[arg(long, default_value_t = 100)]
    rounds: u32,
    /// Where the kills fall.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The program, where it is built already; built in release otherwise.
    #[arg(long)]
    program: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    Round,
    Accumulator,
    Update,
    Auto,
}

/// Control variates, so that clients keep state; every client in every round, so that sums are written in each.
const EXPERIMENT: &str = r#"
title = "A server that is killed"
seeds = [0]
data = { kind = "digits" }
partition = { kind = "iid", clients = 80 }
model = { kind = "softmax" }
client = { rule = { scaffold = {} }, epochs = 1, batch_size = 32, lr = 0.1 }
strategy = { kind = "scaffold" }
sampler = { kind = "all" }
transport = { kind = "quic", network = { idle_timeout_secs = 1 } }
"#;
const CLIENTS: u64 = 80;
const NODES: u64 = 4;
/// Lines that a server tells of one round: its beginning, each client, its end, an evaluation, a checkpoint.
const LINES_A_ROUND: u64 = CLIENTS + 4;

/// What one mode came to.
struct Row {
    mode: Mode,
    kills: u32,
    /// Times from the start of a process, rising.
    listening: Vec<Duration>,
    asking: Vec<Duration>,
    answers: usize,
    sent_again: usize,
    trained_again: usize,
    same: bool,
}

impl Kill {
    /// Runs the modes and prints a table.
    ///
    /// # Errors
    /// What could not be started, or which mode failed.
    pub fn run(&self) -> Result<(), String> {
        if self.kills > self.rounds {
            return Err(format!("--kills {} in {} rounds: expected at most one a round", self.kills, self.rounds));
        }
        let program = match &self.program {
            Some(program) => program.clone(),
            None => launch::build("fedburn-experiment", "fedburn", None)?,
        };
        let dir = workspace::root().join("target/fault/kill");
        // What an earlier run left would be gone on with.
        let _ = fs::remove_dir_all(&dir);
        let config = dir.join("suite/kill.toml");
        let text = format!("{EXPERIMENT}server = {{ rounds = {} }}\n", self.rounds);
        fs::create_dir_all(dir.join("suite")).and_then(|()| fs::write(&config, text)).map_err(|e| failed(&dir, &e))?;

        let undisturbed = Place { program: &program, config: &config, dir: dir.join("undisturbed") };
        let mut command = undisturbed.command(&["experiment", "run"]);
        command.args(["--quiet", "--workers", "0", "--out"]).arg(undisturbed.dir.join("out"));
        match command.status() {
            Ok(status) if status.success() => {}
            other => return Err(format!("the undisturbed run failed: {other:?}")),
        }
        let expected = undisturbed.trace()?;

        let modes: Vec<Mode> = self.mode.map_or_else(|| Mode::value_variants().to_vec(), |mode| vec![mode]);
        let mut rows = Vec::new();
        for mode in modes {
            let place = Place { program: &program, config: &config, dir: dir.join(name(mode)) };
            rows.push(place.run(mode, self.kills, self.seed, &expected)?);
        }
        print(&rows);
        match rows.iter().find(|row| !row.holds(self.kills)) {
            None => Ok(()),
            Some(row) => {
                Err(format!("{} does not keep what it promises; logs are in {}", name(row.mode), dir.display()))
            }
        }
    }
}

impl Row {
    fn holds(&self, kills: u32) -> bool {
        let soon = self.listening.iter().all(|time| *time < Duration::from_secs(2));
        let once = !matches!(self.mode, Mode::Update | Mode::Auto) || self.sent_again == 0;
        self.same && soon && once && self.trained_again == 0 && self.kills == kills
    }
}

/// A folder of one run and the program that runs there.
struct Place<'a> {
    program: &'a Path,
    config: &'a Path,
    dir: PathBuf,
}

/// A process that ends with its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Place<'_> {
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(self.program);
        command.args(words).current_dir(workspace::root()).stdin(Stdio::null());
        if words[0] != "join" {
            command.arg(self.config);
        }
        command
    }

    /// Model and rounds, without the time that they took.
    fn trace(&self) -> Result<(Value, Vec<String>), String> {
        let seed = self.dir.join("out/suite/kill/seed-0");
        let read = |name: &str| fs::read_to_string(seed.join(name)).map_err(|e| failed(&seed.join(name), &e));
        let summary: Value = serde_json::from_str(&read("summary.json")?).map_err(|e| e.to_string())?;
        let rounds = read("rounds.csv")?;
        let rounds = rounds.lines().map(|row| row.rsplit_once(',').map_or("", |(row, _)| row).to_owned());
        Ok((summary["model_hash"].clone(), rounds.collect()))
    }

    fn run(&self, mode: Mode, kills: u32, seed: u64, expected: &(Value, Vec<String>)) -> Result<Row, String> {
        fs::create_dir_all(&self.dir).map_err(|e| failed(&self.dir, &e))?;
        let mut row = Row {
            mode,
            kills: 0,
            listening: Vec::new(),
            asking: Vec::new(),
            answers: 0,
            sent_again: 0,
            trained_again: 0,
            same: false,
        };
        let (mut nodes, mut address, mut random) = (Vec::new(), "127.0.0.1:0".to_owned(), Random(seed));
        loop {
            let left = match row.kills < kills {
                // On average one round, less what is told before the first.
                true => 1 + random.next() % (2 * LINES_A_ROUND - 20),
                false => u64::MAX,
            };
            let (mut server, mut lines) = self.serve(mode, &address)?;
            let began = Instant::now();
            let mut told = 0;
            while told < left
                && let Some(line) = lines.next()
            {
                let line = line.map_err(|e| e.to_string())?;
                told += 1;
                let event: Value = serde_json::from_str(&line).unwrap_or_default();
                match event["event"].as_str() {
                    Some("listening") => {
                        row.listening.push(began.elapsed());
                        address = event["address"].as_str().unwrap_or(&address).to_owned();
                        if nodes.is_empty() {
                            nodes = (0..NODES).map(|node| self.join(node)).collect::<Result<_, _>>()?;
                        }
                    }
                    Some("round_started") if row.asking.len() < row.listening.len() => {
                        row.asking.resize(row.listening.len(), began.elapsed());
                    }
                    _ => {}
                }
            }
            if told == left {
                drop(server);
                row.kills += 1;
                continue;
            }
            let status = server.0.wait().map_err(|e| e.to_string())?;
            if !status.success() {
                return Err(format!("the server failed ({status}); see {}", self.dir.display()));
            }
            break;
        }
        for node in &mut nodes {
            let status = node.0.wait().map_err(|e| e.to_string())?;
            if !status.success() {
                return Err(format!("a node failed ({status}); see {}", self.dir.display()));
            }
        }
        row.listening.sort();
        row.asking.sort();
        row.count(&(0..NODES).map(|node| self.log(&format!("node-{node}"))).collect::<Vec<_>>())?;
        row.same = self.trace()? == *expected;
        Ok(row)
    }

    fn serve(&self, mode: Mode, address: &str) -> Result<(Running, Lines<BufReader<ChildStdout>>), String> {
        let mut command = self.command(&["serve"]);
        command.args(["--json", "--listen", address, "--durability", &name(mode)]);
        command.arg("--out").arg(self.dir.join("out")).arg("--state").arg(self.dir.join("server"));
        command.arg("--join-file").arg(self.dir.join("join")).stdout(Stdio::piped()).stderr(self.log_to("server")?);
        let mut child = command.spawn().map_err(|e| format!("cannot start the server: {e}"))?;
        let out = child.stdout.take().map(BufReader::new).ok_or("the server's output is gone")?;
        Ok((Running(child), out.lines()))
    }

    fn join(&self, node: u64) -> Result<Running, String> {
        let share = CLIENTS / NODES;
        let mut command = self.command(&["join"]);
        command.arg(format!("@{}", self.dir.join("join").display())).args(["--workers", "1", "--longest-wait", "1"]);
        command.arg("--clients").arg(format!("{}..{}", node * share, (node + 1) * share));
        command.arg("--state").arg(self.dir.join(format!("node-{node}"))).env("FEDBURN_LOG", "fedburn_transport=debug");
        command.stdout(Stdio::null()).stderr(self.log_to(&format!("node-{node}"))?);
        command.spawn().map(Running).map_err(|e| format!("cannot start node {node}: {e}"))
    }

    fn log(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }

    fn log_to(&self, name: &str) -> Result<File, String> {
        let path = self.log(name);
        File::options().create(true).append(true).open(&path).map_err(|e| failed(&path, &e))
    }
}

impl Row {
    /// Counts in the nodes' logs how often each answer was acknowledged, and which repetitions were no resending.
    fn count(&mut self, logs: &[PathBuf]) -> Result<(), String> {
        let (mut acknowledged, mut repeated) = (BTreeMap::<String, usize>::new(), 0);
        for path in logs {
            for line in fs::read_to_string(path).map_err(|e| failed(path, &e))?.lines() {
                let task =
                    || line.split("task=").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or("").to_owned();
                let counts = line.contains("state=Committed") || line.contains("state=Durable");
                if line.contains("answer.acknowledged") && counts {
                    *acknowledged.entry(task()).or_default() += 1;
                } else if line.contains("answer.repeated") && counts {
                    repeated += 1;
                }
            }
        }
        self.answers = acknowledged.len();
        self.sent_again = acknowledged.values().map(|times| times - 1).sum();
        self.trained_again = self.sent_again.saturating_sub(repeated);
        Ok(())
    }
}

fn print(rows: &[Row]) {
    let at = |times: &[Duration], share: usize| {
        times.get((times.len() * share / 100).min(times.len().saturating_sub(1))).map_or(0.0, |t| t.as_secs_f64() * 1e3)
    };
    println!(
        "| durability | kills | listening again p50 / max, ms | asking again p50 / max, ms | answers | sent again | trained again | model and rounds |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for row in rows {
        let Row { mode, kills, listening, asking, answers, sent_again, trained_again, same } = row;
        println!(
            "| {} | {kills} | {:.0} / {:.0} | {:.0} / {:.0} | {answers} | {sent_again} | {trained_again} | {} |",
            name(*mode),
            at(listening, 50),
            at(listening, 100),
            at(asking, 50),
            at(asking, 100),
            if *same { "the same" } else { "DIFFERENT" }
        );
    }
}

/// SplitMix64: where kills fall decides nothing that is computed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

fn name(mode: Mode) -> String {
    mode.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

fn failed(path: &Path, error: &std::io::Error) -> String {
    format!("{}: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_task() {
        let path = std::env::temp_dir().join(format!("fedburn-kill-{}", std::process::id()));
        let line = |what: &str, task: &str, state: &str| format!("DEBUG x: {what} task={task} state={state}\n");
        let text = [
            line("answer.acknowledged", "a", "Committed"),
            line("answer.acknowledged", "a", "Committed"),
            line("answer.repeated", "a", "Committed"),
            line("answer.acknowledged", "b", "Durable"),
            line("answer.acknowledged", "b", "Durable"),
            line("answer.acknowledged", "c", "Superseded"),
        ];
        fs::write(&path, text.concat()).unwrap();
        let mut row = Row {
            mode: Mode::Update,
            kills: 0,
            listening: Vec::new(),
            asking: Vec::new(),
            answers: 0,
            sent_again: 0,
            trained_again: 0,
            same: true,
        };
        assert!(row.holds(0));
        row.count(std::slice::from_ref(&path)).unwrap();
        fs::remove_file(path).unwrap();
        assert_eq!((row.answers, row.sent_again, row.trained_again), (2, 2, 1));
        assert!(!row.holds(0));
    }
}
