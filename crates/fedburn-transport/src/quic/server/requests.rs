//! What a node may ask, and the answers.

use std::sync::Arc;

use fedburn_core::ClientFailure;

use super::super::blob::{Values, decode_inline};
use super::connection::{certificate, channel, refuse};
use super::counters::add;
use super::downloads;
use super::link::{Link, lock};
use super::state::Shared;
use super::tasks::{Arrived, ArrivedUpdate};
use super::uploads::{self, Memory};
use crate::wire::{
    Announce, Announced, Busy, CloseCode, CommitAck, CommitState, Decline, Extensions, Frame, Hash, Measured, Message,
    Payload, Refusal, Renew, TaskId, TaskKind, UploadBegin, UploadCommit, UploadGrant, features, limits::MAX_PARTS,
    metrics_from_wire, short_reason,
};

/// A request after which the connection cannot go on.
type Fatal = (CloseCode, String);

/// Answers one request.
pub(super) async fn answer(link: &Arc<Link>, shared: &Arc<Shared>, message: Message) -> Result<Message, Fatal> {
    use Message::{Decline, Measured, UploadBegin, UploadCommit};
    let of_a_task = matches!(&message, UploadBegin(_) | UploadCommit(_) | Measured(_) | Decline(_));
    let answer = match message {
        Message::Announce(announce) => announced(link, shared, announce),
        Message::Renew(renew) => renewed(link, shared, &renew),
        Message::GetManifest(asked) => downloads::manifest(shared, &asked),
        Message::GetChunks(asked) => downloads::chunks(shared, link, asked).await,
        UploadBegin(begin) => begun(link, shared, begin).await,
        UploadCommit(commit) => committed(link, shared, commit).await,
        Measured(measured) => measured_by(link, shared, &measured).await,
        Decline(decline) => declined(link, shared, &decline).await,
        Message::Enroll(_) => refuse(Refusal::NotAllowed, "the node has a certificate; ask to renew it".to_owned()),
        other => return Err((CloseCode::Protocol, format!("{:?} is nothing that a node may ask", other.kind()))),
    };
    // No task is over because the server cannot go on: the next one asks for it again.
    Ok(if of_a_task && shared.failure().is_some() { ending() } else { answer })
}

fn announced(link: &Arc<Link>, shared: &Arc<Shared>, announce: Announce) -> Message {
    let invalid = |reason: &str| refuse(Refusal::Invalid, reason.to_owned());
    if announce.plan != shared.plan_hash {
        return refuse(Refusal::WrongPlan, "this server trains by another plan".to_owned());
    }
    if announce.schema != shared.schemas.model().fingerprint() {
        return refuse(Refusal::WrongSchema, "the node's model has other tensors than the server's".to_owned());
    }
    if announce.parts == 0 || announce.parts > MAX_PARTS {
        return invalid("an announcement has 1 to 1,024 parts");
    }
    let complete = {
        let mut announcing = lock(&link.announcing);
        if announce.part == 0 {
            *announcing = Default::default();
        }
        let follows = match (announcing.clients.last(), announce.clients.first()) {
            (Some(before), Some(first)) => before.id < first.id,
            _ => true,
        };
        if announce.part != announcing.next_part || !follows {
            return invalid("the parts of an announcement come in order, once each");
        }
        if announcing.clients.len() + announce.clients.len() > shared.config.clients {
            return refuse(Refusal::Limit, format!("this server takes {} clients in all", shared.config.clients));
        }
        announcing.clients.extend(announce.clients);
        announcing.next_part += 1;
        (announcing.next_part == announce.parts).then(|| std::mem::take(&mut *announcing))
    };
    if let Some(complete) = complete {
        let clients = complete.clients.len();
        if let Err((code, reason)) = shared.register(link, complete.clients) {
            tracing::warn!(node = %link.node, reason, "node.refused");
            return refuse(code, reason);
        }
        tracing::info!(node = %link.node, clients, "node.announced");
        shared.note_declined(link.node, None);
    }
    Announced { ext: Extensions::default() }.into()
}

fn renewed(link: &Link, shared: &Shared, renew: &Renew) -> Message {
    match shared.identity.renew(link.node, &renew.csr, &channel(&link.connection)) {
        Ok(chain) => certificate(chain),
        Err(e) => refuse(Refusal::Enrolment, e.to_string()),
    }
}

async fn begun(link: &Arc<Link>, shared: &Arc<Shared>, begin: UploadBegin) -> Message {
    let UploadBegin { task, num_values, vectors, .. } = begin;
    if let Some(refused) = unusable(link, shared, task) {
        return refused;
    }
    let Some(expected) = shared.schema(link.node, task).map(|schema| schema.num_values()) else {
        return refuse(Refusal::UnknownTask, "no such task".to_owned());
    };
    if num_values != expected as u64 {
        let reason = format!("vectors of {num_values} values where the task's model has {expected}");
        return refuse(Refusal::Invalid, reason);
    }
    if let Some(reason) = shared.beyond_memory(link.node, task, vectors.len()) {
        return refuse(Refusal::Invalid, reason);
    }
    // Asked twice at once, there would be room for it twice.
    let Some(_beginning) = link.begin(task) else {
        return Busy { retry_after_ms: BEGIN_AGAIN_MS, ext: Extensions::default() }.into();
    };
    let over = shared.exchange_over();
    let granted = tokio::select! {
        biased;
        upload = uploads::begin(shared, link, task, vectors) => upload,
        () = over => None,
        _ = link.connection.closed() => None,
    };
    match granted {
        Some(upload) => UploadGrant { have: upload.assembly.have(), ext: Extensions::default() }.into(),
        None => unknown(task),
    }
}

