//! A node's end: a [`ClientTransport`] over QUIC.

mod answer;
mod backoff;
mod connect;
mod download;
mod failure;
mod kept;
mod link;
mod models;
mod state;

use std::sync::Arc;
use std::time::{Duration, Instant};

use burn::tensor::backend::Backend;
use fedburn_core::{
    Asked, ClientFailure, ClientId, ClientInfo, ClientTransport, History, LocalUpdate, ParamSchema, Reply, Request,
    RoundIndex, SideInfo, TrainTask, TransportError,
};

use super::blob::Blob;
use super::config::ClientConfig;
use super::plan::{MAX_PLAN, Plan};
use super::runtime::EndpointThread;
use super::stream::close;
use super::{JoinString, NodeIdentity, QuicError};
use crate::wire::{
    BlobRef, CloseCode, Codec, CommitState, Hash, TaskKind, TaskOffer, metrics_to_wire, scalars_from_wire,
    scalars_to_wire,
};
use answer::{Content, Prepared, Update};
use backoff::Backoff;
pub(super) use connect::Dialer;
pub(super) use download::Downloads;
use failure::Failure;
use models::Models;
use state::{End, Parts, Shared, Status};

/// Joins a federation: enrols the node where it has no certificate yet, and fetches the plan. A server that is not there
/// yet is waited for as long as the configuration says.
///
/// # Errors
/// [`QuicError`]: a setting out of its range, a server that cannot be reached or refuses the node.
pub fn join(join: &JoinString, identity: NodeIdentity, config: ClientConfig) -> Result<Joined, QuicError> {
    config.check()?;
    let thread = EndpointThread::start("quic-node")?;
    let (join, handle) = (join.clone(), thread.handle().clone());
    let dialer = Dialer::new(join, identity, config);
    let (plan_ref, plan) = handle.block_on(fetch_plan(&dialer))?;
    Ok(Joined { thread, dialer, plan_ref, plan })
}

/// A node that knows what is to be trained.
pub struct Joined {
    thread: EndpointThread,
    dialer: Dialer,
    plan_ref: BlobRef,
    plan: Plan,
}

impl Joined {
    /// What is to be trained.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Tells the server which clients the node is, sorted by id, and how many examples each has; models come to
    /// `device`.
    ///
    /// # Errors
    /// [`QuicError::Refused`] where another node is one of the clients, or the model has another schema.
    pub fn start<B: Backend>(
        self,
        clients: &[ClientInfo],
        schema: Arc<ParamSchema>,
        device: B::Device,
    ) -> Result<QuicClient<B>, QuicError> {
        if !clients.is_sorted_by(|a, b| a.id < b.id) {
            let value = format!("{} clients", clients.len());
            return Err(QuicError::Config { field: "clients", value, expected: "sorted by id, without repeats" });
        }
        let shared = Arc::new(Shared::new(Parts {
            dialer: self.dialer,
            clients: clients.iter().map(|info| (*info).into()).collect(),
            schema: schema.fingerprint(),
            plan_hash: Hash(self.plan.hash),
            plan: self.plan_ref,
        }));
        self.thread.handle().spawn(link::run(shared.clone()));
        let up = self.thread.handle().block_on(async {
            let mut status = shared.status();
            // The sender lives in `shared`.
            let _ = status.wait_for(|status| !matches!(status, Status::Down)).await;
            shared.end()
        });
        match up {
            Some(End::Failed(error)) => Err(QuicError::Refused {
                reason: match &*error {
                    QuicError::Refused { reason } => reason.clone(),
                    other => other.to_string(),
                },
            }),
            _ => Ok(QuicClient { models: Models::new(schema, device), shared, thread: self.thread }),
        }
    }
}

/// A node's end of a federation over the network. Several threads may work with it at once.
///
/// It connects again by itself whenever the connection is lost, and sends an answer until the server has it; a server
/// that refuses the node for good, or stays away for longer than the configuration allows, is the error of every call.
pub struct QuicClient<B: Backend> {
    shared: Arc<Shared>,
    models: Models<B>,
    thread: EndpointThread,
}

