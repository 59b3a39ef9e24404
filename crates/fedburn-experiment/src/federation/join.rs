//! The client's part of a federation over a network.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use burn::tensor::backend::Backend;
use fedburn::core::{
    Asked, ClientFailure, ClientId, ClientInfo, ClientTransport, ModelFamily, Purpose, Reply, RoundIndex,
    TransportError, flatten,
};
use fedburn::ops::Kernels;
use fedburn::runtime::{ClientStates, run_clients};
use fedburn::train::{ClientDataSource, MemoryLog};
use fedburn::transport::quic::{self, ClientConfig, JoinString, Joined, NodeId, NodeIdentity, QuicClient};
use serde_json::{Value, json};

use super::{FederationError, Guarded, PlannedRun, Policy};
use crate::assemble::{Experiment, Run};
use crate::backend::{BackendJob, BackendName};
use crate::clients;
use crate::config::ExperimentConfig;
use crate::memory;
use crate::progress::Progress;
use crate::trace::{TaskSpans, Tracer};

/// How to be clients of a server.
#[derive(Clone, Debug)]
pub struct JoinOptions {
    /// Where the server is and how to be sure of it.
    pub join: JoinString,
    /// Which clients of the experiment to be; all where `None`.
    pub clients: Option<Vec<ClientId>>,
    /// Worker threads, 0 for one a core.
    pub workers: usize,
    /// Where tensors live; as on the server where `None`.
    pub backend: Option<BackendName>,
    /// Folder of this node's key and certificate and of its clients' states, made where it is missing.
    pub state: PathBuf,
    /// Folder of data sets.
    pub data: PathBuf,
    /// What the owner of the data permits.
    pub policy: Policy,
    /// Seconds for which a server that cannot be reached is tried again, at the beginning and later.
    pub patience: u64,
    /// Longest wait between two attempts to reach the server, in seconds; waits are drawn, and grow with each attempt.
    pub longest_wait: u64,
    /// What to show meanwhile.
    pub progress: Progress,
    /// Where spans of the tasks go that the server traces; nowhere where `None`.
    pub tracer: Option<Tracer>,
}

/// Joins a server, trains what it asks for and the policy permits, and returns once the server said goodbye.
///
/// # Errors
/// [`FederationError`].
pub fn join(options: &JoinOptions) -> Result<(), FederationError> {
    let identity = NodeIdentity::open(&options.state.join("identity"))?;
    let node = identity.id();
    let (server, patience) = (format!("{}:{}", options.join.host(), options.join.port()), options.patience);
    options.progress.tell(&format!("joining {server}"), &json!({ "event": "joining", "server": server }));
    let config = ClientConfig::default();
    let connect_timeout_secs = config.connect_timeout_secs.min(patience.max(1));
    let backoff_cap_secs = options.longest_wait;
    let config = ClientConfig { server_away_secs: patience, connect_timeout_secs, backoff_cap_secs, ..config };
    let joined = quic::join(&options.join, identity, config)?;
    let planned = PlannedRun::read(joined.plan())?;
    if let Err(violation) = options.policy.permits_experiment(&planned.name, &planned.hash, &planned.config) {
        // The server's operator learns why; that it cannot be told changes nothing for this node.
        if let Err(error) = joined.decline(&violation.to_string()) {
            tracing::warn!(%error, "node.decline_untold");
        }
        return Err(violation.into());
    }
    // The server sends the model: what it began with is the server's to read.
    let config = ExperimentConfig { initial_model: None, ..planned.config.clone() };
    let run = Experiment::new(planned.name.as_ref(), config, &options.data)?.run(planned.seed)?;
    let clients = chosen(&run, options.clients.as_deref())?;
    let count = clients.len();
    options.progress.tell(
        &format!("{}: {count} clients as node {node} ({})", planned.name, planned.config.title),
        &json!({ "event": "joined", "node": node.to_string(), "experiment": planned.name, "hash": planned.hash,
                 "clients": clients.iter().map(|c| c.id).collect::<Vec<_>>() }),
    );
    let backend = options.backend.unwrap_or(planned.backend);
    let hash = planned.hash;
    backend.run(Playing { options, joined, node, run: &run, hash, clients, backend })??;
    options.progress.tell("the server said goodbye", &json!({ "event": "goodbye" }));
    Ok(())
}

