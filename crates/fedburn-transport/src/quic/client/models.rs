//! The vectors that tasks start from, each fetched once however many workers need it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::backend::Backend;
use fedburn_core::{Codec, CodecError, Encoded, ParamSchema, ParamVector, Schemas};

use super::super::QuicError;
use super::super::blob::{Assembly, Values};
use super::failure::Failure;
use super::state::Shared;
use crate::wire::{self, BlobRef, Hash};

/// The vectors that tasks start from.
pub(super) struct Models<B: Backend> {
    schemas: Schemas,
    device: B::Device,
    /// By root and by the fingerprint of the schema: one blob may be a vector of two.
    known: Mutex<Known<B>>,
}

type Known<B> = BTreeMap<(Hash, u64), Arc<Cell<B>>>;

/// One vector, on its way or here. Whoever fetches it holds the lock; others who need it wait.
type Cell<B> = tokio::sync::Mutex<Fetched<B>>;

enum Fetched<B: Backend> {
    /// What has come of it; nothing at first.
    Partly(Option<Arc<Assembly>>),
    Here(ParamVector<B>),
}

impl<B: Backend> Models<B> {
    pub(super) fn new(schemas: Schemas, device: B::Device) -> Self {
        Self { schemas, device, known: Mutex::default() }
    }

    pub(super) fn schemas(&self) -> &Schemas {
        &self.schemas
    }

    /// The vector of `schema` that a blob is, written in `codec`. It survives lost connections: only what is missing is
    /// fetched again.
    pub(super) async fn fetch(
        &self,
        shared: &Shared,
        blob: &BlobRef,
        codec: Codec,
        schema: &Arc<ParamSchema>,
    ) -> Result<ParamVector<B>, Failure> {
        let expected = codec.vector_len(schema) as u64;
        let form = if codec.is_lossless() { wire::Codec::F32 } else { wire::Codec::Opaque };
        if blob.codec != form || blob.len != expected {
            let reason = format!("a vector of {} bytes where the plan has one of {expected}", blob.len);
            return Err(QuicError::Protocol { reason }.into());
        }
        self.forget_unneeded(shared);
        let (name, nothing) = ((blob.root, schema.fingerprint()), || Arc::new(Cell::new(Fetched::Partly(None))));
        let cell = self.lock().entry(name).or_insert_with(nothing).clone();
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
        let vector = match assembly.take() {
            Values::Plain(mut vectors) => {
                let values = vectors.pop().unwrap_or_default();
                ParamVector::from_host(values, schema.clone(), &self.device).map_err(CodecError::from)
            }
            Values::Encoded(bytes) => ParamVector::decode_model(Encoded { codec, bytes }, schema, &self.device),
        };
        let vector = vector.map_err(|e| QuicError::Protocol { reason: e.to_string() })?;
        *fetched = Fetched::Here(vector.clone());
        Ok(vector)
    }

    /// Forgets the vectors that no task needs any more.
    pub(super) fn forget_unneeded(&self, shared: &Shared) {
        self.lock().retain(|(root, _), _| shared.needs(*root));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known<B>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
