//! An answer on its way to the server: encoded once, sent until it is acknowledged.

use std::sync::Arc;
use std::time::Duration;

use fedburn_core::{ClientFailure, ClientId, Metrics, RoundIndex};

use super::super::QuicError;
use super::super::send::{Blob, Pace, name_of, send_chunks};
use super::super::stream::{REQUEST, StreamError, ask};
use super::connect::{on, unexpected};
use super::failure::Failure;
use super::state::{Live, Shared};
use crate::wire::limits::{CHUNKS_IN_FLIGHT, MAX_INLINE};
use crate::wire::{
    Bitmap, CommitState, Decline, Extensions, Frame, Hash, Measured, Message, NamedMean, NamedValue, Payload, Report,
    TaskId, UploadBegin, UploadCommit, metrics_to_wire,
};

/// An answer, ready to be sent as often as it takes.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) task: TaskId,
    pub(super) client: ClientId,
    pub(super) round: RoundIndex,
    pub(super) content: Content,
}

#[derive(Debug)]
pub(super) enum Content {
    Update(Box<Update>),
    Measured(Metrics),
    Declined(ClientFailure),
}

/// An update as it travels.
#[derive(Debug)]
pub(super) struct Update {
    /// The parameters, then the vectors that `names` names.
    pub(super) blob: Arc<Blob>,
    pub(super) names: Vec<String>,
    pub(super) num_values: u64,
    pub(super) num_examples: u64,
    pub(super) scalars: Vec<NamedValue>,
    pub(super) report: Report,
    pub(super) metrics: Vec<NamedMean>,
}

impl Prepared {
    /// The answer, or a failure where a message cannot hold what it says: that is the client's own fault, and no reason
    /// to give up the connection.
    pub(super) fn sendable(mut self) -> Self {
        let encoded = match &self.content {
            // The root, which takes as long whatever it is, is not known before the chunks were sent.
            Content::Update(update) => {
                Frame::encode(REQUEST, &commit(self.task, Hash::default(), update, Payload::Chunks))
            }
            Content::Measured(metrics) => Frame::encode(REQUEST, &measured(self.task, metrics)),
            Content::Declined(_) => return self,
        };
        if let Err(e) = encoded {
            let reason = format!("the answer cannot be sent: {e}");
            self.content = Content::Declined(ClientFailure::Failed { reason });
        }
        self
    }

    /// Bytes of memory, roughly.
    pub(super) fn len(&self) -> u64 {
        let payload = match &self.content {
            Content::Update(update) => update.blob.layout.len(),
            _ => 0,
        };
        payload + 1024
    }
}

/// Sends an answer until the server has acknowledged it or no longer wants it; on which connection that was.
pub(super) async fn deliver(shared: &Shared, answer: &Prepared) -> Result<(CommitState, u64), Failure> {
    loop {
        let live = shared.live().await?;
        match attempt(shared, &live, answer).await {
            Ok(state) => {
                tracing::debug!(task = %answer.task, ?state, "answer.acknowledged");
                return Ok((state, live.number));
            }
            Err(Failure::Superseded) => return Ok((CommitState::Superseded, live.number)),
            Err(Failure::Passing(reason)) => {
                tracing::debug!(task = %answer.task, reason, "answer.interrupted");
                shared.lost(&live).await;
            }
            Err(lasting) => return Err(lasting),
        }
    }
}

async fn attempt(shared: &Shared, live: &Live, answer: &Prepared) -> Result<CommitState, Failure> {
    let (task, ext) = (answer.task, Extensions::default());
    let acknowledgement = match &answer.content {
        Content::Declined(failure) => {
            shared.dialer.expect(&live.connection, &Decline { task, failure: failure.clone().into(), ext }).await?
        }
        Content::Measured(metrics) => shared.dialer.expect(&live.connection, &measured(task, metrics)).await?,
        Content::Update(update) => match inline(live, task, update) {
            Some(whole) => shared.dialer.expect(&live.connection, &whole).await?,
            None => upload(shared, live, task, update).await?,
        },
    };
    match acknowledgement {
        Message::CommitAck(ack) => Ok(ack.state),
        other => Err(unexpected(&other)),
    }
}

