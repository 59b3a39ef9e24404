//! A world: a server and its nodes on one thread, with a clock, a network and a randomness of their own.

use std::any::Any;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use aws_lc_rs::signature::Ed25519KeyPair;
use fedburn_core::{ClientId, ParamSchema, Seed};
use fedburn_testkit::schema;
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use tokio::time::{Instant, sleep_until, timeout};

use super::faults::{Fault, Machine, Script};
use super::invariants::Published;
use super::network::{Host, Network, Weather};
use super::node::{FORGOTTEN, Node};
use super::randomness;
use super::server::{Checkpoint, Server};
use super::trace::Trace;
use crate::quic::surroundings::Surroundings;
use crate::quic::{JoinString, Plan, ServerIdentity};

/// What everybody in a world shares.
pub(super) struct World {
    pub(super) script: Script,
    pub(super) dir: tempfile::TempDir,
    pub(super) schema: Arc<ParamSchema>,
    pub(super) join: JoinString,
    pub(super) checkpoint: Mutex<Option<Checkpoint>>,
    pub(super) published: Mutex<Published>,
    pub(super) network: Arc<Network>,
    rng: Mutex<ChaCha8Rng>,
    calm_since: Mutex<Option<Instant>>,
}

/// Lives the world of a seed from its beginning to its end, and says what happened.
pub(super) fn live(seed: u64) -> Trace {
    let root = Seed::new(seed);
    let script = match seed % 2 {
        0 => Script::draw(root.index(0)),
        _ => Script::draw(root.index(0)).compressed(root.index(4)),
    };
    run_in(seed, script, |world| async move {
        timeout(LONGEST, world.clone().run()).await.expect("every wait has a deadline");
        world.network.take_trace()
    })
}

/// Does something in a world of its own.
pub(super) fn run_in<F: Future>(seed: u64, script: Script, body: impl FnOnce(Arc<World>) -> F) -> F::Output {
    let seed = Seed::new(seed);
    randomness::begin(seed.index(1));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let world = Arc::new(World::new(seed, script));
        tokio::spawn(world.network.clone().deliver());
        body(world).await
    })
}

