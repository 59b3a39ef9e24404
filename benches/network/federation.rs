//! A server and processes of nodes, whose clients send back what they were sent.

use std::error::Error;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use burn_flex::{Flex, FlexDevice};
use clap::Args;
use fedburn::core::{
    ClientReport, ClientTransport, ParamEntry, ParamKind, ParamSchema, Reply, Reports, Request, SideInfo,
};
use fedburn::prelude::*;
use fedburn::runtime::SamplerConfig;
use fedburn_benches::{Stopwatch, Took, peak_mib};
use fedburn_transport::quic::{
    ClientConfig, JoinString, NodeIdentity, NodeThread, Plan, QuicClient, QuicConfig, QuicServer, RunFiles,
    ServerIdentity,
};

/// What a federation is made of.
pub struct Setup {
    /// Values of the model.
    pub values: usize,
    /// Clients, each a node of its own.
    pub clients: usize,
    /// Processes that they are spread over.
    pub processes: usize,
    /// Where the server listens.
    pub listen: &'static str,
    /// What a process of nodes is started by: a namespace's command, or nothing.
    pub within: &'static [&'static str],
    /// Whether clients answer all at once, when everybody has what it was sent.
    pub hold: bool,
}

impl Setup {
    /// On this machine's loopback.
    pub fn new(values: usize, clients: usize, processes: usize) -> Self {
        Self { values, clients, processes, listen: "127.0.0.1:0", within: &[], hold: false }
    }
}

/// A server and processes of nodes.
pub struct Bench {
    server: QuicServer<Flex>,
    schema: Arc<ParamSchema>,
    clients: usize,
    hold: bool,
    nodes: Vec<Nodes>,
    dir: tempfile::TempDir,
}

struct Nodes {
    first: usize,
    process: Child,
    orders: ChildStdin,
    reports: BufReader<ChildStdout>,
}

impl Bench {
    /// Starts server and nodes; every node is enrolled when this returns.
    pub fn start(setup: Setup) -> Result<Self, Box<dyn Error>> {
        let (dir, schema) = (tempfile::tempdir()?, schema(setup.values)?);
        // A thousand nodes of one address enrol at the same time.
        let strangers_per_address = setup.clients.max(64);
        let config = QuicConfig { listen: setup.listen.parse()?, strangers_per_address, ..Default::default() };
        let plan = Plan { name: "bench".into(), text: String::new(), seed: 0, backend: "flex".into(), hash: [0; 32] };
        let identity = ServerIdentity::open(&dir.path().join("server"))?;
        let files = RunFiles::new(dir.path(), RoundIndex(0));
        let server = QuicServer::start(config, identity, plan, schema.clone(), FlexDevice, files)?;
        let share = setup.clients.div_ceil(setup.processes);
        let starts = (0..setup.clients).step_by(share);
        let spawn = |first: usize| Nodes::spawn(&setup, &server, dir.path(), first, share.min(setup.clients - first));
        let mut nodes = starts.map(spawn).collect::<Result<Vec<_>, _>>()?;
        nodes.iter_mut().try_for_each(|node| node.hear("joined").map(|_| ()))?;
        Ok(Self { server, schema, clients: setup.clients, hold: setup.hold, nodes, dir })
    }

    /// Lets all nodes connect and waits for their clients.
    pub fn connect(&mut self) -> Result<Duration, Box<dyn Error>> {
        let began = Instant::now();
        self.nodes.iter_mut().try_for_each(|node| node.tell("start"))?;
        self.server.wait_for(self.clients, Duration::from_secs(120), &mut |_| {})?;
        Ok(began.elapsed())
    }

    /// One round without a mean: every client is asked and answers. Gives the time of it, or of the answers alone where
    /// they are held back.
    pub fn exchange(&mut self, round: u64) -> Result<Took, Box<dyn Error>> {
        let global = ParamVector::<Flex>::zeros(self.schema.clone(), &FlexDevice);
        let ask = |k: u64| {
            let task = TrainTask {
                round: RoundIndex(round),
                global: global.clone(),
                slice: Vec::new(),
                seed: Seed::new(0).round(RoundIndex(round)).client(ClientId(k)),
                side: SideInfo::default(),
                reports: Reports::default(),
                compression: Default::default(),
            };
            (ClientId(k), Request::Train(task))
        };
        let requests = (0..self.clients as u64).map(ask).collect();
        let processes: Vec<u32> = self.nodes.iter().map(|node| node.process.id()).collect();
        let (began, mut answered) = (Stopwatch::start(processes.clone())?, 0);
        let (server, nodes) = (&mut self.server, if self.hold { &mut self.nodes[..] } else { &mut [] });
        let answering = thread::scope(|scope| {
            let released = scope.spawn(move || -> Result<Stopwatch, String> {
                let failed = |e: Box<dyn Error>| e.to_string();
                nodes.iter_mut().try_for_each(|node| node.hear("asked").map(drop)).map_err(failed)?;
                let again = || Stopwatch::start(processes).map_err(|e| e.to_string());
                let released = if nodes.is_empty() { began } else { again()? };
                nodes.iter_mut().try_for_each(|node| node.tell("answer")).map_err(failed)?;
                Ok(released)
            });
            for outcome in server.exchange(requests, Duration::from_secs(1_200)) {
                outcome.reply?;
                answered += 1;
            }
            Ok::<_, Box<dyn Error>>(released.join().map_err(|_| "the bench's own thread failed")??)
        })?;
        let took = answering.stop()?;
        assert_eq!(answered, self.clients);
        let everybody: Vec<ClientId> = (0..self.clients as u64).map(ClientId).collect();
        self.server.close_round(RoundIndex(round), &everybody)?;
        self.server.checkpointed(RoundIndex(round), RoundIndex(round))?;
        Ok(took)
    }