/// Sends the chunks that the server does not have, then what belongs to them.
async fn upload(shared: &Shared, live: &Live, task: TaskId, update: &Update) -> Result<Message, Failure> {
    // Cannot fail: the semaphore is never closed.
    let _turn = shared.uploads.acquire().await;
    let begin =
        UploadBegin { task, num_values: update.num_values, vectors: update.names.clone(), ext: Extensions::default() };
    let have = loop {
        match patient(live, &begin).await? {
            Message::UploadGrant(grant) => break grant.have,
            Message::Busy(busy) => tokio::time::sleep(Duration::from_millis(busy.retry_after_ms)).await,
            acknowledged @ Message::CommitAck(_) => return Ok(acknowledged),
            other => return Err(unexpected(&other)),
        }
    };
    send_missing(shared, live, task, &update.blob, &have).await?;
    let lost = |error: StreamError| on(&live.connection, error.into());
    let name = name_of(&update.blob).await.map_err(lost)?;
    patient(live, &commit(task, name.root, update, Payload::Chunks)).await
}

/// Asks what the server answers when others have had their turn: it ends with the task or the connection.
async fn patient<M: crate::wire::Body>(live: &Live, question: &M) -> Result<Message, Failure> {
    match ask(&live.connection, question).await {
        Ok(Message::Refused(refused)) => Err(refused.into()),
        Ok(message) => Ok(message),
        Err(error) => Err(on(&live.connection, error.into())),
    }
}

async fn send_missing(
    shared: &Shared,
    live: &Live,
    task: TaskId,
    blob: &Arc<Blob>,
    have: &Bitmap,
) -> Result<(), Failure> {
    if have.len() != blob.layout.num_chunks() {
        let reason = "the server's bitmap is of another update".to_owned();
        return Err(QuicError::Protocol { reason }.into());
    }
    let pace = Pace {
        chunks_at_once: live.limits.chunks_in_flight.clamp(1, CHUNKS_IN_FLIGHT),
        period: Duration::from_secs(shared.dialer.config().progress_timeout_secs),
        min_rate: MIN_RATE,
        tally: &Arc::default(),
    };
    let sent = send_chunks(&live.connection, blob, task.into(), have.missing(), pace).await;
    sent.map_err(|error| on(&live.connection, error.into()))
}

fn commit(task: TaskId, root: Hash, update: &Update, payload: Payload) -> UploadCommit {
    UploadCommit {
        task,
        root,
        payload,
        num_examples: update.num_examples,
        side_scalars: update.scalars.clone(),
        report: update.report.clone(),
        metrics: update.metrics.clone(),
        ext: Extensions::default(),
    }
}

fn measured(task: TaskId, metrics: &Metrics) -> Measured {
    Measured { task, metrics: metrics_to_wire(metrics), ext: Extensions::default() }
}

/// The whole update as one message, where it is small enough.
fn inline(live: &Live, task: TaskId, update: &Update) -> Option<UploadCommit> {
    let data = update.blob.inline(live.limits.inline_len.min(MAX_INLINE as u32))?;
    let payload = Payload::Inline { vectors: update.names.clone(), data: data.clone() };
    let whole = commit(task, update.blob.name().root, update, payload);
    Frame::encode(REQUEST, &whole).is_ok().then_some(whole)
}

/// Answers a repeated question with the answer that was given before.
pub(super) async fn repeat(shared: Arc<Shared>, answer: Arc<Prepared>) {
    match deliver(&shared, &answer).await {
        Ok((state, _)) => {
            tracing::debug!(task = %answer.task, ?state, "answer.repeated");
            if state == CommitState::Durable {
                shared.is_durable(answer.task);
            }
        }
        Err(failure) => tracing::warn!(task = %answer.task, ?failure, "answer.repetition_failed"),
    }
}

/// Bytes a second below which a server is not there: more than a connection needs to stay alive.
const MIN_RATE: u64 = 1 << 10;
