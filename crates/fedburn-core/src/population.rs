//! All clients of a simulation, built on demand.

use std::sync::Arc;

use burn::tensor::backend::Backend;

use crate::{Client, ClientId, ClientInfo, TrainError};

/// All clients that a simulation may sample. Ten million clients cost what the cohort costs: a client exists only
/// while a [`Worker`] trains it.
pub trait Population<B: Backend>: Send + Sync {
    /// Every client, sorted by id, without repeats.
    fn clients(&self) -> Arc<[ClientInfo]>;

    /// What one worker thread needs to be any client: a resident model, buffers.
    fn worker(&self) -> Box<dyn Worker<B>>;
}

/// The resources of one worker thread.
pub trait Worker<B: Backend>: Send {
    /// Becomes the client `id`, without saved state.
    ///
    /// # Errors
    /// [`TrainError::Unusable`] where there is no such client or its data cannot be had.
    fn client(&mut self, id: ClientId) -> Result<Box<dyn Client<B> + '_>, TrainError>;
}
