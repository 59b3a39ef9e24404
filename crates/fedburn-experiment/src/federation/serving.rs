//! The server's part of a federation over a network.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use burn::tensor::backend::Backend;
use fedburn::core::{ClientId, ClientInfo, Outcome, Request, RoundIndex, Schemas, ServerTransport, TransportError};
use fedburn::train::ClientDataSource;
use fedburn::transport::quic::{QuicError, QuicServer, RunFiles, ServerIdentity};
use serde_json::json;

use super::{Durability, FederationError, Load, plan_of};
use crate::assemble::Run;
use crate::backend::BackendName;
use crate::config::{FederationConfig, TransportConfig};
use crate::operation::Monitor;
use crate::progress::Progress;
use crate::results::write_private;
use crate::trace::{RunTrace, Tracer};

/// How a run is served to clients on other machines. What is `None` is as the experiment's `[transport]` table says.
#[derive(Clone)]
pub struct Serving {
    /// Folder of the server's keys and certificates and its list of nodes, made where it is missing.
    pub state: PathBuf,
    /// The experiment's name, `suite/name`, for the owners of data to recognise.
    pub name: String,
    /// Address and UDP port to listen on; port 0 for any.
    pub listen: Option<SocketAddr>,
    /// Name or address by which nodes reach the server, for the join string.
    pub public_host: Option<String>,
    /// Number of clients that must be there before the first round.
    pub wait_for: Option<usize>,
    /// What to have on disk of a round that is not over.
    pub durability: Option<Durability>,
    /// A file to write the join string to, once the server listens.
    pub join_file: Option<PathBuf>,
    /// Who watches the run.
    pub monitor: Monitor,
    /// Where traces of the rounds go; they are not traced where `None`.
    pub tracer: Option<Tracer>,
}

/// What a run that calls for clients gives the network.
pub(crate) struct Call<'a, B: Backend> {
    pub run: &'a Run,
    pub backend: BackendName,
    /// The run's folder.
    pub dir: &'a Path,
    /// Identifies the run, as in its `run.json`.
    pub hash: &'a str,
    pub schemas: Schemas,
    pub device: &'a B::Device,
    /// The round after which the run goes on.
    pub resumed: RoundIndex,
    /// What is on disk of a round that is not over, as [`Serving::durability`] decided.
    pub durability: Durability,
    pub progress: Progress,
    pub interrupt: &'a AtomicBool,
}

impl Serving {
    /// Decides what is on disk of a round that is not over.
    pub(crate) fn durability(&self, run: &Run, dir: &Path, load: Load) -> Result<Durability, FederationError> {
        let wanted = self.durability.unwrap_or(config(run).durability);
        wanted.decide(dir, load).map_err(|source| FederationError::Disk { place: dir.to_path_buf(), source })
    }

    /// Listens, says where, and waits for clients; `None` where the user's interrupt came first. What comes back says
    /// goodbye to the nodes when it is dropped and the run is over. Whatever ends it before that, it says nothing, like
    /// a server that is killed, and they wait for its return.
    pub(crate) fn start<B: Backend>(
        &self,
        call: &Call<'_, B>,
    ) -> Result<Option<impl ServerTransport<B> + use<B>>, FederationError> {
        let Call { run, dir, resumed, progress, .. } = call;
        let config = config(run);
        let clients = run.clients().clients().len();
        let wanted = self.wait_for.or(config.wait_for).unwrap_or(clients);
        if !(1..=clients).contains(&wanted) {
            return Err(FederationError::WaitFor { wanted, clients });
        }
        let keep_answers = call.durability == Durability::Update;
        let files = RunFiles { keep_answers, ..RunFiles::new(dir, *resumed) };
        if *resumed > RoundIndex(0) && !files.participation.exists() {
            let reason = "this run was begun in one process, which keeps its clients' states; \
                          go on with `experiment run`, or serve it with another --out";
            return Err(FederationError::OtherCarrier { place: dir.to_path_buf(), reason });
        }
        let mut network = config.network.clone();
        network.listen = self.listen.unwrap_or(network.listen);
        network.public_host = self.public_host.clone().or(network.public_host);
        let identity = ServerIdentity::open(&self.state)?;
        let plan = plan_of(run, &self.name, call.backend);
        let (schemas, device) = (call.schemas.clone(), call.device.clone());
        let mut server = QuicServer::start(network, identity, plan, schemas, device, files)?;
        if self.tracer.is_some() {
            let trace = RunTrace::new(call.hash);
            server.trace(move |round, client| trace.task(round, client));
        }

        let (address, join) = (server.address(), server.join_string());
        if let Some(path) = &self.join_file {
            write_private(path, join.to_string().as_bytes())?;
        }
        progress.tell(
            &format!("listening on {address}; clients join with\n\n    fedburn join {join}\n"),
            &json!({
                "event": "listening",
                "address": address.to_string(),
                "join": join.to_string(),
                "durability": call.durability,
            }),
        );
        self.monitor.waiting(server.watch(), wanted, call.durability);
        let server = Served { server: Some(server), known: run.clients().clients(), monitor: self.monitor.clone() };
        let came = wait(server.server(), wanted, config.wait_secs, *progress, call.interrupt)?;
        Ok(came.then_some(server))
    }
}

