//! A chunk's way from its stream into an assembly.

use std::cell::RefCell;
use std::sync::Arc;

use bytes::Bytes;

use super::blob::Assembly;
use crate::wire::{BlobError, ChunkHeader};

/// Verifies a chunk and puts it in its place: small ones at once, others on a thread for work.
pub(crate) async fn accept(assembly: &Arc<Assembly>, header: ChunkHeader, parts: Vec<Bytes>) -> Result<(), BlobError> {
    if header.len <= SMALL {
        return join(&parts, |payload| assembly.accept(&header, payload));
    }
    let assembly = assembly.clone();
    let work = tokio::task::spawn_blocking(move || join(&parts, |payload| assembly.accept(&header, payload)));
    match work.await {
        Ok(accepted) => accepted,
        // The runtime is ending: nobody will look at the assembly again.
        Err(_) => Ok(()),
    }
}

/// Calls `use_it` with the parts as one slice.
fn join<T>(parts: &[Bytes], use_it: impl FnOnce(&[u8]) -> T) -> T {
    thread_local! {
        /// One buffer a thread, so that no chunk has to ask the system for memory.
        static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    match parts {
        [only] => use_it(only),
        _ => BUFFER.with_borrow_mut(|buffer| {
            buffer.clear();
            parts.iter().for_each(|part| buffer.extend_from_slice(part));
            use_it(buffer)
        }),
    }
}

/// Bytes that are hashed faster than another thread is woken.
const SMALL: u32 = 64 << 10;