    /// Whole rounds of FedAvg, the updates waiting for their mean in a file; gives the seconds of a round.
    pub fn run(mut self, rounds: u64) -> Result<f64, Box<dyn Error>> {
        self.connect()?;
        let global = ParamVector::<Flex>::zeros(self.schema.clone(), &FlexDevice);
        let sampler = SamplerConfig::All {}.build(&ServerTransport::clients(&self.server))?;
        let strategy = StrategyConfig::default().build()?;
        let mut server = Server::new(ServerConfig::new(rounds), self.server, strategy, sampler, global, Seed::new(0))?
            .with_staging(self.dir.path());
        let summary = server.run(&mut [])?;
        drop(server);
        self.nodes.into_iter().try_for_each(Nodes::kill)?;
        Ok(summary.totals.seconds / rounds as f64)
    }

    /// Where server and nodes keep what they keep.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Whatever nodes had to say of connections that broke.
    pub fn broken(&self) -> Result<Vec<String>, Box<dyn Error>> {
        let mut said = Vec::new();
        for node in &self.nodes {
            let log = fs::read_to_string(log(self.dir.path(), node.first))?;
            said.extend(log.lines().filter(|line| line.contains("node.disconnected")).map(str::to_owned));
        }
        Ok(said)
    }

    /// Says goodbye; gives the largest peak of a process of nodes in MiB.
    pub fn end(self) -> Result<f64, Box<dyn Error>> {
        self.server.close();
        self.nodes.into_iter().try_fold(0.0, |largest: f64, node| Ok(largest.max(node.end()?)))
    }
}

impl Nodes {
    fn spawn(
        setup: &Setup,
        server: &QuicServer<Flex>,
        dir: &Path,
        first: usize,
        count: usize,
    ) -> Result<Self, Box<dyn Error>> {
        let program = std::env::current_exe()?;
        let words = setup.within.iter().map(OsStr::new).chain([program.as_os_str()]).collect::<Vec<_>>();
        let mut process = Command::new(words[0])
            .args(&words[1..])
            .args(["nodes", &server.join_string().to_string()])
            .arg(dir)
            .args([first.to_string(), count.to_string(), setup.values.to_string()])
            .args(setup.hold.then_some("--hold"))
            .stderr(fs::File::create(log(dir, first))?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (orders, reports) = (process.stdin.take(), process.stdout.take());
        let (Some(orders), Some(reports)) = (orders, reports) else { return Err("the child has no pipes".into()) };
        Ok(Self { first, process, orders, reports: BufReader::new(reports) })
    }

    fn tell(&mut self, word: &str) -> Result<(), Box<dyn Error>> {
        Ok(writeln!(self.orders, "{word}")?)
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

/// Some nodes of one client each, in a process of their own.
#[derive(Args)]
pub struct NodesOf {
    join: JoinString,
    dir: PathBuf,
    first: u64,
    count: u64,
    values: usize,
    #[arg(long)]
    hold: bool,
}

impl NodesOf {
    /// Joins them on one thread, each with a socket of its own; waits for the order to start, echoes until goodbye.
    pub fn work(self) -> Result<(), Box<dyn Error>> {
        tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
        let (schema, shared) = (schema(self.values)?, NodeThread::start()?);
        let mut joined = Vec::new();
        for k in self.first..self.first + self.count {
            let identity = NodeIdentity::open(&self.dir.join(format!("node{k}")))?;
            joined.push((k, shared.join(&self.join, identity, ClientConfig::default())?));
        }
        println!("joined");
        std::io::stdin().read_line(&mut String::new())?;
        let together = self.hold.then(|| Barrier::new(joined.len()));
        thread::scope(|scope| {
            for (k, joined) in joined {
                let (schema, together) = (schema.clone(), together.as_ref());
                scope.spawn(move || {
                    let client = [ClientInfo { id: ClientId(k), num_examples: 1 }];
                    match joined.start::<Flex>(&client, schema, FlexDevice) {
                        Ok(client) => echo(&client, together),
                        Err(error) => eprintln!("client {k}: {error}"),
                    }
                });
            }
        });
        println!("peak {}", peak_mib()?);
        Ok(())
    }
}

/// Sends back what comes until the server says goodbye; where it does so `together` with others, when the order comes.
fn echo(client: &QuicClient<Flex>, together: Option<&Barrier>) {
    while let Ok(Some(asked)) = client.next() {
        let Request::Train(task) = asked.request else { return };
        let mut params = task.global;
        if together.is_some() {
            // An update of its own, as training makes one.
            params = params.with_values(params.values().clone() + 1.0).expect("as many values");
        }
        if let Some(together) = together {
            if together.wait().is_leader() {
                println!("asked");
                let _ = std::io::stdin().read_line(&mut String::new());
            }
            together.wait();
        }
        let update = LocalUpdate {
            params,
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

/// What a process of nodes says of itself.
fn log(dir: &Path, first: usize) -> PathBuf {
    dir.join(format!("nodes{first}.log"))
}

fn schema(values: usize) -> Result<Arc<ParamSchema>, Box<dyn Error>> {
    Ok(Arc::new(ParamSchema::new(vec![ParamEntry::new("weights", vec![values], ParamKind::Weight)])?))
}

/// MiB of a model.
pub fn model_mib(values: usize) -> f64 {
    values as f64 * 4.0 / f64::from(1 << 20)
}
