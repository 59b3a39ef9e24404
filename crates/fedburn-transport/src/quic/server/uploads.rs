//! Updates on their way in: who may send, what has come, what is given up.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use quinn::{RecvStream, VarInt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout};

use super::super::QuicConfig;
use super::super::Usage;
use super::super::blob::Assembly;
use super::super::receive;
use super::super::stream::{StreamError, read_end, read_header, read_payload};
use super::counters::add;
use super::link::{Link, lock};
use super::state::Shared;
use crate::wire::{CloseCode, TaskId, TransferId};

/// One update that is being received.
pub(super) struct Upload {
    pub(super) task: TaskId,
    /// Names of the vectors behind the parameters.
    pub(super) names: Vec<String>,
    pub(super) assembly: Arc<Assembly>,
    /// Bytes of payload that came, verified or not.
    came: AtomicU64,
    slot: Mutex<Option<OwnedSemaphorePermit>>,
    /// Held while it waits for a slot again.
    turn: Turn,
    /// Room for the values until whoever waits for the update has it.
    memory: Mutex<Option<Memory>>,
}

/// Room for values that came and are not used yet.
pub(super) struct Memory(#[expect(dead_code, reason = "gives the room back when it is dropped")] OwnedSemaphorePermit);

/// Who may send: so many at once, and no more than there is memory for.
pub(super) struct Slots {
    turns: Arc<Semaphore>,
    slots: usize,
    memory: Arc<Semaphore>,
    units: u32,
}

impl Slots {
    pub(super) fn new(config: &QuicConfig) -> Self {
        // Checked: at most 2^20 MiB, which is 2^24 units.
        let units = u32::try_from(config.upload_memory_mib * (1 << 20) / MEMORY_UNIT).unwrap_or(u32::MAX);
        Self {
            turns: Arc::new(Semaphore::new(config.upload_slots)),
            slots: config.upload_slots,
            memory: Arc::new(Semaphore::new(units as usize)),
            units,
        }
    }

    /// Slots in use, and bytes of memory in use.
    pub(super) fn usage(&self) -> (Usage, Usage) {
        let used = |permits: &Semaphore, all: usize| (all - permits.available_permits().min(all)) as u64;
        let units = self.units as usize;
        (
            Usage { used: used(&self.turns, self.slots), all: self.slots as u64 },
            Usage { used: MEMORY_UNIT * used(&self.memory, units), all: MEMORY_UNIT * units as u64 },
        )
    }

    /// Waits for a turn, in the order of asking.
    async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        self.turns.clone().acquire_owned().await.ok()
    }

    /// Waits for room. What was begun by nodes that are away now makes place.
    async fn memory(&self, bytes: u64, shared: &Shared) -> Option<Memory> {
        // An update larger than all the memory is taken alone.
        let units = u32::try_from(bytes.div_ceil(MEMORY_UNIT)).unwrap_or(u32::MAX).clamp(1, self.units);
        // Asked for once: who has waited keeps its place.
        let mut room = pin!(self.memory.clone().acquire_many_owned(units));
        loop {
            match timeout(MEMORY_LOOK, &mut room).await {
                Ok(permit) => return permit.ok().map(Memory),
                Err(_) => shared.forget_parked_uploads(),
            }
        }
    }
}

impl Upload {
    /// Gives the slot back; what came stays, for a node that comes or sends again.
    pub(super) fn release_slot(&self) {
        *lock(&self.slot) = None;
    }

    pub(super) fn take_slot(&self, slot: OwnedSemaphorePermit) {
        *lock(&self.slot) = Some(slot);
    }

    fn has_slot(&self) -> bool {
        lock(&self.slot).is_some()
    }

    /// Waits for a slot where it was taken back; of the chunks of an upload, one asks for all. Says whether there is one
    /// now: the upload may have come to its end meanwhile.
    async fn slot_again(self: &Arc<Self>, link: &Link, shared: &Shared) -> bool {
        let _turn = self.turn.lock().await;
        if self.has_slot() {
            return true;
        }
        let slot = tokio::select! {
            biased;
            slot = shared.uploads.turn() => slot,
            _ = link.connection.closed() => None,
        };
        slot.is_some_and(|slot| link.give_slot(self, slot))
    }

    pub(super) fn take_memory(&self) -> Option<Memory> {
        lock(&self.memory).take()
    }
}

/// Waits until the node may send the update of `task`, and gives it the right to.
///
/// `None` where the task is over.
pub(super) async fn begin(
    shared: &Arc<Shared>,
    link: &Arc<Link>,
    task: TaskId,
    names: Vec<String>,
) -> Option<Arc<Upload>> {
    let upload = match shared.upload_of(task).filter(|upload| upload.names == names) {
        Some(upload) => upload,
        None => {
            let form = shared.form(link.node, task, names.len())?;
            let memory = shared.uploads.memory(form.len(), shared).await?;
            // Cannot fail where the server's own model is within the limits; were it not, no task would be offered.
            let assembly = Assembly::of_update(form, shared.limits.chunk_len).ok()?;
            let upload = Arc::new(Upload {
                task,
                names,
                assembly: Arc::new(assembly),
                came: AtomicU64::new(0),
                slot: Mutex::new(None),
                turn: Turn::default(),
                memory: Mutex::new(Some(memory)),
            });
            shared.keep_upload(task, upload.clone()).then_some(upload)?
        }
    };
    // After the memory, here as where a slot is taken again: who has both needs nothing more to come to an end.
    let turn = shared.uploads.turn().await?;
    if !shared.is_open(link.node, task) {
        return None;
    }
    upload.take_slot(turn);
    link.hold(upload.clone());
    if link.connection.close_reason().is_some() {
        // It went while we waited, and nobody will take the slot back.
        link.release(|_| false);
        return None;
    }
    tokio::spawn(watch_progress(shared.clone(), link.clone(), Arc::downgrade(&upload)));
    Some(upload)
}

