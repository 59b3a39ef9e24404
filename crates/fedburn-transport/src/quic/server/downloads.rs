//! Blobs on their way out.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;

use super::super::blob::Blob;
use super::super::stream::{StreamError, send_chunk};
use super::super::tuning::CHUNKS_IN_FLIGHT;
use super::connection::refuse;
use super::link::Link;
use super::state::Shared;
use crate::wire::{BlobManifest, ChunksComing, CloseCode, Extensions, GetChunks, GetManifest, Message, Refusal};

/// How a blob is cut, and a small one itself.
pub(super) fn manifest(shared: &Shared, asked: &GetManifest) -> Message {
    match shared.blob(asked.root) {
        Some(blob) => BlobManifest::new(blob.manifest.clone(), &blob.bytes, shared.limits.inline_len as usize).into(),
        None => refuse(Refusal::UnknownBlob, format!("no blob {} is offered", asked.root)),
    }
}

/// Waits for a slot and begins to send chunks.
pub(super) async fn chunks(shared: &Arc<Shared>, link: &Arc<Link>, asked: GetChunks) -> Message {
    let unknown = || refuse(Refusal::UnknownBlob, format!("no blob {} is offered", asked.root));
    let Some(blob) = shared.blob(asked.root) else { return unknown() };
    if let Err(e) = asked.ranges.within(blob.manifest.layout().num_chunks()) {
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

/// Sends the chunks, lowest number first, some at a time.
async fn send_all(
    shared: Arc<Shared>,
    link: Arc<Link>,
    blob: Arc<Blob>,
    asked: GetChunks,
    _slot: OwnedSemaphorePermit,
) {
    let mut waiting: VecDeque<u32> = asked.ranges.indices().collect();
    let mut sending = JoinSet::new();
    loop {
        while sending.len() < CHUNKS_IN_FLIGHT as usize
            && let Some((header, payload)) = waiting.pop_front().and_then(|index| blob.chunk(asked.transfer, index))
        {
            let (connection, progress) = (link.connection.clone(), shared.config.progress_timeout());
            sending.spawn(async move { send_chunk(&connection, &header, payload, progress).await });
        }
        match sending.join_next().await {
            None => return,
            Some(Ok(Ok(()))) => {}
            Some(Ok(Err(StreamError::Slow))) => return link.close(CloseCode::Slow, "the download is too slow"),
            // The connection is gone, or the node no longer wants it.
            Some(Ok(Err(_)) | Err(_)) => return,
        }
    }
}