impl<B: Backend> QuicClient<B> {
    /// Leaves the federation: whoever waits in [`ClientTransport::next`] gets `None`.
    pub fn leave(&self) {
        self.shared.finish(End::Goodbye);
    }

    fn asked(&self, offer: &TaskOffer) -> Result<Asked<B>, Failure> {
        let vector = |blob: &BlobRef| self.thread.handle().block_on(self.models.fetch(&self.shared, blob));
        let (client, round) = (offer.client, offer.round);
        let global = vector(&offer.model)?;
        let request = match &offer.kind {
            TaskKind::Train { seed, side_vectors, side_scalars, reports } => {
                let named = side_vectors.iter().map(|named| Ok((named.name.clone().into(), vector(&named.blob)?)));
                let vectors = named.collect::<Result<_, Failure>>()?;
                let side = SideInfo { vectors, scalars: scalars_from_wire(side_scalars.clone()) };
                Request::Train(TrainTask { round, global, seed: *seed, side, reports: (*reports).into() })
            }
            _ => Request::Evaluate { round, global },
        };
        let history = History { state_of: offer.state_of, durable: offer.durable };
        Ok(Asked { client, request, history })
    }

    /// The update as it travels.
    fn encode(&self, update: LocalUpdate<B>) -> Result<Update, ClientFailure> {
        let failed = |reason: String| ClientFailure::Failed { reason };
        let schema = self.models.schema();
        let LocalUpdate { params, num_examples, side, report, metrics } = update;
        let (names, sides): (Vec<_>, Vec<_>) = side.vectors.into_iter().unzip();
        let vectors = std::iter::once(params).chain(sides).map(|vector| {
            schema.ensure_same(vector.schema()).map_err(|e| failed(format!("a vector of another model: {e}")))?;
            Ok(vector.into_host())
        });
        let vectors = vectors.collect::<Result<Vec<_>, ClientFailure>>()?;
        Ok(Update {
            blob: Blob::of_vectors(vectors, answer::CHUNK_LEN).map_err(|e| failed(e.to_string()))?,
            names: names.into_iter().map(|name| name.into_owned()).collect(),
            num_values: schema.num_values() as u64,
            num_examples,
            scalars: scalars_to_wire(&side.scalars),
            report: report.into(),
            metrics: metrics_to_wire(&metrics),
        })
    }
}

#[cfg(test)]
impl Joined {
    /// Makes the node work by another plan.
    pub(super) fn change_plan_hash(&mut self) {
        self.plan.hash[0] ^= 1;
    }
}

#[cfg(test)]
impl<B: Backend> QuicClient<B> {
    /// Bytes in UDP packets sent on the connection that lives.
    pub(super) fn bytes_sent(&self) -> u64 {
        match &*self.shared.status().borrow() {
            Status::Up(live) => live.connection.stats().udp_tx.bytes,
            _ => 0,
        }
    }
}

impl<B: Backend> ClientTransport<B> for QuicClient<B> {
    fn next(&self) -> Result<Option<Asked<B>>, TransportError> {
        while let Some(offer) = self.shared.next()? {
            match self.asked(&offer) {
                Ok(asked) => return Ok(Some(asked)),
                Err(Failure::Lasting(error)) => {
                    let reason = error.to_string();
                    self.shared.finish(End::Failed(Arc::new(error)));
                    return Err(TransportError::Closed { reason });
                }
                // The task ended, or the node did; then the next round of the loop says so.
                Err(Failure::Superseded | Failure::Passing(_)) => self.shared.done(offer.task, None),
            }
        }
        Ok(None)
    }

