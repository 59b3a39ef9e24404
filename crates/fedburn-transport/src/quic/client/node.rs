//! What a node does, whoever waits for it and on whatever thread.

use std::sync::Arc;
use std::time::Duration;

use burn::tensor::backend::Backend;
use fedburn_core::{
    Asked, ClientFailure, ClientId, ClientInfo, Codec, History, LocalUpdate, Reply, Request, RoundIndex, Schemas,
    SideInfo, TrainTask, TransportError,
};
use tokio::time::Instant;

use super::super::QuicError;
use super::super::plan::{MAX_PLAN, Plan};
use super::super::send::Blob;
use super::super::stream::close;
use super::answer::{self, Content, Prepared, Update};
use super::connect::Dialer;
use super::download::Downloads;
use super::failure::Failure;
use super::link;
use super::models::Models;
use super::state::{End, Live, Parts, Shared, Status};
use crate::wire::limits::MAX_CHUNK_LEN;
use crate::wire::{
    self, BlobRef, CloseCode, CommitState, Hash, TaskKind, TaskOffer, TraceParent, compression_from_wire,
    metrics_to_wire, scalars_from_wire, scalars_to_wire, slice_from_wire, vector_bytes,
};

/// A node that knows what is to be trained and has not said which clients it is.
pub(in super::super) struct Invited {
    dialer: Dialer,
    plan_ref: BlobRef,
    pub(super) plan: Plan,
    /// Bytes of the chunks that the server takes.
    chunk_len: u32,
}