/// The experiment's table, as by default where it has none.
fn config(run: &Run) -> FederationConfig {
    match &run.experiment().config().transport {
        TransportConfig::Quic(config) => (**config).clone(),
        TransportConfig::InProcess { .. } => FederationConfig::default(),
    }
}

/// Waits for `wanted` clients and tells as they come; `false` where the user's interrupt came first.
fn wait<B: Backend>(
    server: &QuicServer<B>,
    wanted: usize,
    wait_secs: Option<u64>,
    progress: Progress,
    interrupt: &AtomicBool,
) -> Result<bool, FederationError> {
    let (began, mut connected) = (Instant::now(), None);
    while !interrupt.load(Ordering::Relaxed) {
        let mut tell = |now: usize| {
            if connected.replace(now) != Some(now) {
                progress.tell(
                    &format!("{now} of {wanted} clients are there"),
                    &json!({ "event": "waiting", "connected": now, "wanted": wanted }),
                );
            }
        };
        match server.wait_for(wanted, LOOK, &mut tell) {
            Ok(()) => return Ok(true),
            Err(QuicError::TimedOut { .. }) => {
                if let Some(seconds) = wait_secs.filter(|seconds| began.elapsed().as_secs() >= *seconds) {
                    let connected = connected.unwrap_or(0);
                    return Err(FederationError::TooFew { connected, wanted, seconds });
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

/// The server of one experiment: knows which clients there can be, and whether to say goodbye when it is dropped.
struct Served<B: Backend> {
    /// `None` only while dropping.
    server: Option<QuicServer<B>>,
    /// The experiment's clients, sorted.
    known: Arc<[ClientInfo]>,
    monitor: Monitor,
}

impl<B: Backend> Served<B> {
    fn server(&self) -> &QuicServer<B> {
        self.server.as_ref().expect("only dropping takes it")
    }

    fn is_known(&self, client: &ClientInfo) -> bool {
        self.known.binary_search_by_key(&client.id, |known| known.id).is_ok()
    }

    fn server_mut(&mut self) -> &mut QuicServer<B> {
        self.server.as_mut().expect("only dropping takes it")
    }
}

impl<B: Backend> ServerTransport<B> for Served<B> {
    fn clients(&self) -> Arc<[ClientInfo]> {
        self.server().clients().iter().filter(|client| self.is_known(client)).copied().collect()
    }

    fn wait(&mut self, timeout: Duration) -> Result<(), TransportError> {
        self.server().wait_until(|clients| clients.iter().any(|client| self.is_known(client)), timeout)
    }

    fn exchange<'a>(
        &'a mut self,
        requests: Vec<(ClientId, Request<B>)>,
        timeout: Duration,
    ) -> Box<dyn Iterator<Item = Outcome<B>> + 'a> {
        self.server_mut().exchange(requests, timeout)
    }

    fn close_round(&mut self, round: RoundIndex, included: &[ClientId]) -> Result<(), TransportError> {
        self.server_mut().close_round(round, included)
    }

    fn checkpointed(&mut self, round: RoundIndex, oldest: RoundIndex) -> Result<(), TransportError> {
        self.server_mut().checkpointed(round, oldest)
    }
}

impl<B: Backend> Drop for Served<B> {
    fn drop(&mut self) {
        if let Some(server) = self.server.take().filter(|_| self.monitor.is_over()) {
            server.close();
        }
    }
}

/// How long the user's interrupt may go unseen while the server waits for clients.
const LOOK: Duration = Duration::from_millis(200);