    fn reply(
        &self,
        client: ClientId,
        round: RoundIndex,
        reply: Result<Reply<B>, ClientFailure>,
    ) -> Result<(), TransportError> {
        let trained = reply.as_ref().ok().map(|reply| matches!(reply, Reply::Trained(_)));
        let Some(offer) = self.shared.given(client, round, trained) else {
            return Err(TransportError::Closed { reason: format!("client {client} was not asked in round {round}") });
        };
        let content = match reply {
            Ok(Reply::Trained(update)) => match self.encode(update) {
                Ok(update) => Content::Update(Box::new(update)),
                Err(failure) => Content::Declined(failure),
            },
            Ok(Reply::Evaluated(metrics)) => Content::Measured(metrics),
            Err(failure) => Content::Declined(failure),
        };
        let answer = Arc::new(Prepared { task: offer.task, round, content }.sendable());
        let delivered = self.thread.handle().block_on(answer::deliver(&self.shared, &answer));
        self.shared.done(offer.task, Some(answer));
        self.models.forget_unneeded(&self.shared);
        match delivered {
            Ok(CommitState::Rejected { reason }) => {
                tracing::warn!(%client, %round, reason, "answer.rejected");
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(failure) => match (self.shared.end(), failure) {
                // The server has all that it wanted.
                (Some(End::Goodbye), _) => Ok(()),
                (Some(End::Failed(error)), _) => Err(TransportError::Closed { reason: error.to_string() }),
                (None, Failure::Lasting(error)) => {
                    let reason = error.to_string();
                    self.shared.finish(End::Failed(Arc::new(error)));
                    Err(TransportError::Closed { reason })
                }
                (None, _) => Ok(()),
            },
        }
    }
}

impl<B: Backend> Drop for QuicClient<B> {
    fn drop(&mut self) {
        let live = match &*self.shared.status().borrow() {
            Status::Up(live) => Some(live.clone()),
            _ => None,
        };
        self.shared.finish(End::Goodbye);
        if let Some(live) = live {
            close(&live.connection, CloseCode::Ok, "the node leaves");
        }
        self.thread.handle().block_on(self.shared.dialer.hang_up());
    }
}

/// Connects until it works, and asks for the plan.
async fn fetch_plan(dialer: &Dialer) -> Result<(BlobRef, Plan), QuicError> {
    let config = dialer.config();
    let patience = Duration::from_secs(config.server_away_secs);
    let cap = Duration::from_secs(config.backoff_cap_secs);
    let mut backoff = Backoff::new(Duration::from_millis(config.backoff_base_ms), cap);
    let began = Instant::now();
    loop {
        match plan_of(dialer).await {
            Ok(plan) => return Ok(plan),
            Err(Failure::Lasting(error)) => return Err(error),
            Err(Failure::Passing(reason)) if began.elapsed() >= patience => {
                return Err(QuicError::Unreachable { server: dialer.server(), reason });
            }
            Err(failure) => {
                let wait = backoff.next(Duration::ZERO);
                tracing::info!(?failure, ?wait, server = dialer.server(), "node.cannot_join_yet");
                tokio::time::sleep(wait).await;
            }
        }
    }
}

async fn plan_of(dialer: &Dialer) -> Result<(BlobRef, Plan), Failure> {
    let (connection, welcome) = dialer.connect().await?;
    let plan = welcome.plan;
    if plan.codec != Codec::Opaque || plan.len > MAX_PLAN as u64 {
        let reason = format!("a plan of {} bytes, at most {MAX_PLAN}", plan.len);
        return Err(QuicError::Protocol { reason }.into());
    }
    let downloads = Arc::new(Downloads::default());
    let receiving = tokio::spawn(downloads.clone().receive(connection.clone()));
    let fetched = downloads.fetch(dialer, &connection, &plan, &mut None).await;
    receiving.abort();
    // The node connects again when it knows which clients it is: making their data may take long.
    close(&connection, CloseCode::Ok, "the plan has come");
    Ok((plan, Plan::decode(&fetched?.take_bytes())?))
}