/// Lets others have the slot of a node that is too slow for it, and cuts it off where it stays so. While it waits for a
/// slot again, time stands still for it.
async fn watch_progress(shared: Arc<Shared>, link: Arc<Link>, upload: Weak<Upload>) {
    let came = |upload: &Upload| upload.came.load(Ordering::Relaxed);
    let Some(first) = upload.upgrade().map(|upload| came(&upload)) else { return };
    let (patience, enough) = (shared.config.progress_timeout(), shared.config.min_rate as f64);
    let look = SLOT_LOOK.min(patience);
    let (mut first, mut before, mut began) = (first, first, Instant::now());
    let mut moved = began;
    loop {
        tokio::select! {
            biased;
            () = tokio::time::sleep(look) => {}
            _ = link.connection.closed() => return,
        }
        // Nothing of it is kept here: its memory is free when nobody needs it any more.
        let Some(upload) = upload.upgrade() else { return };
        let held = link.held(upload.task).is_some_and(|held| Arc::ptr_eq(&held, &upload));
        if !held || upload.assembly.is_full() {
            return;
        }
        let came = came(&upload);
        if upload.turn.try_lock().is_err() {
            (first, before) = (came, came);
            (began, moved) = (Instant::now(), Instant::now());
            continue;
        }
        let rate = |bytes: u64, since: Duration| bytes as f64 / since.as_secs_f64();
        if rate(came - before, look) < enough {
            // It may go on; what it sends is too little to be counted among those who send.
            upload.release_slot();
        }
        if came > before {
            (before, moved) = (came, Instant::now());
        }
        let slow = began.elapsed() >= RATE_GRACE.min(patience) && rate(came - first, began.elapsed()) < enough;
        if slow || moved.elapsed() >= patience {
            tracing::warn!(node = %link.node, task = %upload.task, came, "upload.too_slow");
            return link.close(CloseCode::Slow, "the upload is too slow");
        }
    }
}

/// Receives one chunk.
pub(super) async fn chunk(link: &Arc<Link>, shared: &Shared, mut stream: RecvStream) {
    let header = match timeout(HEADER_TIMEOUT, read_header(&mut stream)).await {
        Ok(Ok(header)) => header,
        Ok(Err(StreamError::Lost(_))) => return,
        Ok(Err(e)) => return link.close(CloseCode::Protocol, &e.to_string()),
        Err(_) => return link.close(CloseCode::Slow, "a chunk's header did not come"),
    };
    let (transfer, over) = (header.transfer, shared.exchange_over());
    let Some(upload) = link.held(TaskId(transfer.0)) else {
        // The task may have ended while the chunk was on its way.
        let _ = stream.stop(VarInt::from_u32(CloseCode::Ok as u32));
        return;
    };
    if let Err(e) = upload.assembly.expect(TransferId::from(upload.task), &header) {
        return link.close(CloseCode::Protocol, &e.to_string());
    }
    let count = |bytes: usize| {
        upload.came.fetch_add(bytes as u64, Ordering::Relaxed);
        add(&link.counters.payload_up, bytes);
    };
    let reading = async {
        match upload.slot_again(link, shared).await {
            true => Some(read_payload(&mut stream, &header, count).await),
            false => None,
        }
    };
    let read = tokio::select! {
        biased;
        read = reading => read,
        // Nobody wants the rest, and the memory is for others.
        () = over => None,
    };
    let parts = match read {
        Some(Ok(parts)) => parts,
        Some(Err(StreamError::Lost(_))) => return,
        Some(Err(e)) => return link.close(CloseCode::Protocol, &e.to_string()),
        None => {
            let _ = stream.stop(VarInt::from_u32(CloseCode::Ok as u32));
            return;
        }
    };
    if let Err(e) = receive::accept(&upload.assembly, header, parts).await {
        tracing::warn!(node = %link.node, task = %upload.task, error = %e, "chunk.refused");
        return link.close(CloseCode::Protocol, &e.to_string());
    }
    match read_end(&mut stream, &header).await {
        Ok(()) | Err(StreamError::Lost(_)) => {}
        Err(e) => link.close(CloseCode::Protocol, &e.to_string()),
    }
}

type Turn = tokio::sync::Mutex<()>;

/// Bytes of one unit of memory.
const MEMORY_UNIT: u64 = 64 << 10;
/// How often somebody who waits for memory looks for updates whose nodes went away.
const MEMORY_LOOK: Duration = Duration::from_millis(500);
/// How often somebody who holds a slot is looked at.
const SLOT_LOOK: Duration = Duration::from_secs(1);
/// Time from which on the average rate of an upload counts.
const RATE_GRACE: Duration = Duration::from_secs(10);
/// Time for a chunk's header once its stream was opened.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