impl World {
    pub(super) const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 4843);

    fn new(seed: Seed, script: Script) -> Self {
        let dir = folder();
        copy(template().path(), dir.path());
        let (pin, secret) = ServerIdentity::open(&dir.path().join("server")).unwrap().pin_and_secret().unwrap();
        Self {
            join: JoinString::new(Self::SERVER.ip().to_string(), Self::SERVER.port(), pin, secret),
            dir,
            schema: schema(&[script.values]),
            checkpoint: Mutex::default(),
            published: Mutex::default(),
            network: Network::new(seed.index(2), script.weather),
            rng: Mutex::new(seed.index(3).rng()),
            calm_since: Mutex::default(),
            script,
        }
    }

    async fn run(self: Arc<Self>) {
        let mut server = Some(Server::start(&self));
        let mut nodes: Vec<Option<Node>> = (0..self.script.nodes).map(|n| Some(Node::start(&self, n))).collect();
        let mut lives: Vec<(Machine, Weak<dyn Any + Send + Sync>)> = Vec::new();
        for (at, fault) in &self.script.faults {
            sleep_until(self.network.origin() + *at).await;
            self.note(format_args!("{fault:?}"));
            match *fault {
                Fault::Weather(weather) => self.network.set_weather(weather),
                Fault::Cut { machine, out, into } => self.network.cut(Self::address(machine), out, into),
                Fault::Heal(machine) => self.network.heal(Self::address(machine)),
                Fault::Rebind(node) => self.network.rebind(Self::host(node)),
                Fault::Kill(machine) => {
                    self.network.kill(Self::address(machine));
                    match machine {
                        Machine::Server => lives.extend(server.take().map(|server| (machine, server.kill()))),
                        Machine::Node(n) => {
                            lives.extend(nodes[n].take().and_then(Node::kill).map(|life| (machine, life)));
                        }
                    }
                }
                Fault::Start(Machine::Server) => {
                    server.get_or_insert_with(|| Server::start(&self));
                }
                Fault::Start(Machine::Node(n)) => {
                    nodes[n].get_or_insert_with(|| Node::start(&self, n));
                }
            }
        }
        self.note(format_args!("calm"));
        self.network.set_weather(Weather::CALM);
        (0..self.script.nodes)
            .map(Machine::Node)
            .chain([Machine::Server])
            .for_each(|m| self.network.heal(Self::address(m)));
        *self.calm_since.lock().unwrap() = Some(Instant::now());
        let server = server.unwrap_or_else(|| Server::start(&self));
        let nodes: Vec<Node> =
            (0..).zip(nodes).map(|(n, node)| node.unwrap_or_else(|| Node::start(&self, n))).collect();
        lives.push((Machine::Server, server.life));
        if let Err(broken) = timeout(CALM * 3, server.task).await.expect("the rounds end") {
            std::panic::resume_unwind(broken.into_panic());
        }
        for (number, mut node) in nodes.into_iter().enumerate() {
            match timeout(FORGOTTEN, &mut node.task).await.expect("nodes end with their server") {
                Ok(Ok(())) => {}
                // It was away when the server said goodbye.
                Ok(Err(reason)) => assert!(reason.contains("10.0.0.1:4843"), "node {number}: {reason}"),
                Err(broken) => std::panic::resume_unwind(broken.into_panic()),
            }
            lives.extend(node.life().map(|life| (Machine::Node(number), life)));
        }
        let forgotten = self.network.now() + FORGOTTEN;
        while let Some((machine, _)) = lives.iter().find(|(_, life)| life.strong_count() > 0) {
            assert!(self.network.now() < forgotten, "something of {machine:?} is still there, and it has ended");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        self.published.lock().unwrap().check(&self.schema, &self.script);
    }

    pub(super) fn note(&self, what: fmt::Arguments<'_>) {
        self.network.note(what);
    }

    /// For how long nothing has gone wrong any more.
    pub(super) fn calm_for(&self) -> Option<Duration> {
        self.calm_since.lock().unwrap().map(|since| since.elapsed())
    }

    /// A duration of at most `most`.
    pub(super) fn draw(&self, most: Duration) -> Duration {
        most.mul_f64(self.rng.lock().unwrap().random_range(0.0..1.0))
    }

    pub(super) fn surroundings(&self, host: IpAddr) -> Surroundings {
        let sockets = Arc::new(Host { network: self.network.clone(), address: host });
        Surroundings { provider: randomness::provider(), sockets, work_takes: Duration::from_millis(1) }
    }

    pub(super) fn host(node: usize) -> IpAddr {
        IpAddr::V4(Ipv4Addr::new(10, 0, 1, node as u8))
    }

    fn address(machine: Machine) -> IpAddr {
        match machine {
            Machine::Server => Self::SERVER.ip(),
            Machine::Node(node) => Self::host(node),
        }
    }

    /// Every client, sorted.
    pub(super) fn clients(&self) -> Vec<ClientId> {
        (0..self.script.nodes).flat_map(Self::clients_of).collect()
    }

    /// The clients of a node: the first node has one, the second two, and so on by turns.
    pub(super) fn clients_of(node: usize) -> impl Iterator<Item = ClientId> {
        let first = 1 + node as u64 * 2;
        (first..=first + node as u64 % 2).map(ClientId)
    }

    pub(super) fn plan(&self) -> Plan {
        // Longer than what travels in a message.
        let text = "rounds = 3\n".repeat(500);
        Plan { name: "simnet".into(), text, seed: 7, backend: "flex".into(), hash: [3; 32] }
    }
}

/// The keys of server and nodes, the same in every world.
fn template() -> &'static tempfile::TempDir {
    static TEMPLATE: OnceLock<tempfile::TempDir> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let dir = folder();
        write_key(&dir.path().join("server/ca.key"), 1);
        write_key(&dir.path().join("server/server.key"), 2);
        for node in 0..4 {
            write_key(&dir.path().join(format!("node{node}/node.key")), 3 + node);
        }
        std::fs::write(dir.path().join("server/join.secret"), "a".repeat(52)).unwrap();
        ServerIdentity::open(&dir.path().join("server")).unwrap();
        dir
    })
}

fn write_key(path: &Path, seed: u8) {
    let key = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap().to_pkcs8().unwrap();
    let text = data_encoding::BASE64.encode(key.as_ref());
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n")).unwrap();
}

/// A folder in memory where the machine has such: a world writes often.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let (entry, to) = (entry.as_ref().unwrap(), to.join(entry.as_ref().unwrap().file_name()));
        if entry.path().is_dir() {
            std::fs::create_dir_all(&to).unwrap();
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// How long an undisturbed federation may take until a round includes everybody. Rounds go on at once; but QUIC can need
/// more than a minute to believe that a path carries smaller packets than it did.
pub(super) const CALM: Duration = Duration::from_secs(120);
/// No world lasts longer.
const LONGEST: Duration = Duration::from_secs(900);
