//! Requests on their way out and answers on their way in, between a round and the wire.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use burn::tensor::backend::Backend;
use fedburn_core::{
    ClientFailure, ClientId, Codec, CodecError, Encoded, LocalUpdate, Outcome, ParamSchema, ParamVector, Reply,
    Request, RoundIndex, Schemas, SideInfo, TrainTask,
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{Instant, timeout_at};

use super::super::blob::Values;
use super::super::send::Blob;
use super::TaskSpans;
use super::participation::Participation;
use super::state::Shared;
use super::tasks::{Answer, Arrived, ArrivedUpdate, Exchange};
use super::uploads::Memory;
use crate::wire::limits::{MAX_NAME, MAX_SIDE_SCALARS, MAX_SIDE_VECTORS};
use crate::wire::{
    BlobRef, Extensions, Frame, Hash, NamedBlob, TaskId, TaskKind, TaskOffer, codec_features, compression_to_wire,
    scalars_to_wire, slice_to_wire,
};

/// The outcomes of one exchange as they come.
pub(in super::super) struct Outcomes<'a, B: Backend> {
    shared: &'a Shared,
    schemas: &'a Schemas,
    device: &'a B::Device,
    answers: UnboundedReceiver<Answer>,
    /// Failures that were known before anything was sent.
    failed: Vec<Outcome<B>>,
    /// Tasks that were answered before a crash.
    kept: Vec<(ClientId, TaskId)>,
    /// Who has not answered.
    outstanding: BTreeSet<ClientId>,
    /// What the updates of those look like who hold a part of the model.
    parts: BTreeMap<ClientId, Arc<ParamSchema>>,
    /// How those who compress their updates write them, and what they were sent.
    compressed: BTreeMap<ClientId, (Codec, ParamVector<B>)>,
    /// `None` where the timeout is beyond what a clock can hold.
    deadline: Option<Instant>,
    /// Room for the values that were given out last.
    taken: Option<Memory>,
}

impl<'a, B: Backend> Outcomes<'a, B> {
    /// Offers the requests to the nodes of their clients.
    pub(super) fn begin(
        shared: &'a Shared,
        schemas: &'a Schemas,
        device: &'a B::Device,
        participation: &Participation,
        spans: Option<&TaskSpans>,
        requests: Vec<(ClientId, Request<B>)>,
        timeout: Duration,
    ) -> Self {
        let (sender, answers) = unbounded_channel();
        let deadline = Instant::now().checked_add(timeout);
        let (mut exchange, mut blobs) = (Exchange::new(sender, deadline), Blobs::new(shared.limits.chunk_len));
        let (mut failed, mut outstanding) = (Vec::new(), BTreeSet::new());
        let (mut kept, mut compressed, mut left_out) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        let mut parts = BTreeMap::new();
        for (client, request) in requests {
            let node = shared.owner(client);
            let lacking = node.and_then(|node| Some((node, lacking(shared.features(node), &request)?)));
            if let Request::Train(task) = &request
                && !task.compression.up.is_lossless()
            {
                compressed.insert(client, (task.compression.up, task.global.clone()));
            }
            if let Request::Train(task) = &request
                && !task.slice.is_empty()
            {
                parts.insert(client, task.global.schema().clone());
            }
            let offered = offer(shared, schemas, participation, spans, &mut blobs, client, request);
            let offered = offered.and_then(|offer| match (node, shared.spool.digest(offer.task)) {
                (None, None) => Err(ClientFailure::Disconnected),
                (_, answered) => Ok((offer, answered)),
            });
            let offered = match lacking {
                Some((node, reason)) => {
                    left_out.insert(node, reason.clone());
                    Err(ClientFailure::Failed { reason })
                }
                None => offered,
            };
            match offered {
                Ok((offer, answered)) => {
                    match answered {
                        Some(_) => kept.push((client, offer.task)),
                        None => drop(outstanding.insert(client)),
                    }
                    if let Some(node) = node {
                        exchange.ask(node, offer, answered);
                    }
                }
                Err(failure) => failed.push(Outcome { client, reply: Err(failure) }),
            }
        }
        left_out.iter().for_each(|(node, reason)| shared.leave_out(*node, reason));
        shared.open(exchange, blobs.encoded);
        Self { shared, schemas, device, answers, failed, kept, outstanding, parts, compressed, deadline, taken: None }
    }