/// The clients to be, as the server is told of them.
fn chosen(run: &Run, wanted: Option<&[ClientId]>) -> Result<Vec<ClientInfo>, FederationError> {
    let all = run.clients().clients();
    let Some(wanted) = wanted else { return Ok(all.to_vec()) };
    let mut wanted = wanted.to_vec();
    wanted.sort_unstable();
    wanted.dedup();
    let info = |client: ClientId| match all.binary_search_by_key(&client, |c| c.id) {
        Ok(index) => Ok(all[index]),
        Err(_) => Err(FederationError::NoSuchClient { client, clients: all.len() }),
    };
    wanted.into_iter().map(info).collect()
}

struct Playing<'a> {
    options: &'a JoinOptions,
    joined: Joined,
    node: NodeId,
    run: &'a Run,
    hash: String,
    clients: Vec<ClientInfo>,
    backend: BackendName,
}

impl BackendJob for Playing<'_> {
    type Output = Result<(), FederationError>;

    fn run<B: Kernels>(self, device: B::Device) -> Self::Output {
        let Self { options, joined, node, run, hash, clients, backend } = self;
        let family = run.experiment().zoo();
        let initial = ModelFamily::<B>::init(family, run.seeds().purpose(Purpose::Initialisation), &device);
        let schema = flatten(&initial)?.schema().clone();
        let schemas = run.experiment().schemas::<B>(schema, &device)?;
        // A folder a run, because another run's states are of another model or course.
        let dir = options.state.join("runs").join(hash);
        let states = ClientStates::open(&dir)?;
        let memory = backend.allocates_here().then(|| memory::resume(&dir));
        let population = clients::population::<B>(run, &device, memory.clone());
        let transport: QuicClient<B> = joined.start(&clients, schemas, device)?;
        let transport = TaskSpans::new(transport, node, options.tracer.clone());
        let told = Told { transport, progress: options.progress, last: AtomicU64::new(0) };
        let transport = Guarded::new(told, &options.policy);
        let ended = run_clients(&transport, &population, &states, options.workers);
        if let Some(log) = memory {
            memory::write(&dir, &log)?;
            tell_memory(&log, options.progress);
        }
        Ok(ended?)
    }
}

/// Tells of the client whose training held most.
fn tell_memory(log: &MemoryLog, progress: Progress) {
    let Some(most) = log.readings().into_iter().max_by_key(|reading| reading.held) else { return };
    let budget = most.plan.as_ref().map(|plan| plan.budget);
    let of = budget.map(|budget| format!(" of {}", budget.rounded())).unwrap_or_default();
    progress.tell(
        &format!("training held at most {}{of} (client {})", most.held.rounded(), most.client),
        &json!({ "event": "memory", "client": most.client, "held": most.held.0, "budget": budget.map(|b| b.0) }),
    );
}

/// Tells of rounds as they come, and of every failure.
struct Told<T> {
    transport: T,
    progress: Progress,
    /// The last round told of.
    last: AtomicU64,
}

impl<B: Backend, T: ClientTransport<B>> ClientTransport<B> for Told<T> {
    fn next(&self) -> Result<Option<Asked<B>>, TransportError> {
        self.transport.next()
    }

    fn reply(
        &self,
        client: ClientId,
        round: RoundIndex,
        reply: Result<Reply<B>, ClientFailure>,
    ) -> Result<(), TransportError> {
        let answer = match &reply {
            Ok(Reply::Trained(_)) => Value::from("trained"),
            Ok(Reply::Evaluated(_)) => Value::from("evaluated"),
            Err(failure) => json!({ "failed": failure }),
        };
        let line = match &reply {
            Err(failure) => Some(format!("round {round}: client {client} {failure}")),
            Ok(_) => (self.last.fetch_max(round.0, Ordering::Relaxed) < round.0).then(|| format!("round {round}")),
        };
        self.transport.reply(client, round, reply)?;
        let event = json!({ "event": "answered", "client": client, "round": round, "answer": answer });
        self.progress.tell(line.as_deref().unwrap_or_default(), &event);
        Ok(())
    }
}
