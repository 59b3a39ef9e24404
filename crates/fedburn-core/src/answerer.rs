//! Answering requests in the name of clients: one worker's part, the same in a simulation and at the end of a network.

use std::panic::{AssertUnwindSafe, catch_unwind};

use burn::tensor::backend::Backend;

use crate::{ClientFailure, ClientId, Population, Reply, Request, StateDict, StateError, TrainError, Worker};

/// One worker of a population, which becomes whichever client is asked.
///
/// A client that panics is a failure of that client: the worker, whose resident model may be torn, is built anew.
pub struct Answerer<'a, B: Backend> {
    population: &'a dyn Population<B>,
    worker: Option<Box<dyn Worker<B>>>,
}

/// What a client answered.
#[derive(Clone, Debug)]
pub struct Answered<B: Backend> {
    /// For the server.
    pub reply: Reply<B>,
    /// The client's state after training, empty for one that keeps none; `None` after an evaluation, which changes none.
    pub state: Option<StateDict>,
}

impl<'a, B: Backend> Answerer<'a, B> {
    /// A worker of `population`, made when the first request comes.
    pub fn new(population: &'a dyn Population<B>) -> Self {
        Self { population, worker: None }
    }

    /// Becomes `client` with what `state` loads, `None` for no state, and does what is asked.
    ///
    /// # Errors
    /// [`ClientFailure`]: what the server is told where there is no answer.
    pub fn answer(
        &mut self,
        client: ClientId,
        request: Request<B>,
        state: impl FnOnce() -> Result<Option<StateDict>, StateError>,
    ) -> Result<Answered<B>, ClientFailure> {
        let answered = catch_unwind(AssertUnwindSafe(|| {
            let worker = self.worker.get_or_insert_with(|| self.population.worker());
            answer(&mut **worker, client, request, state)
        }));
        answered.unwrap_or_else(|panic| {
            self.worker = None;
            Err(ClientFailure::Failed { reason: format!("panicked: {}", message(&*panic)) })
        })
    }
}

fn answer<B: Backend>(
    worker: &mut dyn Worker<B>,
    id: ClientId,
    request: Request<B>,
    state: impl FnOnce() -> Result<Option<StateDict>, StateError>,
) -> Result<Answered<B>, ClientFailure> {
    let failed = |e: StateError| ClientFailure::Failed { reason: e.to_string() };
    let training = |e: TrainError| match e {
        TrainError::NoData { .. } => ClientFailure::NoData,
        other => ClientFailure::Failed { reason: other.to_string() },
    };
    let mut client = worker.client(id).map_err(training)?;
    if let Some(state) = state().map_err(failed)? {
        client.restore(state).map_err(failed)?;
    }
    match request {
        Request::Train(task) => {
            let update = client.train(&task).map_err(training)?;
            Ok(Answered { reply: Reply::Trained(update), state: Some(client.state()) })
        }
        Request::Evaluate { global, .. } => {
            let metrics = client.evaluate(&global).map_err(training)?;
            Ok(Answered { reply: Reply::Evaluated(metrics), state: None })
        }
    }
}

fn message(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "unknown cause".to_owned())
}