async fn committed(link: &Arc<Link>, shared: &Arc<Shared>, commit: UploadCommit) -> Message {
    let task = commit.task;
    if shared.offer(link.node, task).is_some()
        && let Some(state) = shared.answered(task, Some(commit.root))
    {
        return acknowledged(link, state);
    }
    if let Some(refused) = unusable(link, shared, task) {
        return refused;
    }
    let received = match &commit.payload {
        Payload::Inline { vectors, data } => {
            add(&link.counters.payload_up, data.len());
            let Some(form) = shared.form(link.node, task, vectors.len()) else { return unknown(task) };
            decode_inline(data, form, shared.limits.chunk_len)
                .map(|(values, root)| (vectors.clone(), values, root, None))
                .map_err(|e| e.to_string())
        }
        _ => match received(link, shared, task).await {
            Some(received) => Ok(received),
            None => return unknown(task),
        },
    };
    match received {
        Err(reason) => rejected(link, shared, task, commit.root, reason).await,
        Ok((_, _, root, _)) if root != commit.root => {
            rejected(link, shared, task, commit.root, "the update is not the one that was announced".to_owned()).await
        }
        Ok((names, values, _, memory)) => {
            let update = ArrivedUpdate {
                values,
                names,
                num_examples: commit.num_examples,
                scalars: commit.side_scalars,
                report: commit.report.into(),
                metrics: metrics_from_wire(commit.metrics),
            };
            answered(link, shared, task, commit.root, Ok(Arrived::Trained(Box::new(update))), memory).await
        }
    }
}

/// Names, values and root of an update whose chunks have all come, and the room that they take.
type Received = (Vec<String>, Values, Hash, Option<Memory>);

/// Waits for the chunks of an update that are still on their way.
async fn received(link: &Link, shared: &Shared, task: TaskId) -> Option<Received> {
    // Noted first: an exchange that ends takes what is held.
    let over = shared.exchange_over();
    let upload = link.held(task)?;
    tokio::select! {
        biased;
        () = upload.assembly.full() => {}
        () = over => return None,
        _ = link.connection.closed() => return None,
    }
    let root = upload.assembly.root();
    Some((upload.names.clone(), upload.assembly.take(), root, upload.take_memory()))
}

async fn measured_by(link: &Link, shared: &Shared, measured: &Measured) -> Message {
    let digest = digest(measured);
    match shared.offer(link.node, measured.task) {
        None => acknowledged(link, CommitState::Superseded),
        Some(offer) if offer.kind != TaskKind::Evaluate => {
            let reason = "a measurement in answer to a request to train".to_owned();
            rejected(link, shared, measured.task, digest, reason).await
        }
        Some(_) => {
            let metrics = metrics_from_wire(measured.metrics.clone());
            answered(link, shared, measured.task, digest, Ok(Arrived::Evaluated(metrics)), None).await
        }
    }
}

async fn declined(link: &Link, shared: &Shared, decline: &Decline) -> Message {
    match shared.offer(link.node, decline.task) {
        None => acknowledged(link, CommitState::Superseded),
        Some(_) => {
            answered(link, shared, decline.task, digest(decline), Err(decline.failure.clone().into()), None).await
        }
    }
}

/// The answer to an upload for a task that the node was not asked, or that is no training; `None` where it may go on.
fn unusable(link: &Link, shared: &Shared, task: TaskId) -> Option<Message> {
    let Some(offer) = shared.offer(link.node, task) else { return Some(unknown(task)) };
    if let Some(state) = shared.answered(task, None) {
        return Some(acknowledged(link, state));
    }
    let trains = matches!(offer.kind, TaskKind::Train { .. });
    (!trains).then(|| refuse(Refusal::Invalid, "an update in answer to a request to measure".to_owned()))
}

/// Ends a task whose answer is unusable; the round does not wait for another.
async fn rejected(link: &Link, shared: &Shared, task: TaskId, digest: Hash, reason: String) -> Message {
    tracing::warn!(node = %link.node, %task, reason, "answer.rejected");
    let reason = short_reason(reason);
    let failure = ClientFailure::Malformed { reason: reason.clone() };
    match shared.answer(link, task, digest, Err(failure), None).await {
        Some(_) => acknowledged(link, CommitState::Rejected { reason }),
        None => ending(),
    }
}

/// Takes an answer and says what became of it.
async fn answered(
    link: &Link,
    shared: &Shared,
    task: TaskId,
    digest: Hash,
    reply: Result<Arrived, ClientFailure>,
    memory: Option<Memory>,
) -> Message {
    match shared.answer(link, task, digest, reply, memory).await {
        Some(state) => acknowledged(link, state),
        None => ending(),
    }
}

/// The node keeps its answer and comes again.
fn ending() -> Message {
    refuse(Refusal::Internal, "the server cannot go on and is about to end".to_owned())
}

fn unknown(task: TaskId) -> Message {
    refuse(Refusal::UnknownTask, format!("task {task} is over, or another node's"))
}

fn acknowledged(link: &Link, state: CommitState) -> Message {
    let state = match state {
        CommitState::Durable if !link.has(features::DURABLE) => CommitState::Committed,
        state => state,
    };
    CommitAck { state, ext: Extensions::default() }.into()
}

/// What tells a repetition of a small answer from another answer.
fn digest<M: crate::wire::Body>(message: &M) -> Hash {
    // What was decoded can be encoded.
    Frame::encode(0, message).map_or(Hash::default(), |bytes| Hash(*blake3::hash(&bytes).as_bytes()))
}

/// When a node that asks twice at once may ask again.
const BEGIN_AGAIN_MS: u64 = 100;
