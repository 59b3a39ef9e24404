//! Rounds over QUIC on loopback with mutual TLS: latency, throughput, memory, a thousand clients at once.
//!
//! The server is this process, the nodes are processes of their own. Clients do not train: they send back what they
//! were sent, so that what is measured is the transport, with the server's mean where it is said. Peak resident memory
//! is what the kernel says (`VmHWM`), so this runs on Linux.
//!
//! ```sh
//! cargo run --release -p fedburn-benches --bin network -- empty   # 10 clients, a model of 1 KiB
//! cargo run --release -p fedburn-benches --bin network -- large   # 2 clients, a model of 100 MB
//! cargo run --release -p fedburn-benches --bin network -- many    # 1,000 clients, 1 MiB each, at once
//! ```

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use burn_flex::{Flex, FlexDevice};
use clap::{Parser, Subcommand};
use fedburn::core::{
    ClientReport, ClientTransport, ParamEntry, ParamKind, ParamSchema, Reply, Reports, Request, SideInfo,
};
use fedburn::prelude::*;
use fedburn::runtime::SamplerConfig;
use fedburn_benches::peak_mib;
use fedburn_transport::quic::{
    ClientConfig, JoinString, NodeIdentity, Plan, QuicClient, QuicConfig, QuicServer, RunFiles, ServerIdentity, join,
};

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Rounds of 10 clients with a model of 1 KiB.
    Empty {
        #[arg(long, default_value_t = 1_000)]
        rounds: usize,
    },
    /// Rounds of 2 clients with a model of 100 MB, with and without the server's mean.
    Large {
        #[arg(long, default_value_t = 10)]
        rounds: usize,
    },
    /// 1,000 clients connect at once, are sent 1 MiB each and send it back.
    Many {
        #[arg(long, default_value_t = 1_000)]
        clients: usize,
        #[arg(long, default_value_t = 8)]
        processes: usize,
    },
    /// A process of nodes; started by the others.
    #[command(hide = true)]
    Nodes { join: JoinString, dir: std::path::PathBuf, first: u64, count: u64, values: usize },
}

fn main() -> Result<(), Box<dyn Error>> {
    match Arguments::parse().what {
        What::Empty { rounds } => empty(rounds),
        What::Large { rounds } => large(rounds),
        What::Many { clients, processes } => many(clients, processes),
        What::Nodes { join, dir, first, count, values } => nodes(&join, &dir, first, count, values),
    }
}

fn empty(rounds: usize) -> Result<(), Box<dyn Error>> {
    let mut bench = Bench::start(256, 10, 10)?;
    bench.connect(10)?;
    let mut times = Vec::new();
    for round in 0..rounds as u64 {
        times.push(bench.exchange(round + 1, 10)?);
    }
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
    println!("empty round, 10 clients, 1 KiB: p50 {:.2} ms, p99 {:.2} ms, {rounds} rounds", at(0.5), at(0.99));
    bench.end()
}

