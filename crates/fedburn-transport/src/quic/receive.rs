//! A chunk's way from its stream into an assembly.

use std::sync::Arc;

use bytes::Bytes;

use super::blob::Assembly;
use crate::wire::{BlobError, ChunkHeader};

/// Verifies a chunk and puts it in its place: small ones at once, others on a thread for work.
pub(crate) async fn accept(assembly: &Arc<Assembly>, header: ChunkHeader, parts: Vec<Bytes>) -> Result<(), BlobError> {
    if header.len <= SMALL {
        return assembly.accept(&header, &parts);
    }
    let assembly = assembly.clone();
    match tokio::task::spawn_blocking(move || assembly.accept(&header, &parts)).await {
        Ok(accepted) => accepted,
        // The runtime is ending: nobody will look at the assembly again.
        Err(_) => Ok(()),
    }
}

/// Bytes that are hashed faster than another thread is woken.
pub(crate) const SMALL: u32 = 64 << 10;
