//! Blobs on their way out.

use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use super::super::send::{Blob, Pace, send_chunks};
use super::super::stream::StreamError;
use super::connection::refuse;
use super::counters::add;
use super::link::Link;
use super::state::Shared;
use crate::wire::limits::CHUNKS_IN_FLIGHT;
use crate::wire::{BlobManifest, ChunksComing, CloseCode, Extensions, GetChunks, GetManifest, Message, Refusal};

/// How a blob is cut, and a small one itself.
pub(super) fn manifest(shared: &Shared, asked: &GetManifest) -> Message {
    match shared.blob(asked.root) {
        Some(blob) => {
            let most = shared.limits.inline_len;
            let inline = blob.inline(most).cloned().unwrap_or_default();
            add(&shared.counters.payload_down, inline.len());
            BlobManifest::new(blob.manifest().clone(), &inline, most as usize).into()
        }
        None => refuse(Refusal::UnknownBlob, format!("no blob {} is offered", asked.root)),
    }
}

/// Waits for a slot and begins to send chunks.
pub(super) async fn chunks(shared: &Arc<Shared>, link: &Arc<Link>, asked: GetChunks) -> Message {
    let unknown = || refuse(Refusal::UnknownBlob, format!("no blob {} is offered", asked.root));
    let Some(blob) = shared.blob(asked.root) else { return unknown() };
    if let Err(e) = asked.ranges.within(blob.layout.num_chunks()) {
        return refuse(Refusal::Invalid, e.to_string());
    }
    drop(blob);
    let slot = tokio::select! {
        biased;
        slot = shared.downloads.clone().acquire_owned() => slot.ok(),
        _ = link.connection.closed() => None,
    };
    // It may have been replaced while we waited.
    let (Some(slot), Some(blob)) = (slot, shared.blob(asked.root)) else { return unknown() };
    // Cannot be more than the limit of a blob's chunks.
    let chunks = asked.ranges.indices().count() as u32;
    tokio::spawn(send_all(shared.clone(), link.clone(), blob, asked, slot));
    ChunksComing { chunks, ext: Extensions::default() }.into()
}

/// Sends the chunks, lowest number first.
async fn send_all(
    shared: Arc<Shared>,
    link: Arc<Link>,
    blob: Arc<Blob>,
    asked: GetChunks,
    _slot: OwnedSemaphorePermit,
) {
    let pace = Pace {
        chunks_at_once: CHUNKS_IN_FLIGHT,
        period: shared.config.progress_timeout(),
        min_rate: shared.config.min_rate,
        tally: &shared.counters.payload_down,
    };
    let sent = send_chunks(&link.connection, &blob, asked.transfer, asked.ranges.indices(), pace).await;
    // Else it is all on its way, the connection is gone, or the node no longer wants it.
    if let Err(StreamError::Slow) = sent {
        link.close(CloseCode::Slow, "the download is too slow");
    }
}