    fn reply(&self, client: ClientId, arrived: Arrived) -> Result<Reply<B>, ClientFailure> {
        let malformed = |e: fedburn_core::SchemaError| ClientFailure::Malformed { reason: e.to_string() };
        let schema = self.parts.get(&client).unwrap_or(self.schemas.model());
        let vector = |values| ParamVector::from_host(values, schema.clone(), self.device).map_err(malformed);
        match arrived {
            Arrived::Evaluated(metrics) => Ok(Reply::Evaluated(metrics)),
            Arrived::Trained(update) => {
                let ArrivedUpdate { values, names, num_examples, scalars, report, metrics } = *update;
                let (params, vectors) = match (values, self.compressed.get(&client)) {
                    (Values::Encoded(bytes), Some((codec, global))) => {
                        let malformed = |e: CodecError| ClientFailure::Malformed { reason: e.to_string() };
                        decode(bytes, *codec, global).map_err(malformed)?
                    }
                    (Values::Plain(mut vectors), None) if !vectors.is_empty() => {
                        let sides = vectors.split_off(1);
                        (vector(vectors.swap_remove(0))?, sides)
                    }
                    // Cannot come: the form of an answer follows from its request.
                    _ => return Err(ClientFailure::Malformed { reason: "an update in another form".to_owned() }),
                };
                let named = names.into_iter().zip(vectors).map(|(name, values)| Ok((name.into(), vector(values)?)));
                let side = SideInfo {
                    vectors: named.collect::<Result<_, ClientFailure>>()?,
                    scalars: crate::wire::scalars_from_wire(scalars),
                };
                Ok(Reply::Trained(LocalUpdate { params, num_examples, side, report, metrics }))
            }
        }
    }

    /// The next outcome, at the latest when the time is over; `None` after the last one.
    pub(in super::super) async fn receive(&mut self) -> Option<Outcome<B>> {
        // Who asks for the next has done with the last: only then is there room for another.
        self.taken = None;
        if let Some(failed) = self.failed.pop() {
            return Some(failed);
        }
        if let Some(failure) = self.shared.failure() {
            let kept = self.kept.pop().map(|(client, _)| client);
            let client = kept.or_else(|| self.outstanding.pop_first())?;
            return Some(Outcome { client, reply: Err(ClientFailure::Failed { reason: failure.reason.clone() }) });
        }
        if let Some((client, task)) = self.kept.pop() {
            let reply = match self.shared.spool.read(task) {
                Ok(entry) => entry.reply.and_then(|arrived| self.reply(client, arrived)),
                Err(error) => {
                    self.shared.fail(&error.to_string());
                    Err(ClientFailure::Failed { reason: error.to_string() })
                }
            };
            return Some(Outcome { client, reply });
        }
        let first = *self.outstanding.first()?;
        let received = match self.deadline {
            Some(deadline) => timeout_at(deadline, self.answers.recv()).await.ok().flatten(),
            None => self.answers.recv().await,
        };
        let Some(Answer { client, reply, memory }) = received else {
            self.outstanding.remove(&first);
            let failure = match self.shared.failure() {
                Some(failure) => ClientFailure::Failed { reason: failure.reason.clone() },
                None => ClientFailure::TimedOut,
            };
            return Some(Outcome { client: first, reply: Err(failure) });
        };
        self.taken = memory;
        self.outstanding.remove(&client);
        let reply = reply.and_then(|arrived| self.reply(client, arrived));
        Some(Outcome { client, reply })
    }
}

impl<B: Backend> Drop for Outcomes<'_, B> {
    fn drop(&mut self) {
        self.shared.finish();
    }
}

/// The vectors of one exchange, each encoded once however many clients get it.
struct Blobs<B: Backend> {
    chunk_len: u32,
    known: Vec<(ParamVector<B>, Codec, BlobRef)>,
    encoded: BTreeMap<Hash, Arc<Blob>>,
}

impl<B: Backend> Blobs<B> {
    fn new(chunk_len: u32) -> Self {
        Self { chunk_len, known: Vec::new(), encoded: BTreeMap::new() }
    }

    /// The vector as it is written in `codec`; where something is lost, that has happened.
    fn add(&mut self, vector: &ParamVector<B>, codec: Codec, schema: &ParamSchema) -> Result<BlobRef, ClientFailure> {
        let failed = |reason: String| ClientFailure::Failed { reason };
        // The newest first: requests to many clients share a vector, and those that do not are given one after another.
        let same = |(known, of, _): &&(ParamVector<B>, Codec, _)| *of == codec && known.is_clone_of(vector);
        if let Some((_, _, name)) = self.known.iter().rev().find(same) {
            return Ok(*name);
        }
        schema.ensure_same(vector.schema()).map_err(|e| failed(format!("a vector of another model: {e}")))?;
        let blob = match vector.encoded() {
            _ if codec.is_lossless() => Blob::of_vectors(vec![vector.clone()], self.chunk_len),
            Some(encoded) if encoded.codec == codec => Blob::of_bytes(encoded.bytes.clone().into(), self.chunk_len),
            _ => return Err(failed(format!("the model was not written as {}", codec.name()))),
        };
        let blob = blob.map_err(|e| failed(e.to_string()))?;
        let name = blob.name();
        self.known.push((vector.clone(), codec, name));
        self.encoded.entry(name.root).or_insert_with(|| Arc::new(blob));
        Ok(name)
    }
}

