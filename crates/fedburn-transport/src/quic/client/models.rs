//! The vectors that tasks start from, each fetched once however many workers need it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::backend::Backend;
use fedburn_core::{ParamSchema, ParamVector};

use super::super::QuicError;
use super::super::blob::Assembly;
use super::failure::Failure;
use super::state::Shared;
use crate::wire::{BlobRef, Codec, Hash};

/// The vectors that tasks start from.
pub(super) struct Models<B: Backend> {
    schema: Arc<ParamSchema>,
    device: B::Device,
    known: Mutex<BTreeMap<Hash, Arc<Cell<B>>>>,
}

/// One vector, on its way or here. Whoever fetches it holds the lock; others who need it wait.
type Cell<B> = tokio::sync::Mutex<Fetched<B>>;

enum Fetched<B: Backend> {
    /// What has come of it; nothing at first.
    Partly(Option<Arc<Assembly>>),
    Here(ParamVector<B>),
}

impl<B: Backend> Models<B> {
    pub(super) fn new(schema: Arc<ParamSchema>, device: B::Device) -> Self {
        Self { schema, device, known: Mutex::default() }
    }

    pub(super) fn schema(&self) -> &Arc<ParamSchema> {
        &self.schema
    }

    /// The vector of a blob. It survives lost connections: only what is missing is fetched again.
    pub(super) async fn fetch(&self, shared: &Shared, blob: &BlobRef) -> Result<ParamVector<B>, Failure> {
        if blob.codec != Codec::F32 || blob.len != self.schema.num_bytes() {
            let reason = format!("a vector of {} bytes where the model has {}", blob.len, self.schema.num_bytes());
            return Err(QuicError::Protocol { reason }.into());
        }
        self.forget_unneeded(shared);
        let cell = self.lock().entry(blob.root).or_insert_with(|| Arc::new(Cell::new(Fetched::Partly(None)))).clone();
        let mut fetched = cell.lock().await;
        let partial = match &mut *fetched {
            Fetched::Here(vector) => return Ok(vector.clone()),
            Fetched::Partly(partial) => partial,
        };
        let assembly = loop {
            let live = shared.live().await?;
            match shared.downloads.fetch(&shared.dialer, &live.connection, blob, partial).await {
                Ok(assembly) => break assembly,
                Err(Failure::Passing(reason)) => {
                    tracing::debug!(blob = %blob.root, reason, "download.interrupted");
                    shared.lost(&live).await;
                }
                Err(failure) => return Err(failure),
            }
        };
        let values = assembly.take_vectors().pop().unwrap_or_default();
        let vector = ParamVector::from_host(values, self.schema.clone(), &self.device)
            .map_err(|e| QuicError::Protocol { reason: e.to_string() })?;
        *fetched = Fetched::Here(vector.clone());
        Ok(vector)
    }

    /// Forgets the vectors that no task needs any more.
    pub(super) fn forget_unneeded(&self, shared: &Shared) {
        self.lock().retain(|root, _| shared.needs(*root));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Hash, Arc<Cell<B>>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