fn large(rounds: usize) -> Result<(), Box<dyn Error>> {
    let values = 25_000_000;
    let mut bench = Bench::start(values, 2, 2)?;
    bench.connect(2)?;
    let mut times = Vec::new();
    for round in 0..rounds as u64 {
        times.push(bench.exchange(round + 1, 2)?.as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    println!("round, 2 clients, 100 MB, transport alone: median {:.3} s, {rounds} rounds", times[times.len() / 2]);
    println!("server peak: {:.2} models ({:.0} MiB)", peak_mib()? / model_mib(values), peak_mib()?);
    bench.end()?;

    let bench = Bench::start(values, 2, 2)?;
    let summary = bench.run(rounds as u64)?;
    let seconds = summary.totals.seconds / rounds as f64;
    println!("round, 2 clients, 100 MB, with the server's mean: {seconds:.3} s on average");
    println!("server peak: {:.2} models ({:.0} MiB)", peak_mib()? / model_mib(values), peak_mib()?);
    Ok(())
}

fn many(clients: usize, processes: usize) -> Result<(), Box<dyn Error>> {
    let values = 1 << 18;
    let mut bench = Bench::start(values, clients, processes)?;
    let connected = bench.connect(clients)?;
    println!("{clients} clients connected within {:.2} s", connected.as_secs_f64());
    for round in 1..=3 {
        let took = bench.exchange(round, clients)?.as_secs_f64();
        let rate = clients as f64 * model_mib(values) / took;
        println!("{clients} clients x 1 MiB down and up: {took:.2} s, {rate:.0} MiB/s each way, nobody lost");
    }
    println!("server peak: {:.0} MiB", peak_mib()?);
    bench.end()
}

/// A server and processes of nodes.
struct Bench {
    server: QuicServer<Flex>,
    schema: Arc<ParamSchema>,
    nodes: Vec<Nodes>,
    _dir: tempfile::TempDir,
}

struct Nodes {
    process: Child,
    orders: ChildStdin,
    reports: BufReader<ChildStdout>,
}

impl Bench {
    fn start(values: usize, clients: usize, processes: usize) -> Result<Self, Box<dyn Error>> {
        let (dir, schema) = (tempfile::tempdir()?, schema(values)?);
        // A thousand nodes of one address enrol at the same time.
        let config =
            QuicConfig { listen: "127.0.0.1:0".parse()?, strangers_per_address: clients.max(64), ..Default::default() };
        let plan = Plan { name: "bench".into(), text: String::new(), seed: 0, backend: "flex".into(), hash: [0; 32] };
        let identity = ServerIdentity::open(&dir.path().join("server"))?;
        let files = RunFiles::new(dir.path(), RoundIndex(0));
        let server = QuicServer::start(config, identity, plan, schema.clone(), FlexDevice, files)?;
        let share = clients.div_ceil(processes);
        let starts = (0..clients).step_by(share);
        let spawn = |first: usize| Nodes::spawn(&server, dir.path(), first, share.min(clients - first), values);
        let mut nodes = starts.map(spawn).collect::<Result<Vec<_>, _>>()?;
        // Every node is enrolled before any is counted.
        nodes.iter_mut().try_for_each(|node| node.hear("joined").map(|_| ()))?;
        Ok(Self { server, schema, nodes, _dir: dir })
    }

    /// Lets all nodes connect and waits for their clients.
    fn connect(&mut self, clients: usize) -> Result<Duration, Box<dyn Error>> {
        let began = Instant::now();
        self.nodes.iter_mut().try_for_each(|node| writeln!(node.orders, "start"))?;
        self.server.wait_for(clients, Duration::from_secs(120), &mut |_| {})?;
        Ok(began.elapsed())
    }

    /// One round without a mean: every client is asked and answers.
    fn exchange(&mut self, round: u64, clients: usize) -> Result<Duration, Box<dyn Error>> {
        let global = ParamVector::<Flex>::zeros(self.schema.clone(), &FlexDevice);
        let ask = |k: u64| {
            let task = TrainTask {
                round: RoundIndex(round),
                global: global.clone(),
                seed: Seed::new(0).round(RoundIndex(round)).client(ClientId(k)),
                side: SideInfo::default(),
                reports: Reports::default(),
                compression: Default::default(),
            };
            (ClientId(k), Request::Train(task))
        };
        let requests = (0..clients as u64).map(ask).collect();
        let began = Instant::now();
        let mut answered = 0;
        for outcome in self.server.exchange(requests, Duration::from_secs(300)) {
            outcome.reply?;
            answered += 1;
        }
        assert_eq!(answered, clients);
        let everybody: Vec<ClientId> = (0..clients as u64).map(ClientId).collect();
        self.server.close_round(RoundIndex(round), &everybody)?;
        self.server.checkpointed(RoundIndex(round), RoundIndex(round))?;
        Ok(began.elapsed())
    }

    /// Whole rounds of FedAvg.
    fn run(mut self, rounds: u64) -> Result<RunSummary<Flex>, Box<dyn Error>> {
        self.connect(2)?;
        let global = ParamVector::<Flex>::zeros(self.schema.clone(), &FlexDevice);
        let sampler = SamplerConfig::All {}.build(&ServerTransport::clients(&self.server))?;
        let strategy = StrategyConfig::default().build()?;
        let mut server = Server::new(ServerConfig::new(rounds), self.server, strategy, sampler, global, Seed::new(0))?;
        let summary = server.run(&mut [])?;
        drop(server);
        self.nodes.into_iter().try_for_each(Nodes::kill)?;
        Ok(summary)
    }

    fn end(self) -> Result<(), Box<dyn Error>> {
        self.server.close();
        let mut peaks = Vec::new();
        for node in self.nodes {
            peaks.push(node.end()?);
        }
        let largest = peaks.iter().copied().fold(0.0, f64::max);
        println!(
            "largest peak of a process of nodes: {largest:.0} MiB ({:.2} models)",
            largest / model_mib(self.schema.num_values())
        );
        Ok(())
    }
}

impl Nodes {
    fn spawn(
        server: &QuicServer<Flex>,
        dir: &Path,
        first: usize,
        count: usize,
        values: usize,
    ) -> Result<Self, Box<dyn Error>> {
        let mut process = Command::new(std::env::current_exe()?)
            .args(["nodes", &server.join_string().to_string()])
            .arg(dir)
            .args([first.to_string(), count.to_string(), values.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (orders, reports) = (process.stdin.take(), process.stdout.take());
        let (Some(orders), Some(reports)) = (orders, reports) else { return Err("the child has no pipes".into()) };
        Ok(Self { process, orders, reports: BufReader::new(reports) })
    }

    /// The rest of the next line, which must begin with `word`.
    fn hear(&mut self, word: &str) -> Result<String, Box<dyn Error>> {
        let mut line = String::new();
        self.reports.read_line(&mut line)?;
        let rest = line.trim().strip_prefix(word).ok_or_else(|| format!("expected `{word}`, heard `{line}`"))?;
        Ok(rest.trim().to_owned())
    }

    /// Waits for the end; gives the peak memory in MiB.
    fn end(mut self) -> Result<f64, Box<dyn Error>> {
        let peak = self.hear("peak")?.parse()?;
        self.process.wait()?;
        Ok(peak)
    }

    fn kill(mut self) -> Result<(), Box<dyn Error>> {
        self.process.kill()?;
        self.process.wait()?;
        Ok(())
    }
}

/// Some nodes of one client each: joins them, waits for the order to start, echoes until goodbye.
fn nodes(to: &JoinString, dir: &Path, first: u64, count: u64, values: usize) -> Result<(), Box<dyn Error>> {
    let schema = schema(values)?;
    let mut joined = Vec::new();
    for k in first..first + count {
        joined.push((k, join(to, NodeIdentity::open(&dir.join(format!("node{k}")))?, ClientConfig::default())?));
    }
    println!("joined");
    std::io::stdin().read_line(&mut String::new())?;
    std::thread::scope(|scope| {
        for (k, joined) in joined {
            let schema = &schema;
            scope.spawn(move || {
                let client = joined.start::<Flex>(
                    &[ClientInfo { id: ClientId(k), num_examples: 1 }],
                    schema.clone(),
                    FlexDevice,
                );
                match client {
                    Ok(client) => echo(&client),
                    Err(error) => eprintln!("client {k}: {error}"),
                }
            });
        }
    });
    println!("peak {}", peak_mib()?);
    Ok(())
}

/// Sends back what comes until the server says goodbye.
fn echo(client: &QuicClient<Flex>) {
    while let Ok(Some(asked)) = client.next() {
        let Request::Train(task) = asked.request else { return };
        let update = LocalUpdate {
            params: task.global,
            num_examples: 1,
            side: SideInfo::default(),
            report: ClientReport::default(),
            metrics: Metrics::new(),
        };
        if let Err(error) = client.reply(asked.client, task.round, Ok(Reply::Trained(update))) {
            eprintln!("client {}: {error}", asked.client);
        }
    }
}

fn schema(values: usize) -> Result<Arc<ParamSchema>, Box<dyn Error>> {
    Ok(Arc::new(ParamSchema::new(vec![ParamEntry::new("weights", vec![values], ParamKind::Weight)])?))
}

fn model_mib(values: usize) -> f64 {
    values as f64 * 4.0 / f64::from(1 << 20)
}