impl Invited {
    /// Connects until it works, and asks for the plan.
    pub(in super::super) async fn by(dialer: Dialer) -> Result<Self, QuicError> {
        let patience = Duration::from_secs(dialer.config().server_away_secs);
        let (mut backoff, began) = (dialer.backoff(), Instant::now());
        loop {
            match plan_of(&dialer).await {
                Ok((plan_ref, plan, chunk_len)) => return Ok(Self { dialer, plan_ref, plan, chunk_len }),
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

    /// Connects once more to tell the server why the node will not take part.
    pub(in super::super) async fn decline(self, reason: &str) -> Result<(), QuicError> {
        let connected = self.dialer.connect().await;
        let (connection, _) = connected.map_err(|failure| match failure {
            Failure::Lasting(error) => error,
            Failure::Passing(reason) => QuicError::Unreachable { server: self.dialer.server(), reason },
            Failure::Superseded => QuicError::Refused { reason: "the run is over".to_owned() },
        })?;
        close(&connection, CloseCode::Declined, reason);
        self.dialer.hang_up().await;
        Ok(())
    }

    /// Tells the server which clients the node is, and keeps it connected from then on.
    pub(in super::super) async fn start<B: Backend>(
        self,
        clients: &[ClientInfo],
        schemas: Schemas,
        device: B::Device,
    ) -> Result<Node<B>, QuicError> {
        if !clients.is_sorted_by(|a, b| a.id < b.id) {
            let value = format!("{} clients", clients.len());
            return Err(QuicError::Config { field: "clients", value, expected: "sorted by id, without repeats" });
        }
        let shared = Arc::new(Shared::new(Parts {
            dialer: self.dialer,
            clients: clients.iter().map(|info| (*info).into()).collect(),
            schema: schemas.model().fingerprint(),
            plan_hash: Hash(self.plan.hash),
            plan: self.plan_ref,
            chunk_len: self.chunk_len,
        }));
        tokio::spawn(link::run(shared.clone()));
        shared.status().wait_for(|status| !matches!(status, Status::Down)).await;
        match shared.end() {
            Some(End::Failed(error)) => Err(QuicError::Refused {
                reason: match &*error {
                    QuicError::Refused { reason } => reason.clone(),
                    other => other.to_string(),
                },
            }),
            _ => Ok(Node { models: Models::new(schemas, device), shared }),
        }
    }
}

/// A request that a node took on, with all that it needs.
#[derive(Clone, Debug)]
pub struct Taken<B: Backend> {
    /// The request.
    pub asked: Asked<B>,
    /// The span of a distributed trace that the request is, where the server traces.
    pub span: Option<TraceParent>,
    /// How long it took to fetch its vectors.
    pub fetching: Duration,
}

/// A node at work.
pub(in super::super) struct Node<B: Backend> {
    pub(super) shared: Arc<Shared>,
    models: Models<B>,
}

impl<B: Backend> Node<B> {
    /// The next request for any client that the node is; `None` once the server said goodbye.
    pub(in super::super) async fn next(&self) -> Result<Option<Taken<B>>, TransportError> {
        while let Some(offer) = self.shared.next().await? {
            let began = Instant::now();
            match self.asked(&offer).await {
                Ok(asked) => {
                    let (span, fetching) = (TraceParent::from_wire(&offer.ext), began.elapsed());
                    return Ok(Some(Taken { asked, span, fetching }));
                }
                Err(Failure::Lasting(error)) => return Err(self.fail(error)),
                // The task ended, or the node did; then the next round of the loop says so.
                Err(Failure::Superseded | Failure::Passing(_)) => {
                    self.shared.done(offer.task, None, None);
                }
            }
        }
        Ok(None)
    }

    async fn asked(&self, offer: &TaskOffer) -> Result<Asked<B>, Failure> {
        let (client, round) = (offer.client, offer.round);
        let compression =
            compression_from_wire(&offer.ext).map_err(|e| QuicError::Protocol { reason: e.to_string() })?;
        let schemas = self.models.schemas();
        let slice = slice_from_wire(&offer.ext).map_err(|e| QuicError::Protocol { reason: e.to_string() })?;
        let schema = schemas.part(&slice).map_err(|e| QuicError::Protocol { reason: e.to_string() })?;
        let global = self.models.fetch(&self.shared, &offer.model, compression.down, &schema).await?;
        let request = match &offer.kind {
            TaskKind::Train { seed, side_vectors, side_scalars, reports } => {
                let mut side = SideInfo { scalars: scalars_from_wire(side_scalars.clone()), ..SideInfo::default() };
                for named in side_vectors {
                    let schema = schemas.side(&named.name);
                    let vector = self.models.fetch(&self.shared, &named.blob, Codec::F32 {}, schema).await?;
                    side.vectors.insert(named.name.clone().into(), vector);
                }
                let (seed, reports) = (*seed, (*reports).into());
                Request::Train(TrainTask { round, global, slice, seed, side, reports, compression })
            }
            _ => Request::Evaluate { round, global },
        };
        let history = History { state_of: offer.state_of, durable: offer.durable };
        Ok(Asked { client, request, history })
    }

    /// Answers a request of [`Node::next`]; returns when the server has acknowledged it or no longer wants it.
    pub(in super::super) async fn reply(
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
            Ok(Reply::Trained(update)) => match self.encode(&offer, update) {
                Ok(update) => Content::Update(Box::new(update)),
                Err(failure) => Content::Declined(failure),
            },
            Ok(Reply::Evaluated(metrics)) => Content::Measured(metrics),
            Err(failure) => Content::Declined(failure),
        };
        let answer = Arc::new(Prepared { task: offer.task, client, round, content }.sendable());
        let delivered = loop {
            let delivered = answer::deliver(&self.shared, &answer).await;
            let repeatable = !matches!(delivered, Ok((CommitState::Durable, _)));
            let taken = delivered.as_ref().ok().map(|(_, connection)| *connection);
            if self.shared.done(offer.task, repeatable.then(|| answer.clone()), taken) {
                break delivered;
            }
        };
        self.models.forget_unneeded(&self.shared);
        match delivered.map(|(state, _)| state) {
            Ok(CommitState::Rejected { reason }) => {
                tracing::warn!(%client, %round, reason, "answer.rejected");
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(failure) => match (self.shared.end(), failure) {
                // The server has all that it wanted.
                (Some(End::Goodbye), _) => Ok(()),
                (Some(End::Failed(error)), _) => Err(TransportError::Closed { reason: error.to_string() }),
                (None, Failure::Lasting(error)) => Err(self.fail(error)),
                (None, _) => Ok(()),
            },
        }
    }

    /// Ends the node for good, and tells the server why: nobody waits for it then.
    fn fail(&self, error: QuicError) -> TransportError {
        let (live, reason) = (self.live(), error.to_string());
        self.shared.finish(End::Failed(Arc::new(error)));
        if let Some(live) = live {
            close(&live.connection, CloseCode::Protocol, &reason);
        }
        TransportError::Closed { reason }
    }

    /// The update as it travels.
    fn encode(&self, offer: &TaskOffer, update: LocalUpdate<B>) -> Result<Update, ClientFailure> {
        let failed = |reason: String| ClientFailure::Failed { reason };
        let chunk_len = self.shared.chunk_len;
        let up = compression_from_wire(&offer.ext).map_err(|e| failed(e.to_string()))?.up;
        let slice = slice_from_wire(&offer.ext).map_err(|e| failed(e.to_string()))?;
        let schema = self.models.schemas().part(&slice).map_err(|e| failed(e.to_string()))?;
        let LocalUpdate { params, num_examples, side, report, metrics } = update;
        let (names, sides): (Vec<_>, Vec<_>) = side.vectors.into_iter().unzip();
        let vectors = std::iter::once(params).chain(sides).map(|vector| {
            schema.ensure_same(vector.schema()).map_err(|e| failed(format!("a vector of another model: {e}")))?;
            Ok(vector)
        });
        let vectors = vectors.collect::<Result<Vec<_>, ClientFailure>>()?;
        let blob = match vectors[0].encoded() {
            _ if up.is_lossless() => Blob::of_vectors(vectors, chunk_len),
            Some(encoded) if encoded.codec == up => {
                let sides = vectors[1..].iter().flat_map(|side| vector_bytes(&side.to_host()).into_owned());
                Blob::of_bytes(encoded.bytes.iter().copied().chain(sides).collect(), chunk_len)
            }
            _ => return Err(failed(format!("the update was not written as {}", up.name()))),
        };
        Ok(Update {
            blob: Arc::new(blob.map_err(|e| failed(e.to_string()))?),
            names: names.into_iter().map(|name| name.into_owned()).collect(),
            num_values: schema.num_values() as u64,
            num_examples,
            scalars: scalars_to_wire(&side.scalars),
            report: report.into(),
            metrics: metrics_to_wire(&metrics),
        })
    }

    /// Leaves the federation and waits for the last packets, for a moment.
    pub(in super::super) async fn hang_up(&self) {
        let live = self.live();
        self.shared.finish(End::Goodbye);
        if let Some(live) = live {
            close(&live.connection, CloseCode::Ok, "the node leaves");
        }
        self.shared.dialer.hang_up().await;
    }

    /// The connection, if there is one.
    pub(super) fn live(&self) -> Option<Arc<Live>> {
        match self.shared.status().get() {
            Status::Up(live) => Some(live),
            _ => None,
        }
    }
}

async fn plan_of(dialer: &Dialer) -> Result<(BlobRef, Plan, u32), Failure> {
    let (connection, welcome) = dialer.connect().await?;
    let (plan, chunk_len) = (welcome.plan, welcome.limits.chunk_len);
    let protocol = |reason| Err(QuicError::Protocol { reason }.into());
    if plan.codec != wire::Codec::Opaque || plan.len > MAX_PLAN as u64 {
        return protocol(format!("a plan of {} bytes, at most {MAX_PLAN}", plan.len));
    }
    if chunk_len == 0 || chunk_len > MAX_CHUNK_LEN || !chunk_len.is_multiple_of(4) {
        return protocol(format!(
            "chunks of {chunk_len} bytes, which should be a multiple of four up to {MAX_CHUNK_LEN}"
        ));
    }
    let downloads = Arc::new(Downloads::default());
    let receiving = tokio::spawn(downloads.clone().receive(connection.clone()));
    let fetched = downloads.fetch(dialer, &connection, &plan, &mut None).await;
    receiving.abort();
    // The node connects again when it knows which clients it is: making their data may take long.
    close(&connection, CloseCode::Ok, "the plan has come");
    Ok((plan, Plan::decode(&fetched?.take_bytes())?, chunk_len))
}

#[cfg(test)]
impl<B: Backend> Node<B> {
    /// Dead once nothing of the node is left.
    pub(in super::super) fn life(&self) -> std::sync::Weak<dyn std::any::Any + Send + Sync> {
        let life: std::sync::Weak<Shared> = Arc::downgrade(&self.shared);
        life
    }
}