/// Why a node of these features cannot do what is asked.
fn lacking<B: Backend>(features: u64, request: &Request<B>) -> Option<String> {
    let Request::Train(TrainTask { compression, .. }) = request else { return None };
    let (up, down) = (compression.up.name(), compression.down.name());
    (codec_features(compression) & !features != 0).then(|| {
        format!("this run writes updates as {up} and models as {down}, which the node's software does not know")
    })
}

/// Parameters and other vectors of an update that came in a codec.
fn decode<B: Backend>(
    mut bytes: Vec<u8>,
    codec: Codec,
    global: &ParamVector<B>,
) -> Result<(ParamVector<B>, Vec<Vec<f32>>), CodecError> {
    let (schema, plain) = (global.schema(), Codec::F32 {});
    // As many as the form of the task's answer has.
    let sides = bytes.split_off(codec.vector_len(schema).min(bytes.len()));
    let sides = sides.chunks(plain.vector_len(schema).max(1)).map(|side| plain.decode(side, schema.num_values()));
    Ok((ParamVector::decode_update(Encoded { codec, bytes }, global)?, sides.collect::<Result<_, _>>()?))
}

fn offer<B: Backend>(
    shared: &Shared,
    schemas: &Schemas,
    participation: &Participation,
    spans: Option<&TaskSpans>,
    blobs: &mut Blobs<B>,
    client: ClientId,
    request: Request<B>,
) -> Result<TaskOffer, ClientFailure> {
    let (round, before) = (request.round(), request.state_before());
    let (plain, schema, mut ext) = (Codec::F32 {}, schemas.model(), Extensions::default());
    let (model, kind) = match request {
        Request::Train(task) => {
            let side = &task.side;
            check_side(side)?;
            let named = side.vectors.iter().map(|(name, vector)| {
                Ok(NamedBlob { name: name.to_string(), blob: blobs.add(vector, plain, schemas.side(name))? })
            });
            let side_vectors = named.collect::<Result<_, ClientFailure>>()?;
            let side_scalars = scalars_to_wire(&side.scalars);
            let kind = TaskKind::Train { seed: task.seed, side_vectors, side_scalars, reports: task.reports.into() };
            let part = schemas.part(&task.slice).map_err(|e| ClientFailure::Failed { reason: e.to_string() })?;
            compression_to_wire(&task.compression).into_iter().for_each(|extension| ext.add(extension));
            slice_to_wire(&task.slice).into_iter().for_each(|extension| ext.add(extension));
            (blobs.add(&task.global, task.compression.down, &part)?, kind)
        }
        Request::Evaluate { global, .. } => (blobs.add(&global, plain, schema)?, TaskKind::Evaluate),
    };
    let mut offer = TaskOffer {
        task: TaskId::default(),
        client,
        round,
        model,
        kind,
        state_of: participation.last_before(client, before),
        durable: RoundIndex(0),
        remaining_ms: 0,
        ext,
    };
    offer.task = task_id(shared, &offer)?;
    offer.durable = participation.durable();
    // Its number is that of the same task without a trace.
    if let (Some(spans), TaskKind::Train { .. }) = (spans, &offer.kind) {
        offer.ext.add(spans(round, client).to_wire());
    }
    Ok(offer)
}

/// The number of a request follows from all that its answer depends on: a server that was restarted asks the same under
/// the same number, and an answer to something else never counts.
fn task_id(shared: &Shared, offer: &TaskOffer) -> Result<TaskId, ClientFailure> {
    let bytes = Frame::encode(0, offer).map_err(|e| ClientFailure::Failed { reason: e.to_string() })?;
    let hash = blake3::Hasher::new().update(b"fedburn task v1").update(&shared.plan_hash.0).update(&bytes).finalize();
    let (id, _) = hash.as_bytes().split_first_chunk::<16>().unwrap_or((&[0; 16], &[]));
    Ok(TaskId(*id))
}

/// Names the limit that side information is beyond, since a message that breaks one is not sent.
fn check_side<B: Backend>(side: &SideInfo<B>) -> Result<(), ClientFailure> {
    let failed = |reason: String| Err(ClientFailure::Failed { reason });
    let (vectors, scalars) = (side.vectors.len(), side.scalars.len());
    if vectors > MAX_SIDE_VECTORS || scalars > MAX_SIDE_SCALARS {
        return failed(format!(
            "{vectors} vectors and {scalars} numbers beside the model, at most {MAX_SIDE_VECTORS} and {MAX_SIDE_SCALARS}"
        ));
    }
    match side.vectors.keys().chain(side.scalars.keys()).find(|name| name.len() > MAX_NAME) {
        Some(name) => failed(format!("the name `{name}` has {} bytes, at most {MAX_NAME}", name.len())),
        None => Ok(()),
    }
}
